"""Random legal and illegal commands, and a model that says what is to come of them.

The controller is behind a real socket, with its data path; the model is `model.py`. They agree
on the status of every command, on every event, and on all data.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.host import commands
from nvme_mdev.host.completion import Completion
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.memory import build_prps, page_entries
from nvme_mdev.spec.nvme_commands import (
    NSID_ALL,
    SQE,
    AdminOpcode,
    DsmAttribute,
    Fuse,
    NvmOpcode,
)
from nvme_mdev.spec.nvme_features import HOST_IDENTIFIER_EXHID, FeatureCapability, Fid, Select
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_logs import ErrorLogEntry, LogPage
from nvme_mdev.spec.nvme_maintenance import FORMAT_SES_SHIFT, SelfTestLog
from nvme_mdev.spec.nvme_registers import NSSR_NSSRC, Register
from nvme_mdev.spec.nvme_reservations import ReservationStatus
from nvme_mdev.spec.nvme_status import CommandStatus, GenericStatus, MediaStatus, Status
from tests.encryption import blank, decrypted

from .conftest import Served
from .model import (
    DOORBELL_REGISTER,
    DOORBELL_VALUE,
    KEPT_FEATURES,
    NN,
    PAGE,
    Event,
    Faults,
    Medium,
    Model,
    Transfer,
)
from .raw_queues import PATIENCE, RawCq, RawSq

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.spec.nvme_commands import CQE

QUEUES = 3
ENTRIES = 32
NOWHERE = 0x7FFF_0000_0000
HIGH = 4_000_000_000
ENCRYPTED = HIGH
SIZES = {1: (64 << 10, 512), HIGH: (256 << 10, 4096)}
"""The namespaces at the start: bytes, and bytes of a block."""

qids = st.sampled_from([1, 1, 2, 2, 3, 3, 0, QUEUES + 1, 0xFFFF])
entries = st.sampled_from([2, 3, 8, 8, 16, ENTRIES, 1, ENTRIES + 1, 0x10000])
nsids = st.sampled_from([1, 1, 1, HIGH, HIGH, 3, HIGH + 1, 0, NN + 1, NSID_ALL - 1, NSID_ALL])
sometimes = st.sampled_from([False] * 7 + [True])
mostly_there = st.sampled_from([1] * 8 + [HIGH] * 5 + [3, 257, 0, NN + 1, NSID_ALL])
"""NSIDs of commands that would do little else, with so many rules."""
near = st.one_of(st.integers(0, 12), st.integers(0, 12), st.integers(0, 140))
keys = st.sampled_from([5] * 8 + [6, 0])
rtypes = st.sampled_from([1, 2, 3, 4, 5, 6, 0, 9])
PAGES = {
    LogPage.SUPPORTED_LOG_PAGES,
    LogPage.FIRMWARE_SLOT,
    LogPage.COMMANDS_EFFECTS,
    LogPage.DEVICE_SELF_TEST,
    LogPage.FEATURE_EFFECTS,
    LogPage.RESERVATION_NOTIFICATION,
    LogPage.SANITIZE_STATUS,
}
"""Log pages that no rule but one reads."""


def _completion(entry: CQE) -> Completion:
    return Completion(entry.dw0, 0, entry.sqhd, entry.sqid, entry.cid, entry.status >> 1)


class Machine(RuleBasedStateMachine):
    """Drives the controller and the model in step."""

    @initialize(known=st.sampled_from([True, True, False]))
    def power_on(self, known: bool) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nvme-mdev-"))
        self.image = self.directory / "image"
        self.image.write_bytes(bytes(SIZES[ENCRYPTED][0]))
        self.memory = MemoryBackend(*SIZES[1])
        image = blank(str(self.image), block_size=SIZES[ENCRYPTED][1])
        self.backends = {1: self.memory, ENCRYPTED: image}
        self.served = Served(
            self.directory / "s",
            list(self.backends.values()),
            nsids=list(self.backends),
            max_nsid=NN,
            io_queues=QUEUES,
            queue_entries=ENTRIES,
            allow_erase=True,
        )
        self.host = NvmeHost(self.served.path, memory_size=4 << 20, shadow_doorbells=False)
        controller = self.host.identify_controller()
        self.event_limit = controller.aerl + 1
        self.model = Model(
            QUEUES,
            ENTRIES,
            self.host.max_transfer,
            {fid: self.host.get_features(fid, select=Select.DEFAULT) for fid in KEPT_FEATURES},
            {fid for fid in KEPT_FEATURES if self._saveable(fid)},
            {
                nsid: Medium(block, bytearray(size), encrypted=nsid == ENCRYPTED)
                for nsid, (size, block) in SIZES.items()
            },
        )
        self._forget_queues()
        self._a_queue_pair()
        if known:
            self.say_who_it_is()

    def _a_queue_pair(self) -> None:
        Machine.create_cq(self, 1, 16, False, 1)
        Machine.create_sq(self, 1, 16, False, 1)

    def _saveable(self, fid: int) -> bool:
        capabilities = self.host.get_features(fid, select=Select.SUPPORTED_CAPABILITIES)
        return bool(capabilities & FeatureCapability.SAVEABLE)

    def _forget_queues(self) -> None:
        self.cqs: dict[int, RawCq] = {}
        self.sqs: dict[int, RawSq] = {}
        self.next_cid = 0

    def teardown(self) -> None:
        if not hasattr(self, "directory"):
            return
        try:
            self._every_byte_is_as_it_should_be()
        finally:
            self.host.close()
            self.served.close()
            for backend in self.backends.values():
                backend.close()
            shutil.rmtree(self.directory)

    def _every_byte_is_as_it_should_be(self) -> None:
        for nsid, medium in self.model.media.items():
            if nsid == ENCRYPTED:
                found = self._decrypted()
            else:
                found = os.pread(self.memory.fd, len(medium.data), 0)
            assert found == bytes(medium.data)

    def _decrypted(self) -> bytes:
        return decrypted(self.image.read_bytes(), 0, self.image.with_suffix(".key").read_bytes())

    # -- what both say -----------------------------------------------------------------------

    def agree(self, completion: Completion, faults: Faults, sqid: int = 0) -> bool:
        """Whether the command succeeded; the controller and the model say the same."""
        status = completion.status
        if not faults:
            assert status.success, f"{status}: the model has no fault"
            return True
        assert status.code in faults, f"{status}: the model has {faults}"
        self.model.errors += 1
        self.model.unreadable += status.code is MediaStatus.UNRECOVERED_READ
        entry = self._newest_error()
        assert (entry.sqid, entry.cmdid) == (sqid, completion.cid)
        assert Status.unpack(entry.sts >> 1).code is status.code
        return False

    def admin(self, sqe: SQE, faults: Faults, *, receive: int = 0) -> Completion:
        completion = self.host.admin(sqe, receive=receive, check=False).completion
        self.agree(completion, faults)
        return completion

    def _newest_error(self) -> ErrorLogEntry:
        page = self.host.get_log_page(LogPage.ERROR, 64, rae=True)
        return ErrorLogEntry.from_buffer_copy(page)

    def expect_events(self, wanted: list[Event]) -> None:
        found = self.host.events(30.0 if wanted else 0.0)
        while len(found) < len(wanted):
            found += self.host.events(30.0)
        assert sorted(found) == sorted(wanted)

    # -- queues ------------------------------------------------------------------------------

    @rule(qid=qids, size=entries, shift=sometimes, vector=st.sampled_from([0, 1, QUEUES, 9]))
    def create_cq(self, qid: int, size: int, shift: bool, vector: int) -> None:
        buffer = self.host.memory.allocate(ENTRIES * 16)
        iova = buffer.iova + 64 * shift
        faults = self.model.create_cq(qid, size, iova, vector)
        self.admin(commands.create_io_cq(qid, size, iova, vector=vector), faults)
        if faults:
            buffer.free()
        else:
            self.cqs[qid] = RawCq(self.host, qid, size, buffer)

    @rule(qid=qids, size=entries, shift=sometimes, cqid=qids)
    def create_sq(self, qid: int, size: int, shift: bool, cqid: int) -> None:
        buffer = self.host.memory.allocate(ENTRIES * 64)
        iova = buffer.iova + 64 * shift
        faults = self.model.create_sq(qid, size, iova, cqid)
        self.admin(commands.create_io_sq(qid, size, iova, cqid), faults)
        if faults:
            buffer.free()
        else:
            self.sqs[qid] = RawSq(self.host, qid, size, buffer, self.cqs[cqid])

    @rule(qid=qids)
    def delete_sq(self, qid: int) -> None:
        faults = self.model.delete_sq(qid)
        self.admin(commands.delete_io_sq(qid), faults)
        if not faults:
            self.sqs.pop(qid).buffer.free()

    @rule(qid=qids)
    def delete_cq(self, qid: int) -> None:
        faults = self.model.delete_cq(qid)
        self.admin(commands.delete_io_cq(qid), faults)
        if not faults:
            self.cqs.pop(qid).buffer.free()

    # -- admin commands ----------------------------------------------------------------------

    @rule(value=st.sampled_from([0, 0x0001_0001, 0xFFFE_FFFE, 0xFFFF, 0xFFFF_0000]))
    def number_of_queues(self, value: int) -> None:
        faults = self.model.set_number_of_queues(value)
        self.admin(commands.set_features(Fid.NUMBER_OF_QUEUES, value), faults)

    @rule(
        fid=st.sampled_from(list(KEPT_FEATURES)),
        value=st.integers(0, 0xFFFF_FFFF),
        nsid=st.sampled_from([0, 0, 0, 0, NSID_ALL, 1, HIGH, 200, NN + 1]),
        save=sometimes,
    )
    def set_feature(self, fid: Fid, value: int, nsid: int, save: bool) -> None:
        value &= KEPT_FEATURES[fid]
        events = self.model.features[Fid.ASYNC_EVENT_CONFIGURATION]
        faults = self.model.set_feature(fid, value, nsid, save=save)
        self.admin(commands.set_features(fid, value, nsid=nsid, save=save), faults)
        self.expect_events(self.model.notices_enabled(events))

    @rule(nsid=nsids, limit=st.integers(0, 0xFFFF))
    def set_error_recovery(self, nsid: int, limit: int) -> None:
        faults = self.model.set_error_recovery(nsid, limit)
        self.admin(commands.set_features(Fid.ERROR_RECOVERY, limit, nsid=nsid), faults)

    @rule(fid=st.sampled_from([0x00, 0x3F, 0x7F, 0xBF]))
    def a_feature_that_is_not_there(self, fid: int) -> None:
        for sqe in (commands.get_features(fid), commands.set_features(fid, 1)):
            self.admin(sqe, {GenericStatus.INVALID_FIELD})

    @rule(opcode=st.sampled_from([0x03, 0x0B, 0x3F, 0x7E]))
    def an_admin_opcode_that_is_not_there(self, opcode: int) -> None:
        self.admin(SQE(opc=opcode), {GenericStatus.INVALID_OPCODE})

    @rule(nsid=nsids)
    def identify_a_namespace(self, nsid: int) -> None:
        known = 1 <= nsid <= NN
        faults: Faults = set() if known else {GenericStatus.INVALID_NAMESPACE_OR_FORMAT}
        sqe = commands.identify(Cns.NAMESPACE, nsid)
        reply = self.host.admin(sqe, receive=4096, check=False)
        if self.agree(reply.completion, faults):
            medium = self.model.media.get(nsid)
            size = int.from_bytes(reply.data[:8], "little")
            assert size == (medium.blocks if medium else 0)

    @rule(
        page=st.sampled_from([LogPage.ERROR, LogPage.SMART, LogPage.CHANGED_NAMESPACES]),
        retain=st.booleans(),
    )
    def read_a_log_page(self, page: LogPage, retain: bool) -> None:
        data = self.host.get_log_page(page, 512, rae=retain)
        if page is LogPage.CHANGED_NAMESPACES:
            changed = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 512, 4)]
            assert [nsid for nsid in changed if nsid] == sorted(self.model.changed)
        if page is LogPage.SMART:
            assert int.from_bytes(data[160:176], "little") == self.model.unreadable
            assert int.from_bytes(data[176:192], "little") == self.model.errors
        self.expect_events(self.model.log_page_read(page, retain=retain))

    @rule(page=st.sampled_from([*PAGES, 0x07, 0x0C, 0x7F, 0xC1]), retain=st.booleans())
    def read_another_log_page(self, page: int, retain: bool) -> None:
        faults = set() if page in PAGES else {CommandStatus.INVALID_LOG_PAGE}
        sqe = commands.get_log_page(page, 512, rae=retain)
        reply = self.host.admin(sqe, receive=512, check=False)
        if self.agree(reply.completion, faults):
            if page == LogPage.RESERVATION_NOTIFICATION:
                assert not any(reply.data[:64])
            self.expect_events(self.model.log_page_read(page, retain=retain))

    @rule(sqid=qids, cid=st.integers(0xFF00, 0xFFFE))
    def abort_what_is_not_there(self, sqid: int, cid: int) -> None:
        completion = self.host.admin(commands.abort(sqid, cid), check=False).completion
        if completion.ok:
            assert completion.result & 1
        else:
            self.agree(completion, {GenericStatus.INVALID_FIELD})

    # -- events ------------------------------------------------------------------------------

    @rule()
    def request_an_event(self) -> None:
        faults, events = self.model.request_event(self.event_limit)
        if faults:
            self.admin(commands.async_event_request(), faults)
        else:
            self.host.request_events()
            self.expect_events(events)

    @rule(qid=st.integers(1, QUEUES), completion=st.booleans())
    def ring_a_queue_that_is_not_there(self, qid: int, completion: bool) -> None:
        if qid in (self.model.cqs if completion else self.model.sqs):
            return
        events = self.model.doorbell_error(DOORBELL_REGISTER)
        self.host.write_doorbell(qid, 1, completion=completion)
        self.expect_events(events)

    @precondition(lambda self: self.sqs)
    @rule(data=st.data(), value=st.sampled_from([ENTRIES, 0xFFFF, 0xFFFF_FFFF]))
    def ring_beyond_the_end(self, data: st.DataObject, value: int) -> None:
        qid = data.draw(st.sampled_from(sorted(self.sqs)))
        events = self.model.doorbell_error(DOORBELL_VALUE)
        self.host.write_doorbell(qid, value)
        self.expect_events(events)

    # -- I/O ---------------------------------------------------------------------------------

    @precondition(lambda self: self.sqs)
    @rule(
        data=st.data(),
        opcode=st.sampled_from(
            [
                NvmOpcode.READ,
                NvmOpcode.WRITE,
                NvmOpcode.WRITE,
                NvmOpcode.COMPARE,
                NvmOpcode.WRITE_ZEROES,
                NvmOpcode.FLUSH,
                NvmOpcode.VERIFY,
                NvmOpcode.WRITE_UNCORRECTABLE,
                0x7E,
            ]
        ),
        nsid=mostly_there,
        slba=st.one_of(near, near, st.sampled_from([2**64 - 1, 2**63, 64])),
        blocks=st.integers(1, 24),
        flags=st.sampled_from([0] * 9 + [0x03, 0xC0]),
        offset=st.sampled_from([0, 0, 4, 512, 4092]),
        bad=st.sampled_from(["", "", "", "", "offset", "memory"]),
        seed=st.integers(0, 3),
    )
    def io(  # noqa: PLR0917 (hypothesis')
        self,
        data: st.DataObject,
        opcode: int,
        nsid: int,
        slba: int,
        blocks: int,
        flags: int,
        offset: int,
        bad: str,
        seed: int,
    ) -> None:
        sq = self.sqs[data.draw(st.sampled_from(sorted(self.sqs)), label="SQ")]
        medium = self.model.media.get(nsid)
        size = blocks * (medium.block_size if medium else 512)
        payload = random.Random(seed).randbytes(size)
        if opcode == NvmOpcode.COMPARE and seed and medium:
            payload = medium.read(slba, blocks).ljust(size, b"\0")
        command = Transfer(opcode, nsid, slba, blocks, flags, payload)
        buffer = self.host.memory.allocate(size + 2 * PAGE)
        buffer.write(payload, offset)
        pointers = page_entries(buffer.iova + offset, size)
        if bad == "offset" and len(pointers) > 1:
            pointers[-1] += 512
            command.bad_offset = True
        if bad == "memory":
            pointers[-1] = NOWHERE
            command.out_of_memory = True
        prps = build_prps(self.host.memory, pointers)
        faults, wanted = self.model.io(command)
        if self._execute(sq, self._sqe(command, prps.prp1, prps.prp2), faults) and wanted:
            assert buffer.read(offset, size) == wanted
        prps.free()
        buffer.free()

    def _execute(self, sq: RawSq, sqe: SQE, faults: Faults) -> bool:
        """An I/O command; whether it succeeded."""
        sqe.cid = self.next_cid = (self.next_cid + 1) % 0xFFFF
        completion = _completion(sq.execute(sqe))
        assert completion.result == 0
        if self.agree(completion, faults, sq.qid):
            return True
        assert self._newest_error().nsid == sqe.nsid
        return False

    @precondition(lambda self: self.sqs)
    @rule(
        data=st.data(),
        copy=st.booleans(),
        nsid=mostly_there,
        slba=st.sampled_from([0, 5, 13, 24, 30, 50, 2**64 - 1]),
        ranges=st.lists(st.tuples(near, st.integers(1, 5)), min_size=1, max_size=4),
        deallocate=st.booleans(),
        out_of_memory=sometimes,
    )
    def ranges(  # noqa: PLR0917 (hypothesis')
        self,
        data: st.DataObject,
        copy: bool,
        nsid: int,
        slba: int,
        ranges: list[tuple[int, int]],
        deallocate: bool,
        out_of_memory: bool,
    ) -> None:
        """Dataset Management, or Copy: of ranges that do not overlap with where it writes."""
        sq = self.sqs[data.draw(st.sampled_from(sorted(self.sqs)), label="SQ")]
        command = Transfer(
            NvmOpcode.COPY if copy else NvmOpcode.DATASET_MANAGEMENT,
            nsid,
            slba,
            out_of_memory=out_of_memory,
            ranges=tuple(ranges),
            deallocate=deallocate and not copy,
        )
        if copy and any(
            first < slba + command.size and slba < first + blocks for first, blocks in ranges
        ):
            return
        buffer = self.host.memory.allocate(PAGE)
        if copy:
            sqe = commands.copy(nsid, slba, len(ranges))
            buffer.write(commands.pack_copy_ranges(ranges))
        else:
            attributes = DsmAttribute.AD if deallocate else DsmAttribute.IDR
            sqe = commands.dataset_management(nsid, len(ranges), attributes)
            buffer.write(commands.pack_ranges(ranges))
        sqe.prp1 = NOWHERE if out_of_memory else buffer.iova
        self._execute(sq, sqe, self.model.io(command)[0])
        buffer.free()

    @precondition(lambda self: any(self._room(sq) >= 2 for sq in self.sqs.values()))
    @rule(
        data=st.data(),
        nsid=mostly_there,
        slba=near,
        blocks=st.integers(1, 3),
        apart=sometimes,
        equal=st.sampled_from([True, True, False]),
        seed=st.integers(0, 3),
    )
    def compare_and_write(  # noqa: PLR0917 (hypothesis')
        self,
        data: st.DataObject,
        nsid: int,
        slba: int,
        blocks: int,
        apart: bool,
        equal: bool,
        seed: int,
    ) -> None:
        """A fused pair."""
        sq = data.draw(st.sampled_from([sq for sq in self.sqs.values() if self._room(sq) >= 2]))
        medium = self.model.media.get(nsid)
        size = blocks * (medium.block_size if medium else 512)
        new = random.Random(seed).randbytes(size)
        old = medium.read(slba, blocks).ljust(size, b"\0") if medium and equal else new
        compare = Transfer(NvmOpcode.COMPARE, nsid, slba, blocks, data=old)
        write = Transfer(NvmOpcode.WRITE, nsid, slba + apart, blocks, data=new)
        buffers = []
        for transfer, fuse in ((compare, Fuse.FIRST), (write, Fuse.SECOND)):
            buffer = self.host.memory.allocate(size)
            buffer.write(transfer.data)
            prps = build_prps(self.host.memory, page_entries(buffer.iova, size))
            buffers += [buffer, prps]
            self.next_cid = (self.next_cid + 1) % 0xFFFF
            sqe = self._sqe(transfer, prps.prp1, prps.prp2)
            sqe.flags = fuse
            sq.post(sqe)
        sq.ring()
        statuses = [_completion(entry).status for entry in sq.cq.wait(2)]
        self._agree_on_pair(statuses, self.model.fused(compare, write))
        for one in buffers:
            one.free()

    def _agree_on_pair(self, found: list[Status], wanted: list[tuple[Faults, Faults]]) -> None:
        assert any(
            all(
                status.code in faults if faults else status.success
                for status, faults in zip(found, pair, strict=True)
            )
            for pair in wanted
        ), f"{found}: the model has {wanted}"
        for status in found:
            self.model.errors += not status.success
            self.model.unreadable += status.code is MediaStatus.UNRECOVERED_READ

    @staticmethod
    def _room(sq: RawSq) -> int:
        """Commands that can be outstanding in the queue, alone on its CQ."""
        return min(sq.entries, sq.cq.entries) - 1

    @precondition(lambda self: self.sqs)
    @rule(data=st.data(), count=st.integers(1, 4), nsid=st.sampled_from([1, 1, HIGH, 3]))
    def abort_what_waits(self, data: st.DataObject, count: int, nsid: int) -> None:
        """The host has paused the controller: one of several Writes is aborted in its queue."""
        sq = self.sqs[data.draw(st.sampled_from(sorted(self.sqs)), label="SQ")]
        count = min(count, self._room(sq))
        aborted = data.draw(st.integers(0, count - 1), label="aborted")
        size = self.model.media[nsid].block_size if nsid in self.model.media else 512
        self.served.run(self.served.controller.pause())
        sent: dict[int, Transfer] = {}
        buffers = [self.host.memory.allocate(size) for _ in range(count)]
        for number, buffer in enumerate(buffers):
            write = Transfer(NvmOpcode.WRITE, nsid, 2 * number, data=bytes([number + 1]) * size)
            buffer.write(write.data)
            self.next_cid = (self.next_cid + 1) % 0xFFFF
            sent[self.next_cid] = write
            sq.post(self._sqe(write, buffer.iova, 0))
        sq.ring()
        cid = list(sent)[aborted]
        assert self.host.abort(sq.qid, cid)
        (entry,) = sq.cq.wait(1)
        assert entry.cid == cid
        self.agree(_completion(entry), {GenericStatus.ABORT_REQUESTED}, sq.qid)
        newest = self._newest_error()
        assert (newest.nsid, newest.lba) == (nsid, sent.pop(cid).slba)
        self.served.call(self.served.controller.resume)
        for entry in sq.cq.wait(len(sent)):
            faults, _ = self.model.io(sent.pop(entry.cid))
            status = _completion(entry).status
            assert status.code in faults if faults else status.success
            self.model.errors += bool(faults)
        assert not sent
        for buffer in buffers:
            buffer.free()

    # -- reservations ------------------------------------------------------------------------

    @rule()
    def say_who_it_is(self) -> None:
        sqe = commands.set_features(Fid.HOST_IDENTIFIER, HOST_IDENTIFIER_EXHID)
        self.host.admin(sqe, send=bytes(range(16)))
        self.model.host = True

    def _reserve(
        self, data: st.DataObject, sqe: SQE, keys: tuple[int, ...], faults: Faults
    ) -> None:
        sq = self.sqs[data.draw(st.sampled_from(sorted(self.sqs)), label="SQ")]
        buffer = self.host.memory.allocate(PAGE)
        buffer.write(commands.pack_keys(*keys))
        sqe.prp1 = buffer.iova
        self._execute(sq, sqe, faults)
        buffer.free()

    @precondition(lambda self: self.sqs)
    @rule(
        data=st.data(),
        nsid=mostly_there,
        action=st.sampled_from([0, 0, 0, 1, 2, 7]),
        current=keys,
        new=keys,
        iekey=sometimes,
    )
    def register(  # noqa: PLR0917 (hypothesis')
        self, data: st.DataObject, nsid: int, action: int, current: int, new: int, iekey: bool
    ) -> None:
        faults = self.model.register(nsid, action, (current, new), iekey=iekey)
        sqe = commands.reservation_register(nsid, action, iekey=iekey)
        self._reserve(data, sqe, (current, new), faults)

    @precondition(lambda self: self.sqs)
    @rule(
        data=st.data(),
        nsid=mostly_there,
        action=st.sampled_from([0, 0, 0, 7]),
        rtype=rtypes,
        key=keys,
    )
    def acquire(self, data: st.DataObject, nsid: int, action: int, rtype: int, key: int) -> None:
        faults = self.model.acquire(nsid, action, rtype, key)
        self._reserve(data, commands.reservation_acquire(nsid, action, rtype), (key, 0), faults)

    @precondition(lambda self: self.sqs)
    @rule(
        data=st.data(),
        nsid=mostly_there,
        action=st.sampled_from([0, 0, 1, 7]),
        rtype=rtypes,
        key=keys,
    )
    def release(self, data: st.DataObject, nsid: int, action: int, rtype: int, key: int) -> None:
        if nsid in self.model.media and key:
            rtype = self.model.media[nsid].rtype or rtype
        faults = self.model.release(nsid, action, rtype, key)
        self._reserve(data, commands.reservation_release(nsid, action, rtype), (key,), faults)

    @precondition(lambda self: self.sqs)
    @rule(data=st.data(), nsid=mostly_there)
    def report(self, data: st.DataObject, nsid: int) -> None:
        sq = self.sqs[data.draw(st.sampled_from(sorted(self.sqs)), label="SQ")]
        buffer = self.host.memory.allocate(PAGE)
        sqe = commands.reservation_report(nsid, PAGE)
        sqe.prp1 = buffer.iova
        if self._execute(sq, sqe, self.model.report(nsid)):
            medium = self.model.media[nsid]
            status = ReservationStatus.from_buffer_copy(buffer.read())
            assert (status.rtype, status.regstrnt) == (medium.rtype, bool(medium.key))
        buffer.free()

    # -- what changes namespaces --------------------------------------------------------------

    @contextmanager
    def _untold(self) -> Iterator[None]:
        """Whether the guest is told of what changes is another test's."""
        fid = Fid.ASYNC_EVENT_CONFIGURATION
        self.host.set_features(fid, 0)
        yield
        self.host.get_log_page(LogPage.CHANGED_NAMESPACES, 4096)
        self.expect_events(self.model.log_page_read(LogPage.CHANGED_NAMESPACES, retain=False))
        self.host.set_features(fid, self.model.features[fid])

    @rule(nsid=mostly_there, state=st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4]))
    def protect(self, nsid: int, state: int) -> None:
        with self._untold():
            faults = self.model.protect(nsid, state)
            self.admin(
                commands.set_features(Fid.NAMESPACE_WRITE_PROTECTION, state, nsid=nsid), faults
            )

    @rule(
        nsid=mostly_there, index=st.sampled_from([0, 0, 1, 1, 2]), ses=st.sampled_from([0, 0, 1, 2])
    )
    def format(self, nsid: int, index: int, ses: int) -> None:
        with self._untold():
            faults = self.model.format(nsid, index, ses)
            cdw10 = index | ses << FORMAT_SES_SHIFT
            self.admin(SQE(opc=AdminOpcode.FORMAT_NVM, nsid=nsid, cdw10=cdw10), faults)
        medium = self.model.media.get(ENCRYPTED)
        if ses == 2 and not faults and medium is not None:
            medium.data[:] = self._decrypted()
            assert any(medium.data), "there is another key"

    @rule(nsid=mostly_there, code=st.sampled_from([1, 2, 2, 3]))
    def self_test(self, nsid: int, code: int) -> None:
        """A device self-test, until it is over."""
        faults = self.model.self_test(nsid, code)
        self.admin(SQE(opc=AdminOpcode.DEVICE_SELF_TEST, nsid=nsid, cdw10=code), faults)
        deadline = time.monotonic() + PATIENCE
        while True:
            page = self.host.get_log_page(LogPage.DEVICE_SELF_TEST, 564, rae=True)
            log = SelfTestLog.from_buffer_copy(page)
            if not log.current:
                break
            assert time.monotonic() < deadline
        for entry, wanted in zip(log.results, self.model.self_tests, strict=False):
            assert (entry.status >> 4, entry.status & 0xF) == wanted

    def _sqe(self, command: Transfer, prp1: int, prp2: int) -> SQE:
        return SQE(
            opc=command.opcode,
            flags=command.flags,
            cid=self.next_cid,
            nsid=command.nsid,
            prp1=prp1,
            prp2=prp2,
            cdw10=command.slba & 0xFFFF_FFFF,
            cdw11=command.slba >> 32,
            cdw12=command.blocks - 1,
        )

    @precondition(lambda self: self.sqs)
    @rule(seed=st.integers(0, 1 << 16))
    def many_at_a_time(self, seed: int) -> None:
        """Reads on every queue, rung together; room in each CQ for all of its queues' commands."""
        chance = random.Random(seed)
        block = self.model.media.get(1)
        if block is None or block.bad or (block.rtype and not self.model.host):
            return
        buffers = {}
        counts: dict[int, int] = dict.fromkeys(self.cqs, 0)
        for sq in self.sqs.values():
            for _ in range(chance.randint(1, sq.entries - 1)):
                if counts[sq.cq.qid] == sq.cq.entries - 1:
                    break
                counts[sq.cq.qid] += 1
                self.next_cid = (self.next_cid + 1) % 0xFFFF
                slba = chance.randrange(block.blocks)
                buffer = self.host.memory.allocate(block.block_size)
                buffers[sq.qid, self.next_cid] = buffer, slba
                sq.post(self._sqe(Transfer(NvmOpcode.READ, 1, slba), buffer.iova, 0))
        for sq in self.sqs.values():
            sq.ring()
        for qid, count in counts.items():
            for entry in self.cqs[qid].wait(count):
                buffer, slba = buffers.pop((entry.sqid, entry.cid))
                assert entry.status >> 1 == 0
                assert buffer.read() == block.read(slba, 1)
                buffer.free()
        assert not buffers

    # -- what the host does ------------------------------------------------------------------

    @rule(nsid=st.sampled_from([1, HIGH]))
    def remove_or_add_a_namespace(self, nsid: int) -> None:
        controller = self.served.controller
        backend = self.backends[nsid]
        if nsid in self.model.media:
            self.served.run(controller.remove_namespace(nsid))
            self.model.error_recovery.pop(nsid, None)
            self.removed = {**getattr(self, "removed", {}), nsid: self.model.media.pop(nsid)}
            self.removed[nsid].forget()
        else:
            self.served.call(controller.add_namespace, nsid, backend)
            self.model.media[nsid] = self.removed.pop(nsid)
        self.expect_events(self.model.namespace_changed(nsid))

    # -- life cycle --------------------------------------------------------------------------

    @rule(
        how=st.sampled_from(["enable", "shutdown", "device", "subsystem", "refused"]),
        queues=st.sampled_from([True] * 5 + [False]),
    )
    def reset(self, how: str, queues: bool) -> None:
        """A Controller Level Reset of any kind, then enable it again."""
        host = self.host
        match how:
            case "shutdown":
                host.shutdown()
            case "device":
                host.device_reset()
            case "subsystem":
                host.write_register(Register.NSSR, NSSR_NSSRC)
            case "refused":
                host.disable()
                host.write_register(Register.CC, 0x0046_0071 & ~0x40 | 0x50)
                assert host.csts().cfs
        for queue in (*self.sqs.values(), *self.cqs.values()):
            queue.buffer.free()
        self._forget_queues()
        host.enable()
        self.model.reset()
        if queues:
            self._a_queue_pair()

    # -- what is always so -------------------------------------------------------------------

    @invariant()
    def the_controller_is_ready(self) -> None:
        if hasattr(self, "host"):
            csts = self.host.csts()
            assert csts.rdy
            assert not csts.cfs

    @invariant()
    def features_are_what_was_set(self) -> None:
        if hasattr(self, "host"):
            for fid in KEPT_FEATURES:
                assert self.host.get_features(fid) == self.model.features[fid], Fid(fid).name
            for nsid in self.model.media:
                found = self.host.get_features(Fid.ERROR_RECOVERY, nsid=nsid)
                assert found == self.model.error_recovery.get(nsid, 0)
                state = self.host.get_features(Fid.NAMESPACE_WRITE_PROTECTION, nsid=nsid)
                assert state == self.model.media[nsid].protection


IoMachine = type(
    "IoMachine",
    (Machine,),
    dict.fromkeys(
        (
            "create_cq",
            "create_sq",
            "delete_sq",
            "delete_cq",
            "number_of_queues",
            "set_feature",
            "set_error_recovery",
            "a_feature_that_is_not_there",
            "an_admin_opcode_that_is_not_there",
            "identify_a_namespace",
            "read_another_log_page",
            "abort_what_is_not_there",
            "request_an_event",
            "ring_a_queue_that_is_not_there",
            "ring_beyond_the_end",
            "self_test",
        )
    ),
)
"""Without the rules that are about something else, so that it comes further with I/O commands."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("machine", "examples"), [(Machine, 12), (IoMachine, 15)])
def test_the_model_and_the_controller_agree(machine: type[Machine], examples: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
