"""JSON-RPC 2.0 without a socket: framing, requests, answers, and what hostile bytes get."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.service import rpc
from nvme_mdev.service.rpc import ErrorCode, Lines, LineTooLongError, Request, RpcError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def line(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def refusal(data: bytes) -> RpcError:
    with pytest.raises(RpcError) as caught:
        rpc.parse_request(data)
    return caught.value


# -- framing -----------------------------------------------------------------------------------


@given(
    lines=st.lists(st.binary(max_size=40).filter(lambda data: b"\n" not in data and data.strip())),
    cuts=st.lists(st.integers(1, 50), min_size=1),
)
def test_lines_come_out_as_they_went_in_however_they_are_cut(
    lines: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(one + b"\n" for one in lines)
    receiver, found, turn = Lines(), [], 0
    while stream:
        size = cuts[turn % len(cuts)]
        found += receiver.receive(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert found == lines


def test_empty_lines_are_nothing() -> None:
    assert Lines().receive(b"\n \r\n\n") == []


def test_a_line_without_end_is_refused_when_it_is_too_long() -> None:
    lines = Lines()
    assert lines.receive(bytes(rpc.MAX_LINE - 1)) == []
    with pytest.raises(LineTooLongError):
        lines.receive(b"x")


def test_a_line_of_the_greatest_length_is_taken() -> None:
    assert Lines().receive(b"x" * (rpc.MAX_LINE - 1) + b"\n") == [b"x" * (rpc.MAX_LINE - 1)]


# -- requests ----------------------------------------------------------------------------------


def test_a_call_and_a_notification_differ_by_their_id() -> None:
    call = rpc.parse_request(line(method="a.b", params={"x": 1}, id=7))
    assert call == Request("a.b", {"x": 1}, 7, wants_answer=True)
    assert rpc.parse_request(line(method="a.b")) == Request("a.b", {}, None, wants_answer=False)
    assert rpc.parse_request(line(method="a.b", id=None)).wants_answer


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"nonsense", b"[" * 100_000, b'{"id": NaN}', b"1" * 5000]
)
def test_what_is_no_json_is_a_parse_error_without_id(data: bytes) -> None:
    error = refusal(data)
    assert (error.code, error.request_id) == (ErrorCode.PARSE_ERROR, None)


@pytest.mark.parametrize(
    "data",
    [
        b"1",
        b"null",
        b'"x"',
        b"[]",
        b'{"method": "x"}',
        line(),
        line(method=1),
        line(method=None),
        line(method="x", params=1),
        line(method="x", params=None),
        line(method="x", id=1.5),
        line(method="x", id=True),
        line(method="x", id={}),
        line(method="x", id="i" * 257),
    ],
)
def test_json_that_is_no_request_is_an_invalid_request(data: bytes) -> None:
    assert refusal(data).code == ErrorCode.INVALID_REQUEST


def test_a_batch_is_refused_with_the_reason() -> None:
    error = refusal(b"[" + line(method="x", id=1) + b"]")
    assert error.code == ErrorCode.INVALID_REQUEST
    assert "one request a line" in error.message


def test_parameters_by_position_are_invalid() -> None:
    error = refusal(line(method="x", params=[1], id="a"))
    assert (error.code, error.request_id) == (ErrorCode.INVALID_PARAMS, "a")


def test_a_refused_request_keeps_its_id() -> None:
    assert refusal(line(id=9)).request_id == 9


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_request_or_an_error_that_can_be_sent(data: bytes) -> None:
    try:
        rpc.parse_request(data)
    except RpcError as error:
        answer = json.loads(rpc.encode_error(error))
        assert answer["error"]["code"] < 0
        assert "id" in answer


# -- answers -----------------------------------------------------------------------------------


@given(result=JSON, request_id=st.integers() | st.text(max_size=20) | st.none())
def test_a_result_comes_back_as_it_was_on_one_line(result: Any, request_id: rpc.Id) -> None:
    encoded = rpc.encode_result(request_id, result)
    assert encoded.endswith(b"\n")
    assert encoded.count(b"\n") == 1
    assert rpc.parse_answer(encoded, request_id) == result


def test_a_name_that_is_no_utf8_survives() -> None:
    name = b"\xff.img".decode(errors="surrogateescape")
    assert rpc.parse_answer(rpc.encode_result(1, name), 1) == name


def test_an_error_is_raised_as_the_peer_told_it() -> None:
    encoded = rpc.encode_error(RpcError(ErrorCode.REFUSED, "no", 3))
    with pytest.raises(RpcError, match=r"^no$") as caught:
        rpc.parse_answer(encoded, 3)
    assert caught.value.code == ErrorCode.REFUSED


@pytest.mark.parametrize(
    "data", [b"x", b"[]", b"{}", line(id=1), line(result=1, id=2), line(error=1, id=1)]
)
def test_what_is_no_answer_to_the_request_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own message, or ours
        rpc.parse_answer(data, 1)


@given(st.binary(max_size=100))
def test_any_answer_is_a_result_an_error_or_a_value_error(data: bytes) -> None:
    with pytest.raises((RpcError, ValueError)):
        rpc.parse_answer(data, "an id that is in no example")
