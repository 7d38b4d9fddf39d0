"""Guest memory that is not simply there: behind a virtual IOMMU, or not shared at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lab import Rig

DISK = "/dev/nvme0n1"


def test_a_virtual_iommu_maps_and_unmaps_single_pages_under_io(rig: Rig) -> None:
    guest = rig.boot(
        rig.serve(),
        devices=[{"driver": "intel-iommu", "caching-mode": True}],
        append="intel_iommu=on iommu=strict",
        arguments=["-machine", "kernel-irqchip=off"],
    )
    assert guest.sh("cat /sys/class/nvme/nvme0/device/iommu_group/type") == "DMA\n"
    guest.fio(DISK, "--rw=randrw --bsrange=512-64k --iodepth=16 --size=8M")
    guest.reboot().wait_for_path(DISK)
    guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=2M")
    guest.power_off()


@pytest.mark.parametrize("backend", ["memory-backend-ram", "memory-backend-memfd,share=off"])
def test_memory_that_is_not_shared_is_reported_at_once(rig: Rig, backend: str) -> None:
    daemon = rig.serve()
    private = f"{backend},id=private,size=512M"
    machine = ["-object", private, "-machine", "memory-backend=private"]
    rig.start(daemon, kernel=None, arguments=machine)
    daemon.wait_for_log("share=on")
