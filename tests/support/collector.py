"""The garbage collector, kept out of what a test looks at."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ("without_collector",)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """No collection in the block. What is dropped goes at once or not at all, so a circle of references is noticed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
