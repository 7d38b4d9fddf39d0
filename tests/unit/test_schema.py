"""Typed parameters: what JSON becomes which dataclass, and every way in which it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvme_mdev.service import api
from nvme_mdev.service.schema import SchemaError, describe, from_json, to_json


@dataclass(frozen=True)
class Inner:
    flag: bool


@dataclass(frozen=True)
class Outer:
    number: int
    items: list[Inner]
    names: dict[str, int | bool | None]
    ratio: float = 0.5
    text: str | None = None


GOOD = {"number": 1, "items": [{"flag": True}], "names": {"a": 1, "b": None, "c": False}}


def test_json_becomes_dataclasses_and_json_again() -> None:
    value = from_json(Outer, GOOD)
    assert value == Outer(1, [Inner(True)], {"a": 1, "b": None, "c": False})
    assert to_json(value) == {**GOOD, "ratio": 0.5, "text": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": "1"}, "number must be integer"),
        ({"number": True}, "number must be integer"),
        ({"number": 1.0}, "number must be integer"),
        ({"items": {}}, "items must be list of Inner"),
        ({"items": [1]}, r"items\[0\] must be Inner"),
        ({"items": [{}]}, r"items\[0\].flag is missing"),
        ({"items": [{"flag": 1}]}, r"items\[0\].flag must be boolean"),
        ({"names": {"a": "x"}}, r"names.a must be integer \| boolean \| null"),
        ({"ratio": False}, "ratio must be number"),
        ({"text": 5}, r"text must be string \| null"),
        ({"more": 1}, "'more' is unknown: use number, items"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        from_json(Outer, {**GOOD, **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(SchemaError, match="number is missing"):
        from_json(Outer, {})


def test_a_description_says_names_types_and_what_is_required() -> None:
    assert describe(Outer)[0] == {"name": "number", "type": "integer", "required": True}
    assert describe(Outer)[4] == {"name": "text", "type": "string | null", "required": False}


@pytest.mark.parametrize("method", api.METHODS, ids=lambda method: method.name)
@given(
    params=st.dictionaries(
        st.sampled_from(["controller", "nsid", "size", "settings", "target", "force", "x"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
    )
)
def test_parameters_of_any_method_are_decoded_or_refused(
    method: api.Method[Any, Any], params: dict[str, Any]
) -> None:
    try:
        decoded = from_json(method.params, params)
    except SchemaError:
        return
    assert {name: to_json(decoded)[name] for name in params} == params
