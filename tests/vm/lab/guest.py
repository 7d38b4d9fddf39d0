"""A virtual machine of the lab: started, asked to run things, rebooted, powered off or killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from qemu.qmp import QMPClient, QMPError

from .agent import Agent, AgentError, Result
from .machines import direct_boot, machine, platform, programs_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .prepare import Lab

# Generous: the machine may be shared by several guests, each an emulated one.
BOOT_TIMEOUT = 120.0
SCRIPT_TIMEOUT = 120.0
END_TIMEOUT = 60.0
QMP_TIMEOUT = 30.0
FIRST_PROCESS = "Run /init"
"""What Linux says when it is up itself."""
RESUMED = "PM: suspend exit"
"""What Linux says at the end of a suspend."""

CONSOLE_LINES_IN_ERROR = 40

# What a guest's kernel may say about a healthy NVMe disk; any other line about it is a complaint.
KERNEL_LINE = re.compile(r"\[ *\d+\.\d+\] ")
NVME_LINE = re.compile(r"\bnvme\b|\bnvme\d+(n\d+)?\b")
HEALTHY_LINES = [
    re.compile(pattern)
    for pattern in (
        r"nvme nvme\d+: pci function \S+$",
        r"nvme nvme\d+: \d+/\d+/\d+ default/read/poll queues$",
        r"nvme \S+: enabling device \(\S+ -> \S+\)$",
        r"nvme \S+: Adding to iommu group \d+$",
        r"nvme nvme\d+: Shutdown timeout set to \d+ seconds$",
        r"EXT4-fs \(nvme\w+\): (mounted|unmounting|re-mounted)",
        r"EXT4-fs \(nvme\w+\): recovery complete$",
        r"EXT4-fs \(nvme\w+\): \d+ (orphan inodes? deleted|truncates? cleaned up)$",
        r"EXT4-fs \(nvme\w+\): mounting with \"discard\" option",
        r" nvme\d+n\d+: p\d+",
        # Remarks on any passthrough command, from 6.12 on and from 7 on.
        r"nvme nvme\d+: using unchecked data buffer$",
        r"nvme nvme\d+: passthrough uses implicit buffer lengths$",
        r"Kernel command line:|Command line:|Unknown kernel command line parameters",
    )
]
TROUBLE = re.compile(
    r"I/O error|EXT4-fs error|EXT4-fs warning|JBD2: Error|critical \w+ error"
    r"|BUG:|Oops|WARNING: CPU|Kernel panic|blocked for more than|nobody cared"
)


class GuestError(Exception):
    """The guest did not do what was asked; the message ends with its console."""


class Guest:
    """A virtual machine in a QEMU process of its own; leaving the context leaves nothing behind.

    `devices` are properties as QEMU's `-device` takes them. `kernel` names one of the lab's
    kernels, booted directly with its initramfs; None boots from the devices by firmware.
    `blocks` are QEMU's `-blockdev`, for the devices; `arguments` are added to its command line.
    """

    def __init__(
        self,
        lab: Lab,
        devices: Iterable[dict[str, object]] = (),
        *,
        kernel: str | None = "6.12",
        append: str = "",
        firmware: Literal["seabios", "ovmf"] = "seabios",
        memory_mib: int = 512,
        smp: int = 2,
        blocks: Sequence[str] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        self.lab = lab
        self.release = ""
        self._allowed: list[re.Pattern[str]] = []
        self._directory = Path(tempfile.mkdtemp(prefix="nvme-mdev-vm-"))
        self._logs: dict[str, str] | None = None  # the logs' content, once their files are gone
        self._loop = asyncio.new_event_loop()
        self._qmp = QMPClient("lab")
        self._booted_again = False
        self._sockets: list[socket.socket] = []
        self._process: subprocess.Popen[bytes] | None = None
        linux = kernel is not None or firmware == "ovmf"
        options = machine(lab, kernel, memory_mib, smp)
        if linux:
            options += programs_disk(lab, kernel)
        if kernel is not None:
            options += direct_boot(lab, kernel, append)
        if firmware == "ovmf":
            options += self._ovmf()
        for block in blocks:
            options += ["-blockdev", block]
        for device in devices:
            options += ["-device", json.dumps(device)]
        if platform(kernel).debug_port:
            options += ["-chardev", f"file,id=firmware,path={self._log('firmware')}"]
            options += ["-device", "isa-debugcon,iobase=0x402,chardev=firmware"]
        try:
            self._start([*options, *arguments], with_agent=linux)
        except BaseException:
            self.close()
            raise

    def _ovmf(self) -> list[str]:
        variables = self._directory / "variables.fd"
        shutil.copy(self.lab.ovmf("VARS"), variables)
        flash = "if=pflash,format=raw"
        return [
            *("-drive", f"{flash},readonly=on,file={self.lab.ovmf('CODE')}"),
            *("-drive", f"{flash},file={variables}"),
        ]

    def _start(self, options: Sequence[str], *, with_agent: bool) -> None:
        qmp, qmp_of_qemu = socket.socketpair()
        agent, agent_of_qemu = socket.socketpair()
        self._sockets = [qmp, agent]
        self._agent = Agent(agent)
        command = [
            *("setpriv", "--pdeathsig", "KILL", "--"),  # no orphan when the tests are killed
            *options,
            *("-action", "reboot=shutdown,panic=shutdown"),
            *("-chardev", f"socket,id=qmp,fd={qmp_of_qemu.fileno()}"),
            *("-object", "monitor-qmp,id=monitor,chardev=qmp"),
            *("-chardev", f"file,id=console,path={self._log('console')}"),
            *("-serial", "chardev:console"),
        ]
        if with_agent:
            command += ["-chardev", f"socket,id=agent,fd={agent_of_qemu.fileno()}"]
            command += ["-device", "virtio-serial-pci"]
            command += ["-device", "virtserialport,chardev=agent,name=lab"]
        with qmp_of_qemu, agent_of_qemu, self._log("qemu").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(qmp_of_qemu.fileno(), agent_of_qemu.fileno()),
            )
        try:
            self._await(self._qmp.connect(qmp))
        except (QMPError, TimeoutError) as error:
            self._process.kill()
            self._process.wait()
            raise GuestError(f"QEMU did not start: {self.log('qemu').strip() or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Running things

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> Self:
        """Wait until the guest's kernel is up and scripts can be run."""
        try:
            self.release = self._agent.wait_ready(timeout)
        except AgentError as error:
            if self._booted_again or not self._hangs_before_devices():
                raise self._failure(f"the guest did not boot: {error}") from error
            self._booted_again = True
            self.reset()
        return self

    def _hangs_before_devices(self) -> bool:
        """Whether the kernel said its last before its first process, which loads the drivers.

        About one boot in a thousand of an emulated machine does (seen at its timers); nothing of
        ours has been touched by then.
        """
        last_boot = self.console.rpartition("Linux version")[2]
        return self.alive and bool(last_boot) and FIRST_PROCESS not in last_boot

    def run(self, script: str, timeout: float = SCRIPT_TIMEOUT) -> Result:
        """Run a shell script in the guest; any exit status is an answer."""
        try:
            return self._agent.run(script, timeout)
        except AgentError as error:
            raise self._failure(f"{error} while it ran: {script}") from error

    def sh(self, script: str, timeout: float = SCRIPT_TIMEOUT) -> str:
        """Run a shell script in the guest that must succeed (as by `set -e`); return its output."""
        result = self.run(f"set -e\n{script}", timeout)
        if result.status:
            raise self._failure(
                f"exit status {result.status} in the guest of: {script}\n{result.output}"
            )
        return result.output

    def wait_for_path(self, path: str, timeout: float = 30) -> None:
        """Wait until a path exists in the guest."""
        tries = int(timeout / 0.1)
        self.sh(
            f"for i in $(seq {tries}); do test -e {path} && exit 0; sleep 0.1; done\n"
            f"echo no {path}; exit 1",
            timeout + SCRIPT_TIMEOUT,
        )

    def disk(self, serial: str, nsid: int = 1, timeout: float = 30) -> str:
        """The guest's name for a namespace of the controller with this serial number.

        Not by the number in the name: Linux scans namespaces in parallel, and counts as they come.
        """
        tries = int(timeout / 0.1)
        found = self.sh(
            f"for i in $(seq {tries}); do for controller in /sys/class/nvme/*; do\n"
            f'test "$(echo $(cat $controller/serial))" = "{serial}" || continue\n'
            "for disk in $controller/nvme*n*; do\n"
            f'test "$(cat $disk/nsid)" = {nsid} && echo ${{disk##*/}} && exit 0\n'
            "done; done; sleep 0.1; done; true",
            timeout + SCRIPT_TIMEOUT,
        ).split()
        if not found:
            raise self._failure(f"no namespace {nsid} of a controller with serial {serial}")
        return f"/dev/{found[0]}"

    def checksum(self, path: str) -> str:
        """Digest of a file or a whole disk, read past the guest's page cache."""
        return self.sh(f"sync; dd if={path} bs=1M iflag=direct status=none | md5sum").split()[0]

    def fio(self, disk: str, *options: str) -> None:
        """Run fio with verification on a disk or file; it must find all that it wrote."""
        self.sh(
            f"cd /tmp; fio --name=verify --filename={disk} --ioengine=libaio --direct=1"
            f" --verify=crc32c --verify_fatal=1 --randrepeat=0 --group_reporting"
            f" {' '.join(options)}",
            timeout=2 * SCRIPT_TIMEOUT,
        )

    def qmp(self, command: str, **arguments: object) -> Any:  # QEMU's schema decides
        """Execute a QMP command and return QEMU's answer."""
        return self._await(self._qmp.execute(command, arguments))

    # Ends and restarts

    def reboot(self) -> Self:
        """Reboot from inside the guest, in the same QEMU, and wait until it is up again."""
        self.across_restart("sync; reboot -f")
        return self

    def reset(self) -> Self:
        """Press the reset button, and wait until the guest is up again."""
        self._across_reset(lambda: self.qmp("system_reset"))
        return self

    def across_restart(self, script: str) -> None:
        """Run a script that makes the guest start again, and wait until it is up again."""
        self._across_reset(lambda: self._agent.send(script))

    def _across_reset(self, cause: Callable[[], object]) -> None:
        self.qmp("set-action", reboot="reset")
        cause()
        self.wait_ready()
        self.qmp("set-action", reboot="shutdown")

    def suspend(self, timeout: float) -> None:
        """Have the guest suspend itself to RAM, and wake it up again if nothing else does."""
        before = self.console.count(RESUMED)
        self.sh("echo deep >/sys/power/mem_sleep")
        self.sh("(sleep 1; echo mem >/sys/power/state) >/run/suspend.log 2>&1 &")
        deadline = time.monotonic() + timeout
        while self.console.count(RESUMED) == before:
            if self.qmp("query-status")["status"] == "suspended":
                with contextlib.suppress(QMPError):  # it has woken up meanwhile
                    self.qmp("system_wakeup")
            if time.monotonic() > deadline:
                raise self._failure("the guest did not suspend itself and wake up")
            time.sleep(0.1)

    def power_off(self, timeout: float = END_TIMEOUT) -> None:
        """Power off from inside the guest and wait until QEMU has ended well."""
        self._agent.send("sync; poweroff -f")
        status = self.wait_end(timeout)
        if status:
            raise self._failure(f"QEMU ended with status {status}")

    def wait_end(self, timeout: float = END_TIMEOUT) -> int:
        """Wait until QEMU has ended, and return its exit status."""
        try:
            return self._running.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._failure("QEMU did not end") from error

    def kill(self) -> None:
        """Kill QEMU as the kernel's out-of-memory killer would."""
        self._running.send_signal(signal.SIGKILL)
        self._running.wait()

    def close(self) -> None:
        """End QEMU if it runs, and remove its files; the logs stay readable here."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        if not self._loop.is_closed():
            with contextlib.suppress(Exception):  # QMP says at length that QEMU is gone
                self._await(self._qmp.disconnect())
            self._loop.close()
        for connection in self._sockets:
            connection.close()
        if self._logs is None:
            self._logs = {name: self.log(name) for name in ("console", "firmware", "qemu")}
            shutil.rmtree(self._directory)

    @property
    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.poll() is None

    # What it said

    def log(self, name: str) -> str:
        """What was said: on the "console", by the "firmware" (its debug output), by "qemu"."""
        if self._logs is not None:
            return self._logs[name]
        path = self._log(name)
        return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""

    @property
    def console(self) -> str:
        """All that came out of the guest's first serial port."""
        return self.log("console")

    def wait_for_console(self, text: str, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the console contains this text."""
        deadline = time.monotonic() + timeout
        while text not in self.console:
            if time.monotonic() > deadline or not self.alive:
                raise self._failure(f"the console did not show {text!r}")
            time.sleep(0.05)

    def allow(self, pattern: str) -> None:
        """Accept kernel messages that match, where a test causes what they complain about."""
        self._allowed.append(re.compile(pattern))

    def complaints(self) -> list[str]:
        """Lines of the guest's kernel that a healthy NVMe disk does not cause."""
        return [
            line
            for line in self.console.splitlines()
            if KERNEL_LINE.match(line)
            and (TROUBLE.search(line) or NVME_LINE.search(line))
            and not any(pattern.search(line) for pattern in (*HEALTHY_LINES, *self._allowed))
        ]

    # Plumbing

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise GuestError("QEMU was not started")
        return self._process

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _await(self, what: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(what, QMP_TIMEOUT))

    def _failure(self, message: str) -> GuestError:
        last = "\n".join(self.console.splitlines()[-CONSOLE_LINES_IN_ERROR:])
        ended = "" if self.alive else f"\nQEMU ended: {self.log('qemu').strip()}"
        return GuestError(f"{message}{ended}\nthe console's end:\n{last}")
