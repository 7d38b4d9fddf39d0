"""Structures and constants of the specifications, under their own field names; no behaviour.

Ground floor: everything may import it, it imports nothing of ours. A file per concern:

========================  ==========================================================================
nvme_registers            controller registers, doorbells (NVMe Base, NVMe over PCIe Transport)
nvme_commands             SQE, CQE, opcodes, data structures of commands, AER results
nvme_status               status codes and the completion's status field
nvme_identify             what Identify can be asked for, and its lists
nvme_identify_controller  Identify Controller
nvme_identify_namespace   Identify Namespace
nvme_virtualization       primary and secondary controllers, as Identify lists them
nvme_features             feature identifiers and the layout of their values
nvme_logs                 log pages
nvme_maintenance          Format NVM, Sanitize, Device Self-test
nvme_reservations         reservations: commands, report, notifications
pci                       configuration space, capabilities (PCI Local Bus, Express Base, PM)
vfio_user                 vfio-user (QEMU ``docs/interop/vfio-user.rst``, ``<linux/vfio.h>``)
ublk                      Linux' block devices in user space: control commands
vendor                    what NVMe leaves to the vendor, as we use it
========================  ==========================================================================
"""
