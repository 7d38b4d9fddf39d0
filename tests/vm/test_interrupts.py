"""A guest that may not use MSI-X is interrupted by its pin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lab import Rig

DISK = "/dev/nvme0n1"


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_guest_without_msi_works_with_its_interrupt_pin(rig: Rig, kernel: str) -> None:
    guest = rig.boot(rig.serve(), kernel=kernel, append="pci=nomsi")
    assert re.search(r"IO-APIC.*fasteoi.*nvme0", guest.sh("cat /proc/interrupts"))
    guest.fio(DISK, "--rw=randrw --bsrange=512-64k --iodepth=16 --size=8M")
    guest.sh(f"mkfs.ext4 -q {DISK}; mount {DISK} /mnt; cp -r /programs/usr/sbin /mnt; umount /mnt")
    guest.sh(f"fsck.ext4 -f -n {DISK}")
    guest.power_off()
