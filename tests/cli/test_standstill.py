"""Processes that do not run for a while, as where the host is suspended or a cgroup frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.cli.deaths import serving_pid

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Serve

#: Seconds in which a command has to be completed.
TIMEOUT = 2.0
CLIENT = f"""
import sys
from nvme_mdev.bench.job import Job
from nvme_mdev.bench.runner import Runner
from nvme_mdev.host.driver import NvmeHost

job = Job(iodepth=4, runtime=1, timeout={TIMEOUT})
with NvmeHost(sys.argv[1]) as host, Runner(host, job) as runner:
    print("running", flush=True)
    print([job.problem for job in runner.run().jobs])
"""


def stop_both(daemon: int, client: int) -> None:
    """Have both stand still for longer than a command may take, the client with one outstanding."""
    os.kill(daemon, signal.SIGSTOP)
    time.sleep(0.2)
    os.kill(client, signal.SIGSTOP)
    time.sleep(1.5 * TIMEOUT)
    os.kill(client, signal.SIGCONT)
    time.sleep(0.2)
    os.kill(daemon, signal.SIGCONT)


def test_a_client_that_stood_still_itself_does_not_call_the_controller_hung(
    serve: Serve, tmp_path: Path
) -> None:
    daemon = serving_pid(serve("memory:1M", "--socket", tmp_path / "s"))
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "s")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "running\n"
        stop_both(daemon, client.pid)
        out, err = client.communicate(timeout=60)
    assert (out, err) == ("['']\n", "")
