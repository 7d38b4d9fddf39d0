"""What Reservation Report returns (Base 7.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.spec.nvme_reservations import (
    EXTENDED_STATUS_SIZE,
    NO_CONTROLLER,
    ExtendedRegistrant,
    Registrant,
    ReservationStatus,
)

if TYPE_CHECKING:
    from nvme_mdev.controller.subsystem import Subsystem


def report(subsystem: Subsystem, nsid: int, *, extended: bool) -> bytes:
    """The registrants of a namespace: an entry for each controller of each of them.

    ``extended``: with host identifiers of 128 bits.
    """
    state = subsystem.shared[nsid].reservations
    entry = ExtendedRegistrant if extended else Registrant
    entries = b""
    count = 0
    for host, key in state.keys:
        controllers = [
            one.settings.cntlid for one in subsystem.attached(nsid) if one.host == host
        ] or [NO_CONTROLLER]
        for cntlid in controllers:
            data = entry(cntlid=cntlid, rcsts=int(state.holds(host)), rkey=key)
            data.hostid[:] = list(host[: len(data.hostid)])
            entries += bytes(data)
            count += 1
    status = ReservationStatus(
        gen=state.generation, rtype=state.rtype, regstrnt=count, ptpls=int(state.ptpl)
    )
    return bytes(status).ljust(EXTENDED_STATUS_SIZE if extended else 0, b"\0") + entries
