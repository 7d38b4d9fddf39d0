"""The suite itself: its table, what it says of a controller that does not conform."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.conformance.check import Check, CheckFailed, NotApplicable
from nvme_mdev.conformance.checks import all_checks
from nvme_mdev.conformance.runner import Outcome, run
from nvme_mdev.host import commands
from nvme_mdev.host.errors import AttachError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.conformance.subject import Subject

SECTION = re.compile(r"(Base|NVM|PCIe|PCI) ([A-Z]|\d+)(\.\d+)*")


def _check(function: Callable[[Subject], None], **options: object) -> Check:
    return Check("test", function.__name__, "It holds", ("Base 1",), function, **options)  # type: ignore[arg-type]


@pytest.fixture
def socket(controller: Callable[..., Path]) -> Path:
    return controller("null:64M", "--block-size", "512")


def test_every_check_has_a_name_of_its_own() -> None:
    names = [check.id for check in all_checks()]
    assert len(names) == len(set(names))
    assert len({check.sentence for check in all_checks()}) == len(names)


def test_every_check_says_a_sentence_and_its_sections() -> None:
    for check in all_checks():
        assert check.sentence, check.id
        assert not check.sentence[0].islower(), check.id
        assert check.sections, check.id
        assert all(SECTION.fullmatch(section) for section in check.sections), check.id


def test_what_does_not_hold_has_failed_and_says_why(socket: Path) -> None:
    def wrong(_: Subject) -> None:
        raise CheckFailed("it is green")

    (result,) = run([_check(wrong)], socket)
    assert (result.outcome, result.why) == (Outcome.FAILED, "it is green")


def test_a_command_that_fails_has_failed(socket: Path) -> None:
    def wrong(subject: Subject) -> None:
        subject.host.admin(commands.identify(0xFF))

    (result,) = run([_check(wrong)], socket)
    assert result.outcome is Outcome.FAILED
    assert "INVALID_FIELD" in result.why


def test_what_does_not_apply_has_not_passed(socket: Path) -> None:
    def never(subject: Subject) -> None:
        raise AssertionError

    def not_here(_: Subject) -> None:
        raise NotApplicable("nothing is here")

    needy = _check(never, needs=(lambda subject: "it is Tuesday",))
    results = list(run([needy, _check(not_here)], socket))
    assert [result.outcome for result in results] == 2 * [Outcome.NOT_APPLICABLE]
    assert [result.why for result in results] == ["it is Tuesday", "nothing is here"]


def test_what_writes_is_not_run_unasked(socket: Path) -> None:
    def never(subject: Subject) -> None:
        raise AssertionError

    (result,) = run([_check(never, destructive=True)], socket)
    assert result.outcome is Outcome.NOT_RUN


def test_the_next_check_finds_a_controller_that_works(socket: Path) -> None:
    def broken(subject: Subject) -> None:
        subject.queue.start(commands.flush(1))
        subject.host.shutdown()
        raise CheckFailed("whatever")

    def works(subject: Subject) -> None:
        subject.queue.flush(subject.nsid)

    results = list(run([_check(broken), _check(works)], socket))
    assert [result.outcome for result in results] == [Outcome.FAILED, Outcome.PASSED]


def test_without_a_controller_there_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="no such socket"):
        list(run(all_checks()[:1], tmp_path / "nothing"))
