"""What `serve` is asked to serve, before anything is opened."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from nvme_mdev.errors import UserError
from nvme_mdev.service.definition import (
    MAX_NAMESPACES,
    MAX_NSID,
    SERIAL_LENGTH,
    Definition,
)
from nvme_mdev.service.targets import Options, Target

if TYPE_CHECKING:
    from pathlib import Path


def _serial(tmp_path: Path, *targets: str, socket: str = "s", serial: str | None = None) -> str:
    parsed = tuple(Target.parse(target) for target in targets)
    return Definition(parsed, tmp_path / socket, serial=serial).serial_number


def test_a_target_is_null_memory_or_a_path() -> None:
    assert Target.parse("null:1G") == Target("null:1G", "null", 1 << 30, "null:1G")
    assert Target.parse("memory:4K") == Target("memory:4K", "memory", 4096, "memory:4K")
    for path in ["vm1.img", "./null:1G", "/dev/sda", "null", "nbd:1G", "a:b", "a,b", "a,b=c"]:
        assert Target.parse(path) == Target(path, "path", 0, path)


def test_options_follow_a_target_in_any_order() -> None:
    target = Target.parse("a,b.img,length=4M,read-only,offset=0,block-size=4096")
    assert target.name == "a,b.img"
    assert target.options == Options(0, 4 << 20, 4096, read_only=True)
    assert Target.parse("memory:1M,block-size=4096").options == Options(block_size=4096)
    assert Target.parse("a,inline-io=on").options.inline_io is True
    assert Target.parse("a,inline-io=off").options.inline_io is False
    assert Target.parse("a").options.inline_io is None
    assert Target.parse("memory:1M,huge-pages").options == Options(huge_pages=True)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a,offset=", "offset='' is not a size"),
        ("a,length=-1", "length='-1' is not a size"),
        ("a,length=0", "out of range"),
        ("a,offset=1M,offset=2M", "offset is given twice"),
        ("a,block-size=1024", "use 512 or 4096"),
        ("a,inline-io=maybe", "use on or off"),
        ("null:1G,offset=1M", "are for files and devices"),
        ("null:1G,inline-io=on", "are for files and devices"),
        ("null:1G,huge-pages", "is for memory targets"),
        ("a,huge-pages", "is for memory targets"),
        ("memory:1G,read-only", "are for files and devices"),
        (",offset=1M", "a target is empty"),
        ("a,ptpl-file=", "ptpl-file= names no file: give one for the reservations"),
        ("direct:/dev/nvme0n1,inline-io=on", "inline-io is for files and block devices"),
        ("direct:/dev/nvme0n1,huge-pages", "is for memory targets"),
    ],
)
def test_options_that_make_no_sense(text: str, what: str) -> None:
    with pytest.raises(UserError, match=re.escape(what)):
        Target.parse(text)


def test_the_absolute_form_keeps_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = Target.parse("a.img,offset=1M").absolute
    assert absolute.text == f"{tmp_path}/a.img,offset=1M"
    assert Target.parse(absolute.text) == absolute
    part = Target.parse("0000:44:00.0/n1p3,read-only")
    assert part.absolute == part


def test_two_parts_of_a_file_are_two_drives(tmp_path: Path) -> None:
    serials = {_serial(tmp_path, text) for text in ("/a", "/a,offset=1M", "/a,offset=2M")}
    assert len(serials) == 3
    assert _serial(tmp_path, "/a,offset=1M,read-only") in serials


def test_the_serial_follows_the_path_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    serials = {
        _serial(tmp_path, name) for name in ["vm1.img", "./vm1.img", f"{tmp_path}/x/../vm1.img"]
    }
    assert len(serials) == 1
    assert len(serials.pop()) == SERIAL_LENGTH


def test_a_link_is_a_name_of_its_own_that_lasts_when_it_points_elsewhere(tmp_path: Path) -> None:
    """As /dev/disk/by-id/... does, when sdb is sdc one day."""
    link = tmp_path / "by-id"
    link.symlink_to("sdb")
    before = _serial(tmp_path, str(link))
    link.unlink()
    link.symlink_to("sdc")
    assert _serial(tmp_path, str(link)) == before != _serial(tmp_path, f"{tmp_path}/sdb")


def test_the_serial_follows_only_the_first_target(tmp_path: Path) -> None:
    assert _serial(tmp_path, "/a", "/b") == _serial(tmp_path, "/a") != _serial(tmp_path, "/b")


def test_the_serial_of_an_image_does_not_depend_on_the_socket(tmp_path: Path) -> None:
    assert _serial(tmp_path, "/a", socket="1") == _serial(tmp_path, "/a", socket="2")


def test_the_serial_of_a_null_target_depends_on_the_socket(tmp_path: Path) -> None:
    one = _serial(tmp_path, "null:1G", socket="1")
    assert one == _serial(tmp_path, "null:1G", socket="1")
    assert one != _serial(tmp_path, "null:1G", socket="2")


def test_a_path_that_is_no_utf8_has_a_serial_too(tmp_path: Path) -> None:
    assert len(_serial(tmp_path, os.fsdecode(b"/\xff.img"))) == SERIAL_LENGTH


def test_a_serial_given_is_taken(tmp_path: Path) -> None:
    assert _serial(tmp_path, "/a", serial="Disk 1") == "Disk 1"
    assert _serial(tmp_path, "/a", serial="x" * SERIAL_LENGTH) == "x" * SERIAL_LENGTH


def test_so_many_targets_are_taken_and_none_is_an_empty_controller(tmp_path: Path) -> None:
    assert len({Definition((), tmp_path / name).serial_number for name in "ab"}) == 2
    targets = (Target.parse("null:1M"),) * MAX_NAMESPACES
    assert Definition(targets, tmp_path / "s", max_nsid=MAX_NSID).targets == targets
    with pytest.raises(UserError, match="at most 512"):
        Definition((*targets, targets[0]), tmp_path / "s", max_nsid=MAX_NSID)


@pytest.mark.parametrize(("count", "highest"), [(257, None), (4, 3)])
def test_targets_need_an_nsid_each(tmp_path: Path, count: int, highest: int | None) -> None:
    targets = (Target.parse("null:1M"),) * count
    with pytest.raises(UserError, match=f"end at {count - 1}: give --max-nsid {count}"):
        Definition(targets, tmp_path / "s", max_nsid=highest)
    assert Definition(targets, tmp_path / "s", max_nsid=count).highest_nsid == count


@pytest.mark.parametrize("highest", [0, -1, MAX_NSID + 1])
def test_an_nsid_that_no_namespace_can_have_is_not_the_highest(
    tmp_path: Path, highest: int
) -> None:
    with pytest.raises(UserError, match=f"--max-nsid {highest}: give a number from 1 to"):
        _definition(tmp_path, max_nsid=highest)


def _definition(tmp_path: Path, **options: Any) -> Definition:
    return Definition((Target.parse("null:1G"),), tmp_path / "s", **options)


@pytest.mark.parametrize(
    ("options", "type_", "cpus"),
    [
        ({}, "nvme-1Q_V1", [None]),
        ({"host_queues": 3}, "nvme-3Q_V1", [None, None, None]),
        ({"host_queues": 2, "iothread_cpu": 5}, "nvme-2Q_V1", [5, 5]),
        ({"host_queues": 2, "iothread_cpu": "1,2"}, "nvme-2Q_V1", [1, 2]),
        ({"iothread": "a,b", "iothread_cpu": "1,2"}, "nvme-2Q_V1", [1, 2]),
        ({"iothread": "a"}, "nvme-1Q_V1", [None]),
    ],
)
def test_the_type_is_how_many_threads_there_are(
    tmp_path: Path, options: dict[str, Any], type_: str, cpus: list[int | None]
) -> None:
    definition = _definition(tmp_path, **options)
    assert (definition.type, definition.cpus) == (type_, cpus)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iothread": "a,a"}, "different names"),
        ({"iothread": ""}, "different names"),
        ({"iothread": "a b"}, "different names"),
        ({"iothread": "a,b", "host_queues": 3}, "as many names"),
        ({"iothread": ",".join(map(str, range(17)))}, "1 to 16"),
        ({"iothread_cpu": "1,2"}, "give one CPU, or 1"),
        ({"host_queues": 3, "iothread_cpu": "1,2"}, "give one CPU, or 3"),
        ({"mdts": 4096}, "give 8K"),
        ({"mdts": 3 << 20}, "give 8K"),
        ({"mdts": 64 << 20}, "up to 32 MiB"),
    ],
)
def test_threads_and_transfers_that_cannot_be(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        _definition(tmp_path, **options)
