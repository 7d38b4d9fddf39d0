"""Dataclasses to JSON and back, strictly: the types of the control socket's parameters and results.

What a field may be: ``int``, ``float``, ``str``, ``bool``, ``None``, a union of these, a list of
anything, a dict with string keys, a dataclass.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES: dict[object, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}


class SchemaError(Exception):
    """A value that its type does not allow; the message says which, and what is wanted."""


def to_json(value: Any) -> Any:
    """A dataclass (or what is in one) as what ``json`` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(kind: type[T], value: Any) -> T:
    """A dataclass from a JSON object; SchemaError: a field is unknown, missing or wrong."""
    decoded: T = _decode(kind, value, "")
    return decoded


def _decode(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_object(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list and isinstance(value, list):
        return [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (Union, types.UnionType):
        for one in arguments:
            if _fits(one, value):
                return _decode(one, value, where)
    elif origin is None and _fits(kind, value):
        return value
    raise SchemaError(f"{where.lstrip('.') or 'it'} must be {type_name(kind)}")


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind in _NAMES:
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return dataclasses.is_dataclass(kind) and isinstance(value, dict)


def _decode_object(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise SchemaError(f"{where.lstrip('.') or 'it'} must be {type_name(kind)}")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise SchemaError(f"{name!r} is unknown: {_known(fields)}")
    found = {}
    for name, field in fields.items():
        if name in value:
            found[name] = _decode(hints[name], value[name], f"{where}.{name}")
        elif is_required(field):
            raise SchemaError(f"{f'{where}.{name}'.lstrip('.')} is missing")
    return kind(**found)


def _known(fields: dict[str, Any]) -> str:
    return f"use {', '.join(fields)}" if fields else "there are no parameters"


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def type_name(kind: Any) -> str:
    """A type as people read it: ``integer | null``, ``list of NamespaceInfo``."""
    if kind in _NAMES:
        return _NAMES[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"object of {type_name(arguments[1])}"
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(one) for one in arguments)
    return str(kind.__name__)


def describe(kind: type) -> list[dict[str, Any]]:
    """The fields of a dataclass: name, type, whether it is required."""
    hints = get_type_hints(kind)
    return [
        {
            "name": field.name,
            "type": type_name(hints[field.name]),
            "required": is_required(field),
        }
        for field in dataclasses.fields(kind)
    ]
