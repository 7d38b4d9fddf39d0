"""asyncio server: one device on one Unix socket, one client at a time.

The layers of a session, from the socket up: :class:`_Connection` moves bytes and file descriptors
without ever blocking the loop, :class:`.codec.Receiver` cuts them into messages,
:class:`.session.Session` says whether a message is legal, and :class:`_ClientSession` checks it
against what the device says of itself and calls the device.

A session's messages are handled strictly in order: the next one is read when the reply to the one
before is with the kernel. So there is never more than one message in memory each way, and a client
that does not read its replies stops only itself.

A client that goes away, in whatever way, leaves by one door: what it sent is closed,
``device.detached()`` is awaited, and the next client can come. While a client is there, others are
accepted and closed at once.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import MessageType

from . import codec
from .device import DmaMap, SetIrqs
from .journal import SO_PEEK_OFF
from .session import Session, State

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any, Self

    from .device import Device
    from .journal import Journal

log = logging.getLogger(__name__)

SOCKET_NAME = "cntrl"
"""The socket's name in a directory: the one that SPDK's host driver looks for."""
UNSHARED_RAM_SIZE = 1 << 20
"""From this size on (bytes) writable memory without an fd is taken for RAM that is not shared.

What is smaller is other devices' BARs and the shadows of the BIOS, which are never shared.
"""

_NEGOTIATION_TIMEOUT_SECONDS = 10.0  # who says nothing must not keep others out for ever
_LOOK_AHEAD = 4096  # bytes; more than any message that carries file descriptors has
_MAX_WARNINGS = 10  # of a session; a client must not fill the disk with them
_ACCEPT_RETRY_SECONDS = 0.1  # after a failed accept: out of descriptors, mostly
_CLOSE_ERROR_TIMEOUT_SECONDS = 1.0  # how long the last error reply may wait to be read
_PEERCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
_SUN_PATH_SIZE = 108  # struct sockaddr_un


def socket_path(path: str | os.PathLike[str]) -> Path:
    """Where the socket is to be: ``path``, or ``path/cntrl`` if that is a directory.

    A path that ends with "/" means a directory; it is made (mode 0700) when it is not there.
    Raises :class:`OSError` when it cannot be made.
    """
    text = os.fspath(path)
    if text.endswith("/"):
        Path(text).mkdir(mode=0o700, exist_ok=True)
    elif not Path(text).is_dir():
        return Path(text)
    return Path(text) / SOCKET_NAME


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path`` that only its owner can connect to.

    The socket file of a server that has died is replaced. Raises :class:`OSError` with a message
    for users: EADDRINUSE if a process listens there, EEXIST if something else has that name,
    ENAMETOOLONG, or whatever else ``bind`` finds.
    """
    if len(os.fsencode(path)) >= _SUN_PATH_SIZE:
        limit = _SUN_PATH_SIZE - 1
        raise OSError(errno.ENAMETOOLONG, f"socket path longer than {limit} bytes", str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # bind() gives the file the mode of the socket: no moment in which others can connect.
        os.fchmod(listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        try:
            listener.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
            _remove_stale(path)
            listener.bind(str(path))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on; raises OSError for anything else."""
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if path.lstat().st_ino == found.st_ino:
                path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
    raise OSError(errno.EADDRINUSE, "in use by a running process", str(path))


def _close_all(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        os.close(fd)


class _Connection:
    """Bytes and file descriptors through a non-blocking stream socket; one user at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        self.peer_pid: int = _PEERCRED.unpack(credentials)[0]

    async def receive(self, size: int) -> tuple[bytes, list[int]]:
        """At most ``size`` bytes and what came with them; no bytes at the end of file.

        Raises OSError of the socket, or :class:`codec.RemoteProtocolError` for more file
        descriptors than we take; those that did come are closed then.
        """
        return await self._receive(size)

    async def _receive(self, size: int, how: int = 0) -> tuple[bytes, list[int]]:
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    size, codec.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC | how
                )
                break
            except BlockingIOError:
                await _ready(self._sock, self._loop.add_reader, self._loop.remove_reader)
        fds = codec.fds_in(ancillary)
        if flags & socket.MSG_CTRUNC:
            _close_all(fds)
            text = f"more than {codec.MAX_MSG_FDS} file descriptors with a message"
            raise codec.RemoteProtocolError(text, close=True)
        return data, fds

    async def send(self, data: bytes, fd: int | None = None) -> None:
        """All of ``data``, the fd with its first byte. Raises OSError of the socket."""
        view = memoryview(data)
        ancillary = []
        if fd is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        while view:
            try:
                sent = self._sock.sendmsg([view], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await _ready(self._sock, self._loop.add_writer, self._loop.remove_writer)
            else:
                view = view[sent:]
                ancillary = []

    @property
    def hung_up(self) -> bool:
        """Whether the client has closed its end, even if we have not read up to there."""
        poll = select.poll()
        poll.register(self._sock.fileno(), 0)  # POLLHUP is always reported
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def shut_down(self) -> None:
        """Make a pending and every later :meth:`receive` find the end of file."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


async def _ready(
    sock: socket.socket,
    add: Callable[[int, Callable[[asyncio.Future[None]], None], asyncio.Future[None]], None],
    remove: Callable[[int], bool],
) -> None:
    """Wait until the socket can be read or written; unlike the loop's own calls, this loses
    nothing when it is cancelled."""
    ready = asyncio.get_running_loop().create_future()
    fd = sock.fileno()
    add(fd, _set_ready, ready)
    try:
        await ready
    finally:
        remove(fd)


class _JournalledConnection(_Connection):
    """A connection whose message in progress outlives this process (see :mod:`.journal`)."""

    def __init__(self, sock: socket.socket, journal: Journal) -> None:
        super().__init__(sock)
        self.journal = journal
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)

    async def receive(self, size: int) -> tuple[bytes, list[int]]:
        """As of any connection; what it returns is in the journal."""
        seen, fds = await self._receive(max(size + 1, _LOOK_AHEAD), socket.MSG_PEEK)
        try:
            data = seen[:size]
            if data:
                expected = fds if len(seen) <= self._message_left(seen, size) else []
                self.journal.take(data, expected, len(seen))
        finally:
            _close_all(fds)
        if not data:
            return data, []
        taken = self._consume(len(data))
        if len(taken) != len(expected):
            # Several messages in one, with descriptors for the first of them: nobody does that.
            self.journal.take(data, taken, len(seen))
        self.journal.taken()
        self._sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        return data, taken

    def _message_left(self, seen: bytes, size: int) -> int:
        """Bytes up to the end of the message. A look at them brings its file descriptors, and
        one that goes on behind them those of the next message."""
        if self.journal.received or len(seen) < wire.HEADER_SIZE:
            return size
        return int.from_bytes(seen[4:8], "little")  # message_size

    async def send(self, data: bytes, fd: int | None = None) -> None:
        """As of any connection; nothing (no reply is wanted) is a reply, too."""
        self.journal.answer(data, has_fd=fd is not None)
        if fd is not None:
            # Not by sendfile, and all at once, as clients expect. To be killed between this and the
            # next line makes a second reply; clients ask for an fd once, when they start.
            await super().send(data, fd)
            os.lseek(self.journal.reply_fd, len(data), os.SEEK_SET)
        await self.send_rest()

    async def send_rest(self) -> None:
        """What is left of the reply in the journal, which is then ready for the next request."""
        while left := self.journal.reply_size - self.journal.sent:
            try:
                os.sendfile(self._sock.fileno(), self.journal.reply_fd, None, left)
            except BlockingIOError:
                await _ready(self._sock, self._loop.add_writer, self._loop.remove_writer)
        self.journal.finish()

    def _consume(self, size: int) -> list[int]:
        """Take from the socket what was peeked at, and the descriptors with it."""
        fds: list[int] = []
        while size:
            data, ancillary, _, _ = self._sock.recvmsg(
                size, codec.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
            fds += codec.fds_in(ancillary)
            size -= len(data)
        return fds

    @classmethod
    def resume(cls, sock: socket.socket, journal: Journal) -> Self:
        """The connection of a process that died, with the journal set right."""
        peeked = sock.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
        connection = cls(sock, journal)  # which sets it to 0
        if journal.target:
            consumed = journal.peeked - peeked
            if consumed:
                left = journal.target - journal.received - consumed
                _close_all(connection._consume(left))
                journal.taken()
            else:
                journal.not_taken()
        journal.claim()
        if journal.answered and journal.reply_has_fd and not journal.sent:
            # The fd is not in the journal: whoever asks for one can be answered again.
            journal.answered = 0
        return connection


def _set_ready(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _ClientSession:
    """One client from the first byte to the last."""

    def __init__(self, device: Device, connection: _Connection, name: str) -> None:
        self._device = device
        self._connection = connection
        self._name = name
        self._session = Session()
        self._receiver = codec.Receiver()
        self._attached = False
        self._warnings = 0
        self._warned_unshared = False
        self._again = False
        """The request may have been executed before, by a process that died."""

    async def resume(self, connection: _JournalledConnection) -> None:
        """Go on with the session of a process that died, until the client goes."""
        journal = connection.journal
        if journal.running:
            self._attached = True
            self._session.state = State.RUNNING
            self._session.peer_max_msg_fds = journal.peer_max_msg_fds
        await self.run(connection)

    async def _unfinished(self, connection: _JournalledConnection) -> codec.Message | None:
        """The request that a process before us has received and not answered, if it is whole."""
        if connection.journal.answered:
            await connection.send_rest()
            return None
        data, fds = connection.journal.request()
        message = self._receiver.receive(data[: wire.HEADER_SIZE], fds)
        if message is None and len(data) > wire.HEADER_SIZE:
            message = self._receiver.receive(data[wire.HEADER_SIZE :])
        if message is not None and message.header.command == wire.Command.VERSION:
            self._session.state = State.NEGOTIATING
        self._again = message is not None
        return message

    async def run(self, resumed: _JournalledConnection | None = None) -> None:
        """Serve until the client goes; never raises but for cancellation.

        ``resumed``: the connection, when a process before us has begun the session.
        """
        try:
            message = await self._unfinished(resumed) if resumed is not None else None
            running = self._session.state is State.RUNNING
            async with asyncio.timeout(None if running else _NEGOTIATION_TIMEOUT_SECONDS):
                message = message or await self._next_message()
            while message is not None:
                try:
                    await self._handle(message)
                finally:
                    _close_all(message.fds)
                    self._again = False
                message = await self._next_message()
        except codec.RemoteProtocolError as error:
            log.warning("%s: protocol error: %s; connection closed", self._name, error)
            await self._last_words(error)
        except TimeoutError:
            log.warning("%s: the client says nothing; connection closed", self._name)
        except OSError as error:
            # The client's end is gone while we write to it; that is how QEMU's exit looks.
            log.debug("%s: connection lost: %s", self._name, error)
        except Exception:
            log.exception("%s: session failed", self._name)
        finally:
            self._session.close()
            _close_all(self._receiver.take_fds())
            if self._attached:
                await self._detach()

    async def _detach(self) -> None:
        try:
            await self._device.detached()
        except Exception:
            log.exception("%s: device failed to detach", self._name)

    async def _next_message(self) -> codec.Message | None:
        while True:
            data, fds = await self._connection.receive(self._receiver.wanted)
            if not data and not fds:
                self._receiver.eof()
                return None
            if (message := self._receiver.receive(data, fds)) is not None:
                return message

    async def _last_words(self, error: codec.RemoteProtocolError) -> None:
        """Tell the client why, if there is a message to reply to and it reads at all."""
        header = error.header
        if header is None or header.type is not MessageType.COMMAND:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_ERROR_TIMEOUT_SECONDS):
                await self._connection.send(self._session.error(header, error.errno))

    async def _handle(self, message: codec.Message) -> None:
        """Check, execute, reply. Raises RemoteProtocolError only if the session has to end."""
        header = message.header
        try:
            request = self._session.check(message)
            body, fd = await self._execute(request, message.fds)
            reply = self._session.reply(header, body)
        except codec.RemoteProtocolError as error:
            if error.close:
                error.header = header
                raise
            self._warn(error)
            reply, fd = self._session.error(header, error.errno), None
        except OSError as error:
            log.debug("%s: command %d refused: %s", self._name, header.command, error)
            reply, fd = self._session.error(header, error.errno or errno.EIO), None
        except Exception:
            log.exception("%s: command %d failed", self._name, header.command)
            reply, fd = self._session.error(header, errno.EIO), None
        await self._connection.send(reply, fd)

    def _warn(self, error: codec.RemoteProtocolError) -> None:
        self._warnings += 1
        level = logging.WARNING if self._warnings <= _MAX_WARNINGS else logging.DEBUG
        log.log(level, "%s: protocol error: %s", self._name, error)

    async def _execute(
        self, request: codec.Request, fds: tuple[int, ...]
    ) -> tuple[bytes, int | None]:
        """Do what a legal request asks; returns the reply's body and the fd that goes with it.

        Raises RemoteProtocolError for what the device does not have, OSError for what it refuses.
        """
        match request:
            case codec.RegionRead():
                return self._region_read(request), None
            case codec.RegionWrite():
                return self._region_write(request), None
            case codec.Version():
                return await self._version(request), None
            case codec.DmaMap():
                await self._dma_map(request, fds[0] if fds else None)
            case codec.DmaUnmap():
                return await self._dma_unmap(request), None
            case codec.DeviceInfo():
                return self._device_info(), None
            case codec.RegionInfo():
                return self._region_info(request)
            case codec.RegionIoFds():
                self._check_region(request.index)
                return codec.RegionIoFds(request.index).pack(), None
            case codec.IrqInfo():
                irq = self._device.irq_info(self._check_irq(request.index))
                info = codec.IrqInfo(request.index, flags=irq.flags, count=irq.count)
                return info.pack(), None
            case codec.SetIrqs():
                await self._set_irqs(request, fds)
            case codec.DeviceReset():
                await self._reset()
        return b"", None

    async def _version(self, proposal: codec.Version) -> bytes:
        reply = self._session.accept_version(proposal)
        try:
            await self._device.attached()
        except OSError as error:
            text = f"refused by the device: {error}"
            raise codec.RemoteProtocolError(
                text, errno=error.errno or errno.EIO, close=True
            ) from error
        self._attached = True
        if isinstance(self._connection, _JournalledConnection):
            self._connection.journal.peer_max_msg_fds = self._session.peer_max_msg_fds
            self._connection.journal.running = 1
        log.debug("%s: version %d.%d", self._name, reply.major, reply.minor)
        return reply.pack()

    def _check_region(self, index: int) -> int:
        if index >= self._device.info().num_regions:
            raise codec.RemoteProtocolError(f"no region {index}")
        return index

    def _check_irq(self, index: int) -> int:
        if index >= self._device.info().num_irqs:
            raise codec.RemoteProtocolError(f"no interrupt type {index}")
        return index

    def _check_access(
        self, index: int, offset: int, count: int, needed: wire.RegionInfoFlags
    ) -> None:
        region = self._device.region_info(self._check_region(index))
        if offset + count > region.size:
            raise codec.RemoteProtocolError(
                f"{count} bytes at {offset:#x} of region {index} of {region.size:#x} bytes"
            )
        if needed not in region.flags:
            raise OSError(errno.EPERM, f"region {index} does not allow it")

    def _region_read(self, request: codec.RegionRead) -> bytes:
        self._check_access(request.region, request.offset, request.count, wire.RegionInfoFlags.READ)
        data = self._device.region_read(request.region, request.offset, request.count)
        if len(data) != request.count:
            raise RuntimeError(f"device gave {len(data)} bytes instead of {request.count}")
        return codec.RegionWrite(request.offset, request.region, data).pack()

    def _region_write(self, request: codec.RegionWrite) -> bytes:
        count = len(request.data)
        self._check_access(request.region, request.offset, count, wire.RegionInfoFlags.WRITE)
        self._device.region_write(request.region, request.offset, request.data)
        return codec.RegionRead(request.offset, request.region, count).pack()

    def _device_info(self) -> bytes:
        info = self._device.info()
        return codec.DeviceInfo(
            flags=info.flags, num_regions=info.num_regions, num_irqs=info.num_irqs
        ).pack()

    def _region_info(self, request: codec.RegionInfo) -> tuple[bytes, int | None]:
        """The whole answer with capability and fd, or as much as ``argsz`` allows without them.

        A reply that is larger than the client has said, or an fd that it does not expect, ends
        QEMU. It asks again with the argsz that it is told.
        """
        region = self._device.region_info(self._check_region(request.index))
        flags = region.flags & ~wire.RegionInfoFlags.CAPS
        areas = tuple((area.offset, area.size) for area in region.areas) or None
        whole = codec.RegionInfo(
            request.index, 0, flags, region.size, region.fd_offset, areas=areas
        )
        if whole.needed <= request.argsz and self._session.peer_max_msg_fds > 0:
            argsz, fd = whole.needed, region.fd
        else:
            argsz, fd = whole.needed, None
            flags &= ~wire.RegionInfoFlags.MMAP
            areas = None
        reply = codec.RegionInfo(
            request.index, argsz, flags, region.size, region.fd_offset, areas=areas
        )
        return reply.pack(), fd

    async def _set_irqs(self, request: codec.SetIrqs, fds: tuple[int, ...]) -> None:
        count = self._device.irq_info(self._check_irq(request.index)).count
        if request.start + request.count > count:
            raise codec.RemoteProtocolError(
                f"interrupts {request.start} + {request.count} of {count} (type {request.index})"
            )
        data = wire.IrqSetFlags(request.flags) & wire.IRQ_SET_DATA_MASK
        if fds and (data != wire.IrqSetFlags.DATA_EVENTFD or len(fds) != request.count):
            raise codec.RemoteProtocolError(
                f"{len(fds)} file descriptors for {request.count} interrupts"
            )
        action = wire.IrqSetFlags(request.flags) & wire.IRQ_SET_ACTION_MASK
        await self._device.set_irqs(
            SetIrqs(request.index, request.start, request.count, data, action, request.bools), fds
        )

    async def _dma_map(self, request: codec.DmaMap, fd: int | None) -> None:
        flags = wire.DmaMapFlags(request.flags)
        if (
            fd is None
            and wire.DmaMapFlags.WRITE in flags
            and request.size >= UNSHARED_RAM_SIZE
            and not self._warned_unshared
        ):
            self._warned_unshared = True
            log.warning(
                "%s: guest memory is not shared: start QEMU with a memory backend with share=on",
                self._name,
            )
        if self._again:
            # Else the window would overlap itself.
            await self._device.dma_unmap(request.address, request.size)
        await self._device.dma_map(DmaMap(request.address, request.size, request.offset, flags), fd)

    async def _dma_unmap(self, request: codec.DmaUnmap) -> bytes:
        if request.flags & wire.DmaUnmapFlags.ALL:
            await self._device.dma_unmap_all()
        else:
            await self._device.dma_unmap(request.address, request.size)
        return request.pack()

    async def _reset(self) -> None:
        if wire.DeviceFlags.RESET not in self._device.info().flags:
            raise OSError(errno.ENOTSUP, "the device cannot be reset")
        await self._device.reset()


class Continuity(Protocol):
    """What lets a server be killed under its client: what is kept, and who keeps it."""

    @property
    def journal(self) -> Journal:
        """Of the one session."""

    @property
    def inherited(self) -> Mapping[str, int]:
        """Descriptors by name; what is taken of them is the server's."""

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor until :meth:`remove`."""

    def remove(self, name: str) -> None:
        """Give it up."""


LISTENER = "listener"
CLIENT = "client"


class Server:
    """Serves a device on a Unix socket until closed.

    ::

        async with Server(device, socket_path("/run/user/0/vm1.sock")) as server:
            await stop.wait()

    All of it, the device's methods included, runs in the event loop that :meth:`start` ran in.
    """

    def __init__(
        self,
        device: Device,
        path: str | os.PathLike[str],
        continuity: Continuity | None = None,
    ) -> None:
        """``continuity``: None if the session ends with this process."""
        self._continuity = continuity
        self.device = device
        """What is served."""
        self.path = Path(path)
        """The socket's path, as given; :func:`socket_path` turns a directory into one."""
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._serving is not None and not self._serving.done()

    @property
    def client_pid(self) -> int | None:
        """The process of the client that is there; None: nobody is."""
        return self._connection.peer_pid if self.connected and self._connection else None

    async def disconnect(self) -> None:
        """Send the client away; returns when the device has let go of it and the next can come."""
        serving = self._serving
        if self._connection is not None and self.connected:
            self._connection.shut_down()
        if serving is not None:
            await asyncio.wait({serving})

    async def start(self) -> None:
        """Listen; clients can connect when it returns. Raises OSError as :func:`listen`."""
        inherited = self._continuity.inherited if self._continuity is not None else {}
        if LISTENER in inherited:
            self._listener = socket.socket(fileno=inherited[LISTENER])
            self._listener.setblocking(False)
        else:
            self._listener = listen(self.path)
            if self._continuity is not None:
                self._continuity.store(LISTENER, self._listener.fileno())
        with contextlib.suppress(FileNotFoundError):  # somebody removed it while we were dead
            found = self.path.lstat()
            self._identity = (found.st_dev, found.st_ino)
        if self._continuity is not None and CLIENT in inherited:
            self._resume(socket.socket(fileno=inherited[CLIENT]), self._continuity.journal)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self) -> None:
        """Stop listening, send the client away, wait until the device has let go of it.

        The socket's file is removed, if it is still ours. May be called more than once.
        """
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait({self._accepting})
            self._accepting = None
        if self._listener is not None:
            self._remove_socket()
            self._listener.close()
            self._listener = None
        if self._connection is not None:
            self._connection.shut_down()
        if self._serving is not None:
            await asyncio.wait({self._serving})
            self._serving = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _remove_socket(self) -> None:
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await _ready(listener, loop.add_reader, loop.remove_reader)
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                log.warning("%s: cannot accept a client: %s", self.path, error)
                await asyncio.sleep(_ACCEPT_RETRY_SECONDS)
                continue
            try:
                await self._admit(sock)
            except OSError as error:
                sock.close()
                log.warning("%s: client lost at once: %s", self.path, error)
            except BaseException:
                sock.close()
                raise

    async def _admit(self, sock: socket.socket) -> None:
        """Start a session, or refuse the client because another one is there."""
        if self._serving is not None and not self._serving.done():
            if self._connection is not None and not self._connection.hung_up:
                log.warning("%s: another client refused, one is connected", self.path)
                sock.close()
                return
            # The client before has gone but the device is not done with it: that is no reason
            # to send this one away.
            await asyncio.wait({self._serving})
        if self._continuity is None:
            self._connection = _Connection(sock)
        else:
            self._continuity.journal.reset()
            self._continuity.store(CLIENT, sock.fileno())
            self._connection = _JournalledConnection(sock, self._continuity.journal)
        log.info("%s: client connected (pid %d)", self.path, self._connection.peer_pid)
        session = _ClientSession(self.device, self._connection, str(self.path))
        self._serving = asyncio.create_task(self._serve(self._connection, session.run()))

    def _resume(self, sock: socket.socket, journal: Journal) -> None:
        """Go on with the client of a process that died."""
        connection = self._connection = _JournalledConnection.resume(sock, journal)
        session = _ClientSession(self.device, connection, str(self.path))
        self._serving = asyncio.create_task(self._serve(connection, session.resume(connection)))

    async def _serve(self, connection: _Connection, session: Coroutine[Any, Any, None]) -> None:
        try:
            await session
        finally:
            if self._continuity is not None:
                self._continuity.remove(CLIENT)
                self._continuity.journal.reset()
            connection.close()
            log.info("%s: client disconnected", self.path)
