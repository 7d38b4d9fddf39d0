"""Framing, messages and the session table, without any socket."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.spec import vfio_user as wire
from nvme_mdev.spec.vfio_user import Command, HeaderFlags, MessageType
from nvme_mdev.vfio_user import messages
from nvme_mdev.vfio_user.framing import (
    MAX_DATA_XFER_SIZE,
    MAX_MESSAGE_SIZE,
    MAX_MSG_FDS,
    LocalProtocolError,
    Message,
    MessageHeader,
    Receiver,
    RemoteProtocolError,
    encode,
)
from nvme_mdev.vfio_user.messages import (
    Capabilities,
    DeviceInfo,
    DeviceReset,
    DmaMap,
    DmaUnmap,
    IrqInfo,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionWrite,
    Request,
    SetIrqs,
    Version,
    decode_request,
)
from nvme_mdev.vfio_user.session import RULES, Session, State

if TYPE_CHECKING:
    from collections.abc import Callable

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, (1 << 64) - 1)
argszs = st.integers(32, 0xFFFF_FFFF)
maybe_u64 = st.none() | u64


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    """An address and a size that do not wrap."""
    address = draw(u64)
    return address, draw(st.integers(1, min((1 << 64) - address, (1 << 64) - 1)))


@st.composite
def dma_maps(draw: st.DrawFn) -> DmaMap:
    address, size = draw(ranges().filter(lambda r: r[1] < 1 << 63))
    offset = draw(st.integers(0, (1 << 63) - size))
    return DmaMap(draw(st.integers(0, 3)), offset, address, size)


@st.composite
def set_irqs(draw: st.DrawFn) -> SetIrqs:
    data = draw(st.sampled_from([1, 2, 4]))
    action = draw(st.sampled_from([8, 16, 32]))
    bools = tuple(draw(st.lists(st.booleans(), min_size=1, max_size=40))) if data == 2 else ()
    count = len(bools) or draw(st.integers(1, 0xFFFF_FFFF))
    return SetIrqs(data | action, draw(u32), draw(u32), count, bools)


capabilities = st.builds(
    Capabilities,
    maybe_u64,
    maybe_u64,
    maybe_u64,
    maybe_u64,
    st.none() | st.booleans(),
    st.none() | st.booleans(),
)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(Version, u16, u16, st.none() | capabilities),
    dma_maps(),
    ranges().map(lambda r: DmaUnmap(0, *r)),
    st.just(DmaUnmap(wire.DmaUnmapFlags.ALL, 0, 0)),
    st.builds(DeviceInfo, argszs, u32, u32, u32),
    st.builds(RegionInfo, u32, argszs),
    st.builds(RegionIoFds, u32, argszs, st.just(0), u32),
    st.builds(IrqInfo, u32, argszs, u32, u32),
    set_irqs(),
    st.just(SetIrqs(0x21, 2, 0, 0)),
    st.builds(RegionRead, u64, u32, st.integers(1, MAX_DATA_XFER_SIZE)),
    st.builds(RegionWrite, u64, u32, st.binary(min_size=1, max_size=100)),
    st.just(DeviceReset()),
)
headers = st.builds(
    MessageHeader,
    u16,
    u16,
    st.sampled_from(MessageType),
    st.sampled_from([HeaderFlags(0), HeaderFlags.NO_REPLY, HeaderFlags.ERROR]),
    u32,
)


@given(requests)
def test_what_is_packed_is_unpacked_the_same(request: Request) -> None:
    assert decode_request(request.command, request.pack()) == request


region_infos = st.builds(
    RegionInfo,
    u32,
    argszs,
    st.integers(0, 7),
    u64,
    u64,
    st.none() | st.lists(st.tuples(u64, u64), max_size=20).map(tuple),
)


@given(region_infos)
def test_region_info_replies_are_unpacked_the_same(info: RegionInfo) -> None:
    body = info.pack()
    assert RegionInfo.unpack(body) == info
    assert len(body) == info.needed


@given(headers, st.binary(max_size=200), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_a_message_survives_however_the_stream_is_cut(
    header: MessageHeader, body: bytes, cuts: list[int]
) -> None:
    receiver = Receiver()
    stream = encode(header, body) * 2
    messages = []
    turn = 0
    while stream:
        size = min(cuts[turn % len(cuts)], receiver.wanted)
        turn += 1
        if (message := receiver.receive(stream[:size])) is not None:
            messages.append(message)
        stream = stream[size:]
    receiver.eof()
    assert messages == [Message(header, body)] * 2


@given(st.sampled_from(Command), st.binary(max_size=120))
def test_any_body_is_a_request_or_the_peers_mistake(command: Command, body: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert decode_request(command, body).command == command


@given(st.data())
def test_any_change_of_one_byte_is_a_request_or_the_peers_mistake(data: st.DataObject) -> None:
    request = data.draw(requests.filter(lambda r: r.command != Command.DEVICE_RESET))
    body = bytearray(request.pack())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RemoteProtocolError):
        decode_request(request.command, bytes(body))


@pytest.mark.parametrize(
    "unpack",
    [
        Version.unpack,
        DmaUnmap.unpack,
        DeviceInfo.unpack,
        RegionInfo.unpack,
        RegionIoFds.unpack,
        IrqInfo.unpack,
        RegionRead.unpack,
        RegionWrite.unpack,
    ],
)
@given(body=st.binary(max_size=200))
def test_any_reply_is_understood_or_the_peers_mistake(
    unpack: Callable[[bytes], object], body: bytes
) -> None:
    with suppress(RemoteProtocolError):
        unpack(body)


@given(st.lists(u32, min_size=6, max_size=40))
def test_any_capability_chain_ends(words: list[int]) -> None:
    """Small numbers as often as not, so that the chain goes somewhere."""
    body = struct.pack("<IIII", 0x1000, 0xF, 0, 32) + bytes(16)
    body += struct.pack(f"<{len(words)}I", *(word % 200 if word % 2 else word for word in words))
    with suppress(RemoteProtocolError):
        RegionInfo.unpack(body)


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_any_stream_is_messages_or_the_peers_mistake(pieces: list[bytes]) -> None:
    receiver = Receiver()
    with suppress(RemoteProtocolError):
        for piece in pieces:
            rest = piece
            while rest:
                size = min(len(rest), receiver.wanted)
                receiver.receive(rest[:size])
                rest = rest[size:]
        receiver.eof()


@pytest.mark.parametrize(
    ("size", "flags"), [(15, 0), (MAX_MESSAGE_SIZE + 1, 0), (16, 2), (16, 0xF), (16, 0x40)]
)
def test_a_stream_that_cannot_be_followed_has_to_be_closed(size: int, flags: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Receiver().receive(struct.pack("<HHIII", 7, 2, size, flags, 0))
    assert caught.value.close


@given(st.binary(max_size=300))
def test_any_version_data_is_understood_or_the_peers_mistake(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        Version.unpack(b"\0\0\1\0" + data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_capability_value_is_understood_or_the_peers_mistake(value: object) -> None:
    for name in ("max_msg_fds", "pgsizes", "write_multiple", "twin_socket", "migration"):
        with suppress(RemoteProtocolError):
            Capabilities.from_json({name: value})


def test_first_the_header_is_wanted_then_exactly_the_body() -> None:
    receiver = Receiver()
    message = encode(MessageHeader(1, Command.DMA_MAP), bytes(32))
    assert receiver.wanted == 16
    assert receiver.receive(message[:10]) is None
    assert receiver.wanted == 6
    assert receiver.receive(message[10:16]) is None
    assert receiver.wanted == 32
    assert receiver.receive(message[16:]) == Message(MessageHeader(1, 2), bytes(32))
    assert receiver.wanted == 16


def test_a_message_without_body_is_whole_with_its_header() -> None:
    message = encode(MessageHeader(1, Command.DEVICE_RESET))
    assert Receiver().receive(message) == Message(MessageHeader(1, 13), b"")


def test_fds_belong_to_the_message_with_whose_bytes_they_came() -> None:
    receiver = Receiver()
    message = encode(MessageHeader(1, Command.DMA_MAP), bytes(32))
    for fds in ((3,), (4,)):
        receiver.receive(message[:16], fds)
        whole = receiver.receive(message[16:])
        assert whole is not None
        assert whole.fds == fds


def test_fds_of_an_unfinished_message_are_given_back() -> None:
    receiver = Receiver()
    receiver.receive(b"\0" * 3, (5, 6))
    assert receiver.take_fds() == (5, 6)
    assert receiver.take_fds() == ()


def test_more_fds_than_we_take_are_the_peers_mistake_and_given_back() -> None:
    receiver = Receiver()
    for fd in range(MAX_MSG_FDS):
        receiver.receive(b"\0" if fd < 15 else b"", (fd,))
    with pytest.raises(RemoteProtocolError):
        receiver.receive(b"", (MAX_MSG_FDS,))
    assert len(receiver.take_fds()) == MAX_MSG_FDS + 1


def test_more_bytes_than_wanted_are_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        Receiver().receive(bytes(17))


def test_the_end_in_the_middle_of_a_message_is_the_peers_mistake() -> None:
    receiver = Receiver()
    receiver.eof()
    receiver.receive(b"\0")
    with pytest.raises(RemoteProtocolError):
        receiver.eof()


def test_a_message_larger_than_allowed_is_not_sent() -> None:
    body = bytes(MAX_MESSAGE_SIZE - 16)
    assert len(encode(MessageHeader(1, 2), body)) == MAX_MESSAGE_SIZE
    with pytest.raises(LocalProtocolError):
        encode(MessageHeader(1, 2), body + b"\0")


def test_there_is_a_rule_for_every_command() -> None:
    assert set(RULES) == set(Command)


@pytest.mark.parametrize("command", [c for c in Command if not RULES[c].refused])
def test_every_command_that_is_not_refused_can_be_decoded(command: Command) -> None:
    assert command in messages._REQUESTS


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("state", State)
def test_a_command_is_legal_in_the_state_of_its_rule_only(command: Command, state: State) -> None:
    session = Session()
    session.state = state
    rule = RULES[command]
    body = {
        Command.VERSION: bytes(4),
        Command.DMA_MAP: DmaMap(3, 0, 0, 1).pack(),
        Command.DMA_UNMAP: DmaUnmap(0, 0, 1).pack(),
        Command.DEVICE_GET_INFO: DeviceInfo().pack(),
        Command.DEVICE_GET_REGION_INFO: RegionInfo(0).pack(),
        Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds(0).pack(),
        Command.DEVICE_GET_IRQ_INFO: IrqInfo(0).pack(),
        Command.DEVICE_SET_IRQS: SetIrqs(0x21, 0, 0, 0).pack(),
        Command.REGION_READ: RegionRead(0, 0, 1).pack(),
        Command.REGION_WRITE: RegionWrite(0, 0, b"1").pack(),
    }.get(command, b"")
    message = Message(MessageHeader(0, command), body)
    if not rule.refused and rule.state is state:
        assert session.check(message).command == command
        with pytest.raises(RemoteProtocolError):
            session.check(Message(message.header, body, tuple(range(rule.max_fds + 1))))
        return
    with pytest.raises(RemoteProtocolError) as caught:
        session.check(message)
    assert caught.value.close == (state is not State.RUNNING)


def test_no_reply_means_no_reply_not_even_of_an_error() -> None:
    header = MessageHeader(1, Command.REGION_WRITE, flags=HeaderFlags.NO_REPLY)
    assert Session.reply(header) == b""
    assert Session.error(header, 22) == b""


def test_an_error_reply_is_only_a_header() -> None:
    reply = Session.error(MessageHeader(7, Command.DMA_MAP), 22)
    assert struct.unpack("<HHIII", reply) == (7, 2, 16, 0x21, 22)
