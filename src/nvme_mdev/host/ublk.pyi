"""The I/O of a ublk device: requests of the kernel become commands of an NVMe queue pair."""

from nvme_mdev.host.queues import QueuePair

def control(fd: int, command: int, header: bytes) -> int:
    """Carry out a command of ``/dev/ublk-control``; OSError. Some wait for each queue to run."""

class UblkQueue:
    """One hardware queue of the device, on a queue pair of its own.

    A request's tag is its command's identifier, and has a buffer of its own. Everything runs in the
    thread that calls `run`; `stop` is for others.
    """

    def __init__(
        self,
        queue: QueuePair,
        *,
        fd: int,
        number: int,
        depth: int,
        descriptors: memoryview,
        data: memoryview,
        data_iova: int,
        buffer_size: int,
        nsid: int,
        block_size: int,
        zeroes_deallocate: bool,
    ) -> None:
        """``fd``: the device's (``/dev/ublkcN``); ``descriptors``: this queue's, mapped.

        ``data``: for each tag ``buffer_size`` bytes and a page, which the controller sees at
        ``data_iova``. The queue pair has interrupts, and mapped doorbells.
        """

    def run(self) -> None:
        """Serve, without the GIL, until the device is stopped or `stop` is called. OSError."""

    def stop(self) -> None:
        """Serve no more: what the controller has not finished is given to who comes next."""

    def refuse(self) -> None:
        """From now on every request ends with EIO, and no command is made of it."""

    def close(self) -> None:
        """Let go of the memory; it does not run any more."""

    @property
    def requests(self) -> int:
        """Requests completed so far."""

    @property
    def outstanding(self) -> int:
        """Commands that the controller has."""

    @property
    def errors(self) -> int:
        """How many of them with an error."""
