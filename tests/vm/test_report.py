"""`python -m lab report`: our disk beside QEMU's own, in one guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.report import TESTS, measure

if TYPE_CHECKING:
    from lab import Lab


def test_every_disk_of_the_guest_is_a_row_of_the_report(lab: Lab) -> None:
    steps: list[str] = []
    report = measure(
        lab, rounds=1, runtime=0.2, sweeps=[], progress=lambda _share, what: steps.append(what)
    )
    assert report.left_out == ["QEMU nvme://, 4k randread QD1: QEMU's driver waits for interrupts"]
    assert report.subjects == [
        "host",
        "mdev/block",
        "virtio-blk, aio=threads",
        "virtio-blk, aio=native",
        "virtio-blk, aio=io_uring",
        "QEMU nvme, aio=io_uring",
        "QEMU nvme://",
    ]
    assert steps == [*report.subjects, *report.subjects, "done"]
    for point in TESTS.values():
        rows = report.subjects if point.interrupts else report.subjects[:-1]
        for name in rows:
            cell = report.cell(point, name)
            assert cell is not None
            assert cell.iops[0] > 0
            assert cell.lat.count > 0
            assert (cell.counters is not None) == (name == "mdev/block")
        ours = report.cell(point, "mdev/block")
        assert ours is not None
        assert ours.counters is not None
        # As many as fio has counted, and a few that the guest's kernel has itself.
        assert ours.counters.translated.count >= ours.lat.count
        assert ours.counters.completed.count == ours.counters.translated.count
        if point.interrupts:
            assert ours.counters.interrupts.count > 0
        else:
            # What is polled for raises none.
            assert ours.counters.interrupts.count < ours.lat.count / 2
