"""Reservation notifications of one controller: their mask, and the log page (Base 5.1.12.1.32).

They wait in the order in which they came, until the guest has read them one by one. When there are
too many, the last one is replaced: its count tells that some are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvme_mdev.controller.memory_map import MAX_NOTICES, NOTICE_WORDS, Scratch
from nvme_mdev.spec.nvme_reservations import ReservationNotice, ReservationNotificationLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvme_mdev.controller.places import Places
    from nvme_mdev.datapath.state import ControllerState

_COUNTS = 1 << 32


class ReservationNotices:
    """A view on the notifications in a controller's state."""

    def __init__(
        self, state: ControllerState, places: Places, on_notice: Callable[[], None]
    ) -> None:
        """``on_notice``: there is something to read."""
        self._scratch = state.scratch
        self._places = places
        self._on_notice = on_notice

    def reset(self) -> None:
        """Controller Level Reset: nothing is masked, nothing waits, and counting begins anew."""
        self._scratch[Scratch.NOTICE_COUNT] = self._scratch[Scratch.NOTICES_EVER] = 0
        for nsid in self._places:
            self.set_mask(nsid, 0)

    def mask(self, nsid: int) -> int:
        """Reservation Notification Mask (feature 82h) of a namespace."""
        return self._scratch[Scratch.NOTICE_MASK + self._places[nsid]]

    def set_mask(self, nsid: int, mask: int) -> None:
        """Set it: bit n for :class:`ReservationNotice` n."""
        self._scratch[Scratch.NOTICE_MASK + self._places[nsid]] = mask

    def add(self, nsid: int, notice: ReservationNotice) -> None:
        """Something has happened to a namespace: the guest is told, unless it does not want it."""
        if self.mask(nsid) >> notice & 1:
            return
        scratch = self._scratch
        # From 1 on, 0 stands for no page.
        ever = (scratch[Scratch.NOTICES_EVER] + 1) % _COUNTS or 1
        scratch[Scratch.NOTICES_EVER] = ever
        index = min(scratch[Scratch.NOTICE_COUNT], MAX_NOTICES - 1)
        start = Scratch.NOTICES + NOTICE_WORDS * index
        scratch[start], scratch[start + 1], scratch[start + 2] = ever, nsid, notice
        scratch[Scratch.NOTICE_COUNT] = index + 1
        self._on_notice()

    def oldest(self) -> ReservationNotificationLog:
        """The log page."""
        count = self._scratch[Scratch.NOTICE_COUNT]
        if not count:
            return ReservationNotificationLog()
        start = Scratch.NOTICES
        return ReservationNotificationLog(
            lpc=self._scratch[start],
            rnlpt=self._scratch[start + 2],
            nalp=min(count - 1, 255),
            nsid=self._scratch[start + 1],
        )

    def remove_oldest(self) -> None:
        """The guest has read it; the next one is worth an event, too."""
        count = self._scratch[Scratch.NOTICE_COUNT]
        if not count:
            return
        start = Scratch.NOTICES
        for word in range(start, start + NOTICE_WORDS * (count - 1)):
            self._scratch[word] = self._scratch[word + NOTICE_WORDS]
        self._scratch[Scratch.NOTICE_COUNT] = count - 1

    def deliver(self) -> None:
        """Tell again, if there is any left."""
        if self._scratch[Scratch.NOTICE_COUNT]:
            self._on_notice()
