"""Device Self-test (Base 5.1.5, 8.1.7): reading the media in the background.

The short test reads samples that are spread evenly over each namespace, the extended one all of it.
A reset ends the short test and not the extended one; how far a test is, and the results, are in
shared memory, and the next process goes on there.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
from typing import TYPE_CHECKING, NamedTuple

from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.datapath.backends.raw import CHUNK
from nvme_mdev.spec.nvme_commands import NSID_ALL
from nvme_mdev.spec.nvme_maintenance import (
    SELF_TEST_ENTRIES,
    SelfTestCode,
    SelfTestEntry,
    SelfTestLog,
    SelfTestResult,
    SelfTestValid,
)
from nvme_mdev.spec.nvme_status import MediaStatus, Sct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.controller.namespaces import Namespace

_log = logging.getLogger(__name__)

_SAMPLES = 256
_SAMPLE_SIZE = 64 << 10
"""Of the short test, for each namespace: a second or two on a disk (two minutes are allowed)."""
_BYTES_PER_MINUTE = 200 * 60 * 1_000_000
"""For the estimate of the extended test: what a disk reads, sequentially."""
_MEDIA_SEGMENT = 1
"""The only segment of our tests: that all media can be read."""
_ENTRY_WORDS = 4
_WORD = 8
_MS_PER_HOUR = 3_600_000
_MAX_MINUTES = 0xFFFF


class _Piece(NamedTuple):
    """A part of a namespace to be read; bytes."""

    nsid: int
    offset: int
    length: int


class SelfTest:
    """The self-tests of one controller; one at a time."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._words = controller.state.lifetime
        self._task: asyncio.Task[None] | None = None

    @property
    def offered(self) -> bool:
        """Whether every medium can be read past the guest."""
        return all(one.backend.raw() is not None for one in self._controller.namespaces)

    @property
    def extended_minutes(self) -> int:
        """How long the extended test takes, estimated (EDSTT)."""
        size = sum(namespace.backend.size for namespace in self._controller.namespaces)
        return min(max(-(-size // _BYTES_PER_MINUTE), 1), _MAX_MINUTES)

    @property
    def current(self) -> SelfTestCode:
        """What runs."""
        return SelfTestCode(int(self._words[Lifetime.SELF_TEST]))

    def start(self, code: SelfTestCode, nsid: int) -> None:
        """Begin; ``nsid`` 0: the controller alone, which has nothing to read."""
        self._words[Lifetime.SELF_TEST_NSID] = nsid
        self._words[Lifetime.SELF_TEST_DONE] = 0
        self._words[Lifetime.SELF_TEST] = code
        self.resume()

    def resume(self) -> None:
        """Go on, where a test runs."""
        if self.current != SelfTestCode.NONE:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """No more reading; the next process goes on."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def abort(self, why: SelfTestResult, nsid: int = NSID_ALL) -> None:
        """End what runs, if it concerns the namespace."""
        tested = int(self._words[Lifetime.SELF_TEST_NSID])
        concerned = nsid == tested or NSID_ALL in (nsid, tested)
        if self.current == SelfTestCode.NONE or not concerned:
            return
        self.stop()
        self._finish(why)

    def reset(self) -> None:
        """Controller Level Reset: the end of a short test."""
        if self.current == SelfTestCode.SHORT:
            self.abort(SelfTestResult.ABORTED_BY_RESET)

    def log(self) -> SelfTestLog:
        """The log page: what runs, and the results, the newest first."""
        data = SelfTestLog(current=self.current)
        if self.current != SelfTestCode.NONE:
            total = 1 + sum(self._steps(one)[2] for one in self._tested())
            data.completion = min(100 * int(self._words[Lifetime.SELF_TEST_DONE]) // total, 100)
        count = int(self._words[Lifetime.SELF_TEST_COUNT])
        for index in range(SELF_TEST_ENTRIES):
            if index < count:
                data.results[index] = self._entry(count - 1 - index)
            else:
                data.results[index].status = SelfTestResult.NOT_USED
        return data

    # -- the test ----------------------------------------------------------------------------

    def _tested(self) -> list[Namespace]:
        nsid = int(self._words[Lifetime.SELF_TEST_NSID])
        return [one for one in self._controller.namespaces if nsid in (NSID_ALL, one.nsid)]

    def _steps(self, namespace: Namespace) -> tuple[int, int, int]:
        """Bytes from one piece of a namespace to the next, bytes of a piece, and how many."""
        size = namespace.backend.size
        if self.current == SelfTestCode.EXTENDED:
            step = length = CHUNK
        else:
            step = max(size // _SAMPLES // CHUNK * CHUNK, _SAMPLE_SIZE)
            length = _SAMPLE_SIZE
        return step, length, -(-size // step)

    def _pieces(self, done: int) -> Iterator[_Piece]:
        """What there is to read but for the first ones.

        The very first, of nothing, is the controller's own test.
        """
        if done == 0:
            yield _Piece(0, 0, 0)
        skipped = max(done - 1, 0)
        for namespace in self._tested():
            step, length, count = self._steps(namespace)
            size = namespace.backend.size
            for offset in range(skipped * step, size, step):
                yield _Piece(namespace.nsid, offset, min(length, size - offset))
            skipped = max(skipped - count, 0)

    async def _run(self) -> None:
        _log.info("self-test, %s", self.current.name.lower())
        done = int(self._words[Lifetime.SELF_TEST_DONE])
        for number, piece in enumerate(self._pieces(done), done):
            if piece.length and not await self._read(piece):
                return
            self._words[Lifetime.SELF_TEST_DONE] = number + 1
        self._finish(SelfTestResult.PASSED)

    async def _read(self, piece: _Piece) -> bool:
        """Read a piece; False: the test is over."""
        namespace = self._controller.namespaces.get(piece.nsid)
        raw = namespace.backend.raw() if namespace is not None else None
        if namespace is None or raw is None:
            self._finish(SelfTestResult.ABORTED_BY_REMOVAL)
            return False
        try:
            await asyncio.to_thread(raw.read, piece.offset, piece.length)
        except (OSError, ValueError) as error:
            # ValueError: the descriptor was closed meanwhile.
            _log.warning("self-test, %s: %s", namespace.backend.name, error)
            self._fail(piece, namespace)
            return False
        return True

    def _fail(self, piece: _Piece, namespace: Namespace) -> None:
        entry = SelfTestEntry(
            segment=_MEDIA_SEGMENT,
            valid=SelfTestValid.NSID | SelfTestValid.FLBA | SelfTestValid.SCT | SelfTestValid.SC,
            nsid=piece.nsid,
            flba=piece.offset // namespace.backend.block_size,
            sct=Sct.MEDIA,
            sc=MediaStatus.UNRECOVERED_READ,
        )
        self._finish(SelfTestResult.FAILED, entry)

    # -- results -----------------------------------------------------------------------------

    def _finish(self, result: SelfTestResult, entry: SelfTestEntry | None = None) -> None:
        """Note the result, then that nothing runs any more."""
        self._task = None
        entry = entry or SelfTestEntry()
        entry.status = self.current << 4 | result
        entry.poh = int(self._words[Lifetime.POWERED_MS]) // _MS_PER_HOUR
        count = int(self._words[Lifetime.SELF_TEST_COUNT])
        data = bytes(entry).ljust(_ENTRY_WORDS * _WORD, b"\0")
        for word in range(_ENTRY_WORDS):
            value = int.from_bytes(data[word * _WORD : (word + 1) * _WORD], "little")
            self._words[_place(count) + word] = value
        self._words[Lifetime.SELF_TEST_COUNT] = count + 1
        self._words[Lifetime.SELF_TEST] = SelfTestCode.NONE
        if result in (SelfTestResult.PASSED, SelfTestResult.FAILED):
            self._controller.health.media_tested(readable=result == SelfTestResult.PASSED)

    def _entry(self, number: int) -> SelfTestEntry:
        words = self._words[_place(number) : _place(number) + _ENTRY_WORDS].tolist()
        data = b"".join(int(word).to_bytes(_WORD, "little") for word in words)
        return SelfTestEntry.from_buffer_copy(data[: ctypes.sizeof(SelfTestEntry)])


def _place(number: int) -> int:
    return Lifetime.SELF_TEST_RESULTS + number % SELF_TEST_ENTRIES * _ENTRY_WORDS
