"""Who owns which word of the state's ``scratch`` (2048 words of 32 bits) and ``lifetime`` areas.

The words outlive the process, so a word never changes its meaning: new ones are added. The words of
``scratch`` are 0 again for the next client, those of ``lifetime`` (2048 words of 64 bits) are kept.
"""

from __future__ import annotations

import enum


class Scratch(enum.IntEnum):
    """Index of a word, or of the first of several."""

    MAGIC = 0
    """:data:`STATE_MAGIC` once the state is that of a controller; 0 in fresh memory."""
    LIFE_CYCLE = 1
    """:class:`nvme_mdev.controller.transitions.State`."""
    DMA_BLOCKED = 2
    """Not 0: PCI took the right to access guest memory away (bus master off, D3hot)."""
    PAUSED = 4
    """Not 0: the host has paused the controller."""
    CC_SEEN = 5
    """CC as far as its changes have moved the life cycle: behind the register if we were killed."""
    SHADOW_DOORBELL = 6
    """Not 0: Doorbell Buffer Config is offered until the next reset, whatever the setting says."""
    USED = 7
    """Not 0: enabled, and not shut down since."""
    POWERED = 10
    """Not 0: enabled since the client came."""
    EVENTS_MASKED = 8
    """Bit n: asynchronous events of type n wait for their log page to be read."""
    EVENT_COUNT = 9
    """Events that no request has been completed with yet."""
    EVENTS = 16
    """Those events, oldest first, as dword 0 of their completion: :data:`MAX_EVENTS` words."""
    ERROR_RECOVERY = 256
    """Error Recovery feature, which is per namespace: a word for each of :data:`.places.PLACES`."""
    NOTICE_MASK = 768
    """Reservation Notification Mask, likewise."""
    NOTICE_COUNT = 1280
    """Reservation notifications that wait to be read."""
    NOTICES_EVER = 1281
    """How many there have been since the reset, modulo 2**32: the newest one's Log Page Count."""
    NOTICES = 1282
    """Those that wait, the oldest first, :data:`NOTICE_WORDS` each: Log Page Count; NSID;
    :class:`ReservationNotice`. :data:`MAX_NOTICES` of them."""


class Lifetime(enum.IntEnum):
    """Index of a word of ``lifetime``, or of the first of several."""

    POWER_CYCLES = 0
    """Clients that the controller has had; the one that is there included."""
    UNSAFE_SHUTDOWNS = 1
    """Clients that left without a shutdown."""
    POWERED_MS = 2
    BUSY_MS = 3
    """Milliseconds with I/O in flight."""
    WARM_MS = 4
    """Milliseconds at or above WCTEMP, and below CCTEMP."""
    HOT_MS = 5
    """Milliseconds at or above CCTEMP."""
    TEMPERATURE = 6
    """Kelvin, as the medium told it last; 0 where it tells none."""
    WARNINGS = 7
    """:class:`CriticalWarning`, but for the temperature, which is compared anew each time."""
    SANITIZE_STATE = 16
    """:class:`SanitizeState`, and the overwrite passes that are done above it, as in SSTAT."""
    SANITIZE_CDW10 = 17
    SANITIZE_PATTERN = 18
    SANITIZE_DONE = 19
    """Bytes of the namespace in turn that are done, all passes together."""
    SANITIZE_TOTAL = 20
    """Bytes of the whole operation."""
    SANITIZE_BEFORE = 21
    """Bytes of the namespaces that are done."""
    SANITIZE_ERASED = 22
    """Write commands at the end of the last that succeeded, and 1; 0: there was none, or a
    namespace has come since."""
    SANITIZE_NSIDS = 24
    """Bit by place (:mod:`.places`): to be sanitized yet; 8 words."""
    SELF_TEST = 32
    """:class:`SelfTestCode` of what runs."""
    SELF_TEST_NSID = 33
    SELF_TEST_DONE = 34
    """Pieces that are read."""
    SELF_TEST_COUNT = 35
    """Results so far, of which the last 20 are kept."""
    SELF_TEST_RESULTS = 64
    """A :class:`SelfTestEntry` in 4 words each; result n is at n modulo 20."""
    DRIVE_SMART = 160
    """The SMART log of the drives below, as they told it last, 64 words; zero: there are none."""
    SAVED_FEATURES = 256
    """Features that the guest has saved: word FID from here, the value and :data:`SAVED`."""
    FORMAT = 768
    """A format in progress (:mod:`.erasing`), 0: none: a word for each of
    :data:`.places.PLACES`."""
    BLOCK_SIZE = 1280
    """Bytes, where the guest has formatted the namespace, else 0: likewise."""
    HIGH_NSIDS = 1792
    """Of the controller's :class:`.places.Places`: :data:`.places.HIGH_PLACES` words, the last."""


SAVED = 1 << 32
"""Above a feature's value: it was saved, and is not just 0."""


STATE_MAGIC = 0x3156_4E44
"""Of :attr:`Scratch.MAGIC`."""

MAX_EVENTS = 16
"""Events that can wait; different ones, so that there is room for each that we raise."""

MAX_NOTICES = 32
"""Reservation notifications that can wait; arbitrary."""

NOTICE_WORDS = 3

SCRATCH_END = Scratch.NOTICES + NOTICE_WORDS * MAX_NOTICES
"""The first word that nobody owns."""
