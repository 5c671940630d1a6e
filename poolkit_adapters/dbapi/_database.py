"""The pool of a PEP 249 module."""

from __future__ import annotations

import inspect
import logging
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, TracebackType
from typing import Any, Literal

from poolkit import (
    AutoscaleConfig,
    BackoffConfig,
    BreakerConfig,
    ClassConfig,
    ConfigError,
    Lease,
    OverloadConfig,
    Pool,
    PoolConfig,
    PoolConfigWarning,
    PoolError,
    PoolStats,
    UsageError,
    Verdict,
)
from poolkit.config import SharedBudget
from poolkit.errors import LeaseOverdue, cannot_connect, describe

from .._options import UNSET, given_settings
from .._time_limits import rollback_limit
from ._checks import ServerChecks
from ._connector import DbapiConnector, server_of
from ._errors import errors_of, told
from ._proxies import LeaseState, PooledConnection
from ._settings import check_keywords, plan
from ._state import RECONNECTING, STATELESS, left_in_transaction, restorable, still_in_memory

__all__ = ("PooledDatabase",)

logger = logging.getLogger("poolkit")

_NO_LIMIT = nullcontext()
_NEEDED = ("connect", "threadsafety", "paramstyle", "Error", "InterfaceError", "OperationalError", "ProgrammingError")
_ASYNC = {
    "asyncpg": "poolkit_adapters.sqlalchemy with postgresql+asyncpg, or your own AsyncConnector",
    "aiosqlite": "poolkit_adapters.sqlalchemy with sqlite+aiosqlite, or your own AsyncConnector",
    "aiomysql": "poolkit_adapters.sqlalchemy with mysql+aiomysql, or your own AsyncConnector",
    "asyncmy": "poolkit_adapters.sqlalchemy with mysql+asyncmy, or your own AsyncConnector",
    "aiopg": "poolkit_adapters.psycopg.AsyncPoolkitConnectionPool",
}


class PooledDatabase:
    """A pool of connections of a PEP 249 module. Thread-safe, and safe after ``fork()``.

    ``PooledDatabase(module, *args, **kwargs)``: keywords that name a setting of :class:`~poolkit.PoolConfig`
    (``max_size``, ``acquire_timeout``, ...) are poolkit's. All others and ``args`` go to ``module.connect``. If both
    know a name, it is poolkit's; ``connect_kwargs={...}`` goes to the module unchanged. ``connect_timeout`` is
    poolkit's, in seconds, and is passed on under the module's own name for it.

    Args:
        module: the module itself, not its name.
        config: settings as one object. Single keywords override it.
        name: name of the pool, for messages and metrics.
        connect_kwargs: further keywords for ``module.connect``, passed on without inspection.
        setup: called with each new connection (session settings). Its transaction is committed afterwards.
        check: how an idle connection is checked before it is used again: a callable (the connection is dead if it
            returns False or raises) or an SQL statement. By default the connection's ``ping()``, or ``SELECT 1`` if
            it has none. sqlite3 needs no check.
        reset: ``"rollback"``: if the connection was used, roll back its transaction on return, restore its
            attributes, and close a connection that a method has changed permanently. A callable is called after that
            with each connection that was used, and must end its own transaction. None resets nothing: the next user
            finds all changes.
        debug: record the place of every ``connect()``, for the report of leases that were never closed.

    Raises:
        ConfigError: the module does not follow PEP 249, is asynchronous, or does not allow several threads
            (``threadsafety`` 0); a setting is wrong, or a keyword resembles a setting.
    """

    def __init__(
        self,
        module: ModuleType,
        /,
        *args: Any,
        config: PoolConfig | None = None,
        name: str | None = None,
        connect_kwargs: dict[str, Any] | None = None,
        setup: Callable[[Any], object] | None = None,
        check: Callable[[Any], object] | str | None = None,
        reset: Callable[[Any], object] | Literal["rollback"] | None = "rollback",
        debug: bool = False,
        min_size: int = UNSET,
        max_size: int | None = UNSET,
        max_idle: int | None = UNSET,
        max_waiting: int | None = UNSET,
        order: Literal["lifo", "fifo"] = UNSET,
        start: Literal["lazy", "eager"] = UNSET,
        acquire_timeout: float | None = UNSET,
        connect_timeout: float | None = UNSET,
        check_timeout: float | None = UNSET,
        max_lifetime: float | None = UNSET,
        lifetime_jitter: float = UNSET,
        idle_timeout: float | None = UNSET,
        keepalive: float | None = UNSET,
        check_after_idle: float | None = UNSET,
        max_connecting: int | None = UNSET,
        connect_in_caller: bool = UNSET,
        leak_after: float | None = UNSET,
        on_leak: Literal["warn", "raise", "reclaim"] = UNSET,
        use_histogram: bool = UNSET,
        barging_window: float | None = UNSET,
        backoff: BackoffConfig = UNSET,
        breaker: BreakerConfig | None = UNSET,
        autoscale: AutoscaleConfig | None = UNSET,
        overload: OverloadConfig | None = UNSET,
        budget: SharedBudget | None = UNSET,
        budget_weight: float = UNSET,
        classes: Mapping[str, ClassConfig] | None = UNSET,
        default_class: str | None = UNSET,
        **kwargs: Any,
    ) -> None:
        settings = given_settings(locals())
        _check_module(module)
        check_keywords(module, kwargs)
        planned = plan(module, config, settings, asks=check is not None)
        if connect_kwargs is not None and not isinstance(connect_kwargs, dict):
            raise ConfigError(f"connect_kwargs: must be a dict, not {type(connect_kwargs).__name__}", "connect_kwargs")
        for key in kwargs.keys() & (connect_kwargs or {}).keys():
            raise ConfigError(f"{key} is given twice, as a keyword and in connect_kwargs; give only one", key)
        kwargs |= connect_kwargs or {}
        for key, callback in (("setup", setup), ("reset", None if reset == "rollback" else reset)):
            if callback is not None and not callable(callback):
                raise ConfigError(f"{key}={callback!r}: must be callable", key)
        if check is not None and not callable(check) and not isinstance(check, str):
            raise ConfigError(f"check={check!r}: must be callable or an SQL statement", "check")
        self._irreplaceable = still_in_memory(module, args[0] if args else kwargs.get("database"))
        if module.__name__ == "sqlite3":
            kwargs = _for_sqlite(args, kwargs, planned)
        self._module = module
        self._reset = reset
        self._errors = errors_of(module)
        self._stateless = STATELESS if setup is not None else STATELESS | RECONNECTING
        self._restorable = restorable(module)
        self._server = server_of(module)
        local = module.__name__ == "sqlite3" and check is None  # no server to check
        checks = None if local else ServerChecks(check)
        self._connector = DbapiConnector(module, args, kwargs, planned, setup=setup, checks=checks)
        self._connector.overdue_error = self._errors.of(LeaseOverdue)
        self._pool: Pool[Any] = Pool(self._connector, self._connector.first_config, name=name, debug=debug)
        self._connector.pool = weakref.ref(self._pool)

    @property
    def poolkit(self) -> Pool[Any]:
        """The underlying engine: ``stats()``, ``explain()``, ``clear()``, ``reconfigure()``, events."""
        return self._pool

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._pool.name

    def connect(self, timeout: float | None = None) -> PooledConnection:
        """Lease a connection. Its ``close()`` gives it back.

        ``timeout``, in seconds, replaces ``acquire_timeout``; 0 does not wait. Raises errors that inherit from both
        poolkit's and the module's errors: AcquireTimeout, ServerUnavailable, ConnectFailed, CircuitOpen, PoolBusy and
        PoolSuspended (OperationalError), PoolClosed (InterfaceError).
        """
        try:
            lease = self._pool.lease() if timeout is None else self._pool.lease(timeout)
        except PoolError as error:
            raise told(self._module, self._errors, error) from error.__cause__
        except Exception as error:  # connect_in_caller: the caller's own connect failed
            failed = cannot_connect(self.name, error, fatal=self._connector.classify(error) is Verdict.FATAL)
            raise told(self._module, self._errors, failed) from error
        return PooledConnection(self, lease)

    def _misused(self, text: str) -> PoolError:
        return self._errors.adapted(UsageError(f"{self.name}: {text}"))

    def _give_back(self, lease: Lease[Any], *, state: LeaseState) -> None:
        """Reset a connection that was used and end its lease, in the thread that gives it back."""
        if state.broken:
            self._discard(lease, state)
            return
        gone = self._reset is not None and state.changed is not None and not self._irreplaceable
        clean = self._reset is not None and state.used and not gone
        if gone:
            logger.debug("%s: closed a connection, because %s may have changed its session", self.name, state.changed)
        connection, failure = lease.connection, None
        try:
            if state.dependents or clean:
                with self._limited(connection, "reset"):
                    state.end_dependents()
                    if clean:
                        self._clean(connection, state)
        except Exception as error:  # noqa: BLE001 - logged, and the connection is closed
            logger.debug("%s: closed a connection, because its reset failed: %s", self.name, describe(error))
            failure = error
        except BaseException:
            self._discard(lease, state)
            raise
        if gone:
            lease.close(discard=True)
            return
        if isinstance(failure, (self._module.Error, TimeoutError)) and self._module.__name__ != "sqlite3":
            # if the server cannot even roll back, the idle connections may be dead as well: report the error
            lease.close(error=ConnectionAbortedError())
        else:
            lease.close(discard=failure is not None)

    def _discard(self, lease: Lease[Any], state: LeaseState) -> None:
        """End a lease whose connection may be in the middle of a reply."""
        dropped, key = self._connector.dropped, id(lease.connection)
        dropped[key] = state.drop_dependents()
        try:
            lease.close(discard=True)
        except BaseException:  # it is closed already
            dropped.pop(key, None)
            raise

    def _limited(self, connection: Any, what: str) -> AbstractContextManager[None]:
        """A block that includes a rollback, which a vanished server never answers."""
        limit = rollback_limit(self._pool.config.check_timeout, self._server) if self._server else None
        return _NO_LIMIT if limit is None else self._connector.watch.limit(connection, limit, what)

    def _clean(self, connection: Any, state: LeaseState) -> None:
        """Restore the state that the next user of a connection expects. Raise an exception if that is not possible."""
        if state.touched:
            connection.rollback()
        if left_in_transaction(self._module, connection):
            raise RuntimeError("rollback() did not end the transaction")
        for name, value in state.saved.items():
            setattr(connection, name, value)
        for name, value in state.called.items():
            getattr(connection, name)(value)
        if callable(self._reset):
            self._reset(connection)
            if left_in_transaction(self._module, connection):
                raise RuntimeError(f"reset={self._reset!r} left a transaction open, and a rollback did not end it")

    def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool and its idle connections. Leased connections are closed when they are given back.

        Waits up to ``timeout`` seconds for the closes (None: no limit).
        """
        self._pool.close(timeout)

    def drain(self, timeout: float | None = 30.0) -> bool:
        """Refuse new callers, wait up to ``timeout`` seconds for all leases to end, then close the pool.

        Returns True if all leases ended in time.
        """
        return self._pool.drain(timeout)

    def stats(self) -> PoolStats:
        """Return a snapshot of the pool's state."""
        return self._pool.stats()

    def __enter__(self) -> PooledDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Return a name of the module (``Error``, ``paramstyle``, ``Binary``, ...), so that this can replace it."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._module, name)

    def __repr__(self) -> str:
        return f"<PooledDatabase of {self._module.__name__}: {self._pool!r}>"


def _check_module(module: Any) -> None:
    name = getattr(module, "__name__", None)
    if not isinstance(name, str):
        raise ConfigError(f"module={module!r}: must be the module itself; import it first", "module")
    if name in _ASYNC or inspect.iscoroutinefunction(getattr(module, "connect", None)):
        instead = _ASYNC.get(name, "your own AsyncConnector")
        raise ConfigError(
            f"module={name} is asynchronous, but PooledDatabase needs a synchronous module; use {instead}", "module"
        )
    missing = [needed for needed in _NEEDED if not hasattr(module, needed)]
    if missing:
        raise ConfigError(f"module={name} is not a PEP 249 module: it has no {', '.join(missing)}", "module")
    if not module.threadsafety:
        raise ConfigError(
            f"module={name} cannot be pooled: its threadsafety is {module.threadsafety}, so threads may not even share "
            "the module",
            "module",
        )


def _for_sqlite(args: tuple[Any, ...], kwargs: dict[str, Any], config: PoolConfig) -> dict[str, Any]:
    """Allow one thread after another to use a connection, which sqlite3 refuses by default."""
    if kwargs.get("check_same_thread"):
        raise ConfigError(
            "check_same_thread=True does not work with a pool: several threads use a connection, one at a time, which "
            "SQLite allows (sqlite3.threadsafety); remove it, because poolkit passes check_same_thread=False",
            "check_same_thread",
        )
    database = args[0] if args else kwargs.get("database")
    if database in (":memory:", b":memory:", "") and config.max_size != 1:
        warnings.warn(
            f"database={database!r}: each connection opens a separate database; use max_size=1, or "
            "'file:name?mode=memory&cache=shared' with uri=True",
            PoolConfigWarning,
            stacklevel=4,
        )
    return {**kwargs, "check_same_thread": False}
