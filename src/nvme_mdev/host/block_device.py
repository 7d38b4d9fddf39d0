"""A namespace of a controller as a block device of this host: ``/dev/ublkbN``, through ublk.

The host is one more guest: `BlockDevice` drives a controller as any client does, and hands the
kernel's requests to it (`nvme_mdev.host.ublk`). So the host gets a part of a drive that is served
past its block layer, too, and a daemon that is killed and started again is a pause for it.

A device outlives its process: requests wait, and the next one (`BlockDevice.attach` with its
identifier) is given them again. It is gone after `detach`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvme_mdev.errors import UserError
from nvme_mdev.host.errors import HostError
from nvme_mdev.host.memory import PAGE_SIZE, round_up
from nvme_mdev.host.ublk import UblkQueue, control
from nvme_mdev.spec import ublk
from nvme_mdev.spec.nvme_identify_controller import Oncs, Vwc
from nvme_mdev.spec.nvme_identify_namespace import Dlfeat, Nsattr
from nvme_mdev.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvme_mdev.host.admin_commands import Namespace
    from nvme_mdev.host.driver import NvmeHost

CONTROL = Path("/dev/ublk-control")
DEFAULT_DEPTH = 128
"""Requests at a time."""
MAX_BUFFER = 256 << 10
"""Most bytes of a request: each tag has so much memory of its own."""
_SECTOR = 512
_MAX_BLOCKS = 65536
"""Of one command: NLB has 16 bits."""
_NODE_WITHIN_S = 10.0
"""How long udev may take to make a device's node."""
_LOOK_S = 0.05
_STALLED_S = 60.0
"""How long nothing may complete before the controller is asked whether it has failed."""


def character_device(number: int) -> Path:
    """Where a device's process talks to the kernel."""
    return Path(f"/dev/ublkc{number}")


def block_device(number: int) -> Path:
    """The block device itself."""
    return Path(f"/dev/ublkb{number}")


def _attribute(number: int, name: str) -> str:
    """What the kernel says of the block device."""
    return Path(f"/sys/block/{block_device(number).name}/{name}").read_text()


class Control:
    """``/dev/ublk-control``; UserError: this kernel has none, or this user may not."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UserError(
                f"this kernel has no ublk ({CONTROL} is not there): load ublk_drv, or boot a kernel"
                " that has it (CONFIG_BLK_DEV_UBLK)"
            ) from None
        except PermissionError:
            raise UserError(f"not allowed to open {CONTROL}: run as root") from None

    def close(self) -> None:
        """Devices stay."""
        os.close(self._fd)

    def info(self, number: int) -> ublk.DeviceInfo | None:
        """A device; None: there is none with this number."""
        info = ublk.DeviceInfo()
        try:
            self._call(ublk.ControlCommand.GET_DEV_INFO, number, info)
        except OSError as error:
            if error.errno not in {errno.ENODEV, errno.EINVAL}:
                raise
            return None
        return info

    def add(self, info: ublk.DeviceInfo) -> None:
        """Make a device; its number is in ``info`` afterwards."""
        self._call(ublk.ControlCommand.ADD_DEV, info.dev_id, info)

    def set_params(self, number: int, params: ublk.Params) -> None:
        """Say what the device is like, before it starts."""
        self._call(ublk.ControlCommand.SET_PARAMS, number, params)

    def start(self, number: int, *, again: bool) -> None:
        """Returns when every queue is served; ``again``: of a device that has waited for it."""
        command = ublk.ControlCommand
        self._call(
            command.END_USER_RECOVERY if again else command.START_DEV, number, value=os.getpid()
        )

    def recover(self, number: int) -> None:
        """Take a device over from a process that has ended."""
        self._call(ublk.ControlCommand.START_USER_RECOVERY, number)

    def update_size(self, number: int, sectors: int) -> None:
        """Give a device another size; OSError: this kernel cannot."""
        self._call(ublk.ControlCommand.UPDATE_SIZE, number, value=sectors)

    def stop(self, number: int) -> None:
        """End the block device; its process sees that."""
        self._call(ublk.ControlCommand.STOP_DEV, number)

    def delete(self, number: int) -> None:
        """Returns when nobody has the device open any more."""
        self._call(ublk.ControlCommand.DEL_DEV, number)

    def _call(
        self,
        command: ublk.ControlCommand,
        number: int,
        more: ctypes.Structure | None = None,
        value: int = 0,
    ) -> None:
        header = ublk.ControlHeader(dev_id=number, queue_id=ublk.NO_QUEUE, data=value)
        if more is not None:
            header.addr, header.len = ctypes.addressof(more), ctypes.sizeof(more)
        control(self._fd, command, bytes(header))


@dataclass
class _Lane:
    """A queue of the device, and its thread."""

    queue: UblkQueue
    thread: threading.Thread
    error: OSError | None = None


class BlockDevice:
    """One namespace of a controller that is a block device while this process serves it."""

    def __init__(self, host: NvmeHost, nsid: int) -> None:
        """``host``: enabled, with mapped doorbells; HostError, UserError: it cannot be one."""
        self.host = host
        self.namespace = host.namespace(nsid)
        if not _SECTOR <= self.namespace.block_size <= PAGE_SIZE:
            raise UserError(
                f"namespace {nsid} has blocks of {self.namespace.block_size} bytes: the host's"
                f" block devices have {_SECTOR} to {PAGE_SIZE}"
            )
        host.check_native()
        host.listen_for_request()
        host.watch_namespaces()
        limit = host.max_transfer or MAX_BUFFER
        self.buffer_size = min(MAX_BUFFER, limit)
        self.number = -1
        """N of ``/dev/ublkbN``, once it is there."""
        self._control = Control()
        self._lanes: list[_Lane] = []
        self._progress, self._progress_at = 0, time.monotonic()
        self._files = ExitStack()

    @property
    def path(self) -> Path:
        """The block device."""
        return block_device(self.number)

    @property
    def requests(self) -> int:
        """Requests completed so far."""
        return sum(lane.queue.requests for lane in self._lanes)

    # -- its life ------------------------------------------------------------------------------
    def attach(self, *, number: int | None, queues: int, depth: int, read_only: bool) -> str | None:
        """Make the device, or go on with the one of this number, and serve it.

        Returns a line about a device whose namespace has got another size while nobody served it,
        when it can be used; UserError: it cannot be made.
        """
        info = self._control.info(number) if number is not None else None
        with _said():
            if info is not None:
                self._take_over(info)
            else:
                info = self._make(number, queues, depth, read_only=read_only)
            again = info.state == ublk.DeviceState.QUIESCED
            self.number = info.dev_id
            try:
                self._serve(info)
                self._control.start(self.number, again=again)
            except BaseException:
                self._stop_serving()
                if not again:
                    with suppress(OSError):
                        self._control.delete(self.number)
                raise
        return self._follow_size()

    def follow(self) -> str | None:
        """Be what the namespace has become: a line about it, if that is something else.

        HostError: the controller is wanted back, or does not answer.
        """
        if self.host.is_wanted_back:
            raise HostError(f"{self.path}: the controller was asked for back")
        if not self.host.namespaces_changed():
            return None
        namespace = self.host.find_namespace(self.namespace.nsid)
        if namespace is None:
            return self._refuse("is gone")
        if namespace.block_size != self.namespace.block_size:
            return self._refuse(f"has blocks of {namespace.block_size} bytes now")
        self.namespace = namespace
        return self._follow_size()

    def _refuse(self, why: str) -> str:
        """Its file system is not that of what is there now."""
        for lane in self._lanes:
            lane.queue.refuse()
        return f"{self.path}: its namespace {why}: every request fails; detach it"

    def _follow_size(self) -> str | None:
        sectors = self.namespace.size // _SECTOR
        if sectors == int(_attribute(self.number, "size")):
            return None
        size = format_size(self.namespace.size)
        try:
            self._control.update_size(self.number, sectors)
        except OSError:
            return (
                f"{self.path}: its namespace has {size} now, which this kernel's ublk cannot follow"
                " (Linux 6.16): detach it, and attach it again"
            )
        return f"{self.path}: has {size} now"

    def _take_over(self, info: ublk.DeviceInfo) -> None:
        if info.state != ublk.DeviceState.QUIESCED:
            raise UserError(
                f"{block_device(info.dev_id)} is attached already, by process {info.ublksrv_pid}:"
                " detach it, or take another --id"
            )
        if info.max_io_buf_bytes > self.buffer_size:
            raise UserError(
                f"{block_device(info.dev_id)} has requests of {info.max_io_buf_bytes} bytes, more"
                f" than this controller takes ({self.buffer_size}): attach the one that it had"
            )
        had = int(_attribute(info.dev_id, "queue/logical_block_size"))
        if had != self.namespace.block_size:
            raise UserError(
                f"{block_device(info.dev_id)} has blocks of {had} bytes, the namespace of"
                f" {self.namespace.block_size}: attach the one that it had"
            )
        self._control.recover(info.dev_id)
        self.buffer_size = info.max_io_buf_bytes

    def _make(
        self, number: int | None, queues: int, depth: int, *, read_only: bool
    ) -> ublk.DeviceInfo:
        most = min(self.host.queue_counts)
        if queues > most:
            raise UserError(f"the controller has {most} I/O queues: give at most --queues {most}")
        if depth >= self.host.max_entries:
            raise UserError(
                f"the controller's queues have {self.host.max_entries} entries: give at most"
                f" --depth {self.host.max_entries - 1}"
            )
        info = ublk.DeviceInfo(
            nr_hw_queues=queues,
            queue_depth=depth,
            max_io_buf_bytes=self.buffer_size,
            dev_id=ublk.NEW_DEVICE if number is None else number,
            flags=ublk.DeviceFlag.USER_RECOVERY | ublk.DeviceFlag.USER_RECOVERY_REISSUE,
        )
        self._control.add(info)
        try:
            params = parameters(self.host, self.namespace, self.buffer_size, read_only=read_only)
            self._control.set_params(info.dev_id, params)
        except BaseException:
            self._control.delete(info.dev_id)
            raise
        return info

    def _serve(self, info: ublk.DeviceInfo) -> None:
        """A queue pair and a thread for each queue of the device."""
        path = character_device(info.dev_id)
        deadline = time.monotonic() + _NODE_WITHIN_S
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._files.callback(os.close, fd)
        for number in range(info.nr_hw_queues):
            self._lanes.append(self._lane(fd, number, info))
        for lane in self._lanes:
            lane.thread.start()

    def _lane(self, fd: int, number: int, info: ublk.DeviceInfo) -> _Lane:
        depth = info.queue_depth
        identify = self.namespace.identify
        stride = ublk.MAX_QUEUE_DEPTH * ublk.IO_DESC_SIZE
        descriptors = mmap.mmap(
            fd,
            round_up(depth * ublk.IO_DESC_SIZE, PAGE_SIZE),
            mmap.MAP_SHARED,
            mmap.PROT_READ,
            offset=number * stride,
        )
        memory = self.host.map_memory(depth * (self.buffer_size + PAGE_SIZE))
        queue = UblkQueue(
            self.host.create_queue_pair(depth + 1, interrupts=True),
            fd=fd,
            number=number,
            depth=depth,
            descriptors=memoryview(descriptors),
            data=memory.view,
            data_iova=memory.iova,
            buffer_size=self.buffer_size,
            nsid=self.namespace.nsid,
            block_size=self.namespace.block_size,
            zeroes_deallocate=bool(identify.dlfeat & Dlfeat.DEALLOCATE_WRITE_ZEROES),
        )
        lane = _Lane(queue, threading.Thread(name=f"ublk-{number}", daemon=True))
        lane.thread.run = lambda: _run(lane)  # type: ignore[method-assign]
        return lane

    def is_served(self) -> bool:
        """False: the device was stopped, by whomever. HostError: the controller is gone."""
        for lane in self._lanes:
            if lane.error is not None:
                raise HostError(f"{self.path}: {lane.error.strerror}")
        if not any(lane.thread.is_alive() for lane in self._lanes):
            return False
        if self.host.transport.disconnected:
            raise HostError(f"{self.path}: the controller is gone")
        self._look_for_progress(time.monotonic())
        return True

    def _look_for_progress(self, now: float) -> None:
        """A controller that has failed is seen when nothing completes any more.

        It is not asked before that: while its daemon starts again it does not answer, but will.
        """
        progress = self.requests
        if progress != self._progress or not any(lane.queue.outstanding for lane in self._lanes):
            self._progress, self._progress_at = progress, now
        elif now - self._progress_at > _STALLED_S:
            self._progress_at = now
            self.host.check_alive()

    def _stop_serving(self) -> None:
        for lane in self._lanes:
            lane.queue.stop()
        for lane in self._lanes:
            if lane.thread.ident is not None:
                lane.thread.join()
            lane.queue.close()
        self._lanes.clear()
        self._files.close()

    def leave(self) -> None:
        """Serve no more. A device that was not stopped waits for the next process."""
        self._stop_serving()
        self._control.close()


def _run(lane: _Lane) -> None:
    try:
        lane.queue.run()
    except OSError as error:
        lane.error = error


def parameters(
    host: NvmeHost, namespace: Namespace, buffer_size: int, *, read_only: bool
) -> ublk.Params:
    """What the block layer is to know of a namespace."""
    controller, identify = host.identify_controller(), namespace.identify
    block, shift = namespace.block_size, namespace.block_size.bit_length() - 1
    attributes = ublk.Attribute(0)
    if read_only or identify.nsattr & Nsattr.CWP:
        attributes |= ublk.Attribute.READ_ONLY
    if controller.vwc & Vwc.VWCP:
        attributes |= ublk.Attribute.VOLATILE_CACHE | ublk.Attribute.FUA
    params = ublk.Params(
        len=ctypes.sizeof(ublk.Params),
        types=ublk.ParamType.BASIC,
        attrs=attributes,
        logical_bs_shift=shift,
        physical_bs_shift=shift,
        io_opt_shift=shift,
        io_min_shift=shift,
        max_sectors=buffer_size // _SECTOR,
        chunk_sectors=identify.noiob * block // _SECTOR,
        dev_sectors=namespace.size // _SECTOR,
    )
    if controller.oncs & Oncs.NVMDSMSV:
        params.types |= ublk.ParamType.DISCARD
        params.discard_granularity = block
        params.max_discard_segments = 1
        params.max_discard_sectors = 0xFFFF_FFFF // block * block // _SECTOR
        if controller.oncs & Oncs.NVMWZSV:
            # As Linux does it: no more than what a command with data may have.
            most = min(host.max_transfer or _MAX_BLOCKS * block, _MAX_BLOCKS * block)
            params.max_write_zeroes_sectors = most // _SECTOR
    return params


def is_in_use(number: int) -> bool:
    """Whether the block device is mounted, or held by somebody else."""
    try:
        os.close(os.open(block_device(number), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def detach(number: int) -> None:
    """Stop a device and remove it; whoever serves it ends. UserError: it is in use, or none."""
    controls = Control()
    try:
        with _said():
            if controls.info(number) is None:
                raise UserError(f"there is no {block_device(number)}: see lsblk")
            if is_in_use(number):
                raise UserError(
                    f"{block_device(number)} is in use: unmount it, or stop the program that"
                    " holds it"
                )
            controls.stop(number)
            controls.delete(number)
    finally:
        controls.close()


@contextmanager
def _said() -> Iterator[None]:
    """What the kernel refuses, in a line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise UserError("there is such a device already: take another --id") from error
        if error.errno == errno.EPERM:
            raise UserError("not allowed to make block devices: run as root") from error
        raise UserError(f"ublk: {os.strerror(error.errno or 0)}") from error
