"""Fixtures of the VM tests: the lab, and rigs of daemons and guests (see README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import Lab, LabUnavailableError, Rig, prepare

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HERE = Path(__file__).parent
TIMEOUT = 600  # s; the first test may have to prepare the lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder boots guests."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what daemons and guests said when a test fails."""
    report = yield
    if report.failed and HERE in item.path.parents:
        report.sections += [text for rig in Rig.live for text in rig.logs() if text[1]]
    return report


@pytest.fixture(scope="session")
def lab() -> Lab:
    try:
        return prepare()
    except LabUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def rig(lab: Lab) -> Iterator[Rig]:
    with Rig(lab) as rig:
        yield rig


@pytest.fixture(scope="class")
def shared_rig(lab: Lab) -> Iterator[Rig]:
    """A rig for all tests of a class, where one boot serves many of them."""
    with Rig(lab) as rig:
        yield rig
