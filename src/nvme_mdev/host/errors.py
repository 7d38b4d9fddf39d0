"""What can go wrong between a host and its controller.

Every message is one line that says what is wrong and, where that is known, what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvme_mdev.host.completion import Completion
    from nvme_mdev.spec.nvme_status import Status

__all__ = [
    "AttachError",
    "ControllerFatalError",
    "DmaMemoryError",
    "HostError",
    "NvmeStatusError",
    "NvmeTimeoutError",
    "QueueFullError",
    "TransportError",
]


class HostError(Exception):
    """Anything that this package raises on purpose."""


class AttachError(HostError):
    """The socket does not lead to an NVMe controller."""


class TransportError(HostError):
    """The vfio-user server refused a request or went away."""


class NvmeTimeoutError(HostError):
    """The controller did not answer in time."""


class ControllerFatalError(HostError):
    """The controller set CSTS.CFS (NVMe Base 2.x, section 9.5): only a reset helps."""


class DmaMemoryError(HostError):
    """The DMA memory is used up, or an address is not in it."""


class QueueFullError(HostError):
    """Nothing more fits into a submission queue until completions were reaped."""


class NvmeStatusError(HostError):
    """A command completed with a status that is not success."""

    def __init__(self, what: str, completion: Completion) -> None:
        self.completion = completion
        self.status: Status = completion.status
        super().__init__(f"{what} failed: {self.status}")

    @property
    def sct(self) -> int:
        """Status Code Type."""
        return self.status.sct

    @property
    def sc(self) -> int:
        """Status Code."""
        return self.status.sc

    @property
    def dnr(self) -> bool:
        """Do Not Retry."""
        return self.status.dnr
