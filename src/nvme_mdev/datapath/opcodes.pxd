"""Opcodes of the I/O commands, and sets of them (NVM Command Set 1.x, section 3)."""

from libc.stdint cimport uint32_t

cdef enum:
    NVME_FLUSH = 0x00
    NVME_WRITE = 0x01
    NVME_READ = 0x02
    NVME_WRITE_UNCORRECTABLE = 0x04
    NVME_COMPARE = 0x05
    NVME_WRITE_ZEROES = 0x08
    NVME_DATASET_MANAGEMENT = 0x09
    NVME_VERIFY = 0x0c
    NVME_COPY = 0x19
    #: The highest that there is.
    OPCODE_LAST = 25

    #: Bit n: opcode n names a range of blocks in SLBA.
    RANGE_OPCODES = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 12 | 1 << 25
    #: Reservation Register, Report, Acquire and Release.
    RESERVATION_OPCODES = 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21
    #: Bit n: opcode n is implemented: those, Flush and Dataset Management.
    OPCODES = RANGE_OPCODES | RESERVATION_OPCODES | 1 << 0 | 1 << 9
    #: Bit n: opcode n can change data (Write, Write Uncorrectable, Write Zeroes, Dataset Management, Copy).
    WRITE_OPCODES = 1 << 1 | 1 << 4 | 1 << 8 | 1 << 9 | 1 << 25
    #: The command groups of reservations; Copy is in both.
    READ_GROUP = 1 << 2 | 1 << 5 | 1 << 12 | 1 << 25
    WRITE_GROUP = WRITE_OPCODES | 1 << 0

    NSID_ALL = 0xffffffff


cdef inline bint is_one_of(uint32_t opcode, uint32_t opcodes) noexcept nogil:
    """Whether a guest's opcode, any number, is in a set of those up to OPCODE_LAST."""
    return opcode <= OPCODE_LAST and opcodes >> opcode & 1
