"""Memory of a file that somebody else can shrink: no page fault there ends this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.shared_mapping import SharedMapping

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 3 * PAGE)
    yield fd
    os.close(fd)


def test_what_is_written_is_in_the_file(memfd: int) -> None:
    mapping = SharedMapping(memfd, 2 * PAGE, PAGE)
    assert len(mapping) == 2 * PAGE
    memoryview(mapping)[:4] = b"ring"
    assert os.pread(memfd, 4, PAGE) == b"ring"
    assert not mapping.lost


def test_a_file_that_is_cut_short_is_zeroes_from_there_on(memfd: int) -> None:
    mapping = SharedMapping(memfd, 3 * PAGE, 0)
    view = memoryview(mapping)
    view[0] = view[PAGE] = view[2 * PAGE] = 7
    os.ftruncate(memfd, PAGE)
    assert not mapping.lost
    view[PAGE + 4] = 1
    assert mapping.lost
    assert (view[0], view[PAGE], view[PAGE + 4], view[2 * PAGE]) == (7, 0, 1, 0)
    # The next one at the same place has lost nothing.
    view.release()
    del mapping
    assert not SharedMapping(memfd, PAGE, 0).lost


def test_a_file_that_was_never_long_enough_is_lost_when_it_is_used(memfd: int) -> None:
    mapping = SharedMapping(memfd, 1 << 30, 0)
    memoryview(mapping)[1 << 29] = 1
    assert mapping.lost


def test_it_is_there_as_long_as_a_view_of_it(memfd: int) -> None:
    def mapped() -> bool:
        return "memfd:shared" in Path("/proc/self/maps").read_text()

    view = memoryview(SharedMapping(memfd, PAGE, 0))[8:12]
    assert mapped()
    view[:] = b"view"
    del view
    assert not mapped()


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        (0, 0),
        (-1, 0),
        (1 << 64, 0),
        (PAGE, -PAGE),
        (PAGE, 1 << 63),
        (PAGE, (1 << 63) - PAGE),
        (PAGE, 8),
    ],
)
def test_ranges_that_no_file_has_are_refused(memfd: int, size: int, offset: int) -> None:
    with pytest.raises(OSError, match=r"Invalid argument|Value too large"):
        SharedMapping(memfd, size, offset)


def test_what_cannot_be_written_cannot_be_mapped() -> None:
    fd = os.open("/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            SharedMapping(fd, PAGE, 0)
    finally:
        os.close(fd)
