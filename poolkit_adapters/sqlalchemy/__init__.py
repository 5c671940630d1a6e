"""poolkit for SQLAlchemy: ``create_engine(url, poolclass=PoolkitPool)``, and nothing else changes.

====================  ==========================  =====================
class                 replaces                    used with
====================  ==========================  =====================
PoolkitPool           ``QueuePool``               ``create_engine``
AsyncPoolkitPool      ``AsyncAdaptedQueuePool``   ``create_async_engine``
====================  ==========================  =====================

Both take every argument of the class that they replace, and every setting of :class:`poolkit.PoolConfig`:
``create_engine(url, poolclass=PoolkitPool, pool_size=10, idle_timeout=300, max_lifetime=1800)``.
"""

from typing import TYPE_CHECKING, Any

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401 - imported to test that the extra is installed
except ImportError as error:
    from poolkit_adapters._errors import missing_extra

    raise missing_extra("poolkit_adapters.sqlalchemy", "SQLAlchemy", "sqlalchemy") from error

from ._async import AsyncPoolkitPool
from ._errors import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    LeaseOverdue,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
)
from ._pool import PoolkitPool
from ._typed import pool_of

if TYPE_CHECKING:
    from ._cluster import AsyncPoolkitCluster, NoServerAvailable, PoolkitCluster, role_of, role_of_async

# The former names.
PoolCircuitOpen = CircuitOpen
PoolConnectFailed = ConnectFailed
PoolConnectTimeout = ConnectTimeout
PoolLeaseOverdue = LeaseOverdue
PoolNotLeased = NotLeased
PoolServerUnavailable = ServerUnavailable
PoolTimeout = AcquireTimeout
PoolUsageError = UsageError
PoolWrongLoop = WrongLoop


def __getattr__(name: str) -> Any:
    """Import the names for several servers on first use: most programs have one server and need none of them."""
    if name in ("AsyncPoolkitCluster", "NoServerAvailable", "PoolkitCluster", "role_of", "role_of_async"):
        from . import _cluster

        return getattr(_cluster, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = (
    "AsyncPoolkitCluster",
    "AsyncPoolkitPool",
    "NoServerAvailable",
    "PoolBusy",
    "CircuitOpen",
    "PoolClosed",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseOverdue",
    "NotLeased",
    "ServerUnavailable",
    "PoolSuspended",
    "AcquireTimeout",
    "UsageError",
    "WrongLoop",
    "PoolkitCluster",
    "PoolkitPool",
    "pool_of",
    "role_of",
    "role_of_async",
)
