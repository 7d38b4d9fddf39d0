"""Structures and constants of the specifications, under their own field names; no behaviour.

Ground floor: everything may import it, it imports nothing of ours. A file per concern:

=================  ============================================================================
nvme_registers     controller registers, doorbells (NVM Express Base, NVMe over PCIe Transport)
nvme_commands      SQE, CQE, opcodes, data structures of commands, AER results
nvme_status        status codes and the completion's status field
nvme_identify      Identify data structures
nvme_features      feature identifiers and the layout of their values
nvme_logs          log pages
pci                configuration space, capabilities (PCI Local Bus, PCI Express Base, PCI PM)
vfio_user          vfio-user messages (QEMU ``docs/interop/vfio-user.rst``, ``<linux/vfio.h>``)
=================  ============================================================================
"""
