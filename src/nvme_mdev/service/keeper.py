"""The keeper: a parent process that holds the serving process' file descriptors while it is dead.

It does what systemd does for a service with an FD store (:mod:`.fdstore`), in a few lines and with
nothing of the program in it, so that it has no reason to die: it starts the serving process, takes
the descriptors that it is told to keep, and when the process is killed, or ends to be restarted
(:data:`EXIT_RESTART`), starts it again and gives them back. Stop signals are passed on, and any
other end that the serving process comes to by itself is the keeper's. Neither outlives the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
import warnings
from typing import TYPE_CHECKING

from nvme_mdev.service.standard_error import standard_error

if TYPE_CHECKING:
    from collections.abc import Sequence

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_GAVE_UP = 1
EXIT_NOT_EXECUTED = 127
"""As shells have it."""
EXIT_RESTART = 75
"""Exit status of a serving process that wants to be started again (EX_TEMPFAIL of sysexits(3))."""
MAX_RESTARTS = 40
"""Restarts in :data:`WINDOW_S` before the keeper gives up; arbitrary, a crash loop has more."""
WINDOW_S = 30.0
MAX_FDS = 8192
"""Descriptors that are kept at most; there are about 150 for a guest with 64 vCPUs. Their names go
into one environment variable of at most 128 KiB."""

_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_LISTEN_FDS_START = 3
_PR_SET_PDEATHSIG = 1
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_MAX_DATAGRAM = 4096


class Keeper:
    """One serving process after the other, and what they have stored."""

    def __init__(self, command: Sequence[str]) -> None:
        """``command``: what to execute, the program's path first."""
        self._command = list(command)
        self._fds: dict[str, int] = {}
        self._child = 0
        self._was_ready = False
        self._stopping = False
        self._restarts: list[float] = []
        self._libc = ctypes.CDLL(None)
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("")  # the kernel finds a name in the abstract namespace

    def run(self, *, serve_here: bool = False) -> int | None:
        """Keep a process serving until it ends by itself; its exit status.

        ``serve_here``: the first one is a copy of this process, which need not load again what this
        one has loaded: ``None`` is returned there, and it is to serve. For a process that was
        started for this, and has no other thread. Those after it execute the command.

        After a stop signal these signals are blocked: this process is to end, too.
        """
        before = {number: signal.getsignal(number) for number in PASSED_ON}
        try:
            while True:
                if self._start(execute=not serve_here):
                    return None
                serve_here = False
                status = self._wait()
                if os.WIFEXITED(status) and self._wants_restart(os.WEXITSTATUS(status)):
                    continue
                if os.WIFEXITED(status):
                    return os.WEXITSTATUS(status)
                self._after_death(os.WTERMSIG(status))
                if self._gives_up():
                    return EXIT_GAVE_UP
        finally:
            if self._stopping:
                # Some send a signal to a process and to its group: what is late ends nobody.
                signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
            for number, handler in before.items():
                signal.signal(number, handler)
            for fd in self._fds.values():
                os.close(fd)
            self._socket.close()

    # -- the serving process -----------------------------------------------------------------

    def _start(self, *, execute: bool) -> bool:
        """Start the serving process. True: this is it."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # it was closed when this process started
                stream.flush()
        # A signal that comes before there is a child to pass it on to waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        keeper = os.getpid()
        with warnings.catch_warnings():
            # The child executes a program at once: threads of a process that embeds us do no harm.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._child = os.fork()
        if self._child == 0:
            try:
                self._leave(keeper)
                if not execute:
                    self._become_server()
                    return True
                self._execute_server()
            except OSError as error:
                standard_error.say(f"cannot start: {error}")
            os._exit(EXIT_NOT_EXECUTED)
        for number in PASSED_ON:
            # What nohup ignores stays ignored; SIGINT is ignored by shells for another reason.
            if signal.getsignal(number) != signal.SIG_IGN or number is signal.SIGINT:
                signal.signal(number, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return False

    def _leave(self, keeper: int) -> None:
        """In the child: die with the keeper, but not of what is sent to it."""
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(EXIT_NOT_EXECUTED)
        # Ctrl-C goes to the terminal's foreground group: to the keeper alone, which passes it on.
        os.setpgid(0, 0)

    def _become_server(self) -> None:
        """In the child, before anything was kept: the environment is all that it needs."""
        os.environ.update(self._environment())
        for name in _LISTEN:
            os.environ.pop(name, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)

    def _execute_server(self) -> None:
        """In the child: the descriptors from 3 on, and the program."""
        for number in PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        environment = self._environment()
        end = _LISTEN_FDS_START + len(self._fds)
        # Out of the way first: a descriptor may be where another one goes.
        moved = [_duplicate_above(fd, end) for fd in self._fds.values()]
        for target, fd in enumerate(moved, _LISTEN_FDS_START):
            os.dup2(fd, target, inheritable=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        os.execve(self._command[0], self._command, environment)  # noqa: S606

    def _environment(self) -> dict[str, str]:
        """Of the serving process, whose process identifier is ours."""
        environment = dict(os.environ, NOTIFY_SOCKET="@" + self._socket.getsockname()[1:].decode())
        for name in _LISTEN:
            environment.pop(name, None)
        if self._fds:
            environment["LISTEN_PID"] = str(os.getpid())
            environment["LISTEN_FDS"] = str(len(self._fds))
            environment["LISTEN_FDNAMES"] = ":".join(self._fds)
        return environment

    def _pass_on(self, number: int, _frame: object) -> None:
        self._stopping = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _wait(self) -> int:
        """Listen to the serving process until it ends; its wait status."""
        pidfd = os.pidfd_open(self._child)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(self._socket, select.POLLIN)
            while True:
                ready = {fd for fd, _ in poll.poll()}
                # What it said before it died counts: read everything, then look after it.
                self._listen()
                if pidfd in ready:
                    self._listen()
                    return os.waitpid(self._child, 0)[1]
        finally:
            os.close(pidfd)

    # -- when it has died --------------------------------------------------------------------

    def _wants_restart(self, status: int) -> bool:
        """Whether it has ended to be started again; not if it was to end, too."""
        return status == EXIT_RESTART and self._was_ready and not self._stopping

    def _after_death(self, number: int) -> None:
        """Die of a signal that was to end it, too, or of one that came before it ever served."""
        if self._stopping or not self._was_ready:
            if number != signal.SIGKILL:
                signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        standard_error.say(
            f"the serving process was killed ({signal.Signals(number).name}), starting it again"
        )

    def _gives_up(self) -> bool:
        now = time.monotonic()
        self._restarts = [when for when in self._restarts if now - when < WINDOW_S] + [now]
        if len(self._restarts) <= MAX_RESTARTS:
            return False
        standard_error.say(
            f"it was killed {len(self._restarts)} times in {WINDOW_S:.0f} s: giving up"
        )
        return True

    # -- the FD store ------------------------------------------------------------------------

    def _listen(self) -> None:
        """Take every datagram that is there."""
        size = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(_CREDENTIALS.size)
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _MAX_DATAGRAM, size, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            fds: list[int] = []
            sender = 0
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds += struct.unpack(f"{len(content) // 4}i", content)
                elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    sender = _CREDENTIALS.unpack(content)[0]
            if sender == self._child:
                fds = self._obey(data, fds)
            for fd in fds:
                os.close(fd)

    def _obey(self, data: bytes, fds: list[int]) -> list[int]:
        """Do what a message says; the descriptors that are not kept."""
        said = dict(line.split("=", 1) for line in data.decode().splitlines() if "=" in line)
        name = said.get("FDNAME", "stored")
        if said.get("READY") == "1":
            self._was_ready = True
        if said.get("FDSTOREREMOVE") == "1" and name in self._fds:
            os.close(self._fds.pop(name))
        if said.get("FDSTORE") == "1" and fds and len(self._fds) < MAX_FDS:
            if name in self._fds:
                os.close(self._fds.pop(name))
            self._fds[name] = fds.pop(0)
        return fds


def _duplicate_above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
