"""Error classes that inherit from both poolkit's and redis-py's errors."""

from __future__ import annotations

import asyncio
from typing import Any

from poolkit import errors
from poolkit.connector import Verdict, default_classify
from poolkit.errors import PoolError, said

from .._errors import BAD_SETTING, MISSING, Row, Table, of_connect
from ._driver import DRIVER, DriverError, exceptions

__all__ = (
    "ERRORS",
    "NETWORK_ERRORS",
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseCut",
    "LeaseOverdue",
    "NotLeased",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "ServerUnavailable",
    "UsageError",
    "WrongLoop",
    "classify",
    "connect_error",
    "lease_cut",
    "network_failed",
    "pool_error",
    "unready",
)


class AcquireTimeout(errors.AcquireTimeout, exceptions.MaxConnectionsError):
    """No connection became free within ``timeout`` seconds.

    A ``MaxConnectionsError``, which ``RedisCluster`` does not take for a dead node. A plain ``ConnectionError`` would
    make it read the topology again.
    """

    def __init__(self, *args: Any) -> None:
        exceptions.MaxConnectionsError.__init__(self, *args)  # by name: OSError.__init__ ends the super() chain


class PoolBusy(errors.PoolBusy, exceptions.MaxConnectionsError):
    """``max_waiting`` callers are already waiting."""


class ServerUnavailable(errors.ServerUnavailable, exceptions.ConnectionError):
    """``timeout`` expired while no connection could be opened."""

    def __init__(self, *args: Any) -> None:
        exceptions.ConnectionError.__init__(self, *args)  # by name: OSError.__init__ ends the super() chain


class ConnectFailed(errors.ConnectFailed, exceptions.ConnectionError):
    """A connection could not be opened; ``__cause__`` is redis-py's error."""


class ConnectTimeout(errors.ConnectTimeout, exceptions.TimeoutError):
    """``socket_connect_timeout`` (or ``socket_timeout`` during the handshake) expired."""

    def __init__(self, *args: Any) -> None:
        exceptions.TimeoutError.__init__(self, *args)  # by name: OSError.__init__ ends the super() chain


class CircuitOpen(errors.CircuitOpen, exceptions.ConnectionError):
    """The circuit breaker is open."""


class PoolClosed(errors.PoolClosed, exceptions.ConnectionError):
    """The pool's engine was drained or closed."""


class PoolSuspended(errors.PoolSuspended, exceptions.ConnectionError):
    """The pool was suspended with ``fail_fast=True``."""


class LeaseCut(errors.NotLeased, exceptions.ConnectionError):
    """The connection was used after its pool had closed it during its lease."""

    def __init__(self, *args: Any) -> None:
        exceptions.ConnectionError.__init__(self, *args)  # by name: RuntimeError.__init__ ends the super() chain


# Errors for wrong calls are no ConnectionError: redis-py would retry the call.


class UsageError(errors.UsageError, DriverError):
    """A call that is wrong in this situation. The pool is not affected."""

    def __init__(self, *args: Any) -> None:
        DriverError.__init__(self, *args)  # by name: RuntimeError.__init__ ends the super() chain


class WrongLoop(errors.WrongLoop, DriverError):
    """The pool was used from another event loop than the one that it belongs to."""

    def __init__(self, *args: Any) -> None:
        DriverError.__init__(self, *args)  # by name: RuntimeError.__init__ ends the super() chain


class LeaseOverdue(errors.LeaseOverdue, DriverError):
    """The connection that was just released had been in use longer than ``leak_after`` (``on_leak="raise"``)."""

    def __init__(self, *args: Any) -> None:
        DriverError.__init__(self, *args)  # by name: RuntimeError.__init__ ends the super() chain


class NotLeased(errors.NotLeased, DriverError, KeyError):
    """``release()`` was called with a connection that is not in use (asyncio). redis-py raises KeyError for that."""

    def __init__(self, *args: Any) -> None:
        DriverError.__init__(self, *args)  # by name: RuntimeError.__init__ ends the super() chain

    __str__ = Exception.__str__  # KeyError would show the message in quotes


ERRORS = Table(
    Row("no connection became free within `timeout`", AcquireTimeout,
        (errors.AcquireTimeout, exceptions.MaxConnectionsError)),
    Row("`timeout` expired while no connection could be opened", ServerUnavailable,
        (errors.ServerUnavailable, exceptions.ConnectionError)),
    Row("`max_waiting` callers are already waiting", PoolBusy, (errors.PoolBusy, exceptions.MaxConnectionsError)),
    Row("the server cannot be reached, or refuses the connection (TLS, unknown host, \"Too many open files\"). A more "
        f"specific error of {DRIVER} (authentication, loading, no master) keeps its class and is also a "
        "`poolkit.ConnectFailed`",
        ConnectFailed, (errors.ConnectFailed, exceptions.ConnectionError)),
    Row("connecting took too long (`socket_connect_timeout`)", ConnectTimeout,
        (errors.ConnectTimeout, exceptions.TimeoutError)),
    Row("the circuit breaker is open", CircuitOpen, (errors.CircuitOpen, exceptions.ConnectionError)),
    Row("the pool is suspended with `fail_fast=True`", PoolSuspended,
        (errors.PoolSuspended, exceptions.ConnectionError)),
    Row("the engine was drained or closed", PoolClosed, (errors.PoolClosed, exceptions.ConnectionError)),
    Row("a connection is used after the pool closed it during its lease (`on_leak=\"reclaim\"`, a fleet budget that "
        "lost its permits, the end of a drain). A command that is waiting for its reply then gets the driver's "
        "`ConnectionError`",
        LeaseCut, (errors.NotLeased, exceptions.ConnectionError)),
    Row("`release()` of a connection that is not in use (asyncio; the synchronous pool ignores it, as the "
        "driver's does)",
        NotLeased, (errors.NotLeased, DriverError, KeyError)),
    Row("a connection was released later than `leak_after`, with `on_leak=\"raise\"`",
        LeaseOverdue, (errors.LeaseOverdue, DriverError)),
    Row("an asynchronous pool is used from a second event loop", WrongLoop, (errors.WrongLoop, DriverError)),
    Row("any other wrong call (for example, no event loop is running)", UsageError,
        (errors.UsageError, DriverError)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""


def pool_error(error: PoolError) -> PoolError:
    """Return an error of the engine with redis-py's type added to poolkit's.

    If a connect has failed, each of the callers that hear of it gets a copy of the error that the connect has raised.
    """
    own = of_connect(error)
    return own if isinstance(own, errors.ConnectFailed) else ERRORS.adapted(error)


def connect_error(error: BaseException) -> BaseException:
    """Return an error of redis-py's ``connect()`` with poolkit's type added to its own.

    redis-py's two general types and errors of the operating system ("Too many open files") become this adapter's own
    classes, because callers expect a redis-py error there. A subclass (authentication, server loading, no master)
    says more and keeps its class. So does any other error, which does not come from redis-py.
    """
    new: Any
    if isinstance(error, PoolError) or not isinstance(error, Exception):
        return error
    if type(error) is exceptions.TimeoutError:
        new = ConnectTimeout(said(error, 1000))
    elif type(error) is exceptions.ConnectionError:
        new = ConnectFailed(said(error, 1000))
    elif not isinstance(error, OSError):
        late = isinstance(error, exceptions.TimeoutError)
        return ERRORS.joined(errors.ConnectTimeout if late else errors.ConnectFailed, error)
    else:
        kind: Any = ConnectTimeout if isinstance(error, TimeoutError) else ConnectFailed
        new = kind(said(error, 1000) or type(error).__name__)
    new.__cause__ = error
    return new  # type: ignore[no-any-return]


def lease_cut(pool: str) -> BaseException:
    """Return the error for a connection that is used after its pool closed it during its lease."""
    return LeaseCut(
        f"pool {pool!r} closed this connection while it was in use (on_leak='reclaim', a budget, or the end of the "
        "pool)"
    )


def unready(connection: Any) -> BaseException:
    """Return the error for a connection that was opened twice and both times had unread data before any command.

    It begins with redis-py's words, which programs look for.
    """
    return ConnectFailed(
        "Connection not ready: two new connections in a row were unusable: the server closed them, or sent data before "
        f"any command ({connection!r})"
    )


NETWORK_ERRORS = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, asyncio.TimeoutError)
"""Errors after which redis-py closes a connection, and which put the server's other connections in doubt too."""


def network_failed() -> BaseException:
    """Return the error for the release of a connection that the network closed while it was in use."""
    return exceptions.ConnectionError("the network failed while the connection was in use")


def classify(error: BaseException) -> Verdict:
    """Return what an error means for its connection. Error replies of the server leave the connection usable."""
    if isinstance(error, exceptions.AuthenticationError):
        return Verdict.FATAL
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError)):
        return Verdict.SUSPECT
    return default_classify(error)
