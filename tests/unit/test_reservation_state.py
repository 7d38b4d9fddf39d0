"""Reservations as values: always sound, whatever hosts do; shared memory and files keep them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.controller import ptpl
from nvme_mdev.controller.errors import NvmeError
from nvme_mdev.controller.reservations import (
    CommandGroup,
    Reservations,
    acquire,
    register,
    release,
)
from nvme_mdev.controller.shared_state import SHARED_STATE_SIZE, NamespaceState, SharedState
from nvme_mdev.spec.nvme_commands import MAX_NSID
from nvme_mdev.spec.nvme_features import WriteProtectionState
from nvme_mdev.spec.nvme_reservations import (
    AcquireAction,
    RegisterAction,
    ReleaseAction,
    ReservationType,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvme_mdev.controller.reservations import Change

HOSTS = [bytes([number]) * 16 for number in range(1, 5)]
HOST = st.sampled_from(HOSTS)
KEY = st.integers(0, 3)
TYPE = st.sampled_from(list(ReservationType)[1:])
REGISTER = st.builds(
    lambda host, action, current, new, ignore, kept: (
        host,
        lambda before: register(
            before, host, action, current=current, new=new, ignore_existing=ignore, ptpl=kept
        ),
    ),
    HOST,
    st.sampled_from(RegisterAction),
    KEY,
    KEY,
    st.booleans(),
    st.sampled_from([None, False, True]),
)
ACQUIRE = st.builds(
    lambda host, action, rtype, current, preempt: (
        host,
        lambda before: acquire(before, host, action, rtype, current=current, preempt=preempt),
    ),
    HOST,
    st.sampled_from(AcquireAction),
    TYPE,
    KEY,
    KEY,
)
RELEASE = st.builds(
    lambda host, action, rtype, current: (
        host,
        lambda before: release(before, host, action, rtype, current=current),
    ),
    HOST,
    st.sampled_from(ReleaseAction),
    TYPE,
    KEY,
)
STEPS = st.lists(st.one_of(REGISTER, ACQUIRE, RELEASE), max_size=30)
Step = tuple[bytes, "Callable[[Reservations], Change]"]


def walk(steps: list[Step]) -> Iterator[tuple[bytes, Reservations, Change]]:
    """Those of the steps that succeed: who, before, and what."""
    state = Reservations()
    for host, step in steps:
        try:
            change = step(state)
        except NvmeError:
            continue
        yield host, state, change
        state = change.after


@given(STEPS)
def test_whatever_hosts_do_the_state_is_sound(steps: list[Step]) -> None:
    for host, before, (after, notices, preempted) in walk(steps):
        assert after.is_sound
        told = [one for one, _ in notices]
        assert host not in told
        assert len(set(told)) == len(told)
        assert set(told) <= {one for one, _ in before.keys}
        assert not {one for one, _ in after.keys} & set(preempted)


@given(STEPS)
def test_what_a_host_may_do_follows_from_the_type(steps: list[Step]) -> None:
    for _, _, change in walk(steps):
        state = change.after
        for host in HOSTS:
            refused = state.refused(host)
            if state.rtype == ReservationType.NONE or state.holds(host):
                assert not refused
            if refused & CommandGroup.READ:
                assert refused & CommandGroup.WRITE
            if state.key(host) is None and state.rtype != ReservationType.NONE:
                assert refused & CommandGroup.WRITE


@given(STEPS, st.sampled_from(WriteProtectionState), st.integers(1, 256) | st.integers(1, MAX_NSID))
def test_shared_memory_keeps_it(
    steps: list[Step], protection: WriteProtectionState, nsid: int
) -> None:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, SHARED_STATE_SIZE)
        shared = SharedState(fd, "SERIAL")
        shared.places.take(nsid)
        count = 0
        for _, _, change in walk(steps):
            shared[nsid] = NamespaceState(protection, change.after)
            count += 1
            again = SharedState(fd)
            assert again[nsid] == shared[nsid]
            assert (again.serial, again.changes(nsid)) == ("SERIAL", count)
        assert list(shared) == ([nsid] if count else [])
    finally:
        os.close(fd)


def test_a_change_that_was_not_finished_is_none() -> None:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, SHARED_STATE_SIZE)
        shared = SharedState(fd, "S")
        first = Reservations(1, ((HOSTS[0], 1),), ReservationType.WRITE_EXCLUSIVE, HOSTS[0])
        shared.reserve(9, first)
        # Everything of the next change but the word that makes it valid.
        word = os.pread(fd, 8, 4096 + 8 * 8)
        shared.reserve(9, Reservations(2))
        os.pwrite(fd, word, 4096 + 8 * 8)
        assert SharedState(fd)[9].reservations == first
    finally:
        os.close(fd)


def test_the_next_namespace_in_a_place_begins_anew_and_the_one_that_has_gone_has_nothing() -> None:
    shared = SharedState()
    shared.places.take(1000)
    shared.protect(1000, WriteProtectionState.PROTECTED)
    shared.forget(1000)
    shared.protect(1000, WriteProtectionState.PROTECTED)
    assert list(shared) == []
    shared.places.take(2000)
    assert shared[1000] == shared[2000] == NamespaceState()
    shared.reserve(2000, Reservations(5))
    assert shared[1000] == NamespaceState()
    assert list(shared) == [2000]


def test_shared_memory_of_another_version_is_refused() -> None:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, SHARED_STATE_SIZE)
        os.pwrite(fd, b"NSUBSY99", 0)
        with pytest.raises(ValueError, match="another version"):
            SharedState(fd)
        os.ftruncate(fd, SHARED_STATE_SIZE // 2)
        with pytest.raises(ValueError, match="another version"):
            SharedState(fd)
    finally:
        os.close(fd)


def test_a_file_keeps_it_while_it_has_to_persist(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    assert ptpl.load(path) == Reservations()
    for state in (
        Reservations(7, ptpl=True),
        Reservations(8, tuple((host, 1 << 63) for host in HOSTS), ptpl=True),
        Reservations(
            2**32 - 1,
            ((HOSTS[0], 1), (HOSTS[1], 2)),
            ReservationType.EXCLUSIVE_ACCESS,
            HOSTS[1],
            ptpl=True,
        ),
    ):
        ptpl.save(path, state)
        assert ptpl.load(path) == state
    ptpl.save(path, Reservations())
    ptpl.save(path, Reservations())
    assert list(tmp_path.iterdir()) == []
