"""The record of what is served: whole at every moment, and of one version."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nvme_mdev.service import record
from nvme_mdev.service.definition import Definition, from_options, options
from nvme_mdev.service.record import BackingRecord, ControllerRecord, Record, RecordFile
from nvme_mdev.service.targets import Access

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _record(*targets: str) -> Record:
    backings = [
        BackingRecord(number, target, Access(None, 4096, True), 1 << 30)
        for number, target in enumerate(targets, 1)
    ]
    namespaces = {str(one.number): one.number for one in backings}
    settings = {"serial": "A1", "iothread_cpu": None, "shadow_doorbell": False}
    controller = ControllerRecord(1, "vm", "/run/vm.sock", settings, namespaces, [3])
    return Record(record.FORMAT, [controller], backings)


@pytest.fixture
def file() -> Iterator[RecordFile]:
    made = RecordFile()
    yield made
    made.close()


def _as_the_next_process(file: RecordFile) -> Record:
    return RecordFile(file.fd).read()


def test_the_next_process_reads_what_was_written_last(file: RecordFile) -> None:
    for count in (1, 40, 2, 3, 0, 100, 1):
        written = _record(*(f"/srv/\udcff{number}.img" for number in range(count)))
        file.write(written)
        assert _as_the_next_process(file) == written


@pytest.mark.parametrize("before", [0, 1, 30])
@pytest.mark.parametrize("after", [1, 60])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_change_that_is_killed_in_the_middle_is_not_there(
    file: RecordFile, monkeypatch: pytest.MonkeyPatch, *, before: int, after: int, writes: int
) -> None:
    file.write(_record("/a"))
    file.write(_record(*["/b"] * before))
    write, done = os.pwrite, []

    def killed(fd: int, data: bytes, offset: int) -> int:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(offset)
        return write(fd, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", killed)
    with pytest.raises(KeyboardInterrupt):
        file.write(_record(*["/c"] * after))
    monkeypatch.undo()
    assert _as_the_next_process(file) == _record(*["/b"] * before)


def test_a_record_of_another_version_or_a_damaged_one_is_refused(file: RecordFile) -> None:
    with pytest.raises(ValueError, match="damaged"):
        file.read()
    file.write(Record(record.FORMAT + 1, [], []))
    with pytest.raises(ValueError, match="another version"):
        file.read()
    file.write(_record("/a"))
    os.pwrite(file.fd, b"?", file._start)
    with pytest.raises(ValueError, match="damaged"):
        file.read()


def test_a_definition_comes_back_from_its_options_and_unknown_ones_are_left_out(
    tmp_path: Path,
) -> None:
    one = Definition((), tmp_path / "s", "vm", serial="A1", max_nsid=9, shadow_doorbell=False)
    assert from_options(tmp_path / "s", "vm", options(one)) == one
    assert from_options(tmp_path / "s", "vm", {**options(one), "of_the_future": 1}) == one
