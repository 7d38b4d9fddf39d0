"""A command is late by the time that the daemon ran, not by that in which it stood still."""

from __future__ import annotations

import pytest

from nvme_mdev.controller.overdue import STOOD_STILL_S, OverdueCommands

TIMEOUT_MS = 10_000


class Commands:
    """A queue table with one command that never ends, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.begun = self.now
        self.cancelled_after: float | None = None
        self.standstills = 0

    def on_standstill(self) -> None:
        self.standstills += 1

    def inflight(self) -> int:
        return int(self.cancelled_after is None)

    def cancel_expired(self, timeout_ms: int) -> list[tuple[int, int]]:
        if (self.now - self.begun) * 1000 <= timeout_ms:
            return []
        self.cancelled_after = self.now - self.begun
        return [(1, 7)]


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def overdue(commands: Commands) -> OverdueCommands:
    return OverdueCommands(commands, commands.on_standstill, lambda: commands.now)


def run(commands: Commands, overdue: OverdueCommands, seconds: int) -> None:
    for _ in range(seconds):
        commands.now += 1
        overdue.cancel(TIMEOUT_MS)


def test_what_takes_too_long_is_cancelled_once_and_named(
    commands: Commands, overdue: OverdueCommands, caplog: pytest.LogCaptureFixture
) -> None:
    run(commands, overdue, 30)
    assert commands.cancelled_after == TIMEOUT_MS / 1000 + 1
    assert [record.getMessage() for record in caplog.records] == [
        "SQ 1, CID 7: no answer in 10000 ms, cancelled"
    ]


def test_a_pause_of_the_whole_process_is_not_the_commands(
    commands: Commands, overdue: OverdueCommands
) -> None:
    run(commands, overdue, 2)
    commands.now += 3600
    run(commands, overdue, 9)
    assert commands.cancelled_after is None
    run(commands, overdue, 2)
    assert commands.cancelled_after == 3600 + 13
    assert commands.standstills == 1


def test_a_look_that_comes_a_little_late_changes_nothing(
    commands: Commands, overdue: OverdueCommands
) -> None:
    run(commands, overdue, 6)
    commands.now += STOOD_STILL_S - 1
    run(commands, overdue, 4)
    assert commands.cancelled_after == 6 + STOOD_STILL_S - 1 + 3
    assert commands.standstills == 0
