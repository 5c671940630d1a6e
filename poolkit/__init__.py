"""poolkit: one connection pool engine for every Python driver.

>>> from poolkit import Pool, PoolConfig, Connector
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from ._deadline import deadline
from ._dump import dump, dump_on_signal
from ._priority import priority
from ._registry import live_pools as pools
from ._threads import Lease, Pool
from .budget import Budget, BudgetShare, BudgetStats
from .config import (
    AutoscaleConfig,
    BackoffConfig,
    BreakerConfig,
    ClassConfig,
    OverloadConfig,
    PoolConfig,
    PoolConfigWarning,
    PoolSettings,
)
from .connector import AsyncConnector, Connector, Verdict
from .errors import (
    AcquireTimeout,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    LeaseOverdue,
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
from .policies.diagnose import Cause, Diagnosis
from .settings import Setting, load
from .sizing import Advice, SizeEstimate
from .sizing import estimate as estimate_size
from .stats import ClassStats, Histogram, LaneStats, PoolStats, WindowStats

__all__ = (
    "AcquireTimeout",
    "Advice",
    "AsyncConnector",
    "AsyncLease",
    "AsyncPool",
    "AutoscaleConfig",
    "BackoffConfig",
    "BreakerConfig",
    "Budget",
    "BudgetShare",
    "BudgetStats",
    "Cause",
    "CircuitOpen",
    "ClassConfig",
    "ClassStats",
    "CloseReason",
    "ConfigError",
    "ConnectFailed",
    "ConnectTimeout",
    "Connector",
    "Diagnosis",
    "Event",
    "EventKind",
    "FailReason",
    "Histogram",
    "LaneStats",
    "Lease",
    "LeaseOverdue",
    "MissingExtra",
    "NotLeased",
    "OverloadConfig",
    "Pool",
    "PoolBusy",
    "PoolClosed",
    "PoolConfig",
    "PoolConfigWarning",
    "PoolError",
    "PoolSettings",
    "PoolStats",
    "PoolSuspended",
    "ServerUnavailable",
    "Setting",
    "SizeEstimate",
    "UsageError",
    "Verdict",
    "WindowStats",
    "WrongLoop",
    "__version__",
    "deadline",
    "dump",
    "dump_on_signal",
    "estimate_size",
    "load",
    "pools",
    "priority",
)

__version__ = "0.2.0"

if _TYPE_CHECKING:
    from ._async import AsyncLease, AsyncPool


def __getattr__(name: str) -> object:
    if name in ("AsyncLease", "AsyncPool"):  # imported on first use, because they import asyncio
        from . import _async

        found = globals()[name] = getattr(_async, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
