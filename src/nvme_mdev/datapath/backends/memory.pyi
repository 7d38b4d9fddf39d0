"""A namespace in the daemon's memory."""

from nvme_mdev.datapath.backends.base import Backend

class MemoryBackend(Backend):
    """Anonymous memory, lost with the process."""

    def __init__(self, size: int, block_size: int = 512) -> None: ...
