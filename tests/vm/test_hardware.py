"""nvme-mdev on a host with NVMe drives: on the kernel's driver, past it, and behind VFIO.

The host is an emulated machine with QEMU's emulated drives (lab/hardware.py); nvme-mdev runs inside
it, and its host driver plays the guests.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from lab import allocated, hardware

if TYPE_CHECKING:
    from lab import Rig
    from lab.hardware import Machine

#: Writes, reads and verifies; 32 outstanding commands of scattered pages, then small ones.
VERIFY = "nvme-mdev bench {socket} --rw randrw --bs {bs} --qd 8 --verify --runtime {seconds}"
LONG = 400


@pytest.fixture(scope="class")
def machine(shared_rig: Rig) -> Machine:
    return hardware.boot(shared_rig)


def verify(socket: str, seconds: int = 6, bs: str = "4k") -> str:
    return VERIFY.format(socket=socket, bs=bs, seconds=seconds)


@pytest.mark.xdist_group("hardware")
class TestHardware:
    def test_a_host_uses_a_partition_while_two_others_serve_guests(self, machine: Machine) -> None:
        """A file system under load on the first, passthrough on the second, io_uring on the third:
        nothing of one is ever seen by another."""
        guest = machine.guest
        disk = f"/dev/{machine.controller('main')}n1"
        guest.sh(f"mkfs.ext4 -q {disk}p1; mkdir -p /mnt/p1; mount {disk}p1 /mnt/p1")
        passed = machine.serve(f"direct:/dev/{machine.controller('main')}/n1p2")
        block = machine.serve(f"{disk}p3")
        machine.wait(passed, block)
        guest.sh(
            "(while [ ! -e /run/enough ]; do cp -r /bin /mnt/p1/copy; sync; rm -r /mnt/p1/copy;"
            " done) >/run/load.log 2>&1 &\n"
            f"{verify(passed)} >/run/passed.log 2>&1 & first=$!\n"
            f"{verify(block)} >/run/block.log 2>&1 & second=$!\n"
            "wait $first || { cat /run/passed.log; exit 1; }\n"
            "wait $second || { cat /run/block.log; exit 1; }\n"
            f"{verify(passed, 3, '128k')}",
            timeout=LONG,
        )
        guest.sh(
            "touch /run/enough; sleep 2; while pgrep -x cp >/dev/null; do sleep 0.2; done\n"
            f"umount /mnt/p1; fsck.ext4 -fn {disk}p1; sync",
            timeout=LONG,
        )
        assert machine.untouched()
        assert "polled" in guest.sh(
            f"grep -q 1 /sys/block/{machine.controller('main')}n1/queue/io_poll && echo polled"
        )

    def test_what_cannot_be_had_is_said_in_one_line(self, machine: Machine) -> None:
        main, spare = machine.controller("main"), machine.controller("spare")
        machine.guest.sh(
            f"mkfs.ext4 -q -F /dev/{main}n2; mkdir -p /mnt/n2; mount /dev/{main}n2 /mnt/n2"
        )
        address = machine.address("spare")
        expected = {
            f"direct:/dev/{main}n2": "is in use: unmount it, or stop the program that holds it",
            f"/dev/{main}/n2": "is in use: unmount it, or stop the program that holds it",
            f"direct:/dev/{main}/n7": "has no namespace n7: there are n1, n2",
            f"direct:/dev/{main}/n1p9": "has no partition p9: there are p1, p2, p3",
            "direct:/dev/vda": "vda is no NVMe namespace: serve it without direct:",
            f"direct:vfio:{address}": "its driver is nvme: bind it to vfio-pci",
            "direct:vfio:0000:00:1f.7": "there is no such PCI function",
            f"direct:/dev/{spare}n1,offset=64M": "offset and length do not lie within",
        }
        script = (
            "from nvme_mdev.cli.main import run\n"
            f"for target in {list(expected)!r}:\n"
            "    print(run(['serve', '--no-keeper', target, '--socket', '/run/x']), flush=True)\n"
        )
        told = machine.guest.sh(
            f"cat >/run/refused.py <<'EOF'\n{script}EOF\npython3 /run/refused.py; umount /mnt/n2",
            timeout=LONG,
        ).splitlines()
        lines = [line for line in told if line.startswith("nvme-mdev: ")]
        assert told.count("2") == len(expected), told
        for line, what in zip(lines, expected.values(), strict=True):
            assert what in line

    def test_a_reset_of_the_drive_under_load_is_a_pause(self, machine: Machine) -> None:
        controller = machine.controller("main")
        socket = machine.serve(f"direct:/dev/{controller}n2")
        machine.wait(socket)
        machine.guest.allow(rf"{controller}: |{controller}n2")
        machine.guest.sh(
            f"{verify(socket, 8)} >/run/reset.log 2>&1 & load=$!\n"
            "for i in 1 2; do sleep 6\n"
            f"echo 1 >/sys/class/nvme/{controller}/reset_controller\ndone\n"
            "wait $load || { cat /run/reset.log; exit 1; }",
            timeout=LONG,
        )
        assert "512" not in machine.log(socket).split("(")[1]

    def test_queues_of_our_own_on_a_drive_behind_vfio(self, machine: Machine) -> None:
        """And the process that holds the drive is killed under its guest."""
        address = machine.address("spare")
        pci = "/sys/bus/pci"
        machine.guest.sh(
            f"echo vfio-pci >{pci}/devices/{address}/driver_override\n"
            f"echo {address} >{pci}/devices/{address}/driver/unbind\n"
            f"echo {address} >{pci}/drivers_probe"
        )
        socket = machine.serve(f"direct:vfio:{address}/n1,offset=16M,length=16M", options="")
        machine.wait(socket)
        machine.guest.sh(f"{verify(socket, 20)} >/run/vfio.log 2>&1 & echo $! >/run/load.pid")
        # A client waits 10 s for an answer, and Python takes that long to start here: I/O, which
        # needs none, must be under way before the process is killed.
        while not allocated(machine.spare):
            time.sleep(0.1)
        machine.guest.sh(
            f"{machine.kill_serving_process(socket)}\n"
            "while [ -e /proc/$(cat /run/load.pid) ]; do sleep 0.5; done\n"
            "cat /run/vfio.log; grep -q ' 0 wrong' /run/vfio.log",
            timeout=LONG,
        )
        machine.guest.sh(verify(socket, 3, "128k"), timeout=LONG)

    def test_a_drive_that_is_taken_away_takes_its_namespace(self, machine: Machine) -> None:
        controller = machine.controller("lost")
        socket = machine.serve("memory:1M", f"direct:/dev/{controller}n1")
        machine.wait(socket)
        machine.guest.allow(rf"{controller}|pcieport")
        machine.guest.sh(
            f"nvme-mdev bench {socket} --nsid 2 --rw randread --runtime 60 >/run/lost.log 2>&1 &"
            " sleep 8"
        )
        machine.guest.qmp("device_del", id="lost-drive")
        state = machine.guest.sh(
            f"for i in $(seq 60); do grep -q 'is gone' {socket}.log && break; sleep 1; done\n"
            f"nvme-mdev namespace list {socket} -o json; cat {socket}.log",
            timeout=LONG,
        )
        assert '"lost"' in state
        assert '"active"' in state
        # What is left goes on.
        machine.guest.sh(verify(socket, 2), timeout=LONG)
