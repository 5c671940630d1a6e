"""Errors that are poolkit's and httpcore's at once, so that existing ``except`` clauses keep working."""

from __future__ import annotations

import httpcore

from poolkit import errors

from .._errors import BAD_SETTING, MISSING, Row, Table

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
    "RequestRefused",
    "ServerUnavailable",
    "UnsupportedProtocol",
    "UsageError",
    "WrongLoop",
    "left_with",
)


class AcquireTimeout(errors.AcquireTimeout, httpcore.PoolTimeout):
    """No connection was free within the request's ``timeout["pool"]``."""


class ServerUnavailable(errors.ServerUnavailable, httpcore.PoolTimeout):
    """The same, while no connection to the server could be opened at all."""


class PoolBusy(errors.PoolBusy, httpcore.PoolTimeout):
    """``max_waiting`` requests wait already."""


class PoolSuspended(errors.PoolSuspended, httpcore.PoolTimeout):
    """The pool was suspended with ``fail_fast=True``."""


class PoolClosed(errors.PoolClosed, httpcore.NetworkError):
    """The pool was closed while the request waited for a connection."""


class ConnectFailed(errors.ConnectFailed, httpcore.ConnectError):
    """No connection could be opened."""


class ConnectTimeout(errors.ConnectTimeout, httpcore.ConnectTimeout):
    """Opening a connection took longer than the request's ``timeout["connect"]``."""


class CircuitOpen(errors.CircuitOpen, httpcore.ConnectError):
    """Connects to this origin failed again and again; requests to it fail at once until the next probe."""


class RequestRefused(errors.ConnectFailed, httpcore.RemoteProtocolError):
    """The server closed the connection before it took up the request, which cannot be sent again."""


# Calls that are wrong are what httpcore calls a protocol that was violated by the client.


class UsageError(errors.UsageError, httpcore.LocalProtocolError):
    """A call that is wrong at this place; the pool is unharmed."""


class WrongLoop(errors.WrongLoop, httpcore.LocalProtocolError):
    """An asynchronous pool was used from another event loop than the one it lives on."""


class LeaseOverdue(errors.LeaseOverdue, httpcore.LocalProtocolError):
    """The response that was just closed had been open longer than ``leak_after`` (``on_leak="raise"``)."""


class UnsupportedProtocol(errors.UsageError, httpcore.UnsupportedProtocol):
    """The URL's scheme is none that a pool serves."""


ERRORS = Table(
    Row("no connection within the time for one (`timeout[\"pool\"]`)", AcquireTimeout,
        (errors.AcquireTimeout, httpcore.PoolTimeout)),
    Row("the same, while none can be opened at all", ServerUnavailable,
        (errors.ServerUnavailable, httpcore.PoolTimeout)),
    Row("`max_waiting` requests wait already", PoolBusy, (errors.PoolBusy, httpcore.PoolTimeout)),
    Row("suspended with `fail_fast=True`", PoolSuspended, (errors.PoolSuspended, httpcore.PoolTimeout)),
    Row("the pool was closed while the request waited", PoolClosed, (errors.PoolClosed, httpcore.NetworkError)),
    Row("opening a connection failed (refused, unknown host, TLS, no more files). A more special error of httpcore's, "
        "or of a network backend of your own, is of its own class and `poolkit.ConnectFailed`", ConnectFailed,
        (errors.ConnectFailed, httpcore.ConnectError)),
    Row("opening a connection took too long (`timeout[\"connect\"]`, else `connect_timeout`)", ConnectTimeout,
        (errors.ConnectTimeout, httpcore.ConnectTimeout)),
    Row("the breaker of the origin is open", CircuitOpen, (errors.CircuitOpen, httpcore.ConnectError)),
    Row("the server closed the connection before it took up the request, which cannot be sent again", RequestRefused,
        (errors.ConnectFailed, httpcore.RemoteProtocolError)),
    Row("a response was closed after `leak_after`, with `on_leak=\"raise\"` (synchronous pools)", LeaseOverdue,
        (errors.LeaseOverdue, httpcore.LocalProtocolError)),
    Row("an asynchronous pool is used from a second event loop", WrongLoop,
        (errors.WrongLoop, httpcore.LocalProtocolError)),
    Row("any other call that is wrong (no event loop runs here)", UsageError,
        (errors.UsageError, httpcore.LocalProtocolError)),
    Row("the URL's scheme is none that a pool serves", UnsupportedProtocol,
        (errors.UsageError, httpcore.UnsupportedProtocol)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that leaves this adapter."""


def left_with(error: BaseException, opening: bool, table: Table) -> BaseException:
    """What the caller gets to see of an error with which a request has failed.

    ``opening``: while its connection was being opened; such an error is poolkit's too. Any other is httpcore's alone.
    """
    if isinstance(error, httpcore.ConnectionNotAvailable):  # is between connection and pool only
        return RequestRefused("The server closed the connection before it took up the request.")
    if isinstance(error, httpcore.ConnectTimeout):
        return table.joined(errors.ConnectTimeout, error)
    if isinstance(error, (httpcore.ConnectError, httpcore.ProxyError)) or (opening and isinstance(error, Exception)):
        return table.joined(errors.ConnectFailed, error)
    return error
