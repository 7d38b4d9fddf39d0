"""Where what is kept of a namespace is: NSIDs are many, those in use few (Base 3.2.1).

Words that are kept of each namespace are arrays by *place*. An NSID up to 256 is a place of its
own, whether there is such a namespace or not. Namespaces with higher ones have one of as many more
places from when they are attached until they are gone; which NSID has which is kept with the words.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECT_PLACES = 256
"""NSIDs, from 1 on, that are their own places; `NAMESPACES` of the data path."""
HIGH_PLACES = 256
"""Namespaces above them that there can be at a time; `HIGH_NAMESPACES` of the data path."""
PLACES = DIRECT_PLACES + HIGH_PLACES
"""Words of an array by place."""


class Places:
    """NSID to place, which counts from 0."""

    def __init__(self, words: memoryview, start: int) -> None:
        """``words``: memory that outlives the process; word ``start`` is the NSID of the first high
        place, 0: nobody's, and the others follow, :data:`HIGH_PLACES` in all."""
        self._words = words
        self._start = start
        nsids = words[start : start + HIGH_PLACES].tolist()
        self._high = {nsid: DIRECT_PLACES + at for at, nsid in enumerate(nsids) if nsid}

    def __iter__(self) -> Iterator[int]:
        """The NSIDs that have a place."""
        return chain(range(1, DIRECT_PLACES + 1), list(self._high))

    def __contains__(self, nsid: int) -> bool:
        return 1 <= nsid <= DIRECT_PLACES or nsid in self._high

    def __getitem__(self, nsid: int) -> int:
        """KeyError: it has none."""
        return nsid - 1 if 1 <= nsid <= DIRECT_PLACES else self._high[nsid]

    def take(self, nsid: int) -> bool:
        """Give an NSID a place; False: it had one. ValueError: there is none left."""
        if nsid in self:
            return False
        used = set(self._high.values())
        place = next((one for one in range(DIRECT_PLACES, PLACES) if one not in used), None)
        if place is None:
            raise ValueError(f"namespace {nsid}: {HIGH_PLACES} above {DIRECT_PLACES} are possible")
        self._words[self._start + place - DIRECT_PLACES] = nsid
        self._high[nsid] = place
        return True

    def give(self, nsid: int) -> None:
        """The namespace is gone: another one can have its place, whose words are as new."""
        place = self._high.pop(nsid, None)
        if place is not None:
            self._words[self._start + place - DIRECT_PLACES] = 0
