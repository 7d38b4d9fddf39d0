"""What data a command moves, and where: enough of it to pull and push, not to judge it.

The data path checks every command, as always. What is wrong with one is left to it: nothing is
moved for that, and the data path refuses it (NVMe Base 2.x, sections 4.1.1, 4.3.1, 4.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_commands import AdminOpcode, NvmOpcode, SglType
from nvme_mdev.spec.nvme_reservations import KEY_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from nvme_mdev.spec.nvme_commands import SQE

    Fetch: TypeAlias = Callable[[int, int], Awaitable[bytes]]
    """Bytes of guest memory that a list is in: (IOVA, size)."""

_TO_CONTROLLER = 1
_TO_HOST = 2
"""Bits 1:0 of an opcode: which way its data goes (Base, figure *Opcode*)."""
_PSDT_SHIFT = 6
_LARGEST_UNKNOWN = 4096
"""Bytes of data of a command whose length is not looked up here."""
_PRP_SIZE = 8
_SGL_SIZE = 16
_MOST_DESCRIPTORS = 1 << 16
_MOST_SEGMENTS = 1 << 10
"""Of one SGL; more are the data path's to refuse."""
_NOT_CONTIGUOUS = {AdminOpcode.CREATE_IO_SQ: 64, AdminOpcode.CREATE_IO_CQ: 16}
"""Commands whose PRP1 may be a list of pages, and the bytes of a queue's entry."""


@dataclass
class Transfer:
    """The data of a command."""

    pulls: bool = False
    """It goes to the controller."""
    pushes: bool = False
    """It goes to the guest."""
    exact: bool = False
    """All of `ranges` is written by a command that succeeds; otherwise some of it."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """(IOVA, bytes), in order."""


def length_of(sqe: SQE, *, admin: bool, block_size: int) -> int:
    """Bytes of a command's data, or more; ``block_size`` 0: there is no such namespace."""
    if not sqe.opc & (_TO_CONTROLLER | _TO_HOST):
        return 0
    if admin:
        match sqe.opc:
            case AdminOpcode.GET_LOG_PAGE:
                return ((sqe.cdw10 >> 16 | (sqe.cdw11 & 0xFFFF) << 16) + 1) * 4
            case AdminOpcode.CREATE_IO_CQ | AdminOpcode.CREATE_IO_SQ:
                return 0
            case _:
                return _LARGEST_UNKNOWN
    match sqe.opc:
        case NvmOpcode.READ | NvmOpcode.WRITE | NvmOpcode.COMPARE:
            return ((sqe.cdw12 & 0xFFFF) + 1) * block_size
        case NvmOpcode.DATASET_MANAGEMENT:
            return ((sqe.cdw10 & 0xFF) + 1) * 16
        case NvmOpcode.COPY:
            return ((sqe.cdw12 & 0xFF) + 1) * 32
        case NvmOpcode.RESERVATION_REPORT:
            return (sqe.cdw10 + 1) * 4
        case NvmOpcode.RESERVATION_REGISTER | NvmOpcode.RESERVATION_ACQUIRE:
            return 2 * KEY_SIZE
        case NvmOpcode.RESERVATION_RELEASE:
            return KEY_SIZE
        case _:
            return _LARGEST_UNKNOWN


async def describe(
    sqe: SQE, length: int, *, admin: bool, page_size: int, limit: int, fetch: Fetch
) -> Transfer:
    """Where a command's data is. ``fetch`` brings lists; what it raises goes through.

    ``limit``: bytes that a command may move; more is nothing here.
    """
    psdt = sqe.flags >> _PSDT_SHIFT
    if admin and sqe.opc in _NOT_CONTIGUOUS:
        await _fetch_queue_pages(sqe, page_size, fetch)
        return Transfer()
    if length == 0 or length > max(limit, _LARGEST_UNKNOWN) or psdt > 1 or (admin and psdt):
        return Transfer()
    walk = _sgl if psdt else _prps
    ranges = await walk(sqe, length, page_size, fetch)
    to_host = bool(sqe.opc & _TO_HOST)
    return Transfer(
        pulls=not to_host or sqe.opc != NvmOpcode.READ or admin,
        pushes=to_host,
        exact=sqe.opc == NvmOpcode.READ and not admin,
        ranges=ranges,
    )


async def _prps(sqe: SQE, length: int, page_size: int, fetch: Fetch) -> list[tuple[int, int]]:
    first = min(length, page_size - sqe.prp1 % page_size)
    ranges = [(sqe.prp1, first)]
    length -= first
    if not length:
        return ranges
    if length <= page_size:
        return [*ranges, (sqe.prp2 - sqe.prp2 % page_size, length)]
    at = sqe.prp2
    # A list that goes on with nothing but pointers has no end.
    for _ in range(length // page_size + 2):
        if not length or at % _PRP_SIZE:
            break
        slots = (page_size - at % page_size) // _PRP_SIZE
        wanted = -(-length // page_size)
        entries = _words(await fetch(at, min(slots, wanted) * _PRP_SIZE))
        if wanted > slots:
            at = entries.pop()
        for entry in entries:
            ranges.append((entry - entry % page_size, min(length, page_size)))
            length -= min(length, page_size)
    return ranges


async def _sgl(sqe: SQE, length: int, page_size: int, fetch: Fetch) -> list[tuple[int, int]]:
    del page_size
    ranges: list[tuple[int, int]] = []
    descriptors = [sqe.prp1.to_bytes(8, "little") + sqe.prp2.to_bytes(8, "little")]
    segments = 0
    while descriptors and length:
        descriptor = descriptors.pop(0)
        address = int.from_bytes(descriptor[:8], "little")
        size = int.from_bytes(descriptor[8:12], "little")
        match descriptor[15] >> 4:
            case SglType.DATA_BLOCK:
                if size:
                    ranges.append((address, min(size, length)))
                length -= min(size, length)
            case SglType.BIT_BUCKET:
                if sqe.opc & _TO_HOST:
                    length -= min(size, length)
            case SglType.SEGMENT | SglType.LAST_SEGMENT:
                segments += 1
                if not size or size % _SGL_SIZE or size // _SGL_SIZE > _MOST_DESCRIPTORS:
                    return ranges
                if segments > _MOST_SEGMENTS:
                    return ranges
                data = await fetch(address, size)
                descriptors = [data[i : i + _SGL_SIZE] for i in range(0, size, _SGL_SIZE)]
            case _:
                return ranges
    return ranges


async def _fetch_queue_pages(sqe: SQE, page_size: int, fetch: Fetch) -> None:
    """Bring the list of pages that a queue without consecutive ones consists of (PC = 0)."""
    if sqe.cdw11 & 1:
        return
    entries = (sqe.cdw10 >> 16) + 1
    left = -(-entries * _NOT_CONTIGUOUS[AdminOpcode(sqe.opc)] // page_size)
    at = sqe.prp1
    while left and not at % _PRP_SIZE:
        slots = (page_size - at % page_size) // _PRP_SIZE
        pages = _words(await fetch(at, min(slots, left) * _PRP_SIZE))
        if left <= slots:
            return
        left -= slots - 1
        at = pages[-1]


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
