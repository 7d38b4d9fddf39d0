"""A controller as the specification has it, in plain Python: no queues, no memory, no threads.

For each command it says which statuses are right (`Faults`; none: the command succeeds), and once
told that it succeeded, does what the command does. Where the specification leaves the order of
checks open, every status that names a fault of the command is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nvme_mdev.spec.nvme_commands import (
    NSID_ALL,
    AsyncEventType,
    ErrorEventInfo,
    NoticeEventInfo,
    NvmOpcode,
)
from nvme_mdev.spec.nvme_features import AsyncEventConfig, Fid
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, MediaStatus, StatusCode

Faults = set[StatusCode]
Event = tuple[int, int, int]

NN = 256
PAGE = 4096
DOORBELL_REGISTER = (
    int(AsyncEventType.ERROR),
    int(ErrorEventInfo.INVALID_DOORBELL_REGISTER),
    int(LogPage.ERROR),
)
DOORBELL_VALUE = (
    int(AsyncEventType.ERROR),
    int(ErrorEventInfo.INVALID_DOORBELL_VALUE),
    int(LogPage.ERROR),
)
NAMESPACE_CHANGED = (
    int(AsyncEventType.NOTICE),
    int(NoticeEventInfo.NS_ATTRIBUTE_CHANGED),
    int(LogPage.CHANGED_NAMESPACES),
)
KEPT_FEATURES = {
    Fid.ARBITRATION: 0xFFFF_FF07,
    Fid.INTERRUPT_COALESCING: 0xFFFF,
    Fid.WRITE_ATOMICITY: 0x1,
    Fid.ASYNC_EVENT_CONFIGURATION: int(AsyncEventConfig.NSAN),
}
"""Features of the controller that are a value, and the bits of it that are set here."""


@dataclass
class Medium:
    """A namespace: its blocks."""

    block_size: int
    data: bytearray

    @property
    def blocks(self) -> int:
        return len(self.data) // self.block_size

    def read(self, slba: int, blocks: int) -> bytes:
        return bytes(self.data[slba * self.block_size : (slba + blocks) * self.block_size])

    def write(self, slba: int, data: bytes) -> None:
        self.data[slba * self.block_size : slba * self.block_size + len(data)] = data


@dataclass
class Transfer:
    """An I/O command with a range of blocks."""

    opcode: int
    nsid: int
    slba: int = 0
    blocks: int = 1
    flags: int = 0
    data: bytes = b""
    bad_offset: bool = False
    """A PRP entry has an offset that it may not have."""
    out_of_memory: bool = False
    """A PRP entry is no guest memory."""


@dataclass
class Model:
    """What the controller is to do."""

    queues: int
    entries: int
    max_transfer: int
    defaults: dict[int, int]
    """Features of `KEPT_FEATURES`, with the value that they have after a reset."""
    saveable: set[int]
    """Those of them that can be saved."""
    media: dict[int, Medium]
    cqs: dict[int, int] = field(default_factory=dict)
    """CQ identifier to entries."""
    sqs: dict[int, tuple[int, int]] = field(default_factory=dict)
    """SQ identifier to entries and CQ identifier."""
    features: dict[int, int] = field(default_factory=dict)
    error_recovery: dict[int, int] = field(default_factory=dict)
    requests: int = 0
    """Asynchronous Event Requests outstanding."""
    masked: set[int] = field(default_factory=set)
    waiting: list[Event] = field(default_factory=list)
    changed: set[int] = field(default_factory=set)
    """The Changed Attached Namespace List."""
    errors: int = 0
    """Entries that the error log has had."""

    def __post_init__(self) -> None:
        self.reset()

    # -- life cycle --------------------------------------------------------------------------
    def reset(self) -> None:
        """Any Controller Level Reset (Base 3.7.2)."""
        self.cqs.clear()
        self.sqs.clear()
        self.features = dict(self.defaults)
        self.error_recovery.clear()
        self.requests = 0
        self.masked.clear()
        self.waiting.clear()

    # -- queues (Base 5.2.1 to 5.2.4) --------------------------------------------------------
    def _queue_faults(self, qid: int, entries: int, iova: int, *, in_use: bool) -> Faults:
        faults: Faults = set()
        if not 1 <= qid <= self.queues or in_use:
            faults.add(CommandStatus.INVALID_QUEUE_ID)
        if not 2 <= entries <= self.entries:
            faults.add(CommandStatus.INVALID_QUEUE_SIZE)
        if iova % PAGE:
            faults.add(GenericStatus.INVALID_PRP_OFFSET)
        return faults

    def create_cq(self, qid: int, entries: int, iova: int, vector: int) -> Faults:
        faults = self._queue_faults(qid, entries, iova, in_use=qid in self.cqs)
        if vector > self.queues:
            faults.add(CommandStatus.INVALID_INTERRUPT_VECTOR)
        if not faults:
            self.cqs[qid] = entries
        return faults

    def create_sq(self, qid: int, entries: int, iova: int, cqid: int) -> Faults:
        faults = self._queue_faults(qid, entries, iova, in_use=qid in self.sqs)
        if not 1 <= cqid <= self.queues:
            faults.add(CommandStatus.INVALID_QUEUE_ID)
        elif cqid not in self.cqs:
            faults.add(CommandStatus.COMPLETION_QUEUE_INVALID)
        if not faults:
            self.sqs[qid] = entries, cqid
        return faults

    def delete_sq(self, qid: int) -> Faults:
        if qid not in self.sqs:
            return {CommandStatus.INVALID_QUEUE_ID}
        del self.sqs[qid]
        return set()

    def delete_cq(self, qid: int) -> Faults:
        if qid not in self.cqs:
            return {CommandStatus.INVALID_QUEUE_ID}
        if any(cqid == qid for _, cqid in self.sqs.values()):
            return {CommandStatus.INVALID_QUEUE_DELETION}
        del self.cqs[qid]
        return set()

    # -- features (Base 5.1.25, 4.4) ---------------------------------------------------------
    def set_number_of_queues(self, value: int) -> Faults:
        faults: Faults = set()
        if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
            faults.add(GenericStatus.INVALID_FIELD)
        if self.cqs or self.sqs:
            faults.add(GenericStatus.COMMAND_SEQUENCE_ERROR)
        return faults

    def set_feature(self, fid: int, value: int, nsid: int, *, save: bool) -> Faults:
        """Set one of `KEPT_FEATURES`."""
        faults: Faults = set()
        if save and fid not in self.saveable:
            faults.add(CommandStatus.FEATURE_NOT_SAVEABLE)
        if nsid not in {0, NSID_ALL}:
            invalid = GenericStatus.INVALID_NAMESPACE_OR_FORMAT
            specific = CommandStatus.FEATURE_NOT_NAMESPACE_SPECIFIC
            faults.add(specific if nsid <= NN else invalid)
        if not faults:
            self.features[fid] = value
            if save:
                self.defaults[fid] = value
        return faults

    def set_error_recovery(self, nsid: int, limit: int) -> Faults:
        if nsid == NSID_ALL:
            self.error_recovery = dict.fromkeys(self.media, limit)
            return set()
        faults = self._namespace_faults(nsid)
        if not faults:
            self.error_recovery[nsid] = limit
        return faults

    def _namespace_faults(self, nsid: int) -> Faults:
        """Base 3.2.1.2, 3.2.1.4: an invalid NSID, an inactive one."""
        if not 1 <= nsid <= NN:
            if nsid == NSID_ALL:
                return {GenericStatus.INVALID_FIELD, GenericStatus.INVALID_NAMESPACE_OR_FORMAT}
            return {GenericStatus.INVALID_NAMESPACE_OR_FORMAT}
        return set() if nsid in self.media else {GenericStatus.INVALID_FIELD}

    # -- events (Base 5.1.2) -----------------------------------------------------------------
    def request_event(self, limit: int) -> tuple[Faults, list[Event]]:
        """One more request; the events that are reported now."""
        if self.requests == limit:
            return {CommandStatus.AER_LIMIT_EXCEEDED}, []
        self.requests += 1
        return set(), self._deliver()

    def doorbell_error(self, event: Event) -> list[Event]:
        self.errors += 1
        return self._raise(event)

    def namespace_changed(self, nsid: int) -> list[Event]:
        self.changed.add(nsid)
        if not self.features[Fid.ASYNC_EVENT_CONFIGURATION] & AsyncEventConfig.NSAN:
            return []
        return self._raise(NAMESPACE_CHANGED)

    def notices_enabled(self, before: int) -> list[Event]:
        """What holds when its notice is enabled is an event (Base 5.1.25.1.5)."""
        enabled = self.features[Fid.ASYNC_EVENT_CONFIGURATION] & ~before
        if not enabled & AsyncEventConfig.NSAN or not self.changed:
            return []
        return self._raise(NAMESPACE_CHANGED)

    def log_page_read(self, page: int, *, retain: bool) -> list[Event]:
        if retain:
            return []
        if page == LogPage.CHANGED_NAMESPACES:
            self.changed.clear()
        self.waiting = [event for event in self.waiting if event[2] != page]
        kinds = {LogPage.ERROR: AsyncEventType.ERROR, LogPage.SMART: AsyncEventType.SMART}
        kinds[LogPage.CHANGED_NAMESPACES] = AsyncEventType.NOTICE
        if page in kinds:
            self.masked.discard(kinds[LogPage(page)])
        return self._deliver()

    def _raise(self, event: Event) -> list[Event]:
        if event not in self.waiting:
            self.waiting.append(event)
        return self._deliver()

    def _deliver(self) -> list[Event]:
        delivered = []
        for event in list(self.waiting):
            if event[0] not in self.masked and self.requests:
                self.requests -= 1
                self.masked.add(event[0])
                self.waiting.remove(event)
                delivered.append(event)
        return delivered

    # -- I/O (NVM 3.3) -----------------------------------------------------------------------
    def io(self, command: Transfer) -> tuple[Faults, bytes | None]:
        """What an I/O command does: its faults, or the data that it returns."""
        faults = self._io_faults(command)
        if faults:
            return faults, None
        if command.opcode == NvmOpcode.FLUSH:
            return set(), None
        medium = self.media[command.nsid]
        match command.opcode:
            case NvmOpcode.READ:
                return set(), medium.read(command.slba, command.blocks)
            case NvmOpcode.WRITE:
                medium.write(command.slba, command.data)
            case NvmOpcode.WRITE_ZEROES:
                medium.write(command.slba, bytes(command.blocks * medium.block_size))
            case NvmOpcode.COMPARE:
                if medium.read(command.slba, command.blocks) != command.data:
                    return {MediaStatus.COMPARE_FAILURE}, None
        return set(), None

    def _io_faults(self, command: Transfer) -> Faults:
        faults: Faults = set()
        if command.flags:
            faults.add(GenericStatus.INVALID_FIELD)
        try:
            opcode = NvmOpcode(command.opcode)
        except ValueError:
            faults.add(GenericStatus.INVALID_OPCODE)
            return faults | self._namespace_faults(command.nsid)
        faults |= self._namespace_faults(command.nsid)
        medium = self.media.get(command.nsid)
        if medium is None or opcode is NvmOpcode.FLUSH:
            return faults
        if command.slba + command.blocks > medium.blocks:
            faults.add(GenericStatus.LBA_OUT_OF_RANGE)
        if opcode is NvmOpcode.WRITE_ZEROES:
            return faults
        if command.blocks * medium.block_size > self.max_transfer:
            faults.add(GenericStatus.INVALID_FIELD)
        if command.bad_offset:
            faults.add(GenericStatus.INVALID_PRP_OFFSET)
        if command.out_of_memory:
            faults.add(GenericStatus.DATA_TRANSFER_ERROR)
        return faults
