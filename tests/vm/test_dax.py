"""An image on persistent memory: a file system with DAX, where the file's blocks can be mapped.

The host is an emulated machine with an NVDIMM (lab/hardware.py, lab/nvdimm.py); nvme-mdev runs
inside it, and its host driver plays the guests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from lab import MIB, hardware, nvdimm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab import Guest, Rig
    from lab.hardware import Machine

MOUNT = "/mnt/dax"
IMAGE = f"{MOUNT}/disk.img"
OTHER = f"{MOUNT}/other.img"
MAKE = {
    # Blocks have to be pages; a small ext4 has smaller ones otherwise.
    "ext4": "mkfs.ext4 -q -F -b 4096 {disk} {size}",
    "xfs": "mkfs.xfs -q -f {disk}",
}
OPTIONS = {"ext4": "dax=always,commit=600", "xfs": "dax=always"}
"""XFS writes its log after 30 s by itself, ext4 its journal after 5."""
LONG = 400
SMALL = "16M"
"""For a file system that has not room for one image."""
SIZE = 48 * MIB
"""Of an image; it is sparse, and most of it stays so."""
USED = 8 * MIB
"""What is written of it in one go, from the beginning."""
BENCH = "nvme-mdev bench --qd 8 --verify"
#: Each 4 KiB of what is used.
EACH_ONCE = f"--size {USED} --number-ios {USED // 4096}"
#: statx(2): STATX_ATTR_DAX among stx_attributes, which are 8 bytes from the eighth on.
IS_DAX = """
import ctypes, sys
buffer = ctypes.create_string_buffer(256)
assert ctypes.CDLL(None).statx(-100, sys.argv[1].encode(), 0, 0, buffer) == 0
assert int.from_bytes(buffer[8:16], "little") & 0x00200000, sys.argv[1]
"""
#: How many pages of a file a process has mapped, by proc(5)'s pagemap: the resident size of smaps
#: has none of those of persistent memory (Linux 6.12).
MAPPED = """
import struct, sys
pid, path = sys.argv[1:]
pages = 0
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
    for line in maps:
        if not line.rstrip().endswith(f" {path}"):
            continue
        first, last = (int(address, 16) >> 12 for address in line.split()[0].split("-"))
        pagemap.seek(8 * first)
        entries = struct.iter_unpack("<Q", pagemap.read(8 * (last - first)))
        pages += sum(entry >> 63 for entry, in entries)
print(pages)
"""
FLUSH = """
import sys
from nvme_mdev.host.driver import NvmeHost

with NvmeHost(sys.argv[1]) as host:
    host.create_queue_pair().flush(1)
"""
#: Write to holes, and over that; make it last, by "flush" or by "fua" (Force Unit Access), and hold
#: on: neither a shutdown nor the end of the client does it. "check" what that has left.
KEEP = """
import sys, time
from nvme_mdev.host.driver import NvmeHost

SIZE = 4096
MANY = 256

def content(number):
    return number.to_bytes(8, "little") * (SIZE // 8)

socket, how = sys.argv[1:]
with NvmeHost(socket) as host:
    queue = host.create_queue_pair()
    blocks = SIZE // host.block_size(1)
    if how == "check":
        for number in range(MANY):
            assert queue.read(1, number * blocks, blocks) == content(number + 1), number
        sys.exit()
    for number in range(MANY):
        queue.write(1, number * blocks, content(number + 7))
    for number in range(MANY):
        queue.write(1, number * blocks, content(number + 1), fua=how == "fua")
    if how == "flush":
        queue.flush(1)
    print("kept", flush=True)
    time.sleep(600)
"""
#: Write to a medium larger than its file system, 16 KiB at a time, until there is no room.
FILL = """
import os, subprocess, sys
from nvme_mdev.host import commands
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_status import GenericStatus

SIZE = 16384
socket, image, filler = sys.argv[1:]
FULL = GenericStatus.CAPACITY_EXCEEDED

def content(number):
    return number.to_bytes(8, "little") * (SIZE // 8)

with NvmeHost(socket) as host:
    queue = host.create_queue_pair()
    blocks = SIZE // host.block_size(1)
    many = host.namespace(1).size // SIZE

    def write(number, data):
        command = commands.write(1, number * blocks, blocks)
        return queue.execute(command, send=data, check=False).completion.status

    def read(number):
        return queue.read(1, number * blocks, blocks)

    # To the last block of the file system.
    queue.write(2, 0, content(1))
    written = next(n for n in range(many) if not write(n, content(n + 1)).success)
    assert 64 < written < many - 64, written
    assert write(written + 1, content(1)).code == FULL
    queue.flush(1)
    for number in range(written):
        assert read(number) == content(number + 1), number
    assert read(many - 1) == bytes(SIZE)
    # What has its blocks can be written again, and the namespace beside it is no worse.
    assert write(1, content(7)).success
    assert read(1) == content(7)
    queue.write(2, 0, content(8))
    assert queue.read(2, 0, blocks) == content(8)

    # The host takes blocks away from the image, and others get them.
    subprocess.run(["fallocate", "--punch-hole", "--length", str(4 * SIZE), image], check=True)
    os.sync()
    fill = f"cat /dev/zero >{filler}"
    assert subprocess.run(fill, shell=True, stderr=subprocess.DEVNULL).returncode
    for number in range(4):
        assert read(number) == bytes(SIZE), number
        assert write(number, content(9)).code == FULL, number
    assert read(4) == content(5)

    # The guest makes room.
    queue.deallocate(1, [(8 * blocks, 8 * blocks)])
    assert read(8) == bytes(SIZE)
    assert write(many - 1, content(10)).success
    assert read(many - 1) == content(10)
    queue.flush(1)
"""
#: Two benches at once, on two controllers; the image that one reads is truncated under it.
TRUNCATE = """
import json, os, subprocess, sys, time
from nvme_mdev.service import api
from nvme_mdev.service.client import ControlClient

ENOUGH = 1000
BENCH = "nvme-mdev bench --json --qd 8 --runtime 10 --size".split()
reader, writer, image, used = sys.argv[1:]
with ControlClient(f"{reader}.ctl") as client:

    def commands():
        name = os.path.basename(reader).removesuffix(".sock")
        return client.call(api.CONTROLLER_STATS, api.OfController(name)).translated.count

    def wait_for(count):
        while commands() < count:
            assert reading.poll() is None, "bench has ended"
            time.sleep(0.05)

    start = commands()
    reading = subprocess.Popen(
        [*BENCH, used, reader, "--rw", "randread", "--continue-on-error"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    writing = subprocess.Popen(
        [*BENCH, used, writer, "--rw", "randrw", "--nsid", "2", "--verify"],
        stdout=subprocess.DEVNULL,
    )
    wait_for(start + ENOUGH)
    os.truncate(image, int(used) // 2)
    wait_for(commands() + ENOUGH)
    assert writing.poll() is None, "bench has ended"
    found, problem = reading.communicate()
    result = json.loads(found)["jobs"][0]
    assert reading.returncode == 1, reading.returncode
    assert 0 < result["error"] < result["read"]["total_ios"], result
    assert b"UNRECOVERED_READ" in problem, problem
    assert writing.wait() == 0, writing.returncode
"""


def as_script(script: str, *arguments: object) -> str:
    """The shell's way to run a Python script in the machine; options of the shell may follow."""
    words = " ".join(map(str, arguments))
    return f"cat >/run/script.py <<'EOF'\n{script}EOF\npython3 /run/script.py {words}"


@dataclass
class Host:
    """The machine, with what the tests do in it."""

    machine: Machine
    alive: set[str] = field(default_factory=set)
    """Sockets of the daemons."""

    @property
    def guest(self) -> Guest:
        return self.machine.guest

    def make_file_system(self, kind: str, size: str = "") -> None:
        """A new one, mounted, with two sparse images that are used without a page cache."""
        self.guest.sh(f"{nvdimm.SETUP}{MAKE[kind].format(disk=nvdimm.DISK, size=size)}")
        self.mount(kind)
        for image in (IMAGE, OTHER):
            self.guest.sh(f"truncate -s {SIZE} {image}; sync")
            self.python(IS_DAX, image)

    def mount(self, kind: str) -> None:
        self.guest.sh(
            f"load xfs; mkdir -p {MOUNT}; mount -t {kind} -o {OPTIONS[kind]} {nvdimm.DISK} {MOUNT}"
        )

    def unmount(self) -> None:
        """A killed process's io_uring lets go of its files some time after it."""
        self.guest.sh(f"for i in $(seq 100); do umount {MOUNT} && exit 0; sleep 0.1; done; exit 1")

    def serve(self, options: str = "") -> str:
        """A daemon with both images, which is ready; the path of its socket."""
        socket = self.machine.serve(IMAGE, OTHER, options=options)
        self.alive.add(socket)
        self.machine.wait(socket)
        return socket

    def kill(self, socket: str) -> None:
        """Kill all of its processes."""
        self.machine.kill(socket)
        self.alive.remove(socket)

    def stop(self, socket: str) -> None:
        """Stop it as a user does; it must not have raised anything."""
        self.machine.stop(socket)
        self.alive.remove(socket)
        assert "Traceback" not in self.machine.log(socket)

    def python(self, script: str, *arguments: object) -> str:
        """What a Python script printed, which must succeed."""
        return self.guest.sh(as_script(script, *arguments), timeout=LONG)

    def write(self, socket: str, seed: int) -> None:
        """Write all that is used of the first image, each block once, and read it back."""
        self.guest.sh(f"{BENCH} {socket} --rw write {EACH_ONCE} --seed {seed}", timeout=LONG)

    def check(self, socket: str, seed: int) -> None:
        """Check all that `write` has written."""
        self.guest.sh(f"{BENCH} {socket} --rw read {EACH_ONCE} --seed {seed}", timeout=LONG)

    def mapped(self, socket: str) -> int:
        """How many pages of the first image the daemon has mapped, and used."""
        return int(self.python(MAPPED, self.machine.processes(socket)[-1], IMAGE))

    def content(self) -> str:
        """Digest of the first image."""
        return self.guest.sh(f"md5sum <{IMAGE}")

    def reset(self) -> None:
        """Press the machine's reset button, and make it ready again."""
        self.alive.clear()
        self.guest.reset()
        self.guest.sh(f"{hardware.setup()}\n{nvdimm.SETUP}")

    def end(self) -> None:
        """End what a test has left, and unmount."""
        for socket in set(self.alive):
            self.kill(socket)
        if f" {MOUNT} " in self.guest.sh("cat /proc/mounts"):
            self.unmount()


@pytest.fixture(scope="class")
def machine(shared_rig: Rig) -> Machine:
    return hardware.boot(shared_rig, persistent=True)


@pytest.fixture
def host(machine: Machine) -> Iterator[Host]:
    host = Host(machine)
    yield host
    host.end()


@pytest.mark.xdist_group("dax")
class TestDax:
    @pytest.mark.parametrize("kind", MAKE)
    def test_verified_io_uses_the_mapped_image_and_outlives_the_daemon_and_the_mount(
        self, host: Host, kind: str
    ) -> None:
        host.make_file_system(kind)
        first = host.serve()
        host.write(first, seed=1)
        host.guest.sh(f"{BENCH} {first} --rw randrw --size {2 * USED} --runtime 4", timeout=LONG)
        # Over what is there.
        host.write(first, seed=2)
        host.python(FLUSH, first)
        written, mapped = host.content(), [host.mapped(first)]
        host.kill(first)

        second = host.serve()
        host.check(second, seed=2)
        mapped.append(host.mapped(second))
        host.kill(second)
        host.unmount()
        host.mount(kind)
        third = host.serve()
        host.check(third, seed=2)
        host.stop(third)
        assert host.content() == written
        assert all(mapped), mapped

    @pytest.mark.parametrize("kind", MAKE)
    def test_a_killed_daemon_carries_on_under_verified_io(self, host: Host, kind: str) -> None:
        """Blocks are allocated, and written again, before and after."""
        host.make_file_system(kind)
        socket = host.serve()
        before = host.machine.processes(socket)[-1]
        host.guest.sh(
            f"{BENCH} {socket} --rw randrw --runtime 12 >/run/bench.log 2>&1 & bench=$!\n"
            f"while kill -0 $bench && [ $(stat -c %b {IMAGE}) -lt {MIB // 512} ]; do\n"
            f"sleep 0.1\ndone; kill -9 {before}; wait $bench || {{ cat /run/bench.log; exit 1; }}",
            timeout=LONG,
        )
        assert host.machine.processes(socket)[-1] != before
        mapped = host.mapped(socket)
        host.stop(socket)
        assert mapped

    def test_a_full_file_system_is_an_error_for_the_guest_and_harms_nothing_else(
        self, host: Host
    ) -> None:
        host.make_file_system("ext4", SMALL)
        socket = host.serve()
        host.python(FILL, socket, IMAGE, f"{MOUNT}/filler")
        host.stop(socket)

    def test_an_image_that_is_truncated_under_io_is_lost_alone(self, host: Host) -> None:
        """To half of what is read: the other half is there, and so is the namespace beside it."""
        host.make_file_system("xfs")
        second = "/run/second.sock"
        first = host.serve(f"--no-keeper --socket {second}")
        host.write(first, seed=1)
        host.python(TRUNCATE, first, second, IMAGE, USED)
        host.guest.sh(f"{BENCH} {first} --rw read --size {USED // 2} --seed 1", timeout=LONG)
        host.guest.sh(f"truncate -s {SIZE} {IMAGE}")
        host.write(first, seed=2)
        host.stop(first)

    @pytest.mark.parametrize(
        ("kind", "how"), [("ext4", "flush"), ("xfs", "flush"), ("ext4", "fua")]
    )
    def test_what_was_made_to_last_survives_a_reset_of_the_host(
        self, host: Host, kind: str, how: str
    ) -> None:
        """The file system itself would make nothing last within the time that this takes."""
        host.make_file_system(kind)
        first = host.serve()
        host.guest.sh(
            f"{as_script(KEEP, first, how)} >/run/keep.log 2>&1 & keeping=$!\n"
            "until grep -q kept /run/keep.log; do\n"
            "kill -0 $keeping || { cat /run/keep.log; exit 1; }; sleep 0.1\ndone",
            timeout=LONG,
        )
        host.reset()
        host.mount(kind)
        second = host.serve()
        host.python(KEEP, second, "check")
        host.stop(second)
