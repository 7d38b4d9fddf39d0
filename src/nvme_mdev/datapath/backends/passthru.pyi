"""A namespace on the queues of the kernel's NVMe driver: io_uring passthrough."""

from nvme_mdev.datapath.backends.base import Backend

class PassthruBackend(Backend):
    """An NVMe namespace or partition, past the host's block layer.

    Its block device is claimed with O_EXCL while it is served.
    """

    #: Completions are polled for on the driver's poll queues.
    polled: bool

    def __init__(
        self, path: str, *, read_only: bool = False, offset: int = 0, length: int | None = None
    ) -> None:
        """Open a block device; `offset` and `length` (bytes): this part of it.

        OSError, NoCharacterDeviceError, ValueError: as of `kernel_drive.open_drive`.
        """

    def map(self, address: int, size: int, fd: int, offset: int, *, writable: bool) -> None:
        """Nothing to do: the kernel reaches this process' memory."""

    def unmap(self, address: int, size: int) -> None:
        """Unregister this memory from the rings."""
