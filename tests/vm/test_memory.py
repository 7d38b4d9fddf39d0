"""Guest memory that is not simply there: behind a virtual IOMMU, plugged later, or not shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from lab import MIB
from test_restart import killed_again_and_again

if TYPE_CHECKING:
    from lab import Guest, Rig

DISK = "/dev/nvme0n1"


@dataclass(frozen=True)
class VirtualIommu:
    """A model of QEMU's, and what the guest's kernel is told for its strict mode."""

    device: dict[str, object]
    append: str
    arguments: tuple[str, ...] = ()


IOMMUS = {
    "intel": VirtualIommu(
        {"driver": "intel-iommu", "caching-mode": True},
        "intel_iommu=on iommu=strict",
        ("-machine", "kernel-irqchip=off"),
    ),
    "virtio": VirtualIommu(
        {"driver": "virtio-iommu-pci"}, "lab.modules=virtio_iommu iommu.strict=1"
    ),
}


@pytest.mark.parametrize("model", IOMMUS)
def test_a_virtual_iommu_maps_and_unmaps_single_pages_under_io(rig: Rig, model: str) -> None:
    iommu = IOMMUS[model]
    guest = rig.boot(
        rig.serve(), devices=[iommu.device], append=iommu.append, arguments=iommu.arguments
    )
    assert guest.sh("cat /sys/class/nvme/nvme0/device/iommu_group/type") == "DMA\n"
    guest.fio(DISK, "--rw=randrw --bsrange=512-64k --iodepth=16 --size=8M")
    guest.reboot().wait_for_path(DISK)
    guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=2M")
    guest.power_off()


# What is plugged later is movable memory to the guest, and Linux takes the pages of programs from
# there first.
MOVABLE_FREE = "awk '/zone +Movable/ {seen = 1} seen && /nr_free_pages/ {print $2; exit}'"
MOVABLE_FREE += " /proc/zoneinfo"
WRITES_ENDED = "awk '{print $5}' /sys/block/nvme0n1/stat"
LARGE_BUFFERS = (
    "--rw=randrw --bs=1M --iodepth=32 --numjobs=4 --size=16M --offset_increment=24M --loops=2"
)
PAGES_OF_BUFFERS = 4 * 32 * MIB // 4096


class PluggedMemory:
    """The memory of a guest with a DIMM slot and a virtio-mem device."""

    ARGUMENTS = (
        *("-m", "512M,slots=1,maxmem=2G"),
        *("-object", "memory-backend-memfd,id=pool,size=512M,share=on,reserve=off"),
        *("-device", "virtio-mem-pci,id=ballooned,memdev=pool,requested-size=0,block-size=2M"),
    )

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._size = self._total()

    def _total(self) -> int:
        return int(self._guest.sh("awk '/^MemTotal/ {print $2}' /proc/meminfo")) << 10

    def wait_for_change(self, change: int) -> None:
        """Wait until the guest's kernel has so many bytes more, or less."""
        self._size += change
        self._guest.sh(f"""
            for i in $(seq 600); do
                test "$(awk '/^MemTotal/ {{print $2}}' /proc/meminfo)" = {self._size >> 10} \
                    && exit 0
                sleep 0.1
            done
            grep MemTotal /proc/meminfo; exit 1
        """)

    def plug_dimm(self, size: int) -> None:
        self._guest.qmp(
            "object-add", **{"qom-type": "memory-backend-memfd"}, id="more", size=size, share=True
        )
        self._guest.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        self.wait_for_change(size)

    def unplug_dimm(self, size: int) -> None:
        self._guest.qmp("device_del", id="dimm")
        self.wait_for_change(-size)

    def request(self, size: int, change: int) -> None:
        """Ask for so much of the virtio-mem device's memory, which changes it by that."""
        self._guest.qmp(
            "qom-set", path="/machine/peripheral/ballooned", property="requested-size", value=size
        )
        self.wait_for_change(change)


def test_memory_that_is_plugged_and_unplugged_under_a_guest_is_used_for_io(rig: Rig) -> None:
    guest = rig.boot(
        rig.serve(),
        append="lab.modules=virtio_mem memhp_default_state=online_movable",
        arguments=PluggedMemory.ARGUMENTS,
    )
    memory = PluggedMemory(guest)
    memory.plug_dimm(256 * MIB)
    # The buffers of this fio are in the new DIMM.
    free = int(guest.sh(MOVABLE_FREE))
    guest.sh(f"""
        fio --name=load --filename={DISK} --ioengine=libaio --direct=1 --verify=crc32c \
            {LARGE_BUFFERS} --time_based --runtime=600 >/tmp/fio.log 2>&1 &
        echo $! >/tmp/fio.pid
        for i in $(seq 600); do
            test $({MOVABLE_FREE}) -lt {free - PAGES_OF_BUFFERS // 2} &&
                test $({WRITES_ENDED}) -gt 0 && exit 0
            sleep 0.1
        done
        echo "fio takes no memory of the DIMM, or writes nothing from it"; exit 1
    """)
    memory.request(256 * MIB, 256 * MIB)  # while it runs: 128 pieces, mapped one by one
    guest.sh("""
        kill -INT $(cat /tmp/fio.pid)
        while kill -0 $(cat /tmp/fio.pid) 2>/dev/null; do sleep 0.1; done
        grep -q 'err= 0' /tmp/fio.log || { cat /tmp/fio.log; exit 1; }
    """)
    memory.unplug_dimm(256 * MIB)
    guest.fio(DISK, LARGE_BUFFERS)
    memory.request(64 * MIB, -192 * MIB)
    guest.fio(DISK, LARGE_BUFFERS)
    guest.power_off()


PLAIN_RAM = ["-object", "memory-backend-ram,id=plain,size=512M", "-machine", "memory-backend=plain"]


def test_memory_that_is_not_shared_is_reached_with_messages(rig: Rig) -> None:
    """The daemon is killed meanwhile; each kernel before Linux is the firmware's driver."""
    daemon = rig.serve()
    guest = rig.boot(daemon, smp=2, arguments=PLAIN_RAM)
    daemon.wait_for_log("share=on")
    guest.fio(DISK, "--rw=randrw --bsrange=512-128k --iodepth=16 --size=4M")
    guest.sh(f"mkfs.ext4 -q {DISK}; mount {DISK} /mnt; cp /programs/usr/sbin/mkfs* /mnt; sync")
    with killed_again_and_again(daemon) as enough:
        while not enough():
            guest.fio("/mnt/file", "--rw=randrw --bsrange=4k-64k --iodepth=16 --size=8M --loops=3")
    guest.sh(f"diff /programs/usr/sbin/mkfs.ext4 /mnt/mkfs.ext4; umount /mnt; fsck.ext4 -fn {DISK}")
    guest.reboot().wait_for_path(DISK)
    guest.sh(f"fsck.ext4 -fn {DISK}")
    guest.power_off()


def test_memory_with_a_file_that_is_not_shared_is_reported_at_once(rig: Rig) -> None:
    daemon = rig.serve()
    machine = [
        *("-object", "memory-backend-memfd,id=private,size=512M,share=off"),
        *("-machine", "memory-backend=private"),
    ]
    rig.start(daemon, kernel=None, arguments=machine)
    daemon.wait_for_log("share=on")
