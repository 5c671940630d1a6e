"""Replaces ``psycopg_pool`` with poolkit: same arguments, same methods, same errors.

::

    from poolkit_adapters.psycopg import PoolkitConnectionPool as ConnectionPool
    from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool as AsyncConnectionPool

====================================  =================================
class                                 replaces
====================================  =================================
``PoolkitConnectionPool``             ``psycopg_pool.ConnectionPool``
``AsyncPoolkitConnectionPool``        ``psycopg_pool.AsyncConnectionPool``
``PoolkitNullConnectionPool``         ``psycopg_pool.NullConnectionPool``
``AsyncPoolkitNullConnectionPool``    ``psycopg_pool.AsyncNullConnectionPool``
====================================  =================================

Each is a subclass of the class that it replaces, for ``isinstance`` and type checkers. The interface follows
psycopg_pool 3.3 (https://www.psycopg.org/psycopg3/docs/api/pool.html). ``docs/adapters/psycopg.md`` lists the
differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import missing_extra

try:
    import psycopg
    import psycopg_pool
except ImportError as error:
    raise missing_extra("poolkit_adapters.psycopg", "psycopg and psycopg_pool", "psycopg") from error


from ._async import AsyncPoolkitConnectionPool
from ._async_null import AsyncPoolkitNullConnectionPool
from ._errors import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    InvalidConninfo,
    LeaseCut,
    LeaseOverdue,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
)
from ._null import PoolkitNullConnectionPool
from ._sync import PoolkitConnectionPool

if TYPE_CHECKING:
    from ._cluster import AsyncPoolkitCluster, NoServerAvailable, PoolkitCluster, role_of, role_of_async

# The former names; two of them are psycopg_pool's.
ForeignConnection = NotLeased
PoolTimeout = AcquireTimeout
TooManyRequests = PoolBusy


def __getattr__(name: str) -> Any:
    """Import the names for several servers on first use: most programs have one server and need none of them."""
    if name in ("AsyncPoolkitCluster", "NoServerAvailable", "PoolkitCluster", "role_of", "role_of_async"):
        from . import _cluster

        return getattr(_cluster, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = (
    "AsyncPoolkitCluster",
    "AsyncPoolkitConnectionPool",
    "AsyncPoolkitNullConnectionPool",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "NotLeased",
    "InvalidConninfo",
    "LeaseCut",
    "LeaseOverdue",
    "NoServerAvailable",
    "PoolClosed",
    "PoolSuspended",
    "AcquireTimeout",
    "PoolkitCluster",
    "PoolkitConnectionPool",
    "PoolkitNullConnectionPool",
    "ServerUnavailable",
    "PoolBusy",
    "UsageError",
    "WrongLoop",
    "role_of",
    "role_of_async",
)

del psycopg, psycopg_pool
