"""A mapping of a file that somebody else may shrink, or take away, under us."""

class SharedMapping:
    """Bytes of a file, readable and writable through memoryviews; unmapped with the last of them.

    Where the file has no page any more there is one of zeroes, which nobody else sees.
    """

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Map ``size`` bytes from ``offset`` on; OSError: as the kernel says."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def lost(self) -> bool:
        """Some of it is not the file's any more."""
