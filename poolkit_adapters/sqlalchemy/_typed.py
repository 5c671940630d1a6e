"""Access, with its type, to poolkit's engine in an engine of SQLAlchemy."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from poolkit import Pool, UsageError

__all__ = ("pool_of",)


def pool_of(engine: Engine | AsyncEngine) -> Pool[Any]:
    """Return ``engine.pool.poolkit`` with its type, which type checkers do not know of ``engine.pool``.

    Raises :class:`~poolkit.UsageError` if the engine has another pool. Thread-safe.
    """
    found = getattr(engine.pool, "poolkit", None)
    if not isinstance(found, Pool):
        raise UsageError(
            f"{engine!r} has a {type(engine.pool).__name__}: create it with poolclass=PoolkitPool, or AsyncPoolkitPool"
        )
    return found
