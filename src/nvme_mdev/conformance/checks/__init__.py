"""Every check, a module a subject; `GROUPS` is the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.conformance.checks import (
    abort,
    admin_optional,
    completions,
    doorbells,
    error_log,
    events,
    features,
    fused,
    identify,
    interrupts,
    life_cycle,
    log_pages,
    pci,
    prp,
    queues,
    ranges,
    read_write,
    registers,
    reservations,
    sgl,
    shadow_doorbells,
)

if TYPE_CHECKING:
    from nvme_mdev.conformance.check import Check, Group

GROUPS: tuple[Group, ...] = (
    pci.GROUP,
    registers.GROUP,
    life_cycle.GROUP,
    queues.GROUP,
    doorbells.GROUP,
    completions.GROUP,
    identify.GROUP,
    log_pages.GROUP,
    features.GROUP,
    abort.GROUP,
    events.GROUP,
    read_write.GROUP,
    prp.GROUP,
    sgl.GROUP,
    fused.GROUP,
    ranges.GROUP,
    reservations.GROUP,
    admin_optional.GROUP,
    error_log.GROUP,
    interrupts.GROUP,
    shadow_doorbells.GROUP,
)


def all_checks() -> list[Check]:
    """Every check, in the order in which they run."""
    return [check for group in GROUPS for check in group]
