"""Debian's packages: apt and dpkg of the lab's chroot, for its own and for foreign architectures.

Packages are unpacked, not installed: nothing of them runs, so it does not matter that they are made
for another processor.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LOG_LINES_IN_REASON = 3
NATIVE = "amd64"  # the architecture of the chroot
WORK = "/mnt"  # where a folder of the host is seen in the chroot
UNUSED = ("doc", "info", "locale", "man")  # of /usr/share, not unpacked


class LabUnavailableError(Exception):
    """The lab cannot be had on this machine; the message is one line that says why."""


def in_namespace(command: Sequence[str], name: str | None = None) -> str:
    """Run a command whose mounts vanish with it, and return its output."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode:
        last = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        reason = "; ".join(last[-LOG_LINES_IN_REASON:]) or f"exit status {done.returncode}"
        raise LabUnavailableError(f"{name or command[0]} failed: {reason}")
    return done.stdout


def in_chroot(root: Path, *command: str, work: Path | None = None) -> str:
    """Run a command inside the chroot, with /proc and with `work` as /mnt; return its output."""
    bind = f'mount --bind "$0" "$1{WORK}" && ' if work else ""
    script = f'mount -t proc proc "$1/proc" && {bind}exec chroot "$@"'
    return in_namespace(["sh", "-c", script, str(work), str(root), *command], command[0])


@dataclass(frozen=True)
class Archive:
    """Debian's packages of one architecture, of some of the suites that the chroot knows.

    `work` is a folder for what apt keeps. The chroot's own packages count as installed for its own
    architecture, none for a foreign one.
    """

    root: Path
    architecture: str
    suites: tuple[str, ...]
    work: Path

    def update(self) -> None:
        """Learn what there is at present. The chroot itself stays as it is."""
        for folder in ("lists/partial", "archives/partial"):
            (self.work / folder).mkdir(parents=True)
        entries = (self.root / "etc/apt/sources.list").read_text().splitlines(keepends=True)
        chosen = [entry for entry in entries if entry.split()[2] in self.suites]
        (self.work / "sources.list").write_text("".join(chosen))
        (self.work / "status").touch()
        self._run("apt-get", "-qq", "update")

    def versions(self, package: str) -> list[str]:
        """Every version that there is of a package."""
        offered = self._run("apt-cache", "madison", package)
        return [line.split("|")[1].strip() for line in offered.splitlines() if "Packages" in line]

    def depends(self, package: str, version: str) -> list[str]:
        """The names of the packages that this one depends on."""
        shown = self._run("apt-cache", "show", f"{package}={version}")
        field = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        return [name.split()[0] for name in field[1].split(", ")] if field else []

    def unpack(self, packages: Iterable[str], into: Path) -> None:
        """Download packages and unpack them in a tree of their own."""
        into.mkdir()
        (into / "debs").mkdir()
        download = 'cd "$0" && apt-get "$@"'
        inside = f"{WORK}/{into.relative_to(self.work)}"
        self._shell(download, f"{inside}/debs", *self._options(), "-qq", "download", *packages)
        self._extract(into / "debs", into)

    def unpack_with_dependencies(self, packages: Iterable[str], into: Path) -> None:
        """Download packages and all that they need and is not installed; unpack them in a tree."""
        into.mkdir()
        install = ("-qq", "-y", "--no-install-recommends", "--download-only", "install")
        self._run("apt-get", *install, *packages)
        self._extract(self.work / "archives", into)

    def _extract(self, debs: Path, into: Path) -> None:
        usr_links(into)
        inside = [f"{WORK}/{path.relative_to(self.work)}" for path in (debs, into)]
        excluded = [f"--exclude=./usr/share/{name}" for name in UNUSED]
        extract = """
            debs=$0 tree=$1; shift
            for deb in "$debs"/*.deb; do
                dpkg-deb --fsys-tarfile "$deb" |
                    tar -x -C "$tree" --keep-directory-symlink "$@" || exit
                rm "$deb"
            done
        """
        self._shell(extract, *inside, *excluded)

    def _options(self) -> list[str]:
        settings = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "Dir::State::Lists": f"{WORK}/lists",
            "Dir::Cache::Archives": f"{WORK}/archives",
            "Dir::Cache::PkgCache": "",
            "Dir::Cache::SrcPkgCache": "",
            "Dir::Etc::SourceList": f"{WORK}/sources.list",
        }
        if self.architecture != NATIVE:
            settings["Dir::State::Status"] = f"{WORK}/status"
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def _run(self, program: str, *arguments: str) -> str:
        return in_chroot(self.root, program, *self._options(), *arguments, work=self.work)

    def _shell(self, script: str, *arguments: str) -> str:
        return in_chroot(self.root, "sh", "-c", script, *arguments, work=self.work)


def usr_links(tree: Path) -> None:
    """Make /bin, /lib and so on links into /usr, wherever older packages put their files."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")


def file_in(trees: Sequence[Path], path: str) -> Path:
    """A file of the first tree that has it, by its absolute path there."""
    return next(found for tree in trees if (found := tree / path.lstrip("/")).exists())


def libraries_of(trees: Sequence[Path], programs: Iterable[str]) -> dict[str, Path]:
    """The shared libraries and loaders of these programs: the path in a guest, and the file here.

    Found by what the files ask for, since programs of another architecture cannot be run.
    """
    known = {
        path.name: (f"/{path.relative_to(tree)}", path)
        for tree in reversed(trees)
        for path in (tree / "usr/lib").rglob("*.so*")
    }
    found: dict[str, Path] = {}
    queue = [file_in(trees, program) for program in programs]
    while queue:
        needed, loaders = needs_of(queue.pop())
        for loader in loaders:
            found[f"/usr{loader}"] = file_in(trees, loader)
        for target, file in (known[name] for name in needed if name in known):
            if target not in found:
                found[target] = file
                queue.append(file)
    return found


def needs_of(program: Path) -> tuple[list[str], list[str]]:
    """The names of the libraries that an ELF file asks for, and the path of its loader."""
    headers = subprocess.run(
        ["readelf", "-ld", str(program)], capture_output=True, text=True, check=False
    ).stdout
    needed = re.findall(r"\(NEEDED\) .*\[(.+)\]", headers)
    return needed, re.findall(r"program interpreter: (\S+)\]", headers)
