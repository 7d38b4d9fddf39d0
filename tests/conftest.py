"""For all tests: when a skipped VM test is a failure, how hypothesis behaves, where names are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

#: Set by .ci/run: there, a VM test that cannot run has not passed.
REQUIRE_VM = os.environ.get("NVME_MDEV_REQUIRE_VM") == "1"

# The machine's speed is no property of the code, so no example has a time limit of its own.
settings.register_profile("nvme-mdev", deadline=None, print_blob=True)
settings.load_profile("nvme-mdev")


@pytest.fixture(scope="session", autouse=True)
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Daemons of tests are not to be found by anyone's `nvme-mdev list`, nor hold its names."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nNVME_MDEV_REQUIRE_VM=1: a VM test must not be skipped"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_VM and item.get_closest_marker("vm"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if REQUIRE_VM and "vm" in collector.path.parts:
        _fail_if_skipped(report)
    return report
