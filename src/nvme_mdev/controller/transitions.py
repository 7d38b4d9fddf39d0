"""The controller's life cycle as data: which event leads from which state where.

NVMe Base Specification 2.1, sections 3.5 (initialization), 3.6 (shutdown), 3.7 (resets).

The guest moves the controller with CC.EN (ENABLE, DISABLE) and CC.SHN (SHUTDOWN). Everything that
takes the registers back to their defaults is RESET: NSSR, PCI function-level reset, a client that
resets the device or goes away. FAIL is ours: CSTS.CFS. DRAINED follows once what the table's action
waits for has happened; with nothing in flight that is within the same register write, so that a
guest never waits for an idle controller.

An event that the table does not have for a state changes nothing: SHUTDOWN during a shutdown, say.
:data:`TRANSITIONS` is what runs, what the tests walk, and what ``docs/`` draws.
"""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """Where the controller is; in shared memory, so the numbers stay."""

    DISABLED = 0
    """CC.EN = 0, CSTS.RDY = 0: no queues."""
    READY = 1
    """CC.EN = 1, CSTS.RDY = 1: commands are executed."""
    RESETTING = 2
    """Reset while commands are in flight; CSTS.RDY falls when the last of them is done."""
    RESTARTING = 3
    """As RESETTING, and CC.EN is 1 again: to be enabled as soon as that is done."""
    SHUTTING_DOWN = 4
    """CSTS.SHST = 01b: commands in flight are completed and caches flushed."""
    SHUT_DOWN = 5
    """CSTS.SHST = 10b: nothing is lost when power goes."""
    FAILED = 6
    """CSTS.CFS = 1: nothing but a reset helps."""
    ENDING = 7
    """As RESETTING, and CC.SHN is set: to be shut down as soon as that is done, enabled or not."""


class Event(enum.Enum):
    """What moves the controller."""

    ENABLE = enum.auto()
    """CC.EN from 0 to 1."""
    DISABLE = enum.auto()
    """CC.EN from 1 to 0: a Controller Reset; AQA, ASQ and ACQ stay."""
    SHUTDOWN = enum.auto()
    """CC.SHN from 00b to something, normal or abrupt (we do the same for both)."""
    RESET = enum.auto()
    """Any other Controller Level Reset; the registers go back to their defaults."""
    DRAINED = enum.auto()
    """What STOP or QUIESCE waits for has happened."""
    CLEARED = enum.auto()
    """CLEAR_FIRST is done."""
    FAIL = enum.auto()
    """The configuration cannot be enabled, or the device itself is broken."""


class Action(enum.Enum):
    """What is done on the way."""

    NONE = enum.auto()
    START = enum.auto()
    """Check the configuration, bind the admin queues, set CSTS.RDY; or FAIL."""
    STOP = enum.auto()
    """Stop all queues; DRAINED when nothing is in flight any more."""
    CLEAR = enum.auto()
    """Forget all queues, reset what a Controller Level Reset resets, clear CSTS."""
    RESTART = enum.auto()
    """CLEAR, then START."""
    CLEAR_FIRST = enum.auto()
    """CLEAR, then CLEARED: a process that is killed in between does it again."""
    QUIESCE = enum.auto()
    """Take no new commands, complete and flush; DRAINED when all of it is done."""
    FINISH_SHUTDOWN = enum.auto()
    """Stop all queues, CSTS.SHST = 10b."""
    BREAK = enum.auto()
    """Stop all queues, CSTS.CFS = 1."""


_S, _E, _A = State, Event, Action

TRANSITIONS: dict[tuple[State, Event], tuple[State, Action]] = {
    (_S.DISABLED, _E.ENABLE): (_S.READY, _A.START),
    (_S.DISABLED, _E.SHUTDOWN): (_S.SHUTTING_DOWN, _A.QUIESCE),
    (_S.DISABLED, _E.RESET): (_S.DISABLED, _A.CLEAR),
    (_S.DISABLED, _E.FAIL): (_S.FAILED, _A.BREAK),
    (_S.READY, _E.DISABLE): (_S.RESETTING, _A.STOP),
    (_S.READY, _E.SHUTDOWN): (_S.SHUTTING_DOWN, _A.QUIESCE),
    (_S.READY, _E.RESET): (_S.RESETTING, _A.STOP),
    (_S.READY, _E.FAIL): (_S.FAILED, _A.BREAK),
    (_S.RESETTING, _E.ENABLE): (_S.RESTARTING, _A.NONE),
    (_S.RESETTING, _E.SHUTDOWN): (_S.ENDING, _A.NONE),
    (_S.RESETTING, _E.DRAINED): (_S.DISABLED, _A.CLEAR),
    (_S.RESTARTING, _E.DISABLE): (_S.RESETTING, _A.NONE),
    (_S.RESTARTING, _E.SHUTDOWN): (_S.ENDING, _A.NONE),
    (_S.RESTARTING, _E.RESET): (_S.RESETTING, _A.NONE),
    (_S.RESTARTING, _E.DRAINED): (_S.READY, _A.RESTART),
    (_S.ENDING, _E.ENABLE): (_S.RESTARTING, _A.NONE),
    (_S.ENDING, _E.DISABLE): (_S.RESETTING, _A.NONE),
    (_S.ENDING, _E.RESET): (_S.RESETTING, _A.NONE),
    (_S.ENDING, _E.DRAINED): (_S.ENDING, _A.CLEAR_FIRST),
    (_S.ENDING, _E.CLEARED): (_S.SHUTTING_DOWN, _A.QUIESCE),
    (_S.SHUTTING_DOWN, _E.DRAINED): (_S.SHUT_DOWN, _A.FINISH_SHUTDOWN),
    (_S.SHUTTING_DOWN, _E.ENABLE): (_S.RESTARTING, _A.STOP),
    (_S.SHUTTING_DOWN, _E.DISABLE): (_S.RESETTING, _A.STOP),
    (_S.SHUTTING_DOWN, _E.RESET): (_S.RESETTING, _A.STOP),
    (_S.SHUTTING_DOWN, _E.FAIL): (_S.FAILED, _A.BREAK),
    (_S.SHUT_DOWN, _E.ENABLE): (_S.RESTARTING, _A.STOP),
    (_S.SHUT_DOWN, _E.DISABLE): (_S.RESETTING, _A.STOP),
    (_S.SHUT_DOWN, _E.RESET): (_S.RESETTING, _A.STOP),
    (_S.FAILED, _E.ENABLE): (_S.RESTARTING, _A.STOP),
    (_S.FAILED, _E.DISABLE): (_S.RESETTING, _A.STOP),
    (_S.FAILED, _E.SHUTDOWN): (_S.SHUTTING_DOWN, _A.QUIESCE),
    (_S.FAILED, _E.RESET): (_S.RESETTING, _A.STOP),
}
