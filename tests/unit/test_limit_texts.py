"""Limits as people write them."""

from __future__ import annotations

import pytest

from nvme_mdev.datapath.limits import MAX_BURST_S, Limit
from nvme_mdev.errors import UserError
from nvme_mdev.service.limits import (
    change_limits,
    describe_limit,
    limit_texts,
    parse_limit,
    parse_limits,
    split_limits,
)
from nvme_mdev.service.targets import Access, Target


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("iops", "1000", Limit(1000, 100)),
        ("iops", "1000:5000", Limit(1000, 5000)),
        ("read-iops", "3", Limit(3, 1)),
        ("write_iops", "3:4", Limit(3, 4)),
        ("bps", "100M", Limit(100 << 20, 10 << 20)),
        ("write-bps", "512:4K", Limit(512, 4096)),
        ("iops", "off", None),
        ("bps", "OFF", None),
    ],
)
def test_a_limit_is_a_rate_and_perhaps_a_burst(name: str, text: str, limit: Limit | None) -> None:
    assert parse_limit(name, text) == limit


def test_a_burst_is_no_more_than_a_day_gives() -> None:
    assert parse_limit("iops", f"2:{2 * MAX_BURST_S}") == Limit(2, 2 * MAX_BURST_S)
    with pytest.raises(UserError, match="in a day"):
        parse_limit("iops", f"2:{2 * MAX_BURST_S + 1}")


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1.5", "ten", "1000:", "1000:0", ":5", "1:2:3", "9" * 20, "1K"],
)
def test_a_number_of_commands_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="iops="):
        parse_limit("iops", text)


def test_an_unknown_limit_is_refused_and_told_what_there_is() -> None:
    with pytest.raises(UserError, match="read-iops, write-iops"):
        parse_limit("speed", "1")
    with pytest.raises(UserError, match="twice"):
        split_limits(["iops=1", "iops=2"])
    with pytest.raises(UserError, match="read-iops is given twice"):
        split_limits(["read-iops=1", "read_iops=2"])
    with pytest.raises(UserError, match="read-iops is given twice"):
        parse_limits({"read-iops": 1, "read_iops": None})
    with pytest.raises(UserError, match="NAME=RATE"):
        split_limits(["iops"])


def test_a_limit_of_a_target_comes_before_that_of_all() -> None:
    access = Access(limits=split_limits(["iops=1000", "read-bps=1M", "bps=2M"]))
    target = Target.parse("null:1G,iops=5:6,bps=off")
    assert access.limits_of(target) == {
        "iops": Limit(5, 6),
        "read_bps": Limit(1 << 20, (1 << 20) // 10),
    }
    assert Access().limits_of(Target.parse("null:1G")) == {}


def test_a_wrong_limit_of_a_target_names_the_target() -> None:
    with pytest.raises(UserError, match=r"^null:1G: iops=x"):
        Target.parse("null:1G,iops=x")


def test_what_is_written_down_is_read_again() -> None:
    limits = {"iops": Limit(7, 9), "write_bps": Limit(4096, 1 << 20)}
    assert change_limits({}, parse_limits(dict(limit_texts(limits)))) == limits


def test_changes_leave_what_they_do_not_name() -> None:
    before = {"iops": Limit(1, 1), "bps": Limit(2, 2)}
    changes = parse_limits({"iops": None, "read_bps": 4096})
    assert change_limits(before, changes) == {"bps": Limit(2, 2), "read_bps": Limit(4096, 409)}


def test_limits_are_shown_with_units() -> None:
    assert describe_limit("read_iops", 1000, 50) == "read-iops 1000, burst 50"
    assert describe_limit("bps", 1 << 20, 1024) == "bps 1 MiB/s, burst 1 KiB"
