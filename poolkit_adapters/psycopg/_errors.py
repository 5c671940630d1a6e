"""The adapter's errors, each poolkit's and psycopg's at once, and what the server's errors mean for the pool."""

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
    "ForeignConnection",
    "InvalidConninfo",
    "LeaseCut",
    "LeaseOverdue",
    "PoolClosed",
    "PoolSuspended",
    "PoolTimeout",
    "ServerUnavailable",
    "TooManyRequests",
    "UsageError",
    "WrongLoop",
    "classify",
)


class _Error(psycopg.Error):
    """psycopg's constructor: RuntimeError and OSError, bases of poolkit's classes, come first otherwise and end the
    chain. Without it the error cannot be pickled, and has no ``diag``.
    """

    def __init__(self, *args: Any) -> None:
        psycopg.Error.__init__(self, *args)


class PoolTimeout(_Error, poolkit.AcquireTimeout, psycopg_pool.PoolTimeout):
    """No connection within ``timeout``: the pool is exhausted."""


class ServerUnavailable(_Error, poolkit.ServerUnavailable, psycopg_pool.PoolTimeout):
    """No connection within ``timeout``, and none can be opened; ``__cause__`` is the server's or network's error."""


# psycopg_pool knows one error for "no connection for you", whatever the reason: hence PoolTimeout in these three.


class ConnectFailed(_Error, poolkit.ConnectFailed, psycopg_pool.PoolTimeout):
    """Connecting failed in a way that waiting does not mend (authentication, unknown database, TLS)."""


class ConnectTimeout(_Error, poolkit.ConnectTimeout, psycopg_pool.PoolTimeout):
    """One attempt to connect took longer than ``connect_timeout``."""


class CircuitOpen(_Error, poolkit.CircuitOpen, psycopg_pool.PoolTimeout):
    """The circuit breaker is open."""


class PoolClosed(_Error, poolkit.PoolClosed, psycopg_pool.PoolClosed):
    """The pool is not open yet, or closed."""


class TooManyRequests(_Error, poolkit.PoolBusy, psycopg_pool.TooManyRequests):
    """``max_waiting`` callers wait already."""


class PoolSuspended(_Error, poolkit.PoolSuspended, psycopg.OperationalError):
    """The engine was suspended with ``fail_fast=True``."""


# Calls that are wrong are PEP 249's InterfaceError: of the interface, not of the database.


class UsageError(_Error, poolkit.UsageError, psycopg.InterfaceError):
    """A call that is wrong at this place; the pool is unharmed."""


class WrongLoop(_Error, poolkit.WrongLoop, psycopg.InterfaceError):
    """An asynchronous pool was used from another event loop than the one it lives on."""


class ForeignConnection(_Error, poolkit.NotLeased, psycopg.InterfaceError, ValueError):
    """``putconn`` of a connection that is not out of this pool."""


class LeaseOverdue(_Error, poolkit.LeaseOverdue, psycopg.InterfaceError):
    """The connection that was just given back had been out longer than ``leak_after`` (``on_leak="raise"``)."""


class LeaseCut(_Error, poolkit.NotLeased, psycopg.OperationalError):
    """At the end of a ``connection()`` block: the pool had closed the connection during the block, which left no error
    of its own. What was not committed before is lost.
    """


class InvalidConninfo(poolkit.ConfigError, psycopg.ProgrammingError):
    """The connection string does not parse."""

    def __init__(self, message: str, setting: str = "conninfo") -> None:
        message, setting = shown(message, 2000), shown(setting)
        psycopg.ProgrammingError.__init__(self, message, setting)
        self.setting = setting


class InvalidCallback(poolkit.ConfigError):
    """A callback of an asynchronous pool that cannot be awaited."""


ERRORS = Table(
    Row("no connection within `timeout`: the pool is exhausted", PoolTimeout,
        (poolkit.AcquireTimeout, psycopg_pool.PoolTimeout)),
    Row("no connection within `timeout`, and none can be opened; `__cause__` says why", ServerUnavailable,
        (poolkit.ServerUnavailable, psycopg_pool.PoolTimeout)),
    Row("connecting cannot work (password, database, TLS, unknown host): at once. In a null pool, which connects in "
        "its caller: psycopg's own error, of a class that is `poolkit.ConnectFailed` too", ConnectFailed,
        (poolkit.ConnectFailed, psycopg_pool.PoolTimeout)),
    Row("one attempt to connect took longer than `connect_timeout`", ConnectTimeout,
        (poolkit.ConnectTimeout, psycopg_pool.PoolTimeout)),
    Row("the breaker is open", CircuitOpen, (poolkit.CircuitOpen, psycopg_pool.PoolTimeout)),
    Row("`max_waiting` callers wait already", TooManyRequests, (poolkit.PoolBusy, psycopg_pool.TooManyRequests)),
    Row("suspended with `fail_fast=True`", PoolSuspended, (poolkit.PoolSuspended, psycopg.OperationalError)),
    Row("the pool is not open yet, or closed", PoolClosed, (poolkit.PoolClosed, psycopg_pool.PoolClosed)),
    Row("`putconn` of a foreign or returned connection", ForeignConnection,
        (poolkit.NotLeased, psycopg.InterfaceError, ValueError)),
    Row("the pool closed the connection during a `connection()` block (`on_leak=\"reclaim\"`, a fleet budget that lost "
        "its permits, the end of a drain), and nothing in the block has failed of it", LeaseCut,
        (poolkit.NotLeased, psycopg.OperationalError)),
    Row("a connection came back after `leak_after`, with `on_leak=\"raise\"` (synchronous pools)", LeaseOverdue,
        (poolkit.LeaseOverdue, psycopg.InterfaceError)),
    Row("any other call that is wrong (no event loop runs here, a callback that breaks its contract)", UsageError,
        (poolkit.UsageError, psycopg.InterfaceError)),
    Row("a connection string that does not parse", InvalidConninfo, (poolkit.ConfigError, psycopg.ProgrammingError)),
    BAD_SETTING,
    MISSING,
)  # fmt: skip
"""Every error that leaves this adapter."""

# libpq hands no SQLSTATE on for a refused connection, only the text. A server that speaks another language than
# English is not understood here: then callers wait out their timeout, as with psycopg_pool.
_FATAL = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|not permitted to log in"
    r'|(database|role) ".{0,200}?" does not exist|certificate verify failed|does not support SSL'
    r"|Name or service not known|nodename nor servname|No address associated",
    re.IGNORECASE,
)


def classify(error: BaseException) -> Verdict:
    """What an error of psycopg means (codes: PostgreSQL documentation, appendix A)."""
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
    """A new connection did not pass the user's check; ``__cause__`` says why."""


class ReadOnlyServer(Exception):  # never raised: it tells the engine why a connection comes back
    """The server behind the connection refuses to write: after a failover it is the wrong one."""


def behind_wrong_server(connection: psycopg.BaseConnection[object], error: BaseException | None) -> bool:
    """Whether ``error`` says that the server is read-only, rather than that this transaction was meant to be."""
    if not isinstance(error, psycopg.errors.ReadOnlySqlTransaction) or connection.read_only:
        return False
    # reported by PostgreSQL 14 and later; "off" in both: the application itself asked for a read-only transaction
    status = connection.pgconn.parameter_status
    return (status(b"in_hot_standby"), status(b"default_transaction_read_only")) != (b"off", b"off")
