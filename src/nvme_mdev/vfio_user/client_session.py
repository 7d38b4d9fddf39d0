"""One client of a device, from its first message to its last.

Requests are handled strictly in order: the next one is read when the reply to the one before is
with the kernel. So there is never more than one message in memory each way, and a client that does
not read its replies stops only itself. Replies to what the device asks of the client's memory
(:mod:`.client_memory`) come in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from typing import TYPE_CHECKING

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import MessageType

from . import framing, messages
from .client_memory import ClientMemory
from .connection import JournalledConnection, close_all
from .device import DmaMap, SetIrqs
from .session import Session, State

if TYPE_CHECKING:
    from .connection import Connection
    from .device import Device

log = logging.getLogger(__name__)

UNSHARED_RAM_SIZE = 1 << 20
"""From this size on (bytes) writable memory without an fd is taken for RAM that is not shared.

What is smaller is other devices' BARs and the shadows of the BIOS, which are never shared.
"""

_NEGOTIATION_TIMEOUT_SECONDS = 10.0  # who says nothing must not keep others out for ever
_MAX_WARNINGS = 10  # of a session; a client must not fill the disk with them
_CLOSE_ERROR_TIMEOUT_SECONDS = 1.0  # how long the last error reply may wait to be read


class ClientSession:
    """One client from the first byte to the last."""

    def __init__(self, device: Device, connection: Connection, name: str) -> None:
        self._device = device
        self._connection = connection
        self._name = name
        self._session = Session()
        self._receiver = framing.Receiver()
        self._attached = False
        self._warnings = 0
        self._warned_unshared = False
        self._memory: ClientMemory | None = None
        self._again = False
        """The request may have been executed before, by a process that died."""

    async def resume(self, connection: JournalledConnection) -> None:
        """Go on with the session of a process that died, until the client goes."""
        journal = connection.journal
        if journal.running:
            self._attached = True
            self._session.state = State.RUNNING
            self._session.peer_max_msg_fds = journal.peer_max_msg_fds
            if journal.peer_max_data_xfer_size:
                self._session.peer_max_data_xfer_size = journal.peer_max_data_xfer_size
            journal.epoch += 1
            self._device.use_client_memory(self._reach_memory(journal.epoch))
        await self.run(connection)

    def _reach_memory(self, epoch: int) -> ClientMemory:
        """How the device reaches memory that the client does not share."""
        self._memory = ClientMemory(
            self._connection.send_request,
            max_transfer=self._session.peer_max_data_xfer_size,
            epoch=epoch,
        )
        return self._memory

    async def _unfinished(self, connection: JournalledConnection) -> framing.Message | None:
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

    async def run(self, resumed: JournalledConnection | None = None) -> None:
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
                    close_all(message.fds)
                    self._again = False
                # A client that always has a next message must not keep the others from theirs.
                await asyncio.sleep(0)
                message = await self._next_message()
        except framing.RemoteProtocolError as error:
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
            if self._memory is not None:
                self._memory.close()
            close_all(self._receiver.take_fds())
            if self._attached:
                await self._detach()

    async def _detach(self) -> None:
        try:
            await self._device.detached()
        except Exception:
            log.exception("%s: device failed to detach", self._name)

    async def _next_message(self) -> framing.Message | None:
        while True:
            data, fds = await self._connection.receive(self._receiver.wanted)
            if not data and not fds:
                self._receiver.eof()
                return None
            if (message := self._receiver.receive(data, fds)) is not None:
                return message

    async def _last_words(self, error: framing.RemoteProtocolError) -> None:
        """Tell the client why, if there is a message to reply to and it reads at all."""
        header = error.header
        if header is None or header.type is not MessageType.COMMAND:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_ERROR_TIMEOUT_SECONDS):
                await self._connection.send(self._session.error(header, error.errno))

    async def _handle(self, message: framing.Message) -> None:
        """Check, execute, reply. Raises RemoteProtocolError only if the session has to end."""
        header = message.header
        if header.type is MessageType.REPLY and self._memory is not None:
            self._memory.take_reply(message)
            self._connection.replied()
            return
        try:
            request = self._session.check(message)
            body, fd = await self._execute(request, message.fds)
            reply = self._session.reply(header, body)
        except framing.RemoteProtocolError as error:
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

    def _warn(self, error: framing.RemoteProtocolError) -> None:
        self._warnings += 1
        level = logging.WARNING if self._warnings <= _MAX_WARNINGS else logging.DEBUG
        log.log(level, "%s: protocol error: %s", self._name, error)

    async def _execute(
        self, request: messages.Request, fds: tuple[int, ...]
    ) -> tuple[bytes, int | None]:
        """Do what a legal request asks; returns the reply's body and the fd that goes with it.

        Raises RemoteProtocolError for what the device does not have, OSError for what it refuses.
        """
        match request:
            case messages.RegionRead():
                return self._region_read(request), None
            case messages.RegionWrite():
                return self._region_write(request), None
            case messages.Version():
                return await self._version(request), None
            case messages.DmaMap():
                await self._dma_map(request, fds[0] if fds else None)
            case messages.DmaUnmap():
                return await self._dma_unmap(request), None
            case messages.DeviceInfo():
                return self._device_info(), None
            case messages.RegionInfo():
                return self._region_info(request)
            case messages.RegionIoFds():
                self._check_region(request.index)
                return messages.RegionIoFds(request.index).pack(), None
            case messages.IrqInfo():
                irq = self._device.irq_info(self._check_irq(request.index))
                info = messages.IrqInfo(request.index, flags=irq.flags, count=irq.count)
                return info.pack(), None
            case messages.SetIrqs():
                await self._set_irqs(request, fds)
            case messages.DeviceReset():
                await self._reset()
        return b"", None

    async def _version(self, proposal: messages.Version) -> bytes:
        reply = self._session.accept_version(proposal)
        self._device.use_client_memory(self._reach_memory(0))
        try:
            await self._device.attached()
        except OSError as error:
            text = f"refused by the device: {error}"
            raise framing.RemoteProtocolError(
                text, errno=error.errno or errno.EIO, close=True
            ) from error
        self._attached = True
        if isinstance(self._connection, JournalledConnection):
            self._connection.journal.peer_max_msg_fds = self._session.peer_max_msg_fds
            self._connection.journal.peer_max_data_xfer_size = min(
                self._session.peer_max_data_xfer_size, framing.MAX_DATA_XFER_SIZE
            )
            self._connection.journal.running = 1
        log.debug("%s: version %d.%d", self._name, reply.major, reply.minor)
        return reply.pack()

    def _check_region(self, index: int) -> int:
        if index >= self._device.info().num_regions:
            raise framing.RemoteProtocolError(f"no region {index}")
        return index

    def _check_irq(self, index: int) -> int:
        if index >= self._device.info().num_irqs:
            raise framing.RemoteProtocolError(f"no interrupt type {index}")
        return index

    def _check_access(
        self, index: int, offset: int, count: int, needed: wire.RegionInfoFlags
    ) -> None:
        region = self._device.region_info(self._check_region(index))
        if offset + count > region.size:
            raise framing.RemoteProtocolError(
                f"{count} bytes at {offset:#x} of region {index} of {region.size:#x} bytes"
            )
        if needed not in region.flags:
            raise OSError(errno.EPERM, f"region {index} does not allow it")

    def _region_read(self, request: messages.RegionRead) -> bytes:
        self._check_access(request.region, request.offset, request.count, wire.RegionInfoFlags.READ)
        data = self._device.region_read(request.region, request.offset, request.count)
        if len(data) != request.count:
            raise RuntimeError(f"device gave {len(data)} bytes instead of {request.count}")
        return messages.RegionWrite(request.offset, request.region, data).pack()

    def _region_write(self, request: messages.RegionWrite) -> bytes:
        count = len(request.data)
        self._check_access(request.region, request.offset, count, wire.RegionInfoFlags.WRITE)
        self._device.region_write(request.region, request.offset, request.data)
        return messages.RegionRead(request.offset, request.region, count).pack()

    def _device_info(self) -> bytes:
        info = self._device.info()
        return messages.DeviceInfo(
            flags=info.flags, num_regions=info.num_regions, num_irqs=info.num_irqs
        ).pack()

    def _region_info(self, request: messages.RegionInfo) -> tuple[bytes, int | None]:
        """The whole answer with capability and fd, or as much as ``argsz`` allows without them.

        A reply that is larger than the client has said, or an fd that it does not expect, ends
        QEMU. It asks again with the argsz that it is told.
        """
        region = self._device.region_info(self._check_region(request.index))
        flags = region.flags & ~wire.RegionInfoFlags.CAPS
        areas = tuple((area.offset, area.size) for area in region.areas) or None
        whole = messages.RegionInfo(
            request.index, 0, flags, region.size, region.fd_offset, areas=areas
        )
        if whole.needed <= request.argsz and self._session.peer_max_msg_fds > 0:
            argsz, fd = whole.needed, region.fd
        else:
            argsz, fd = whole.needed, None
            flags &= ~wire.RegionInfoFlags.MMAP
            areas = None
        reply = messages.RegionInfo(
            request.index, argsz, flags, region.size, region.fd_offset, areas=areas
        )
        return reply.pack(), fd

    async def _set_irqs(self, request: messages.SetIrqs, fds: tuple[int, ...]) -> None:
        count = self._device.irq_info(self._check_irq(request.index)).count
        if request.start + request.count > count:
            raise framing.RemoteProtocolError(
                f"interrupts {request.start} + {request.count} of {count} (type {request.index})"
            )
        data = wire.IrqSetFlags(request.flags) & wire.IRQ_SET_DATA_MASK
        if fds and (data != wire.IrqSetFlags.DATA_EVENTFD or len(fds) != request.count):
            raise framing.RemoteProtocolError(
                f"{len(fds)} file descriptors for {request.count} interrupts"
            )
        action = wire.IrqSetFlags(request.flags) & wire.IRQ_SET_ACTION_MASK
        await self._device.set_irqs(
            SetIrqs(request.index, request.start, request.count, data, action, request.bools), fds
        )

    async def _dma_map(self, request: messages.DmaMap, fd: int | None) -> None:
        flags = wire.DmaMapFlags(request.flags)
        if (
            fd is None
            and wire.DmaMapFlags.WRITE in flags
            and request.size >= UNSHARED_RAM_SIZE
            and not self._warned_unshared
        ):
            self._warned_unshared = True
            log.warning(
                "%s: guest memory is not shared, so every command takes several messages:"
                " start QEMU with a memory backend with share=on",
                self._name,
            )
        if self._again:
            # Else the window would overlap itself.
            await self._device.dma_unmap(request.address, request.size)
        await self._device.dma_map(DmaMap(request.address, request.size, request.offset, flags), fd)

    async def _dma_unmap(self, request: messages.DmaUnmap) -> bytes:
        if request.flags & wire.DmaUnmapFlags.ALL:
            await self._device.dma_unmap_all()
        else:
            await self._device.dma_unmap(request.address, request.size)
        return request.pack()

    async def _reset(self) -> None:
        if wire.DeviceFlags.RESET not in self._device.info().flags:
            raise OSError(errno.ENOTSUP, "the device cannot be reset")
        await self._device.reset()
