"""Runs checks against a controller, one after the other, and says how each ended."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.conformance.check import CheckFailed, NotApplicable
from nvme_mdev.conformance.subject import Subject
from nvme_mdev.host.errors import AttachError, HostError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from nvme_mdev.conformance.check import Check


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
) -> Iterator[Result]:
    """Run checks against the controller behind the socket at ``path``; a result as each ends.

    ``nsid`` None takes the first active namespace. Without ``destructive`` nothing is written to
    it. AttachError: there is no controller behind the socket, or none any more.
    """
    subject = Subject(path, nsid=nsid)
    for check in checks:
        if check.destructive and not destructive:
            yield Result(check, Outcome.NOT_RUN, "writes to the namespace")
            continue
        start = time.monotonic()
        try:
            outcome, why = _run_one(check, subject)
        finally:
            subject.detach()
        yield Result(check, outcome, why, time.monotonic() - start)


def _run_one(check: Check, subject: Subject) -> tuple[Outcome, str]:
    subject.attach()
    try:
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
    except HostError as error:
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    return Outcome.PASSED, ""
