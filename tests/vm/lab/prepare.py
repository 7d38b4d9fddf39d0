"""Builds the lab and keeps it in a cache outside the checkout.

The lab is built in stages, each a directory `NAME-HASH` of the cache:

    root        a chroot with QEMU, the firmware, and the programs of the guest
    kernel-V    Debian's kernel V: vmlinuz, and the modules that the guest loads
    programs    the read-only disk with the programs of the guest
    initramfs-V busybox, the modules of kernel V, and init.sh

The hash covers the stage's recipe and the stages below it, so a changed recipe is another
directory. A stage is built under a temporary name and renamed when it is complete: a preparation
that was interrupted goes on with the first missing stage. One process prepares at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import cpio, recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).parent
CACHE_VARIABLE = "NVME_MDEV_LAB"
LOG_LINES_IN_REASON = 3
KEEP_UNUSED = 3 * 86400  # s; a stage that this recipe does not need may be another checkout's


class LabUnavailableError(Exception):
    """The lab cannot be had on this machine; the message is one line that says why."""


@dataclass(frozen=True)
class Lab:
    """A prepared lab: where its files are and how its programs are run.

    Programs of the chroot run through the chroot's own dynamic loader, not inside the chroot: they
    see the host's paths and sockets, need no root and no mount.
    """

    root: Path
    programs: Path
    kernels: dict[str, Path]
    initramfs: dict[str, Path]

    def command(self, program: str) -> list[str]:
        """The beginning of a command line that runs a program of the chroot on the host's files."""
        found = next(
            (
                path
                for folder in ("bin", "sbin")
                if (path := self.root / "usr" / folder / program).exists()
            ),
            None,
        )
        if found is None:
            raise FileNotFoundError(program)
        libraries = self.root / "usr/lib" / recipe.ARCHITECTURE
        loader = self.root / "usr/lib" / recipe.ARCHITECTURE / "ld-linux-x86-64.so.2"
        return [str(loader), "--library-path", str(libraries), str(found)]

    def qemu(self) -> list[str]:
        """QEMU, with the folders of its firmware."""
        share = self.root / "usr/share"
        firmware = ["-L", str(share / "qemu"), "-L", str(share / "seabios")]
        return [*self.command("qemu-system-x86_64"), *firmware]

    def ovmf(self, part: str) -> Path:
        """OVMF's flash image: "CODE", or "VARS" (a template, to be copied)."""
        return self.root / f"usr/share/OVMF/OVMF_{part}_4M.fd"

    def boot_loader(self) -> Path:
        """systemd-boot as an EFI application: a boot loader that reads the disk by firmware."""
        return self.root / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"


def cache_directory() -> Path:
    """Where the lab is kept: $NVME_MDEV_LAB, or the user's cache directory."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "nvme-mdev" / "lab"


def say(message: str) -> None:
    """Tell a person what is going on, a line a step."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


def prepare(cache: Path | None = None) -> Lab:
    """Build what is missing of the lab and return it.

    Raises LabUnavailableError with a one-line reason when this machine cannot have a lab.
    """
    cache = cache or cache_directory()
    stages = plan(cache)
    if not all((cache / stage.directory).is_dir() for stage in stages):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with exclusive(cache):
                for stage in stages:
                    stage.ensure(cache)
                remove_old_stages(cache, keep={stage.directory for stage in stages})
        except OSError as error:
            raise LabUnavailableError(f"cannot prepare the VM lab in {cache}: {error}") from error
    return lab_in(cache, stages)


def lab_in(cache: Path, stages: Sequence[Stage]) -> Lab:
    path = {stage.name: cache / stage.directory for stage in stages}
    for directory in path.values():
        with contextlib.suppress(PermissionError):  # prepared by root, used by another user
            os.utime(directory)
    names = [kernel.name for kernel in recipe.KERNELS]
    return Lab(
        root=path["root"],
        programs=path["programs"] / "programs.img",
        kernels={name: path[f"kernel-{name}"] / "vmlinuz" for name in names},
        initramfs={name: path[f"initramfs-{name}"] / "initramfs.img" for name in names},
    )


def clean(cache: Path | None = None) -> None:
    """Remove the cache."""
    cache = cache or cache_directory()
    if cache.is_dir():
        with exclusive(cache):
            for entry in cache.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)


def remove_old_stages(cache: Path, keep: set[str]) -> None:
    """Remove what other recipes made and nobody asked for lately (`lab_in` says who did)."""
    for entry in cache.iterdir():
        unused = time.time() - entry.stat().st_mtime
        if entry.is_dir() and entry.name not in keep and unused > KEEP_UNUSED:
            say(f"removing {entry.name}, unused for {unused / 86400:.0f} days")
            shutil.rmtree(entry)


@contextlib.contextmanager
def exclusive(cache: Path) -> Iterator[None]:
    """Keep other preparers of this cache out; temporary folders found then are leftovers."""
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that prepares the lab")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache.glob("tmp-*"):
            shutil.rmtree(leftover)
        yield


@dataclass(frozen=True)
class Stage:
    """One directory of the cache and the function that fills it."""

    name: str
    build: Callable[[Path], None]
    ingredients: tuple[str, ...]

    @property
    def directory(self) -> str:
        digest = hashlib.sha256(json.dumps(self.ingredients).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"

    def ensure(self, cache: Path) -> None:
        done = cache / self.directory
        if done.is_dir():
            return
        temporary = Path(tempfile.mkdtemp(prefix=f"tmp-{self.name}-", dir=cache))
        try:
            self.build(temporary)
            temporary.chmod(0o755)
            temporary.rename(done)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def plan(cache: Path) -> list[Stage]:
    """The stages of this recipe, in the order in which they are built."""
    root = Stage(
        "root",
        build_root,
        (
            recipe.SUITE,
            recipe.BACKPORTS,
            *recipe.KERNEL_SUITES,
            *recipe.BACKPORTED_PACKAGES,
            *recipe.PACKAGES,
            source(build_root),
        ),
    )
    root_path = cache / root.directory
    stages = [root]
    for kernel in recipe.KERNELS:
        modules = Stage(
            f"kernel-{kernel.name}",
            partial(build_kernel, root=root_path, kernel=kernel),
            (
                root.directory,
                repr(kernel),
                *recipe.MODULES,
                source(build_kernel, newest_version, modules_in_order, plain_module),
            ),
        )
        initramfs = Stage(
            f"initramfs-{kernel.name}",
            partial(build_initramfs, root=root_path, kernel=cache / modules.directory),
            (
                modules.directory,
                Path(cpio.__file__).read_text(),
                (HERE / "init.sh").read_text(),
                source(build_initramfs),
            ),
        )
        stages += [modules, initramfs]
    stages.append(
        Stage(
            "programs",
            partial(build_programs, root=root_path),
            (root.directory, *recipe.GUEST_PROGRAMS, source(build_programs, libraries_of)),
        )
    )
    return stages


def source(*functions: Callable[..., object]) -> str:
    """What these functions do, for the hash of a stage."""
    return "".join(inspect.getsource(function) for function in functions)


# The chroot


def build_root(out: Path) -> None:
    """A minimal Debian with QEMU from its backports."""
    check_host()
    mirror = debian_mirror()
    say(f"{recipe.SUITE} chroot with debootstrap")
    in_namespace(["debootstrap", "--variant=minbase", recipe.SUITE, str(out), mirror])
    suites = (recipe.SUITE, recipe.BACKPORTS, *recipe.KERNEL_SUITES)
    (out / "etc/apt/sources.list").write_text(
        "".join(f"deb {mirror} {suite} main\n" for suite in suites)
    )
    (out / "etc/apt/apt.conf.d/90lab").write_text(apt_configuration())
    shutil.copy("/etc/resolv.conf", out / "etc/resolv.conf")
    in_chroot(out, "apt-get", "-qq", "update")
    install = ("apt-get", "-qq", "-y", "--no-install-recommends", "install")
    say(f"{' '.join(recipe.BACKPORTED_PACKAGES)} from {recipe.BACKPORTS}")
    in_chroot(out, *install, "-t", recipe.BACKPORTS, *recipe.BACKPORTED_PACKAGES)
    say(f"{len(recipe.PACKAGES)} packages from {recipe.SUITE}")
    in_chroot(out, *install, *recipe.PACKAGES)
    in_chroot(out, "apt-get", "clean")


def check_host() -> None:
    """Say early, and in words, what this machine lacks."""
    if os.geteuid() != 0:
        raise LabUnavailableError("preparing the VM lab needs root (for debootstrap)")
    for program, package in {
        "debootstrap": "debootstrap",
        "unshare": "util-linux",
        "dpkg-deb": "dpkg",
        "apt-get": "apt",
    }.items():
        if shutil.which(program) is None:
            raise LabUnavailableError(f"preparing the VM lab needs {program}: install {package}")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        raise LabUnavailableError(
            "preparing the VM lab needs the right to make mount namespaces (unshare --mount failed)"
        )


def debian_mirror() -> str:
    """The mirror that this machine's own apt uses for Debian's main archive."""
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    suites = {
        release.get("VERSION_CODENAME", ""),
        "stable",
        "oldstable",
        "testing",
        "unstable",
        "sid",
    }
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in targets.stdout.splitlines():
        uri, _, suite = line.partition(" ")
        if suite in suites and uri.startswith(("http://", "https://", "file:")):
            return uri.rstrip("/")
    raise LabUnavailableError("apt on this machine has no Debian archive to take a mirror from")


def apt_configuration() -> str:
    """The chroot's apt: no translations, no sandbox user, the host's proxies."""
    lines = ['Acquire::Languages "none";', 'APT::Sandbox::User "root";']
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    lines += [
        line for line in dump.stdout.splitlines() if re.match(r"Acquire::https?::Proxy\b", line)
    ]
    return "\n".join(lines) + "\n"


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


def in_chroot(root: Path, *command: str) -> str:
    """Run a command inside the chroot, with /proc, and return its output."""
    script = 'mount -t proc proc "$1/proc" && exec chroot "$@"'
    return in_namespace(["sh", "-c", script, "chroot", str(root), *command], command[0])


# The kernels


def build_kernel(out: Path, root: Path, kernel: recipe.Kernel) -> None:
    """vmlinuz, the modules that the guest loads, and `order`, the order in which it loads them."""
    version = newest_version(root, kernel)
    say(f"kernel {version}")
    shown = in_chroot(root, "apt-cache", "show", f"{kernel.metapackage}={version}")
    dependency = re.search(r"^Depends: (linux-image-\S+)", shown, re.MULTILINE)
    if dependency is None:
        raise LabUnavailableError(f"{kernel.metapackage} {version} names no kernel")
    package = dependency[1]
    unpacked = root / "tmp" / package
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir(parents=True)
    try:
        fetch = 'cd "$1" && apt-get -qq download "$2" && dpkg-deb -x ./*.deb .'
        in_chroot(root, "sh", "-c", fetch, "fetch", f"/tmp/{package}", package)
        release = next((unpacked / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
        if not (unpacked / "lib").exists():  # since trixie, where /lib is a link to /usr/lib
            (unpacked / "lib").symlink_to("usr/lib")
        in_chroot(root, "depmod", "--basedir", f"/tmp/{package}", release)
        shutil.copy(unpacked / f"boot/vmlinuz-{release}", out / "vmlinuz")
        tree = unpacked / "lib/modules" / release
        (out / "modules").mkdir()
        order = []
        for module in modules_in_order(tree):
            name = module.name.removesuffix(".xz")
            (out / "modules" / name).write_bytes(plain_module(module))
            order.append(name)
        (out / "order").write_text("".join(f"{name}\n" for name in order))
    finally:
        shutil.rmtree(unpacked)


def newest_version(root: Path, kernel: recipe.Kernel) -> str:
    """The newest version of a kernel's series that the mirror has."""
    offered = in_chroot(root, "apt-cache", "madison", kernel.metapackage)
    versions = {line.split("|")[1].strip() for line in offered.splitlines() if "Packages" in line}
    matching = [version for version in versions if version.startswith(kernel.series)]
    if not matching:
        raise LabUnavailableError(f"the Debian mirror has no {kernel.metapackage} {kernel.series}*")
    return max(matching, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])


def modules_in_order(tree: Path) -> list[Path]:
    """The modules of the recipe and what they depend on, each after what it needs."""
    needs: dict[str, list[str]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        needs[path] = dependencies.split()
    path_of = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    built_in = {
        Path(path).name.split(".")[0].replace("-", "_")
        for path in (tree / "modules.builtin").read_text().split()
    }
    ordered: list[str] = []

    def add(path: str) -> None:
        for dependency in reversed(needs[path]):
            add(dependency)
        if path not in ordered:
            ordered.append(path)

    for wanted in recipe.MODULES:
        name = wanted.removesuffix("?")
        if name in path_of:
            add(path_of[name])
        elif name not in built_in and name == wanted:
            raise LabUnavailableError(f"{tree.name} has no module {name}")
    return [tree / path for path in ordered]


def plain_module(path: Path) -> bytes:
    """A module's content, decompressed: busybox loads only that."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


# What the guest runs


def build_initramfs(out: Path, root: Path, kernel: Path) -> None:
    """Busybox, the modules and init.sh; the paths of /usr lead to the disk with the programs."""
    say(f"initramfs for {kernel.name.rpartition('-')[0]}")
    archive = cpio.Archive()
    for folder in ("dev", "proc", "sys", "tmp", "run", "root", "mnt", "programs", "modules", "bin"):
        archive.directory(folder)
    for name in ("usr", "etc"):
        archive.symlink(name, f"programs/{name}")
    for name in ("lib", "lib64", "sbin"):
        archive.symlink(name, f"programs/usr/{name}")
    archive.file("bin/busybox", (root / "usr/bin/busybox").read_bytes(), executable=True)
    for applet in in_chroot(root, "busybox", "--list").split():
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    archive.file("init", (HERE / "init.sh").read_bytes(), executable=True)
    archive.file("modules/order", (kernel / "order").read_bytes())
    for module in sorted((kernel / "modules").iterdir()):
        archive.file(f"modules/{module.name}", module.read_bytes())
    archive.write(out / "initramfs.img")


def build_programs(out: Path, root: Path) -> None:
    """An ext4 image with the programs of the guest and the libraries they need."""
    say(f"disk with {len(recipe.GUEST_PROGRAMS)} programs for the guest")
    tree = root / "tmp/programs"
    shutil.rmtree(tree, ignore_errors=True)
    try:
        for path in (*recipe.GUEST_PROGRAMS, *libraries_of(root, recipe.GUEST_PROGRAMS)):
            target = tree / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path.lstrip("/"), target)
        (tree / "usr/lib64").mkdir()
        (tree / "usr/lib64/ld-linux-x86-64.so.2").symlink_to(
            f"../lib/{recipe.ARCHITECTURE}/ld-linux-x86-64.so.2"
        )
        (tree / "etc").mkdir()
        (tree / "etc/mtab").symlink_to("/proc/mounts")
        shutil.copy(root / "etc/mke2fs.conf", tree / "etc/mke2fs.conf")
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        kibibytes = size * 5 // 4 // 1024 + 4096
        in_chroot(
            root, "mkfs.ext4", "-q", "-O", "^has_journal", "-d", "/tmp/programs",
            "/tmp/programs.img", f"{kibibytes}k",
        )  # fmt: skip
        shutil.move(root / "tmp/programs.img", out / "programs.img")
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        (root / "tmp/programs.img").unlink(missing_ok=True)


def libraries_of(root: Path, programs: Sequence[str]) -> list[str]:
    """The shared libraries of these programs, under /usr as on a merged system."""
    listed = in_chroot(root, "ldd", *programs)
    found = set(re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", listed, re.MULTILINE))
    found.discard("/lib64/ld-linux-x86-64.so.2")
    found.add(f"/lib/{recipe.ARCHITECTURE}/ld-linux-x86-64.so.2")
    return sorted(path if path.startswith("/usr/") else f"/usr{path}" for path in found)
