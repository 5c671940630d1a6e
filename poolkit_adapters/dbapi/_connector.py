"""The engine's connectors for PEP 249 modules."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from poolkit import ConfigError, Connector, Pool, PoolConfig, Verdict
from poolkit.connector import default_classify
from poolkit.errors import LeaseOverdue, raw_text

from .._attempts import Attempt, Attempts
from .._errors import release_locals
from .._handshake import limit_answers
from .._hang_up import Connecting, is_reachable
from .._libpq import whole_seconds
from .._options import replaces_limit_of_driver
from .._time_limits import Watch, caller_limit, rest_of, seconds_of, whole_connect
from ._checks import ServerChecks
from ._names import LIBPQ, look_up, own_limit, written

__all__ = ("TIMEOUT_ARGUMENTS", "DbapiConnector", "server_of", "timeout_argument")

TIMEOUT_ARGUMENTS = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "MySQLdb": "connect_timeout",
    "mysql.connector": "connection_timeout",
    "mariadb": "connect_timeout",
    "pg8000.dbapi": "timeout",
    "pymssql": "login_timeout",
    "oracledb": "tcp_connect_timeout",
}
"""The name of the connect timeout in each module (from its documentation). All take whole seconds."""

_POSTGRESQL = ("psycopg", "psycopg2", "pg8000")

# errors that no retry can fix (PostgreSQL, MySQL, SQLite)
_FATAL = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|Access denied for user|Unknown database"
    r'|(database|role) ".{0,200}?" does not exist|unable to open database file|certificate verify failed'
    r"|Name or service not known",
    re.IGNORECASE,
)


def timeout_argument(module: ModuleType) -> str | None:
    """Return the name of the connect timeout argument of ``module.connect``, or None if there is none."""
    known = TIMEOUT_ARGUMENTS.get(module.__name__)
    if known is not None:
        return known
    try:
        parameters = inspect.signature(module.connect).parameters
    except (TypeError, ValueError):
        return None
    return "connect_timeout" if "connect_timeout" in parameters else None


class DbapiConnector(Connector[Any]):
    """Opens connections of one module with one set of arguments.

    Has no ``abort``: PEP 249's ``close()`` may block, so it always runs in the background. ``checks`` is None where no
    server can be gone (sqlite3).
    """

    def __init__(
        self,
        module: ModuleType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        config: PoolConfig,
        *,
        setup: Callable[[Any], object] | None,
        checks: ServerChecks | None,
    ) -> None:
        self.module = module
        self.overdue_error: type[LeaseOverdue] = LeaseOverdue
        self._args = args
        self._setup = setup
        self._timeout_argument = timeout_argument(module)
        self._string = written(module, args, kwargs)
        self._own_limit, self.first_config = own_limit(module, self._string, kwargs, self._timeout_argument, config)
        """The connect timeout that the module was given, and the settings that the pool is to be made with."""
        self._kwargs = {name: value for name, value in kwargs.items() if name not in self._own_limit}
        self.watch = Watch()
        self._attempts = Attempts()
        self.give_up = self._attempts.give_up
        self.pool: weakref.ref[Pool[Any]] | None = None  # its settings may change
        self._checks = checks
        self.dropped: dict[int, object] = {}
        """Generators and blocks that were left unfinished, by the id of their connection, until that is closed. A
        generator runs its ``finally`` when it is freed, and that may use the connection in the middle of a reply."""
        if checks is not None:
            self.check = checks.check  # type: ignore[method-assign]

    def connect(self, timeout: float | None) -> Any:
        """Open a connection and prepare it."""
        with self._attempts.under_way() as attempt:
            return self._open(timeout, attempt)

    def _open(self, timeout: float | None, attempt: Attempt) -> Any:
        kwargs = self._keywords()
        restore, begun = None, time.monotonic()
        limit, shared, connection = None, None, None
        if timeout is not None:
            limit, shared = self._limited(kwargs, timeout)
            attempt.extend(math.inf if limit is None else 2 * limit + 1.0)
            restore = None if limit is None else limit_answers(self.module.__name__, kwargs, limit)
        try:
            longest = look_up(self.module, self._string, kwargs, limit, shared)
            if timeout is not None:
                attempt.extend(max(2 * (limit or 0.0), longest) + 1.0)
            attempt.opening()
            with self.watch.limit(Connecting(self.module.__name__), limit, "connect"):
                connection = self.module.connect(*self._args, **kwargs)
        except BaseException as error:
            if connection is not None:  # opened just when its socket was shut down
                with contextlib.suppress(Exception):
                    connection.close()
                connection = None
            release_locals(error)  # psycopg leaves the socket of a timed-out connect to the garbage collector
            raise
        if inspect.isawaitable(connection) or inspect.iscoroutinefunction(getattr(connection, "commit", None)):
            _discard_awaitable(connection)
            raise ConfigError(
                f"{self.module.__name__}.connect() is asynchronous, but PooledDatabase needs a synchronous module",
                "module",
            )
        if timeout is not None:  # otherwise nothing limits the setup, and nothing would end the session
            attempt.extend(2 * timeout + 1.0)
            if is_reachable(connection):
                attempt.opened(partial(self.watch.cut, connection))
        if restore is not None:
            restore(connection)
        if self.module.__name__ == "psycopg":
            from .._psycopg_ending import limit_cancel

            limit_cancel(connection)
        if self._setup is not None:
            try:
                left = rest_of(timeout, longest, begun, "setup")
                if left is not None:
                    attempt.extend(2 * left + 1.0)
                with self.watch.limit(connection, left, "setup"):
                    self._setup(connection)
                    connection.commit()  # its settings must survive the first rollback
            except BaseException as error:
                with contextlib.suppress(Exception):  # pg8000's close() sends a message; the socket may be shut down
                    connection.close()
                del connection  # an error that is kept keeps this frame, and with it a socket that is not closed
                release_locals(error)
                raise
        return connection

    def _limited(self, kwargs: dict[str, Any], timeout: float) -> tuple[float | None, float | None]:
        """Write the limit of the module's connect into ``kwargs``, unless the application has given one, and return it:
        ``timeout``, or the application's (None: no limit). A caller that connects itself lowers the latter.

        Also return the seconds that all addresses share (None: the application's limit is one for each).
        """
        name = self._timeout_argument
        if name is None:
            return timeout, None
        own = kwargs.get(name)
        if own is None:
            kwargs.setdefault(name, self._in_whole_seconds(timeout))
            return timeout, timeout
        limit = seconds_of(own)
        left = caller_limit(self._config(), timeout)
        if left is not None:
            mine = self._in_whole_seconds(left)
            if not limit or mine < limit:  # otherwise the argument stays as it is: libpq takes no float
                limit = kwargs[name] = mine
        return limit, left

    def _config(self) -> PoolConfig:
        """Return the pool's settings, which may change; before there is a pool, those that it is made with."""
        pool = None if self.pool is None else self.pool()
        return self.first_config if pool is None else pool.config

    def _keywords(self) -> dict[str, Any]:
        """Return the keywords of a connect. A ``connect_timeout`` that was given later replaces the module's own."""
        config = self._config()
        if not self._own_limit or not replaces_limit_of_driver(config):
            return {**self._kwargs, **self._own_limit}
        unlimited = config.connect_timeout is None and self.module.__name__ in LIBPQ  # 0, as the string keeps its limit
        return {**self._kwargs, **({"connect_timeout": 0} if unlimited else {})}

    def _in_whole_seconds(self, seconds: float) -> int:
        return whole_seconds(seconds) if self.module.__name__ in LIBPQ else max(1, round(seconds))

    def connect_bound(self, thread: int, timeout: float | None) -> float | None:
        """See ``poolkit.Connector``. A module without a connect timeout has a limit all the same."""
        return self._attempts.bound(thread, whole_connect(self._config()) if timeout is None else timeout)

    def close(self, connection: Any) -> None:
        """Close the module's connection. If psycopg's is running a statement, wait until the server has ended it."""
        _dropped = self.dropped.pop(id(connection), None)  # freed when this has returned
        if self._checks is not None and self._checks.will_close(connection):
            return
        if self.module.__name__ != "psycopg":
            connection.close()
            return
        from .._psycopg_ending import observed_ending

        ending = observed_ending(connection)
        connection.close()
        if ending is not None and ending.at_work:
            ending.wait(self._config().check_timeout)

    def classify(self, error: BaseException) -> Verdict:
        """Return what an error of a connect means. (At the end of a lease the result of the rollback decides.)"""
        if isinstance(error, self.module.Error):
            return Verdict.FATAL if _FATAL.search(raw_text(error)) else Verdict.SUSPECT
        if isinstance(error, (ConfigError, TypeError)):
            return Verdict.FATAL  # arguments that connect() does not take
        return default_classify(error)


def server_of(module: ModuleType) -> str:
    """Return the module's kind of server for :func:`rollback_limit`, or "" if no server is involved (sqlite3)."""
    name = module.__name__.partition(".")[0]
    return "" if name == "sqlite3" else "postgresql" if name in _POSTGRESQL else name


def _discard_awaitable(connection: Any) -> None:
    for name in ("close", "stop"):  # of a coroutine; of aiosqlite's connection, a thread not yet started
        method = getattr(connection, name, None)
        if method is not None and not inspect.iscoroutinefunction(method):
            method()
            return
