"""A read-only disk with the program under test: this Python, its packages, and our wheel.

A guest that has it runs `nvme-mdev` itself, as a host would. It is made anew for each test, since
what is under test changes; everything else in the guest is the lab's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from . import wheel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOUNT = "/py"
_PACKAGES = ("click", "rich", "pygments", "markdown_it", "mdurl")  # what the program imports
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip", "turtledemo",
             "site-packages", "config-*", "*.a")  # fmt: skip
# The lab's guests have these, of the version that all their programs use.
_LIBC = re.compile(r"(libc|libm|libdl|libpthread|librt|libutil|ld-linux-x86-64)\.so")
_WRAPPER = f"""#!/bin/sh
export PYTHONHOME={MOUNT} PYTHONPATH={MOUNT}/site PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH={MOUNT}/libraries NVME_MDEV_RUNTIME_DIR=/run/nvme-mdev
export PATH={MOUNT}/programs:$PATH
case $0 in
*/nvme-mdev) exec {MOUNT}/bin/python3 {MOUNT}/site/bin/nvme-mdev "$@" ;;
*) exec {MOUNT}/bin/python3 "$@" ;;
esac
"""
# What nvme-mdev starts is the guest's own, with the guest's libraries.
_PROGRAM = """#!/bin/sh
unset LD_LIBRARY_PATH
exec /usr/bin/{name} "$@"
"""
_STARTED = ("fio",)
# Run in the guest once the disk is mounted.
_SETUP = f"""mkdir -p /run/nvme-mdev && chmod 700 /run/nvme-mdev
cp {MOUNT}/nvme-mdev /bin/nvme-mdev
cp {MOUNT}/nvme-mdev /bin/python3
"""


def setup(disk: str) -> str:
    """The script that makes `nvme-mdev`, and its `python3`, commands of the guest."""
    return f"mkdir -p {MOUNT}; mount -t ext4 -o ro,noload {disk} {MOUNT}; . {MOUNT}/setup"


def make(image: Path, modules: Path | None = None) -> None:
    """Write the disk; the image must not exist. `modules` is a folder with kernel modules."""
    tree = image.with_suffix(".tree")
    try:
        _fill(tree)
        if modules is not None:
            shutil.copytree(modules, tree / "modules")
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        kibibytes = size * 5 // 4 // 1024 + 8192
        subprocess.run(
            ["mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(tree), str(image), f"{kibibytes}k"],
            check=True,
            # It names what it makes, even so.
            stdout=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
        )
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _fill(tree: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    standard = Path(sysconfig.get_path("stdlib"))
    left_out = shutil.ignore_patterns(*_LEFT_OUT)
    shutil.copytree(standard, tree / "lib" / version, ignore=left_out, symlinks=False)
    (tree / "bin").mkdir()
    python = Path(sys.executable).resolve()
    shutil.copy2(python, tree / "bin/python3")
    site = tree / "site"
    wheel.install(site)
    for name in _PACKAGES:
        shutil.copytree(_folder_of(name), site / name, ignore=left_out)
    for name in ("click", "rich"):
        distribution = metadata.distribution(name)
        shutil.copytree(
            Path(str(distribution.locate_file(""))) / f"{_info(distribution)}",
            site / _info(distribution),
        )
    (tree / "libraries").mkdir()
    for library in _libraries([python, *tree.rglob("*.so")]):
        shutil.copy2(library, tree / "libraries" / library.name)
    _script(tree / "nvme-mdev", _WRAPPER)
    _script(tree / "setup", _SETUP)
    (tree / "programs").mkdir()
    for name in _STARTED:
        _script(tree / "programs" / name, _PROGRAM.format(name=name))


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _folder_of(package: str) -> Path:
    found = sys.modules.get(package) or __import__(package)
    return Path(str(found.__file__)).parent


def _info(distribution: metadata.Distribution) -> str:
    """The name of its dist-info folder."""
    files: Iterable[object] = distribution.files or ()
    return next(str(file).partition("/")[0] for file in files if ".dist-info/" in str(file))


def _libraries(programs: Sequence[Path]) -> list[Path]:
    """The shared libraries that they need, and the guest lacks."""
    listed = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, check=False
    ).stdout
    found = set(re.findall(r"=> (/\S+) \(0x", listed))
    return sorted(Path(path) for path in found if not _LIBC.match(Path(path).name))
