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
from nvme_mdev.spec.nvme_features import AsyncEventConfig, Fid, WriteProtectionState
from nvme_mdev.spec.nvme_logs import LogPage
from nvme_mdev.spec.nvme_reservations import (
    AcquireAction,
    RegisterAction,
    ReleaseAction,
    ReservationType,
)
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, MediaStatus, StatusCode

Faults = set[StatusCode]
Event = tuple[int, int, int]

NN = 4_000_000_010
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


BLOCK_SIZES = (512, 4096)
"""Of the LBA formats, by their index."""
_READS = {NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.VERIFY, NvmOpcode.COPY}
_CHANGES = {
    NvmOpcode.WRITE,
    NvmOpcode.WRITE_ZEROES,
    NvmOpcode.WRITE_UNCORRECTABLE,
    NvmOpcode.COPY,
}
_MOVE_BLOCKS = {NvmOpcode.READ, NvmOpcode.WRITE, NvmOpcode.COMPARE}
"""Commands that are limited by MDTS."""
_HAVE_NO_DATA = {NvmOpcode.WRITE_ZEROES, NvmOpcode.WRITE_UNCORRECTABLE, NvmOpcode.VERIFY}
_EXCLUSIVE_ACCESS = {
    ReservationType.EXCLUSIVE_ACCESS,
    ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
}


@dataclass
class Medium:
    """A namespace: its blocks, and what holds for it on every controller."""

    block_size: int
    data: bytearray
    encrypted: bool = False
    """It is erased cryptographically, too, and not deallocated."""
    bad: set[int] = field(default_factory=set)
    """Blocks of Write Uncorrectable."""
    protection: int = WriteProtectionState.NONE
    key: int = 0
    """What the one host is registered with; 0: it is not."""
    rtype: int = ReservationType.NONE
    """Of its reservation."""

    @property
    def blocks(self) -> int:
        return len(self.data) // self.block_size

    def read(self, slba: int, blocks: int) -> bytes:
        return bytes(self.data[slba * self.block_size : (slba + blocks) * self.block_size])

    def write(self, slba: int, data: bytes) -> None:
        self.data[slba * self.block_size : slba * self.block_size + len(data)] = data
        self.bad.difference_update(range(slba, slba + len(data) // self.block_size))

    def clear(self, slba: int, blocks: int) -> None:
        self.write(slba, bytes(blocks * self.block_size))

    def is_bad(self, slba: int, blocks: int) -> bool:
        return any(slba <= lba < slba + blocks for lba in self.bad)

    def holds(self, slba: int, blocks: int) -> bool:
        return slba + blocks <= self.blocks

    def forget(self) -> None:
        """The namespace is detached; what has its NSID next is another one."""
        self.bad.clear()
        self.protection = WriteProtectionState.NONE
        self.key = self.rtype = 0


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
    ranges: tuple[tuple[int, int], ...] = ()
    """First block and blocks, of Dataset Management and Copy."""
    deallocate: bool = False
    """Attribute of Dataset Management."""

    @property
    def size(self) -> int:
        """Blocks that a Copy writes."""
        return sum(blocks for _, blocks in self.ranges)


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
    unreadable: int = 0
    """Media and Data Integrity Errors."""
    host: bool = False
    """Whether the host has said who it is (Host Identifier)."""
    self_tests: list[tuple[int, int]] = field(default_factory=list)
    """Code and result of each, the newest first."""

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
        self.host = False

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
        """Base 3.2.1.2, 3.2.1.4, 4.1.1: an invalid NSID, an inactive one, or all of them."""
        if not 1 <= nsid <= NN and nsid != NSID_ALL:
            return {GenericStatus.INVALID_NAMESPACE_OR_FORMAT}
        return set() if nsid in self.media else {GenericStatus.INVALID_FIELD}

    def concerned(self, nsid: int) -> tuple[Faults, list[Medium]]:
        """The namespace of a command that may be of all of them."""
        if nsid == NSID_ALL:
            return set(), list(self.media.values())
        faults = self._namespace_faults(nsid)
        return faults, [] if faults else [self.media[nsid]]

    # -- what the host asks of namespaces (Base 5.1.5, 5.1.10, 5.1.25.1.31) ------------------
    def protect(self, nsid: int, state: int) -> Faults:
        """Set Features, Namespace Write Protection Config."""
        faults, media = self.concerned(nsid)
        if state > WriteProtectionState.UNTIL_POWER_CYCLE:
            faults.add(GenericStatus.INVALID_FIELD)
        locked = WriteProtectionState.UNTIL_POWER_CYCLE
        if any(medium.protection == locked != state for medium in media):
            faults.add(CommandStatus.FEATURE_NOT_CHANGEABLE)
        for medium in media if not faults else ():
            medium.protection = state
        return faults

    def format(self, nsid: int, index: int, ses: int) -> Faults:
        faults, media = self.concerned(nsid)
        if index >= len(BLOCK_SIZES):
            faults.add(CommandStatus.INVALID_FORMAT)
        if ses > 2 or (ses == 2 and not all(medium.encrypted for medium in media)):
            faults.add(GenericStatus.INVALID_FIELD)
        for medium in media:
            faults |= self._refusals(medium, NvmOpcode.WRITE)
        for medium in media if not faults else ():
            medium.block_size = BLOCK_SIZES[index]
            medium.clear(0, medium.blocks)
            medium.bad.clear()
        return faults

    def self_test(self, nsid: int, code: int) -> Faults:
        """One that is waited for."""
        faults = self.concerned(nsid)[0] if nsid else set()
        if code not in {1, 2}:
            faults.add(GenericStatus.INVALID_FIELD)
        if not faults:
            self.self_tests.insert(0, (code, 0))
        return faults

    # -- reservations of one host (Base 7.5 to 7.8, 8.1.22) ----------------------------------
    def _reserving_faults(self, nsid: int) -> Faults:
        faults = self._namespace_faults(nsid)
        if not self.host:
            faults.add(GenericStatus.HOST_ID_NOT_INITIALIZED)
        return faults

    def register(self, nsid: int, action: int, keys: tuple[int, int], *, iekey: bool) -> Faults:
        faults = self._reserving_faults(nsid)
        medium = self.media.get(nsid)
        current, new = keys
        if action not in set(RegisterAction) or (action != RegisterAction.UNREGISTER and not new):
            faults.add(GenericStatus.INVALID_FIELD)
        if medium is None:
            return faults
        if action == RegisterAction.REGISTER:
            conflict = medium.key not in {0, new}
        elif action == RegisterAction.UNREGISTER:
            conflict = not medium.key or (medium.key != current and not iekey)
        else:
            conflict = (not medium.key or medium.key != current) and not iekey
        if conflict:
            faults.add(GenericStatus.RESERVATION_CONFLICT)
        if not faults:
            medium.key = 0 if action == RegisterAction.UNREGISTER else new
            if not medium.key:
                medium.rtype = ReservationType.NONE
        return faults

    def acquire(self, nsid: int, action: int, rtype: int, key: int) -> Faults:
        faults = self._key_faults(nsid, key)
        if action != AcquireAction.ACQUIRE or rtype not in set(ReservationType) - {0}:
            faults.add(GenericStatus.INVALID_FIELD)
        medium = self.media.get(nsid)
        if medium is not None and medium.rtype not in {ReservationType.NONE, rtype}:
            faults.add(GenericStatus.RESERVATION_CONFLICT)
        if medium is not None and not faults:
            medium.rtype = rtype
        return faults

    def release(self, nsid: int, action: int, rtype: int, key: int) -> Faults:
        faults = self._key_faults(nsid, key)
        medium = self.media.get(nsid)
        held = medium.rtype if medium is not None else ReservationType.NONE
        if action not in set(ReleaseAction):
            faults.add(GenericStatus.INVALID_FIELD)
        if action == ReleaseAction.RELEASE and (
            held not in {ReservationType.NONE, rtype} or rtype not in set(ReservationType)
        ):
            faults.add(GenericStatus.INVALID_FIELD)
        if medium is not None and not faults:
            medium.rtype = ReservationType.NONE
            if action == ReleaseAction.CLEAR:
                medium.key = 0
        return faults

    def _key_faults(self, nsid: int, key: int) -> Faults:
        faults = self._reserving_faults(nsid)
        medium = self.media.get(nsid)
        if medium is not None and (not medium.key or medium.key != key):
            faults.add(GenericStatus.RESERVATION_CONFLICT)
        return faults

    def report(self, nsid: int) -> Faults:
        return self._reserving_faults(nsid)

    def _refusals(self, medium: Medium, opcode: NvmOpcode, *, changes: bool = True) -> Faults:
        """What a namespace does not take now: for who does not hold it, or for anybody."""
        faults: Faults = set()
        if medium.rtype and not self.host:
            reads = opcode in _READS and medium.rtype in _EXCLUSIVE_ACCESS
            if reads or opcode not in _READS - {NvmOpcode.COPY}:
                faults.add(GenericStatus.RESERVATION_CONFLICT)
        if medium.protection and opcode != NvmOpcode.FLUSH and changes:
            faults.add(GenericStatus.NAMESPACE_WRITE_PROTECTED)
        return faults

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
            case NvmOpcode.WRITE_UNCORRECTABLE:
                medium.bad.update(range(command.slba, command.slba + command.blocks))
            case NvmOpcode.DATASET_MANAGEMENT if command.deallocate and not medium.encrypted:
                for slba, blocks in command.ranges:
                    medium.clear(slba, blocks)
            case NvmOpcode.COPY:
                parts = [medium.read(slba, blocks) for slba, blocks in command.ranges]
                medium.write(command.slba, b"".join(parts))
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
        if opcode is NvmOpcode.FLUSH:
            found, media = self.concerned(command.nsid)
            return faults.union(found, *(self._refusals(one, opcode) for one in media))
        faults |= self._namespace_faults(command.nsid)
        if opcode is NvmOpcode.DATASET_MANAGEMENT and self._none_deallocates():
            faults.add(GenericStatus.INVALID_OPCODE)
        medium = self.media.get(command.nsid)
        if medium is None:
            return faults
        changes = opcode in _CHANGES or command.deallocate
        faults |= self._refusals(medium, opcode, changes=changes)
        faults |= self._block_faults(command, opcode, medium)
        if opcode in _HAVE_NO_DATA:
            return faults
        if opcode in _MOVE_BLOCKS and command.blocks * medium.block_size > self.max_transfer:
            faults.add(GenericStatus.INVALID_FIELD)
        if command.bad_offset:
            faults.add(GenericStatus.INVALID_PRP_OFFSET)
        if command.out_of_memory:
            faults.add(GenericStatus.DATA_TRANSFER_ERROR)
        return faults

    def _none_deallocates(self) -> bool:
        media = self.media.values()
        return bool(media) and all(medium.encrypted for medium in media)

    def _block_faults(self, command: Transfer, opcode: NvmOpcode, medium: Medium) -> Faults:
        """Blocks that are not there, or that cannot be read."""
        faults: Faults = set()
        named = [(command.slba, command.blocks)]
        if opcode is NvmOpcode.DATASET_MANAGEMENT:
            named = list(command.ranges)
        elif opcode is NvmOpcode.COPY:
            named = [(command.slba, command.size), *command.ranges]
        if not all(medium.holds(*blocks) for blocks in named):
            faults.add(GenericStatus.LBA_OUT_OF_RANGE)
        read = command.ranges if opcode is NvmOpcode.COPY else named
        if opcode in _READS and any(medium.is_bad(*blocks) for blocks in read):
            faults.add(MediaStatus.UNRECOVERED_READ)
        return faults

    def fused(self, first: Transfer, second: Transfer) -> list[tuple[Faults, Faults]]:
        """A Compare and a Write as one: the pairs of statuses that are right (Base 3.4.2)."""
        failed: Faults = {GenericStatus.ABORT_FAILED_FUSED}
        found = self._io_faults(first), self._io_faults(second)
        if (first.slba, first.blocks) != (second.slba, second.blocks):
            found[0].add(GenericStatus.INVALID_FIELD)
            found[1].add(GenericStatus.INVALID_FIELD)
            return [(found[0] | failed, found[1]), (found[0], found[1] | failed)]
        if found[0] or found[1]:
            return [pair for pair in ((found[0], failed), (failed, found[1])) if all(pair)]
        faults, _ = self.io(first)
        if faults:
            return [(faults, failed)]
        self.io(second)
        return [(set(), set())]
