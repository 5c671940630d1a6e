"""Errors that are both poolkit's and SQLAlchemy's, so that existing ``except`` clauses keep working."""

from __future__ import annotations

from typing import Any

from sqlalchemy import exc

from poolkit import errors

__all__ = (
    "PoolBusy",
    "PoolCircuitOpen",
    "PoolClosed",
    "PoolServerUnavailable",
    "PoolSuspended",
    "PoolTimeout",
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


class PoolCircuitOpen(exc.OperationalError, errors.CircuitOpen):
    """The breaker is open: also a :class:`sqlalchemy.exc.OperationalError`, as a failed connect is.

    ``orig`` is the last error of the driver, ``retry_after`` the seconds until the next try.
    """

    def __init__(self, message: str, orig: BaseException | None = None, retry_after: float = 0.0) -> None:
        super().__init__(None, None, orig or ConnectionError(message))
        self.args = (message,)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.orig, self.retry_after)


_KINDS: tuple[tuple[type[errors.PoolError], type[Exception]], ...] = (
    (errors.ServerUnavailable, PoolServerUnavailable),
    (errors.AcquireTimeout, PoolTimeout),
    (errors.PoolBusy, PoolBusy),
    (errors.PoolSuspended, PoolSuspended),
    (errors.PoolClosed, PoolClosed),
)


def translated(error: errors.PoolError, prefix: str) -> Exception:
    """The error for SQLAlchemy's users; ``prefix`` begins the message of a timeout."""
    message = str(error)
    if isinstance(error, errors.CircuitOpen):
        cause = error.__cause__
        told: Exception = PoolCircuitOpen(message, cause, error.retry_after)
    else:
        kind = next((ours for theirs, ours in _KINDS if isinstance(error, theirs)), None)
        if kind is None:
            return error
        told = kind(prefix + message if isinstance(error, errors.AcquireTimeout) else message)
    told.__cause__ = error.__cause__
    return told
