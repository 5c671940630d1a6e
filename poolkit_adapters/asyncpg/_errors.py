"""The adapter's error classes, which inherit from poolkit's and asyncpg's, and the meaning of the server's errors."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

import poolkit
from poolkit import PoolError, Verdict
from poolkit.connector import default_classify

from .._errors import BAD_SETTING, MISSING, Row, Table

__all__ = (
    "ERRORS",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "NotLeased",
    "LeaseOverdue",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "AcquireTimeout",
    "ReadOnlyServer",
    "ServerUnavailable",
    "UsageError",
    "WrongLoop",
    "classify",
    "told",
)


class _Interface(asyncpg.InterfaceError):  # type: ignore[misc]  # asyncpg has no types
    """Calls asyncpg's constructor with the message alone, so that each class can be made from poolkit's arguments."""

    def __init__(self, *args: Any) -> None:
        asyncpg.InterfaceError.__init__(self, args[0] if args else "")
        self.args = args


class AcquireTimeout(poolkit.AcquireTimeout, asyncio.TimeoutError):
    """The caller's time is up: no connection became free, or the application's ``setup`` did not end in time."""


class ServerUnavailable(poolkit.ServerUnavailable, asyncio.TimeoutError):
    """The time was up while no connection could be opened. ``__cause__`` is the server's or network's error."""


class ConnectFailed(poolkit.ConnectFailed, ConnectionError):
    """A connection could not be opened. Mostly an error of asyncpg's own class that is also poolkit's."""


class ConnectTimeout(poolkit.ConnectTimeout, asyncio.TimeoutError):
    """One attempt to connect took longer than ``connect_timeout`` seconds (asyncpg's ``timeout``)."""


class CircuitOpen(poolkit.CircuitOpen, ConnectionError):
    """The circuit breaker is open."""


class PoolBusy(_Interface, poolkit.PoolBusy):
    """``max_waiting`` callers are already waiting."""


class PoolSuspended(_Interface, poolkit.PoolSuspended):
    """The engine was suspended with ``fail_fast=True``."""


class PoolClosed(_Interface, poolkit.PoolClosed):
    """The pool is closed or closing."""


class UsageError(_Interface, poolkit.UsageError):
    """A call that is wrong in this situation. The pool is not affected."""


class WrongLoop(_Interface, poolkit.WrongLoop):
    """The pool was used from another event loop than the one that it belongs to."""


class NotLeased(_Interface, poolkit.NotLeased):
    """``release`` was called with something that is not a connection of this pool."""


class LeaseOverdue(_Interface, poolkit.LeaseOverdue):
    """The connection that was just given back had been in use longer than ``leak_after`` (``on_leak="raise"``)."""


_I = asyncpg.InterfaceError
ERRORS = Table(
    Row("no connection became free within `acquire(timeout=)` or `acquire_timeout`: the pool is exhausted",
        AcquireTimeout, (poolkit.AcquireTimeout, asyncio.TimeoutError)),
    Row("the same time was up while no connection could be opened; `__cause__` has the reason", ServerUnavailable,
        (poolkit.ServerUnavailable, asyncio.TimeoutError)),
    Row("a connect fails. The error keeps asyncpg's own class (`ConnectionRefusedError`, `InvalidPasswordError` ...) "
        "and is also a `poolkit.ConnectFailed`; this class if the operating system refused", ConnectFailed,
        (poolkit.ConnectFailed, ConnectionError)),
    Row("one attempt to connect took longer than asyncpg's `timeout` or `connect_timeout`", ConnectTimeout,
        (poolkit.ConnectTimeout, asyncio.TimeoutError)),
    Row("the circuit breaker is open", CircuitOpen, (poolkit.CircuitOpen, ConnectionError)),
    Row("`max_waiting` callers are already waiting", PoolBusy, (poolkit.PoolBusy, _I)),
    Row("the pool is suspended with `fail_fast=True`", PoolSuspended, (poolkit.PoolSuspended, _I)),
    Row("the pool is closed or closing", PoolClosed, (poolkit.PoolClosed, _I)),
    Row("`release` of something that is not a connection of this pool", NotLeased, (poolkit.NotLeased, _I)),
    Row("a connection was returned later than `leak_after`, with `on_leak=\"raise\"`", LeaseOverdue,
        (poolkit.LeaseOverdue, _I)),
    Row("the pool is used from a second event loop", WrongLoop, (poolkit.WrongLoop, _I)),
    Row("any other wrong call (the pool is not initialized, no event loop is running)", UsageError,
        (poolkit.UsageError, _I)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""


def told(error: PoolError) -> BaseException:
    """Return the error that a caller gets for one of the engine: after a failed connect, the driver's own error."""
    cause = error.__cause__
    direct = isinstance(error, poolkit.ConnectFailed) and not isinstance(
        error, (poolkit.CircuitOpen, poolkit.ServerUnavailable)
    )
    if not direct or cause is None or isinstance(cause, (PoolError, asyncio.TimeoutError, TimeoutError)):
        if direct and isinstance(cause, (asyncio.TimeoutError, TimeoutError)):  # asyncpg's has no message
            late = ConnectTimeout(*error.args)
            late.__cause__ = cause
            return late
        return ERRORS.adapted(error)
    return ERRORS.joined(poolkit.ConnectFailed, cause)


_FATAL = ("28", "3D000")
_LOST = ("08", "57P01", "57P02", "57P03", "57P05")


def classify(error: BaseException) -> Verdict:
    """Return what an error of asyncpg means (codes: PostgreSQL documentation, appendix A)."""
    if isinstance(error, ReadOnlyServer):
        return Verdict.RETIRE
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state.startswith(_FATAL):
            return Verdict.FATAL
        return Verdict.SUSPECT if state.startswith(_LOST) else Verdict.KEEP
    if isinstance(error, (asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return Verdict.KEEP
    return default_classify(error)


class ReadOnlyServer(Exception):  # never raised: it tells the engine why a connection is returned
    """The server of the connection refuses writes: after a failover it is the wrong server."""
