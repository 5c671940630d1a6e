"""Errors that are both poolkit's and SQLAlchemy's, so that existing ``except`` clauses keep working."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import event, exc
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.default import DefaultDialect

from poolkit import errors

from .._errors import BAD_SETTING, MISSING, Row, Table, both

__all__ = (
    "ERRORS",
    "PoolBusy",
    "PoolCircuitOpen",
    "PoolClosed",
    "PoolConnectFailed",
    "PoolConnectTimeout",
    "PoolLeaseOverdue",
    "PoolNotLeased",
    "PoolServerUnavailable",
    "PoolSuspended",
    "PoolTimeout",
    "PoolUsageError",
    "PoolWrongLoop",
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


class PoolTimeout(_Exhausted, errors.AcquireTimeout):
    """No connection within ``pool_timeout``: also a :class:`sqlalchemy.exc.TimeoutError`, code 3o7r."""


class PoolServerUnavailable(_Exhausted, errors.ServerUnavailable):
    """As :class:`PoolTimeout`, where the reason is that no connection can be opened at all."""


class PoolBusy(_Exhausted, errors.PoolBusy):
    """``max_waiting`` callers wait already: also a :class:`sqlalchemy.exc.TimeoutError`."""


class PoolSuspended(_Exhausted, errors.PoolSuspended):
    """Suspended with ``fail_fast=True``: also a :class:`sqlalchemy.exc.TimeoutError`."""


class PoolClosed(exc.InvalidRequestError, errors.PoolClosed):
    """The engine below the pool was closed: also a :class:`sqlalchemy.exc.InvalidRequestError`."""


class _Failed(exc.OperationalError):
    """``orig`` is the driver's error."""

    def __init__(self, message: str, orig: BaseException | None = None, retry_after: float = 0.0) -> None:
        super().__init__(None, None, orig or ConnectionError(message))
        self.args = (message,)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.orig), self.__dict__


class PoolConnectFailed(_Failed, errors.ConnectFailed):
    """A connection could not be opened: also a :class:`sqlalchemy.exc.OperationalError`, as ever."""


class PoolConnectTimeout(_Failed, errors.ConnectTimeout):
    """Opening a connection took too long: also a :class:`sqlalchemy.exc.OperationalError`, as ever."""


class PoolCircuitOpen(_Failed, errors.CircuitOpen):
    """The breaker is open: also a :class:`sqlalchemy.exc.OperationalError`, as a failed connect is.

    ``orig`` is the last error of the driver, ``retry_after`` the seconds until the next try.
    """


class PoolUsageError(exc.InvalidRequestError, errors.UsageError):
    """A call that is wrong at this place: also a :class:`sqlalchemy.exc.InvalidRequestError`."""


class PoolWrongLoop(exc.InvalidRequestError, errors.WrongLoop):
    """An asynchronous cluster was used from another event loop: also an ``InvalidRequestError``."""


class PoolLeaseOverdue(exc.InvalidRequestError, errors.LeaseOverdue):
    """The connection that just came back had been out longer than ``leak_after`` (``on_leak="raise"``): also an
    ``InvalidRequestError``.
    """


class PoolNotLeased(exc.InvalidRequestError, errors.NotLeased):
    """A connection that is another process's, or is not out of this cluster: also an ``InvalidRequestError``."""


ERRORS = Table(
    Row("no connection within `pool_timeout`; the message goes on after QueuePool's words with who holds what, since "
        "when", PoolTimeout, (errors.AcquireTimeout, exc.TimeoutError)),
    Row("the same, because none can be opened", PoolServerUnavailable, (errors.ServerUnavailable, exc.TimeoutError)),
    Row("`max_waiting` callers wait already", PoolBusy, (errors.PoolBusy, exc.TimeoutError)),
    Row("suspended with `fail_fast=True`", PoolSuspended, (errors.PoolSuspended, exc.TimeoutError)),
    Row("`poolkit.close()` or `drain()` was called", PoolClosed, (errors.PoolClosed, exc.InvalidRequestError)),
    Row("a connect fails. `orig` is the driver's error, which is of its own class and `poolkit.ConnectFailed`; so is "
        "an error that SQLAlchemy does not wrap (`raw_connection()`, an `OSError` under asyncpg, one of a `creator`)",
        PoolConnectFailed, (errors.ConnectFailed, exc.OperationalError)),
    Row("a connect takes too long, where the driver says so by its type", PoolConnectTimeout,
        (errors.ConnectTimeout, exc.OperationalError)),
    Row("the breaker is open; `orig` is the driver's last error", PoolCircuitOpen,
        (errors.CircuitOpen, exc.OperationalError)),
    Row("a connection is used that was checked out before `fork()`; `release()` of one that is not out of a cluster",
        PoolNotLeased, (errors.NotLeased, exc.InvalidRequestError)),
    Row("a statement or a commit on a connection that the pool has closed under its user (`on_leak=\"reclaim\"`, a "
        "fleet budget that lost its permits, the end of a drain, a rollback without an answer); `orig` is of the "
        "driver's `OperationalError`",
        exc.OperationalError, (errors.NotLeased, exc.OperationalError)),
    Row("a connection came back after `leak_after`, with `on_leak=\"raise\"`", PoolLeaseOverdue,
        (errors.LeaseOverdue, exc.InvalidRequestError)),
    Row("an asynchronous cluster is used from a second event loop (a pool serves each)", PoolWrongLoop,
        (errors.WrongLoop, exc.InvalidRequestError)),
    Row("any other call that is wrong", PoolUsageError, (errors.UsageError, exc.InvalidRequestError)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that leaves this adapter."""


def translated(error: errors.PoolError, prefix: str, table: Table = ERRORS) -> errors.PoolError:
    """The error for SQLAlchemy's users; ``prefix`` begins the message of a timeout."""
    told = table.adapted(error)
    if told is error:
        return told
    if isinstance(told, errors.AcquireTimeout):
        told.args = (prefix + str(error),)
    elif isinstance(told, _Failed):
        told.orig = error.__cause__ or told.orig  # type: ignore[assignment]
    told.__suppress_context__ = told.__cause__ is not None  # as "raise told from its cause"
    return told


def connect_error(error: Exception) -> BaseException:
    """The error of a connect, of its own class and poolkit's."""
    late = isinstance(error, (TimeoutError, asyncio.TimeoutError)) or type(error).__name__ == "ConnectionTimeout"
    return both(errors.ConnectTimeout if late else errors.ConnectFailed, error)


def overdue(error: Exception) -> BaseException:
    """The error of a connect that has used up its time, of its own class and poolkit's."""
    return both(errors.ConnectTimeout, error)


def lease_cut(driver_errors: Any, text: str) -> BaseException:
    """For whoever uses a connection that its pool has closed, of the driver's kind (``driver_errors``: its module)."""
    kind = getattr(driver_errors, "OperationalError", None)
    return PoolNotLeased(text) if kind is None else both(errors.NotLeased, kind(text))


def join_wrapped(dialect: Any) -> None:
    """Let SQLAlchemy's error around an error that is poolkit's too be poolkit's as well."""
    if isinstance(dialect, DefaultDialect):  # a pool that was made by hand has another, without events
        event.listen(dialect, "handle_error", _join)


def _join(context: ExceptionContext) -> BaseException | None:
    error, wrapped = context.original_exception, context.sqlalchemy_exception
    if not isinstance(error, errors.PoolError) or wrapped is None:
        return None
    if isinstance(error, errors.NotLeased):
        context.invalidate_pool_on_disconnect = False  # the pool's own doing: it says nothing of the others
    if getattr(context, "chained_exception", None) is not None:  # the user's handler has another one
        return None
    kinds = (errors.ConnectTimeout, errors.ConnectFailed, errors.NotLeased)
    kind = next((kind for kind in kinds if isinstance(error, kind)), None)
    return None if kind is None else ERRORS.joined(kind, wrapped)
