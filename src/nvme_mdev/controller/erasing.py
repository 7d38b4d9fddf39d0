"""Format NVM and Sanitize at work (Base 5.1.10, 5.1.22, 8.1.24): what goes on in the background.

Both are opt-in (``--allow-erase``). While one of them works, the data path refuses new commands to
the namespaces concerned, with Format In Progress or Sanitize In Progress (which leaves Flush); what
was in flight is waited for. Neither a reset nor a client that leaves ends them. How far they are is
in shared memory: the next process goes on there.

How it is erased: *deallocated*, so that everything reads as zeroes, where the medium can; otherwise
overwritten. Overwriting goes to the medium directly, block by block, which for an image file on a
copy-on-write file system means other blocks than those that held the data. Where the data is
encrypted it can also be erased *cryptographically*: there is another key then, and the old one
nowhere (`nvme_mdev.datapath.backends.key_file`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import Lifetime
from nvme_mdev.controller.places import PLACES
from nvme_mdev.datapath.backends.raw import CHUNK
from nvme_mdev.spec.nvme_maintenance import (
    SANITIZE_NDAS,
    SANITIZE_OIPBP,
    SANITIZE_OWPASS_SHIFT,
    SANITIZE_PASSES_SHIFT,
    SanitizeAction,
    SanitizeState,
    Ses,
)
from nvme_mdev.spec.nvme_status import GenericStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.controller.controller import Controller
    from nvme_mdev.controller.namespaces import Namespace
    from nvme_mdev.datapath.backends.base import Backend
    from nvme_mdev.datapath.backends.raw import NoMedium, RawMedium

_log = logging.getLogger(__name__)

BLOCK_SIZES = (512, 4096)
"""Of the LBA formats, in their order, as far as the medium has them."""

_WORD_BITS = 64
_SOS_MASK = 0x7
_ALL_PASSES = 16
_PATTERN_SIZE = 4
_PERCENT = 100

# A format in progress: the block size it gives in bits 15:0, SES in 23:16, the percentage that
# remains in 31:24.
_SES_SHIFT = 16
_REMAINS_SHIFT = 24


@dataclass(frozen=True, slots=True)
class Format:
    """What Format NVM is to do to a namespace."""

    block_size: int
    ses: int

    @classmethod
    def of_word(cls, word: int) -> Format:
        """From shared memory."""
        return cls(word & 0xFFFF, word >> _SES_SHIFT & 0xFF)

    def word(self, remains: int) -> int:
        """For shared memory; ``remains``: percent."""
        return self.block_size | self.ses << _SES_SHIFT | remains << _REMAINS_SHIFT


class Erasing:
    """Formats and sanitizes the namespaces of one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._words = controller.state.lifetime
        self._formats: dict[int, asyncio.Task[None]] = {}
        self._sanitizing: asyncio.Task[None] | None = None

    # -- where it is kept --------------------------------------------------------------------

    def _format_of(self, nsid: int) -> int:
        """The word of a format in progress; KeyError, here and below: the NSID has no place."""
        return Lifetime.FORMAT + self._controller.places[nsid]

    def _block_size_of(self, nsid: int) -> int:
        return Lifetime.BLOCK_SIZE + self._controller.places[nsid]

    def _sanitize_bit(self, nsid: int) -> tuple[int, int]:
        """A word, and the bit of it that says that the namespace is to be sanitized yet."""
        word, bit = divmod(self._controller.places[nsid], _WORD_BITS)
        return Lifetime.SANITIZE_NSIDS + word, 1 << bit

    # -- what there is -----------------------------------------------------------------------

    @property
    def offered(self) -> bool:
        """Whether the user allows it, and it can be done to each namespace.

        Not while several controllers share the namespaces: the others' guests know nothing of it.
        """
        return (
            self._controller.settings.allow_erase
            and not self._controller.subsystem.sharing
            and all(one.backend.raw() is not None for one in self._controller.namespaces)
        )

    @property
    def offers_new_keys(self) -> bool:
        """Whether cryptographic erase can be done to each namespace."""
        namespaces = list(self._controller.namespaces)
        return self.offered and bool(namespaces) and all(map(has_key, namespaces))

    def writable(self, nsid: int) -> bool:
        """Whether neither the medium nor the guest protects it, or is about to."""
        about_to_be = nsid in self._controller.subsystem.refusing_writes
        return not (about_to_be or self._controller.write_protection.protects(nsid))

    def block_sizes(self, namespace: Namespace) -> list[int]:
        """Of the LBA formats that the namespace can have, by their index."""
        backend = namespace.backend
        if not self.offered:
            return [backend.block_size]
        return [size for size in BLOCK_SIZES if backend.can_have_blocks(size)]

    def remains(self, nsid: int) -> int:
        """Percent that remains of a format; 0: there is none."""
        return int(self._words[self._format_of(nsid)]) >> _REMAINS_SHIFT

    def attached(self, nsid: int) -> None:
        """A namespace is there, at the start of this process or later: as it was left."""
        queues = self._controller.queues
        namespace = self._controller.namespaces.get(nsid)
        block_size = int(self._words[self._block_size_of(nsid)])
        if namespace is not None and block_size not in (0, namespace.backend.block_size):
            queues.namespaces.format(nsid, block_size)
        queues.namespaces.bar(nsid, self._bar(nsid))

    def _bar(self, nsid: int) -> int:
        if self._words[self._format_of(nsid)]:
            return GenericStatus.FORMAT_IN_PROGRESS
        return self.sanitize_refusal or 0

    def detached(self, nsid: int) -> None:
        """Another namespace with this NSID, or in its place, is another namespace."""
        self._words[self._format_of(nsid)] = 0
        self._words[self._block_size_of(nsid)] = 0
        self._sanitized(nsid)

    def resume(self) -> None:
        """Go on where a process before us was killed."""
        for nsid in self._controller.places:
            word = int(self._words[self._format_of(nsid)])
            if word and self._controller.namespaces.get(nsid) is not None:
                self._start_format(nsid, Format.of_word(word))
        if self.sanitize_state == SanitizeState.IN_PROGRESS:
            self._start_sanitizing()

    def stop(self) -> None:
        """The controller ends with this process, or the next one goes on."""
        tasks = [*self._formats.values()]
        if self._sanitizing is not None:
            tasks.append(self._sanitizing)
        for task in tasks:
            task.cancel()

    # -- format ------------------------------------------------------------------------------

    def formatting(self, nsid: int) -> Format | None:
        """The format that is in progress."""
        word = int(self._words[self._format_of(nsid)])
        return Format.of_word(word) if word else None

    def format(self, nsid: int, what: Format) -> asyncio.Task[None]:
        """Begin to format a namespace, or find the format that is in progress.

        The task ends when it is done; OSError: it cannot be done.
        """
        running = self._formats.get(nsid)
        if running is not None:
            return running
        self._words[self._format_of(nsid)] = what.word(_PERCENT)
        return self._start_format(nsid, what)

    def _start_format(self, nsid: int, what: Format) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._format(nsid, what))
        self._formats[nsid] = task
        task.add_done_callback(_consume)
        return task

    async def _format(self, nsid: int, what: Format) -> None:
        namespace = self._controller.namespaces.get(nsid)
        raw = namespace.backend.raw() if namespace is not None else None
        if namespace is None or raw is None:
            raise OSError(f"namespace {nsid} cannot be formatted")
        _log.info("namespace %d, %s: formatting", nsid, namespace.backend.name)
        changes, queues = self._controller.namespace_changes, self._controller.queues
        changed = what.block_size != namespace.backend.block_size
        changes.busy.add(nsid)
        try:
            queues.namespaces.bar(nsid, GenericStatus.FORMAT_IN_PROGRESS)
            await changes.unused(nsid)
            size = namespace.backend.size

            def progress(done: int) -> None:
                remains = max(_PERCENT - _PERCENT * done // size, 1)
                self._words[self._format_of(nsid)] = what.word(remains)

            await _erase_for_format(namespace.backend, raw, what.ses, progress)
            queues.namespaces.clear_uncorrectable(nsid)
            self._words[self._block_size_of(nsid)] = what.block_size
            queues.namespaces.format(nsid, what.block_size)
        finally:
            changes.busy.discard(nsid)
            if not _ending():
                self._words[self._format_of(nsid)] = 0
                queues.namespaces.bar(nsid, self._bar(nsid))
            del self._formats[nsid]
        if changed:
            self._controller.subsystem.namespace_changed(nsid)

    # -- sanitize ----------------------------------------------------------------------------

    @property
    def sanitize_state(self) -> SanitizeState:
        """How the most recent sanitize operation stands."""
        return SanitizeState(int(self._words[Lifetime.SANITIZE_STATE]) & _SOS_MASK)

    @property
    def sanitize_refusal(self) -> GenericStatus | None:
        """What is said to commands that it excludes; None: there is none, nor has one failed."""
        return _BARS.get(self.sanitize_state)

    @property
    def sanitize_progress(self) -> int:
        """Of 65536."""
        done = self._words[Lifetime.SANITIZE_BEFORE] + self._words[Lifetime.SANITIZE_DONE]
        return min((done << 16) // max(self._words[Lifetime.SANITIZE_TOTAL], 1), 0xFFFE)

    @property
    def nothing_written(self) -> bool:
        """Global Data Erased: no data was written since the last sanitize operation succeeded."""
        return self._words[Lifetime.SANITIZE_ERASED] == self._writes() + 1

    def _writes(self) -> int:
        return self._controller.state.counters()["write_commands"]

    def joined(self) -> None:
        """A namespace has come, with whatever is on it."""
        self._words[Lifetime.SANITIZE_ERASED] = 0

    def sanitize(self, cdw10: int, pattern: int) -> None:
        """Begin to sanitize all namespaces; the fields are those of the command."""
        namespaces = list(self._controller.namespaces)
        passes = _passes(cdw10)
        places = sum(1 << self._controller.places[one.nsid] for one in namespaces)
        for word in range(PLACES // _WORD_BITS):
            part = places >> word * _WORD_BITS & (1 << _WORD_BITS) - 1
            self._words[Lifetime.SANITIZE_NSIDS + word] = part
        self._words[Lifetime.SANITIZE_CDW10] = cdw10
        self._words[Lifetime.SANITIZE_PATTERN] = pattern
        self._words[Lifetime.SANITIZE_DONE] = self._words[Lifetime.SANITIZE_BEFORE] = 0
        self._words[Lifetime.SANITIZE_TOTAL] = passes * sum(one.backend.size for one in namespaces)
        self._words[Lifetime.SANITIZE_ERASED] = 0
        self._controller.events.sanitizing()
        # Last: from here on the next process goes on with it.
        self._words[Lifetime.SANITIZE_STATE] = SanitizeState.IN_PROGRESS
        self._bar_all()
        self._start_sanitizing()

    def leave_failure_mode(self) -> None:
        """Serve the namespaces again, whatever is on them."""
        if self.sanitize_state == SanitizeState.FAILED:
            self._words[Lifetime.SANITIZE_STATE] = SanitizeState.NEVER
            self._bar_all()

    def _bar_all(self) -> None:
        for namespace in self._controller.namespaces:
            self._controller.queues.namespaces.bar(namespace.nsid, self._bar(namespace.nsid))

    def _start_sanitizing(self) -> None:
        self._sanitizing = asyncio.get_running_loop().create_task(self._sanitize())
        self._sanitizing.add_done_callback(_consume)

    async def _sanitize(self) -> None:
        _log.info("sanitizing all namespaces")
        state = SanitizeState.FAILED
        try:
            for nsid in self._to_be_sanitized():
                await self._sanitize_one(nsid)
            state = SanitizeState.COMPLETED
            self._words[Lifetime.SANITIZE_ERASED] = self._writes() + 1
        except OSError:
            _log.exception("cannot sanitize")
        finally:
            self._sanitizing = None
        passes = 0
        if self._words[Lifetime.SANITIZE_CDW10] & 0x7 == SanitizeAction.OVERWRITE:
            passes = _passes(int(self._words[Lifetime.SANITIZE_CDW10]))
        self._words[Lifetime.SANITIZE_STATE] = state | passes << SANITIZE_PASSES_SHIFT
        self._bar_all()
        self._controller.events.sanitized()

    def _to_be_sanitized(self) -> Iterator[int]:
        places = self._controller.places
        for nsid in places:
            # One that had a place may have gone while another one was sanitized.
            word, bit = self._sanitize_bit(nsid) if nsid in places else (0, 0)
            if self._words[word] & bit:
                yield nsid
                self._sanitized(nsid)

    def _sanitized(self, nsid: int) -> None:
        """It is done, or gone."""
        word, bit = self._sanitize_bit(nsid)
        self._words[word] &= ~bit

    async def _sanitize_one(self, nsid: int) -> None:
        namespace = self._controller.namespaces.get(nsid)
        if namespace is None:
            return
        raw = namespace.backend.raw()
        if raw is None:
            raise OSError(f"namespace {nsid} cannot be erased")
        changes = self._controller.namespace_changes
        changes.busy.add(nsid)
        try:
            # A Flush touches no byte: the guest may send them all the time (Base 7.2).
            await changes.unused(nsid, 1)
            if self._words[Lifetime.SANITIZE_CDW10] & 0x7 == SanitizeAction.CRYPTO_ERASE:
                await _change_key(namespace.backend)
                self._words[Lifetime.SANITIZE_DONE] = namespace.backend.size
            else:
                await self._erase(raw, namespace.backend.size)
                await asyncio.to_thread(raw.flush)
            self._controller.queues.namespaces.clear_uncorrectable(nsid)
        finally:
            changes.busy.discard(nsid)
        self._words[Lifetime.SANITIZE_BEFORE] += self._words[Lifetime.SANITIZE_DONE]
        self._words[Lifetime.SANITIZE_DONE] = 0

    async def _erase(self, raw: RawMedium | NoMedium, size: int) -> None:
        """All passes, from where they were left."""

        def progress(done: int) -> None:
            self._words[Lifetime.SANITIZE_DONE] = done

        cdw10 = int(self._words[Lifetime.SANITIZE_CDW10])
        keep = cdw10 & SANITIZE_NDAS
        if cdw10 & 0x7 == SanitizeAction.OVERWRITE:
            pattern = int(self._words[Lifetime.SANITIZE_PATTERN])
            for number in range(_passes(cdw10)):
                inverted = cdw10 & SANITIZE_OIPBP and number % 2
                value = pattern ^ 0xFFFF_FFFF if inverted else pattern
                start = max(int(self._words[Lifetime.SANITIZE_DONE]) - number * size, 0)
                data = value.to_bytes(_PATTERN_SIZE, "little")
                await _overwrite(raw, size, data, _after(progress, number * size), start)
        elif keep:
            start = int(self._words[Lifetime.SANITIZE_DONE])
            await _overwrite(raw, size, bytes(_PATTERN_SIZE), progress, start)
        if not keep:
            await _zero(raw, size, _no_progress)
            progress(_passes(cdw10) * size)


_BARS = {
    SanitizeState.IN_PROGRESS: GenericStatus.SANITIZE_IN_PROGRESS,
    SanitizeState.FAILED: GenericStatus.SANITIZE_FAILED,
}


def _passes(cdw10: int) -> int:
    """How often everything is written."""
    if cdw10 & 0x7 != SanitizeAction.OVERWRITE:
        return 1
    return cdw10 >> SANITIZE_OWPASS_SHIFT & 0xF or _ALL_PASSES


def has_key(namespace: Namespace) -> bool:
    """Whether another key erases it."""
    return namespace.backend.encrypted


async def _erase_for_format(
    backend: Backend, raw: RawMedium | NoMedium, ses: int, progress: Callable[[int], None]
) -> None:
    if ses == Ses.CRYPTOGRAPHIC:
        await _change_key(backend)
        return
    if ses == Ses.USER_DATA:
        await _overwrite(raw, backend.size, bytes(_PATTERN_SIZE), progress)
    await _zero(raw, backend.size, progress)
    await asyncio.to_thread(raw.flush)


async def _change_key(backend: Backend) -> None:
    """Erase cryptographically. Done again after a death it is done anew, with a third key."""
    # Not left halfway when the controller ends: its namespace may be another's, too, by then.
    await asyncio.shield(_use_new_key(backend))


async def _use_new_key(backend: Backend) -> None:
    backend.use_key(await asyncio.to_thread(backend.new_key))
    await asyncio.to_thread(backend.forget_old_key)


async def _overwrite(
    raw: RawMedium | NoMedium,
    size: int,
    pattern: bytes,
    progress: Callable[[int], None],
    start: int = 0,
) -> None:
    """Write the pattern over the bytes from ``start`` on; ``progress`` is told up to where."""
    data = pattern * (CHUNK // len(pattern))
    position = start
    while position < size:
        length = min(CHUNK, size - position)
        await asyncio.to_thread(raw.write, position, data[:length])
        position += length
        progress(position)


async def _zero(raw: RawMedium | NoMedium, size: int, progress: Callable[[int], None]) -> None:
    """Make everything read as zeroes, in the cheapest way."""
    if not await asyncio.to_thread(raw.deallocate, 0, size):
        await _overwrite(raw, size, bytes(_PATTERN_SIZE), progress)


def _after(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    """Progress of a pass when so many bytes were written in those before it."""
    return lambda done: progress(before + done)


def _no_progress(_done: int) -> None:
    """Of what is begun anew after a death."""


def _ending() -> bool:
    """Whether this task was cancelled, which leaves everything to the next process."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _consume(task: asyncio.Task[None]) -> None:
    """Whoever waits has seen the exception; nobody may be waiting."""
    if not task.cancelled() and task.exception() is not None:
        _log.debug("%s", task.exception())
