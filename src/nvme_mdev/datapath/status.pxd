"""NVMe status values that the data path gives: SCT << 8 | SC (NVMe Base 2.x, section 4.2.3)."""

cdef enum:
    SC_SUCCESS = 0x000
    SC_INVALID_OPCODE = 0x001
    SC_INVALID_FIELD = 0x002
    SC_DATA_TRANSFER_ERROR = 0x004
    SC_INTERNAL_ERROR = 0x006
    SC_ABORT_REQUESTED = 0x007
    SC_ABORT_SQ_DELETED = 0x008
    SC_ABORT_FAILED_FUSED = 0x009
    SC_ABORT_MISSING_FUSED = 0x00a
    SC_INVALID_NAMESPACE = 0x00b
    SC_SGL_SEGMENT_INVALID = 0x00d
    SC_SGL_COUNT_INVALID = 0x00e
    SC_SGL_LENGTH_INVALID = 0x00f
    SC_SGL_TYPE_INVALID = 0x011
    SC_PRP_OFFSET_INVALID = 0x013
    SC_ABORT_PREEMPT = 0x01b
    SC_SANITIZE_FAILED = 0x01c
    SC_SANITIZE_IN_PROGRESS = 0x01d
    SC_NAMESPACE_WRITE_PROTECTED = 0x020
    SC_LBA_OUT_OF_RANGE = 0x080
    SC_CAPACITY_EXCEEDED = 0x081
    SC_NAMESPACE_NOT_READY = 0x082
    SC_RESERVATION_CONFLICT = 0x083
    SC_COMMAND_SIZE_LIMIT = 0x183
    SC_WRITE_FAULT = 0x280
    SC_UNRECOVERED_READ = 0x281
    SC_COMPARE_FAILURE = 0x285

    #: SCT and SC, without More and Do Not Retry.
    SC_MASK = 0x7ff
    SC_DNR = 0x4000
    #: The error log has an entry for the command (M).
    SC_MORE = 0x2000

    #: No status of a command: it is one of `compound.pyx`.
    COMPOUND = 0x8000
    #: Nor is this: it is ready, and its namespace has limits (`throttle.pyx`).
    LIMITED = 0x9000

#: Where in the SQE the fault is (byte), for the error log.
cdef enum:
    LOCATION_OPCODE = 0
    LOCATION_FLAGS = 1
    LOCATION_NSID = 4
    LOCATION_PRP1 = 24
    LOCATION_PRP2 = 32
    LOCATION_CDW10 = 40
    LOCATION_CDW11 = 44
    LOCATION_CDW12 = 48
    LOCATION_CDW13 = 52
    #: Bit 4 of byte 50: DTYPE.
    LOCATION_DTYPE = 50 | 4 << 8
    #: Byte 49: DESFMT of Copy.
    LOCATION_DESFMT = 49
    #: Bit 6 of byte 1: PSDT.
    LOCATION_PSDT = 1 | 6 << 8
    LOCATION_NONE = 0xffff
