"""The adapter's errors, each poolkit's and psycopg's at once, and what the server's errors mean for the pool."""

from __future__ import annotations

import re

import psycopg
import psycopg_pool

import poolkit
from poolkit import Verdict
from poolkit.connector import default_classify
from poolkit.errors import raw_text, shown

__all__ = (
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "ForeignConnection",
    "InvalidConninfo",
    "KINDS",
    "PoolClosed",
    "PoolSuspended",
    "PoolTimeout",
    "ServerUnavailable",
    "TooManyRequests",
    "classify",
)


class PoolTimeout(poolkit.AcquireTimeout, psycopg_pool.PoolTimeout):
    """No connection within ``timeout``: the pool is exhausted."""


class ServerUnavailable(poolkit.ServerUnavailable, psycopg_pool.PoolTimeout):
    """No connection within ``timeout``, and none can be opened; ``__cause__`` is the server's or network's error."""


# psycopg_pool knows one error for "no connection for you", whatever the reason: hence PoolTimeout in these three.


class ConnectFailed(poolkit.ConnectFailed, psycopg_pool.PoolTimeout):
    """Connecting failed in a way that waiting does not mend (authentication, unknown database, TLS)."""


class ConnectTimeout(poolkit.ConnectTimeout, psycopg_pool.PoolTimeout):
    """One attempt to connect took longer than ``connect_timeout``."""


class CircuitOpen(poolkit.CircuitOpen, psycopg_pool.PoolTimeout):
    """The circuit breaker is open."""


class PoolClosed(poolkit.PoolClosed, psycopg_pool.PoolClosed):
    """The pool is not open yet, or closed."""


class TooManyRequests(poolkit.PoolBusy, psycopg_pool.TooManyRequests):
    """``max_waiting`` callers wait already."""


class PoolSuspended(poolkit.PoolSuspended, psycopg.OperationalError):
    """The engine was suspended with ``fail_fast=True``."""


class ForeignConnection(poolkit.NotLeased, ValueError):
    """``putconn`` of a connection that is not out of this pool."""


class InvalidConninfo(poolkit.ConfigError, psycopg.ProgrammingError):
    """The connection string does not parse."""

    def __init__(self, message: str, setting: str = "conninfo") -> None:
        message, setting = shown(message, 2000), shown(setting)
        psycopg.ProgrammingError.__init__(self, message, setting)
        self.setting = setting


class InvalidCallback(poolkit.ConfigError):
    """A callback of an asynchronous pool that cannot be awaited."""


KINDS: dict[type[poolkit.PoolError], type[poolkit.PoolError]] = {
    poolkit.AcquireTimeout: PoolTimeout,
    poolkit.ServerUnavailable: ServerUnavailable,
    poolkit.ConnectFailed: ConnectFailed,
    poolkit.ConnectTimeout: ConnectTimeout,
    poolkit.CircuitOpen: CircuitOpen,
    poolkit.PoolClosed: PoolClosed,
    poolkit.PoolBusy: TooManyRequests,
    poolkit.PoolSuspended: PoolSuspended,
}

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
