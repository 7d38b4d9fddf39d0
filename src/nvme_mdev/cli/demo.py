"""``nvme-mdev demo``: the main job on this machine, in half a minute, leaving nothing behind."""

from __future__ import annotations

import shlex
import time
from os import sched_getaffinity
from typing import TYPE_CHECKING

import click

from nvme_mdev.cli.bench import host_errors, run_job
from nvme_mdev.cli.parameters import SecondsType
from nvme_mdev.cli.private_daemon import Daemon, Interrupts, serve_privately
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from nvme_mdev.bench.results import BenchResult
    from nvme_mdev.host.driver import NvmeHost

IMAGE_SIZE = 1 << 30
DATA_SIZE = 256 << 20
"""Bytes written, verified and then measured on: what is allocated of the sparse image."""
NULL_SIZE = "64G"
IMAGE_NSID, NULL_NSID = 1, 2
_DEPTHS = (1, 32)


@click.command()
@click.option(
    "--runtime",
    type=SecondsType(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds for each measurement.",
)
def demo(runtime: float) -> int:
    """Make a 1 GiB disk, serve it, write and verify data, and measure it.

    Needs nothing and leaves nothing behind, Ctrl-C included. No virtual machine takes part: the
    built-in NVMe driver is the guest. Ends with the command line that boots a real one.
    """
    cpus = sorted(sched_getaffinity(0))
    iothread_cpu = cpus[-1] if len(cpus) > 1 else None

    def arguments(folder: Path) -> list[str]:
        image = str(folder / "disk.img")
        return [image, f"null:{NULL_SIZE}", "--size", str(IMAGE_SIZE)]

    with (
        Interrupts() as interrupts,
        host_errors(),
        serve_privately(interrupts, arguments, iothread_cpu) as daemon,
    ):
        return _show(daemon, cpus[:1] if len(cpus) > 1 else [], runtime)


def _show(daemon: Daemon, cpus: list[int], runtime: float) -> int:
    from nvme_mdev.host.driver import NvmeHost

    click.echo(f"Serving a {format_size(IMAGE_SIZE)} sparse image and a null namespace:")
    click.echo(f"  {daemon.log.read_text().strip()}")
    with NvmeHost(daemon.socket) as host:
        click.echo(f"Attached: {host.model}, {min(host.queue_counts)} I/O queues")
        if (status := _write_and_verify(host)) != 0:
            return status
        results = _measure(host, tuple(cpus), runtime)
    _print_results(results)
    click.echo(qemu_lines())
    return 0


def _write_and_verify(host: NvmeHost) -> int:
    from nvme_mdev.bench.job import Job, Pattern

    bs = 128 << 10
    job = Job(
        rw=Pattern.WRITE,
        bs=bs,
        iodepth=8,
        runtime=None,
        number_ios=DATA_SIZE // bs,
        size=DATA_SIZE,
        nsid=IMAGE_NSID,
        verify=True,
    )
    started = time.monotonic()
    result = run_job(host, job, show=True, title=f"{format_size(DATA_SIZE)} of data,")
    seconds = time.monotonic() - started
    blocks = sum(one.checked_blocks for one in result.jobs)
    if result.problems:
        click.echo(f"nvme-mdev: {result.problems[0]}", err=True)
        return 1
    size = format_size(blocks * int(str(result.controller["lba_size"])))
    click.echo(f"Wrote {size} and verified all of it in {seconds:.1f} s")
    return 0


def _measure(
    host: NvmeHost, cpus: tuple[int, ...], runtime: float
) -> list[tuple[str, BenchResult]]:
    from nvme_mdev.bench.job import Job, Pattern

    results: list[tuple[str, BenchResult]] = []
    for nsid, what in ((IMAGE_NSID, "image"), (NULL_NSID, "null")):
        for depth in _DEPTHS:
            for pattern in (Pattern.RANDREAD, Pattern.RANDWRITE):
                size = DATA_SIZE if nsid == IMAGE_NSID else None
                job = Job(
                    rw=pattern, iodepth=depth, runtime=runtime, nsid=nsid, size=size, cpus=cpus
                )
                verb = str(pattern).removeprefix("rand")
                label = f"{what}, 4k random {verb}, depth {depth}"
                results.append((label, run_job(host, job, show=True, title=label)))
    return results


def _print_results(results: list[tuple[str, BenchResult]]) -> None:
    from rich.console import Console

    from nvme_mdev.bench.table import counter_table, summary_table

    console = Console(highlight=False)
    console.print(summary_table(results))
    label, last = results[-2]
    if last.counters:
        console.print(f"What the daemon did in the run '{label}':")
        console.print(counter_table(last.counters))


def qemu_lines() -> str:
    """The commands that serve a disk and boot a guest with it (QEMU 10.1.1 or newer)."""
    socket = "/tmp/vm1.sock"  # noqa: S108 - an example for a person to change
    device = f'{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{socket}"}}}}'
    qemu = [
        "qemu-system-x86_64 -accel kvm -accel tcg -m 1G",
        "-machine q35,memory-backend=m",
        "-object memory-backend-memfd,id=m,size=1G,share=on",
        f"-device {shlex.quote(device)}",
    ]
    return "\n".join(
        [
            "A virtual machine with such a disk, in two terminals (QEMU 10.1.1 or newer):",
            f"  nvme-mdev serve vm1.img --size 1G --socket {socket}",
            "  " + " \\\n    ".join(qemu),
        ]
    )
