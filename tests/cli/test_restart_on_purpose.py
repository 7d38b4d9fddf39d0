"""`nvme-mdev restart`: the serving process ends and another goes on, under I/O, as asked."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.cli.deaths import serving_pid

from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.service import api
from nvme_mdev.service.client import ControlClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import RunCommand, Serve

SITE = """
import nvme_mdev.{module} as module
module.{name} = {value}
"""


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let every process that starts from now on have another code: a line that it executes."""
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    def install(code: str) -> None:
        (tmp_path / "site" / "sitecustomize.py").write_text(code)

    return install


def test_verified_io_goes_on_over_restarts_and_each_is_another_process(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serve(tmp_path / "vm.img", "--size", "64M", "--socket", tmp_path / "s")
    bench = [sys.executable, "-m", "nvme_mdev.cli.main", "bench", str(tmp_path / "s")]
    bench += ["--rw", "randrw", "--bs", "4k", "--qd", "32", "--jobs", "2", "--verify"]
    with subprocess.Popen(
        [*bench, "--runtime", "8", "--interrupts"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        pids = {serving_pid(daemon)}
        for _ in range(4):
            command = [sys.executable, "-m", "nvme_mdev.cli.main", "restart", str(tmp_path / "s")]
            out = subprocess.run(
                [*command, "-o", "json"], capture_output=True, text=True, check=True
            ).stdout
            pids.add(json.loads(out)["pid"])
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    assert len(pids) == 5
    result = daemon.stop()
    assert result.status == 0
    assert result.err.count("restarting, as asked") == 4
    assert "was killed" not in result.err


def test_the_next_process_has_the_code_that_is_installed_then(
    serve: Serve, tmp_path: Path, nvme_mdev: RunCommand, next_version: Callable[[str], None]
) -> None:
    serve("null:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        next_version(
            SITE.format(module="controller.admin.identify", name="MODEL_NUMBER", value="'new'")
        )
        assert nvme_mdev("restart", tmp_path / "s").status == 0
        assert host.identify_controller().mn.rstrip() == b"new"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            SITE.format(module="service.record", name="FORMAT", value="99"),
            "another form of the record: end the guest",
        ),
        ("import os; os._exit(1)", "the next nvme-mdev does not start: it says nothing"),
        ("import sys; sys.exit('broken')", "the next nvme-mdev does not start: "),
    ],
)
def test_a_next_process_that_could_not_go_on_is_not_started(
    serve: Serve,
    tmp_path: Path,
    nvme_mdev: RunCommand,
    next_version: Callable[[str], None],
    *,
    code: str,
    message: str,
) -> None:
    daemon = serve("null:1M", "--socket", tmp_path / "s")
    before = serving_pid(daemon)
    with NvmeHost(tmp_path / "s") as host:
        next_version(code)
        refused = nvme_mdev("restart", tmp_path / "s")
        assert refused.status == 2
        assert message in refused.err
        assert refused.err.count("\n") == 1
        host.create_queue_pair().read(1, 0, 1, block_size=512)
    assert serving_pid(daemon) == before


def test_without_a_keeper_a_restart_is_refused(
    serve: Serve, tmp_path: Path, nvme_mdev: RunCommand
) -> None:
    serve("null:1M", "--socket", tmp_path / "s", "--no-keeper")
    refused = nvme_mdev("restart", tmp_path / "s")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "no keeper" in refused.err


def test_a_paused_controller_is_paused_afterwards_and_another_is_not(
    serve: Serve, tmp_path: Path, nvme_mdev: RunCommand
) -> None:
    serve("null:1M", "--socket", tmp_path / "s")
    with NvmeHost(tmp_path / "s") as host:
        queue = host.create_queue_pair()
        for paused in (False, True):
            nvme_mdev("pause" if paused else "resume", tmp_path / "s")
            assert nvme_mdev("restart", tmp_path / "s").status == 0
            with ControlClient(tmp_path / "s.ctl") as client:
                shown = client.call(api.CONTROLLER_SHOW, api.OfController())
            assert shown.summary.paused is paused
            if not paused:
                queue.read(1, 0, 1, block_size=512)


def test_a_daemon_that_was_restarted_often_is_not_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    from nvme_mdev.service import keeper

    fast = "import os, sys; sys.stdout.flush()\n"
    fast += "count = int(open(sys.argv[1]).read() or 0) if os.path.exists(sys.argv[1]) else 0\n"
    fast += "open(sys.argv[1], 'w').write(str(count + 1))\n"
    fast += "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    fast += "s.connect('\\0' + os.environ['NOTIFY_SOCKET'][1:]); s.send(b'READY=1')\n"
    fast += f"sys.exit({keeper.EXIT_RESTART} if count < 60 else 7)\n"
    (tmp_path / "server.py").write_text(fast)
    count = tmp_path / "count"
    command = [sys.executable, "-S", "-E", str(tmp_path / "server.py"), str(count)]
    assert keeper.Keeper(command).run() == 7
    assert count.read_text() == "61"
