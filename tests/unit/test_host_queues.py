"""A queue pair from the host's side: rings, phase tags, doorbells, EventIdx."""

from __future__ import annotations

import os

import pytest
from fake_controller import FakeController

from nvme_mdev.host.errors import QueueFullError

PATIENCE = 10.0


def sqe(cid: int, opcode: int = 0) -> bytes:
    return bytes([opcode, 0]) + cid.to_bytes(2, "little") + bytes(60)


def test_a_command_comes_back_with_its_identifier_and_result():
    with FakeController() as fake:
        fake.queue.submit(sqe(0xBEEF))
        assert fake.queue.wait(PATIENCE)
        (completion,) = fake.queue.reap()
    assert (completion.cid, completion.status_field, completion.ok) == (0xBEEF, 0, True)


def test_an_error_status_is_taken_apart():
    with FakeController() as fake:
        fake.status_of = lambda _opcode, _slba: 0x4281
        fake.queue.submit(sqe(1))
        assert fake.queue.wait(PATIENCE)
        status = fake.queue.reap()[0].status
    assert (status.sct, status.sc, status.dnr) == (2, 0x81, True)


def test_rings_wrap_around_many_times():
    with FakeController(entries=3) as fake:
        for cid in range(50):
            fake.queue.submit(sqe(cid))
            assert fake.queue.wait(PATIENCE)
            assert [one.cid for one in fake.queue.reap()] == [cid]


def test_a_full_queue_refuses_the_next_command():
    fake = FakeController(entries=4)
    for cid in range(3):
        fake.queue.post(sqe(cid))
    assert fake.queue.room() == 0
    with pytest.raises(QueueFullError):
        fake.queue.post(sqe(3))
    fake.queue.post(sqe(3), force=True)
    assert fake.queue.tail == 0


def test_posting_does_not_ring():
    fake = FakeController()
    fake.queue.post(sqe(1))
    assert fake.doorbells[0:4] == bytes(4)
    fake.queue.ring()
    assert fake.doorbells[0] == 1


def test_reaping_can_leave_the_head_doorbell_alone():
    fake = FakeController()
    fake.complete(1)
    assert len(fake.queue.reap(acknowledge=False)) == 1
    assert fake.doorbells[4] == 0
    fake.queue.acknowledge()
    assert fake.doorbells[4] == 1


def test_reaping_takes_no_more_than_asked_for():
    fake = FakeController()
    for cid in range(3):
        fake.complete(cid)
    assert [one.cid for one in fake.queue.reap(2)] == [0, 1]
    assert [one.cid for one in fake.queue.reap()] == [2]


def test_any_doorbell_value_can_be_written():
    fake = FakeController()
    fake.queue.write_tail(0xFFFF_FFFF)
    fake.queue.write_head(77)
    assert bytes(fake.doorbells[0:8]) == b"\xff\xff\xff\xff\x4d\0\0\0"
    assert (fake.queue.tail, fake.queue.head) == (0, 0)


def test_without_mapped_doorbells_each_ring_is_a_message():
    with FakeController(by_socket=True) as fake:
        fake.queue.submit(sqe(1))
        assert fake.queue.wait(PATIENCE)
        fake.queue.reap()
    assert fake.register_writes == [(False, 1), (True, 1)]


def test_shadow_doorbells_ring_the_register_only_past_eventidx():
    fake = FakeController(by_socket=True, shadow=True, entries=16)
    fake.queue.submit(sqe(0))
    assert fake.register_writes == [(False, 1)]
    # EventIdx 0 was passed by the first ring; until the controller moves it, silence.
    fake.queue.submit(sqe(1))
    assert fake.register_writes == [(False, 1)]
    assert fake.shadow[0] == 2
    fake.event_idx[0] = 2
    fake.queue.submit(sqe(2))
    assert fake.register_writes == [(False, 1), (False, 3)]


def test_shadow_doorbells_find_eventidx_across_the_wrap():
    fake = FakeController(by_socket=True, shadow=True, entries=4)
    fake.event_idx[0] = 3
    fake.queue.write_tail(3)
    assert fake.register_writes == []
    fake.queue.write_tail(0)
    assert fake.register_writes == [(False, 0)]


def test_waiting_ends_after_its_time():
    assert not FakeController().queue.wait(0.01)


def test_waiting_sleeps_for_the_interrupt():
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with FakeController(eventfd=eventfd) as fake:
            fake.queue.submit(sqe(5))
            assert fake.queue.wait(PATIENCE)
            assert fake.queue.reap()[0].cid == 5
            assert not fake.queue.wait(0.01)
    finally:
        os.close(eventfd)


def test_a_closed_queue_is_refused():
    fake = FakeController()
    fake.queue.close()
    with pytest.raises(ValueError, match="closed"):
        fake.queue.submit(sqe(1))


def test_an_entry_has_64_bytes():
    with pytest.raises(ValueError, match="64 bytes, not 63"):
        FakeController().queue.post(bytes(63))


def test_a_ring_must_fit_its_buffer():
    fake = FakeController()
    from nvme_mdev.host.queues import QueuePair

    with pytest.raises(ValueError, match="too small"):
        QueuePair(
            1,
            sq=fake.sq.view,
            cq=fake.cq.view,
            sq_entries=17,
            cq_entries=16,
            write_doorbell=fake._write_doorbell,
        )
