"""The vfio-user device: regions, interrupts and DMA windows, called as the server calls it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvme_mdev.datapath.backends.null import NullBackend
from nvme_mdev.datapath.iothread import IOThread
from nvme_mdev.pci.config_space import MSI_CONTROL_OFFSET, MSIX_CONTROL_OFFSET
from nvme_mdev.service.fdstore import FdStore
from nvme_mdev.service.kept_fds import KeptFds
from nvme_mdev.spec.vfio_user import (
    DeviceFlags,
    DmaMapFlags,
    IrqInfoFlags,
    IrqSetFlags,
    PciIrq,
    PciRegion,
    RegionInfoFlags,
)
from nvme_mdev.vfio_user.device import DeviceError, DmaMap, SetIrqs, SparseArea

from .assembly import SIZE, Assembly

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")

NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
TRIGGER = IrqSetFlags.ACTION_TRIGGER
MASK, UNMASK = IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK
RW = DmaMapFlags.READ | DmaMapFlags.WRITE


class Bench:
    """A device on an event loop that runs only while a test awaits something."""

    def __init__(self) -> None:
        self.iothread = IOThread("test", poll_timeout_ms=1)
        self.iothread.start()
        self.loop = asyncio.new_event_loop()
        self.assembly = self.run(self._assemble())
        self.device = self.assembly.device

    async def _assemble(self) -> Assembly:
        return Assembly(self.iothread, [NullBackend(SIZE)], io_queues=4)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def set_irqs(
        self,
        index: int,
        data: IrqSetFlags,
        action: IrqSetFlags,
        *,
        start: int = 0,
        count: int = 1,
        bools: tuple[bool, ...] = (),
        fds: tuple[int, ...] = (),
    ) -> None:
        request = SetIrqs(index, start, count, data, action, bools)
        self.run(self.device.set_irqs(request, fds))

    def config(self, offset: int, value: int, size: int = 2) -> None:
        self.device.region_write(PciRegion.CONFIG, offset, value.to_bytes(size, "little"))

    def close(self) -> None:
        self.run(self.device.detached())
        self.assembly.close()
        self.loop.close()
        self.iothread.stop()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def eventfd() -> Iterator[Callable[[], int]]:
    made: list[int] = []

    def make() -> int:
        made.append(os.eventfd(0, os.EFD_NONBLOCK))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.truncate(fd, 1 << 20)
    yield fd
    os.close(fd)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def signalled(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


def test_it_is_a_pci_device_that_can_be_reset(bench: Bench) -> None:
    info = bench.device.info()
    assert info.flags == DeviceFlags.PCI | DeviceFlags.RESET
    assert (info.num_regions, info.num_irqs) == (9, 5)


def test_regions_have_the_sizes_of_their_bars(bench: Bench) -> None:
    sizes = [bench.device.region_info(index).size for index in range(9)]
    assert sizes == [0x4000, 0, 0, 0, 0x2000, 0, 0, 4096, 0]


def test_the_doorbell_page_can_be_mapped(bench: Bench) -> None:
    info = bench.device.region_info(PciRegion.BAR0)
    assert info.flags & RegionInfoFlags.MMAP
    assert info.areas == (SparseArea(0x1000, 0x1000),)
    assert info.fd is not None
    assert os.fstat(info.fd).st_size >= info.fd_offset + 0x2000


def test_interrupt_types_are_those_of_a_pci_device(bench: Bench) -> None:
    counts = [bench.device.irq_info(index).count for index in range(5)]
    # Messages of MSI are a power of two.
    assert counts == [1, 4, 5, 1, 1]
    assert bench.device.irq_info(PciIrq.INTX).flags & IrqInfoFlags.AUTOMASKED
    assert not bench.device.irq_info(PciIrq.MSIX).flags & IrqInfoFlags.NORESIZE


def test_vectors_are_added_one_by_one(bench: Bench, eventfd: Callable[[], int]) -> None:
    fds = [eventfd() for _ in range(5)]
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER)
    for vector, fd in enumerate(fds):
        bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, start=vector, fds=(fd,))
    bench.set_irqs(PciIrq.MSIX, NONE, TRIGGER, start=1, count=2)
    assert [signalled(fd) for fd in fds] == [False, True, True, False, False]


def test_only_what_is_true_is_triggered(bench: Bench, eventfd: Callable[[], int]) -> None:
    fds = (eventfd(), eventfd(), eventfd())
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, count=3, fds=fds)
    bench.set_irqs(PciIrq.MSIX, BOOL, TRIGGER, count=3, bools=(True, False, True))
    assert [signalled(fd) for fd in fds] == [True, False, True]


def test_a_disabled_type_is_silent(bench: Bench, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    for index in (PciIrq.INTX, PciIrq.MSIX, PciIrq.ERR, PciIrq.REQ):
        bench.set_irqs(index, EVENTFD, TRIGGER, fds=(fd,))
        bench.set_irqs(index, NONE, TRIGGER, count=0)
        bench.set_irqs(index, NONE, TRIGGER)
        assert not signalled(fd)


@pytest.mark.parametrize("index", [PciIrq.INTX, PciIrq.MSIX, PciIrq.ERR, PciIrq.REQ])
def test_every_type_can_be_triggered(
    bench: Bench, eventfd: Callable[[], int], index: PciIrq
) -> None:
    fd = eventfd()
    bench.set_irqs(index, EVENTFD, TRIGGER, fds=(fd,))
    bench.set_irqs(index, NONE, TRIGGER)
    assert signalled(fd)


@pytest.mark.parametrize("index", [PciIrq.ERR, PciIrq.REQ])
def test_error_and_request_cannot_be_masked(bench: Bench, index: PciIrq) -> None:
    with pytest.raises(DeviceError) as caught:
        bench.set_irqs(index, NONE, MASK)
    assert caught.value.errno == errno.EINVAL


def test_the_pin_is_masked_and_unmasked_in_every_way(
    bench: Bench, eventfd: Callable[[], int]
) -> None:
    pin, masker = eventfd(), eventfd()
    bench.set_irqs(PciIrq.INTX, EVENTFD, TRIGGER, fds=(pin,))
    for data, bools in ((NONE, ()), (BOOL, (True,))):
        bench.set_irqs(PciIrq.INTX, data, MASK, bools=bools)
        bench.set_irqs(PciIrq.INTX, data, UNMASK, bools=bools)
    bench.set_irqs(PciIrq.INTX, EVENTFD, UNMASK, fds=(masker,))
    os.eventfd_write(masker, 1)
    bench.run(asyncio.sleep(0.01))
    assert not signalled(masker)
    bench.set_irqs(PciIrq.INTX, EVENTFD, UNMASK)
    os.eventfd_write(masker, 1)
    bench.run(asyncio.sleep(0.01))
    assert signalled(masker)


@pytest.mark.parametrize(
    ("index", "action"),
    [(PciIrq.INTX, UNMASK), (PciIrq.INTX, TRIGGER), (PciIrq.MSIX, TRIGGER), (PciIrq.REQ, TRIGGER)],
)
def test_a_descriptor_that_is_no_eventfd_is_refused(
    bench: Bench, eventfd: Callable[[], int], index: PciIrq, action: IrqSetFlags
) -> None:
    """A write to a pipe can take for ever, and one to a file in FUSE cannot even be interrupted."""
    before = eventfd()
    bench.set_irqs(index, EVENTFD, action, fds=(before,))
    read_end, write_end = os.pipe()
    with pytest.raises(DeviceError, match="no eventfd"):
        bench.set_irqs(index, EVENTFD, action, fds=(write_end,))
    os.close(read_end)
    os.close(write_end)
    if action == TRIGGER:
        # What was there before is still in use.
        bench.set_irqs(index, NONE, TRIGGER)
        assert signalled(before)


def test_memory_that_may_wait_for_the_client_is_not_mapped(
    bench: Bench, eventfd: Callable[[], int]
) -> None:
    with pytest.raises(DeviceError, match="not to be seen"):
        bench.run(bench.device.dma_map(DmaMap(0x1000, 0x1000, 0, RW), eventfd()))
    assert not bench.assembly.queues.memory.overlaps(0x1000, 0x1000)


def test_a_full_eventfd_does_not_block_the_daemon(bench: Bench) -> None:
    fd = os.eventfd(0)
    os.eventfd_write(fd, 0xFFFF_FFFF_FFFF_FFFE)
    for index in (PciIrq.MSIX, PciIrq.REQ):
        bench.set_irqs(index, EVENTFD, TRIGGER, fds=(fd,))
        bench.set_irqs(index, NONE, TRIGGER)
    os.close(fd)


def test_descriptors_are_not_leaked(bench: Bench, eventfd: Callable[[], int]) -> None:
    fd = eventfd()

    def use_all() -> None:
        for index in (PciIrq.INTX, PciIrq.MSIX, PciIrq.ERR, PciIrq.REQ):
            for _ in range(3):
                bench.set_irqs(index, EVENTFD, TRIGGER, fds=(fd,))
        bench.set_irqs(PciIrq.INTX, EVENTFD, UNMASK, fds=(fd,))
        bench.run(bench.device.detached())

    use_all()
    before = descriptors()
    use_all()
    assert descriptors() == before


def test_windows_are_mapped_and_unmapped(bench: Bench, memory: int) -> None:
    for iova in (0, 0x1_0000, 0x10_0000):
        bench.run(bench.device.dma_map(DmaMap(iova, 0x1_0000, 0, RW), memory))
    assert bench.run(bench.device.dma_unmap(0, 0x2_0000)) == 0x2_0000
    assert bench.run(bench.device.dma_unmap(0, 0x2_0000)) == 0
    assert bench.run(bench.device.dma_unmap_all()) == 0x1_0000


def test_a_window_over_another_exists_already(bench: Bench, memory: int) -> None:
    bench.run(bench.device.dma_map(DmaMap(0x1000, 0x2000, 0, RW), memory))
    with pytest.raises(DeviceError) as caught:
        bench.run(bench.device.dma_map(DmaMap(0x2000, 0x2000, 0, RW), memory))
    assert caught.value.errno == errno.EEXIST


def test_a_window_that_is_not_whole_pages_is_invalid(bench: Bench, memory: int) -> None:
    with pytest.raises(DeviceError) as caught:
        bench.run(bench.device.dma_map(DmaMap(0x1000, 100, 0, RW), memory))
    assert caught.value.errno == errno.EINVAL


def test_half_a_window_cannot_be_unmapped(bench: Bench, memory: int) -> None:
    bench.run(bench.device.dma_map(DmaMap(0, 0x2000, 0, RW), memory))
    with pytest.raises(DeviceError) as caught:
        bench.run(bench.device.dma_unmap(0, 0x1000))
    assert caught.value.errno == errno.EINVAL


def test_a_window_without_descriptor_is_no_error(bench: Bench) -> None:
    bench.run(bench.device.dma_map(DmaMap(0xF000_0000, 0x4_0000, 0, DmaMapFlags.READ), None))
    assert bench.run(bench.device.dma_unmap(0, 0xFFFF_FFFF_FFFF_F000)) == 0x4_0000


def test_a_reset_takes_the_configuration_back(bench: Bench) -> None:
    bench.config(0x04, 0x0406)
    bench.config(0x10, 0xFEB0_0000, 4)
    bench.run(bench.device.reset())
    assert bench.device.region_read(PciRegion.CONFIG, 0x04, 2) == bytes(2)
    assert bench.device.region_read(PciRegion.CONFIG, 0x10, 4) == bytes([4, 0, 0, 0])


def test_the_msix_table_is_memory_and_the_pending_bits_are_not(bench: Bench) -> None:
    assert bench.device.region_read(PciRegion.BAR4, 12, 4) == bytes([1, 0, 0, 0])
    bench.device.region_write(PciRegion.BAR4, 4 * 16, b"\xff" * 32)
    # Five vectors, and nothing behind them.
    assert bench.device.region_read(PciRegion.BAR4, 4 * 16, 32) == b"\xff" * 16 + bytes(16)
    bench.device.region_write(PciRegion.BAR4, 0xFF8, b"\xff" * 16)
    assert bench.device.region_read(PciRegion.BAR4, 0xFF8, 16) == bytes(16)


class Completions:
    """The admin queue pair of a guest without a driver: it makes completions, with interrupts."""

    ASQ, ACQ, SIZE = 0x10000, 0x11000, 0x4000
    ENTRIES = 16

    def __init__(self, bench: Bench, eventfd: Callable[[], int]) -> None:
        self.bench = bench
        self.ram = os.memfd_create("ram")
        os.ftruncate(self.ram, self.SIZE)
        mapping = DmaMap(self.ASQ, self.SIZE, 0, RW)
        bench.run(bench.device.dma_map(mapping, self.ram))
        for offset, value, size in (
            (0x24, 0x000F_000F, 4),
            (0x28, self.ASQ, 8),
            (0x30, self.ACQ, 8),
            (0x14, 0x0046_0001, 4),
        ):
            bench.device.region_write(PciRegion.BAR0, offset, value.to_bytes(size, "little"))
        self.count = 0

    def close(self) -> None:
        os.close(self.ram)

    def make(self) -> None:
        """Send a command, an Identify that fails, and let it complete."""
        place = 64 * (self.count % self.ENTRIES)
        os.pwrite(self.ram, bytes([0x06, 0, self.count, 0]) + bytes(60), place)
        self.count += 1
        self._ring(0, self.count % self.ENTRIES)
        self.bench.run(asyncio.sleep(0.01))

    def newest(self) -> tuple[int, bool]:
        """CID and phase tag of the completion that was made last."""
        entry = (self.count - 1) % self.ENTRIES
        words = os.pread(self.ram, 16, self.ACQ - self.ASQ + 16 * entry)
        return int.from_bytes(words[12:14], "little"), bool(words[14] & 1)

    def consume(self) -> None:
        self._ring(1, self.count % self.ENTRIES)

    def _ring(self, number: int, value: int) -> None:
        stride = 4 << self.bench.assembly.controller.settings.dstrd
        offset = 0x1000 + number * stride
        self.bench.device.region_write(PciRegion.BAR0, offset, value.to_bytes(4, "little"))


@pytest.fixture
def completions(bench: Bench, eventfd: Callable[[], int]) -> Iterator[Completions]:
    made = Completions(bench, eventfd)
    yield made
    made.close()


def test_an_admin_head_that_is_rung_behind_the_tail_through_messages_is_found(
    bench: Bench, completions: Completions
) -> None:
    # QEMU's block/nvme.c takes no notice of CAP.DSTRD there. The CQ has 16 entries.
    for count in range(40):
        completions.make()
        assert completions.newest() == (count, count // 16 % 2 == 0)
        head = (completions.count % 16).to_bytes(4, "little")
        bench.device.region_write(PciRegion.BAR0, 0x1004, head)


def _vector_control(bench: Bench, vector: int, masked: int) -> None:
    bench.device.region_write(PciRegion.BAR4, 16 * vector + 12, masked.to_bytes(4, "little"))


def test_a_vector_that_its_table_entry_masks_is_pending_until_it_is_unmasked(
    bench: Bench, completions: Completions, eventfd: Callable[[], int]
) -> None:
    fd = eventfd()
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, fds=(fd,))
    _vector_control(bench, 0, 1)
    completions.make()
    assert not signalled(fd)
    assert bench.device.region_read(PciRegion.BAR4, 0x1000, 4) == b"\1\0\0\0"
    _vector_control(bench, 0, 0)
    assert signalled(fd)
    assert bench.device.region_read(PciRegion.BAR4, 0x1000, 4) == bytes(4)


def test_a_table_that_the_client_does_not_write_masks_nothing(
    bench: Bench, completions: Completions, eventfd: Callable[[], int]
) -> None:
    fd = eventfd()
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, fds=(fd,))
    completions.make()
    assert signalled(fd)


def test_the_function_mask_of_msix_holds_all_vectors_back(
    bench: Bench, completions: Completions, eventfd: Callable[[], int]
) -> None:
    fd = eventfd()
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, fds=(fd,))
    bench.config(MSIX_CONTROL_OFFSET, 0xC000)
    completions.make()
    assert not signalled(fd)
    bench.config(MSIX_CONTROL_OFFSET, 0x8000)
    assert signalled(fd)


@pytest.mark.parametrize("first", ["table", "client"])
def test_a_vector_is_masked_while_anything_masks_it(
    bench: Bench, completions: Completions, eventfd: Callable[[], int], first: str
) -> None:
    fd = eventfd()
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, fds=(fd,))
    _vector_control(bench, 0, 1)
    bench.set_irqs(PciIrq.MSIX, NONE, MASK)
    completions.make()
    unmask = [
        lambda: _vector_control(bench, 0, 0),
        lambda: bench.set_irqs(PciIrq.MSIX, NONE, UNMASK),
    ]
    for step in unmask if first == "table" else reversed(unmask):
        assert not signalled(fd)
        step()
    assert signalled(fd)


def test_msi_delivers_and_intms_masks_it(
    bench: Bench, completions: Completions, eventfd: Callable[[], int]
) -> None:
    fds = [eventfd() for _ in range(4)]
    bench.config(MSI_CONTROL_OFFSET, 0x21)
    assert bench.assembly.controller.usable_vectors == 4
    bench.set_irqs(PciIrq.MSI, EVENTFD, TRIGGER, count=4, fds=tuple(fds))
    completions.make()
    assert [signalled(fd) for fd in fds] == [True, False, False, False]
    bench.device.region_write(PciRegion.BAR0, 0x0C, b"\1\0\0\0")
    completions.make()
    assert not signalled(fds[0])
    bench.device.region_write(PciRegion.BAR0, 0x10, b"\1\0\0\0")
    assert signalled(fds[0])
    bench.set_irqs(PciIrq.MSI, NONE, TRIGGER, count=0)
    bench.config(MSI_CONTROL_OFFSET, 0)
    assert bench.assembly.controller.usable_vectors == 5


def test_intms_masks_nothing_of_msix(
    bench: Bench, completions: Completions, eventfd: Callable[[], int]
) -> None:
    fd = eventfd()
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, fds=(fd,))
    bench.device.region_write(PciRegion.BAR0, 0x0C, b"\1\0\0\0")
    completions.make()
    assert signalled(fd)


def test_vectors_of_msi_take_the_place_of_those_of_msix(
    bench: Bench, completions: Completions, eventfd: Callable[[], int]
) -> None:
    old, new = eventfd(), eventfd()
    bench.set_irqs(PciIrq.MSIX, EVENTFD, TRIGGER, fds=(old,))
    bench.set_irqs(PciIrq.MSI, EVENTFD, TRIGGER, fds=(new,))
    bench.set_irqs(PciIrq.MSIX, NONE, TRIGGER, count=0)
    completions.make()
    assert (signalled(old), signalled(new)) == (False, True)


def test_the_interrupt_bit_of_status_is_the_level_of_the_pin(
    bench: Bench, completions: Completions, eventfd: Callable[[], int]
) -> None:
    def status() -> int:
        return bench.device.region_read(PciRegion.CONFIG, 4, 4)[2] >> 3 & 1

    fd = eventfd()
    bench.set_irqs(PciIrq.INTX, EVENTFD, TRIGGER, fds=(fd,))
    assert status() == 0
    completions.make()
    assert status() == 1
    # It is what the function asserts, whether the guest has it delivered or not.
    bench.config(4, 0x0406)
    assert status() == 1
    bench.device.region_write(PciRegion.BAR0, 0x0C, b"\1\0\0\0")
    assert status() == 0
    bench.device.region_write(PciRegion.BAR0, 0x10, b"\1\0\0\0")
    assert status() == 1
    completions.consume()
    assert status() == 0


@settings(max_examples=200)
@given(
    accesses=st.lists(
        st.tuples(
            st.sampled_from([(PciRegion.BAR0, 0x4000), (PciRegion.BAR4, 0x2000)]),
            st.integers(0, 0x3FFF),
            st.binary(min_size=1, max_size=80),
        ),
        max_size=30,
    )
)
def test_no_access_to_a_bar_raises(accesses: list[tuple[tuple[int, int], int, bytes]]) -> None:
    bench = Bench()
    try:
        for (region, size), offset, data in accesses:
            if offset + len(data) <= size:
                bench.device.region_write(region, offset, data)
                assert len(bench.device.region_read(region, offset, len(data))) == len(data)
    finally:
        bench.close()


@settings(max_examples=100)
@given(
    writes=st.lists(
        st.one_of(
            st.tuples(st.just(0x14), st.sampled_from([0, 0x460001, 0x464001, 0x460000])),
            st.tuples(st.just(0x20), st.sampled_from([0, 0x4E564D65])),
            st.tuples(st.sampled_from([0x24, 0x28, 0x30]), st.sampled_from([0, 0x1F001F, 0x1000])),
            st.tuples(st.sampled_from([0x1000, 0x1004, 0x1008, 0x100C]), st.integers(0, 40)),
        ),
        max_size=40,
    )
)
def test_no_sequence_of_register_writes_is_fatal_to_the_daemon(
    writes: list[tuple[int, int]],
) -> None:
    bench = Bench()
    fd = os.memfd_create("ram")
    os.truncate(fd, 1 << 20)
    try:
        bench.run(bench.device.dma_map(DmaMap(0, 1 << 20, 0, RW), fd))
        for offset, value in writes:
            bench.device.region_write(PciRegion.BAR0, offset, value.to_bytes(4, "little"))
        bench.run(bench.device.reset())
        assert bench.device.region_read(PciRegion.BAR0, 0x1C, 4) == bytes(4)
    finally:
        bench.close()
        os.close(fd)


@pytest.mark.parametrize("action", [TRIGGER, MASK, UNMASK])
def test_an_eventfd_that_is_refused_leaves_no_descriptor_open(
    bench: Bench, memory: int, action: IrqSetFlags
) -> None:
    path = os.open("/tmp", os.O_PATH)
    index, fd = (PciIrq.MSIX, path) if action == TRIGGER else (PciIrq.INTX, memory)
    before = descriptors()
    for _ in range(3):
        with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's choice
            bench.set_irqs(index, EVENTFD, action, fds=(fd,))
    assert descriptors() == before
    os.close(path)


def test_the_doorbells_of_a_client_are_another_open_file_than_those_that_are_kept(
    bench: Bench,
) -> None:
    kept = bench.assembly.state.doorbell_fd
    offered = bench.device.region_info(PciRegion.BAR0).fd
    assert offered is not None
    assert os.path.sameopenfile(offered, kept)  # by their inode
    files = KeptFds(FdStore(None), {})
    try:
        number = files.keep(kept)
        assert files.keep(kept) == number
        assert files.keep(offered) != number
    finally:
        files.close()
