"""`nvme-mdev bench report` on a host whose drive has a service time: all ways that we have to it.

The host is that of hardware.py, the drive a controller of ours on the real machine. First the
host's kernel has it: the rows are fio on it (io_uring), the daemon on its block device, and
passthrough on its character device. Then vfio-pci has it: the rows are our own driver on it, and
the daemon on queues of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import hardware
from .rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .hardware import Machine
    from .prepare import Lab

NOTES = (
    f"The drive: {hardware.TIMED_TARGET} of a daemon on the real machine, behind vfio-user-pci.",
    "The host is emulated, its IOMMU too: what its processor does takes many times as long as on a",
    "real one, and comes when the real processors have time. So no time is one of the program, and",
    "no ratio either; what the counters count is: each command once, in every way.",
)
PATIENCE = 1800.0
"""Seconds for a report: an emulated host takes a minute and more for a quick round."""


def _command(target: str, options: Sequence[str]) -> str:
    return f"nvme-mdev bench report {target} --controllers 1 {' '.join(options)}"


def report(machine: Machine, target: str, options: Sequence[str]) -> str:
    """What `bench report` prints there; GuestError with what it says when it fails."""
    return machine.guest.sh(_command(target, options), timeout=PATIENCE)


def show(lab: Lab, options: Sequence[str], progress: Callable[[str], None]) -> None:
    """Boot the host, print both reports with their command lines, and end everything."""
    with Rig(lab) as rig:
        machine = hardware.boot(rig, timed=True)
        _show(machine, machine.guest.disk("timed"), options, progress)
        _show(machine, f"vfio:{machine.behind_vfio('timed')}", options, progress)
    print("\n".join(NOTES))


def _show(
    machine: Machine, target: str, options: Sequence[str], progress: Callable[[str], None]
) -> None:
    progress(f"measuring {target}")
    print(f"# {_command(target, options)}\n{report(machine, target, options)}", flush=True)
