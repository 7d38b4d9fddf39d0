"""Guests that die, hosts that are full, clients that come at the wrong time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from lab import MIB, Daemon, Guest, GuestError, Rig, checksum, content, vfio_user

DISK = "/dev/nvme0n1"

# Writes to the mounted file system without end, in the background, and has commands in flight.
LOAD = """
    fio --name=load --directory=/mnt --ioengine=libaio --direct=1 --rw=randwrite \
        --bsrange=4k-64k --iodepth=32 --size=24M --numjobs=2 --time_based --runtime=600 \
        >/tmp/fio.log 2>&1 &
    for i in $(seq 300); do
        test -s /mnt/load.0.0 && awk '{exit !($9 > 0)}' /sys/block/nvme0n1/stat && exit 0
        sleep 0.1
    done
    echo "no command is in flight"
    cat /tmp/fio.log
    exit 1
"""
KEPT = "dd if=/dev/urandom of=/mnt/kept bs=1M count=4 conv=fsync status=none; md5sum </mnt/kept"


def file_system_survived(guest: Guest, kept: str) -> None:
    """The journal replays, the check finds nothing more, the file of before is whole."""
    assert guest.sh(f"mount {DISK} /mnt; md5sum </mnt/kept") == kept
    guest.sh(f"umount /mnt; fsck.ext4 -f -n {DISK}")


def test_killing_qemu_under_load_leaves_the_daemon_serving_and_the_disk_good(rig: Rig) -> None:
    daemon = rig.serve()
    first = rig.boot(daemon)
    kept = first.sh(f"mkfs.ext4 -q {DISK}; mount {DISK} /mnt; {KEPT}")
    first.sh(LOAD)
    first.kill()
    second = rig.boot(daemon)
    file_system_survived(second, kept)
    second.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=8M")
    second.power_off()


def test_the_reset_button_under_load_leaves_the_disk_good(rig: Rig) -> None:
    guest = rig.boot(rig.serve())
    kept = guest.sh(f"mkfs.ext4 -q {DISK}; mount {DISK} /mnt; {KEPT}")
    guest.sh(LOAD)
    guest.reset().wait_for_path(DISK)
    file_system_survived(guest, kept)
    guest.power_off()


def test_a_second_client_is_refused_while_the_guest_runs_on(rig: Rig) -> None:
    daemon = rig.serve()
    guest = rig.boot(daemon)
    guest.sh(f"""
        fio --name=load --filename={DISK} --ioengine=libaio --direct=1 --rw=randrw --bs=4k \
            --iodepth=8 --size=16M --time_based --runtime=4 --verify=crc32c >/tmp/fio.log 2>&1 &
        echo $! >/tmp/fio.pid
    """)
    with (
        pytest.raises(GuestError, match="QEMU did not start"),
        Guest(rig.lab, [vfio_user(daemon.socket)]),
    ):
        pass
    guest.sh("while kill -0 $(cat /tmp/fio.pid) 2>/dev/null; do sleep 0.1; done; cat /tmp/fio.log")
    assert "err= 0" in guest.sh("cat /tmp/fio.log")
    guest.power_off()


def test_stopping_the_daemon_under_a_guest_keeps_what_was_synced(rig: Rig) -> None:
    daemon = rig.serve()
    guest = rig.boot(daemon)
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=8 conv=fsync")
    seen = guest.checksum(DISK)
    daemon.stop()
    guest.kill()
    assert checksum(daemon.image) == seen


@pytest.fixture
def full_disk(rig: Rig) -> tuple[Daemon, Path]:
    """A daemon on a sparse image of 64 MiB in a file system of 24 MiB, and the image's path.

    The file system is mounted in a mount namespace of the daemon's own, and ends with it.
    """
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("mounting a small file system needs root and unshare")
    folder = rig.directory / "small"
    folder.mkdir()
    mount = (
        f"mount -t tmpfs -o size=24M none {folder} && truncate -s 64M {folder}/disk.img"
        ' && exec "$0" "$@"'
    )
    wrapper = ["unshare", "--mount", "sh", "-c", mount]
    daemon = rig.serve(folder / "disk.img", wrapper=wrapper)
    return daemon, Path(f"/proc/{daemon.pid}/root{folder}/disk.img")


def test_a_full_host_disk_is_an_error_in_the_guest_and_harms_nothing_else(
    rig: Rig, full_disk: tuple[Daemon, Path]
) -> None:
    daemon, image = full_disk
    guest = rig.boot(daemon)
    guest.allow("I/O [Ee]rror|critical space allocation error")
    guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=8 conv=fsync")
    synced = content(image, 0, 8 * MIB)
    assert any(synced)
    failed = guest.run(f"dd if=/dev/urandom of={DISK} bs=1M seek=8 count=40 oflag=direct")
    assert failed.status != 0
    assert "No space left on device" in failed.output
    assert content(image, 0, 8 * MIB) == synced
    assert daemon.alive
    # Room is made, and the disk works again.
    guest.sh(f"blkdiscard -o {8 * MIB} {DISK}")
    guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=8 --offset=8M --size=8M")
    assert content(image, 0, 8 * MIB) == synced
    guest.power_off()
