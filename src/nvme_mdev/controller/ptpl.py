"""Reservations in a file, where a host wants them through a loss of power (PTPL, Base 8.1.22.1).

The file is there as long as the Persist Through Power Loss State is 1. It is replaced as a whole,
and on the medium before the command that changes it completes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from nvme_mdev.controller.reservations import Reservations
from nvme_mdev.spec.nvme_reservations import ReservationType

_FORMAT = "nvme-mdev reservations 1"
_HOST_SIZE = 16
_KEYS = 1 << 64
_GENERATIONS = 1 << 32


def load(path: str) -> Reservations:
    """What the file says, nothing if there is none. OSError; ValueError: it is no such file."""
    try:
        text = Path(path).read_text("utf-8")
    except FileNotFoundError:
        return Reservations()
    try:
        found = json.loads(text)
        if found["format"] != _FORMAT:
            raise ValueError("another format")
        keys = tuple((_host(one["host"]), int(one["key"], 16)) for one in found["registrants"])
        loaded = Reservations(
            int(found["generation"]),
            keys,
            ReservationType(found["type"]),
            _host(found["holder"]) if found["holder"] else b"",
            ptpl=True,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no reservations") from error
    if not _is_sound(loaded):
        raise ValueError(f"{path} holds no reservations")
    return loaded


def _host(text: str) -> bytes:
    host = bytes.fromhex(text)
    if len(host) != _HOST_SIZE:
        raise ValueError(text)
    return host


def _is_sound(loaded: Reservations) -> bool:
    """A person may have edited it."""
    return (
        loaded.is_sound
        and loaded.generation in range(_GENERATIONS)
        and all(key in range(1, _KEYS) and any(host) for host, key in loaded.keys)
    )


def save(path: str, reservations: Reservations) -> None:
    """Make the file say so, or take it away where nothing has to persist; OSError."""
    target = Path(path)
    if reservations.ptpl:
        beside = target.with_name(target.name + ".new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(_to_json(reservations), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    elif not target.exists():
        return
    else:
        target.unlink()
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _to_json(reservations: Reservations) -> dict[str, object]:
    return {
        "format": _FORMAT,
        "generation": reservations.generation,
        "type": reservations.rtype,
        "holder": reservations.holder.hex(),
        "registrants": [
            {"host": host.hex(), "key": f"{key:#x}"} for host, key in reservations.keys
        ],
    }
