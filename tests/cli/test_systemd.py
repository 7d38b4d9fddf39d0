"""The daemon as a systemd service, as docs/control.md has it: systemd keeps its file descriptors.

A real systemd runs as a user's manager, in a mount namespace of its own, where it finds that the
system was booted with it. That takes root, and Debian's systemd.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.service import api
from nvme_mdev.service.client import ControlClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import RunCommand

SYSTEMD = Path("/lib/systemd/systemd")
PAGE = Path(__file__).parents[2] / "docs" / "control.md"
TARGETS = ("basic.target", "sysinit.target", "default.target", "shutdown.target", "exit.target")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEMD.exists() or not shutil.which("unshare"),
    reason="a systemd of our own needs root, systemd and unshare",
)


class Manager:
    """systemd, for units in a folder."""

    def __init__(self, folder: Path) -> None:
        self.units = folder / "units"
        self.units.mkdir()
        (folder / "run").mkdir(mode=0o700)
        for name in TARGETS:
            (self.units / name).write_text("[Unit]\nDefaultDependencies=no\n")
        self._environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "SYSTEMD_UNIT_PATH": str(self.units),
        }
        self._environment.pop("DBUS_SESSION_BUS_ADDRESS", None)
        script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec "
        script += f"{SYSTEMD} --user --log-target=console"
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", script],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        end = time.monotonic() + 30
        while not (folder / "run" / "systemd" / "private").exists():
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                pytest.skip(f"systemd does not run here: {(folder / 'log').read_text()[-200:]}")
            time.sleep(0.05)

    def systemctl(self, *arguments: str) -> str:
        return subprocess.run(
            ["systemctl", "--user", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def property(self, name: str) -> str:
        return self.systemctl("show", "vm", "--value", "-p", name).strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A manager with the unit of the documentation, whose paths are this test's, as `vm`."""
    folder = Path(tempfile.mkdtemp(prefix="nvme-mdev-"))
    made = Manager(folder)
    try:
        (unit,) = re.findall(r"```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)
        command = f"{sys.executable} -m nvme_mdev.cli.main serve"
        unit = unit.replace("/usr/bin/nvme-mdev serve", command).replace("/srv/", f"{folder}/")
        unit = unit.replace("/run/", f"{folder}/").replace("WantedBy=multi-user.target", "")
        unit = unit.replace(
            "[Service]\n", f"[Service]\nEnvironment=NVME_MDEV_RUNTIME_DIR={folder}/names\n"
        )
        (made.units / "vm.service").write_text(unit)
        (folder / "vm1.img").write_bytes(bytes(1 << 20))
        made.systemctl("daemon-reload")
        made.systemctl("start", "vm")
        yield made
        made.systemctl("stop", "vm")
    finally:
        made.close()
        shutil.rmtree(folder)


def _wait_for_another(manager: Manager, pid: int) -> None:
    end = time.monotonic() + 60
    while int(manager.property("MainPID")) in (0, pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_documented_unit_carries_on_when_killed_and_when_restarted(
    manager: Manager, nvme_mdev: RunCommand
) -> None:
    socket = manager.units.parent / "vm1.sock"
    control = f"{socket}.ctl"
    with NvmeHost(socket) as host:
        queue = host.create_queue_pair()
        queue.write(1, 0, b"x" * 512, block_size=512)
        with ControlClient(control) as client:
            client.call(api.NAMESPACE_ADD, api.NamespaceAdd("memory:1M", 5))
        queue.write(5, 0, b"y" * 512, block_size=512)
        for kill in (True, False, True):
            pid = int(manager.property("MainPID"))
            assert int(manager.property("NFileDescriptorStore")) > 10
            if kill:
                os.kill(pid, signal.SIGKILL)
                _wait_for_another(manager, pid)
            else:
                assert nvme_mdev("restart", socket).status == 0
            assert queue.read(1, 0, 1, block_size=512) == b"x" * 512
            assert queue.read(5, 0, 1, block_size=512) == b"y" * 512
            assert host.active_namespaces() == [1, 5]
            assert int(manager.property("MainPID")) != pid
    manager.systemctl("stop", "vm")
    assert manager.property("Result") == "success"
    assert not socket.exists()
