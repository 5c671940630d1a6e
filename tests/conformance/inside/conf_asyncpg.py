"""pytest plugin: another pool in the place of asyncpg's.

Many of the suite's tests look at the holders of the stock pool to see who is connected and who is in use. Poolkit's
pools get an attribute of that name here, and nowhere else, so that such tests judge.
"""

from __future__ import annotations

from typing import Any

import asyncpg.pool
import conf_swap

LIBRARY = "asyncpg"
GONE = ("closing", "closed")


class _View:
    """What the tests read of a holder: the connection in it, and whether it is in use."""

    _inactive_callback = None

    def __init__(self, session: Any) -> None:
        self._session = session

    @property
    def _con(self) -> Any:
        return self._session.current()

    @property
    def _in_use(self) -> Any:
        return self._session.connection is None or None

    def is_connected(self) -> bool:
        return bool(self._session.is_connected())

    def is_idle(self) -> bool:
        return bool(self._session.is_idle())

    def terminate(self) -> None:
        self._session.current().terminate()


class _Empty:
    _inactive_callback = None
    _con = None
    _in_use = None

    def is_connected(self) -> bool:
        return False

    def is_idle(self) -> bool:
        return True

    def terminate(self) -> None: ...


def _holders(pool: Any) -> list[Any]:
    slots = [
        slot
        for slot in pool.poolkit._core.slots.living()
        if slot.connection is not None and slot.state.value not in GONE
    ]
    views: list[Any] = [_View(slot.connection) for slot in slots]
    return [*views, *(_Empty() for _ in range(pool.get_max_size() - len(views)))]


class _Queue:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def qsize(self) -> int:
        stats = self._pool.poolkit.stats()
        return int(self._pool.get_max_size() - stats.in_use)


def main() -> None:
    """Swap what is asked for."""
    stock = asyncpg.pool.Pool
    candidate = conf_swap.wanted().get("async", stock)
    if candidate is stock:
        conf_swap.counted(stock, "async: asyncpg.pool.Pool", "_acquire")
        return
    if hasattr(candidate, "poolkit"):
        candidate._holders = property(_holders, lambda pool, value: None)
        candidate._queue = property(_Queue, lambda pool, value: None)
    conf_swap.swap("async", stock, candidate, "_acquire", LIBRARY, rebasing=False)


main()
