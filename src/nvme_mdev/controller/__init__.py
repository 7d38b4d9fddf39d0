"""The virtual NVMe controller: registers, life cycle, admin commands, namespaces, events.

It knows nothing of sockets, vfio-user or PCI. What the guest can see of it lives in the shared
memory of :class:`nvme_mdev.datapath.state.ControllerState`; the classes here are views on that
memory and keep no copy of it, so that another process can be given the memory and carry on.

==============  =================================================================================
settings        what the user decides: sizes, limits, identity
memory_map      who owns which word of the state's ``scratch`` area
registers       BAR0's register page: access of any size, which write changes what
transitions     the life cycle as a table: state and event to state and action
lifecycle       carries the table's actions out: enable, drain, reset, shutdown
admin_queue     fetches admin commands, runs their handlers, completes them
admin/          the admin commands, a file per family
features        the features' values and defaults
events          asynchronous events, from their cause to an outstanding request's completion
namespaces      NSID to backend, with the identifiers that a guest finds its disk by
controller      all of it together, as the layer above drives it
==============  =================================================================================
"""
