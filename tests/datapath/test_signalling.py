"""Interrupts to a client that makes its eventfds block: nobody waits for it."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.signalling import signal_eventfd

from .guest import READ, Guest, eventfd, signals, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1 << 24


@contextmanager
def eventfd_that_blocks() -> Iterator[int]:
    """The client shares the file description: it can make it blocking, and full."""
    fd = os.eventfd(0)
    os.eventfd_write(fd, 0xFFFFFFFFFFFFFFFE)
    try:
        yield fd
    finally:
        os.close(fd)


def test_an_eventfd_that_blocks_does_not_stop_the_control_plane() -> None:
    with Guest(NullBackend(SIZE)) as guest, eventfd_that_blocks() as fd:
        guest.table.interrupts.set_vector(1, os.dup(fd))
        queue = guest.queue(1, 16)
        queue.put(queue.command(READ, prp1=guest.allocate(1)))
        queue.ring()
        assert queue.wait().status == 0
        guest.table.hold()
        guest.table.interrupts.clear()
        guest.table.release()
        assert queue.run(queue.command(READ, prp1=guest.allocate(1))).status == 0


def test_an_eventfd_that_blocks_does_not_stop_other_guests_of_the_iothread() -> None:
    """Nor is it used again, until the client has another one."""
    with (
        Guest(NullBackend(SIZE)) as guest,
        Guest(NullBackend(SIZE), shared=guest.iothread) as other,
        eventfd_that_blocks() as fd,
    ):
        queue, bystander = guest.queue(1, 16), other.queue(1, 16)
        page, their_page = guest.allocate(1), other.allocate(1)
        theirs = os.dup(fd)
        guest.table.interrupts.set_vector(1, theirs)
        for _ in range(100):
            assert queue.run(queue.command(READ, prp1=page)).status == 0
        assert bystander.run(bystander.command(READ, prp1=their_page)).status == 0
        assert os.eventfd_read(fd) == 0xFFFFFFFFFFFFFFFE
        mended = eventfd()
        guest.table.interrupts.set_vector(1, os.dup(mended))
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(theirs)
        assert queue.run(queue.command(READ, prp1=page)).status == 0
        wait_for(lambda: signals(mended), "an interrupt")


def test_an_eventfd_of_the_admin_queue_that_blocks_does_not_stop_the_control_plane() -> None:
    with Guest(NullBackend(SIZE)) as guest, eventfd_that_blocks() as fd:
        guest.table.interrupts.set_vector(0, os.dup(fd))
        guest.poke(guest.admin_sq, struct.pack("<BBH60x", 6, 0, 1))
        guest.table.ring_doorbell(0, 1)
        fetched = guest.table.admin.fetch()
        assert fetched
        assert guest.table.admin.complete(fetched[0], 0, 0)
        # Given up, it costs no more time.
        for _ in range(100):
            guest.table.interrupts.trigger(0)
        guest.table.interrupts.clear()


def test_the_pins_eventfd_may_block_too() -> None:
    with Guest(NullBackend(SIZE)) as guest, eventfd_that_blocks() as fd:
        theirs = os.dup(fd)
        guest.table.interrupts.set_intx(theirs)
        queue = guest.queue(1, 16)
        for _ in range(20):
            assert queue.run(queue.command(READ, prp1=guest.allocate(1))).status == 0
        guest.table.interrupts.set_intx(None)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(theirs)


def test_signalling_says_whether_anybody_was_told() -> None:
    fd = eventfd()
    assert signal_eventfd(fd)
    assert signals(fd)
    read_end, write_end = os.pipe()
    os.close(read_end)
    assert not signal_eventfd(write_end)
    os.close(write_end)
    with eventfd_that_blocks() as full:
        assert not signal_eventfd(full)
        os.set_blocking(full, False)
        assert signal_eventfd(full)
