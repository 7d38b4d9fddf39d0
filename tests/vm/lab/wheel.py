"""The wheel of the build under test, as a user has it, from the extension modules as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import nvme_mdev

SOURCE = Path(nvme_mdev.__file__).parent
_ROOT = SOURCE.parent.parent
_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
# What is compiled is compiled: a compiler that is asked for all the same fails.
_NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
_PIP = ("-m", "pip", "-q", "--disable-pip-version-check", "--no-cache-dir")
# Not for a wheel: what extension modules are made from, and what Python makes of modules.
_LEFT_OUT = (".pyx", ".c", ".pyc")


def install(site: Path) -> None:
    """Install the wheel into a folder; its script is in ``bin`` there.

    RuntimeError: pip failed, or the wheel lacks a file that the program has.
    """
    (wheel,) = Path(_built().name).glob("*.whl")
    _pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    missing = sorted(_files(SOURCE) - _files(site / SOURCE.name))
    if missing:
        raise RuntimeError(f"the wheel lacks {', '.join(missing)}")


def _files(package: Path) -> set[str]:
    return {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in _LEFT_OUT
    }


@cache
def _built() -> tempfile.TemporaryDirectory[str]:
    """A folder with the wheel, made once and gone with this process.

    From a copy of the tree, where nothing is written.
    """
    made = tempfile.TemporaryDirectory(prefix="nvme-mdev-wheel-")
    tree = Path(made.name) / "tree"
    tree.mkdir()
    for name in _FILES:
        shutil.copy2(_ROOT / name, tree)
    left_out = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
    shutil.copytree(SOURCE, tree / "src" / SOURCE.name, ignore=left_out)
    shutil.copytree(_ROOT / "build/cython", tree / "build/cython")
    compiled = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for module in SOURCE.rglob("*.so"):
        copy = tree / "build" / compiled / module.relative_to(SOURCE.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Newer than what it is made from, so that it is not made again.
        shutil.copy(module, copy)
    _pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", made.name, str(tree))
    shutil.rmtree(tree)
    return made


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *_PIP, *arguments],
        env={**os.environ, **_NO_COMPILER},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pip {arguments[0]} failed:\n{done.stdout}{done.stderr}")
