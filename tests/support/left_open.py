"""No test leaves an open pool behind: another test's dashboard, metrics and alerts would show it."""

from __future__ import annotations

import gc
import os
import time
import weakref
from typing import Any

from poolkit._registry import live_pools, watch_pools

__all__ = ("LeftOpen",)


class LeftOpen:
    """Records which test created each pool, and finds pools that are open after the tests of a module."""

    def __init__(self) -> None:
        self._makers: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._reported: weakref.WeakSet[Any] = weakref.WeakSet()  # reported once, for its module
        watch_pools(self._made)

    def _made(self, pool: Any) -> None:
        self._makers[pool] = os.environ.get("PYTEST_CURRENT_TEST", "an import").partition(" ")[0]

    def check(self) -> None:
        """Raise AssertionError if a pool is still open and referenced."""
        for _ in range(50):
            if not live_pools():
                return
            gc.collect()  # a dropped pool in a cycle of references
            if not live_pools():
                return
            time.sleep(0.1)  # a thread in the background may refer to a dropped pool for the length of one step
        left = [pool for pool in live_pools() if pool not in self._reported]
        self._reported.update(left)
        lines = [f"{pool!r} of {self._makers.get(pool)}" for pool in left]
        assert not left, "open pools are left behind: " + "; ".join(lines)
