"""A namespace on a file or block device, through io_uring."""

from nvme_mdev.datapath.backends.base import Backend

class UringBackend(Backend):
    """An image file or a block device (claimed with O_EXCL while it is served)."""

    inline_io: bool
    """Short I/O is done within the system call, not through io_uring."""

    def __init__(
        self,
        path: str,
        *,
        block_size: int | None = None,
        read_only: bool = False,
        inline_io: bool | None = None,
    ) -> None:
        """Open it. block_size None: what fits the medium.

        inline_io None: where the medium was seen to answer at once, and as long as it does.

        OSError: as the kernel says (EBUSY: the device is in use). ValueError: too small, or the
        block size does not fit.
        """
