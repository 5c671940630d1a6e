"""poolkit under SQLAlchemy: ``create_engine(url, poolclass=PoolkitPool)``, and nothing else changes.

====================  ==========================  =====================
class                 stands in for               used with
====================  ==========================  =====================
PoolkitPool           ``QueuePool``               ``create_engine``
AsyncPoolkitPool      ``AsyncAdaptedQueuePool``   ``create_async_engine``
====================  ==========================  =====================

Both take every argument of the class they stand in for, and every setting of :class:`poolkit.PoolConfig` beside
them: ``create_engine(url, poolclass=PoolkitPool, pool_size=10, idle_timeout=300, max_lifetime=1800)``.
"""

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401 - the one that tells whether the extra is installed
except ImportError as error:
    from poolkit_adapters._errors import missing_extra

    raise missing_extra("poolkit_adapters.sqlalchemy", "SQLAlchemy", "sqlalchemy") from error

from ._async import AsyncPoolkitPool
from ._errors import PoolBusy, PoolCircuitOpen, PoolClosed, PoolServerUnavailable, PoolSuspended, PoolTimeout
from ._pool import PoolkitPool

__all__ = (
    "AsyncPoolkitPool",
    "PoolBusy",
    "PoolCircuitOpen",
    "PoolClosed",
    "PoolServerUnavailable",
    "PoolSuspended",
    "PoolTimeout",
    "PoolkitPool",
)
