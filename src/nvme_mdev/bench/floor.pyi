"""The least that a controller can do: it looks at the doorbell, at the SQE, and completes it."""

from nvme_mdev.host.queues import QueuePair

class EchoController:
    """Completes every command of one queue pair in this process, in a thread of its own.

    It trusts its host: no check, no backpressure. The queue pair's doorbells are plain memory.
    """

    def __init__(self, queue: QueuePair) -> None: ...
    def run(self) -> None:
        """Serve, without the GIL, until `stop`."""

    def stop(self) -> None: ...
