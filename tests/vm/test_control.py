"""What the host changes while a Linux guest runs: the guest sees it by itself, without a rescan."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from lab import MIB, Daemon, Guest, Rig, checksum, content
from lab.daemon import control

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND = "/dev/nvme0n1", "/dev/nvme0n2"
# What Linux says about any change of namespaces.
TOLD = r"nvme0: rescanning namespaces|nvme0n\d: detected capacity change"
# Without --allow_file_create=0 fio may put a file where its disk was, and go on with that.
LOAD = f"""
    fio --name=load --filename={SECOND} --ioengine=libaio --direct=1 --rw=randrw --bs=4k \
        --iodepth=32 --size=32M --allow_file_create=0 --time_based --runtime=600 \
        >/tmp/load.log 2>&1 &
    echo $! >/tmp/load.pid
    for i in $(seq 100); do
        test "$(cut -d ' ' -f 5 /sys/block/nvme0n2/stat | xargs)" -gt 0 && break
        sleep 0.1
    done
"""


def wait_for_size(guest: Guest, disk: str, size: int) -> None:
    """Wait until the guest's kernel says that the disk has so many bytes."""
    guest.sh(f"""
        for i in $(seq 300); do
            test "$(blockdev --getsize64 {disk})" = {size} && exit 0
            sleep 0.1
        done
        blockdev --getsize64 {disk}; exit 1
    """)


def wait_until_gone(guest: Guest, disk: str) -> None:
    """Wait until the guest's kernel has removed the disk."""
    guest.sh(f"for i in $(seq 300); do test -e {disk} || exit 0; sleep 0.1; done; exit 1")


@pytest.fixture(scope="class")
def second(shared_rig: Rig) -> Path:
    return shared_rig.image(32 * MIB, "second")


@pytest.fixture(scope="class")
def daemon(shared_rig: Rig) -> Daemon:
    return shared_rig.serve()


@pytest.fixture(scope="class")
def guest(shared_rig: Rig, daemon: Daemon) -> Guest:
    guest = shared_rig.boot(daemon)
    guest.allow(TOLD)
    return guest


@pytest.mark.xdist_group("control")
class TestNamespacesAtRunTime:
    """In this order: the second disk comes, changes its size, and goes."""

    def test_a_namespace_that_is_added_is_a_new_disk(
        self, guest: Guest, daemon: Daemon, second: Path
    ) -> None:
        added = control(daemon, "namespace", "add", second)
        assert added["nsid"] == 2
        guest.wait_for_path(SECOND)
        assert int(guest.sh(f"blockdev --getsize64 {SECOND}")) == 32 * MIB
        guest.fio(SECOND, "--rw=randrw --bs=4k --iodepth=16 --size=16M")

    def test_a_namespace_that_is_made_larger_has_the_new_size(
        self, guest: Guest, daemon: Daemon, second: Path
    ) -> None:
        control(daemon, "namespace", "resize", 2, "64M")
        wait_for_size(guest, SECOND, 64 * MIB)
        guest.sh(f"echo the new end | dd of={SECOND} bs=512 seek={64 * 2048 - 1} conv=sync,fsync")
        assert content(second, 64 * MIB - 512, 11) == b"the new end"

    def test_a_file_that_the_host_makes_larger_is_a_larger_disk(
        self, guest: Guest, second: Path
    ) -> None:
        os.truncate(second, 96 * MIB)
        wait_for_size(guest, SECOND, 96 * MIB)
        guest.fio(SECOND, "--rw=randrw --bs=64k --iodepth=8 --offset=64M --size=16M")

    def test_a_namespace_that_is_made_smaller_has_the_new_size(
        self, guest: Guest, daemon: Daemon, second: Path
    ) -> None:
        control(daemon, "namespace", "resize", 2, "48M")
        wait_for_size(guest, SECOND, 48 * MIB)
        assert second.stat().st_size == 48 * MIB
        assert guest.checksum(SECOND) == checksum(second)

    def test_a_namespace_that_is_removed_under_load_is_gone_and_the_other_unharmed(
        self, guest: Guest, daemon: Daemon
    ) -> None:
        guest.allow("I/O error|nvme0n2|Invalid Field")
        guest.sh(LOAD)
        control(daemon, "namespace", "remove", 2)
        wait_until_gone(guest, SECOND)
        guest.sh("while kill -0 $(cat /tmp/load.pid) 2>/dev/null; do sleep 0.1; done")
        assert daemon.alive
        guest.fio(FIRST, "--rw=randrw --bs=4k --iodepth=16 --size=16M")

    def test_a_namespace_of_the_same_number_comes_again(
        self, guest: Guest, daemon: Daemon, second: Path
    ) -> None:
        before = checksum(second)
        control(daemon, "namespace", "add", second, "--nsid", 2)
        guest.wait_for_path(SECOND)
        assert int(guest.sh(f"blockdev --getsize64 {SECOND}")) == second.stat().st_size
        assert guest.checksum(SECOND) == before

    def test_a_guest_goes_on_where_it_was_after_a_pause(self, guest: Guest, daemon: Daemon) -> None:
        guest.sh(f"""
            fio --name=load --filename={FIRST} --ioengine=libaio --direct=1 --rw=randrw --bs=4k \
                --iodepth=16 --size=16M --time_based --runtime=6 --verify=crc32c \
                >/tmp/fio.log 2>&1 &
            echo $! >/tmp/fio.pid; sleep 1
        """)
        assert control(daemon, "pause") == {"paused": True}
        assert control(daemon, "stats")["inflight"] == 0
        held = control(daemon, "stats")["data"]
        guest.sh("sleep 1")
        assert control(daemon, "stats")["data"] == held
        assert control(daemon, "resume") == {"paused": False}
        guest.sh("while kill -0 $(cat /tmp/fio.pid) 2>/dev/null; do sleep 0.1; done")
        assert "err= 0" in guest.sh("cat /tmp/fio.log")
        guest.power_off()
