"""nvme-cli in one guest: each command is answered, and does what it says to the image."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from lab import MIB, Daemon, Guest, Rig, content
from lab.daemon import control
from tests.controller.reservation_host import ReservationHost
from tests.controller.statuses import refused

from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.spec.nvme_reservations import ReservationType
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK = "/dev/nvme0n1"
CONTROLLER = "/dev/nvme0"
BLOCK = 512
PAGE = 4096
BLOCKS = 128 * MIB // BLOCK
HOST_ID = bytes(range(1, 17))

# SSTAT of the Sanitize Status log page (Base 5.1.12.1.33).
SANITIZE_STATE = 0x7
SANITIZE_COMPLETED = 1

# What asks, and what is in its answer.
ANSWERS = {
    f"id-ctrl {CONTROLLER}": r"sn +: COMMANDS",
    f"id-ns {DISK}": rf"nsze +: {BLOCKS:#x}",
    f"ns-descs {DISK}": r"uuid +: (?!0{8})",
    f"nvm-id-ns {DISK}": r"lbstm +: 0",
    f"cmdset-ind-id-ns {DISK}": r"nstat +: 0x1",
    f"id-iocs {CONTROLLER}": r"I/O Command Set Combination",
    f"list-ns {CONTROLLER}": r"\[ +0\]:0x1\n",
    f"list-ns {CONTROLLER} --all": r"\[ +0\]:0x1\n",
    f"list-ctrl {CONTROLLER}": r"num of ctrls present: 1",
    "list": rf"{DISK} .* COMMANDS ",
    "list-subsys": r"nqn\.",
    f"smart-log {CONTROLLER}": r"critical_warning\s+: 0\n",
    f"error-log {CONTROLLER}": r"error_count\s+: 0",
    f"fw-log {CONTROLLER}": r"afi +: 0x1",
    f"effects-log {CONTROLLER} --csi=0": r"IOCS1 +\[Write +\] 0000000[13]",
    f"supported-log-pages {CONTROLLER}": r"LID 0x2 ",
    f"self-test-log {CONTROLLER}": r"Current operation +: 0",
    f"sanitize-log {CONTROLLER}": r"\(SSTAT\) *: +0",
    f"get-feature {CONTROLLER} --feature-id=1 --human-readable": r"Arbitration",
    f"get-feature {CONTROLLER} --feature-id=2 --human-readable": r"Power State",
    f"get-feature {CONTROLLER} --feature-id=4 --human-readable": r"Temperature Threshold",
    f"get-feature {CONTROLLER} --namespace-id=1 --feature-id=5 --human-readable": r"TLER",
    f"get-feature {CONTROLLER} --feature-id=6 --human-readable": r"WCE\): Enabled",
    f"get-feature {CONTROLLER} --feature-id=7 --human-readable": r"NCQA\): [1-9]",
    f"get-feature {CONTROLLER} --feature-id=8 --human-readable": r"Interrupt Coalescing",
    f"get-feature {CONTROLLER} --feature-id=9 --cdw11=1 --human-readable": r"Interrupt Vector",
    f"get-feature {CONTROLLER} --feature-id=0xb --human-readable": r"Async(hronous)? Event",
    f"get-feature {CONTROLLER} --feature-id=0xe --human-readable": r"timestamp is|Timestamp",
    f"flush {CONTROLLER} --namespace-id=1": r"success",
    f"read {DISK} --start-block=0 --block-count=7 --data-size=4096": r"read: Success",
}

# A feature, and a value that it does not have by itself.
FEATURES = {
    "arbitration": (1, 0x0102_0304),
    "temperature threshold": (4, 0x160),
    "volatile write cache": (6, 0),
    "interrupt coalescing": (8, 0x0102),
}


@pytest.fixture(scope="class")
def daemon(shared_rig: Rig) -> Daemon:
    return shared_rig.serve(options=["--serial", "COMMANDS", "--allow-erase"])


@pytest.fixture(scope="class")
def guest(shared_rig: Rig, daemon: Daemon) -> Iterator[Guest]:
    guest = shared_rig.boot(daemon)
    guest.allow("using deprecated NVME_IOCTL_IO_CMD")
    yield guest
    guest.power_off()


def feature(guest: Guest, fid: int) -> int:
    """The value of a feature, as nvme-cli says it."""
    said = guest.sh(f"nvme get-feature {CONTROLLER} --feature-id={fid}")
    value = re.search(r"Current value: ?(0x[0-9a-f]+|[0-9]+)", said)
    assert value, said
    return int(value[1], 0)


def fill(guest: Guest, lba: int, blocks: int) -> None:
    """Random data on some blocks of 512 bytes, in whole pages: those of the disk may be larger."""
    at, pages = lba * BLOCK // PAGE, blocks * BLOCK // PAGE
    guest.sh(f"dd if=/dev/urandom of={DISK} bs={PAGE} seek={at} count={pages} oflag=direct,dsync")


@pytest.mark.xdist_group("nvme-cli")
class TestNvmeCli:
    @pytest.mark.parametrize("command", ANSWERS)
    def test_nvme_cli_is_answered(self, guest: Guest, command: str) -> None:
        assert re.search(ANSWERS[command], guest.sh(f"nvme {command}"))

    @pytest.mark.parametrize("name", FEATURES)
    def test_a_feature_that_is_set_is_had_until_it_is_set_again(
        self, guest: Guest, name: str
    ) -> None:
        fid, value = FEATURES[name]
        before = feature(guest, fid)
        assert before != value
        change = f"nvme set-feature {CONTROLLER} --feature-id={fid} --value="
        guest.sh(f"{change}{value:#x}")
        assert feature(guest, fid) == value
        guest.sh(f"{change}{before:#x}")
        assert feature(guest, fid) == before

    def test_a_timestamp_goes_on_from_where_it_was_set(self, guest: Guest) -> None:
        # nvme-cli takes the data of this feature from --value.
        timestamp = f"{CONTROLLER} --feature-id=0xe --data-len=8"
        guest.sh(f"nvme set-feature {timestamp} --value={1 << 32}")
        said = guest.sh(f"nvme get-feature {timestamp} --raw-binary | od -An -tu8")
        since = (int(said.split()[0]) & (1 << 48) - 1) - (1 << 32)
        assert 0 <= since < 600_000  # ms

    def test_a_write_protected_namespace_refuses_writes_until_it_is_not(self, guest: Guest) -> None:
        guest.allow(r"I/O error|nvme0n1: .*(rw|read-only)")
        protect = f"nvme set-feature {CONTROLLER} --namespace-id=1 --feature-id=0x84 --value="
        write = f"nvme write {DISK} --start-block=0 --data-size=512 --data=/tmp/block"
        guest.sh(f"dd if=/dev/urandom of=/tmp/block bs=512 count=1; {write}")
        guest.sh(f"{protect}1")
        assert re.search("write.protect", guest.run(write).output, re.IGNORECASE)
        guest.sh(f"{protect}0; blockdev --setrw {DISK}; {write}")

    def test_dsm_deallocates_exactly_its_ranges(self, guest: Guest, daemon: Daemon) -> None:
        fill(guest, 8192, 64)
        guest.sh(f"nvme dsm {DISK} --ad --slbs=8192,8216 --blocks=8,16")
        data = content(daemon.image, 8192 * BLOCK, 64 * BLOCK)
        assert data[: 8 * BLOCK] == bytes(8 * BLOCK)
        assert data[24 * BLOCK : 40 * BLOCK] == bytes(16 * BLOCK)
        for kept in (slice(8, 24), slice(40, 64)):
            assert all(any(data[block * BLOCK :][:BLOCK]) for block in range(64)[kept])

    @pytest.mark.parametrize("deac", ["", "--deac"])
    def test_write_zeroes_clears_exactly_its_blocks(
        self, guest: Guest, daemon: Daemon, deac: str
    ) -> None:
        fill(guest, 8192, 64)
        guest.sh(f"nvme write-zeroes {DISK} --start-block=8200 --block-count=15 {deac}")
        data = content(daemon.image, 8192 * BLOCK, 64 * BLOCK)
        assert data[8 * BLOCK : 24 * BLOCK] == bytes(16 * BLOCK)
        assert any(data[7 * BLOCK : 8 * BLOCK])
        assert any(data[24 * BLOCK : 25 * BLOCK])

    def test_compare_tells_equal_from_different(self, guest: Guest) -> None:
        guest.sh(f"""
            dd if=/dev/urandom of=/tmp/data bs=4k count=1
            dd if=/tmp/data of={DISK} bs=4k count=1 oflag=direct
        """)
        compare = f"nvme compare {DISK} --start-block=0 --block-count=7 --data-size=4096"
        assert guest.run(f"{compare} --data=/tmp/data").status == 0
        guest.sh("dd if=/dev/zero of=/tmp/other bs=4k count=1")
        assert "Compare Failure" in guest.run(f"{compare} --data=/tmp/other").output

    def test_verify_reads_and_tells_nothing_but_that(self, guest: Guest) -> None:
        assert "Success" in guest.sh(f"nvme verify {DISK} --start-block=0 --block-count=7")
        past = f"nvme verify {DISK} --start-block={BLOCKS} --block-count=0"
        assert "LBA Out of Range" in guest.run(past).output

    def test_copy_copies_its_ranges(self, guest: Guest, daemon: Daemon) -> None:
        fill(guest, 8192, 64)
        # Blocks are 0's based, as they are in the command.
        guest.sh(f"nvme copy {DISK} --sdlba=16384 --slbs=8200,8240 --blocks=7,15")
        source = content(daemon.image, 8192 * BLOCK, 64 * BLOCK)
        copied = content(daemon.image, 16384 * BLOCK, 24 * BLOCK)
        assert copied == source[8 * BLOCK : 16 * BLOCK] + source[48 * BLOCK : 64 * BLOCK]

    def test_uncorrectable_blocks_cannot_be_read_until_they_are_written(self, guest: Guest) -> None:
        guest.sh(f"nvme write-uncor {DISK} --start-block=8192 --block-count=7")
        read = f"nvme read {DISK} --start-block=8192 --block-count=7 --data-size=4096"
        assert re.search("Unrecovered Read", guest.run(read).output)
        fill(guest, 8192, 8)
        assert guest.run(read).status == 0

    def test_a_reservation_keeps_another_host_out(
        self, guest: Guest, daemon: Daemon, shared_rig: Rig
    ) -> None:
        guest.allow("rescanning namespaces|I/O error|reservation conflict|nvme0n1")
        other = shared_rig.directory / "other.sock"
        control(daemon, "controller", "add", "--share", "--socket", other)
        write = f"nvme write {DISK} --start-block=8192 --data-size=4096 --block-count=7"
        octal = "".join(f"\\{byte:03o}" for byte in HOST_ID)
        guest.sh(f"""
            dd if=/dev/urandom of=/tmp/data bs=4k count=1
            printf '{octal}' >/tmp/host
            nvme set-feature {CONTROLLER} --feature-id=0x81 --value=1 --data-len=16 --data=/tmp/host
            nvme resv-register {DISK} --nrkey=0xaa --rrega=0
            nvme resv-acquire {DISK} --crkey=0xaa --rtype=1 --racqa=0
            {write} --data=/tmp/data
        """)
        report = guest.sh(f"nvme resv-report {DISK} --eds --numd=63")
        assert re.search(r"rtype +: 1\b", report), report
        assert re.search(r"regctl +: 1\b", report), report
        assert re.search(r"rkey +: (0x)?aa\b", report), report
        with NvmeHost(other) as driver:
            host = ReservationHost(driver, 0xB0, 0xBB)
            assert host.report().entries[0].holds
            with refused(GenericStatus.RESERVATION_CONFLICT):
                host.queue.write(1, 8192, bytes(512), block_size=512)
            host.register()
            host.preempt(ReservationType.WRITE_EXCLUSIVE, 0xAA, abort=True)
            told = guest.sh(f"nvme resv-notif-log {CONTROLLER}")
            assert "Registration Preempted" in told, told
            assert "Reservation Conflict" in guest.run(f"{write} --data=/tmp/data").output
            host.release(ReservationType.WRITE_EXCLUSIVE)
            host.unregister()
        guest.sh(f"{write} --data=/tmp/data")
        guest.sh(f"nvme resv-register {DISK} --nrkey=0xaa --rrega=0")
        guest.sh(f"nvme resv-release {DISK} --crkey=0xaa --rrela=1")
        assert re.search(r"regctl +: 0\b", guest.sh(f"nvme resv-report {DISK} --eds --numd=63"))
        control(daemon, "controller", "remove", "--force", name=other)

    def test_a_read_past_the_end_fails_and_is_in_the_error_log(self, guest: Guest) -> None:
        past = f"nvme read {DISK} --start-block={BLOCKS} --data-size=512"
        assert "LBA Out of Range" in guest.run(past).output
        newest = guest.sh(f"nvme error-log {CONTROLLER} --log-entries=1")
        assert re.search(rf"lba\s+: {BLOCKS:#x}", newest)
        assert re.search(r"nsid\s+: 0x1\b", newest)

    def test_a_controller_reset_under_load_loses_nothing(self, guest: Guest) -> None:
        guest.allow("resetting controller")
        guest.sh(f"""
            fio --name=load --filename={DISK} --ioengine=libaio --direct=1 --rw=randrw --bs=4k \
                --iodepth=32 --size=32M --loops=3 --verify=crc32c --verify_fatal=1 \
                >/tmp/fio.log 2>&1 &
            for reset in 1 2 3; do sleep 0.3; nvme reset {CONTROLLER}; done
            wait $! || {{ cat /tmp/fio.log; exit 1; }}
        """)

    def test_after_a_subsystem_reset_and_a_controller_reset_the_disk_works(
        self, guest: Guest
    ) -> None:
        guest.allow("resetting controller|controller is down|Device not ready|Disabling device")
        guest.sh(f"nvme set-feature {CONTROLLER} --feature-id=8 --value=0x0102")
        guest.sh(f"nvme subsystem-reset {CONTROLLER}; nvme reset {CONTROLLER}")
        assert feature(guest, 8) == 0
        guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=8M")

    def test_a_namespace_that_comes_is_on_the_changed_list_until_it_was_read(
        self, guest: Guest, daemon: Daemon, shared_rig: Rig
    ) -> None:
        guest.allow("rescanning namespaces|nvme0n2")
        events = feature(guest, 0xB)
        list_changed = f"nvme changed-ns-list-log {CONTROLLER}"
        configure = f"nvme set-feature {CONTROLLER} --feature-id=0xb --value"
        guest.sh(f"{configure}=0")  # or Linux would be told, and read the list first
        control(daemon, "namespace", "add", shared_rig.image(16 * MIB, "second"))
        # nvme-cli retains the event, and with it the list.
        for _ in range(2):
            listed = guest.sh(list_changed)
            assert re.search(r"\b0x2\b", listed), listed
        guest.sh(f"{configure}={events:#x}; nvme ns-rescan {CONTROLLER}")
        guest.wait_for_path("/dev/nvme0n2")
        control(daemon, "namespace", "remove", 2)
        guest.sh("for i in $(seq 300); do test -e /dev/nvme0n2 || exit 0; sleep 0.1; done; exit 1")
        listed = guest.sh(list_changed)  # which Linux has read by now
        assert "0x2" not in listed, listed

    @pytest.mark.parametrize(("code", "number"), [("1h", 1), ("2h", 2)])
    def test_a_self_test_ends_without_an_error_in_its_log(
        self, guest: Guest, code: str, number: int
    ) -> None:
        guest.sh(f"nvme device-self-test {CONTROLLER} --self-test-code={code}")
        done = rf"Operation Result +: 0\b(?s:.)*?Self Test Code +: {number}"
        for _ in range(300):
            said = guest.sh(f"nvme self-test-log {CONTROLLER} --dst-entries=1; sleep 0.2")
            if re.search(r"Current operation +: 0\b", said):
                break
        assert re.search(done, said), said

    @pytest.mark.parametrize(("index", "size"), [(1, 4096), (0, 512)])
    def test_a_format_changes_the_block_size_and_leaves_zeroes(
        self, guest: Guest, daemon: Daemon, index: int, size: int
    ) -> None:
        guest.allow("rescanning namespaces|nvme0n1")
        fill(guest, 8192, 64)
        guest.sh(f"nvme format {DISK} --lbaf={index} --force --reset")
        assert guest.sh(f"blockdev --getss {DISK}") == f"{size}\n"
        assert content(daemon.image, 8192 * BLOCK, 64 * BLOCK) == bytes(64 * BLOCK)
        guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=4M")

    @pytest.mark.parametrize(
        "action", ["start-block-erase", "start-overwrite --no-dealloc --ovrpat=0x5a5a5a5a"]
    )
    def test_a_sanitize_leaves_nothing_of_what_was_written(
        self, guest: Guest, daemon: Daemon, action: str
    ) -> None:
        fill(guest, 8192, 64)
        guest.sh(f"nvme sanitize {CONTROLLER} --sanact={action}")
        for _ in range(300):
            said = guest.sh(f"nvme sanitize-log {CONTROLLER}; sleep 0.2")
            if re.search(r"\(SPROG\) *: +65535", said):
                break
        status = re.search(r"\(SSTAT\) *: +(\w+)", said)
        assert status, said
        assert int(status[1], 0) & SANITIZE_STATE == SANITIZE_COMPLETED, said
        left = content(daemon.image, 8192 * BLOCK, 64 * BLOCK)
        assert set(left) == ({0x5A} if "ovrpat" in action else {0})
        guest.fio(DISK, "--rw=randrw --bs=4k --iodepth=16 --size=4M")
