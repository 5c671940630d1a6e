"""Errors that are poolkit's and redis-py's at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from poolkit.connector import Verdict, default_classify
from poolkit.errors import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    PoolBusy,
    PoolClosed,
    PoolError,
    PoolSuspended,
    ServerUnavailable,
    said,
)
from poolkit_adapters._errors import adapted
from poolkit_adapters.redis._driver import exceptions

__all__ = (
    "KINDS",
    "NETWORK_ERRORS",
    "RedisAcquireTimeout",
    "RedisCircuitOpen",
    "RedisConnectFailed",
    "RedisConnectTimeout",
    "RedisPoolBusy",
    "RedisPoolClosed",
    "RedisPoolSuspended",
    "RedisServerUnavailable",
    "classify",
    "connect_error",
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


KINDS: Mapping[type[PoolError], type[PoolError]] = {
    ServerUnavailable: RedisServerUnavailable,
    AcquireTimeout: RedisAcquireTimeout,
    PoolBusy: RedisPoolBusy,
    PoolClosed: RedisPoolClosed,
    PoolSuspended: RedisPoolSuspended,
    CircuitOpen: RedisCircuitOpen,
    ConnectTimeout: RedisConnectTimeout,
    ConnectFailed: RedisConnectFailed,
}


def pool_error(error: PoolError) -> PoolError:
    """An error of the engine with redis-py's type beside poolkit's."""
    if isinstance(error, exceptions.RedisError):  # from the connector: is both already
        return error
    return adapted(error, KINDS)


def connect_error(error: BaseException) -> BaseException:
    """An error of redis-py's ``connect()`` with poolkit's type beside its own.

    Only its two general types; a subclass (authentication, server loading, no master) says more as it is. An error
    of the operating system ("Too many open files") becomes one of redis-py's: no caller expects another there.
    """
    new: Any
    if type(error) is exceptions.TimeoutError:
        new = RedisConnectTimeout(said(error, 1000))
    elif type(error) is exceptions.ConnectionError:
        new = RedisConnectFailed(said(error, 1000))
    elif isinstance(error, (PoolError, exceptions.RedisError)) or not isinstance(error, OSError):
        return error
    else:
        kind: Any = RedisConnectTimeout if isinstance(error, TimeoutError) else RedisConnectFailed
        new = kind(said(error, 1000) or type(error).__name__)
    new.__cause__ = error
    return new  # type: ignore[no-any-return]


def unready(connection: Any) -> BaseException:
    """Of a connection that was opened twice, and each time had something to read before its first command."""
    return RedisConnectFailed(
        f"{connection!r}: twice the server sent something that nobody had asked for, or closed the new connection"
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
