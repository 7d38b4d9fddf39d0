"""The virtual controller passed on: the guest's vfio-pci gives it to a driver in user space.

The driver is the one of QEMU's block layer, in `qemu-img` and `qemu-io`, and maps its memory
through the guest's IOMMU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import MIB, checksum, content

if TYPE_CHECKING:
    from lab import Guest, Rig

DISK = "/dev/nvme0n1"
PAGE = 4096
# Time for a guest that is emulated to emulate.
PATIENCE = 240


def give_to(guest: Guest, address: str, driver: str) -> None:
    """Take a PCI function from its driver and give it to another one."""
    device = f"/sys/bus/pci/devices/{address}"
    guest.sh(f"""
        echo {address} >{device}/driver/unbind
        echo {driver} >{device}/driver_override
        echo {address} >/sys/bus/pci/drivers_probe
        test "$(basename $(readlink {device}/driver))" = {driver}
    """)


def test_a_driver_in_the_guests_user_space_works_through_vfio(rig: Rig) -> None:
    daemon = rig.serve(rig.image(48 * MIB))
    guest = rig.boot(
        daemon,
        devices=[{"driver": "intel-iommu", "caching-mode": True}],
        append="intel_iommu=on lab.modules=vfio_pci,vfio_iommu_type1",
        arguments=["-machine", "kernel-irqchip=off"],
    )
    address = guest.sh("basename $(readlink -f /sys/class/nvme/nvme0/device)").strip()
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=4 oflag=direct")
    before = content(daemon.image, 0, 4 * MIB)
    give_to(guest, address, "vfio-pci")
    nested = f"nvme://{address}/1"

    # What the guest's kernel wrote is read, and what is written is in the image.
    guest.sh(f"qemu-img convert -f raw -O raw {nested} /tmp/read", PATIENCE)
    assert guest.sh("md5sum </tmp/read").split()[0] == checksum(daemon.image)
    assert content(daemon.image, 0, 4 * MIB) == before
    guest.sh(
        f"""qemu-io -f raw {nested} \
            -c 'write -P 0xa5 8M 3M' -c 'read -P 0xa5 8M 3M' \
            -c 'write -z 9M 64k' -c 'read -P 0 9M 64k' -c 'discard 10M 512k' \
            -c 'aio_write -P 0x11 16M 64k' -c 'aio_write -P 0x12 17M 64k' -c aio_flush \
            -c 'read -P 0x12 17M 64k' -c flush""",
        PATIENCE,
    )
    assert content(daemon.image, 8 * MIB, MIB) == b"\xa5" * MIB
    assert content(daemon.image, 9 * MIB, 64 << 10) == bytes(64 << 10)
    assert content(daemon.image, 16 * MIB, PAGE) == b"\x11" * PAGE
    guest.sh(f"qemu-img bench -f raw -w -c 500 -d 16 -s 8k -o 24M {nested}", PATIENCE)

    # And the guest's kernel takes the controller back.
    give_to(guest, address, "nvme")
    guest.wait_for_path(DISK)
    assert guest.checksum(DISK) == checksum(daemon.image)
    guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=4M")
    guest.power_off()
