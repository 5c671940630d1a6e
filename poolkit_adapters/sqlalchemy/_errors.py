"""Error classes that inherit from both poolkit's and SQLAlchemy's, so that ``except`` clauses keep working."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.default import DefaultDialect

from poolkit import errors

from .._errors import BAD_SETTING, MISSING, Row, Table, both, of_connect

__all__ = (
    "ERRORS",
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
    "connect_error",
    "join_wrapped",
    "lease_cut",
    "overdue",
    "translated",
)

_EXHAUSTED = "3o7r"  # SQLAlchemy's page about an exhausted pool, which its message links to


class _Exhausted(exc.TimeoutError):
    code = _EXHAUSTED

    def __init__(self, message: str) -> None:
        super().__init__(message)


class AcquireTimeout(_Exhausted, errors.AcquireTimeout):
    """No connection became free within ``pool_timeout`` seconds. Also a :class:`sqlalchemy.exc.TimeoutError` (3o7r)."""


class ServerUnavailable(_Exhausted, errors.ServerUnavailable):
    """``pool_timeout`` expired while no connection could be opened. Also a :class:`sqlalchemy.exc.TimeoutError`."""


class PoolBusy(_Exhausted, errors.PoolBusy):
    """``max_waiting`` callers are already waiting. Also a :class:`sqlalchemy.exc.TimeoutError`."""


class PoolSuspended(_Exhausted, errors.PoolSuspended):
    """The pool is suspended with ``fail_fast=True``. Also a :class:`sqlalchemy.exc.TimeoutError`."""


class PoolClosed(exc.InvalidRequestError, errors.PoolClosed):
    """The engine of the pool was closed. Also a :class:`sqlalchemy.exc.InvalidRequestError`."""


class _Failed(exc.OperationalError):
    """An error of a connect. ``orig`` is the driver's error."""

    def __init__(self, message: str, orig: BaseException | None = None, retry_after: float = 0.0) -> None:
        super().__init__(None, None, orig or ConnectionError(message))
        self.args = (message,)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.orig), self.__dict__


class ConnectFailed(_Failed, errors.ConnectFailed):
    """A connection could not be opened. Also a :class:`sqlalchemy.exc.OperationalError`, as in SQLAlchemy."""


class ConnectTimeout(_Failed, errors.ConnectTimeout):
    """Opening a connection took too long. Also a :class:`sqlalchemy.exc.OperationalError`, as in SQLAlchemy."""


class CircuitOpen(_Failed, errors.CircuitOpen):
    """The circuit breaker is open. Also a :class:`sqlalchemy.exc.OperationalError`, as a failed connect is.

    ``orig`` is the last error of the driver. ``retry_after`` is the number of seconds until the next attempt.
    """


class UsageError(exc.InvalidRequestError, errors.UsageError):
    """A call that is wrong in this situation. Also a :class:`sqlalchemy.exc.InvalidRequestError`."""


class WrongLoop(exc.InvalidRequestError, errors.WrongLoop):
    """An asynchronous cluster was used from another event loop. Also an ``InvalidRequestError``."""


class LeaseOverdue(exc.InvalidRequestError, errors.LeaseOverdue):
    """The connection that was just returned was in use for longer than ``leak_after`` (``on_leak="raise"``).

    Also an ``InvalidRequestError``.
    """


class NotLeased(exc.InvalidRequestError, errors.NotLeased):
    """The connection is another process's, or is not leased from this cluster. Also an ``InvalidRequestError``."""


ERRORS = Table(
    Row("no connection became free within `pool_timeout`; the message starts as QueuePool's and adds the longest "
        "lease and its holder", AcquireTimeout, (errors.AcquireTimeout, exc.TimeoutError)),
    Row("`pool_timeout` expired while no connection could be opened", ServerUnavailable,
        (errors.ServerUnavailable, exc.TimeoutError)),
    Row("`max_waiting` callers are already waiting", PoolBusy, (errors.PoolBusy, exc.TimeoutError)),
    Row("the pool is suspended with `fail_fast=True`", PoolSuspended, (errors.PoolSuspended, exc.TimeoutError)),
    Row("`poolkit.close()` or `drain()` was called", PoolClosed, (errors.PoolClosed, exc.InvalidRequestError)),
    Row("a connect fails. `orig` is the driver's error, which keeps its class and is also a `poolkit.ConnectFailed`. "
        "So is an error that SQLAlchemy does not wrap (`raw_connection()`, an `OSError` under asyncpg, one of a "
        "`creator`)",
        ConnectFailed, (errors.ConnectFailed, exc.OperationalError)),
    Row("a connect takes too long, if the driver has a type for that", ConnectTimeout,
        (errors.ConnectTimeout, exc.OperationalError)),
    Row("the circuit breaker is open; `orig` is the driver's last error", CircuitOpen,
        (errors.CircuitOpen, exc.OperationalError)),
    Row("a connection is used that was checked out before `fork()`; `release()` of one that is not leased from a "
        "cluster", NotLeased, (errors.NotLeased, exc.InvalidRequestError)),
    Row("a statement or a commit on a connection that the pool closed during its lease (`on_leak=\"reclaim\"`, a fleet "
        "budget that lost its permits, the end of a drain, a rollback without a reply); `orig` is the driver's "
        "`OperationalError`",
        exc.OperationalError, (errors.NotLeased, exc.OperationalError)),
    Row("a connection was returned later than `leak_after`, with `on_leak=\"raise\"`", LeaseOverdue,
        (errors.LeaseOverdue, exc.InvalidRequestError)),
    Row("an asynchronous cluster is used from a second event loop (a pool serves every loop)", WrongLoop,
        (errors.WrongLoop, exc.InvalidRequestError)),
    Row("any other wrong call", UsageError, (errors.UsageError, exc.InvalidRequestError)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""


def reported(error: errors.PoolError, prefix: str) -> BaseException:
    """Return SQLAlchemy's error for what the engine reports to a caller of one pool (see :func:`translated`).

    For a failed connect: a copy of what the connect has raised, which has the driver's class (:func:`connect_error`).
    """
    told = of_connect(error) or error
    return translated(told, prefix) if isinstance(told, errors.PoolError) else told


def translated(error: errors.PoolError, prefix: str, table: Table = ERRORS) -> errors.PoolError:
    """Return an error of the engine with SQLAlchemy's type added. ``prefix`` starts the message of a timeout."""
    adapted = table.adapted(error)
    if adapted is error:
        return adapted
    if isinstance(adapted, errors.AcquireTimeout):
        adapted.args = (prefix + str(error),)
    elif isinstance(adapted, _Failed):
        adapted.orig = error.__cause__ or adapted.orig  # type: ignore[assignment]
    adapted.__suppress_context__ = adapted.__cause__ is not None  # the same as "raise adapted from its cause"
    return adapted


def connect_error(error: Exception) -> BaseException:
    """Return the error of a connect with poolkit's class added to its own."""
    late = isinstance(error, (TimeoutError, asyncio.TimeoutError)) or type(error).__name__ == "ConnectionTimeout"
    return both(errors.ConnectTimeout if late else errors.ConnectFailed, error)


def overdue(dialect: Any, seconds: float | None) -> BaseException:
    """Return the error of a connect that exceeded its limit. It has the driver's class, which callers catch."""
    kind: Any = getattr(getattr(dialect, "dbapi", None), "OperationalError", TimeoutError)
    limit = "its time" if seconds is None else f"{round(seconds, 2) or seconds:g} s"
    return both(errors.ConnectTimeout, kind(f"no connection in {limit} (connect_timeout)"))


def lease_cut(driver_errors: Any, text: str) -> BaseException:
    """Return the error for using a connection that its pool has closed. ``driver_errors``: the driver's module."""
    kind = getattr(driver_errors, "OperationalError", None)
    return NotLeased(text) if kind is None else both(errors.NotLeased, kind(text))


LATE_ROLLBACK = "Connection %r: no reply to the rollback within %g s, closing the connection"
"""A log message, with the connection and the limit."""


def rollback_cut(dialect: Any, pool: str, limit: float) -> BaseException:
    """Return the error of a rollback whose reply arrived just when its connection was shut down."""
    text = f"pool {pool!r}: no reply to the rollback within {limit:g} s, so the connection was closed"
    return lease_cut(getattr(dialect, "loaded_dbapi", None), text)


def join_wrapped(dialect: Any) -> None:
    """Add poolkit's type to SQLAlchemy's error that wraps an error with poolkit's type."""
    if isinstance(dialect, DefaultDialect):  # a pool created by hand has another dialect, without events
        event.listen(dialect, "handle_error", _join)


def _join(context: ExceptionContext) -> BaseException | None:
    error, wrapped = context.original_exception, context.sqlalchemy_exception
    if not isinstance(error, errors.PoolError) or wrapped is None:
        return None
    if isinstance(error, errors.NotLeased):
        context.invalidate_pool_on_disconnect = False  # the pool closed it itself: the other ones are fine
    if getattr(context, "chained_exception", None) is not None:  # the user's handler replaced it
        return None
    kinds = (errors.ConnectTimeout, errors.ConnectFailed, errors.NotLeased)
    kind = next((kind for kind in kinds if isinstance(error, kind)), None)
    return None if kind is None else ERRORS.joined(kind, wrapped)
