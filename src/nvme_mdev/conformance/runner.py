"""Runs checks against a controller, one after the other, and says how each ended."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.conformance.check import CheckFailed, NotApplicable
from nvme_mdev.conformance.subject import Subject
from nvme_mdev.host.errors import AttachError, HostError
from nvme_mdev.vfio_user.framing import ProtocolError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from nvme_mdev.conformance.check import Check


_PATIENCE = 20.0
"""Seconds that a server has after a check has failed until the next one gives up."""
_RETRY = 0.2


class Outcome(enum.Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    """The controller does not advertise what the sentence is about."""
    NOT_RUN = "not run"
    """Destructive, and nobody has allowed that."""


@dataclass(frozen=True, slots=True)
class Result:
    """A check's outcome."""

    check: Check
    outcome: Outcome
    why: str = ""
    """What the controller did instead, or why the check does not apply."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """The result as plain values."""
        return {
            "check": self.check.id,
            "sentence": self.check.sentence,
            "sections": list(self.check.sections),
            "destructive": self.check.destructive,
            "outcome": self.outcome.value,
            "why": self.why,
            "seconds": round(self.seconds, 3),
        }


def run(
    checks: Iterable[Check],
    path: str | os.PathLike[str],
    *,
    nsid: int | None = None,
    destructive: bool = False,
    share_memory: bool = True,
) -> Iterator[Result]:
    """Run checks against the controller behind the socket at ``path``; a result as each ends.

    ``nsid`` None takes the first active namespace. Without ``destructive`` nothing is written to
    it. ``share_memory`` False: the controller reaches our memory with messages only. AttachError:
    there is no controller behind the socket, or none any more.
    """
    subject = Subject(path, nsid=nsid, share_memory=share_memory)
    last: Result | None = None
    for check in checks:
        if check.destructive and not destructive:
            yield Result(check, Outcome.NOT_RUN, "writes to the namespace")
            continue
        start = time.monotonic()
        try:
            failed = last is not None and last.outcome is Outcome.FAILED
            outcome, why = _run_one(check, subject, _PATIENCE if failed else 0.0)
        finally:
            subject.detach()
        last = Result(check, outcome, why, time.monotonic() - start)
        yield last


def _attach(subject: Subject, patience: float) -> None:
    """Attach; a server whose controller broke may need up to ``patience`` seconds to make anew."""
    deadline = time.monotonic() + patience
    while True:
        try:
            subject.attach()
        except (HostError, OSError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY)
        else:
            return


def _run_one(check: Check, subject: Subject, patience: float) -> tuple[Outcome, str]:
    try:
        _attach(subject, patience)
        for need in check.needs:
            reason = need(subject)
            if reason is not None:
                return Outcome.NOT_APPLICABLE, reason
        check.function(subject)
    except NotApplicable as reason:
        return Outcome.NOT_APPLICABLE, str(reason)
    except CheckFailed as failure:
        return Outcome.FAILED, str(failure)
    except AttachError:
        raise
    except (HostError, OSError, ProtocolError) as error:
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    return Outcome.PASSED, ""
