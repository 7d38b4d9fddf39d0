"""Where nothing can be given to the host: `host-attach`, `host-detach` (tests/vm: where it can)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host import block_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Serve


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def no_ublk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_device, "CONTROL", Path("ublk-control"))


@pytest.mark.usefixtures("no_ublk")
def test_a_kernel_without_ublk_is_said_in_one_line_and_the_controller_is_free_again(
    serve: Serve, refuse: Callable[..., str]
) -> None:
    serve("null:64M", "--socket", "vm1.sock")
    for name in ("vm1", "vm1.sock"):
        assert "this kernel has no ublk (ublk-control is not there): load" in refuse(
            "host-attach", name
        )
    assert "this kernel has no ublk" in refuse("host-detach", "/dev/ublkb0")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("host-attach", "nowhere"), "there is no such socket"),
        (("host-attach", "vm1", "--nsid", "7"), "there is no namespace 7: the controller has 1"),
        (("host-attach", "vfio:44:00.0"), "write a PCI address as lspci -D does"),
        (("host-detach", "/dev/sda"), "/dev/sda: give /dev/ublkbN, or N"),
    ],
)
def test_what_cannot_be_attached(
    serve: Serve, refuse: Callable[..., str], arguments: tuple[str, ...], what: str
) -> None:
    serve("null:64M", "--socket", "vm1.sock")
    assert what in refuse(*arguments)


@pytest.mark.usefixtures("no_ublk")
def test_doorbells_have_to_be_mapped(serve: Serve, refuse: Callable[..., str]) -> None:
    serve("null:64M", "--socket", "vm1.sock", "--no-mapped-doorbells")
    assert "serve it with --mapped-doorbells" in refuse("host-attach", "vm1")
