"""The main job, with two kernels and each setting of the doorbells: a disk that works and stays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from lab import MIB, Daemon, Guest, Lab, Rig, checksum

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK = "/dev/nvme0n1"
SIZE = 96 * MIB
OACS_DOORBELL_BUFFER = 0x100  # NVMe Base, Identify Controller, OACS bit 8

# All of these stay the same as long as the disk does.
IDENTITY = f"""
cd /sys/class/nvme/nvme0 && grep -H . serial model firmware_rev subsysnqn
cd /sys/block/{DISK.removeprefix("/dev/")} && grep -H . uuid nguid wwid size
"""


@dataclass(frozen=True)
class Setting:
    """A kernel, and which doorbells the daemon offers."""

    kernel: str
    shadow: bool
    mapped: bool

    def __str__(self) -> str:
        shadow = "shadow" if self.shadow else "no-shadow"
        return f"{self.kernel}-{shadow}-{'mapped' if self.mapped else 'unmapped'}"

    @property
    def options(self) -> list[str]:
        return [
            "--shadow-doorbell" if self.shadow else "--no-shadow-doorbell",
            "--mapped-doorbells" if self.mapped else "--no-mapped-doorbells",
        ]


SETTINGS = [
    Setting("6.12", shadow=True, mapped=True),
    Setting("6.12", shadow=False, mapped=True),
    Setting("6.1", shadow=True, mapped=False),
    Setting("6.1", shadow=False, mapped=False),
]


class Machine:
    """A daemon and the guest that is attached to it at the moment."""

    def __init__(self, rig: Rig, setting: Setting) -> None:
        self._rig = rig
        self.setting = setting
        self.image = rig.image(SIZE)
        self.daemon: Daemon = rig.serve(self.image, options=setting.options)
        self._guest: Guest | None = None

    @property
    def guest(self) -> Guest:
        """The guest that runs; boots one when none does."""
        if self._guest is None or not self._guest.alive:
            self._guest = self._rig.boot(self.daemon, kernel=self.setting.kernel)
        return self._guest


@pytest.fixture(
    scope="class",
    params=[
        pytest.param(setting, id=str(setting), marks=pytest.mark.xdist_group(str(setting)))
        for setting in SETTINGS
    ],
)
def machine(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Machine]:
    with Rig(lab) as rig:
        yield Machine(rig, request.param)


class TestLinuxGuest:
    """All on one disk, one after the other, and none relies on what another left there."""

    def test_the_disk_has_the_size_of_the_image_and_a_queue_for_each_cpu(
        self, machine: Machine
    ) -> None:
        guest = machine.guest
        assert int(guest.sh(f"blockdev --getsize64 {DISK}")) == SIZE
        assert int(guest.sh("cat /sys/class/nvme/nvme0/queue_count")) == 1 + 2  # the admin queue

    def test_shadow_doorbells_are_offered_as_set(self, machine: Machine) -> None:
        said = machine.guest.sh("nvme id-ctrl /dev/nvme0 | grep ^oacs")
        assert bool(int(said.split()[-1], 16) & OACS_DOORBELL_BUFFER) == machine.setting.shadow

    def test_each_queue_interrupts_the_cpu_that_used_it(self, machine: Machine) -> None:
        guest = machine.guest
        for cpu in (0, 1):
            guest.sh(f"taskset -c {cpu} dd if={DISK} of=/dev/null bs=4k count=50 iflag=direct")
        rows = re.findall(r":\s+(\d+)\s+(\d+) .* nvme0q([12])\n", guest.sh("cat /proc/interrupts"))
        counts = {int(queue): int(first) + int(second) for first, second, queue in rows}
        assert set(counts) == {1, 2}
        assert all(count >= 50 for count in counts.values()), counts

    def test_a_file_system_keeps_what_is_copied_to_it(self, machine: Machine) -> None:
        machine.guest.sh(f"""
            mkfs.ext4 -q {DISK}
            mount {DISK} /mnt
            cp -r /programs/usr/lib /mnt/
            sync
            umount /mnt
            fsck.ext4 -f -n {DISK}
            mount {DISK} /mnt
            cd /programs/usr/lib
            find . -type f | while read -r file; do cmp "$file" "/mnt/lib/$file"; done
            cd /
            umount /mnt
        """)

    def test_fio_reads_back_what_it_wrote_in_blocks_of_all_sizes(self, machine: Machine) -> None:
        machine.guest.fio(
            DISK,
            "--rw=randrw --bsrange=512-64k --iodepth=16 --size=24M",
            "--numjobs=2 --offset_increment=32M --verify_backlog=32",
        )

    def test_fio_reads_back_large_transfers_from_unaligned_memory(self, machine: Machine) -> None:
        # Up to MDTS, starting 512 bytes into a page: PRP1 has an offset, and the list is full.
        machine.guest.fio(
            DISK, "--rw=randwrite --bsrange=64k-1M --iodepth=8 --size=64M --iomem_align=512"
        )

    def test_a_guest_that_reboots_finds_its_disk_unchanged(self, machine: Machine) -> None:
        guest = machine.guest
        guest.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=16 seek=8 oflag=direct")
        before = (guest.sh(IDENTITY), guest.checksum(DISK))
        guest.reboot().wait_for_path(DISK)
        assert (guest.sh(IDENTITY), guest.checksum(DISK)) == before

    def test_a_guest_that_powers_off_leaves_its_disk_to_the_image_and_the_next_qemu(
        self, machine: Machine
    ) -> None:
        first = machine.guest
        first.sh(f"dd if=/dev/urandom of={DISK} bs=1M count=16 seek=72 oflag=direct")
        identity, seen = first.sh(IDENTITY), first.checksum(DISK)
        first.power_off()
        assert checksum(machine.image) == seen
        second = machine.guest
        assert second is not first
        assert (second.sh(IDENTITY), second.checksum(DISK)) == (identity, seen)


@pytest.mark.xdist_group("identity")
class TestIdentity:
    def test_a_serial_number_given_is_the_guests_and_another_daemon_keeps_the_rest(
        self, rig: Rig
    ) -> None:
        image = rig.image()
        seen = []
        for _ in range(2):
            daemon = rig.serve(image, options=["--serial", "LAB-0042"])
            guest = rig.boot(daemon)
            seen.append(guest.sh(IDENTITY))
            guest.power_off()
            daemon.stop()
        assert "serial:LAB-0042" in seen[0]
        assert seen[0] == seen[1]
        uuid = re.search(r"^uuid:(.*)$", seen[0], re.MULTILINE)
        nguid = re.search(r"^nguid:(.*)$", seen[0], re.MULTILINE)
        assert uuid
        assert nguid
        assert {uuid[1], nguid[1]}.isdisjoint({"00000000-0000-0000-0000-000000000000"})
