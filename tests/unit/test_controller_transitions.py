"""The life cycle's table: every state can be left, nothing ends in a dead end."""

from __future__ import annotations

import pytest

from nvme_mdev.controller.transitions import TRANSITIONS, Action, Event, State

WAITING = {State.RESETTING, State.RESTARTING, State.SHUTTING_DOWN}


@pytest.mark.parametrize("state", State)
def test_a_reset_leads_every_state_to_disabled(state: State) -> None:
    after, _ = TRANSITIONS.get((state, Event.RESET), (state, Action.NONE))
    if after is State.RESETTING:
        after, _ = TRANSITIONS[after, Event.DRAINED]
    assert after is State.DISABLED


@pytest.mark.parametrize("state", WAITING)
def test_whoever_waits_goes_on_when_drained(state: State) -> None:
    assert (state, Event.DRAINED) in TRANSITIONS


@pytest.mark.parametrize("state", set(State) - WAITING)
def test_drained_means_nothing_to_whoever_does_not_wait(state: State) -> None:
    assert (state, Event.DRAINED) not in TRANSITIONS


def test_queues_are_cleared_before_they_are_started_again() -> None:
    for (before, _), (_, action) in TRANSITIONS.items():
        if action is Action.START:
            assert before is State.DISABLED


@pytest.mark.parametrize("state", WAITING)
def test_a_state_that_waits_is_entered_by_what_it_waits_for(state: State) -> None:
    actions = {
        action
        for (before, _), (after, action) in TRANSITIONS.items()
        if after is state and before not in WAITING
    }
    assert actions <= {Action.STOP, Action.QUIESCE}


def test_every_state_is_reached() -> None:
    assert {after for after, _ in TRANSITIONS.values()} == set(State)
