"""The adapter's error classes, which inherit from poolkit's and psycopg's, and the meaning of the server's errors."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import psycopg_pool

import poolkit
from poolkit import Verdict
from poolkit.connector import default_classify
from poolkit.errors import raw_text, shown

from .._errors import BAD_SETTING, MISSING, Row, Table

__all__ = (
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "ERRORS",
    "NotLeased",
    "InvalidConninfo",
    "LeaseCut",
    "LeaseOverdue",
    "PoolClosed",
    "PoolSuspended",
    "AcquireTimeout",
    "ServerUnavailable",
    "PoolBusy",
    "UsageError",
    "WrongLoop",
    "classify",
)


class _Error(psycopg.Error):
    """Calls psycopg's constructor, without which the error cannot be pickled and has no ``diag``.

    Otherwise RuntimeError or OSError, bases of poolkit's classes, would come first and end the super() chain.
    """

    def __init__(self, *args: Any) -> None:
        psycopg.Error.__init__(self, *args)


class AcquireTimeout(_Error, poolkit.AcquireTimeout, psycopg_pool.PoolTimeout):
    """No connection became free within ``timeout`` seconds: the pool is exhausted."""


class ServerUnavailable(_Error, poolkit.ServerUnavailable, psycopg_pool.PoolTimeout):
    """``timeout`` expired while no connection could be opened. ``__cause__`` is the server's or network's error."""


# psycopg_pool has one error for every reason why there is no connection, so these three are its PoolTimeout too.


class ConnectFailed(_Error, poolkit.ConnectFailed, psycopg_pool.PoolTimeout):
    """Connecting failed in a way that waiting cannot fix (authentication, unknown database, TLS)."""


class ConnectTimeout(_Error, poolkit.ConnectTimeout, psycopg_pool.PoolTimeout):
    """One attempt to connect took longer than ``connect_timeout`` seconds."""


class CircuitOpen(_Error, poolkit.CircuitOpen, psycopg_pool.PoolTimeout):
    """The circuit breaker is open."""


class PoolClosed(_Error, poolkit.PoolClosed, psycopg_pool.PoolClosed):
    """The pool is closed or not open yet."""


class PoolBusy(_Error, poolkit.PoolBusy, psycopg_pool.TooManyRequests):
    """``max_waiting`` callers are already waiting."""


class PoolSuspended(_Error, poolkit.PoolSuspended, psycopg.OperationalError):
    """The engine was suspended with ``fail_fast=True``."""


# A wrong call is an InterfaceError, PEP 249's class for errors of the interface and not of the database.


class UsageError(_Error, poolkit.UsageError, psycopg.InterfaceError):
    """A call that is wrong in this situation. The pool is not affected."""


class WrongLoop(_Error, poolkit.WrongLoop, psycopg.InterfaceError):
    """An asynchronous pool was used from another event loop than the one that it belongs to."""


class NotLeased(_Error, poolkit.NotLeased, psycopg.InterfaceError, ValueError):
    """``putconn`` was called with a connection that is not leased from this pool."""


class LeaseOverdue(_Error, poolkit.LeaseOverdue, psycopg.InterfaceError):
    """The connection that was just returned was in use for longer than ``leak_after`` (``on_leak="raise"``)."""


class LeaseCut(_Error, poolkit.NotLeased, psycopg.OperationalError):
    """The pool closed the connection during a ``connection()`` block.

    Raised at the end of the block. Uncommitted changes are lost.
    """


class InvalidConninfo(poolkit.ConfigError, psycopg.ProgrammingError):
    """The connection string cannot be parsed."""

    def __init__(self, message: str, setting: str = "conninfo") -> None:
        message, setting = shown(message, 2000), shown(setting)
        psycopg.ProgrammingError.__init__(self, message, setting)
        self.setting = setting


class InvalidCallback(poolkit.ConfigError):
    """A callback of an asynchronous pool is not a coroutine function."""


ERRORS = Table(
    Row("no connection became free within `timeout`: the pool is exhausted", AcquireTimeout,
        (poolkit.AcquireTimeout, psycopg_pool.PoolTimeout)),
    Row("`timeout` expired while no connection could be opened; `__cause__` has the reason", ServerUnavailable,
        (poolkit.ServerUnavailable, psycopg_pool.PoolTimeout)),
    Row("connecting cannot succeed (password, database, TLS, unknown host); raised at once. A null pool connects in "
        "its caller and raises psycopg's own error, which is also a `poolkit.ConnectFailed`", ConnectFailed,
        (poolkit.ConnectFailed, psycopg_pool.PoolTimeout)),
    Row("one attempt to connect took longer than `connect_timeout`", ConnectTimeout,
        (poolkit.ConnectTimeout, psycopg_pool.PoolTimeout)),
    Row("the circuit breaker is open", CircuitOpen, (poolkit.CircuitOpen, psycopg_pool.PoolTimeout)),
    Row("`max_waiting` callers are already waiting", PoolBusy,
        (poolkit.PoolBusy, psycopg_pool.TooManyRequests)),
    Row("the pool is suspended with `fail_fast=True`", PoolSuspended,
        (poolkit.PoolSuspended, psycopg.OperationalError)),
    Row("the pool is closed or not open yet", PoolClosed, (poolkit.PoolClosed, psycopg_pool.PoolClosed)),
    Row("`putconn` of a foreign or returned connection", NotLeased,
        (poolkit.NotLeased, psycopg.InterfaceError, ValueError)),
    Row("the pool closed the connection during a `connection()` block (`on_leak=\"reclaim\"`, a fleet budget that lost "
        "its permits, the end of a drain), and no statement in the block failed because of it", LeaseCut,
        (poolkit.NotLeased, psycopg.OperationalError)),
    Row("a connection was returned later than `leak_after`, with `on_leak=\"raise\"`", LeaseOverdue,
        (poolkit.LeaseOverdue, psycopg.InterfaceError)),
    Row("any other wrong call (no event loop is running, a callback breaks its contract)", UsageError,
        (poolkit.UsageError, psycopg.InterfaceError)),
    Row("a connection string cannot be parsed", InvalidConninfo, (poolkit.ConfigError, psycopg.ProgrammingError)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that this adapter raises."""

# For a refused connection libpq passes on only the message, without an SQLSTATE. Messages in other languages than
# English are not recognized: callers then wait until their timeout, as with psycopg_pool.
_FATAL = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|not permitted to log in"
    r'|(database|role) ".{0,200}?" does not exist|certificate verify failed|does not support SSL'
    r"|Name or service not known|nodename nor servname|No address associated",
    re.IGNORECASE,
)


def classify(error: BaseException) -> Verdict:
    """Return what an error of psycopg means (codes: PostgreSQL documentation, appendix A)."""
    if isinstance(error, ReadOnlyServer):
        return Verdict.RETIRE
    if not isinstance(error, psycopg.Error) or isinstance(error, poolkit.PoolError):
        return default_classify(error)
    state = error.sqlstate
    if state is None:
        if not isinstance(error, psycopg.OperationalError):
            return Verdict.KEEP
        return Verdict.FATAL if _FATAL.search(raw_text(error)) else Verdict.SUSPECT
    if state.startswith("28") or state == "3D000":
        return Verdict.FATAL
    if state.startswith("08") or state in ("57P01", "57P02", "57P03", "57P05"):
        return Verdict.SUSPECT
    return Verdict.KEEP


class CheckFailed(psycopg.OperationalError):
    """A new connection failed the user's check. ``__cause__`` has the reason."""


class ReadOnlyServer(Exception):  # never raised: passed to the engine as the reason of a return
    """The server of the connection refuses writes: after a failover it is the wrong server."""


def behind_wrong_server(connection: psycopg.BaseConnection[object], error: BaseException | None) -> bool:
    """Return whether ``error`` means that the server is read-only, and not only this transaction."""
    if not isinstance(error, psycopg.errors.ReadOnlySqlTransaction) or connection.read_only:
        return False
    # PostgreSQL 14 and later report these; if both are "off", the application asked for a read-only transaction
    status = connection.pgconn.parameter_status
    return (status(b"in_hot_standby"), status(b"default_transaction_read_only")) != (b"off", b"off")
