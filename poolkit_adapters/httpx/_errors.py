"""Errors that are poolkit's and httpx's at once, so that existing ``except`` clauses keep working."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from poolkit import errors

from .._errors import BAD_SETTING, MISSING, Row, Table, missing_extra

try:
    import httpx
except ImportError as _error:
    raise missing_extra("poolkit_adapters.httpx", "httpx", "httpx") from _error

__all__ = (
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "ERRORS",
    "LeaseOverdue",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "RequestError",
    "ServerUnavailable",
    "UsageError",
    "WrongLoop",
    "poolkits_too",
)


class RequestError(httpx.TransportError):
    """httpx's constructor, and its ``request``."""

    def __init__(self, message: str, *, request: httpx.Request | None = None) -> None:
        # named, not super(): OSError, a base of TimeoutError, comes first and ends the chain
        httpx.RequestError.__init__(self, message, request=request)


class AcquireTimeout(RequestError, errors.AcquireTimeout, httpx.PoolTimeout):
    """No connection was free within ``httpx.Timeout(pool=)``."""


class ServerUnavailable(RequestError, errors.ServerUnavailable, httpx.PoolTimeout):
    """The same, while no connection to the server could be opened at all."""


class PoolBusy(RequestError, errors.PoolBusy, httpx.PoolTimeout):
    """``max_waiting`` requests wait already."""


class PoolSuspended(RequestError, errors.PoolSuspended, httpx.PoolTimeout):
    """The pool was suspended with ``fail_fast=True``."""


class PoolClosed(RequestError, errors.PoolClosed, httpx.NetworkError):
    """The pool was closed while the request waited for a connection."""


class ConnectFailed(RequestError, errors.ConnectFailed, httpx.ConnectError):
    """No connection could be opened."""


class ConnectTimeout(RequestError, errors.ConnectTimeout, httpx.ConnectTimeout):
    """Opening a connection took longer than ``httpx.Timeout(connect=)``."""


class CircuitOpen(RequestError, errors.CircuitOpen, httpx.ConnectError):
    """Connects to this origin failed again and again; requests to it fail at once until the next probe."""


# Calls that are wrong are what httpx calls a protocol that was violated by the client.


class UsageError(RequestError, errors.UsageError, httpx.LocalProtocolError):
    """A call that is wrong at this place; the pool is unharmed."""


class WrongLoop(RequestError, errors.WrongLoop, httpx.LocalProtocolError):
    """An asynchronous transport was used from another event loop than the one it lives on."""


class LeaseOverdue(RequestError, errors.LeaseOverdue, httpx.LocalProtocolError):
    """The response that was just closed had been open longer than ``leak_after`` (``on_leak="raise"``)."""


ERRORS = Table(
    Row("no connection within `httpx.Timeout(pool=)`", AcquireTimeout, (errors.AcquireTimeout, httpx.PoolTimeout)),
    Row("the same, while none can be opened at all", ServerUnavailable, (errors.ServerUnavailable, httpx.PoolTimeout)),
    Row("`max_waiting` requests wait already", PoolBusy, (errors.PoolBusy, httpx.PoolTimeout)),
    Row("suspended with `fail_fast=True`", PoolSuspended, (errors.PoolSuspended, httpx.PoolTimeout)),
    Row("the pool was closed while the request waited", PoolClosed, (errors.PoolClosed, httpx.NetworkError)),
    Row("opening a connection failed (refused, unknown host, TLS, no more files). A more special error of httpx's "
        "(`ProxyError`) is of its own class and `poolkit.ConnectFailed`", ConnectFailed,
        (errors.ConnectFailed, httpx.ConnectError)),
    Row("opening a connection took too long (`httpx.Timeout(connect=)`, else `connect_timeout`)", ConnectTimeout,
        (errors.ConnectTimeout, httpx.ConnectTimeout)),
    Row("the breaker of the origin is open", CircuitOpen, (errors.CircuitOpen, httpx.ConnectError)),
    Row("the server closed the connection before it took up the request, which cannot be sent again",
        httpx.RemoteProtocolError, (errors.ConnectFailed, httpx.RemoteProtocolError)),
    Row("a response was closed after `leak_after`, with `on_leak=\"raise\"` (synchronous transports)", LeaseOverdue,
        (errors.LeaseOverdue, httpx.LocalProtocolError)),
    Row("an asynchronous transport is used from a second event loop", WrongLoop,
        (errors.WrongLoop, httpx.LocalProtocolError)),
    Row("any other call that is wrong (no event loop runs here)", UsageError,
        (errors.UsageError, httpx.LocalProtocolError)),
    Row("the URL's scheme is none that a transport serves", httpx.UnsupportedProtocol,
        (errors.UsageError, httpx.UnsupportedProtocol)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that leaves this adapter."""


@contextmanager
def poolkits_too() -> Iterator[None]:
    """Keep the errors of the pool poolkit's as well: httpx has turned httpcore's into its own."""
    try:
        yield
    except httpx.TransportError as error:
        cause = error.__cause__
        if isinstance(error, errors.PoolError) or not isinstance(cause, errors.PoolError):
            raise
        told = ERRORS.joined(type(cause), error)
        told.__dict__.update(cause.__dict__)
        raise told from cause.__cause__
