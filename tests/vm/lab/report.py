"""One disk after another in the same guest: ours beside those that QEMU has itself.

The guest's fio reads from each; all of them are images in one folder of the host, opened with
O_DIRECT. The guest is emulated, so what its own processor does (its driver, its interrupts) weighs
far more than on a real one: only the ratios between its disks mean something, and they are nearer
to 1 than they would be.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.bench import fio
from nvme_mdev.bench.counters import LOG_SIZE, DeviceCounters
from nvme_mdev.bench.histogram import Histogram
from nvme_mdev.bench.report import BareTarget, Point, Report, Sweep, run_report
from nvme_mdev.bench.results import Direction
from nvme_mdev.errors import UserError
from nvme_mdev.spec.vendor import PATH_COUNTERS_LID

from .daemon import Daemon
from .guest import Guest
from .machines import vfio_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.bench.job import Job
    from nvme_mdev.bench.report import Subject

    from .prepare import Lab

SIZE = 256 << 20
"""Bytes of each image: none is a hole, and no cache of the guest holds it."""
CHUNK = 1 << 20
TESTS = {
    "polling test, in a guest": Point(interrupts=False),
    "interrupt test, in a guest": Point(interrupts=True),
}
NOTES = (
    "4 KiB random reads at depth 1 by fio (io_uring, O_DIRECT) in an emulated guest. In the",
    "polling test it polls queues of the guest's driver without interrupts (hipri, poll_queues).",
    "host: the same fio on an image of the same kind on the host, which has no such queues.",
    "mdev/block: vfio-user-pci and our daemon; virtio-blk, QEMU nvme: of QEMU, and how it reads.",
    "QEMU nvme://: its user-space driver in the guest, on a controller of ours behind vfio-pci;",
    "by qemu-img bench, which reads in order, has no distribution, and waits for interrupts.",
    "Counters: of mdev/block, as the guest's kernel reads them from the controller's log. The",
    "others have none, and QEMU nvme:// has its controller, one of ours, to itself.",
    "BW, IOPS: medians of the rounds, ± over the rounds. Latencies: means and ± over all commands.",
)
POLL_QUEUES = 2
"""Of each driver in the guest: one for each CPU."""
PATIENCE = 60.0
"""Seconds beyond a job's runtime that an emulated guest may take to start fio."""


@dataclass
class GuestDisk:
    """A disk that the guest's kernel has."""

    name: str
    guest: Guest
    path: str
    ours: bool = False

    def measure(self, job: Job) -> tuple[Direction, DeviceCounters | None]:
        """Through the guest's fio."""
        if not job.interrupts and not self._polls():
            raise UserError("its driver in the guest has no queues to be polled")
        command = fio.command_line(self.path, replace(job, size=SIZE, cpus=()), polls=True)
        before = self._counters()
        said = self.guest.run(f"cd /tmp; {' '.join(command)}", PATIENCE + (job.runtime or 0))
        if said.status:
            raise UserError(f"fio in the guest failed: {said.output.strip().splitlines()[-1]}")
        after = self._counters()
        found = json.loads(said.output[said.output.index("{") :])
        counters = after.since(before) if before and after else None
        return fio.parse_read(found["jobs"][0]["read"]), counters

    def _polls(self) -> bool:
        queue = f"/sys/block/{self.path.removeprefix('/dev/')}/queue"
        return self.guest.sh(f"cat {queue}/io_poll").strip() == "1"

    def _counters(self) -> DeviceCounters | None:
        """Of our controller, through the guest's kernel; None: it is not ours."""
        if not self.ours:
            return None
        page = self.guest.sh(
            f"nvme get-log {self.path} --log-id={PATH_COUNTERS_LID} --log-len={LOG_SIZE}"
            " --raw-binary | base64"
        )
        return DeviceCounters.unpack(base64.b64decode(page))


@dataclass
class UserSpaceDriver:
    """QEMU's own NVMe driver in the guest's user space, on a controller behind vfio-pci."""

    name: str
    guest: Guest
    address: str

    def measure(self, job: Job) -> tuple[Direction, DeviceCounters | None]:
        """Through qemu-img, which is told a number of reads and not a time."""
        if job.numjobs > 1:
            raise UserError("qemu-img has one queue")
        if not job.interrupts:
            raise UserError("QEMU's driver waits for interrupts")
        count = 50
        while (elapsed := self._run(count, job)) < (job.runtime or 0):
            count *= 4
        mean = elapsed * 1e9 * min(job.iodepth, count) / count
        latency = Histogram(count, round(mean * count), round(mean), round(mean), mean**2 * count)
        moved = count * job.bs
        none = Histogram()
        return Direction(count, moved, round(elapsed * 1e9), none, latency, latency), None

    def _run(self, count: int, job: Job) -> float:
        """Seconds for so many reads."""
        said = self.guest.sh(
            f"qemu-img bench -f raw -c {count} -d {job.iodepth} -s {job.bs}"
            f" nvme://{self.address}/1",
            PATIENCE * 4,
        )
        # Run completed in 0.123 seconds.
        return float(said.rsplit("completed in ", 1)[1].split()[0])


def full_image(path: Path) -> Path:
    """An image without holes."""
    with path.open("xb") as image:
        for _ in range(SIZE // CHUNK):
            image.write(os.urandom(CHUNK))
        os.fsync(image.fileno())
    return path


def usual_sweeps(*, quick: bool) -> list[Sweep]:
    """What is plotted: IOPS against queue depth and block size."""
    depths = (1, 8, 32) if quick else (1, 2, 4, 8, 16, 32, 64)
    sizes = (4096, 65536) if quick else (4096, 16384, 65536, 131072)
    return [
        Sweep("queue depth", "iodepth", tuple(Point(True, iodepth=depth) for depth in depths)),
        Sweep("block size", "bs", tuple(Point(True, iodepth=8, bs=size) for size in sizes)),
    ]


# -- the guest and its disks ---------------------------------------------------------------------


def qemu_disks(images: Callable[[], Path]) -> Iterator[tuple[str, str, dict[str, object]]]:
    """QEMU's own disks: name, `-blockdev`, device; serial numbers tell the guest which is which."""
    for number, (name, driver, aio) in enumerate(
        (
            ("virtio-blk, aio=threads", "virtio-blk-pci", "threads"),
            ("virtio-blk, aio=native", "virtio-blk-pci", "native"),
            ("virtio-blk, aio=io_uring", "virtio-blk-pci", "io_uring"),
            ("QEMU nvme, aio=io_uring", "nvme", "io_uring"),
        )
    ):
        node = f"disk{number}"
        block = (
            f"driver=raw,node-name={node},file.driver=file,file.filename={images()},"
            f"file.cache.direct=on,file.aio={aio}"
        )
        device: dict[str, object] = {"driver": driver, "drive": node, "serial": f"LAB{number}"}
        if driver == "virtio-blk-pci":
            # By itself one for each CPU, of which the guest would make all but one polled.
            device["num-queues"] = 2 * POLL_QUEUES
        yield name, block, device


def path_of(guest: Guest, serial: str) -> str:
    """The guest's name for the disk with a serial number."""
    return guest.sh(
        f"for disk in /sys/block/*; do for file in $disk/serial $disk/device/serial; do\n"
        f'test "$(cat $file 2>/dev/null | tr -d " ")" = "{serial}" || continue\n'
        "echo /dev/${disk##*/}; exit 0; done; done; echo no such disk; exit 1"
    ).strip()


def give_to_user_space(guest: Guest, disk: str) -> str:
    """Take a controller from the guest's kernel; its PCI address."""
    name = disk.removeprefix("/dev/").split("n1")[0]
    address = guest.sh(f"basename $(readlink -f /sys/class/nvme/{name}/device)").strip()
    device = f"/sys/bus/pci/devices/{address}"
    guest.sh(f"""
        echo {address} >{device}/driver/unbind
        echo vfio-pci >{device}/driver_override
        echo {address} >/sys/bus/pci/drivers_probe
    """)
    return address


def measure(
    lab: Lab,
    *,
    rounds: int,
    runtime: float,
    sweeps: list[Sweep],
    progress: Callable[[float, str], None],
) -> Report:
    """Boot the guest, measure each of its disks in turn, and end everything."""
    folder = Path(tempfile.mkdtemp(prefix="nvme-mdev-report-"))
    numbers = iter(range(100))
    daemons: list[Daemon] = []

    def image() -> Path:
        return full_image(folder / f"{next(numbers)}.img")

    def serve(serial: str) -> dict[str, object]:
        number = len(daemons)
        socket, log = folder / f"{number}.sock", folder / f"{number}.log"
        daemons.append(Daemon(socket, [image()], ["--serial", serial], log))
        return vfio_user(socket)

    try:
        disks = list(qemu_disks(image))
        devices: list[dict[str, object]] = [{"driver": "intel-iommu", "caching-mode": True}]
        devices += [serve("OURS"), serve("USER"), *(device for _, _, device in disks)]
        guest = Guest(
            lab,
            devices,
            blocks=[block for _, block, _ in disks],
            # Only what is given to user space is translated.
            append="intel_iommu=on iommu=pt lab.modules=vfio_pci,vfio_iommu_type1"
            f" nvme.poll_queues={POLL_QUEUES} virtio_blk.poll_queues={POLL_QUEUES}",
            arguments=["-machine", "kernel-irqchip=off"],
            memory_mib=1024,
        )
        with guest:
            guest.wait_ready()
            subjects: list[Subject] = [
                BareTarget(str(image()), SIZE),
                GuestDisk("mdev/block", guest, guest.disk("OURS"), ours=True),
                *(
                    GuestDisk(name, guest, path_of(guest, str(device["serial"])))
                    for name, _, device in disks
                ),
                UserSpaceDriver(
                    "QEMU nvme://", guest, give_to_user_space(guest, guest.disk("USER"))
                ),
            ]
            report = Report(
                [subject.name for subject in subjects],
                sweeps,
                rounds,
                runtime,
                tests=TESTS,
                notes=NOTES,
            )
            run_report(subjects, report, cpus=(), meter=None, progress=progress)
            guest.power_off()
            return report
    finally:
        for daemon in daemons:
            if daemon.alive:
                daemon.stop()
        shutil.rmtree(folder)
