"""The daemon's serving process is killed under a running guest, which carries on."""

from __future__ import annotations

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab import Daemon, Rig

DISK = "/dev/nvme0n1"
GAPS = (0.3, 2.0)  # s between two kills
KILLS = 3  # at least, under one piece of work


@contextmanager
def killed_again_and_again(daemon: Daemon) -> Iterator[Callable[[], bool]]:
    """Kill the serving process at random moments; what is yielded tells whether often enough.

    A fast machine is through with a piece of work before the first kill, so work goes on until.
    """
    over = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not over.wait(random.uniform(*GAPS)):
            pid = daemon.serving_pid
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        try:
            yield lambda: len(killed) >= KILLS or killing.done()
        finally:
            over.set()
        killing.result()


@pytest.mark.parametrize(
    "options", [[], ["--no-mapped-doorbells"], ["--no-shadow-doorbell", "--no-mapped-doorbells"]]
)
def test_killing_the_daemon_under_verified_io_is_not_noticed(rig: Rig, options: list[str]) -> None:
    daemon = rig.serve(options=options)
    guest = rig.boot(daemon, smp=2)
    with killed_again_and_again(daemon) as enough:
        while not enough():
            guest.fio(
                DISK,
                "--rw=randrw --bsrange=512-64k --iodepth=32 --numjobs=2 --size=24M",
                "--offset_increment=32M --loops=3",
            )
        guest.sh(f"mkfs.ext4 -q {DISK}; mount {DISK} /mnt; cp -r /programs/usr/sbin /mnt; sync")
    guest.sh(f"diff -r /programs/usr/sbin /mnt/sbin; umount /mnt; fsck.ext4 -f -n {DISK}")
    guest.power_off()


def test_a_guest_boots_and_reboots_while_the_daemon_is_killed(rig: Rig) -> None:
    daemon = rig.serve()
    guest = rig.start(daemon)
    with killed_again_and_again(daemon) as enough:
        guest.wait_ready()
        guest.wait_for_path(DISK)
        while not enough():
            guest.reboot().wait_for_path(DISK)
    guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=8M")
    guest.power_off()
