"""Importing much of the program at once."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def loading() -> Iterator[None]:
    """Import something meanwhile, without the garbage collector.

    Nothing that is loaded becomes garbage. So the collector does not look for any meanwhile, which
    takes a twentieth of the time, nor ever again: the event loop would wait for it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
