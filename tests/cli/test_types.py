"""`nvme-mdev types`: what controllers can be made of, and how many more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import RunCommand, Serve


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NVME_MDEV_RUNTIME_DIR", str(tmp_path / "run"))


def instances(parent: dict[str, Any]) -> dict[str, int | None]:
    return {one["name"]: one["available_instances"] for one in parent["types"]}


def test_a_controller_that_nobody_holds_has_all_its_queues_but_ours(
    serve: Serve, ask: Callable[..., Any]
) -> None:
    serve("null:64M", "--socket", "drive", "--queues", "5")
    (parent,) = ask("types", "vfio-user:drive")["parents"]
    assert parent["parent"] == f"vfio-user:{Path('drive').absolute()}"
    assert (parent["kind"], parent["host_queues"], parent["left"]) == ("vfio-user", 4, 4)
    assert instances(parent) == {
        "nvme-1Q_V1": 4,
        "nvme-2Q_V1": 2,
        "nvme-3Q_V1": 1,
        "nvme-4Q_V1": 1,
    }


def test_each_polling_thread_of_a_daemon_takes_a_host_queue(
    serve: Serve, ask: Callable[..., Any], refuse: Callable[..., str], nvme_mdev: RunCommand
) -> None:
    serve("null:64M", "--socket", "drive", "--queues", "5")
    target = "direct:vfio-user:drive/n1"
    serve(f"{target},length=8M", "--socket", "vm1", "--type", "nvme-3Q_V1")
    (parent,) = [one for one in ask("types")["parents"] if one["kind"] == "vfio-user"]
    assert (parent["host_queues"], parent["left"]) == (4, 1)
    assert instances(parent)["nvme-1Q_V1"] == 1
    assert instances(parent)["nvme-2Q_V1"] == 0
    assert ask("types", "vfio-user:drive")["parents"] == [parent]
    line = refuse(
        "controller", "add", "vm1", f"{target},offset=8M,length=8M", "--socket", "vm2",
        "--type", "nvme-2Q_V1",
    )  # fmt: skip
    assert "no queue is left to set aside (all 5 I/O queues of the controller are in use)" in line
    assert "share an --iothread, or give a smaller --type" in line
    # What was refused took nothing, and what fits is taken.
    ask("controller", "add", "vm1", f"{target},offset=8M,length=8M", "--socket", "vm2")
    (parent,) = ask("types", "vfio-user:drive")["parents"]
    assert parent["left"] == 0
    assert "nvme-1Q_V1" in nvme_mdev("types").out


def test_files_have_no_queues_to_run_out_of(ask: Callable[..., Any]) -> None:
    Path("vm1.img").touch()
    (parent,) = ask("types", "vm1.img")["parents"]
    assert (parent["kind"], parent["host_queues"], parent["left"]) == ("file", None, None)
    assert instances(parent) == {f"nvme-{n}Q_V1": None for n in range(1, 17)}


@pytest.mark.parametrize(
    ("parent", "what"),
    [
        ("nowhere", "nowhere: No such file or directory"),
        (".", ". is no parent: give an NVMe controller"),
        ("/dev/nvme4242", "there is no such NVMe controller"),
        ("ffff:ff:1f.7", "there is no such PCI function"),
        ("vfio:ffff:ff:1f.7", "there is no such PCI function"),
        ("vfio-user:nowhere", "there is no such socket"),
    ],
)
def test_parents_that_are_none(refuse: Callable[..., str], parent: str, what: str) -> None:
    assert what in refuse("types", parent)
