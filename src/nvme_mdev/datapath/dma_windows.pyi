"""DMA windows: guest memory that comes and goes under a controller's queues."""

class DmaWindows:
    """The windows of a controller. Every method is called from the control plane's thread."""

    def map(
        self, iova: int, size: int, fd: int | None, offset: int, *, readable: bool, writable: bool
    ) -> None:
        """`GuestMemory.map`, and queues in that memory go on. Same errors."""

    def try_unmap(self, iova: int, size: int) -> int | None:
        """`GuestMemory.unmap`, or None while commands in flight use the range.

        Queues are held then: call again.
        """

    def try_unmap_all(self) -> int | None: ...
    def give_up_unmap(self) -> None:
        """The range stays mapped after all: queues that an unmapping has held go on."""

    def clear(self) -> None:
        """Unmap everything: nothing is in flight, and no queue is left."""
