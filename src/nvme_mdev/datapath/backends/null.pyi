"""A namespace without a medium: writes vanish, reads leave the guest's memory alone."""

from nvme_mdev.datapath.backends.base import Backend

class NullBackend(Backend):
    """Completes everything at once; for measuring the path itself.

    With `latency_ns` (nanoseconds) each command takes at least so long: a stand-in for a drive.
    """

    def __init__(self, size: int, block_size: int = 512, latency_ns: int = 0) -> None: ...
