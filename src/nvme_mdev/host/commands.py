"""Submission queue entries from their fields (NVMe Base 2.x, section 5; NVM Command Set 3).

What is 0's based in the specification is a count here; nothing is checked, so that tests can ask
for the impossible. A command identifier is given when the command is submitted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_commands import (
    GET_LOG_PAGE_RAE,
    SQE,
    AdminOpcode,
    NvmOpcode,
    QueueFlags,
    RwControl,
)
from nvme_mdev.spec.nvme_reservations import (
    CPTPL_SHIFT,
    KEY_SIZE,
    REPORT_EDS,
    RESERVATION_IEKEY,
    RESERVATION_TYPE_SHIFT,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvme_mdev.spec.nvme_commands import DsmAttribute

_U32 = 0xFFFF_FFFF


def identify(cns: int, nsid: int = 0, *, cntid: int = 0, csi: int = 0, specific: int = 0) -> SQE:
    """Identify, 4096 bytes from the controller."""
    return SQE(
        opc=AdminOpcode.IDENTIFY,
        nsid=nsid,
        cdw10=cns | cntid << 16,
        cdw11=specific | csi << 24,
    )


def get_log_page(
    lid: int, size: int, *, offset: int = 0, nsid: int = _U32, lsp: int = 0, rae: bool = False
) -> SQE:
    """Get Log Page, ``size`` bytes (a multiple of 4) from byte ``offset`` on."""
    numd = size // 4 - 1
    return SQE(
        opc=AdminOpcode.GET_LOG_PAGE,
        nsid=nsid,
        cdw10=lid | lsp << 8 | (GET_LOG_PAGE_RAE if rae else 0) | (numd & 0xFFFF) << 16,
        cdw11=numd >> 16,
        cdw12=offset & _U32,
        cdw13=offset >> 32,
    )


def get_features(fid: int, *, select: int = 0, nsid: int = 0, value: int = 0) -> SQE:
    """Get Features; the value is in the completion's dword 0."""
    return SQE(opc=AdminOpcode.GET_FEATURES, nsid=nsid, cdw10=fid | select << 8, cdw11=value)


def set_features(fid: int, value: int, *, nsid: int = 0, save: bool = False) -> SQE:
    """Set Features to a value of 32 bits."""
    return SQE(opc=AdminOpcode.SET_FEATURES, nsid=nsid, cdw10=fid | int(save) << 31, cdw11=value)


def create_io_cq(
    qid: int, entries: int, iova: int, *, vector: int = 0, interrupts: bool = False
) -> SQE:
    """Create I/O Completion Queue, physically contiguous at ``iova``."""
    flags = QueueFlags.PC | (QueueFlags.IEN if interrupts else 0)
    return SQE(
        opc=AdminOpcode.CREATE_IO_CQ,
        prp1=iova,
        cdw10=qid | ((entries - 1) & 0xFFFF) << 16,
        cdw11=flags | vector << 16,
    )


def create_io_sq(qid: int, entries: int, iova: int, cqid: int, *, priority: int = 0) -> SQE:
    """Create I/O Submission Queue, physically contiguous at ``iova``."""
    return SQE(
        opc=AdminOpcode.CREATE_IO_SQ,
        prp1=iova,
        cdw10=qid | ((entries - 1) & 0xFFFF) << 16,
        cdw11=QueueFlags.PC | priority << 1 | cqid << 16,
    )


def delete_io_sq(qid: int) -> SQE:
    """Delete I/O Submission Queue."""
    return SQE(opc=AdminOpcode.DELETE_IO_SQ, cdw10=qid)


def delete_io_cq(qid: int) -> SQE:
    """Delete I/O Completion Queue; its submission queues must be gone."""
    return SQE(opc=AdminOpcode.DELETE_IO_CQ, cdw10=qid)


def abort(sqid: int, cid: int) -> SQE:
    """Abort a command of a submission queue."""
    return SQE(opc=AdminOpcode.ABORT, cdw10=sqid | cid << 16)


def async_event_request() -> SQE:
    """Asynchronous Event Request: completes when there is something to tell."""
    return SQE(opc=AdminOpcode.ASYNC_EVENT_REQUEST)


def doorbell_buffer_config(shadow_iova: int, event_idx_iova: int) -> SQE:
    """Doorbell Buffer Config: one page of shadow doorbells, one of EventIdx."""
    return SQE(opc=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow_iova, prp2=event_idx_iova)


def _block_range(opcode: NvmOpcode, nsid: int, slba: int, blocks: int, control: int) -> SQE:
    return SQE(
        opc=opcode,
        nsid=nsid,
        cdw10=slba & _U32,
        cdw11=slba >> 32,
        cdw12=((blocks - 1) & 0xFFFF) | control,
    )


def read(nsid: int, slba: int, blocks: int, *, fua: bool = False) -> SQE:
    """Read ``blocks`` logical blocks."""
    return _block_range(NvmOpcode.READ, nsid, slba, blocks, RwControl.FUA if fua else 0)


def write(nsid: int, slba: int, blocks: int, *, fua: bool = False) -> SQE:
    """Write ``blocks`` logical blocks."""
    return _block_range(NvmOpcode.WRITE, nsid, slba, blocks, RwControl.FUA if fua else 0)


def compare(nsid: int, slba: int, blocks: int) -> SQE:
    """Compare logical blocks with the data."""
    return _block_range(NvmOpcode.COMPARE, nsid, slba, blocks, 0)


def verify(nsid: int, slba: int, blocks: int, *, fua: bool = False) -> SQE:
    """Verify that logical blocks can be read."""
    return _block_range(NvmOpcode.VERIFY, nsid, slba, blocks, RwControl.FUA if fua else 0)


def write_uncorrectable(nsid: int, slba: int, blocks: int) -> SQE:
    """Make logical blocks unreadable until they are written."""
    return _block_range(NvmOpcode.WRITE_UNCORRECTABLE, nsid, slba, blocks, 0)


def copy(nsid: int, slba: int, ranges: int, *, fua: bool = False) -> SQE:
    """Copy ``ranges`` source ranges of 32 bytes in the data to block ``slba`` and on."""
    return SQE(
        opc=NvmOpcode.COPY,
        nsid=nsid,
        cdw10=slba & _U32,
        cdw11=slba >> 32,
        cdw12=((ranges - 1) & 0xFF) | (RwControl.FUA if fua else 0),
    )


def write_zeroes(
    nsid: int, slba: int, blocks: int, *, deallocate: bool = False, fua: bool = False
) -> SQE:
    """Write Zeroes; with ``deallocate`` the blocks may be freed."""
    control = (RwControl.DEAC if deallocate else 0) | (RwControl.FUA if fua else 0)
    return _block_range(NvmOpcode.WRITE_ZEROES, nsid, slba, blocks, control)


def flush(nsid: int) -> SQE:
    """Flush: what completed before is on the medium when it completes."""
    return SQE(opc=NvmOpcode.FLUSH, nsid=nsid)


def dataset_management(nsid: int, ranges: int, attributes: DsmAttribute | int) -> SQE:
    """Dataset Management for ``ranges`` ranges of 16 bytes in the data."""
    return SQE(
        opc=NvmOpcode.DATASET_MANAGEMENT,
        nsid=nsid,
        cdw10=(ranges - 1) & 0xFF,
        cdw11=int(attributes),
    )


def pack_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Dataset Management's data from (first block, blocks) pairs."""
    return b"".join(
        bytes(4) + blocks.to_bytes(4, "little") + slba.to_bytes(8, "little")
        for slba, blocks in ranges
    )


def pack_copy_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Copy's data from (first block, blocks) pairs, descriptor format 0h."""
    return b"".join(
        bytes(8) + slba.to_bytes(8, "little") + (blocks - 1).to_bytes(2, "little") + bytes(14)
        for slba, blocks in ranges
    )


# --- reservations (Base 7.5 to 7.8) ---


def reservation_register(nsid: int, action: int, *, iekey: bool = False, cptpl: int = 0) -> SQE:
    """Reservation Register; its data is `pack_keys` of the current and the new key."""
    cdw10 = action | (RESERVATION_IEKEY if iekey else 0) | cptpl << CPTPL_SHIFT
    return SQE(opc=NvmOpcode.RESERVATION_REGISTER, nsid=nsid, cdw10=cdw10)


def reservation_acquire(nsid: int, action: int, rtype: int) -> SQE:
    """Reservation Acquire; its data is `pack_keys` of the current key and that to preempt."""
    cdw10 = action | rtype << RESERVATION_TYPE_SHIFT
    return SQE(opc=NvmOpcode.RESERVATION_ACQUIRE, nsid=nsid, cdw10=cdw10)


def reservation_release(nsid: int, action: int, rtype: int = 0) -> SQE:
    """Reservation Release; its data is `pack_keys` of the current key."""
    cdw10 = action | rtype << RESERVATION_TYPE_SHIFT
    return SQE(opc=NvmOpcode.RESERVATION_RELEASE, nsid=nsid, cdw10=cdw10)


def reservation_report(nsid: int, size: int, *, extended: bool = True) -> SQE:
    """Reservation Report, ``size`` bytes (a multiple of 4) from the controller."""
    return SQE(
        opc=NvmOpcode.RESERVATION_REPORT,
        nsid=nsid,
        cdw10=size // 4 - 1,
        cdw11=REPORT_EDS if extended else 0,
    )


def pack_keys(*keys: int) -> bytes:
    """Data of the commands above."""
    return b"".join(key.to_bytes(KEY_SIZE, "little") for key in keys)
