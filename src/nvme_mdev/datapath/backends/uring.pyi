"""A namespace on a file or block device, through io_uring."""

from nvme_mdev.datapath.backends.base import Backend

class UringBackend(Backend):
    """An image file or a block device (claimed with O_EXCL while it is served)."""

    def __init__(
        self, path: str, *, block_size: int | None = None, read_only: bool = False
    ) -> None:
        """Open it. block_size None: what fits the medium.

        OSError: as the kernel says (EBUSY: the device is in use). ValueError: too small, or the
        block size does not fit.
        """
