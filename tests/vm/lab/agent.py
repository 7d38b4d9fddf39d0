"""Runs shell scripts inside a guest, over a virtio serial port.

The guest's end is init.sh. A request is one line "ID SCRIPT" with the script in base64; the answer
is one line "ID STATUS SIZE" followed by SIZE bytes, the script's standard output and error. After
each boot the guest says "ready RELEASE" first.
"""

from __future__ import annotations

import base64
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

CHUNK = 65536


class AgentError(Exception):
    """The guest did not answer in time, or is gone."""


@dataclass(frozen=True)
class Result:
    """What a script in the guest left: its exit status, and its output and errors as one text."""

    status: int
    output: str


class Agent:
    """The host's end of the port."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()
        self._ids = itertools.count(1)

    def wait_ready(self, timeout: float) -> str:
        """Wait until the guest runs its side, and return the release of its kernel."""
        deadline = time.monotonic() + timeout
        while True:
            word, _, rest = self._line(deadline).partition(" ")
            if word == "ready":
                return rest

    def send(self, script: str) -> int:
        """Send a script without waiting for its end, and return the request's id."""
        request = next(self._ids)
        encoded = base64.b64encode(script.encode()).decode()
        self._connection.settimeout(None)
        self._connection.sendall(f"{request} {encoded}\n".encode())
        return request

    def run(self, script: str, timeout: float) -> Result:
        """Run a script in the guest and wait for its end."""
        deadline = time.monotonic() + timeout
        request = str(self.send(script))
        while True:
            words = self._line(deadline).split()
            if len(words) == 3 and words[0] == request:  # else it is of an earlier boot
                output = self._bytes(int(words[2]), deadline)
                return Result(int(words[1]), output.decode(errors="replace"))

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._received:
            self._receive(deadline)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        return line.decode(errors="replace")

    def _bytes(self, size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            self._receive(deadline)
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise AgentError("the guest did not answer in time")
        self._connection.settimeout(left)
        try:
            received = self._connection.recv(CHUNK)
        except TimeoutError:
            raise AgentError("the guest did not answer in time") from None
        except ConnectionResetError:
            received = b""
        if not received:
            raise AgentError("QEMU ended")
        self._received += received
