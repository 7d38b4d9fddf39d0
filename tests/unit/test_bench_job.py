"""A benchmark is checked against the controller before anything is done."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from nvme_mdev.bench.job import Job, Layout, Pattern, lay_out
from nvme_mdev.errors import UserError
from nvme_mdev.host.admin_commands import Namespace
from nvme_mdev.host.driver import QueueCounts
from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespace

COUNTS = QueueCounts(4, 4)


@dataclass
class Controller:
    """What `lay_out` asks a host for."""

    max_transfer: int = 128 << 10
    max_entries: int = 64
    queue_counts: QueueCounts = COUNTS


NAMESPACE = Namespace(1, 4096, 1000, IdentifyNamespace())
JOB = Job(bs=8192)


def laid_out(**changes) -> Layout:
    return lay_out(replace(JOB, **changes), Controller(), NAMESPACE)


def test_the_whole_namespace_is_the_default_range():
    assert laid_out() == Layout(4096, 2, 0, 500)


def test_a_range_is_where_it_is_asked_for():
    assert laid_out(offset=4096 * 10, size=4096 * 7) == Layout(4096, 2, 10, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bs": 512}, "not a multiple of the logical block size: use a multiple of 4096"),
        ({"bs": 4097}, "not a multiple of the logical block size"),
        ({"bs": 256 << 10}, r"use at most 131072 bytes \(128 KiB\)"),
        ({"iodepth": 64}, "use at most 63"),
        ({"numjobs": 5}, "gives 4 I/O queues at most"),
        ({"offset": 100}, "--offset 100 is not a multiple of the block size 4096"),
        ({"offset": 4096 * 1000}, "past the end of namespace 1, which has 4096000 bytes"),
        ({"size": 4096 * 1001}, "past the end of namespace 1"),
        ({"size": 4096}, "no room for one command of --bs 8192"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(changes, message):
    with pytest.raises(UserError, match=message):
        laid_out(**changes)


def test_a_controller_without_a_transfer_limit_takes_what_a_command_can_say():
    controller = Controller(max_transfer=0)
    blocks = 1 << 16
    namespace = replace(NAMESPACE, blocks=1 << 20)
    assert lay_out(Job(bs=4096 * blocks), controller, namespace).blocks_per_io == blocks
    with pytest.raises(UserError, match="use at most"):
        lay_out(Job(bs=4096 * (blocks + 1)), controller, namespace)


@pytest.mark.parametrize(
    ("pattern", "random", "writes", "reads"),
    [
        (Pattern.READ, False, False, 1.0),
        (Pattern.WRITE, False, True, 0.0),
        (Pattern.RW, False, True, 0.7),
        (Pattern.RANDREAD, True, False, 1.0),
        (Pattern.RANDWRITE, True, True, 0.0),
        (Pattern.RANDRW, True, True, 0.7),
    ],
)
def test_patterns_are_fios(pattern, random, writes, reads):
    job = Job(rw=pattern, rwmixread=70)
    assert (pattern.random, pattern.writes, job.read_fraction) == (random, writes, reads)


def test_a_job_has_a_short_name():
    assert Job(bs=4096, iodepth=32, numjobs=2).name == "4k randread QD32 x2"
    assert Job(bs=512, rw=Pattern.WRITE).name == "512 write QD1"
