"""A namespace in the daemon's memory."""

from nvme_mdev.datapath.backends.base import Backend

class MemoryBackend(Backend):
    """A memfd: lost with the process, unless somebody keeps `fd` for the next one.

    OSError: the system has no room for it, or not so many huge pages.
    """

    huge_pages: bool

    def __init__(
        self,
        size: int,
        block_size: int = 512,
        fd: int | None = None,
        huge_pages: bool = False,
    ) -> None:
        """`fd`: that of a backend before, with its contents (it is the backend's from now on).

        `huge_pages`: in those that the administrator has reserved (vm.nr_hugepages).
        """

    @property
    def fd(self) -> int: ...
