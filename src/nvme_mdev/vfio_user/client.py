"""Blocking client of a vfio-user server, ours or any other.

For host drivers, benches and tests. One request is under way at a time and its reply is waited
for, so a call that returns has happened. An error reply raises :class:`OSError` with its errno.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import Command, HeaderFlags, MessageType

from . import framing, messages
from .device import DeviceInfo, DmaMap, IrqInfo, RegionInfo, SetIrqs, SparseArea

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

DEFAULT_TIMEOUT = 30.0
"""Seconds to wait for a reply: some servers take long for a reset or a first mapping."""

_TIMEVAL = struct.Struct("@ll")
_REGION_INFO_ARGSZ = 4096  # enough for 250 sparse areas; a server that needs more says so
_MAX_REGION_INFO_ARGSZ = 64 << 10  # what a server is believed to need
_MAX_ERRNO = 4095  # the kernel's; os.strerror() takes no number above an int's

OUR_CAPABILITIES = messages.Capabilities(
    max_msg_fds=framing.MAX_MSG_FDS,
    max_data_xfer_size=framing.MAX_DATA_XFER_SIZE,
    max_dma_maps=messages.MAX_DMA_MAPS,
    pgsizes=wire.DEFAULT_PGSIZES,
)
"""What the client says of itself."""


class Client:
    """A session with a vfio-user server.

    ::

        with Client("/run/user/0/vm1.sock") as client:
            cap = client.region_read(PciRegion.BAR0, 0, 8)

    Every method raises :class:`OSError`: with the errno of an error reply, :class:`TimeoutError`
    when no reply comes, :class:`ConnectionError` when the server goes away; and
    :class:`.framing.RemoteProtocolError` for a reply that makes no sense. After the last three the
    session is over. A call takes no longer than twice the timeout, whatever comes in place of the
    reply. Not for use from several threads at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        capabilities: messages.Capabilities | None = OUR_CAPABILITIES,
    ) -> None:
        """Connect and agree on a version; ``timeout`` in seconds is for each reply.

        ``capabilities`` None sends VERSION without JSON, as SPDK's driver does.
        """
        self._receiver = framing.Receiver()
        self._message_id = 0
        self._timeout = timeout
        self._over = ""
        """Why the session is over: what comes later would be the replies to what was given up."""
        self.max_msg_fds = wire.DEFAULT_MAX_MSG_FDS
        """How many file descriptors the server takes in a message."""
        self.max_data_xfer_size = wire.DEFAULT_MAX_DATA_XFER_SIZE
        """How many bytes the server lets a region access have."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not settimeout(): that makes two system calls of each one.
            limit = _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._socket.connect(os.fspath(path))
            self.version = self._negotiate(capabilities)
        except BaseException:
            self.close()
            raise

    def _negotiate(self, capabilities: messages.Capabilities | None) -> messages.Version:
        proposal = messages.Version(wire.VERSION_MAJOR, wire.VERSION_MINOR, capabilities)
        version = messages.Version.unpack(self._call(proposal))
        if version.major != wire.VERSION_MAJOR or version.minor > wire.VERSION_MINOR:
            raise framing.RemoteProtocolError(f"server speaks {version.major}.{version.minor}")
        said = version.capabilities or messages.Capabilities()
        if said.max_msg_fds is not None:
            self.max_msg_fds = said.max_msg_fds
        if said.max_data_xfer_size is not None:
            self.max_data_xfer_size = min(said.max_data_xfer_size, framing.MAX_DATA_XFER_SIZE)
        return version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session without a word, as vfio-user clients do. May be called again."""
        self._socket.close()
        for fd in self._receiver.take_fds():
            os.close(fd)

    def fileno(self) -> int:
        """The socket, to wait for the server's end (``POLLHUP``); -1 when closed."""
        return self._socket.fileno()

    # --- requests ---

    def device_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        info = messages.DeviceInfo.unpack(self._call(messages.DeviceInfo()))
        return DeviceInfo(wire.DeviceFlags(info.flags), info.num_regions, info.num_irqs)

    def region_info(self, index: int) -> RegionInfo:
        """DEVICE_GET_REGION_INFO. The fd in it is the caller's to close."""
        request = messages.RegionInfo(index, _REGION_INFO_ARGSZ)
        while True:
            message = self.request(Command.DEVICE_GET_REGION_INFO, request.pack())
            try:
                info = messages.RegionInfo.unpack(message.body)
                whole = info.argsz <= request.argsz
                if not whole and info.argsz > _MAX_REGION_INFO_ARGSZ:
                    raise framing.RemoteProtocolError(f"region info of {info.argsz} bytes")
                if len(message.fds) > 1 or info.index != index:
                    raise framing.RemoteProtocolError("not the region info that was asked for")
            except framing.RemoteProtocolError:
                _close_all(message.fds)
                raise
            if whole:
                break
            _close_all(message.fds)
            if request.argsz > _REGION_INFO_ARGSZ:
                raise framing.RemoteProtocolError("region info that gets longer and longer")
            request = messages.RegionInfo(index, info.argsz)
        return RegionInfo(
            size=info.size,
            flags=wire.RegionInfoFlags(info.flags),
            areas=tuple(SparseArea(offset, size) for offset, size in info.areas or ()),
            fd=message.fds[0] if message.fds else None,
            fd_offset=info.offset,
        )

    def region_io_fds(self, index: int) -> int:
        """DEVICE_GET_REGION_IO_FDS: how many sub-regions the server offers, which are not used."""
        return messages.RegionIoFds.unpack(self._call(messages.RegionIoFds(index))).count

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        info = messages.IrqInfo.unpack(self._call(messages.IrqInfo(index)))
        return IrqInfo(count=info.count, flags=wire.IrqInfoFlags(info.flags))

    def region_read(self, index: int, offset: int, size: int) -> bytes:
        """REGION_READ: ``size`` bytes at byte ``offset``, at most :attr:`max_data_xfer_size`."""
        self._check_size(size)
        reply = messages.RegionWrite.unpack(self._call(messages.RegionRead(offset, index, size)))
        if len(reply.data) != size:
            raise framing.RemoteProtocolError(f"{len(reply.data)} bytes instead of {size}")
        return reply.data

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """REGION_WRITE at byte ``offset``; ``data`` is at most :attr:`max_data_xfer_size`."""
        self._check_size(len(data))
        self._call(messages.RegionWrite(offset, index, data))

    def region_post(self, index: int, offset: int, data: bytes) -> None:
        """As :meth:`region_write`; no reply is asked for, so an error is not heard of."""
        self._check_size(len(data))
        request = messages.RegionWrite(offset, index, data)
        self._message_id = (self._message_id + 1) & 0xFFFF
        header = framing.MessageHeader(
            self._message_id, request.command, flags=HeaderFlags.NO_REPLY
        )
        self._send(framing.encode(header, request.pack()))

    def _check_size(self, size: int) -> None:
        if not 0 < size <= self.max_data_xfer_size:
            raise framing.LocalProtocolError(f"region access of {size} bytes")

    def dma_map(self, mapping: DmaMap, fd: int | None = None) -> None:
        """DMA_MAP: let the device use memory, a part of ``fd`` if given."""
        request = messages.DmaMap(mapping.flags, mapping.offset, mapping.iova, mapping.size)
        self._call(request, () if fd is None else (fd,))

    def dma_unmap(self, iova: int, size: int) -> None:
        """DMA_UNMAP: when it returns the device does not touch that memory any more."""
        self._call(messages.DmaUnmap(0, iova, size))

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of everything."""
        self._call(messages.DmaUnmap(wire.DmaUnmapFlags.ALL, 0, 0))

    def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> None:
        """DEVICE_SET_IRQS, in as many messages as the fds need (:attr:`max_msg_fds`).

        ``fds`` are none or ``request.count``; they stay the caller's and may be closed afterwards.
        """
        if fds and len(fds) != request.count:
            raise framing.LocalProtocolError(f"{len(fds)} eventfds for {request.count} interrupts")
        if fds and self.max_msg_fds < 1:
            raise framing.LocalProtocolError("the server takes no file descriptors")
        flags = request.data | request.action
        if not fds:
            self._call(
                messages.SetIrqs(flags, request.index, request.start, request.count, request.bools)
            )
        for first in range(0, len(fds), max(self.max_msg_fds, 1)):
            part = tuple(fds[first : first + self.max_msg_fds])
            start = request.start + first
            self._call(messages.SetIrqs(flags, request.index, start, len(part)), part)

    def enable_irqs(self, index: int, eventfds: Sequence[int], start: int = 0) -> None:
        """Have interrupts ``start`` … signal these eventfds."""
        self.set_irqs(
            SetIrqs(
                index,
                start,
                len(eventfds),
                wire.IrqSetFlags.DATA_EVENTFD,
                wire.IrqSetFlags.ACTION_TRIGGER,
            ),
            eventfds,
        )

    def disable_irqs(self, index: int) -> None:
        """Disable a whole interrupt type."""
        self.set_irqs(
            SetIrqs(index, 0, 0, wire.IrqSetFlags.DATA_NONE, wire.IrqSetFlags.ACTION_TRIGGER)
        )

    def reset(self) -> None:
        """DEVICE_RESET."""
        self._call(messages.DeviceReset())

    # --- messages ---

    def _call(self, request: messages.Request, fds: Sequence[int] = ()) -> bytes:
        """Send a request whose reply has no fds, return the reply's body."""
        message = self.request(request.command, request.pack(), fds)
        if message.fds:
            _close_all(message.fds)
            raise framing.RemoteProtocolError("file descriptors that nobody asked for")
        return message.body

    def request(self, command: int, body: bytes = b"", fds: Sequence[int] = ()) -> framing.Message:
        """Send any message and return its reply, whose fds are the caller's; for tests, mostly."""
        if self._over:
            raise ConnectionAbortedError(errno.ECONNABORTED, f"the session is over: {self._over}")
        try:
            reply = self._exchange(command, body, fds)
        except (OSError, framing.ProtocolError) as error:
            self._over = getattr(error, "strerror", None) or str(error)
            raise
        if HeaderFlags.ERROR in reply.header.flags:
            _close_all(reply.fds)
            number = reply.header.error
            if not 0 < number <= _MAX_ERRNO:
                number = errno.EIO
            raise OSError(number, os.strerror(number))
        return reply

    def _exchange(self, command: int, body: bytes, fds: Sequence[int]) -> framing.Message:
        self._message_id = (self._message_id + 1) & 0xFFFF
        header = framing.MessageHeader(self._message_id, command)
        self._send(framing.encode(header, body), fds)
        reply = self._receive_reply()
        if reply.header.message_id != self._message_id or reply.header.command != command:
            _close_all(reply.fds)
            raise framing.RemoteProtocolError(f"reply to something else: {reply.header}")
        return reply

    def _receive_reply(self) -> framing.Message:
        deadline = time.monotonic() + self._timeout
        while True:
            message = self._receive(deadline)
            if message.header.type is MessageType.REPLY:
                return message
            # The server wants our memory through the socket, which we do not offer.
            _close_all(message.fds)
            self._refuse(message.header, errno.ENOTSUP)

    def _refuse(self, request: framing.MessageHeader, number: int) -> None:
        """Reply with an error to a request of the server's."""
        if not request.no_reply:
            header = framing.MessageHeader(
                request.message_id,
                request.command,
                MessageType.REPLY,
                HeaderFlags.ERROR,
                number,
            )
            self._send(framing.encode(header))

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            sent = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self._socket.sendall(memoryview(data)[sent:])
        except BlockingIOError:
            raise TimeoutError(errno.ETIMEDOUT, "the server does not read") from None

    def _receive(self, deadline: float) -> framing.Message:
        """The next message. TimeoutError: it is not whole when a piece comes after ``deadline``.

        The socket's own time-out begins anew with every byte, and with every message that is not
        the one that is waited for.
        """
        receiver = self._receiver
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "no reply from the server")
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    receiver.wanted, framing.ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                raise TimeoutError(errno.ETIMEDOUT, "no reply from the server") from None
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the server has closed")
            if (message := receiver.receive(data, framing.fds_in(ancillary))) is not None:
                return message


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
