"""`python -m lab report`: our disk beside QEMU's own, in one guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.report import GUEST_TEST, measure

if TYPE_CHECKING:
    from lab import Lab


def test_every_disk_of_the_guest_is_a_row_of_the_report(lab: Lab) -> None:
    steps: list[str] = []
    report = measure(
        lab, rounds=1, runtime=0.2, sweeps=[], progress=lambda _share, what: steps.append(what)
    )
    assert report.left_out == []
    assert report.subjects == [
        "host",
        "mdev/block",
        "virtio-blk, aio=threads",
        "virtio-blk, aio=native",
        "virtio-blk, aio=io_uring",
        "QEMU nvme, aio=io_uring",
        "QEMU nvme://",
    ]
    assert steps == [*report.subjects, "done"]
    for name in report.subjects:
        cell = report.cell(GUEST_TEST, name)
        assert cell is not None
        assert cell.iops[0] > 0
        assert cell.lat.count > 0
