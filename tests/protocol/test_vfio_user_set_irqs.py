"""VFIO_USER_DEVICE_SET_IRQS: eventfds, masks, triggers, and everything that is wrong with them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from harness import MSIX_VECTORS, four_words, set_irqs_body

from nvme_mdev.spec.vfio_user import Command, IrqSetFlags, PciIrq
from nvme_mdev.vfio_user.device import DeviceError, SetIrqs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Peer, Running

SET = Command.DEVICE_SET_IRQS
NONE, BOOL, EVENTFD = (
    IrqSetFlags.DATA_NONE,
    IrqSetFlags.DATA_BOOL,
    IrqSetFlags.DATA_EVENTFD,
)
MASK, UNMASK, TRIGGER = (
    IrqSetFlags.ACTION_MASK,
    IrqSetFlags.ACTION_UNMASK,
    IrqSetFlags.ACTION_TRIGGER,
)


@pytest.fixture
def eventfds(no_fd_is_left: None) -> Iterator[list[int]]:
    """As many as we take in one message, and one more."""
    fds = [os.eventfd(0) for _ in range(17)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_qemus_intx_eventfd_reaches_the_device(
    running: Running, peer: Peer, eventfds: list[int]
) -> None:
    assert peer.call(SET, set_irqs_body(0x24, PciIrq.INTX, 0, 1), eventfds[:1]).body == b""
    assert running.device.named("set_irqs") == [(SetIrqs(PciIrq.INTX, 0, 1, EVENTFD, TRIGGER), 1)]
    assert running.device.fd_names == ["anon_inode:[eventfd]"]


def test_an_eventfd_message_without_fd_disables_the_vector(running: Running, peer: Peer) -> None:
    assert peer.call(SET, set_irqs_body(0x24, PciIrq.MSIX, 0, 1)).error == 0
    assert running.device.named("set_irqs") == [(SetIrqs(PciIrq.MSIX, 0, 1, EVENTFD, TRIGGER), 0)]


def test_many_vectors_come_in_more_than_one_message(
    running: Running, peer: Peer, eventfds: list[int]
) -> None:
    assert peer.call(SET, set_irqs_body(0x24, PciIrq.MSIX, 0, 16), eventfds[:16]).error == 0
    assert peer.call(SET, set_irqs_body(0x24, PciIrq.MSIX, 16, 4), eventfds[:4]).error == 0
    assert [
        (request.start, request.count, fds) for request, fds in running.device.named("set_irqs")
    ] == [(0, 16, 16), (16, 4, 4)]


def test_more_fds_than_we_said_close_the_connection(
    running: Running, peer: Peer, eventfds: list[int]
) -> None:
    peer.send(SET, set_irqs_body(0x24, PciIrq.MSIX, 0, 17), eventfds)
    assert peer.closed()
    assert running.device.named("set_irqs") == []


def test_more_fds_than_we_said_in_pieces_close_the_connection(
    running: Running, peer: Peer, eventfds: list[int]
) -> None:
    body = set_irqs_body(0x24, PciIrq.MSIX, 0, 17)
    peer.send_raw(b"\x07\0\x08\0\x24\0\0\0\0\0\0\0\0\0\0\0")
    peer.send_raw(body[:10], eventfds[:10])
    peer.send_raw(body[10:], eventfds[10:])
    assert peer.receive().error == errno.EINVAL
    assert peer.closed()
    assert running.device.named("set_irqs") == []


def test_count_0_disables_the_whole_type(running: Running, peer: Peer) -> None:
    assert peer.call(SET, set_irqs_body(0x21, PciIrq.INTX, 0, 0)).error == 0
    assert running.device.named("set_irqs") == [(SetIrqs(PciIrq.INTX, 0, 0, NONE, TRIGGER), 0)]


def test_a_type_without_interrupts_can_be_disabled(peer: Peer) -> None:
    assert peer.call(SET, set_irqs_body(0x21, PciIrq.MSI, 0, 0)).error == 0


@pytest.mark.parametrize("action", [MASK, UNMASK, TRIGGER])
def test_actions_without_data_reach_the_device(
    running: Running, peer: Peer, action: IrqSetFlags
) -> None:
    assert peer.call(SET, set_irqs_body(NONE | action, PciIrq.MSIX, 3, 4)).error == 0
    assert running.device.named("set_irqs") == [(SetIrqs(PciIrq.MSIX, 3, 4, NONE, action), 0)]


@pytest.mark.parametrize("action", [MASK, UNMASK, TRIGGER])
def test_bools_reach_the_device(running: Running, peer: Peer, action: IrqSetFlags) -> None:
    body = set_irqs_body(BOOL | action, PciIrq.MSIX, 1, 3, b"\0\1\xff")
    assert peer.call(SET, body).error == 0
    assert running.device.named("set_irqs") == [
        (SetIrqs(PciIrq.MSIX, 1, 3, BOOL, action, (False, True, True)), 0)
    ]


def test_the_last_interrupt_can_be_set(running: Running, peer: Peer) -> None:
    assert peer.call(SET, set_irqs_body(0x21, PciIrq.MSIX, MSIX_VECTORS - 1, 1)).error == 0
    assert len(running.device.named("set_irqs")) == 1


@pytest.mark.parametrize(
    ("start", "count"),
    [
        (MSIX_VECTORS, 1),
        (0, MSIX_VECTORS + 1),
        (1, MSIX_VECTORS),
        (0xFFFFFFFF, 1),
        (1, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
def test_a_range_beyond_the_type_is_refused(
    running: Running, peer: Peer, start: int, count: int
) -> None:
    assert peer.call(SET, set_irqs_body(0x21, PciIrq.MSIX, start, count)).error == errno.EINVAL
    assert running.device.named("set_irqs") == []


@pytest.mark.parametrize("index", [5, 0xFFFFFFFF])
def test_a_type_that_is_not_there_is_refused(peer: Peer, index: int) -> None:
    assert peer.call(SET, set_irqs_body(0x21, index, 0, 0)).error == errno.EINVAL


@pytest.mark.parametrize(
    "flags", [0, NONE, TRIGGER, 0x23, 0x31, 0x27, 0x39, 0x61, 0x80000021, 0xFFFFFFFF]
)
def test_anything_but_one_data_and_one_action_is_refused(peer: Peer, flags: int) -> None:
    assert peer.call(SET, set_irqs_body(flags, PciIrq.MSIX, 0, 1)).error == errno.EINVAL


@pytest.mark.parametrize(
    "body",
    [
        b"",
        set_irqs_body(0x21, 0, 0, 0)[:-1],
        set_irqs_body(0x21, 0, 0, 0, argsz=19),
        set_irqs_body(0x21, 0, 0, 0, argsz=0),
        set_irqs_body(0x22, 2, 0, 3, b"\0\0"),
        set_irqs_body(0x22, 2, 0, 3, b"\0\0\0\0"),
        set_irqs_body(0x22, 2, 0, 3, b"\0\0\0", argsz=20),
        set_irqs_body(0x22, 2, 0, 0xFFFFFFFF, b"\0\0\0"),
    ],
)
def test_a_wrong_size_is_refused(running: Running, peer: Peer, body: bytes) -> None:
    assert peer.call(SET, body).error == errno.EINVAL
    assert running.device.named("set_irqs") == []


@pytest.mark.parametrize(
    "body",
    [
        set_irqs_body(0x21, PciIrq.MSIX, 1, 0),
        set_irqs_body(0x22, PciIrq.MSIX, 0, 0),
        set_irqs_body(0x24, PciIrq.MSIX, 0, 0),
        set_irqs_body(0x09, PciIrq.MSIX, 0, 0),
    ],
)
def test_count_0_with_anything_but_disable_all_is_refused(peer: Peer, body: bytes) -> None:
    assert peer.call(SET, body).error == errno.EINVAL


@pytest.mark.parametrize(
    ("body", "fds"),
    [
        (set_irqs_body(0x24, PciIrq.MSIX, 0, 2), 1),
        (set_irqs_body(0x24, PciIrq.MSIX, 0, 2), 3),
        (set_irqs_body(0x21, PciIrq.MSIX, 0, 1), 1),
        (set_irqs_body(0x22, PciIrq.MSIX, 0, 1, b"\1"), 1),
    ],
)
def test_a_number_of_fds_that_is_not_the_count_is_refused(
    running: Running, peer: Peer, eventfds: list[int], body: bytes, fds: int
) -> None:
    assert peer.call(SET, body, eventfds[:fds]).error == errno.EINVAL
    assert running.device.named("set_irqs") == []
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_the_devices_refusal_reaches_the_client(running: Running, peer: Peer) -> None:
    running.device.fails["set_irqs"] = DeviceError(errno.ENOTSUP)
    assert peer.call(SET, set_irqs_body(0x21, 0, 0, 1)).error == errno.ENOTSUP
