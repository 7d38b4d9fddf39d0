"""A namespace on the queues of the kernel's NVMe driver: io_uring passthrough."""

from typing import Protocol

from nvme_mdev.datapath.backends.base import Backend
from nvme_mdev.datapath.backends.drive import DriveNamespace

class Drive(Protocol):
    """What commands are passed to: `kernel_drive.KernelDrive`.

    Every method but `give_queue` and `close` raises OSError when it fails.
    """

    @property
    def namespace(self) -> DriveNamespace: ...
    @property
    def fd(self) -> int:
        """The character device."""

    @property
    def polled(self) -> bool:
        """Completions are polled for on the driver's poll queues."""

    def take_queue(self, owner: object) -> None:
        """Count a host queue for an IOThread; UserError: none is left."""

    def give_queue(self, owner: object) -> None: ...
    def current_size(self) -> int:
        """Bytes now."""

    def is_read_only(self) -> bool: ...
    def flush(self) -> None: ...
    def smart(self) -> bytes:
        """Its SMART log."""

    def close(self) -> None:
        """Give up the claim."""

class PassthruBackend(Backend):
    """An NVMe namespace or partition, past the host's block layer."""

    #: Completions are polled for on the driver's poll queues.
    polled: bool

    def __init__(self, drive: Drive) -> None:
        """On an open drive, which is closed with the backend."""

    def map(self, address: int, size: int, fd: int, offset: int, *, writable: bool) -> None:
        """Nothing to do: the kernel reaches this process' memory."""

    def unmap(self, address: int, size: int) -> None:
        """Unregister this memory from the rings."""
