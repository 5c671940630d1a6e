"""pytest plugin: other pools in the place of psycopg_pool's.

Many of the suite's tests look at attributes of the stock pool to see what a user would see in the statistics: who is
idle, how many wait. Poolkit's pools get properties of these names here, and nowhere else, so that such tests judge.
"""

from __future__ import annotations

from typing import Any

import conf_swap
import psycopg_pool

LIBRARY = "psycopg_pool"
PAIRS = (
    # The null pools inherit from the others: they come first, while their bases are still untouched.
    ("null-sync", psycopg_pool.NullConnectionPool, ()),
    ("null-async", psycopg_pool.AsyncNullConnectionPool, ()),
    ("sync", psycopg_pool.ConnectionPool, (psycopg_pool.NullConnectionPool,)),
    ("async", psycopg_pool.AsyncConnectionPool, (psycopg_pool.AsyncNullConnectionPool,)),
)


def _idle(pool: Any) -> list[Any]:
    return [entry.connection.connection for entry in list(pool.poolkit._endpoint.idle)]


def _waiting(pool: Any) -> range:
    return range(pool.poolkit.stats().waiting)


def _open(pool: Any) -> int:
    stats = pool.poolkit.stats()
    return int(stats.size - stats.closing)


WINDOWS = {"_pool": _idle, "_waiting": _waiting, "_nconns": _open}


def open_windows(candidate: type) -> None:
    """Give a pool of poolkit's the stock pool's attributes that the suite reads; others have them, or hide them."""
    if hasattr(candidate, "poolkit"):
        for name, look in WINDOWS.items():
            setattr(candidate, name, property(look))


def main() -> None:
    """Swap what is asked for; stock null pools stay stock, on their stock base, unless they are swapped too."""
    classes = conf_swap.wanted()
    mine = tuple(classes.values())
    for role, stock, subclasses in PAIRS:
        candidate = classes.get(role, stock)
        # getconn() is what every way to a connection comes through in the stock pools, and public.
        if candidate is stock:
            conf_swap.counted(stock, f"{role}: {stock.__module__}.{stock.__qualname__}", "getconn", subclasses)
        else:
            open_windows(candidate)
            conf_swap.swap(role, stock, candidate, "getconn", LIBRARY, mine=(*mine, *subclasses), rebasing=False)


main()
