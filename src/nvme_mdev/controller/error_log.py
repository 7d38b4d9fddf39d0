"""The Error Information log's entries (Base 5.1.12.1.2).

Failed commands are logged by the data path; here is what has no command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.datapath.state import ERROR_LOG_ENTRIES
from nvme_mdev.spec.nvme_logs import PELOC_NONE, ErrorLogEntry

if TYPE_CHECKING:
    from nvme_mdev.datapath.state import ControllerState

_ENTRY_SIZE = 64
_NO_COMMAND = 0xFFFF


def log_queue_error(state: ControllerState, qid: int) -> None:
    """Log an error of a queue that belongs to no particular command."""
    count = state.error_count + 1
    entry = ErrorLogEntry(errcnt=count, sqid=qid, cmdid=_NO_COMMAND, peloc=PELOC_NONE)
    start = (count - 1) % ERROR_LOG_ENTRIES * _ENTRY_SIZE
    state.error_log[start : start + _ENTRY_SIZE] = bytes(entry)
    state.error_count = count


def newest_first(state: ControllerState) -> bytes:
    """The log page: every entry that is kept, the newest first."""
    count = state.error_count
    oldest = max(count - ERROR_LOG_ENTRIES, 0)
    page = bytearray()
    for number in range(count, oldest, -1):
        start = (number - 1) % ERROR_LOG_ENTRIES * _ENTRY_SIZE
        page += state.error_log[start : start + _ENTRY_SIZE]
    return bytes(page.ljust(ERROR_LOG_ENTRIES * _ENTRY_SIZE, b"\0"))
