"""A namespace on a file or block device, through io_uring."""

from nvme_mdev.datapath.backends.base import Backend

class UringBackend(Backend):
    """An image file or a block device (claimed with O_EXCL while it is served)."""

    inline_io: bool
    """Short I/O is done within the system call, not through io_uring."""
    polled: bool
    """Direct I/O is polled for (IOPOLL): the device's driver has queues for that."""
    @property
    def mapped(self) -> bool:
        """It is memory, and read and written through a mapping where it has blocks."""

    @property
    def inline_pauses(self) -> int:
        """How often that was stopped for a while because the medium made the thread wait."""

    def __init__(
        self,
        path: str,
        *,
        block_size: int | None = None,
        read_only: bool = False,
        offset: int = 0,
        length: int | None = None,
        inline_io: bool | None = None,
    ) -> None:
        """Open it. block_size None: what fits the medium.

        `offset` and `length` (bytes): only this part of it is served; None: all to its end.
        inline_io None: where the medium was seen to answer at once, and as long as it does.

        OSError: as the kernel says (EBUSY: the device, or these bytes of the file, are in use).
        ValueError: too small, the part does not lie within, or the block size does not fit.
        """
