"""The register page: BAR0 0000h to 0FFFh (NVMe Base 3.1.4, PCIe Transport 3.1.2).

The page is the state: a read of any size returns its bytes. What a write of any size does is
decided here, register by register, and done by the controller: :meth:`Registers.writes` says which
registers a write touches and what value each would get.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.spec.nvme_commands import CQE_SIZE, SQE_SIZE
from nvme_mdev.spec.nvme_registers import (
    ADMIN_CQES,
    ADMIN_SQES,
    CSTS_SHST_MASK,
    CSTS_SHST_SHIFT,
    QUEUE_BASE_MASK,
    REGISTER_SIZE,
    REGISTERS_SIZE,
    Ams,
    Aqa,
    Cap,
    CapBit,
    Cc,
    Crto,
    Css,
    CstsBit,
    Register,
    version,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.controller.settings import ControllerSettings
    from nvme_mdev.datapath.memory import GuestMemory
    from nvme_mdev.spec.nvme_registers import Shst

VERSION = version(2, 0)
"""VS, and VER of Identify Controller."""

READY_TIMEOUT_MS = 60_000
"""CAP.TO: longer than the default I/O timeout, which is what a reset can have to wait for."""
_TO_UNIT_MS = 500
_TO_MAX = 0xFF

MPSMAX = 4
"""CAP.MPSMAX: guest pages of up to 64 KiB, as arm64 can have them."""

CAP_BITS = CapBit.AMS_WRR | CapBit.CSS_NCSS | CapBit.CSS_IOCSS | CapBit.CRWMS
"""What CAP says of every controller."""


class _Kind(enum.Enum):
    """What bytes that a write leaves out are taken for."""

    VALUE = enum.auto()
    """What they are: the register holds a value."""
    TRIGGER = enum.auto()
    """Zero: ones do something, zeros do nothing."""


class _Writable(NamedTuple):
    mask: int
    kind: _Kind


_WRITABLE: dict[Register, _Writable] = {
    Register.INTMS: _Writable(0xFFFF_FFFF, _Kind.TRIGGER),
    Register.INTMC: _Writable(0xFFFF_FFFF, _Kind.TRIGGER),
    Register.CC: _Writable(0x00FF_FFF1, _Kind.VALUE),
    Register.CSTS: _Writable(CstsBit.NSSRO, _Kind.TRIGGER),
    Register.NSSR: _Writable(0xFFFF_FFFF, _Kind.TRIGGER),
    Register.AQA: _Writable(0x0FFF_0FFF, _Kind.VALUE),
    Register.ASQ: _Writable(QUEUE_BASE_MASK, _Kind.VALUE),
    Register.ACQ: _Writable(QUEUE_BASE_MASK, _Kind.VALUE),
}
"""Every register that can be written, in the order of their offsets, with its writable bits."""


class Registers:
    """A view on the register page of a controller's state."""

    def __init__(self, page: memoryview) -> None:
        self._page = page

    def reset(self, settings: ControllerSettings, *, alone: bool) -> None:
        """Set every register to its default (any reset but that by CC.EN).

        ``alone``: there is no other controller in the subsystem. An NVM Subsystem Reset is to
        reset all of them (Base 3.7.1.1), but no guest is to stop another one's controller: where
        there are several, there is none (CAP.NSSRS).
        """
        self._page[:] = bytes(REGISTERS_SIZE)
        timeout = min(max(READY_TIMEOUT_MS, 2 * settings.io_timeout_ms) // _TO_UNIT_MS, _TO_MAX)
        cap = Cap(
            mqes=settings.queue_entries - 1,
            to=timeout,
            dstrd=settings.dstrd,
            mpsmax=MPSMAX,
            bits=CAP_BITS | CapBit.NSSRS if alone else CAP_BITS,
        )
        self[Register.CAP] = cap.pack()
        self[Register.VS] = VERSION
        self[Register.CRTO] = Crto(crwmt=timeout).pack()

    def __getitem__(self, register: Register) -> int:
        size = REGISTER_SIZE[register]
        return int.from_bytes(self._page[register : register + size], "little")

    def __setitem__(self, register: Register, value: int) -> None:
        size = REGISTER_SIZE[register]
        self._page[register : register + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``; what is reserved or outside of the page reads as 0."""
        return bytes(self._page[offset : offset + size]).ljust(size, b"\0")

    def writes(self, offset: int, data: bytes) -> Iterator[tuple[Register, int]]:
        """Which writable registers a write touches and the value each gets, by ascending offset.

        Bits that are not writable are 0. Nothing is changed: whoever iterates does that.
        """
        end = offset + len(data)
        for register, (mask, kind) in _WRITABLE.items():
            size = REGISTER_SIZE[register]
            first, last = max(offset, register), min(end, register + size)
            if first >= last:
                continue
            old = self._page[register : register + size] if kind is _Kind.VALUE else bytes(size)
            merged = bytearray(old)
            merged[first - register : last - register] = data[first - offset : last - offset]
            yield register, int.from_bytes(merged, "little") & mask

    @property
    def cc(self) -> Cc:
        """CC, taken apart."""
        return Cc.unpack(self[Register.CC])

    def change_csts(self, *, on: int = 0, off: int = 0) -> None:
        """Clear the bits ``off`` of CSTS, then set the bits ``on``."""
        self[Register.CSTS] = self[Register.CSTS] & ~off | on

    def set_shutdown_status(self, status: Shst) -> None:
        """Set CSTS.SHST."""
        self.change_csts(off=CSTS_SHST_MASK, on=status << CSTS_SHST_SHIFT)


class AdminQueues(NamedTuple):
    """What AQA, ASQ and ACQ say; addresses are IOVAs, sizes are entries."""

    sq: int
    sq_size: int
    cq: int
    cq_size: int


def admin_queues(registers: Registers) -> AdminQueues:
    """The admin queue pair that the guest has set up."""
    aqa = Aqa.unpack(registers[Register.AQA])
    return AdminQueues(registers[Register.ASQ], aqa.asqs + 1, registers[Register.ACQ], aqa.acqs + 1)


def why_not_enabled(registers: Registers, memory: GuestMemory) -> str | None:
    """Why the controller cannot be enabled as it is configured, None when it can (Base 3.5.1)."""
    cc = registers.cc
    cap = Cap.unpack(registers[Register.CAP])
    queues = admin_queues(registers)
    if not cap.mpsmin <= cc.mps <= cap.mpsmax:
        return f"memory page size {cc.page_size} is not supported"
    if cc.css not in (Css.NVM, Css.IOCS):
        return f"I/O command set selection {cc.css:03b}b is not supported"
    if cc.ams not in (Ams.RR, Ams.WRRU):
        return f"arbitration mechanism {cc.ams:03b}b is not supported"
    # 0 is what many drivers leave there until they create I/O queues, where it is checked.
    if cc.iosqes not in (0, ADMIN_SQES) or cc.iocqes not in (0, ADMIN_CQES):
        return f"queue entries of {1 << cc.iosqes} and {1 << cc.iocqes} bytes are not supported"
    if queues.sq % cc.page_size or queues.cq % cc.page_size:
        return "an admin queue does not begin at a memory page"
    if queues.sq_size == 1 or queues.cq_size == 1:
        return "an admin queue needs at least two entries"
    if not memory.covers(queues.sq, queues.sq_size * SQE_SIZE, writable=False):
        return f"the admin SQ at {queues.sq:#x} is not in guest memory"
    if not memory.covers(queues.cq, queues.cq_size * CQE_SIZE, writable=True):
        return f"the admin CQ at {queues.cq:#x} is not in guest memory"
    return None
