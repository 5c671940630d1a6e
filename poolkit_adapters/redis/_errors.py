"""Errors that are poolkit's and redis-py's at once."""

from __future__ import annotations

import asyncio
from typing import Any

from poolkit.connector import Verdict, default_classify
from poolkit.errors import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    LeaseOverdue,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolError,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
    said,
)
from poolkit_adapters._errors import BAD_SETTING, MISSING, Row, Table
from poolkit_adapters.redis._driver import exceptions

__all__ = (
    "ERRORS",
    "NETWORK_ERRORS",
    "RedisAcquireTimeout",
    "RedisCircuitOpen",
    "RedisConnectFailed",
    "RedisConnectTimeout",
    "RedisLeaseCut",
    "RedisLeaseOverdue",
    "RedisNotLeased",
    "RedisPoolBusy",
    "RedisPoolClosed",
    "RedisPoolSuspended",
    "RedisServerUnavailable",
    "RedisUsageError",
    "RedisWrongLoop",
    "classify",
    "connect_error",
    "lease_cut",
    "network_failed",
    "pool_error",
    "unready",
)


class RedisAcquireTimeout(AcquireTimeout, exceptions.MaxConnectionsError):
    """No connection within ``timeout``. A ``MaxConnectionsError``, which ``RedisCluster`` does not take for a dead
    node (a plain ``ConnectionError`` makes it read the topology anew).
    """

    def __init__(self, *args: Any) -> None:
        exceptions.MaxConnectionsError.__init__(self, *args)  # by name: OSError, a base of TimeoutError, ends the chain


class RedisPoolBusy(PoolBusy, exceptions.MaxConnectionsError):
    """``max_waiting`` callers wait already."""


class RedisServerUnavailable(ServerUnavailable, exceptions.ConnectionError):
    """``timeout`` ran out while no connection could be opened."""

    def __init__(self, *args: Any) -> None:
        exceptions.ConnectionError.__init__(self, *args)  # by name: OSError, a base of TimeoutError, ends the chain


class RedisConnectFailed(ConnectFailed, exceptions.ConnectionError):
    """A connection could not be opened; ``__cause__`` is redis-py's error."""


class RedisConnectTimeout(ConnectTimeout, exceptions.TimeoutError):
    """``socket_connect_timeout`` (or ``socket_timeout`` in the handshake) ran out."""

    def __init__(self, *args: Any) -> None:
        exceptions.TimeoutError.__init__(self, *args)  # by name: OSError, a base of TimeoutError, ends the chain


class RedisCircuitOpen(CircuitOpen, exceptions.ConnectionError):
    """The circuit breaker is open."""


class RedisPoolClosed(PoolClosed, exceptions.ConnectionError):
    """The pool's engine was drained or closed."""


class RedisPoolSuspended(PoolSuspended, exceptions.ConnectionError):
    """The pool was suspended with ``fail_fast=True``."""


class RedisLeaseCut(NotLeased, exceptions.ConnectionError):
    """The connection is used after its pool has closed it, while it was in use."""

    def __init__(self, *args: Any) -> None:
        exceptions.ConnectionError.__init__(self, *args)  # by name: RuntimeError, a base of UsageError, ends the chain


# Calls that are wrong are no ConnectionError: redis-py would make them again.


class RedisUsageError(UsageError, exceptions.RedisError):
    """A call that is wrong at this place; the pool is unharmed."""

    def __init__(self, *args: Any) -> None:
        exceptions.RedisError.__init__(self, *args)  # by name: RuntimeError, a base of UsageError, ends the chain


class RedisWrongLoop(WrongLoop, exceptions.RedisError):
    """The pool was used from another event loop than the one it lives on."""

    def __init__(self, *args: Any) -> None:
        exceptions.RedisError.__init__(self, *args)  # by name: RuntimeError, a base of UsageError, ends the chain


class RedisLeaseOverdue(LeaseOverdue, exceptions.RedisError):
    """The connection that was just released had been in use longer than ``leak_after`` (``on_leak="raise"``)."""

    def __init__(self, *args: Any) -> None:
        exceptions.RedisError.__init__(self, *args)  # by name: RuntimeError, a base of UsageError, ends the chain


class RedisNotLeased(NotLeased, exceptions.RedisError, KeyError):
    """``release()`` of a connection that is not in use (asyncio); redis-py raises KeyError."""

    def __init__(self, *args: Any) -> None:
        exceptions.RedisError.__init__(self, *args)  # by name: RuntimeError, a base of UsageError, ends the chain

    __str__ = Exception.__str__  # KeyError shows a text as a literal


ERRORS = Table(
    Row("no connection within `timeout`", RedisAcquireTimeout, (AcquireTimeout, exceptions.MaxConnectionsError)),
    Row("the same, while none can be opened", RedisServerUnavailable, (ServerUnavailable, exceptions.ConnectionError)),
    Row("`max_waiting` callers wait already", RedisPoolBusy, (PoolBusy, exceptions.MaxConnectionsError)),
    Row("the server cannot be reached, or refuses (TLS, unknown host, \"Too many open files\"). A more special error "
        "of redis-py's (authentication, loading, no master) is of its own class and `poolkit.ConnectFailed`",
        RedisConnectFailed, (ConnectFailed, exceptions.ConnectionError)),
    Row("connecting took too long (`socket_connect_timeout`)", RedisConnectTimeout,
        (ConnectTimeout, exceptions.TimeoutError)),
    Row("the breaker is open", RedisCircuitOpen, (CircuitOpen, exceptions.ConnectionError)),
    Row("suspended with `fail_fast=True`", RedisPoolSuspended, (PoolSuspended, exceptions.ConnectionError)),
    Row("the engine was drained or closed", RedisPoolClosed, (PoolClosed, exceptions.ConnectionError)),
    Row("a connection is used that the pool has closed under its user (`on_leak=\"reclaim\"`, a fleet budget that lost "
        "its permits, the end of a drain); one that waits for an answer then gets redis-py's `ConnectionError`",
        RedisLeaseCut, (NotLeased, exceptions.ConnectionError)),
    Row("`release()` of a connection that is not in use (asyncio; ignored by the synchronous pool, as by redis-py's)",
        RedisNotLeased, (NotLeased, exceptions.RedisError, KeyError)),
    Row("a connection came back after `leak_after`, with `on_leak=\"raise\"` (synchronous pools)", RedisLeaseOverdue,
        (LeaseOverdue, exceptions.RedisError)),
    Row("an asynchronous pool is used from a second event loop", RedisWrongLoop, (WrongLoop, exceptions.RedisError)),
    Row("any other call that is wrong (no event loop runs here)", RedisUsageError,
        (UsageError, exceptions.RedisError)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that leaves this adapter."""


def pool_error(error: PoolError) -> PoolError:
    """An error of the engine with redis-py's type beside poolkit's."""
    return ERRORS.adapted(error)


def connect_error(error: BaseException) -> BaseException:
    """An error of redis-py's ``connect()`` with poolkit's type beside its own.

    Its two general types become the adapter's own, and so does an error of the operating system ("Too many open
    files"): no caller expects another there. A subclass (authentication, server loading, no master) says more, and
    anything else is no matter of redis-py's: they keep their class.
    """
    new: Any
    if isinstance(error, PoolError) or not isinstance(error, Exception):
        return error
    if type(error) is exceptions.TimeoutError:
        new = RedisConnectTimeout(said(error, 1000))
    elif type(error) is exceptions.ConnectionError:
        new = RedisConnectFailed(said(error, 1000))
    elif not isinstance(error, OSError):
        return ERRORS.joined(ConnectTimeout if isinstance(error, exceptions.TimeoutError) else ConnectFailed, error)
    else:
        kind: Any = RedisConnectTimeout if isinstance(error, TimeoutError) else RedisConnectFailed
        new = kind(said(error, 1000) or type(error).__name__)
    new.__cause__ = error
    return new  # type: ignore[no-any-return]


def lease_cut(pool: str) -> BaseException:
    """Of a connection that is used after its pool has closed it under its user."""
    return RedisLeaseCut(
        f"pool {pool!r} closed this connection while it was in use (on_leak='reclaim', a budget, or the end of the "
        "pool)"
    )


def unready(connection: Any) -> BaseException:
    """Of a connection that was opened twice, and each time had something to read before its first command.

    Begins with redis-py's words, which programs look for.
    """
    return RedisConnectFailed(
        "Connection not ready: twice the server sent something that nobody had asked for, or closed the new "
        f"connection ({connection!r})"
    )


NETWORK_ERRORS = (exceptions.ConnectionError, exceptions.TimeoutError, OSError, asyncio.TimeoutError)
"""Errors after which redis-py ends a connection, and which say something of the server's other connections too."""


def network_failed() -> BaseException:
    """With which a connection is released that the network ended while it was in use."""
    return exceptions.ConnectionError("the network failed while the connection was in use")


def classify(error: BaseException) -> Verdict:
    """What an error means for a connection: redis-py's answers from the server leave it sound."""
    if isinstance(error, exceptions.AuthenticationError):
        return Verdict.FATAL
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError)):
        return Verdict.SUSPECT
    return default_classify(error)
