"""How an admin command fails: with a status, and the field that is at fault."""

from __future__ import annotations

import enum
from typing import cast

from nvme_mdev.spec.nvme_logs import PELOC_NONE
from nvme_mdev.spec.nvme_status import STATUS_DNR, StatusCode, status_field


class Field(enum.IntEnum):
    """Byte of the SQE where a field begins: the Parameter Error Location of the error log."""

    NONE = PELOC_NONE
    OPC = 0
    FLAGS = 1
    NSID = 4
    PRP1 = 24
    PRP2 = 32
    CDW10 = 40
    CDW10_HIGH = 42
    """Bits 31:16 of command dword 10, as the three after it."""
    CDW11 = 44
    CDW11_HIGH = 46
    CSI = 47
    """Command Set Identifier of Identify: bits 31:24 of command dword 11."""
    CDW12 = 48
    CDW13 = 52
    CDW14 = 56
    LOG_CSI = 59
    """Command Set Identifier of Get Log Page: bits 31:24 of command dword 14."""


class NvmeError(Exception):
    """A command ends with an error status; raised by handlers, turned into a completion."""

    def __init__(
        self, code: StatusCode | int, location: int = Field.NONE, *, dnr: bool = True
    ) -> None:
        """``code``: a named status code, or SCT << 8 | SC; ``location``: see :class:`Field`."""
        field = code if type(code) is int else status_field(cast("StatusCode", code))
        self.status = field | (STATUS_DNR if dnr else 0)
        self.location = int(location)
        super().__init__(f"NVMe status {self.status:#06x} at SQE byte {self.location}")
