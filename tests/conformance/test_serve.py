"""`serve` passes the conformance suite, whatever it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvme_mdev.conformance.checks import GROUPS, all_checks
from nvme_mdev.conformance.runner import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvme_mdev.conformance.check import Check

MEMORY = ("memory:64M", "memory:1M")
#: Its blocks have another size, and there is a volatile write cache.
IMAGE = ("DIR/image", "--size", "64M", "--block-size", "4096")
MESSAGES = ("null:64M", "--no-mapped-doorbells", "--no-shadow-doorbell")
PRIVATE = ("memory:64M", "memory:2M")
READ_ONLY = ("DIR/protected", "--read-only", "--no-shadow-doorbell")

#: The last of them is above those that are their own places.
MANY = (*["null:1M"] * 256, "memory:64M", "--max-nsid", "257")

ERASABLE = ("memory:16M", "--allow-erase", "--block-size", "512")

#: All that has to do with its data, and two ways to erase it more.
ENCRYPTED = ("DIR/encrypted,key-file=DIR/key", "--size", "16M", "--allow-erase")

DATA = {"features", "read_write", "prp", "sgl", "fused", "ranges", "reservations", "error_log"}
QUEUES = {"queues", "doorbells", "completions", "life_cycle", "shadow_doorbells"}


def _of(groups: set[str]) -> list[Check]:
    return [check for group in GROUPS if group.name in groups for check in group]


def _holds(
    check: Check, socket: Path, *, nsid: int | None = None, share_memory: bool = True
) -> None:
    (result,) = run([check], socket, nsid=nsid, destructive=True, share_memory=share_memory)
    assert result.outcome in {Outcome.PASSED, Outcome.NOT_APPLICABLE}, (
        f"{check.sentence} ({', '.join(check.sections)}): {result.why}"
    )


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.id)
def test_a_memory_namespace_conforms(check: Check, controller: Callable[..., Path]) -> None:
    _holds(check, controller(*MEMORY))


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.id)
def test_a_client_without_shared_memory_finds_that_it_conforms(
    check: Check, controller: Callable[..., Path]
) -> None:
    _holds(check, controller(*PRIVATE), share_memory=False)


@pytest.mark.parametrize("check", _of(DATA), ids=lambda check: check.id)
def test_an_image_conforms(check: Check, controller: Callable[..., Path]) -> None:
    _holds(check, controller(*IMAGE))


@pytest.mark.parametrize("check", _of(QUEUES), ids=lambda check: check.id)
def test_doorbells_in_messages_conform(check: Check, controller: Callable[..., Path]) -> None:
    _holds(check, controller(*MESSAGES))


@pytest.mark.parametrize("check", _of({"read_write"}), ids=lambda check: check.id)
def test_a_read_only_namespace_conforms(check: Check, controller: Callable[..., Path]) -> None:
    _holds(check, controller(*READ_ONLY))


@pytest.mark.parametrize("check", _of(DATA | {"identify"}), ids=lambda check: check.id)
def test_a_namespace_with_a_high_nsid_conforms(
    check: Check, controller: Callable[..., Path]
) -> None:
    _holds(check, controller(*MANY), nsid=257)


@pytest.mark.parametrize("check", _of({"admin_optional", "log_pages"}), ids=lambda check: check.id)
def test_what_may_be_erased_conforms(check: Check, controller: Callable[..., Path]) -> None:
    _holds(check, controller(*ERASABLE))


@pytest.mark.parametrize("check", _of(DATA | {"admin_optional"}), ids=lambda check: check.id)
def test_an_encrypted_image_conforms(check: Check, controller: Callable[..., Path]) -> None:
    _holds(check, controller(*ENCRYPTED))
