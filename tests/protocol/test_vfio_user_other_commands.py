"""DEVICE_RESET, and the commands that we do not have."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from harness import four_words

from nvme_mdev.spec.vfio_user import Command, DeviceFlags
from nvme_mdev.vfio_user.device import DeviceError

if TYPE_CHECKING:
    from harness import Peer, Running


def test_reset_reaches_the_device(running: Running, peer: Peer) -> None:
    assert peer.call(Command.DEVICE_RESET).body == b""
    assert running.device.named("reset") == [()]


def test_reset_with_a_body_is_refused(running: Running, peer: Peer) -> None:
    assert peer.call(Command.DEVICE_RESET, b"\0").error == errno.EINVAL
    assert running.device.named("reset") == []


def test_reset_of_a_device_that_cannot_be_reset_is_refused(running: Running, peer: Peer) -> None:
    running.device.flags = DeviceFlags.PCI
    assert peer.call(Command.DEVICE_RESET).error == errno.ENOTSUP
    assert running.device.named("reset") == []


def test_the_devices_refusal_to_reset_reaches_the_client(running: Running, peer: Peer) -> None:
    running.device.fails["reset"] = DeviceError(errno.EBUSY)
    assert peer.call(Command.DEVICE_RESET).error == errno.EBUSY


@pytest.mark.parametrize(
    "command",
    [
        Command.DMA_READ,
        Command.DMA_WRITE,
        Command.DIRTY_PAGES,
        Command.REGION_WRITE_MULTI,
        Command.DEVICE_FEATURE,
        Command.MIG_DATA_READ,
        Command.MIG_DATA_WRITE,
    ],
)
def test_what_we_do_not_offer_is_refused_and_the_session_goes_on(
    running: Running, peer: Peer, memfd: int, command: Command
) -> None:
    assert peer.call(command, bytes(64), [memfd]).error == errno.ENOTSUP
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0
    assert running.device.calls == [("attached",)]


@pytest.mark.parametrize("command", [0, 19, 0x404, 0xFFFF])
def test_an_unknown_command_is_refused_and_the_session_goes_on(
    peer: Peer, memfd: int, command: int
) -> None:
    assert peer.call(command, b"whatever", [memfd]).error == errno.ENOSYS
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0
