"""The vfio-user protocol (QEMU ``docs/interop/vfio-user.rst``); knows nothing of NVMe.

========  =====================================================================================
codec     bytes and file descriptors to typed messages and back, without I/O
session   which command is legal when, version negotiation: a table, without I/O
device    the interface of a device that can be served
server    asyncio server: one device on one Unix socket, one client at a time
client    blocking client, for host drivers, benches and tests
========  =====================================================================================
"""
