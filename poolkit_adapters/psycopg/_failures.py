"""The errors that a pool raises in its callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import poolkit
from poolkit import PoolError, PoolStats
from poolkit.errors import said, shown

from ._errors import ERRORS, AcquireTimeout, NotLeased, PoolClosed, ServerUnavailable

if TYPE_CHECKING:
    from ._shared import PoolBase

__all__ = ("failed", "foreign", "is_ready", "not_connectable", "not_opened", "not_ready", "refused", "stats_of")


def refused(pool: PoolBase[Any]) -> PoolClosed:
    """Return the error for a caller of a pool that is not open."""
    state = "already closed" if pool._opened else "not open yet"
    return PoolClosed(f"the pool {pool.name!r} is {state}")


def failed(pool: PoolBase[Any], error: PoolError) -> PoolError:
    """Count a failed getconn, and return the error to raise."""
    if isinstance(error, poolkit.PoolClosed) and "while this caller waited" not in str(error):
        return refused(pool)
    pool._counters.add("requests_errors")
    return ERRORS.adapted(error)


def not_opened(pool: PoolBase[Any], error: BaseException) -> BaseException:
    """Count a failed connect of a null pool, which connects in its caller, and return the error to raise."""
    pool._counters.add("requests_errors")
    return ERRORS.joined(poolkit.ConnectFailed, error) if isinstance(error, Exception) else error


def foreign(pool: PoolBase[Any], connection: Any) -> NotLeased:
    """Return the error for a connection that is not leased from this pool."""
    other = getattr(connection, "_pool", None)
    origin = f"it belongs to pool {other.name!r}" if other else "it is not leased from any pool"
    return NotLeased(f"cannot return connection to pool {pool.name!r}, {origin}: {shown(repr(connection))}")


def not_ready(
    pool: PoolBase[Any], timeout: float, stats: PoolStats, error: BaseException | None
) -> AcquireTimeout | ServerUnavailable:
    """Return the error of a ``wait()`` that has found fewer than ``min_size`` connections after ``timeout`` seconds."""
    have = stats.size - stats.connecting - stats.closing
    text = f"pool {pool.name!r} is not ready after {timeout:g} s: {have} of {stats.min_size} connections are open"
    kind = ServerUnavailable if error is not None and not have else AcquireTimeout
    failure = kind(f"{text}; last connect error: {stats.last_connect_error or 'none'}")
    failure.__cause__ = error
    return failure


def not_connectable(pool: PoolBase[Any], timeout: float, error: BaseException) -> ServerUnavailable:
    """Return the error of a null pool's ``wait()`` whose connects have failed for ``timeout`` seconds."""
    failure = ServerUnavailable(f"pool {pool.name!r} could not connect within {timeout:g} s: {said(error, 1000)}")
    failure.__cause__ = error.__cause__
    return failure


def stats_of(pool: Any) -> PoolStats:
    """Return the state of a pool that is open. Raises PoolClosed."""
    if pool._engine.closed:
        raise PoolClosed(f"the pool {pool.name!r} was closed")
    stats: PoolStats = pool._engine.stats()
    return stats


def is_ready(stats: PoolStats) -> bool:
    """Return whether ``min_size`` connections are open."""
    return stats.size - stats.connecting - stats.closing >= stats.min_size
