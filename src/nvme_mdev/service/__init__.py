"""The daemon: a definition becomes a controller with its backends, its thread and its socket.

===========  ==================================================================================
definition   what the user decided, as one value
targets      image files, block devices, null and memory: checked and opened
endpoint     the Unix socket: where it is, and claiming it safely
nvme_device  a controller behind the interface that the vfio-user server drives
daemon       all of it put together, served until a signal comes, and taken down in order
===========  ==================================================================================
"""
