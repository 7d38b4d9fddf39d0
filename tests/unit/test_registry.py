"""The names of a daemon's controllers, where there is no place for them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from nvme_mdev.service import runtime
from nvme_mdev.service.registry import Registry

if TYPE_CHECKING:
    from nvme_mdev.service.backings import Backings
    from nvme_mdev.service.served import ServedController


@pytest.fixture
def served() -> ServedController:
    fake = SimpleNamespace(name="vm", number=1, cleanup=AsyncExitStack())
    return cast("ServedController", fake)


@pytest.fixture
def registry(served: ServedController) -> Registry:
    made = Registry(cast("Backings", None), None)
    made.control = Path("/srv/vm.ctl")
    made.add(served)
    return made


def test_a_user_without_a_runtime_directory_is_told_that_list_shows_nothing(
    registry: Registry,
    served: ServedController,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(runtime, "runtime_directory", lambda: None)
    registry.publish(served, exact=False)
    (line,) = caplog.messages
    assert "list cannot show it: this user has no runtime directory ($XDG_RUNTIME_DIR): " in line
    assert list(registry) == [served]


def test_a_runtime_directory_that_is_a_file_is_named_in_the_warning(
    registry: Registry,
    served: ServedController,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "run").touch()
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path / "run"))
    registry.publish(served, exact=True)
    (line,) = caplog.messages
    assert f"list cannot show it: {tmp_path}/run: File exists: set NVME_MDEV_RUNTIME_DIR" in line


def test_a_controller_without_a_control_socket_needs_no_name(
    registry: Registry, served: ServedController, caplog: pytest.LogCaptureFixture
) -> None:
    registry.control = None
    registry.publish(served, exact=True)
    assert caplog.messages == []
