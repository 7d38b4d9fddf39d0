"""What a daemon says, when nobody reads it."""

from __future__ import annotations

import fcntl
import os
import select
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.service.standard_error import StandardError

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_SIZE = 16384


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A small pipe: its ends for reading and for writing."""
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    yield ends
    for fd in ends:
        os.close(fd)


def read(fd: int) -> list[str]:
    return os.read(fd, 2 * PIPE_SIZE).decode().splitlines()


def test_each_line_has_the_programs_name(pipe: tuple[int, int]) -> None:
    StandardError(pipe[1]).say("one\ntwo \udcff")
    assert read(pipe[0]) == ["nvme-mdev: one", "nvme-mdev: two \\udcff"]


def test_lines_that_find_no_room_are_counted_and_nobody_waits(pipe: tuple[int, int]) -> None:
    error = StandardError(pipe[1])
    for number in range(500):
        error.say(f"line {number:100}")
    first = read(pipe[0])
    assert first == [f"nvme-mdev: line {number:100}" for number in range(len(first))]
    error.say("last")
    lost = 500 - len(first)
    assert read(pipe[0]) == [
        f"nvme-mdev: {lost} lines were lost: nobody read them",
        "nvme-mdev: last",
    ]


def test_a_line_is_cut_where_it_could_be_written_in_parts(pipe: tuple[int, int]) -> None:
    StandardError(pipe[1]).say("x" * 10000)
    (line,) = read(pipe[0])
    assert len(line) == select.PIPE_BUF - 1


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    StandardError(writer).say("anybody?")
    os.close(writer)
    StandardError(writer).say("anybody?")
