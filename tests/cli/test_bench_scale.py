"""``nvme-mdev bench scale``, with few controllers for a short time: what it tells, not how much."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import RunCommand

ARGUMENTS = ("bench", "scale", "--controllers", "3,1", "--rounds", "2", "--runtime", "0.02")


def test_it_tells_of_every_number_of_controllers(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev(*ARGUMENTS, "--qd", "4", "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert [one["controllers"] for one in found["controllers"]] == [1, 3]
    one, three = found["controllers"]
    for row in (one, three):
        assert all(value > 0 for value in row["iops"]["values"])
        assert all(value > 0 for value in row["one_busy_iops"]["values"])
        assert len(row["iops"]["values"]) == 2
    assert one["iops_to_one"]["values"] == [1.0, 1.0]
    assert one["variation_percent"]["values"] == [0.0, 0.0]
    assert all(values["min"] > 0 for values in found["light_p99_ns"].values())
    assert len(found["light_p99_ns"]) == 2
    assert found["light_controllers"] == 3
    spare = len(os.sched_getaffinity(0)) > 2
    assert found["light_neighbour"] == ("own thread" if spare else "same thread")


def test_it_prints_tables(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev(*ARGUMENTS)
    assert (result.status, result.err) == (0, "")
    assert "variation" in result.out
    assert "beside one at depth 128" in result.out
    assert "depth 1: one of 3 controllers; " in result.out


@pytest.mark.parametrize("spare", [None, min(os.sched_getaffinity(0))])
def test_a_heavy_neighbour_is_driven_from_the_same_thread_or_one_of_its_own(
    nvme_mdev: RunCommand, monkeypatch: pytest.MonkeyPatch, spare: int | None
) -> None:
    # With two processors it is not spare, but the threads are the same.
    monkeypatch.setattr("nvme_mdev.bench.scale.spare_cpu", lambda _host, _iothread: spare)
    result = nvme_mdev(*ARGUMENTS, "--json")
    assert (result.status, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["light_neighbour"] == ("same thread" if spare is None else "own thread")
    assert all(len(values["values"]) == 2 for values in found["light_p99_ns"].values())


def test_a_wrong_number_of_controllers_is_refused(refuse: Callable[..., str]) -> None:
    for wrong in ("0", "1,x", "257", ""):
        assert "--controllers" in refuse("bench", "scale", "--controllers", wrong)
