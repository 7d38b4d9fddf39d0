"""Settings are refused when no controller can have them, and identifiers are stable."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nvme_mdev.controller.namespaces import make_namespace
from nvme_mdev.controller.settings import ControllerSettings, firmware_revision


@pytest.mark.parametrize(
    "wrong",
    [
        {"serial": ""},
        {"serial": "x" * 21},
        {"serial": "naïve"},
        {"serial": "a\nb"},
        {"io_queues": 0},
        {"io_queues": 129},
        {"queue_entries": 1},
        {"queue_entries": 65537},
        {"max_nsid": 0},
        {"max_nsid": 0xFFFF_FFFF},
        {"max_transfer": 0},
        {"max_transfer": 4096},
        {"max_transfer": 8193},
        {"max_transfer": 3 * 4096},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ControllerSettings(**{"serial": "S1", **wrong})


def test_the_nqn_follows_from_the_serial_alone() -> None:
    assert ControllerSettings("A").nqn == ControllerSettings("A", io_queues=2).nqn
    assert ControllerSettings("A").nqn != ControllerSettings("B").nqn


def test_the_firmware_revision_fits_its_field() -> None:
    assert 1 <= len(firmware_revision()) <= 8


def backend(identity: str) -> Any:
    return SimpleNamespace(identity=identity)


def test_a_backend_with_identity_is_known_again_under_any_nsid_and_serial() -> None:
    first = make_namespace(1, backend("file:1:2"), "A")
    second = make_namespace(7, backend("file:1:2"), "B")
    assert (first.uuid, first.nguid) == (second.uuid, second.nguid)


def test_a_backend_without_identity_is_known_by_serial_and_nsid() -> None:
    assert make_namespace(1, backend(""), "A").uuid == make_namespace(1, backend(""), "A").uuid
    assert make_namespace(1, backend(""), "A").uuid != make_namespace(2, backend(""), "A").uuid
    assert make_namespace(1, backend(""), "A").uuid != make_namespace(1, backend(""), "B").uuid


def test_uuid_and_nguid_differ() -> None:
    namespace = make_namespace(1, backend("x"), "A")
    assert namespace.uuid.bytes != namespace.nguid


@pytest.mark.parametrize(
    ("queues", "dstrd"), [(1, 3), (31, 3), (63, 3), (64, 2), (127, 2), (128, 1)]
)
def test_doorbells_are_as_far_apart_as_their_page_allows(queues: int, dstrd: int) -> None:
    """At most a cache line a queue pair; all of them in 4 KiB."""
    assert ControllerSettings("S", io_queues=queues).dstrd == dstrd


def test_no_command_moves_more_than_65536_blocks() -> None:
    assert ControllerSettings("S", max_transfer=32 << 20).max_transfer == 32 << 20
    with pytest.raises(ValueError, match="is the most"):
        ControllerSettings("S", max_transfer=64 << 20)
