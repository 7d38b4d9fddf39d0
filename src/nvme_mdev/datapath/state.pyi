"""The controller's shared memory, as Python sees it (the layout is `layout.pxd`)."""

#: Version of the layout; a process refuses a memfd of another version.
LAYOUT_VERSION: int
#: Most I/O queue pairs a controller can have; queue identifiers run from 0 (admin) to this.
MAX_IO_QUEUES: int
#: Most IOThreads that serve one controller.
MAX_IOTHREADS: int
#: Command slots of one submission queue: the most commands of it that are in flight.
SLOTS_PER_QUEUE: int
#: Entries of the error log that are kept.
ERROR_LOG_ENTRIES: int

def layout() -> dict[str, tuple[int, int]]:
    """Offset and size, in bytes, of every part of the shared memory (for tests and tools)."""

class ControllerState:
    """One controller's guest-visible state, in a memfd that can outlive the process.

    Every memoryview is a window onto the shared memory: writing it is writing the state.
    """

    def __init__(self, fd: int = -1, doorbell_fd: int = -1) -> None:
        """Create the two memfds, or adopt existing ones (ValueError: of another layout)."""

    @property
    def fd(self) -> int: ...
    @property
    def doorbell_fd(self) -> int:
        """The doorbell page's memfd, two pages: the doorbells are at 1000h, as in BAR0, so that an
        offset in the one is the offset in the other (vfio-user gives a region one fd offset)."""

    @property
    def offered_doorbell_fd(self) -> int:
        """For clients: the same, opened once more. They can send back what they are given, and
        systemd's store keeps no open file twice."""

    #: The register page, BAR0 0000h-0FFFh, 4096 bytes, little endian; reads are served from it.
    registers: memoryview
    #: PCI configuration space, 4096 bytes.
    config_space: memoryview
    #: MSI-X table (at 0) and PBA (at 1000h), 8192 bytes.
    msix: memoryview
    #: Doorbell page, BAR0 1000h-1FFFh, 4096 bytes (the other memfd).
    doorbells: memoryview
    #: Current value of each feature, 256 x 32 bit, indexed by FID (format "I").
    features: memoryview
    #: Interrupt Vector Configuration per vector, 256 x 32 bit (format "I").
    vector_config: memoryview
    #: For the controller's own use (events, life cycle, ...): 2048 x 32 bit (format "I").
    scratch: memoryview
    #: Changed namespace list, 1024 x 32 bit (format "I").
    changed_namespaces: memoryview
    #: ERROR_LOG_ENTRIES entries of 64 bytes; entry n lives at index (n - 1) % ERROR_LOG_ENTRIES.
    error_log: memoryview
    #: Feature data that does not fit 32 bits (timestamp, host identifier, ...), 4096 bytes.
    feature_data: memoryview
    #: What outlives resets and clients, for the controller's own use: 2048 x 64 bit (format "Q").
    lifetime: memoryview
    #: Number of errors ever logged (the Error Count of the newest entry).
    error_count: int
    #: Doorbell Buffer Config: IOVAs of the shadow doorbell and the EventIdx page, 0 if unset.
    shadow_doorbell_iova: int
    event_idx_iova: int

    def counters(self) -> dict[str, int]:
        """Commands, 512-byte units moved, and media errors since creation, for the SMART log."""

    def close(self) -> None: ...
