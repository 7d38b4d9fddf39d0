"""Direct targets as a user types them: a controller on the queues of another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cli.deaths import killed_again_and_again, serving_pid

from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_commands import AsyncEventType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import RunCommand, Serve

MIB = 1 << 20


def verify(socket: Path, seconds: int, *options: str) -> list[str]:
    """A command line of bench that writes, reads and verifies."""
    bench = [sys.executable, "-m", "nvme_mdev.cli.main", "bench", str(socket), "--rw", "randrw"]
    return [*bench, "--bs", "4k", "--qd", "32", "--verify", "--runtime", str(seconds), *options]


@contextmanager
def written(image: Path) -> Iterator[None]:
    """Wait until an image has data."""
    end = time.monotonic() + 30
    while not image.stat().st_blocks:
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.01)
    yield


def test_the_first_part_of_a_vfio_user_controller_is_served(here: Path, serve: Serve) -> None:
    serve("drive.img", "--size", "32M", "--socket", "drive")
    target = "direct:vfio-user:drive/n1,offset=16M,length=8M"
    above = serve(target, "--socket", "vm1")
    assert "drive/n1,offset=16M,length=8M (8 MiB, 512 B blocks)" in above.ready
    with NvmeHost(here / "vm1") as host:
        host.create_queue_pair().write(1, 8, b"direct" * 1024, block_size=512)
        assert host.namespace(1).size == 8 * MIB
    start = 16 * MIB + 4096
    assert Path("drive.img").read_bytes()[start : start + 6144] == b"direct" * 1024
    assert above.stop().status == 0


def test_a_controller_on_the_queues_of_another_conforms(
    here: Path, serve: Serve, nvme_mdev: RunCommand
) -> None:
    serve("memory:64M", "--socket", "drive")
    serve("direct:vfio-user:drive/n1,offset=16M", "--socket", "vm1")
    result = nvme_mdev("conformance", "vm1", "--destructive")
    assert result.status == 0, result
    assert " 0 failed" in result.out


@pytest.mark.parametrize("victim", ["above", "below"])
def test_verified_io_goes_on_while_either_daemon_is_killed(
    here: Path, serve: Serve, victim: str
) -> None:
    below = serve("drive.img", "--size", "64M", "--socket", "drive")
    above = serve("direct:vfio-user:drive", "--socket", "vm1")
    with (
        subprocess.Popen(
            verify(here / "vm1", 12, "--interrupts"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
        written(here / "drive.img"),
        killed_again_and_again(above if victim == "above" else below, 4) as enough,
    ):
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert enough.is_set()
    assert above.stop().status == 0
    assert below.stop().status == 0


def test_a_drive_that_has_other_blocks_after_a_kill_is_not_served_any_more(
    here: Path, serve: Serve
) -> None:
    """What was in flight would be executed again in other places."""
    below = serve("drive.img", "--size", "8M", "--socket", "drive")
    above = serve("direct:vfio-user:drive", "--socket", "vm1")
    with NvmeHost(here / "vm1") as host:
        host.watch_namespaces()
        pid = serving_pid(above)
        os.kill(pid, signal.SIGSTOP)
        assert below.stop().status == 0
        serve("drive.img", "--block-size", "4096", "--socket", "drive")
        os.kill(pid, signal.SIGKILL)
        assert [event.event_type for event in host.events(30)] == [AsyncEventType.NOTICE]
        assert host.active_namespaces() == []
    assert "is not served any more: direct:vfio-user:" in (said := above.stop().err)
    assert "its blocks have 4096 bytes" in said


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("direct:", "write direct:/dev/nvme0n1p1, direct:vfio-user:SOCKET/n1 or direct:vfio:"),
        ("direct:drive", "it is not a block device: serve it without direct:"),
        ("direct:/dev/null", "it is not a block device: give that of a namespace or partition"),
        ("direct:nowhere", "nowhere: No such file or directory"),
        ("direct:/dev/loop0", "loop0 is no NVMe namespace: serve it without direct:"),
        ("direct:/dev/nvme4242/n1p1", "there is no such NVMe controller"),
        ("direct:vfio:44:00.0", "write a PCI address as lspci -D does"),
        ("direct:vfio:ffff:ff:1f.7", "there is no such PCI function"),
        ("direct:vfio-user:nowhere", "there is no such socket"),
        ("direct:vfio-user:drive/n7", "there is no namespace 7: the controller has 1"),
        ("direct:vfio-user:drive/n1p1", "there is no partition p1: there are none"),
        ("direct:vfio-user:drive/n1,offset=64M", "offset and length do not lie within"),
        ("direct:vfio-user:drive/n1,offset=512,block-size=4096", "multiple of 4096"),
        ("direct:vfio-user:drive,block-size=4096", "its blocks have 512 bytes"),
    ],
)
def test_direct_targets_that_cannot_be_had(
    here: Path, serve: Serve, nvme_mdev: RunCommand, target: str, what: str
) -> None:
    serve("null:64M", "--socket", "drive")
    result = nvme_mdev("serve", target, "--socket", "vm1")
    assert (result.status, result.out) == (2, "")
    assert result.err.count("\n") == 1, result.err
    assert what in result.err
    # The drive is free again.
    NvmeHost(here / "drive").close()


def test_a_drive_that_serves_another_client(
    here: Path, serve: Serve, nvme_mdev: RunCommand
) -> None:
    serve("null:64M", "--socket", "drive")
    with NvmeHost(here / "drive"):
        result = nvme_mdev("serve", "direct:vfio-user:drive", "--socket", "vm1")
    assert result.status == 2
    assert "it serves another client" in result.err


def test_a_drive_whose_doorbells_cannot_be_mapped(
    here: Path, serve: Serve, nvme_mdev: RunCommand
) -> None:
    serve("null:64M", "--socket", "drive", "--no-mapped-doorbells")
    result = nvme_mdev("serve", "direct:vfio-user:drive", "--socket", "vm1")
    assert "its doorbells cannot be mapped: serve it with --mapped-doorbells" in result.err


def test_a_drive_without_a_queue_left(here: Path, serve: Serve, nvme_mdev: RunCommand) -> None:
    serve("null:64M", "--socket", "drive", "--queues", "1")
    result = nvme_mdev("serve", "direct:vfio-user:drive", "--socket", "vm1")
    assert result.status == 2
    assert "all 1 I/O queues of the controller are in use" in result.err


def test_a_null_namespace_takes_its_latency(here: Path, serve: Serve) -> None:
    serve("null:64M,latency=3ms", "--socket", "drive")
    with NvmeHost(here / "drive") as host:
        queue = host.create_queue_pair()
        before = time.monotonic_ns()
        for _ in range(10):
            queue.read(1, 0, 8, block_size=512)
        assert time.monotonic_ns() - before >= 30_000_000
