"""A completion queue entry as the host sees it (NVMe Base 2.x, section 4.2.1)."""

from __future__ import annotations

from typing import NamedTuple

from nvme_mdev.spec.nvme_status import Status


class Completion(NamedTuple):
    """One completion, taken out of a completion queue."""

    result: int
    """Dword 0: what the command returns."""
    result_high: int
    """Dword 1."""
    sq_head: int
    """SQHD: the submission queue's head when the entry was written."""
    sq_id: int
    """SQID: the submission queue that the command came from."""
    cid: int
    """Command identifier."""
    status_field: int
    """The 15-bit status field, without phase tag; 0 is success."""

    @property
    def status(self) -> Status:
        """The status field, taken apart."""
        return Status.unpack(self.status_field)

    @property
    def ok(self) -> bool:
        """Whether the command succeeded."""
        return self.status_field & 0x7FF == 0
