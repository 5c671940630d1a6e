"""poolkit: one connection pool engine for every Python driver.

>>> from poolkit import Pool, PoolConfig, Connector
"""

from ._async import AsyncLease, AsyncPool
from ._lifecycle import live_pools as pools
from ._threads import Lease, Pool
from .config import BackoffConfig, BreakerConfig, PoolConfig, PoolConfigWarning
from .connector import AsyncConnector, Connector, Verdict
from .errors import (
    AcquireTimeout,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    MissingExtra,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolError,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
)
from .events import CloseReason, Event, EventKind, FailReason
from .settings import Setting, load
from .stats import PoolStats

__all__ = (
    "AcquireTimeout",
    "AsyncConnector",
    "AsyncLease",
    "AsyncPool",
    "BackoffConfig",
    "BreakerConfig",
    "CircuitOpen",
    "CloseReason",
    "ConfigError",
    "ConnectFailed",
    "ConnectTimeout",
    "Connector",
    "Event",
    "EventKind",
    "FailReason",
    "Lease",
    "MissingExtra",
    "NotLeased",
    "Pool",
    "PoolBusy",
    "PoolClosed",
    "PoolConfig",
    "PoolConfigWarning",
    "PoolError",
    "PoolStats",
    "PoolSuspended",
    "ServerUnavailable",
    "Setting",
    "UsageError",
    "Verdict",
    "WrongLoop",
    "__version__",
    "load",
    "pools",
)

__version__ = "0.1.0"
