"""The daemon: a definition becomes a controller with its backends, its thread and its socket.

===========  ==================================================================================
definition   what the user decided, as one value
targets      image files, block devices, null and memory: checked and opened
endpoint     the Unix sockets: where they are, and claiming them safely
nvme_device  a controller behind the interface that the vfio-user server drives
registry     the controllers of a daemon, and what can be done to one at run time
api          the control socket's methods: names, parameters, results
methods      what each of them does
rpc, schema  JSON-RPC 2.0 and typed parameters, without a socket
control      the control socket's server
client       its client
settings     what can be changed at run time, and when it works
standard_error  what a daemon says, without waiting for who reads it
runtime      finding a controller by its name
daemon       all of it put together, served until a signal comes, and taken down in order
===========  ==================================================================================
"""
