"""Namespaces with any NSID: on the command line, on controllers that share, in the next process."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.deaths import kill, killed_again_and_again
from tests.controller.reservation_host import Entry, ReservationHost
from tests.controller.statuses import refused

from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.service import api
from nvme_mdev.service.client import ControlClient
from nvme_mdev.spec.nvme_commands import MAX_NSID, SQE, AdminOpcode
from nvme_mdev.spec.nvme_features import Fid, WriteProtectionState
from nvme_mdev.spec.nvme_reservations import ReservationNotice, ReservationType
from nvme_mdev.spec.nvme_status import GenericStatus, MediaStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Serve

HIGH = 4_000_000_000
ANY = ("--max-nsid", MAX_NSID)
KEY_A, KEY_B = 0xAAAA, 0xBBBB


# -- on the command line -----------------------------------------------------------------------


def test_a_namespace_has_any_nsid_up_to_the_highest_or_the_lowest_that_is_free(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "a", "--max-nsid", HIGH)
    assert ask("show", "a")["max_nsid"] == HIGH
    with NvmeHost(tmp_path / "a") as host:
        assert host.identify_controller().nn == HIGH
        added = ask("namespace", "add", "a", tmp_path / "a.img", "--size", "1M", "--nsid", HIGH)
        assert added["nsid"] == HIGH
        assert ask("namespace", "add", "a", "null:1M")["nsid"] == 2
        assert host.active_namespaces() == [1, 2, HIGH]
        host.create_queue_pair().write(HIGH, 1, b"x" * 512, block_size=512)
        assert ask("namespace", "resize", "a", HIGH, "2M")["size"] == 2 << 20
        assert ask("namespace", "set", "a", HIGH, "iops=5")["limits"]
        data = ask("stats", "a")["namespaces"][-1]
        assert (data["nsid"], data["data"]["write_commands"]) == (HIGH, 1)
        ask("namespace", "remove", "a", HIGH)
        assert host.active_namespaces() == [1, 2]
    assert (tmp_path / "a.img").read_bytes()[512:1024] == b"x" * 512
    assert daemon.stop().status == 0


def test_targets_are_namespaces_above_256_where_the_highest_nsid_allows_it(
    serve: Serve, tmp_path: Path
) -> None:
    targets = [f"null:{number}M" for number in range(1, 301)]
    daemon = serve(*targets, "--socket", tmp_path / "a", "--max-nsid", 300)
    with NvmeHost(tmp_path / "a") as host:
        assert host.active_namespaces() == list(range(1, 301))
        assert host.namespace(300).size == 300 << 20
        queue = host.create_queue_pair()
        queue.read(300, (300 << 20) // 512 - 1, 1, block_size=512)
        with refused(GenericStatus.LBA_OUT_OF_RANGE):
            queue.read(299, (300 << 20) // 512 - 1, 1, block_size=512)
    assert daemon.stop().status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nsid", "0"], "0 is not in the range"),
        (["--nsid", "4"], "of a end at 3: give a lower one, or serve it with --max-nsid 4\n"),
        (["--nsid", MAX_NSID + 1], "namespace 4294967295: give an NSID from 1 to 3"),
        (["--nsid", "2"], "a has a namespace 2 already"),
        ([], "a has 3 namespaces, which is the most: remove one"),
    ],
)
def test_an_nsid_that_cannot_be_had_is_said_in_a_line(
    serve: Serve,
    tmp_path: Path,
    ask: Callable[..., Any],
    refuse: Callable[..., str],
    *,
    arguments: list[object],
    message: str,
) -> None:
    serve(*["null:1M"] * 3, "--socket", tmp_path / "a", "--max-nsid", 3)
    assert message in refuse("namespace", "add", "a", "null:1M", *arguments)
    assert len(ask("namespace", "list", "a")["namespaces"]) == 3


# -- controllers that share --------------------------------------------------------------------


def test_controllers_that_share_have_one_highest_nsid(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any], refuse: Callable[..., str]
) -> None:
    serve("null:1M", "--socket", tmp_path / "a", "--socket", tmp_path / "b", "--max-nsid", HIGH)
    share = ("controller", "add", "a", "--share", "--socket", tmp_path / "c")
    refusal = f"the NSIDs of a end at {HIGH}, and so do those of all that share with it"
    assert refusal in refuse(*share, "--max-nsid", 256)
    assert ask(*share)["max_nsid"] == HIGH
    ask("namespace", "add", "b", "memory:1M", "--nsid", HIGH, "--shared")
    for name in "abc":
        with NvmeHost(tmp_path / name) as host:
            assert host.identify_controller().nn == HIGH
            assert host.active_namespaces() == [1, HIGH]
    apart = ("controller", "add", "a", "null:1M", "--socket", tmp_path / "d")
    assert ask(*apart, "--max-nsid", 9)["max_nsid"] == 9


def test_a_controller_that_goes_gives_the_places_of_its_namespaces_back(
    serve: Serve, tmp_path: Path
) -> None:
    """There are 256 in the NVM subsystem."""
    daemon = serve("null:1M", "--socket", tmp_path / "a", "--socket", tmp_path / "b", *ANY)

    def call(method: api.Method[Any, Any], **params: Any) -> Any:
        with ControlClient(tmp_path / "a.ctl") as client:
            return client.call(method, method.params(**params))

    def fill(name: str, first: int) -> None:
        for nsid in range(first, first + 256):
            call(api.NAMESPACE_ADD, controller=name, target="null:1M", nsid=nsid)

    fill("b", 2000)
    with pytest.raises(Exception, match="256 namespaces above 256, which is the most"):
        call(api.NAMESPACE_ADD, controller="a", target="null:1M", nsid=1000)
    call(api.CONTROLLER_REMOVE, controller="b")
    fill("a", HIGH)
    kill(daemon)
    found = call(api.NAMESPACE_LIST, controller="a").namespaces
    assert [one.nsid for one in found] == [1, *range(HIGH, HIGH + 256)]


def test_places_that_a_dead_process_has_left_to_nobody_are_given_back_by_the_next(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "a", *ANY)
    for fd in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        if "nvme-mdev-subsystem" in str(fd.readlink()):
            with fd.open("r+b") as shared:
                shared.seek(2048)
                shared.write(struct.pack("<256Q", *range(1000, 1256)))
    kill(daemon)
    assert ask("namespace", "add", "a", "memory:1M", "--nsid", HIGH)["nsid"] == HIGH
    assert daemon.stop().status == 0


# -- killed ------------------------------------------------------------------------------------


def test_verified_io_to_a_high_nsid_goes_on_while_the_serving_process_is_killed(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "a", *ANY)
    ask("namespace", "add", "a", tmp_path / "a.img", "--size", "64M", "--nsid", HIGH)
    bench = [sys.executable, "-m", "nvme_mdev.cli.main", "bench", str(tmp_path / "a")]
    bench += ["--rw", "randrw", "--bs", "4k", "--qd", "32", "--verify", "--nsid", str(HIGH)]
    with (
        subprocess.Popen(
            [*bench, "--runtime", "10", "--interrupts"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
        killed_again_and_again(daemon, 5) as enough,
    ):
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert enough.is_set()
    assert daemon.stop().status == 0


def test_what_is_known_of_a_namespace_is_known_to_the_next_process(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    options = ("--allow-erase", *ANY)
    daemon = serve("null:1M", "--socket", tmp_path / "a", *options)
    for nsid in (300, HIGH, 400):
        ask("namespace", "add", "a", "memory:4M", "--nsid", nsid)
    # The other places are not those that they would get if they came again.
    ask("namespace", "remove", "a", 300)
    with NvmeHost(tmp_path / "a") as host:
        host.admin(SQE(opc=AdminOpcode.FORMAT_NVM, nsid=HIGH, cdw10=1))
        host.set_features(Fid.ERROR_RECOVERY, 7, nsid=HIGH)
        user = ReservationHost(host, 0xA0, KEY_A)
        user.register(HIGH)
        user.queue.write_uncorrectable(HIGH, 3, 1)
        wanted = WriteProtectionState.PROTECTED
        host.set_features(Fid.NAMESPACE_WRITE_PROTECTION, wanted, nsid=400)
        for _ in range(2):
            kill(daemon)
            assert host.active_namespaces() == [1, 400, HIGH]
            assert [host.namespace(nsid).block_size for nsid in (400, HIGH)] == [512, 4096]
            for fid, values in (
                (Fid.ERROR_RECOVERY, [0, 7]),
                (Fid.NAMESPACE_WRITE_PROTECTION, [wanted, 0]),
            ):
                assert [host.get_features(fid, nsid=nsid) for nsid in (400, HIGH)] == values
            assert user.report(HIGH).entries == [Entry(1, False, 0xA0, KEY_A)]
            assert user.report(400).entries == []
            with refused(MediaStatus.UNRECOVERED_READ):
                user.queue.read(HIGH, 3, 1, block_size=4096)
            with refused(GenericStatus.NAMESPACE_WRITE_PROTECTED):
                user.queue.write(400, 0, bytes(512), block_size=512)
    assert daemon.stop().status == 0


def test_a_notice_of_a_high_namespace_is_read_from_the_next_process(
    serve: Serve, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "a", "--socket", tmp_path / "b", *ANY)
    ask("namespace", "add", "a", "memory:1M", "--nsid", HIGH, "--shared")
    with NvmeHost(tmp_path / "a") as first, NvmeHost(tmp_path / "b") as second:
        a, b = ReservationHost(first, 0xA0, KEY_A), ReservationHost(second, 0xB0, KEY_B)
        for host in (a, b):
            host.register(HIGH)
        a.preempt(ReservationType.WRITE_EXCLUSIVE, KEY_B, HIGH)
        kill(daemon)
        assert b.notices() == [(ReservationNotice.REGISTRATION_PREEMPTED, HIGH)]
        assert a.report(HIGH).entries == b.report(HIGH).entries
    assert daemon.stop().status == 0
