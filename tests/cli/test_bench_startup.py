"""`nvme-mdev bench startup`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import RunCommand


def test_json_has_every_step_of_every_daemon_and_nothing_else(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "startup", "--rounds", "2", "--json")
    assert (result.status, result.err) == (0, "")
    steps = json.loads(result.out)["ns"]
    assert list(steps) == ["ready", "attached", "enabled", "queue", "first"]
    for step in steps.values():
        assert len(step["values"]) == 2
        assert 0 < step["min"] <= step["median"] <= step["max"]


def test_the_table_names_the_steps(nvme_mdev: RunCommand) -> None:
    result = nvme_mdev("bench", "startup", "--rounds", "1")
    assert result.status == 0
    for words in ("median", "until ready", "client connected", "CC.EN", "queue pair"):
        assert words in result.out
