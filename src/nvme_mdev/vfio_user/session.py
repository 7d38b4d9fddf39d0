"""The server's side of a session: what is legal when. A table, and no I/O.

A session has three states::

    NEGOTIATING ──VERSION──▶ RUNNING ──▶ CLOSED
         └──────anything else────────────▶┘

* :data:`RULES` says for every command in which state it is legal, how many file descriptors may
  come with it, and what it is refused with when we do not offer it at all.
* Commands that are not legal in NEGOTIATING close the session: this is no vfio-user client.
  In RUNNING the same mistake costs an error reply.
* Every command gets exactly one reply, unless it says NO_REPLY: then none, not even of an error.
* A client's replies are those to DMA_READ and DMA_WRITE (:mod:`.client_memory`); one that nobody
  has asked for closes the session.

The capabilities (section *VFIO_USER_VERSION*): a reply names only what the client has named.
``twin_socket`` (QEMU has none, and answers us on the one socket) and ``migration`` are never in it.
Neither is ``write_multiple``: it would save nothing for registers that are written one at a time,
and QEMU before 11.0 has a wrong constant behind it (``VFIO_PROXY_USE_MULTI``) that switches other
things on as well.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import Command, HeaderFlags, MessageType

from .framing import (
    MAX_DATA_XFER_SIZE,
    MAX_MSG_FDS,
    Message,
    MessageHeader,
    RemoteProtocolError,
    encode,
)
from .messages import Capabilities, Request, Version, decode_request

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(enum.Enum):
    """Where a session is."""

    NEGOTIATING = enum.auto()
    """Connected; VERSION has to come."""
    RUNNING = enum.auto()
    CLOSED = enum.auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """What the table says about a command from the client."""

    state: State = State.RUNNING
    """The only state in which it is legal."""
    max_fds: int = 0
    """How many file descriptors may come with it."""
    refused: int = 0
    """errno if we do not offer it; then the rest does not matter."""


RULES: Mapping[Command, Rule] = {
    Command.VERSION: Rule(state=State.NEGOTIATING),
    Command.DMA_MAP: Rule(max_fds=1),
    # SPDK's driver sends the mapping's fd once more; it is of no use and closed.
    Command.DMA_UNMAP: Rule(max_fds=1),
    Command.DEVICE_GET_INFO: Rule(),
    Command.DEVICE_GET_REGION_INFO: Rule(),
    Command.DEVICE_GET_REGION_IO_FDS: Rule(),
    Command.DEVICE_GET_IRQ_INFO: Rule(),
    Command.DEVICE_SET_IRQS: Rule(max_fds=MAX_MSG_FDS),
    Command.REGION_READ: Rule(),
    Command.REGION_WRITE: Rule(),
    Command.DMA_READ: Rule(refused=errno.ENOTSUP),  # from server to client only
    Command.DMA_WRITE: Rule(refused=errno.ENOTSUP),  # likewise
    Command.DEVICE_RESET: Rule(),
    Command.DIRTY_PAGES: Rule(refused=errno.ENOTSUP),
    Command.REGION_WRITE_MULTI: Rule(refused=errno.ENOTSUP),  # not in our capabilities
    Command.DEVICE_FEATURE: Rule(refused=errno.ENOTSUP),
    Command.MIG_DATA_READ: Rule(refused=errno.ENOTSUP),
    Command.MIG_DATA_WRITE: Rule(refused=errno.ENOTSUP),
}
"""Every command there is; a number that is not here is refused with ENOSYS."""

OFFER = Capabilities(
    max_msg_fds=MAX_MSG_FDS,
    max_data_xfer_size=MAX_DATA_XFER_SIZE,
    # QEMU refuses to hear more; we take MAX_DMA_MAPS.
    max_dma_maps=wire.DEFAULT_MAX_DMA_MAPS,
    pgsizes=wire.DEFAULT_PGSIZES,
)
"""What we tell a client that asks; all are limits of the side that names them."""


def negotiate(proposal: Version) -> Version:
    """The reply to a proposal: the same major, no higher minor, no capability it did not name.

    Raises :class:`RemoteProtocolError` with ``close`` for a major version that we do not speak.
    """
    if proposal.major != wire.VERSION_MAJOR:
        raise RemoteProtocolError(
            f"version {proposal.major}.{proposal.minor}", errno=errno.ENOTSUP, close=True
        )
    capabilities = None
    if proposal.capabilities is not None:
        named = proposal.capabilities.to_json()
        offer = OFFER.to_json()
        capabilities = Capabilities.from_json({k: v for k, v in offer.items() if k in named})
    return Version(proposal.major, min(proposal.minor, wire.VERSION_MINOR), capabilities)


class Session:
    """The state of one client's session, seen from the server."""

    def __init__(self) -> None:
        self.state = State.NEGOTIATING
        self.peer_max_msg_fds = wire.DEFAULT_MAX_MSG_FDS
        """How many file descriptors the client takes in one message."""
        self.peer_max_data_xfer_size = wire.DEFAULT_MAX_DATA_XFER_SIZE
        """How many bytes the client moves in one message."""

    def check(self, message: Message) -> Request:
        """The request in a message, if it is legal now.

        Raises :class:`RemoteProtocolError`; the caller sends :meth:`error` and, with ``close``,
        ends the session. The message's file descriptors stay the caller's in any case.
        """
        try:
            return self._check(message)
        except RemoteProtocolError as error:
            error.close |= self.state is not State.RUNNING
            raise

    def _check(self, message: Message) -> Request:
        header = message.header
        if header.type is not MessageType.COMMAND:
            raise RemoteProtocolError("a reply that nobody has asked for", close=True)
        try:
            command = Command(header.command)
        except ValueError:
            text = f"unknown command {header.command}"
            raise RemoteProtocolError(text, errno=errno.ENOSYS) from None
        rule = RULES[command]
        if rule.refused:
            text = f"{command.name} is not supported"
            raise RemoteProtocolError(text, errno=rule.refused)
        if rule.state is not self.state:
            text = f"{command.name} while {self.state.name.lower()}"
            raise RemoteProtocolError(text)
        if HeaderFlags.ERROR in header.flags:
            raise RemoteProtocolError(f"{command.name} with the error flag")
        if len(message.fds) > rule.max_fds:
            text = f"{command.name} with {len(message.fds)} file descriptors"
            raise RemoteProtocolError(text)
        return decode_request(command, message.body)

    def accept_version(self, proposal: Version) -> Version:
        """Agree on a version: the session is running. Returns the reply; raises as negotiate."""
        reply = negotiate(proposal)
        if proposal.capabilities is not None and proposal.capabilities.max_msg_fds is not None:
            self.peer_max_msg_fds = proposal.capabilities.max_msg_fds
        if proposal.capabilities is not None and proposal.capabilities.max_data_xfer_size:
            self.peer_max_data_xfer_size = proposal.capabilities.max_data_xfer_size
        self.state = State.RUNNING
        return reply

    def close(self) -> None:
        """The session is over."""
        self.state = State.CLOSED

    @staticmethod
    def reply(request: MessageHeader, body: bytes = b"") -> bytes:
        """The bytes of a reply; none if the request wants none."""
        if request.no_reply:
            return b""
        header = MessageHeader(request.message_id, request.command, MessageType.REPLY)
        return encode(header, body)

    @staticmethod
    def error(request: MessageHeader, number: int) -> bytes:
        """The bytes of an error reply, which is only a header; none if no reply is wanted."""
        if request.no_reply:
            return b""
        return encode(
            MessageHeader(
                request.message_id, request.command, MessageType.REPLY, HeaderFlags.ERROR, number
            )
        )
