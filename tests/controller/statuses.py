"""What a test says about a command that must fail."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.host.errors import NvmeStatusError
from nvme_mdev.spec.nvme_logs import ErrorLogEntry, LogPage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.host.driver import NvmeHost
    from nvme_mdev.spec.nvme_status import StatusCode


@contextmanager
def refused(code: StatusCode, *, dnr: bool = True) -> Iterator[None]:
    """The block ends with a command that completes with this status."""
    with pytest.raises(NvmeStatusError) as caught:
        yield
    assert caught.value.status.code == code
    assert caught.value.dnr == dnr


def error_log(host: NvmeHost, entries: int = 4) -> list[ErrorLogEntry]:
    """The newest entries of the error log."""
    page = host.get_log_page(LogPage.ERROR, entries * 64)
    return [ErrorLogEntry.from_buffer_copy(page, at) for at in range(0, len(page), 64)]
