"""What the README tells people to type is typed here.

A fenced block after ``<!-- test: serve -->`` must start a daemon; those after
``<!-- test: run -->`` and ``<!-- test: bench -->`` must succeed beside it. There may be no QEMU on
this machine, so a stand-in takes its place, which checks what it is given: that the memory is
shared and that somebody listens on the socket. Real guests are the business of tests/vm.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nvme_mdev.cli.serve import serve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- test: (\w+) -->\n```sh\n(.*?)```", re.DOTALL)

QEMU = f"""#!{sys.executable}
import json, socket, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
memory = options["-object"].split(",")
assert memory[0] == "memory-backend-memfd" and "share=on" in memory, memory
assert "memory-backend=" + memory[1].removeprefix("id=") in options["-machine"].split(",")
assert f"size={{options['-m']}}" in memory
device = json.loads(options["-device"])
assert device["driver"] == "vfio-user-pci" and device["socket"]["type"] == "unix"
socket.socket(socket.AF_UNIX).connect(device["socket"]["path"])
"""


def _blocks(kind: str) -> list[str]:
    return [commands for mark, commands in BLOCK.findall(README) if mark == kind]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """PATH with this project's commands, and a stand-in for QEMU."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    qemu = bin_directory / "qemu-system-x86_64"
    qemu.write_text(QEMU)
    qemu.chmod(0o755)
    ours = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{bin_directory}:{ours}:{os.environ['PATH']}"}


def test_the_first_virtual_machine_works_as_told(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (serve_block,) = _blocks("serve")
    daemon = subprocess.Popen(
        ["bash", "-euc", f"exec {serve_block}"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert daemon.stderr is not None
        assert "ready" in daemon.stderr.readline()
        for commands in _blocks("run") + _blocks("bench"):
            subprocess.run(["bash", "-euc", commands], cwd=tmp_path, env=environment, check=True)
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait() == 0
    finally:
        daemon.kill()
        daemon.communicate()
    assert (tmp_path / "vm1.img").stat().st_size == 10 << 30


def test_the_first_virtual_machine_takes_five_lines() -> None:
    assert sum(block.count("\n") for block in _blocks("serve") + _blocks("run")) == 5


def test_the_table_of_options_is_complete_and_its_defaults_are_true() -> None:
    rows = dict(re.findall(r"^\| `(-{1,2}.*?)` \| (.*?) \|", README, re.MULTILINE))
    documented = {key.split()[0].replace("\\", ""): default for key, default in rows.items()}
    options = {
        option.opts[-1]
        .replace("--verbose", "-v")
        .replace("--", "--[no-]" if option.secondary_opts else "--", 1): option.default
        for option in serve.params
        if option.param_type_name == "option" and option.name != "sockets"
    }
    assert documented.keys() == options.keys()
    for name, default in options.items():
        if type(default) is int:
            assert documented[name] == str(default)
        elif type(default) is bool:
            assert documented[name] == ("on" if default else "off")


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *map(str, (ROOT / "docs").glob("*.md"))]
)
def test_links_between_our_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("target", ["demo", "test", "build", "fast", "lint", "clean"])
def test_make_knows_the_targets_that_are_written_about(target: str) -> None:
    listing = subprocess.run(
        ["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True
    )
    assert re.search(rf"^{target} ", listing.stdout, re.MULTILINE)
