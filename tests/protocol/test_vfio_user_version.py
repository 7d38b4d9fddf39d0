"""VFIO_USER_VERSION: the first message, and what the two sides may say of themselves."""

from __future__ import annotations

import errno
import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
from harness import QEMU_JSON, four_words

from nvme_mdev.spec.vfio_user import Command
from nvme_mdev.vfio_user.device import DeviceError

if TYPE_CHECKING:
    from harness import Peer, Running


def version(minor: int = 1, data: bytes = b"", major: int = 0) -> bytes:
    return struct.pack("<HH", major, minor) + data


def said(capabilities: object) -> bytes:
    return json.dumps({"capabilities": capabilities}).encode() + b"\0"


def capabilities(body: bytes) -> dict[str, Any]:
    assert body[-1] == 0
    value = json.loads(body[4:-1])
    assert list(value) == ["capabilities"]
    found: dict[str, Any] = value["capabilities"]
    return found


def test_qemus_proposal_is_answered_with_our_limits(running: Running) -> None:
    with running.peer() as peer:
        reply = peer.call(Command.VERSION, version(0, QEMU_JSON))
        assert struct.unpack("<HH", reply.body[:4]) == (0, 0)
        assert capabilities(reply.body) == {
            "max_msg_fds": 16,
            "max_data_xfer_size": 1 << 20,
            "max_dma_maps": 65535,
            "pgsizes": 4096,
        }


def test_the_reply_to_qemu_is_not_larger_than_its_request(running: Running) -> None:
    with running.peer() as peer:
        reply = peer.call(Command.VERSION, version(0, QEMU_JSON))
        assert len(reply.body) <= 4 + len(QEMU_JSON)


def test_spdks_proposal_without_json_is_answered_without_json(running: Running) -> None:
    with running.peer() as peer:
        reply = peer.call(Command.VERSION, version(1))
        assert reply.body == version(1)


def test_a_higher_minor_version_is_answered_with_ours(running: Running) -> None:
    with running.peer() as peer:
        assert peer.call(Command.VERSION, version(7)).body == version(1)


def test_only_capabilities_that_the_client_named_are_answered(running: Running) -> None:
    with running.peer() as peer:
        reply = peer.call(Command.VERSION, version(1, said({"max_msg_fds": 3, "future": {}})))
        assert capabilities(reply.body) == {"max_msg_fds": 16}


def test_no_capabilities_at_all_are_fine(running: Running) -> None:
    with running.peer() as peer:
        reply = peer.call(Command.VERSION, version(1, b"{}\0"))
        assert capabilities(reply.body) == {}


@pytest.mark.parametrize(
    "offered",
    [
        {"twin_socket": {"supported": True}},
        {"migration": {"pgsize": 4096}},
        {"write_multiple": True},
    ],
)
def test_what_we_do_not_have_is_left_out_of_the_reply(
    running: Running, offered: dict[str, object]
) -> None:
    with running.peer() as peer:
        reply = peer.call(Command.VERSION, version(1, said(offered)))
        assert capabilities(reply.body) == {}
        assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_a_client_that_takes_no_fds_gets_none(running: Running) -> None:
    with running.peer() as peer:
        peer.call(Command.VERSION, version(1, said({"max_msg_fds": 0})))
        body = struct.pack("<IIIIQQ", 4064, 0, 0, 0, 0, 0)
        assert peer.call(Command.DEVICE_GET_REGION_INFO, body).fds == []


@pytest.mark.parametrize("major", [1, 0xFFFF])
def test_another_major_version_is_refused_and_the_connection_closed(
    running: Running, major: int
) -> None:
    with running.peer() as peer:
        assert peer.call(Command.VERSION, version(0, major=major)).error == errno.ENOTSUP
        assert peer.closed()
    running.wait_until_idle()
    assert running.device.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        version(1, b"{}"),
        version(1, b"\0"),
        version(1, b"{\0"),
        version(1, b"[]\0"),
        version(1, b"null\0"),
        version(1, b"\xff\xfe\0"),
        version(1, b'{"capabilities": 1}\0'),
        version(1, b"[" * 10000 + b"\0"),
        version(1, b'{"capabilities":{"max_msg_fds":' + b"9" * 5000 + b"}}\0"),
        version(1, b" " * 20000 + b"{}\0"),
        version(1, said({"max_msg_fds": "8"})),
        version(1, said({"max_msg_fds": -1})),
        version(1, said({"max_msg_fds": True})),
        version(1, said({"max_data_xfer_size": 1.5})),
        version(1, said({"pgsizes": 1 << 64})),
        version(1, said({"max_dma_maps": None})),
        version(1, said({"write_multiple": 1})),
        version(1, said({"twin_socket": True})),
        version(1, said({"twin_socket": {"supported": "yes"}})),
    ],
)
def test_a_malformed_proposal_is_refused_and_the_connection_closed(
    running: Running, body: bytes
) -> None:
    with running.peer() as peer:
        assert peer.call(Command.VERSION, body).error == errno.EINVAL
        assert peer.closed()
    with running.negotiated() as peer:
        assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


def test_a_second_version_is_refused_and_the_session_goes_on(peer: Peer) -> None:
    assert peer.call(Command.VERSION, version(0, QEMU_JSON)).error == errno.EINVAL
    assert peer.call(Command.DEVICE_GET_INFO, four_words(16)).error == 0


@pytest.mark.parametrize("command", [*range(2, 20), 0, 0xFFFF])
def test_anything_before_version_is_refused_and_the_connection_closed(
    running: Running, command: int
) -> None:
    with running.peer() as peer:
        assert peer.call(command, bytes(32)).failed
        assert peer.closed()


def test_an_fd_with_version_is_refused_and_the_connection_closed(
    running: Running, memfd: int
) -> None:
    with running.peer() as peer:
        assert peer.call(Command.VERSION, version(), [memfd]).error == errno.EINVAL
        assert peer.closed()


def test_the_device_learns_of_the_client_after_version_and_before_the_reply(
    running: Running,
) -> None:
    with running.peer() as peer:
        assert running.device.calls == []
        peer.call(Command.VERSION, version())
        assert running.device.calls == [("attached",)]


def test_a_device_that_refuses_the_client_closes_the_connection(running: Running) -> None:
    running.device.fails["attached"] = DeviceError(errno.EBUSY)
    with running.peer() as peer:
        assert peer.call(Command.VERSION, version()).error == errno.EBUSY
        assert peer.closed()
    running.wait_until_idle()
    assert running.device.named("detached") == []
