"""The vfio-user protocol (QEMU ``docs/interop/vfio-user.rst``); knows nothing of NVMe.

===============  ==============================================================================
framing          where a message begins and ends, and the file descriptors beside it; without I/O
messages         what is in a message, to typed values and back
session          which command is legal when, version negotiation: a table, without I/O
device           the interface of a device that can be served
listener         a socket to listen on
server           asyncio server: one device on one Unix socket, one client at a time
client_session   what a client asks for, one message after the other
connection       bytes and file descriptors of one client; with a journal they outlive a process
journal          the message in progress, in memory that outlives a process
client_memory    reaching memory that the client has not shared, with messages of our own
dma_layout       ... which not all clients lay out in the same way
client           blocking client, for host drivers, benches and tests
serving_client   one that does not share its memory, and is asked for it
===============  ==============================================================================
"""
