"""Polling threads that controllers have for themselves, and those that they share by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.errors import UserError
from nvme_mdev.service.definition import Definition
from nvme_mdev.service.iothreads import IOThreads, pin

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def threads() -> IOThreads:
    return IOThreads(-1)


def definition(tmp_path: Path, **options: Any) -> Definition:
    return Definition((), tmp_path / "s", "vm", **options)


def test_threads_are_dedicated_unless_they_have_a_name(threads: IOThreads, tmp_path: Path) -> None:
    first = threads.take(definition(tmp_path, host_queues=2))
    second = threads.take(definition(tmp_path))
    assert [thread.name for thread in first] == ["iothread-0", "iothread-1"]
    assert len({*first, *second}) == 3
    threads.give_back(first)
    threads.give_back(second)


def test_a_named_thread_is_that_of_all_who_name_it(threads: IOThreads, tmp_path: Path) -> None:
    first = threads.take(definition(tmp_path, iothread="fast,slow"))
    second = threads.take(definition(tmp_path, iothread="slow"))
    assert second == first[1:]
    threads.give_back(first)
    # It goes on for the other one, and ends with it: then the name is free again.
    (again,) = threads.take(definition(tmp_path, iothread="slow"))
    assert again == second[0]
    threads.give_back([again])
    threads.give_back(second)
    (fresh,) = threads.take(definition(tmp_path, iothread="slow"))
    assert fresh != again
    threads.give_back([fresh])


def test_two_controllers_do_not_pin_a_thread_to_different_cpus(
    threads: IOThreads, tmp_path: Path
) -> None:
    first = threads.take(definition(tmp_path, iothread="a", iothread_cpu=0))
    with pytest.raises(UserError, match="--iothread a runs on CPU 0 for another controller"):
        threads.take(definition(tmp_path, iothread="a", iothread_cpu=1))
    for cpu in (None, 0):
        threads.give_back(threads.take(definition(tmp_path, iothread="a", iothread_cpu=cpu)))
    threads.give_back(first)


def test_a_cpu_that_is_not_there_leaves_nothing_running(threads: IOThreads, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--iothread-cpu 8191: there is no such CPU here"):
        threads.take(definition(tmp_path, iothread="a,b", iothread_cpu="0,8191"))
    assert not threads._users
    (thread,) = threads.take(definition(tmp_path, iothread="a"))
    with pytest.raises(UserError, match="iothread_cpu=8191: there is no such CPU here"):
        pin([thread], [8191])
    pin([thread], [0])
    assert thread.cpu == 0
    pin([thread], [None])
    assert thread.cpu is None
    threads.give_back([thread])
