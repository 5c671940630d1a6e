"""The adapter's error classes, which inherit from poolkit's and urllib3's."""

from __future__ import annotations

from typing import Any

from urllib3 import exceptions

from poolkit import PoolError, errors

from .._errors import BAD_SETTING, MISSING, Row, Table

__all__ = (
    "ERRORS",
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseOverdue",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "ServerUnavailable",
    "kind_of",
    "told",
)

_HERE = ("conn", "pool")
"""Attributes of urllib3's errors that hold sockets and locks, so a copied or pickled error does not have them."""


class _Plain(Exception):
    """Makes an error from poolkit's arguments. The constructors of urllib3 require a pool or a connection."""

    conn: Any = None
    pool: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        kept = {name: value for name, value in self.__dict__.items() if name not in _HERE}
        return type(self), self.args, kept or None


class AcquireTimeout(_Plain, errors.AcquireTimeout, exceptions.EmptyPoolError):  # type: ignore[misc]
    """No connection became free within ``pool_timeout`` or ``acquire_timeout`` seconds."""


class ServerUnavailable(_Plain, errors.ServerUnavailable, exceptions.EmptyPoolError):  # type: ignore[misc]
    """No connection to the server could be opened within ``pool_timeout`` or ``acquire_timeout`` seconds."""


class PoolBusy(_Plain, errors.PoolBusy, exceptions.EmptyPoolError):  # type: ignore[misc]
    """``max_waiting`` requests are already waiting."""


class PoolSuspended(_Plain, errors.PoolSuspended, exceptions.EmptyPoolError):  # type: ignore[misc]
    """The engine was suspended with ``fail_fast=True``."""


class PoolClosed(_Plain, errors.PoolClosed, exceptions.ClosedPoolError):  # type: ignore[misc]
    """The pool is closed."""


class ConnectFailed(_Plain, errors.ConnectFailed, exceptions.NewConnectionError):  # type: ignore[misc]
    """No connection could be opened."""


class ConnectTimeout(_Plain, errors.ConnectTimeout, exceptions.ConnectTimeoutError):  # type: ignore[misc]
    """Opening a connection took longer than the connect timeout."""


class CircuitOpen(_Plain, errors.CircuitOpen, exceptions.NewConnectionError):  # type: ignore[misc]
    """The circuit breaker is open: several connects in a row failed."""


class LeaseOverdue(_Plain, errors.LeaseOverdue, exceptions.PoolError):  # type: ignore[misc]
    """The response that has just ended was open longer than ``leak_after`` (``on_leak="raise"``)."""


class MaxRetryError(_Plain, exceptions.MaxRetryError):  # type: ignore[misc]
    """urllib3's error. Keeps its text when it is copied or pickled."""

    reason: Any = None
    url: Any = None

    def __reduce__(self) -> Any:
        kind, args, kept = super().__reduce__()
        return kind, args, {**(kept or {}), "reason": _apart(self.reason)}


ERRORS = Table(
    Row("no connection became free within `pool_timeout`, `Timeout(pool=)` or `acquire_timeout`, or "
        "opened within `acquire_timeout`", AcquireTimeout,
        (errors.AcquireTimeout, exceptions.EmptyPoolError)),
    Row("the same time was up while no connection could be opened", ServerUnavailable,
        (errors.ServerUnavailable, exceptions.EmptyPoolError)),
    Row("`max_waiting` requests are already waiting", PoolBusy, (errors.PoolBusy, exceptions.EmptyPoolError)),
    Row("the pool is suspended with `fail_fast=True`", PoolSuspended,
        (errors.PoolSuspended, exceptions.EmptyPoolError)),
    Row("the pool is closed", PoolClosed, (errors.PoolClosed, exceptions.ClosedPoolError)),
    Row("a connect failed and is not tried again (`retries=False`). Errors of urllib3 with a class of their own "
        "(`NameResolutionError`, `SSLError`, `ProxyError`) keep it and are also a `poolkit.ConnectFailed`",
        ConnectFailed, (errors.ConnectFailed, exceptions.NewConnectionError)),
    Row("the same after `retries` attempts; `reason` is the last error. It is also a `poolkit.ConnectTimeout` if the "
        "connect took too long, and a `poolkit.CircuitOpen` if the circuit breaker is open", exceptions.MaxRetryError,
        (errors.ConnectFailed, exceptions.MaxRetryError)),
    Row("a connect took too long (`Timeout(connect=)`, or `connect_timeout`) and is not tried again", ConnectTimeout,
        (errors.ConnectTimeout, exceptions.ConnectTimeoutError)),
    Row("the circuit breaker of the host is open, and the request is not tried again", CircuitOpen,
        (errors.CircuitOpen, exceptions.NewConnectionError)),
    Row("a response ended later than `leak_after`, with `on_leak=\"raise\"`", LeaseOverdue,
        (errors.LeaseOverdue, exceptions.PoolError)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""


def kind_of(error: PoolError) -> type[PoolError]:
    """Return poolkit's own class of an error."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def told(error: BaseException, kind: type[PoolError]) -> BaseException:
    """Return an error of urllib3 as one that is also of poolkit's type ``kind``."""
    if isinstance(error, exceptions.MaxRetryError) and not isinstance(error, PoolError):
        plain = MaxRetryError(*error.args)
        plain.__dict__.update(error.__dict__)
        plain.__cause__, plain.__context__ = error.__cause__, error.__context__
        if isinstance(plain.reason, errors.CircuitOpen):
            plain.retry_after = plain.reason.retry_after
        error = plain.with_traceback(error.__traceback__)
    return ERRORS.joined(kind, _apart(error))


def _apart(error: Any) -> Any:
    """Return urllib3's connect error as the adapter's, which can be copied without its connection."""
    plain: Any
    if type(error) is exceptions.NewConnectionError:
        plain = ConnectFailed(*error.args)
        plain.conn = getattr(error, "conn", None)
    elif type(error) is exceptions.ConnectTimeoutError and len(error.args) == 2:
        plain = ConnectTimeout(error.args[1])
        plain.conn = error.args[0]
    else:
        return error
    plain.__cause__, plain.__context__ = error.__cause__, error.__context__
    return plain.with_traceback(error.__traceback__)
