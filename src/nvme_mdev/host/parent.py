"""A controller that our driver holds, and whose queues are set aside for virtual controllers.

`Parent` attaches to it, claims its namespaces and parts of them, gives each IOThread a queue pair,
lets the controller reach guest memory, and looks after it: a controller that fails is reset, one
that goes away is waited for, and what is outstanding is executed again when it is back. Everything
but attaching anew (`_Attempt`) and opening targets runs on the control plane's thread, of which a
controller that answers slowly gets a tenth; what happens per command is
`nvme_mdev.datapath.backends.nvme`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from nvme_mdev.datapath.backends.drive import (
    NO_LIMITS,
    CommandLimits,
    block_size_of,
    blocks_of,
    describe,
)
from nvme_mdev.datapath.backends.nvme import LowerQueue, NvmeBackend
from nvme_mdev.errors import UserError
from nvme_mdev.host.attaching import attach_patiently
from nvme_mdev.host.driver import NvmeHost
from nvme_mdev.host.errors import AttachError, HostError, NvmeTimeoutError
from nvme_mdev.host.memory import PAGE_SIZE
from nvme_mdev.host.partitions import Extent, find_partition
from nvme_mdev.spec.nvme_logs import LogPage, SmartLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvme_mdev.datapath.iothread import IOThread
    from nvme_mdev.host.io import IoQueue
    from nvme_mdev.host.memory import DmaMemory
    from nvme_mdev.spec.nvme_identify_namespace import IdentifyNamespace

_log = logging.getLogger(__name__)

QUEUE_ENTRIES = 256
"""Of a queue pair that is set aside; more commands wait in this process."""
PATIENCE_S = 10.0
"""How long a controller may be away before its namespaces are lost."""
_OWN_ENTRIES = 16
"""Of the queue pair for what is not a guest's: partition tables, flushes."""
_OWN_MEMORY = 4 << 20
"""Bytes of DMA memory for queues and admin data."""
_TIMEOUT_S = 5.0
"""For an admin command."""
_LOOK_S = 0.5
"""How often the controller is looked after, at most."""
_HEALTH_S = 30.0
"""How often its SMART log is read."""
_RESET_S = 2.0
"""For a controller to be disabled, and enabled, before all is done anew, in a thread."""
_SLOW_S = 5.0
"""For all of what one look does."""
_SHARE = 10
"""What a controller takes of the control plane's time is a part in so many, in the long run."""
_BURST_S = 10.0
"""It may take as much at once."""
_ATTACHES_IN_S = 0.1
"""For which an attempt to attach is waited: most need less."""
_SHUTDOWN_S = 2.0
"""For a controller to shut down that may have gone already."""


@dataclass
class _Share:
    """An IOThread's queue pair."""

    queue: LowerQueue
    users: int = 0
    pair: IoQueue | None = None
    pages: DmaMemory | None = None


@dataclass(frozen=True)
class _Claim:
    """What a backend serves: blocks [start, start + blocks); None: all to the end."""

    nsid: int
    block_size: int
    start: int
    blocks: int | None
    read_only: bool
    unique: bytes
    """NGUID and EUI64, zeros where it has none: they stay through a format (Base 4.7.1)."""

    def overlaps(self, other: _Claim) -> bool:
        if self.nsid != other.nsid:
            return False
        end = float("inf") if self.blocks is None else self.start + self.blocks
        other_end = float("inf") if other.blocks is None else other.start + other.blocks
        return self.start < other_end and other.start < end


P = ParamSpec("P")
R = TypeVar("R")


def _alone(
    method: Callable[Concatenate[Parent, P], R],
) -> Callable[Concatenate[Parent, P], R]:
    """One such method of a parent runs at a time."""

    @functools.wraps(method)
    def alone(self: Parent, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return alone


def _charged(
    method: Callable[Concatenate[Parent, P], R],
) -> Callable[Concatenate[Parent, P], R]:
    """Likewise; it runs on the control plane's thread, and its time is counted."""

    @_alone
    @functools.wraps(method)
    def charged(self: Parent, /, *args: P.args, **kwargs: P.kwargs) -> R:
        started = time.monotonic()
        try:
            return method(self, *args, **kwargs)
        finally:
            self._charge(started)

    return charged


class _Attempt:
    """Attaching in a thread of its own: a controller may take minutes to be enabled (CAP.TO)."""

    def __init__(self, address: str) -> None:
        self._lock = threading.Lock()
        self._abandoned = False
        self._host: NvmeHost | None = None
        self._error: HostError | OSError | None = None
        self._thread = threading.Thread(
            target=self._attach, args=[address], name="attach", daemon=True
        )
        self._thread.start()

    def _attach(self, address: str) -> None:
        try:
            host = NvmeHost(address, memory_size=_OWN_MEMORY, timeout=_TIMEOUT_S)
        except (HostError, OSError) as error:
            self._error = error
            return
        with self._lock:
            if not self._abandoned:
                self._host = host
                return
        host.abandon()

    def result(self) -> NvmeHost | None:
        """The driver; None: it is not attached yet. HostError, OSError: it cannot be had."""
        self._thread.join(_ATTACHES_IN_S)
        if self._thread.is_alive():
            return None
        if self._host is None:
            raise self._error or HostError("attaching failed")
        return self._host

    def abandon(self) -> None:
        """Nobody wants it any more."""
        with self._lock:
            self._abandoned = True
            host, self._host = self._host, None
        if host is not None:
            host.abandon()


class Parent:
    """One controller below, for all namespaces that this process serves from it.

    Implements `nvme_mdev.datapath.backends.nvme.Parent`. HostError when it cannot be had.
    """

    def __init__(
        self,
        address: str,
        *,
        on_close: Callable[[Parent], None] = lambda _parent: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Attach to the controller at ``address`` (as of `NvmeHost`) and reset it.

        ``on_close``: called when the last namespace is released.
        """
        self.address = address
        self._on_close = on_close
        self._patience_s = patience_s
        self._shares: dict[IOThread, _Share] = {}
        self._maps: dict[int, tuple[int, int, int, bool]] = {}
        self._claims: dict[NvmeBackend, _Claim] = {}
        self._namespaces: dict[int, IdentifyNamespace] = {}
        #: Serial number of the controller.
        self._serial: bytes | None = None
        self._aborted: set[tuple[IOThread, int]] = set()
        #: Targets are opened in a thread of their own, while others are served.
        self._lock = threading.RLock()
        self._own_lock = threading.Lock()
        self._own: IoQueue | None = None
        self._away_since: float | None = None
        self._gone = False
        self._look_at = self._health_at = 0.0
        self._attempt: _Attempt | None = None
        self._attach_at = 0.0
        #: When the time that the controller has taken is paid for, at one part in `_SHARE`.
        self._owed_until = 0.0
        #: When a look must be over; None: nobody waits for it.
        self._deadline: float | None = None
        self._smart: bytes | None = None
        self._host: NvmeHost | None = attach_patiently(
            address, memory_size=_OWN_MEMORY, timeout=_TIMEOUT_S
        )
        try:
            self._set_up(self._host)
        except BaseException:
            self._host.close()
            raise

    @property
    def host(self) -> NvmeHost:
        """The driver; HostError: the controller is away."""
        if self._host is None:
            raise HostError(f"{self.address} is away")
        return self._host

    @property
    def host_queues(self) -> int:
        """Queue pairs that can be set aside. HostError: it is away."""
        return settable_aside(self.host)

    @property
    def taken_queues(self) -> int:
        """Queue pairs that are, one for each IOThread."""
        return len(self._shares)

    def _set_up(self, host: NvmeHost) -> None:
        """After each enabling: what the controller has forgotten."""
        host.check_native()
        identify = host.identify_controller()
        serial = bytes(identify.sn)
        if self._serial not in {None, serial}:
            raise AttachError(
                f"{self.address}: another controller is there now, with serial number"
                f" {serial.decode('ascii', 'replace').strip()}"
            )
        self._serial = serial
        self._namespaces.clear()
        host.listen_for_request()
        host.watch_namespaces()
        # Before anything is executed again, which could be in other places now.
        for backend in self._claims:
            with suppress(OSError):
                self._namespace(backend)
        with self._own_lock:
            self._own = host.create_queue_pair(_OWN_ENTRIES)
        for share in self._shares.values():
            self._in_time()
            self._run(host, share)

    # -- namespaces ------------------------------------------------------------------------------

    @_alone
    def open(
        self,
        name: str,
        nsid: int,
        partition: int | None = None,
        *,
        offset: int = 0,
        length: int | None = None,
        read_only: bool = False,
    ) -> NvmeBackend:
        """Claim a namespace, a partition of it, or ``length`` bytes from ``offset`` on in either.

        HostError, ValueError: it is not there, or cannot be served; OSError EBUSY: it is claimed.
        """
        namespace = self.host.namespace(nsid).identify
        size = block_size_of(namespace)
        extent = Extent(0, namespace.nsze)
        if partition is not None:
            extent = self._partition(nsid, partition, size, namespace.nsze)
        if offset % size or (length or 0) % size:
            raise ValueError(f"offset and length must be multiples of {size} bytes, its block size")
        start = extent.start + offset // size
        whole = partition is None and length is None
        blocks = None if whole else (length or extent.blocks * size - offset) // size
        if blocks is not None and not 0 < blocks <= extent.blocks - offset // size:
            raise ValueError("offset and length do not lie within")
        claim = _Claim(nsid, size, start, blocks, read_only, _unique(namespace))
        if any(claim.overlaps(other) for other in self._claims.values()):
            raise OSError(errno.EBUSY, "this part of the drive is being served already", name)
        controller, nvm = self.host.identify_controller(), self.host.identify_controller_nvm()
        serial = bytes(controller.sn).decode("ascii", "replace").strip()
        drive = describe(
            controller,
            namespace,
            name=name,
            identity=f"nvme:{serial}:{nsid}@{start}",
            nsid=nsid,
            start=start,
            blocks=blocks,
            read_only=read_only,
            limits=CommandLimits.of(nvm) if nvm is not None else NO_LIMITS,
        )
        backend = NvmeBackend(self, drive)
        self._claims[backend] = claim
        return backend

    def _partition(self, nsid: int, number: int, size: int, blocks: int) -> Extent:
        with self._own_lock:
            own = self._own_queue()
            return find_partition(
                number, size, blocks, lambda lba, count: own.read(nsid, lba, count, block_size=size)
            )

    def _own_queue(self) -> IoQueue:
        if self._own is None:
            raise HostError(f"{self.address} is away")
        return self._own

    @_alone
    def release(self, backend: NvmeBackend) -> None:
        """A namespace is closed; the controller with the last."""
        self._claims.pop(backend, None)
        self.close_if_unused()

    def close_if_unused(self) -> None:
        """Close it when no namespace of it is open."""
        if not self._claims:
            self.close()

    @_alone
    def close(self) -> None:
        """Shut the controller down and let go of it."""
        self._on_close(self)
        if self._attempt is not None:
            self._attempt.abandon()
            self._attempt = None
        host, self._host, self._own = self._host, None, None
        if host is not None:
            host.close()

    @contextmanager
    def _unless_busy(self) -> Iterator[bool]:
        """Alone, or False: another thread opens a part of it, which may take long."""
        free = self._lock.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                self._lock.release()

    def current_blocks(self, backend: NvmeBackend) -> int:
        """Looks after the controller, too: it is what is asked every second.

        While another thread opens a part of it: as it was.
        """
        with self._unless_busy() as free:
            return self._current_blocks(backend) if free else backend.size // backend.block_size

    @_charged
    def _current_blocks(self, backend: NvmeBackend) -> int:
        self.look()
        claim = self._claims[backend]
        if self._away_since is not None and not self._gone:
            return backend.size // claim.block_size
        namespace = self._namespace(backend)
        rest = max(namespace.nsze - claim.start, 0)
        return rest if claim.blocks is None else min(rest, claim.blocks)

    def _namespace(self, backend: NvmeBackend) -> IdentifyNamespace:
        """As it is now; OSError: it is not what it was, and is given no commands."""
        lost = True
        try:
            namespace = self._identified(self._claims[backend])
            lost = False
        finally:
            backend.lost = lost
        return namespace

    def _identified(self, claim: _Claim) -> IdentifyNamespace:
        """The namespace of a claim as it is now; OSError: it is not what it was."""
        try:
            if claim.nsid not in self._namespaces:
                self._namespaces[claim.nsid] = self.host.identify_namespace(claim.nsid)
            namespace = self._namespaces[claim.nsid]
            if not namespace.nsze:
                raise OSError(errno.ENODEV, "the controller has no such namespace any more")
            if _unique(namespace) != claim.unique:
                raise OSError(errno.ENODEV, "it is another namespace now")
            if block_size_of(namespace) != claim.block_size:
                raise OSError(errno.ENODEV, "it was formatted with other blocks")
            blocks_of(namespace)  # has its own complaint
        except (HostError, ValueError) as error:
            raise OSError(errno.ENODEV, str(error)) from error
        return namespace

    def is_read_only(self, backend: NvmeBackend) -> bool:
        """By itself, or because the user wants it so."""
        with self._unless_busy() as free:
            return self._is_read_only(backend) if free else backend.read_only

    @_charged
    def _is_read_only(self, backend: NvmeBackend) -> bool:
        claim = self._claims[backend]
        if claim.read_only or self._away_since is not None:
            return backend.read_only
        return bool(self._namespace(backend).nsattr & 1)

    def flush(self, backend: NvmeBackend) -> None:
        """From any thread: on the queue pair that no guest uses."""
        try:
            with self._own_lock:
                self._own_queue().flush(self._claims[backend].nsid)
        except HostError as error:
            raise OSError(errno.EIO, str(error), backend.name) from error

    def temperature(self) -> int | None:
        """As read last."""
        return SmartLog.from_buffer_copy(self._smart).ctemp or None if self._smart else None

    def smart(self) -> bytes | None:
        """As read last."""
        return self._smart

    # -- queues and memory -----------------------------------------------------------------------

    @_charged
    def take_queue(self, iothread: IOThread) -> LowerQueue:
        """Set a queue pair aside for an IOThread; UserError: the controller has none left."""
        share = self._shares.get(iothread)
        if share is None:
            host = self._host
            if host is None:
                raise UserError(f"{self.address} does not answer at the moment: try again")
            share = _Share(LowerQueue(iothread, min(QUEUE_ENTRIES, host.max_entries)))
            try:
                self._run(host, share)
            except HostError as error:
                self._give_back(share)
                raise UserError(
                    f"{self.address}: no queue is left to set aside ({error}): share an --iothread,"
                    " or give a smaller --type"
                ) from error
            self._shares[iothread] = share
        share.users += 1
        return share.queue

    def _run(self, host: NvmeHost, share: _Share) -> None:
        """Create the queue pair on the controller and let the IOThread use it."""
        entries = share.queue.entries
        if share.pages is None:
            share.pages = host.map_memory(entries * PAGE_SIZE)
        pair = share.pair = host.create_queue_pair(entries)
        tail, head = pair.rings.registers
        if tail is None or head is None:
            raise HostError(f"the doorbells of queue {pair.qid} are not in mapped memory")
        share.queue.run(
            sq=pair.rings.sq.view,
            cq=pair.rings.cq.view,
            tail_register=tail,
            head_register=head,
            pages=share.pages.view,
            pages_iova=share.pages.iova,
        )

    @_charged
    def give_queue(self, iothread: IOThread) -> None:
        """Give an IOThread's queue pair back to the controller with its last use."""
        share = self._shares[iothread]
        share.users -= 1
        if share.users:
            return
        del self._shares[iothread]
        self._give_back(share)

    def _give_back(self, share: _Share) -> None:
        share.queue.close()
        if self._host is None:
            return
        with suppress(HostError):
            if share.pair is not None:
                self._host.delete_queue_pair(share.pair)
            if share.pages is not None:
                self._host.unmap_memory(share.pages)

    @_charged
    def map(self, address: int, size: int, fd: int, offset: int, *, writable: bool) -> None:
        """Guest memory, at its address here. The controller may be away: it is told later."""
        self._maps[address] = (size, fd, offset, writable)
        if self._host is None:
            return
        try:
            self._host.map_file(address, size, fd, offset, writable=writable)
        except HostError as error:
            del self._maps[address]
            raise OSError(errno.EIO, str(error), self.address) from error

    @_charged
    def unmap(self, address: int, size: int) -> None:
        """Guest memory that is used no more."""
        if self._maps.pop(address, None) is None or self._host is None:
            return
        try:
            self._host.unmap_file(address, size)
        except HostError as error:
            _log.debug("%s", error)

    # -- looking after it ------------------------------------------------------------------------

    def look(self) -> None:
        """See whether the controller is well, and do what must be done; never raises.

        Called about once a second for each namespace, so most calls do nothing.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        self._deadline = now + _SLOW_S
        try:
            if self._host is None:
                self._come_back(now)
            else:
                self._check(self._host, now)
        except (HostError, OSError) as error:
            self._lose_contact(error)
        finally:
            self._deadline = None

    def _in_time(self) -> None:
        """NvmeTimeoutError: this look takes too long, although each answer comes in time."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise NvmeTimeoutError("it answers too slowly")

    def _charge(self, started: float) -> None:
        """Count what the control plane has waited for the controller since then.

        One that always takes long is let go of until others have had their turn: it would delay
        every guest of this process.
        """
        now = time.monotonic()
        self._owed_until = max(self._owed_until, started) + (now - started) * _SHARE
        owed = self._owed_until - now
        if owed > _BURST_S * _SHARE and self._host is not None:
            self._lose_contact(NvmeTimeoutError("it answers too slowly"))
            # Not at once, when the next moment would be too much again.
            self._attach_at = self._owed_until - _BURST_S * _SHARE / 2

    def _check(self, host: NvmeHost, now: float) -> None:
        if host.is_wanted_back:
            self._hand_back(host)
            return
        host.check_doorbells()
        csts = host.csts()
        if csts.cfs or not csts.rdy:
            _log.warning("%s: it has failed or was reset: starting it again", self.address)
            self._reset(host)
            return
        if host.namespaces_changed():
            self._namespaces.clear()
        if now >= self._health_at:
            self._health_at = now + _HEALTH_S
            self._smart = host.get_log_page(LogPage.SMART, ctypes.sizeof(SmartLog))
        self._abort_expired(host)

    def _hand_back(self, host: NvmeHost) -> None:
        """Somebody wants the controller back, to unplug it, say, and waits for that.

        Its namespaces are lost until it can be had again.
        """
        # It finishes what it has; after that nothing is written to a guest's memory any more.
        with suppress(HostError):
            host.shutdown(timeout=_SHUTDOWN_S)
        for share in self._shares.values():
            share.queue.stop()
            share.pair = share.pages = None
        self._host = self._own = None
        self._away_since = time.monotonic()
        self._give_up("it was asked for back")
        host.abandon()
        self._look_at = self._away_since + self._patience_s

    def _reset(self, host: NvmeHost) -> None:
        """Reset it, and execute again what it had."""
        for share in self._shares.values():
            share.queue.stop()
        self._aborted.clear()
        host.enable(within=_RESET_S)
        self._set_up(host)

    def _abort_expired(self, host: NvmeHost) -> None:
        """Commands that take too long are aborted; the controller is reset if that is in vain."""
        for iothread, share in self._shares.items():
            waits, cids = share.queue.expired()
            if waits or any((iothread, cid) in self._aborted for cid in cids):
                _log.warning("%s: commands do not end: resetting it", self.address)
                self._reset(host)
                return
            self._aborted = {entry for entry in self._aborted if entry[0] is not iothread}
            for cid in cids:
                self._in_time()
                if share.pair is not None:
                    host.abort(share.pair.qid, cid)
                self._aborted.add((iothread, cid))

    def _lose_contact(self, error: Exception) -> None:
        """The controller does not answer: wait for it to come back."""
        if self._host is None:
            return
        _log.warning("%s does not answer: %s", self.address, error)
        self._away_since = time.monotonic()
        self._let_go(self._host)

    def _let_go(self, host: NvmeHost) -> None:
        """Of a controller that is of no use, and of what the queues set aside have of it."""
        for share in self._shares.values():
            share.queue.stop()
            share.pair = share.pages = None
        self._host = self._own = None
        host.abandon()

    def _come_back(self, now: float) -> None:
        """Attach again, or give up on what is outstanding when it has been away for too long."""
        error: Exception = NvmeTimeoutError("it does not answer")
        try:
            if self._attempt is None and now >= self._attach_at:
                self._attempt = _Attempt(self.address)
            host = self._attempt.result() if self._attempt is not None else None
            if host is not None:
                self._attempt = None
                self._take_up(host)
                return
        except (HostError, OSError) as why:
            self._attempt = None
            error = why
        since = self._away_since if self._away_since is not None else now
        if not self._gone and now - since >= self._patience_s:
            self._give_up(error)

    def _take_up(self, host: NvmeHost) -> None:
        """Use a controller that is back: guest memory, then the queues. HostError, OSError."""
        try:
            for address, (size, fd, offset, writable) in self._maps.items():
                self._in_time()
                host.map_file(address, size, fd, offset, writable=writable)
            self._host = host
            self._set_up(host)
        except BaseException:
            self._let_go(host)
            raise
        self._away_since, self._gone = None, False
        _log.info("%s is back", self.address)

    def _give_up(self, why: object) -> None:
        _log.error("%s is gone: %s", self.address, why)
        self._gone = True
        self._namespaces.clear()
        for share in self._shares.values():
            share.queue.fail()


def _unique(namespace: IdentifyNamespace) -> bytes:
    return bytes(namespace.nguid) + bytes(namespace.eui64)


def settable_aside(host: NvmeHost) -> int:
    """Queue pairs of a controller that can be set aside for IOThreads: all but our own."""
    return min(host.queue_counts) - 1
