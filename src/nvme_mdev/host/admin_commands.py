"""`AdminCommands`: what a controller can be asked for and told with admin commands.

Times are seconds, sizes bytes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.host import commands
from nvme_mdev.host.errors import HostError, NvmeStatusError
from nvme_mdev.spec.nvme_features import AsyncEventConfig, Fid
from nvme_mdev.spec.nvme_identify import IDENTIFY_SIZE, Cns
from nvme_mdev.spec.nvme_identify_controller import IdentifyController, IdentifyControllerNvm, Oaes
from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespace
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.units import MAX_SIZE

if TYPE_CHECKING:
    from nvme_mdev.host.completion import Completion
    from nvme_mdev.host.io import CommandQueue, Reply
    from nvme_mdev.spec.nvme_commands import SQE

_EVENT_POLL = 0.001
"""Seconds between two looks for an event."""
_CHANGED_LIST_SIZE = 4096
_LEAST_LBADS = 9
"""Blocks have 512 bytes at least (NVM Command Set, figure *LBA Format*)."""
_MOST_NAMESPACES = 65536
"""What a list of active namespaces is believed to have; ours has 1024 at most."""


class AsyncEvent(NamedTuple):
    """What an Asynchronous Event Request completed with (Base 5.1.2)."""

    event_type: int
    info: int
    log_page: int


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace as far as moving data needs it."""

    nsid: int
    block_size: int
    """Bytes of a logical block, without metadata."""
    blocks: int
    """Capacity in logical blocks."""
    identify: IdentifyNamespace

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.blocks * self.block_size


class AdminCommands(ABC):
    """Of an enabled controller; errors are those of `nvme_mdev.host.errors`."""

    page_size: int
    """Memory page size (CC.MPS), bytes."""

    def __init__(self) -> None:
        self._identify: IdentifyController | None = None
        self._block_sizes: dict[int, int] = {}
        self._event_cids: list[int] = []

    @property
    @abstractmethod
    def admin_queue(self) -> CommandQueue:
        """The admin queue pair."""

    def _forget_answers(self) -> None:
        """The controller is no longer enabled: it may say something else the next time."""
        self._identify = None
        self._block_sizes.clear()
        self._event_cids.clear()

    def admin(
        self,
        sqe: SQE,
        *,
        send: bytes = b"",
        receive: int = 0,
        timeout: float | None = None,
        check: bool = True,
    ) -> Reply:
        """Execute any admin command; see `CommandQueue.execute`."""
        return self.admin_queue.execute(
            sqe, send=send, receive=receive, timeout=timeout, check=check
        )

    def identify(self, cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0) -> bytes:
        """Identify: 4096 bytes."""
        return self.admin(
            commands.identify(cns, nsid, cntid=cntid, csi=csi), receive=IDENTIFY_SIZE
        ).data

    def identify_controller(self) -> IdentifyController:
        """Identify Controller; read once an enabling."""
        if self._identify is None:
            data = self.identify(Cns.CONTROLLER)
            self._identify = IdentifyController.from_buffer_copy(data)
        return self._identify

    def identify_controller_nvm(self) -> IdentifyControllerNvm | None:
        """Identify Controller of the NVM command set; None: the controller is older than that."""
        try:
            data = self.identify(Cns.IOCS_CONTROLLER)
        except NvmeStatusError:
            return None
        return IdentifyControllerNvm.from_buffer_copy(data)

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """Identify Namespace; all zero for one that is not active."""
        return IdentifyNamespace.from_buffer_copy(self.identify(Cns.NAMESPACE, nsid))

    def active_namespaces(self) -> list[int]:
        """The active namespaces' identifiers, ascending; HostError: a list without an end."""
        found: list[int] = []
        while True:
            data = self.identify(Cns.ACTIVE_NSID_LIST, found[-1] if found else 0)
            nsids = [
                int.from_bytes(data[at : at + 4], "little") for at in range(0, IDENTIFY_SIZE, 4)
            ]
            # All of them come after those before, or the controller could go on for ever.
            if any(nsid and nsid <= after for after, nsid in pairwise([*found[-1:], *nsids])):
                raise HostError("the list of active namespaces is not ascending")
            found += [nsid for nsid in nsids if nsid]
            if nsids[-1] == 0:
                return found
            if len(found) > _MOST_NAMESPACES:
                raise HostError(f"the controller has more than {_MOST_NAMESPACES} namespaces")

    def namespace_descriptors(self, nsid: int) -> dict[int, bytes]:
        """Namespace Identification Descriptors: identifier by type (Base 5.1.13.2.4)."""
        data = self.identify(Cns.NS_ID_DESCRIPTORS, nsid)
        found: dict[int, bytes] = {}
        at = 0
        while at + 4 <= IDENTIFY_SIZE and data[at + 1]:
            found[data[at]] = data[at + 4 : at + 4 + data[at + 1]]
            at += 4 + data[at + 1]
        return found

    def namespace(self, nsid: int) -> Namespace:
        """A namespace's block size and capacity; HostError when it is not active."""
        active = self.active_namespaces()
        if nsid not in active:
            there = ", ".join(str(one) for one in active) or "none"
            raise HostError(f"there is no namespace {nsid}: the controller has {there}")
        return self._active_namespace(nsid)

    def find_namespace(self, nsid: int) -> Namespace | None:
        """As of :meth:`namespace`; None when it is not active."""
        return self._active_namespace(nsid) if nsid in self.active_namespaces() else None

    def _active_namespace(self, nsid: int) -> Namespace:
        identify = self.identify_namespace(nsid)
        lbads = identify.lbaf[identify.format_index].lbads
        if not _LEAST_LBADS <= lbads < 32 or identify.nsze << lbads > MAX_SIZE:
            raise HostError(
                f"namespace {nsid} makes no sense: {identify.nsze} blocks of 2^{lbads} bytes"
            )
        return Namespace(nsid, 1 << lbads, identify.nsze, identify)

    def block_size(self, nsid: int) -> int:
        """Bytes of a logical block of a namespace; asked for once an enabling."""
        if nsid not in self._block_sizes:
            self._block_sizes[nsid] = self.namespace(nsid).block_size
        return self._block_sizes[nsid]

    @property
    def max_transfer(self) -> int:
        """Most bytes of one command (MDTS); 0: no limit."""
        mdts = self.identify_controller().mdts
        return self.page_size << mdts if mdts else 0

    @property
    def model(self) -> str:
        """Model number, without padding."""
        return self.identify_controller().mn.decode("ascii", "replace").strip()

    def get_features(self, fid: int, *, select: int = 0, nsid: int = 0, value: int = 0) -> int:
        """Get Features: dword 0 of the completion."""
        sqe = commands.get_features(fid, select=select, nsid=nsid, value=value)
        return self.admin(sqe).completion.result

    def set_features(self, fid: int, value: int, *, nsid: int = 0, save: bool = False) -> int:
        """Set Features: dword 0 of the completion."""
        return self.admin(commands.set_features(fid, value, nsid=nsid, save=save)).completion.result

    def get_log_page(
        self,
        lid: int,
        size: int,
        *,
        offset: int = 0,
        nsid: int = 0xFFFF_FFFF,
        rae: bool = False,
    ) -> bytes:
        """Get Log Page: ``size`` bytes (a multiple of 4) from byte ``offset`` on."""
        sqe = commands.get_log_page(lid, size, offset=offset, nsid=nsid, rae=rae)
        return self.admin(sqe, receive=size).data

    def abort(self, sqid: int, cid: int) -> bool:
        """Abort: whether the controller says that the command was aborted."""
        return not self.admin(commands.abort(sqid, cid)).completion.result & 1

    # -- asynchronous events -------------------------------------------------------------------
    def request_events(self, count: int = 1) -> None:
        """Send Asynchronous Event Requests."""
        for _ in range(count):
            self._event_cids.append(self.admin_queue.start(commands.async_event_request()))

    def events(self, timeout: float = 0.0) -> list[AsyncEvent]:
        """Events that have arrived; waits up to ``timeout`` for the first one."""
        deadline = time.monotonic() + timeout
        while True:
            found: list[AsyncEvent] = []
            for cid in list(self._event_cids):
                completion = self.admin_queue.take(cid)
                if completion is not None:
                    self._event_cids.remove(cid)
                    found.append(_event(completion))
            if found or time.monotonic() >= deadline:
                return found
            time.sleep(_EVENT_POLL)

    def watch_namespaces(self) -> None:
        """From now on until the controller is disabled :meth:`namespaces_changed` tells.

        Of a controller that does not tell it is always False (Base 5.1.13.2.1, OAES).
        """
        if self.identify_controller().oaes & Oaes.NSAN:
            self.set_features(Fid.ASYNC_EVENT_CONFIGURATION, AsyncEventConfig.NSAN)
            self.request_events()

    def namespaces_changed(self) -> bool:
        """Whether a namespace may have come, gone or changed since the last call."""
        if not self.events():
            return False
        # Read, or the next change is no event.
        self.get_log_page(LogPage.CHANGED_NAMESPACES, _CHANGED_LIST_SIZE)
        self.request_events()
        return True


def _event(completion: Completion) -> AsyncEvent:
    if not completion.ok:
        raise NvmeStatusError("ASYNC_EVENT_REQUEST", completion)
    result = completion.result
    return AsyncEvent(result & 0x7, result >> 8 & 0xFF, result >> 16 & 0xFF)
