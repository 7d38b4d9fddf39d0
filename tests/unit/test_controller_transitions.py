"""The life cycle's table: every state can be left, nothing ends in a dead end."""

from __future__ import annotations

import pytest

from nvme_mdev.controller.transitions import TRANSITIONS, Action, Event, State

WAITING = {State.RESETTING, State.RESTARTING, State.SHUTTING_DOWN, State.ENDING}


@pytest.mark.parametrize("state", State)
def test_a_reset_leads_every_state_to_disabled(state: State) -> None:
    after, _ = TRANSITIONS.get((state, Event.RESET), (state, Action.NONE))
    if after is State.RESETTING:
        after, _ = TRANSITIONS[after, Event.DRAINED]
    assert after is State.DISABLED


@pytest.mark.parametrize("state", set(State) - {State.SHUT_DOWN})
def test_a_shutdown_leads_every_state_to_shut_down(state: State) -> None:
    after, _ = TRANSITIONS.get((state, Event.SHUTDOWN), (state, Action.NONE))
    for event in (Event.DRAINED, Event.CLEARED, Event.DRAINED):
        after, _ = TRANSITIONS.get((after, event), (after, Action.NONE))
    assert after is State.SHUT_DOWN


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("last", [Event.ENABLE, Event.DISABLE, Event.RESET])
def test_a_shutdown_before_a_reset_changes_nothing_after_it(state: State, last: Event) -> None:
    """With nothing in flight RESTARTING is READY at once, and RESETTING is DISABLED."""
    without, _ = TRANSITIONS.get((state, last), (state, Action.NONE))
    with_it, _ = TRANSITIONS.get((state, Event.SHUTDOWN), (state, Action.NONE))
    if (state, last) in TRANSITIONS and (with_it, last) in TRANSITIONS:
        after, _ = TRANSITIONS[with_it, last]
        quiet = {State.READY: State.RESTARTING, State.DISABLED: State.RESETTING}
        assert quiet.get(after, after) is quiet.get(without, without)


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
