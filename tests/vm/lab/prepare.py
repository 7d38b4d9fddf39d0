"""Builds the lab and keeps it in a cache outside the checkout.

The lab is built in stages, each a directory `NAME-HASH` of the cache:

    root        a chroot with QEMU, the firmware, and the programs of the guest
    tools       more programs, for the host and for the guest, unpacked beside the chroot
    programs-A  busybox, and the read-only disk with the programs of guests of architecture A
    kernel-V    Debian's kernel V: vmlinuz, and the modules that the guest loads
    initramfs-V busybox, the modules of kernel V, init.sh and load.sh

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
from typing import TYPE_CHECKING, Literal

from . import cpio, recipe
from .packages import (
    NATIVE,
    WORK,
    Archive,
    LabUnavailableError,
    file_in,
    in_chroot,
    in_namespace,
    libraries_of,
    needs_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE = Path(__file__).parent
CACHE_VARIABLE = "NVME_MDEV_LAB"
BootLoader = Literal["systemd-boot", "grub"]
KEEP_UNUSED = 3 * 86400  # s; a stage that this recipe does not need may be another checkout's


@dataclass(frozen=True)
class Lab:
    """A prepared lab: where its files are and how its programs are run.

    Programs of the chroot run through the chroot's own dynamic loader, not inside the chroot: they
    see the host's paths and sockets, need no root and no mount.
    """

    root: Path
    tools: Path
    programs: dict[str, Path]  # by architecture
    kernels: dict[str, Path]
    initramfs: dict[str, Path]

    def command(self, program: str) -> list[str]:
        """The beginning of a command line that runs a program of the lab on the host's files."""
        trees = (self.root, self.tools)
        found = next(
            (
                path
                for tree in trees
                for folder in ("bin", "sbin")
                if (path := tree / "usr" / folder / program).exists()
            ),
            None,
        )
        if found is None:
            raise FileNotFoundError(program)
        libraries = [str(tree / "usr/lib" / recipe.ARCHITECTURE) for tree in trees]
        loader = self.root / "usr/lib" / recipe.ARCHITECTURE / "ld-linux-x86-64.so.2"
        return [str(loader), "--library-path", ":".join(libraries), str(found)]

    def qemu(self, program: str = "qemu-system-x86_64") -> list[str]:
        """QEMU, with the folders of its firmware."""
        share = self.root / "usr/share"
        firmware = ["-L", str(share / "qemu"), "-L", str(share / "seabios")]
        return [*self.command(program), *firmware]

    def ovmf(self, part: str) -> Path:
        """OVMF's flash image: "CODE", or "VARS" (a template, to be copied)."""
        return self.root / f"usr/share/OVMF/OVMF_{part}_4M.fd"

    def boot_loader(self, name: BootLoader) -> Path:
        """A boot loader that is an EFI application.

        systemd-boot reads its disk by the firmware's file system, GRUB by drivers of its own.
        """
        if name == "systemd-boot":
            return self.root / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
        return self.tools / "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"


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
        tools=path["tools"],
        programs={
            userland.architecture: path[f"programs-{userland.architecture}"] / "programs.img"
            for userland in recipe.USERLANDS
        },
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
    tools = Stage(
        "tools",
        partial(build_tools, root=root_path),
        (root.directory, *recipe.TOOLS, source(build_tools, Archive)),
    )
    stages = [root, tools]
    programs = {}
    for userland in recipe.USERLANDS:
        programs[userland.architecture] = stage = Stage(
            f"programs-{userland.architecture}",
            partial(build_programs, trees=(root_path, cache / tools.directory), userland=userland),
            (
                tools.directory,
                repr(userland),
                *recipe.GUEST_PROGRAMS,
                source(build_programs, Archive, libraries_of, needs_of),
            ),
        )
        stages.append(stage)
    for kernel in recipe.KERNELS:
        busybox = programs[kernel.architecture].directory
        modules = Stage(
            f"kernel-{kernel.name}",
            partial(build_kernel, root=root_path, kernel=kernel),
            (
                root.directory,
                repr(kernel),
                *recipe.MODULES,
                *recipe.MODULES_ON_DEMAND,
                source(build_kernel, newest_version, modules_in_order, plain_module, Archive),
            ),
        )
        initramfs = Stage(
            f"initramfs-{kernel.name}",
            partial(
                build_initramfs,
                root=root_path,
                busybox=cache / busybox / "busybox",
                kernel=cache / modules.directory,
            ),
            (
                modules.directory,
                busybox,
                Path(cpio.__file__).read_text(),
                *((HERE / script).read_text() for script in ("init.sh", "load.sh")),
                source(build_initramfs),
            ),
        )
        stages += [modules, initramfs]
    return stages


def source(*functions: Callable[..., object] | type) -> str:
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
        "readelf": "binutils",
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


def build_tools(out: Path, root: Path) -> None:
    """More packages of the chroot's architecture, which nothing of it depends on."""
    say(f"{len(recipe.TOOLS)} packages beside the chroot")
    with archive(out, root, NATIVE, (recipe.SUITE, recipe.BACKPORTS)) as packages:
        tree = packages.work / "tree"
        packages.unpack_with_dependencies(recipe.TOOLS, tree)
        for entry in tree.iterdir():
            entry.rename(out / entry.name)


@contextlib.contextmanager
def archive(out: Path, root: Path, architecture: str, suites: tuple[str, ...]) -> Iterator[Archive]:
    """Debian's packages, with a work folder in a stage that is being built."""
    with tempfile.TemporaryDirectory(dir=out) as work:
        packages = Archive(root, architecture, suites, Path(work))
        packages.update()
        yield packages


# The kernels


def build_kernel(out: Path, root: Path, kernel: recipe.Kernel) -> None:
    """vmlinuz, the modules that the guest loads, and which to load in which order.

    `order` lists those that each guest loads, `load.NAME` those for one that is loaded on demand.
    """
    with archive(out, root, kernel.architecture, kernel.suites) as packages:
        version = newest_version(packages, kernel)
        say(f"kernel {version} for {kernel.architecture}")
        image = next(
            name
            for name in packages.depends(kernel.metapackage, version)
            if name.startswith("linux-image-")
        )
        # From 7.x on, the image package is empty, and needs these instead.
        parts = [
            name
            for name in packages.depends(image, version)
            if name.startswith(("linux-base-", "linux-binary-", "linux-modules-"))
        ]
        unpacked = packages.work / "tree"
        packages.unpack([image, *parts], unpacked)
        tree = next((unpacked / "lib/modules").iterdir())
        in_chroot(root, "depmod", "--basedir", f"{WORK}/tree", tree.name, work=packages.work)
        boot = unpacked / f"boot/vmlinuz-{tree.name}"
        shutil.copy(boot if boot.exists() else tree / "vmlinuz", out / "vmlinuz")
        (out / "modules").mkdir()
        lists: dict[str, tuple[str, ...]] = {"order": recipe.MODULES}
        lists |= {f"load.{name.rstrip('?')}": (name,) for name in recipe.MODULES_ON_DEMAND}
        for file, wanted in lists.items():
            names = []
            for module in modules_in_order(tree, wanted):
                names.append(module.name.removesuffix(".xz"))
                (out / "modules" / names[-1]).write_bytes(plain_module(module))
            (out / file).write_text("".join(f"{name}\n" for name in names))


def newest_version(packages: Archive, kernel: recipe.Kernel) -> str:
    """The newest version of a kernel's series that the mirror has."""
    versions = packages.versions(kernel.metapackage)
    matching = [version for version in versions if version.startswith(kernel.series)]
    if not matching:
        raise LabUnavailableError(f"the Debian mirror has no {kernel.metapackage} {kernel.series}*")
    return max(matching, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])


def modules_in_order(tree: Path, names: Sequence[str]) -> list[Path]:
    """These modules and what they depend on, each after what it needs."""
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

    for wanted in names:
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


def build_programs(out: Path, trees: tuple[Path, ...], userland: recipe.Userland) -> None:
    """Busybox, and an ext4 image with the programs of the guest and the libraries they need."""
    root = trees[0]
    programs = (*recipe.GUEST_PROGRAMS, *userland.programs)
    say(f"disk with {len(programs)} programs for guests of {userland.architecture}")
    with archive(out, root, userland.architecture, (userland.suite,)) as packages:
        sources = trees
        if userland.packages:
            sources = (packages.work / "packages",)
            packages.unpack_with_dependencies(userland.packages, sources[0])
        files = {path: file_in(sources, path) for path in programs}
        files |= libraries_of(sources, programs)
        tree = packages.work / "tree"
        for path, file in files.items():
            target = tree / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        (tree / "usr/lib64").mkdir(exist_ok=True)
        (tree / "etc").mkdir()
        (tree / "etc/mtab").symlink_to("/proc/mounts")
        shutil.copy(root / "etc/mke2fs.conf", tree / "etc/mke2fs.conf")
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        kibibytes = size * 5 // 4 // 1024 + 4096
        in_chroot(
            root, "mkfs.ext4", "-q", "-O", "^has_journal", "-d", f"{WORK}/tree",
            f"{WORK}/programs.img", f"{kibibytes}k", work=packages.work,
        )  # fmt: skip
        (packages.work / "programs.img").rename(out / "programs.img")
        shutil.copy(file_in(sources, "/usr/bin/busybox"), out / "busybox")


def build_initramfs(out: Path, root: Path, busybox: Path, kernel: Path) -> None:
    """Busybox, the modules, init.sh and load.sh; the paths of /usr lead to the programs' disk."""
    say(f"initramfs for {kernel.name.rpartition('-')[0]}")
    archive = cpio.Archive()
    for folder in ("dev", "proc", "sys", "tmp", "run", "root", "mnt", "programs", "modules", "bin"):
        archive.directory(folder)
    for name in ("usr", "etc"):
        archive.symlink(name, f"programs/{name}")
    for name in ("lib", "lib64", "sbin"):
        archive.symlink(name, f"programs/usr/{name}")
    archive.file("bin/busybox", busybox.read_bytes(), executable=True)
    for applet in in_chroot(root, "busybox", "--list").split():
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    archive.file("init", (HERE / "init.sh").read_bytes(), executable=True)
    archive.file("bin/load", (HERE / "load.sh").read_bytes(), executable=True)
    for listed in (kernel / "order", *sorted(kernel.glob("load.*"))):
        archive.file(f"modules/{listed.name}", listed.read_bytes())
    for module in sorted((kernel / "modules").iterdir()):
        archive.file(f"modules/{module.name}", module.read_bytes())
    archive.write(out / "initramfs.img")
