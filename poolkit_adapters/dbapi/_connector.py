"""What the engine needs to know of a PEP 249 module."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from poolkit import ConfigError, Connector, Verdict
from poolkit.connector import default_classify
from poolkit.errors import LeaseOverdue, raw_text

from .._errors import name_missing_descriptor, release_locals
from .._handshake import limit_answers
from .._hang_up import hang_up
from .._time_limits import Watch

__all__ = ("CheckingConnector", "DbapiConnector", "server_of", "timeout_argument")

_TIMEOUT_ARGUMENTS = {
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
"""What each module calls the time limit for connecting (their own documentation). All take whole seconds."""

_POSTGRESQL = ("psycopg", "psycopg2", "pg8000")

# what comes out the same however often one tries (PostgreSQL, MySQL, SQLite)
_FATAL = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|Access denied for user|Unknown database"
    r'|(database|role) ".{0,200}?" does not exist|unable to open database file|certificate verify failed'
    r"|Name or service not known",
    re.IGNORECASE,
)


def timeout_argument(module: ModuleType) -> str | None:
    """The name under which ``module.connect`` takes the time limit for connecting, if it does."""
    known = _TIMEOUT_ARGUMENTS.get(module.__name__)
    if known is not None:
        return known
    try:
        parameters = inspect.signature(module.connect).parameters
    except (TypeError, ValueError):
        return None
    return "connect_timeout" if "connect_timeout" in parameters else None


class DbapiConnector(Connector[Any]):
    """Connections of one module with one set of arguments.

    It has no ``abort``: PEP 249's ``close()`` may block, so it always runs in the background.
    """

    def __init__(
        self,
        module: ModuleType,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        setup: Callable[[Any], object] | None,
        check: Callable[[Any], object] | str | None,
    ) -> None:
        self.module = module
        self.overdue_error: type[LeaseOverdue] = LeaseOverdue
        self._args = args
        self._kwargs = kwargs
        self._setup = setup
        self._check = check
        self._timeout_argument = timeout_argument(module)
        self.watch = Watch()
        self._hung: set[int] = set()  # connections whose check still runs in a thread that will close them

    def connect(self, timeout: float | None) -> Any:
        """Open a connection and prepare it."""
        kwargs, restore, begun = dict(self._kwargs), None, time.monotonic()
        name = self._timeout_argument
        if timeout is not None:
            own = kwargs.get(name) if name is not None else None  # connect_kwargs win
            restore = limit_answers(self.module.__name__, kwargs, timeout if own is None else own)
            if name is not None:
                kwargs.setdefault(name, max(1, round(timeout)))
        try:
            connection = self.module.connect(*self._args, **kwargs)
        except BaseException as error:
            release_locals(error)  # psycopg leaves the socket of a connect that took too long to the garbage collector
            name_missing_descriptor(error)
            raise
        if inspect.isawaitable(connection) or inspect.iscoroutinefunction(getattr(connection, "commit", None)):
            _discard_awaitable(connection)
            raise ConfigError(
                f"{self.module.__name__}.connect() is asynchronous; PooledDatabase is for synchronous modules",
                "module",
            )
        if restore is not None:
            restore(connection)
        if self._setup is not None:
            left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
            try:
                with self.watch.limit(connection, left, "setup"):
                    self._setup(connection)
                    connection.commit()  # what it has set must survive the first rollback
            except BaseException as error:
                with contextlib.suppress(Exception):  # its socket may be shut down: pg8000 fails to say goodbye
                    connection.close()
                del connection  # whoever keeps the error keeps this frame, and with it a socket that is not closed
                release_locals(error)
                raise
        return connection

    def close(self, connection: Any) -> None:
        """Close the module's connection."""
        if id(connection) not in self._hung:
            connection.close()

    def classify(self, error: BaseException) -> Verdict:
        """What an error of a connect means; a lease's end is judged by its rollback."""
        if isinstance(error, self.module.Error):
            return Verdict.FATAL if _FATAL.search(raw_text(error)) else Verdict.SUSPECT
        if isinstance(error, (ConfigError, TypeError)):
            return Verdict.FATAL  # arguments that connect() does not take
        return default_classify(error)


def server_of(module: ModuleType) -> str:
    """What the module speaks to, in the words of :func:`rollback_limit`; "": nothing that could be silent."""
    name = module.__name__.partition(".")[0]
    return "" if name == "sqlite3" else "postgresql" if name in _POSTGRESQL else name


class CheckingConnector(DbapiConnector):
    """For modules that speak to a server, which may be gone."""

    def check(self, connection: Any, timeout: float | None) -> bool:
        """The user's check, the module's ``ping()``, or ``SELECT 1``; in a thread, for it may never come back."""
        error: list[BaseException] = []
        done = threading.Event()
        turn = threading.Lock()  # who comes second finds out: the check, or the end of our patience

        def ask() -> None:
            try:
                self._ask(connection)
            except BaseException as failure:  # noqa: BLE001 - handed to the one who waits
                error.append(failure)
            with turn:
                done.set()
                abandoned = id(connection) in self._hung
            if abandoned:
                error.clear()  # nobody asks for it, and its frames keep the socket
                self._hung.discard(id(connection))
                with contextlib.suppress(Exception):  # its socket is shut down: pg8000 fails to say goodbye
                    connection.close()

        threading.Thread(target=ask, name="poolkit-dbapi-check", daemon=True).start()
        done.wait(timeout)
        with turn:
            if not done.is_set():
                self._hung.add(id(connection))
                hang_up(connection)  # the thread hears of it where the socket can be reached, and closes the connection
                raise TimeoutError(f"no answer in {timeout:g} s")
        if error:
            raise error[0]
        return True

    def _ask(self, connection: Any) -> None:
        if callable(self._check):
            if self._check(connection) is False:
                raise ConnectionAbortedError("the check said False")
            return
        ping = getattr(connection, "ping", None)
        if self._check is None and callable(ping):
            # never let the driver reconnect by itself: the new session would lack its setup
            ping(**({"reconnect": False} if _takes(ping, "reconnect") else {}))
            return
        cursor = connection.cursor()
        try:
            cursor.execute(self._check or "SELECT 1")
            cursor.fetchall()
        finally:
            cursor.close()
        connection.rollback()


def _takes(function: Callable[..., object], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _discard_awaitable(connection: Any) -> None:
    for name in ("close", "stop"):  # a coroutine; aiosqlite's connection, which is a thread not yet started
        method = getattr(connection, name, None)
        if method is not None and not inspect.iscoroutinefunction(method):
            method()
            return
