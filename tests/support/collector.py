"""Switches the garbage collector off while a test looks for reference cycles."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ("without_collector",)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Run no collection in the block: a dropped object is freed at once or not at all, which shows reference cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
