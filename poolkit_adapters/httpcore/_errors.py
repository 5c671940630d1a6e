"""Error classes that inherit from both poolkit's and httpcore's errors, so that ``except`` clauses keep working."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from poolkit import errors

from .._errors import BAD_SETTING, MISSING, Row, Table
from ._driver import DRIVER, httpcore

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
    "error_for_caller",
    "rows_of_waits",
)


class AcquireTimeout(errors.AcquireTimeout, httpcore.PoolTimeout):
    """No connection became free within ``timeout["pool"]`` seconds of the request."""


class ServerUnavailable(errors.ServerUnavailable, httpcore.PoolTimeout):
    """``timeout["pool"]`` expired while no connection to the server could be opened."""


class PoolBusy(errors.PoolBusy, httpcore.PoolTimeout):
    """``max_waiting`` requests are already waiting."""


class PoolSuspended(errors.PoolSuspended, httpcore.PoolTimeout):
    """The pool was suspended with ``fail_fast=True``."""


class PoolClosed(errors.PoolClosed, httpcore.NetworkError):
    """The pool was closed while the request waited for a connection."""


class ConnectFailed(errors.ConnectFailed, httpcore.ConnectError):
    """No connection could be opened."""


class ConnectTimeout(errors.ConnectTimeout, httpcore.ConnectTimeout):
    """Opening a connection took longer than ``timeout["connect"]`` seconds of the request."""


class CircuitOpen(errors.CircuitOpen, httpcore.ConnectError):
    """The circuit breaker is open after repeated failed connects. Requests to the origin fail until the next probe."""


class RequestRefused(errors.ConnectFailed, httpcore.RemoteProtocolError):
    """The server closed the connection before it processed the request, and the request cannot be sent again."""


# A wrong call is a LocalProtocolError, httpcore's class for a client that violates the protocol.


class UsageError(errors.UsageError, httpcore.LocalProtocolError):
    """A call that is wrong in this situation. The pool is not affected."""


class WrongLoop(errors.WrongLoop, httpcore.LocalProtocolError):
    """An asynchronous pool was used from another event loop than the one that it belongs to."""


class LeaseOverdue(errors.LeaseOverdue, httpcore.LocalProtocolError):
    """The response that was just closed had been open longer than ``leak_after`` (``on_leak="raise"``)."""


class UnsupportedProtocol(errors.UsageError, httpcore.UnsupportedProtocol):
    """The pool does not support the scheme of the URL."""


def rows_of_waits(own: Mapping[str, Any], driver: ModuleType, limit: str) -> tuple[Row, ...]:
    """Return the rows of a request that gets no connection, for httpcore or httpx.

    ``own``: the adapter's classes by name; ``limit``: the driver's words for the longest wait.
    """

    def row(what: str, name: str, caught: type[BaseException]) -> Row:
        return Row(what, own[name], (getattr(errors, name), caught))

    return (
        row(f"no connection became free within `{limit}`", "AcquireTimeout", driver.PoolTimeout),
        row(f"`{limit}` expired while no connection could be opened", "ServerUnavailable", driver.PoolTimeout),
        row("`max_waiting` requests are already waiting", "PoolBusy", driver.PoolTimeout),
        row("the pool is suspended with `fail_fast=True`", "PoolSuspended", driver.PoolTimeout),
        row("the pool was closed while the request waited", "PoolClosed", driver.NetworkError),
    )


ERRORS = Table(
    *rows_of_waits(globals(), httpcore, "timeout[\"pool\"]"),
    Row("opening a connection failed (refused, unknown host, TLS, no descriptor left). A more specific error of "
        f"{DRIVER} or of your own network backend keeps its class and is also a `poolkit.ConnectFailed`", ConnectFailed,
        (errors.ConnectFailed, httpcore.ConnectError)),
    Row("opening a connection took too long (`timeout[\"connect\"]`, or `connect_timeout`)", ConnectTimeout,
        (errors.ConnectTimeout, httpcore.ConnectTimeout)),
    Row("the circuit breaker of the origin is open", CircuitOpen, (errors.CircuitOpen, httpcore.ConnectError)),
    Row("the server closed the connection before it processed the request, and the request cannot be sent again",
        RequestRefused, (errors.ConnectFailed, httpcore.RemoteProtocolError)),
    Row("a response was closed later than `leak_after`, with `on_leak=\"raise\"`", LeaseOverdue,
        (errors.LeaseOverdue, httpcore.LocalProtocolError)),
    Row("an asynchronous pool is used from a second event loop", WrongLoop,
        (errors.WrongLoop, httpcore.LocalProtocolError)),
    Row("any other wrong call (for example, no event loop is running)", UsageError,
        (errors.UsageError, httpcore.LocalProtocolError)),
    Row("the pool does not support the scheme of the URL", UnsupportedProtocol,
        (errors.UsageError, httpcore.UnsupportedProtocol)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""


def error_for_caller(error: BaseException, opening: bool, table: Table) -> BaseException:
    """Return the error that the caller gets for a request that failed with ``error``.

    ``opening``: its connection was just being opened. Such an error gets poolkit's type too; all others are httpcore's
    alone.
    """
    if isinstance(error, httpcore.ConnectionNotAvailable):  # httpcore uses it only between a connection and its pool
        return RequestRefused("The server closed the connection before it processed the request.")
    if isinstance(error, httpcore.ConnectTimeout):
        return table.joined(errors.ConnectTimeout, error)
    if isinstance(error, (httpcore.ConnectError, httpcore.ProxyError)) or (opening and isinstance(error, Exception)):
        return table.joined(errors.ConnectFailed, error)
    return error
