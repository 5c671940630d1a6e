"""pytest plugin: other pools in the place of psycopg_pool's."""

from __future__ import annotations

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
            conf_swap.swap(role, stock, candidate, "getconn", LIBRARY, mine=(*mine, *subclasses), rebasing=False)


main()
