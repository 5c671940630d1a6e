"""Replaces asyncpg's pool with poolkit: same arguments, same methods, same errors.

::

    from poolkit_adapters.asyncpg import create_pool  # before: from asyncpg import create_pool

======================  =========================
name                    replaces
======================  =========================
``create_pool``         ``asyncpg.create_pool``
``PoolkitPool``         ``asyncpg.Pool``
======================  =========================

``PoolkitPool`` is a subclass of the class that it replaces, for ``isinstance`` and type checkers. The interface follows
asyncpg 0.32 (https://magicstack.github.io/asyncpg/current/api/index.html#connection-pools).
``docs/adapters/asyncpg.md`` lists the differences.
"""

from __future__ import annotations

from .._errors import missing_extra

try:
    import asyncpg
except ImportError as error:
    raise missing_extra("poolkit_adapters.asyncpg", "asyncpg", "asyncpg") from error

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
from ._pool import PoolkitPool, create_pool

# The former names.
ForeignConnection = NotLeased
PoolTimeout = AcquireTimeout

__all__ = (
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "NotLeased",
    "LeaseOverdue",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "AcquireTimeout",
    "PoolkitPool",
    "ServerUnavailable",
    "UsageError",
    "WrongLoop",
    "create_pool",
)

del asyncpg
