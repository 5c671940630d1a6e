"""Error classes that inherit from both poolkit's and httpx's errors, so that ``except`` clauses keep working."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from poolkit import errors

from .._errors import BAD_SETTING, MISSING, Row, Table
from ._driver import DRIVER, httpx, map_httpcore_exceptions, rows_of_waits

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
    "keep_poolkit_types",
    "raise_as_httpx",
    "refuse_foreign",
)


class RequestError(httpx.TransportError):
    """Adds httpx's constructor and its ``request``."""

    def __init__(self, message: str, *, request: httpx.Request | None = None) -> None:
        # not super(): OSError, a base of TimeoutError, comes first, and its __init__ ends the chain
        httpx.RequestError.__init__(self, message, request=request)


class AcquireTimeout(RequestError, errors.AcquireTimeout, httpx.PoolTimeout):
    """No connection became free within ``httpx.Timeout(pool=)`` seconds."""


class ServerUnavailable(RequestError, errors.ServerUnavailable, httpx.PoolTimeout):
    """``httpx.Timeout(pool=)`` expired while no connection to the server could be opened."""


class PoolBusy(RequestError, errors.PoolBusy, httpx.PoolTimeout):
    """``max_waiting`` requests are already waiting."""


class PoolSuspended(RequestError, errors.PoolSuspended, httpx.PoolTimeout):
    """The pool was suspended with ``fail_fast=True``."""


class PoolClosed(RequestError, errors.PoolClosed, httpx.NetworkError):
    """The pool was closed while the request waited for a connection."""


class ConnectFailed(RequestError, errors.ConnectFailed, httpx.ConnectError):
    """No connection could be opened."""


class ConnectTimeout(RequestError, errors.ConnectTimeout, httpx.ConnectTimeout):
    """Opening a connection took longer than ``httpx.Timeout(connect=)`` seconds."""


class CircuitOpen(RequestError, errors.CircuitOpen, httpx.ConnectError):
    """The circuit breaker is open after repeated failed connects. Requests to the origin fail until the next probe."""


# A wrong call is a LocalProtocolError, httpx's class for a client that violates the protocol.


class UsageError(RequestError, errors.UsageError, httpx.LocalProtocolError):
    """A call that is wrong in this situation. The pool is not affected."""


class WrongLoop(RequestError, errors.WrongLoop, httpx.LocalProtocolError):
    """An asynchronous transport was used from another event loop than the one that it belongs to."""


class LeaseOverdue(RequestError, errors.LeaseOverdue, httpx.LocalProtocolError):
    """The response that was just closed had been open longer than ``leak_after`` (``on_leak="raise"``)."""


ERRORS = Table(
    *rows_of_waits(globals(), httpx, f"{DRIVER}.Timeout(pool=)"),
    Row("opening a connection failed (refused, unknown host, TLS, no descriptor left). A more specific error of "
        f"{DRIVER} (`ProxyError`) keeps its class and is also a `poolkit.ConnectFailed`", ConnectFailed,
        (errors.ConnectFailed, httpx.ConnectError)),
    Row(f"opening a connection took too long (`{DRIVER}.Timeout(connect=)`, or `connect_timeout`)", ConnectTimeout,
        (errors.ConnectTimeout, httpx.ConnectTimeout)),
    Row("the circuit breaker of the origin is open", CircuitOpen, (errors.CircuitOpen, httpx.ConnectError)),
    Row("the server closed the connection before it processed the request, and the request cannot be sent again",
        httpx.RemoteProtocolError, (errors.ConnectFailed, httpx.RemoteProtocolError)),
    Row("a response was closed later than `leak_after`, with `on_leak=\"raise\"`",
        LeaseOverdue, (errors.LeaseOverdue, httpx.LocalProtocolError)),
    Row("an asynchronous transport is used from a second event loop", WrongLoop,
        (errors.WrongLoop, httpx.LocalProtocolError)),
    Row("any other wrong call (for example, no event loop is running)", UsageError,
        (errors.UsageError, httpx.LocalProtocolError)),
    Row("the transport does not support the scheme of the URL", httpx.UnsupportedProtocol,
        (errors.UsageError, httpx.UnsupportedProtocol)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""


def refuse_foreign(transport: object, request: object) -> None:
    """Raise UsageError for a request of another library's client, which would end in an error without a text."""
    if isinstance(request, httpx.Request):
        return
    for kind in type(request).__mro__:
        other = kind.__module__.partition(".")[0]
        if other in ("httpx", "httpx2"):
            own, name = f"poolkit_adapters.{DRIVER}", type(transport).__name__
            raise UsageError(
                f"{name} of {own} serves clients of {DRIVER}, but was given to one of {other}: "
                f"import it from poolkit_adapters.{other}"
            )
    raise UsageError(f"{type(transport).__name__} needs an {DRIVER}.Request, not {type(request).__name__}")


def raise_as_httpx(error: BaseException) -> NoReturn:
    """Raise an error of httpcore as httpx's, and any other one as it is."""
    with map_httpcore_exceptions():
        raise error
    raise AssertionError  # unreachable, as a type checker does not know


@contextmanager
def keep_poolkit_types() -> Iterator[None]:
    """Add poolkit's types again to errors of the pool, which httpx converts from httpcore's errors to its own."""
    try:
        yield
    except httpx.TransportError as error:
        cause = error.__cause__
        if isinstance(error, errors.PoolError) or not isinstance(cause, errors.PoolError):
            raise
        told = ERRORS.joined(type(cause), error)
        told.__dict__.update(cause.__dict__)
        raise told from cause.__cause__
