"""Firmware drives the disk with NVMe drivers of its own, before the guest's kernel does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from lab import MIB, Daemon, Rig, checksum
from lab.disks import PRINTED_SECTORS, SECTOR, write_efi_disk, write_printing_boot_sector
from lab.machines import kernel_arguments

if TYPE_CHECKING:
    from lab.prepare import BootLoader

ROOT = "/dev/nvme0n1p2"

# Fills the sectors that the boot sector reads, so that every page of the transfer is looked at.
TEXT = "".join(f"line {i} of the disk\n" for i in range(300)) + "the end\n"
DOORBELLS = ["--mapped-doorbells", "--no-mapped-doorbells"]


def seabios_timeouts(log: str) -> list[str]:
    return re.findall(r".*(?:time-?out|timed out).*", log, re.IGNORECASE)


@pytest.mark.parametrize("doorbells", DOORBELLS)
def test_seabios_boots_from_the_disk_and_again_after_a_reset(rig: Rig, doorbells: str) -> None:
    assert len(TEXT) < PRINTED_SECTORS * SECTOR
    image = rig.image(64 * MIB)
    write_printing_boot_sector(image, TEXT)
    before = checksum(image)
    guest = rig.start(rig.serve(image, options=[doorbells]), kernel=None)
    guest.wait_for_console(TEXT)
    guest.qmp("set-action", reboot="reset")
    guest.qmp("system_reset")
    guest.wait_for_console(TEXT + TEXT)
    assert "Booting from Hard Disk" in guest.log("firmware")
    assert not seabios_timeouts(guest.log("firmware"))
    assert checksum(image) == before


def test_seabios_looks_at_every_disk_before_linux_without_a_timeout(rig: Rig) -> None:
    daemons: list[Daemon] = [
        rig.serve(options=["--serial", "plain"]),
        rig.serve(
            options=["--serial", "registers", "--no-shadow-doorbell", "--no-mapped-doorbells"]
        ),
        rig.serve("null:1G", options=["--serial", "null"]),
    ]
    guest = rig.boot(*daemons)
    guest.reboot().wait_for_path("/dev/nvme2n1")
    assert guest.log("firmware").count("SeaBIOS (version") >= 2
    assert not seabios_timeouts(guest.log("firmware"))
    guest.fio(guest.disk("plain"), "--rw=randrw --bs=4k --iodepth=8 --size=8M")
    guest.power_off()


@pytest.mark.parametrize("loader", ["systemd-boot", "grub"])
def test_ovmf_boots_linux_from_the_disk(rig: Rig, loader: BootLoader) -> None:
    image = rig.image(200 * MIB)
    write_efi_disk(rig.lab, image, loader, "6.12", kernel_arguments("6.12"))
    before = checksum(image)
    guest = rig.boot(rig.serve(image), kernel=None, firmware="ovmf")
    guest.wait_for_path("/dev/nvme0n1p2")
    guest.sh("test -d /sys/firmware/efi")
    assert ("BOOT_IMAGE=" in guest.sh("cat /proc/cmdline")) == (loader == "grub")
    assert guest.checksum("/dev/nvme0n1") == before
    guest.sh(f"""
        fsck.ext4 -f -n {ROOT}
        mount {ROOT} /mnt
        cp -r /programs/usr/sbin /mnt
        umount /mnt
        mount {ROOT} /mnt
        diff -r /programs/usr/sbin /mnt/sbin
        umount /mnt
    """)
    guest.fio(ROOT, "--rw=randrw --bs=4k --iodepth=8 --size=16M")
    guest.power_off()
