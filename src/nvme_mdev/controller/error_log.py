"""The Error Information log as a page (Base 5.1.12.1.2); its entries are the data path's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.datapath.state import ERROR_LOG_ENTRIES

if TYPE_CHECKING:
    from nvme_mdev.datapath.state import ControllerState

_ENTRY_SIZE = 64


def newest_first(state: ControllerState) -> bytes:
    """The log page: every entry that is kept, the newest first."""
    count = state.error_count
    oldest = max(count - ERROR_LOG_ENTRIES, 0)
    page = bytearray()
    for number in range(count, oldest, -1):
        start = (number - 1) % ERROR_LOG_ENTRIES * _ENTRY_SIZE
        page += state.error_log[start : start + _ENTRY_SIZE]
    return bytes(page.ljust(ERROR_LOG_ENTRIES * _ENTRY_SIZE, b"\0"))
