"""Long mixed work in one guest of four queues: fio's verification, then file systems under load."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from lab import MIB, Daemon, Guest, Rig, allocated, content

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK = "/dev/nvme0n1"
SIZE = 8192 * MIB  # sparse; stress-ng fills a gigabyte of it for moments
QUEUES = 4

# Each job has a region of its own. `rewritten` deallocates each block before it writes it;
# `trimmed` deallocates all of its region, which must then read as zeroes.
TRIMMED_MIB = 160
FIO_JOBS = f"""
[global]
filename={DISK}
ioengine=libaio
direct=1
verify=crc32c
verify_fatal=1
randrepeat=0
size=24M
loops=2

[deep-and-small]
rw=randrw
bsrange=512-4k
iodepth=128
size=8M

[mixed]
rw=randrw
rwmixread=60
bsrange=512-128k
iodepth=32
offset=32M

[large]
rw=rw
bsrange=128k-1M
iodepth=8
offset=64M

[one-at-a-time]
rw=randwrite
bs=4k
iodepth=1
size=4M
offset=96M

[rewritten]
rw=randtrimwrite
bsrange=4k-64k
iodepth=16
offset=128M

[trimmed]
rw=randtrim
bsrange=4k-256k
iodepth=16
offset={TRIMMED_MIB}M
"""

SECONDS = 12  # of load on each file system

LOAD = f"""
    mkdir /mnt/dbench /mnt/stress
    dbench -D /mnt/dbench -t {SECONDS} 1 >/tmp/dbench.log 2>&1 & echo $! >/tmp/dbench.pid
    cd /mnt/stress
    stress-ng --temp-path /mnt/stress --timeout {SECONDS}s --verify \
        --hdd 1 --hdd-bytes 16M --hdd-opts wr-rnd,rd-rnd,fdatasync \
        --iomix 1 --iomix-bytes 16M \
        --sync-file 1 --sync-file-bytes 8M --dir 1 >/tmp/stress.log 2>&1 & echo $! >/tmp/stress.pid
"""

# How a file system is made, and checked without a repair.
FILE_SYSTEMS = {
    "ext4": (f"mkfs.ext4 -q {DISK}", f"fsck.ext4 -f -n {DISK}"),
    "xfs": (f"load xfs; mkfs.xfs -q -f {DISK}", f"xfs_repair -n {DISK}"),
}


@pytest.fixture(scope="class")
def daemon(shared_rig: Rig) -> Daemon:
    return shared_rig.serve(shared_rig.image(SIZE))


@pytest.fixture(scope="class")
def guest(shared_rig: Rig, daemon: Daemon) -> Iterator[Guest]:
    guest = shared_rig.boot(daemon, smp=QUEUES)
    guest.allow(r"XFS \(nvme0n1\): (Mounting V5|Ending clean mount|Unmounting|Deprecated)")
    yield guest
    guest.power_off()


@pytest.mark.xdist_group("workloads")
class TestWorkloads:
    def test_fio_verifies_reads_writes_and_trims_of_all_sizes_on_several_queues(
        self, guest: Guest, daemon: Daemon
    ) -> None:
        assert int(guest.sh("cat /sys/class/nvme/nvme0/queue_count")) == 1 + QUEUES
        guest.sh(f"""
            dd if=/dev/urandom of={DISK} bs=1M seek={TRIMMED_MIB} count=25 oflag=direct
            cat >/tmp/jobs <<'END'
{FIO_JOBS}
END
            cd /tmp
            fio jobs >/tmp/fio.log 2>&1 || {{ tail -n 40 /tmp/fio.log; exit 1; }}
        """)
        trimmed = content(daemon.image, TRIMMED_MIB * MIB, 25 * MIB)
        assert trimmed[: 24 * MIB] == bytes(24 * MIB)
        assert any(trimmed[24 * MIB : 24 * MIB + 512])

    @pytest.mark.parametrize("kind", FILE_SYSTEMS)
    def test_a_file_system_under_load_outlives_the_daemons_death_and_checks_clean(
        self, guest: Guest, daemon: Daemon, kind: str
    ) -> None:
        make, check = FILE_SYSTEMS[kind]
        guest.sh(f"blkdiscard {DISK}; {make}; mount {DISK} /mnt; {LOAD}")
        guest.sh(f"sleep {SECONDS // 3}")
        killed = daemon.serving_pid
        os.kill(killed, signal.SIGKILL)
        for load in ("dbench", "stress"):
            guest.sh(f"while kill -0 $(cat /tmp/{load}.pid) 2>/dev/null; do sleep 0.2; done")
            guest.sh(f"tail -n 20 /tmp/{load}.log")
        assert daemon.serving_pid != killed
        assert "successful run completed" in guest.sh("cat /tmp/stress.log")
        assert "Throughput" in guest.sh("cat /tmp/dbench.log")
        full = allocated(daemon.image)
        guest.sh("cp -r /programs/usr/sbin /mnt; rm -rf /mnt/dbench /mnt/stress; sync; fstrim /mnt")
        assert allocated(daemon.image) < full
        guest.sh(f"""
            diff -r /programs/usr/sbin /mnt/sbin
            umount /mnt
            {check}
            mount {DISK} /mnt
            diff -r /programs/usr/sbin /mnt/sbin
            umount /mnt
        """)
