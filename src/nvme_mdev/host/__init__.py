"""An NVMe *host* driver in user space: what a guest's kernel does, without a guest.

It attaches to any vfio-user NVMe controller, ours or another product's, and serves the tests, the
demo and the benches. Administration is Python, what happens per I/O command is Cython:

==============  ==================================================================================
driver          `NvmeHost`: attach, enable, queues, reset, shutdown
function        its PCI function: registers and doorbells, memory, interrupts
admin_commands  what the controller can be asked for and told
io              `IoQueue`: an I/O queue pair with Read, Write, Flush, ... as methods
transport       the PCI function behind the socket, and what its errors mean to people
vfio            the same for a drive bound to vfio-pci
iommu           what such a drive sees of our memory: iommufd, or a type 1 container
commands        submission queue entries from their fields
memory          DMA memory: windows that the controller sees, an allocator, PRP lists of any shape
queues          `QueuePair`: post, ring, reap; any entry, any doorbell value (Cython)
workload        `Workload`: what is to be done on a queue pair, and what was measured (Cython)
workload_loop   ... and the loop, which keeps commands outstanding (Cython)
completion      a completion queue entry
samples         what a workload measured, as plain values
parent          a controller held to be shared: its queue pairs, for direct mode
partitions      the partitions of a namespace, read from its own blocks
block_device    a namespace as a block device of this host, with `ublk` (Cython)
errors          everything that is raised on purpose
==============  ==================================================================================
"""
