"""Random legal and illegal commands, and a model that says what is to come of them.

The controller is behind a real socket, with its data path; the model is `model.py`. They agree
on the status of every command, on every event, and on all data.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvme_mdev.datapath.backends.memory import MemoryBackend
from nvme_mdev.host import commands
from nvme_mdev.host.completion import Completion
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.memory import build_prps, page_entries
from nvme_mdev.spec.nvme_commands import NSID_ALL, SQE, NvmOpcode
from nvme_mdev.spec.nvme_features import FeatureCapability, Fid, Select
from nvme_mdev.spec.nvme_identify import Cns
from nvme_mdev.spec.nvme_logs import ErrorLogEntry, LogPage
from nvme_mdev.spec.nvme_registers import NSSR_NSSRC, Register
from nvme_mdev.spec.nvme_status import GenericStatus, Status

from .conftest import Served
from .model import (
    DOORBELL_REGISTER,
    DOORBELL_VALUE,
    KEPT_FEATURES,
    PAGE,
    Event,
    Faults,
    Medium,
    Model,
    Transfer,
)
from .raw_queues import RawCq, RawSq

QUEUES = 3
ENTRIES = 32
NOWHERE = 0x7FFF_0000_0000
SIZES = {1: (64 << 10, 512), 2: (256 << 10, 4096)}
"""The namespaces at the start: bytes, and bytes of a block."""

qids = st.sampled_from([1, 1, 2, 2, 3, 3, 0, QUEUES + 1, 0xFFFF])
entries = st.sampled_from([2, 3, 8, 8, 16, ENTRIES, 1, ENTRIES + 1, 0x10000])
nsids = st.sampled_from([1, 1, 1, 2, 2, 3, 0, 257, NSID_ALL - 1, NSID_ALL])
sometimes = st.sampled_from([False] * 7 + [True])


class Machine(RuleBasedStateMachine):
    """Drives the controller and the model in step."""

    @initialize()
    def power_on(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nvme-mdev-"))
        self.backends = [MemoryBackend(size, block) for size, block in SIZES.values()]
        self.served = Served(
            self.directory / "s", list(self.backends), io_queues=QUEUES, queue_entries=ENTRIES
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
            {nsid: Medium(block, bytearray(size)) for nsid, (size, block) in SIZES.items()},
        )
        self._forget_queues()

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
            for backend in self.backends:
                backend.close()
            shutil.rmtree(self.directory)

    def _every_byte_is_as_it_should_be(self) -> None:
        for nsid, backend in enumerate(self.backends, 1):
            if nsid in self.model.media:
                data = self.model.media[nsid].data
                assert os.pread(backend.fd, len(data), 0) == bytes(data)

    # -- what both say -----------------------------------------------------------------------

    def agree(self, completion: Completion, faults: Faults, sqid: int = 0) -> bool:
        """Whether the command succeeded; the controller and the model say the same."""
        status = completion.status
        if not faults:
            assert status.success, f"{status}: the model has no fault"
            return True
        assert status.code in faults, f"{status}: the model has {faults}"
        self.model.errors += 1
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
        nsid=st.sampled_from([0, 0, 0, 0, NSID_ALL, 1, 2, 200, 257]),
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
        known = 1 <= nsid <= 256
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
            assert int.from_bytes(data[176:192], "little") == self.model.errors
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
                0x7E,
            ]
        ),
        nsid=nsids.filter(lambda nsid: nsid != NSID_ALL),
        slba=st.one_of(st.integers(0, 140), st.sampled_from([2**64 - 1, 2**63, 64])),
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
        self.next_cid = (self.next_cid + 1) % 0xFFFF
        entry = sq.execute(self._sqe(command, prps.prp1, prps.prp2))
        completion = Completion(entry.dw0, 0, entry.sqhd, entry.sqid, entry.cid, entry.status >> 1)
        faults, wanted = self.model.io(command)
        if self.agree(completion, faults, sq.qid) and wanted is not None:
            assert buffer.read(offset, size) == wanted
        prps.free()
        buffer.free()

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
        if block is None:
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
                buffer = self.host.memory.allocate(512)
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

    @rule(nsid=st.sampled_from([1, 2]))
    def remove_or_add_a_namespace(self, nsid: int) -> None:
        controller = self.served.controller
        backend = self.backends[nsid - 1]
        if nsid in self.model.media:
            self.served.run(controller.remove_namespace(nsid))
            self.model.error_recovery.pop(nsid, None)
            self.removed = {**getattr(self, "removed", {}), nsid: self.model.media.pop(nsid)}
        else:
            self.served.call(controller.add_namespace, nsid, backend)
            self.model.media[nsid] = self.removed.pop(nsid)
        self.expect_events(self.model.namespace_changed(nsid))

    # -- life cycle --------------------------------------------------------------------------

    @rule(how=st.sampled_from(["enable", "shutdown", "device", "subsystem", "refused"]))
    def reset(self, how: str) -> None:
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


@pytest.mark.timeout(600)
def test_the_model_and_the_controller_agree() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
