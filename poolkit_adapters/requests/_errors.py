"""The adapter's error classes, which inherit from poolkit's and requests' errors."""

from __future__ import annotations

from typing import Any

from requests import exceptions
from urllib3 import exceptions as urllib3

from poolkit import PoolError, errors

from .._errors import BAD_SETTING, MISSING, Row, Table
from ..urllib3._errors import kind_of

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
    "told",
)


class _Plain(Exception):
    """Makes an error from poolkit's arguments. A copied or pickled error has no ``pool``, which holds locks."""

    pool: Any = None
    request: Any = None
    response: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        kept = {name: value for name, value in self.__dict__.items() if name != "pool"}
        return type(self), self.args, kept or None


# requests does not convert urllib3's EmptyPoolError, so callers may catch that; it is a base class here.


class AcquireTimeout(_Plain, errors.AcquireTimeout, exceptions.ConnectTimeout, urllib3.EmptyPoolError):  # type: ignore[misc]
    """No connection became free within ``acquire_timeout`` or ``Timeout(pool=)`` seconds."""


class ServerUnavailable(_Plain, errors.ServerUnavailable, exceptions.ConnectTimeout, urllib3.EmptyPoolError):  # type: ignore[misc]
    """No connection to the server could be opened within ``acquire_timeout`` or ``Timeout(pool=)`` seconds."""


class PoolBusy(_Plain, errors.PoolBusy, exceptions.ConnectionError, urllib3.EmptyPoolError):  # type: ignore[misc]
    """``max_waiting`` requests are already waiting."""


class PoolSuspended(_Plain, errors.PoolSuspended, exceptions.ConnectionError, urllib3.EmptyPoolError):  # type: ignore[misc]
    """The engine was suspended with ``fail_fast=True``."""


class PoolClosed(_Plain, errors.PoolClosed, exceptions.ConnectionError):  # type: ignore[misc]
    """The pool is closed."""


class ConnectFailed(_Plain, errors.ConnectFailed, exceptions.ConnectionError):  # type: ignore[misc]
    """No connection could be opened."""


class ConnectTimeout(_Plain, errors.ConnectTimeout, exceptions.ConnectTimeout):  # type: ignore[misc]
    """Opening a connection took longer than the connect timeout."""


class CircuitOpen(_Plain, errors.CircuitOpen, exceptions.ConnectionError):  # type: ignore[misc]
    """The circuit breaker is open: several connects in a row failed."""


class LeaseOverdue(_Plain, errors.LeaseOverdue, exceptions.RequestException):  # type: ignore[misc]
    """The response that has just ended was open longer than ``leak_after`` (``on_leak="raise"``)."""


ERRORS = Table(
    Row("no connection became free within `acquire_timeout` or `Timeout(pool=)`, or opened within "
        "`acquire_timeout`", AcquireTimeout,
        (errors.AcquireTimeout, exceptions.ConnectTimeout)),
    Row("the same time was up while no connection could be opened", ServerUnavailable,
        (errors.ServerUnavailable, exceptions.ConnectTimeout)),
    Row("`max_waiting` requests are already waiting", PoolBusy, (errors.PoolBusy, exceptions.ConnectionError)),
    Row("the pool is suspended with `fail_fast=True`", PoolSuspended,
        (errors.PoolSuspended, exceptions.ConnectionError)),
    Row("the pool is closed", PoolClosed, (errors.PoolClosed, exceptions.ConnectionError)),
    Row("a connect failed. `SSLError` and `ProxyError` keep their class and are also a `poolkit.ConnectFailed`",
        ConnectFailed, (errors.ConnectFailed, exceptions.ConnectionError)),
    Row("a connect took longer than the connect timeout. If a proxy does not answer `CONNECT`, it is a `ReadTimeout`, "
        "as with requests, and also a `poolkit.ConnectTimeout`", ConnectTimeout,
        (errors.ConnectTimeout, exceptions.ConnectTimeout)),
    Row("the circuit breaker of the host is open", CircuitOpen, (errors.CircuitOpen, exceptions.ConnectionError)),
    Row("a response ended later than `leak_after`, with `on_leak=\"raise\"`", LeaseOverdue,
        (errors.LeaseOverdue, exceptions.RequestException)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""


def told(error: BaseException) -> BaseException:
    """Return an error of requests that poolkit's error caused as one of both libraries."""
    found: Any = error
    while not isinstance(found, PoolError):  # requests stores urllib3's error as the argument of its own
        args = getattr(found, "args", ())
        if not args or not isinstance(args[0], BaseException):
            return error
        found = args[0]
    if isinstance(found, exceptions.RequestException):
        return found  # type: ignore[no-any-return]
    # poolkit's timeouts are OSErrors. requests handles these as network errors before it checks for urllib3's classes.
    if isinstance(found, urllib3.EmptyPoolError):
        return ERRORS.adapted(found)
    if isinstance(found, errors.ConnectTimeout):
        # a proxy that does not answer CONNECT: a ReadTimeout of requests
        unanswered = isinstance(found, urllib3.ReadTimeoutError)
        late = exceptions.ReadTimeout(found) if unanswered else ConnectTimeout(found)
        late.__cause__ = found
        return ERRORS.joined(errors.ConnectTimeout, late)
    raised: Any = ERRORS.joined(kind_of(found), error)
    if isinstance(found, errors.CircuitOpen):
        raised.retry_after = found.retry_after
    return raised  # type: ignore[no-any-return]
