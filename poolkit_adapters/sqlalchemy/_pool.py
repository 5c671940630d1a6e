"""PoolkitPool: SQLAlchemy's pool interface on poolkit's engine. SQLAlchemy's fairies, events, reset and ping remain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.pool import Pool as SQLAlchemyPool
from sqlalchemy.pool.base import _ConnDialect

from poolkit import (
    AutoscaleConfig,
    BackoffConfig,
    BreakerConfig,
    ClassConfig,
    OverloadConfig,
    Pool,
    PoolConfig,
    PoolError,
)
from poolkit.config import Source, sources_of
from poolkit.runtimes import Runtime, ThreadRuntime
from poolkit.settings import DEFAULT, combine

from .._hang_up import Connecting
from .._options import driver_default
from .._time_limits import Watch, rollback_limit
from ._connect_time import Attempt, limit_connects, no_time_limit
from ._endings import Endings
from ._errors import LATE_ROLLBACK, join_wrapped, reported, rollback_cut
from ._fairy import BoundedFairy, Fairy, check_out
from ._names import look_up_first
from ._readonly import watch
from ._reconnects import Reconnects
from ._record import CheckedRecordConnector, Record, RecordConnector
from ._settings import MAX_OVERFLOW, POOL_SIZE, TIMEOUT, UNSET, fixed, queue_sizes, settle
from ._transactions import OpenTransaction, transaction_test

__all__ = ("BasePool", "PoolkitPool")

_THREADS = ThreadRuntime()


class BasePool(SQLAlchemyPool):
    """The common part of the sync and the async pool."""

    poolkit: Pool[Record]
    """The engine: ``stats()``, ``explain()``, ``clear()``, ``drain()``, ``reconfigure()``, ``warm_up()``, ..."""

    _barging_window: float | None = None
    _emptied = False

    def __init__(
        self,
        creator: Any,
        pool_size: int = POOL_SIZE,
        max_overflow: int = MAX_OVERFLOW,
        timeout: float | None = TIMEOUT,
        use_lifo: bool = False,
        # no "*": create_engine() passes on only the names of positional parameters
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Any] = (),
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
        budget: Any = UNSET,
        budget_weight: float = UNSET,
        classes: Mapping[str, ClassConfig] | None = UNSET,
        default_class: str | None = UNSET,
        **kw: Any,
    ) -> None:
        super().__init__(creator, **kw)
        self._fixed = fixed(self._dialect, self._barging_window, asynchronous=self._is_asyncio)
        settled = settle(pool_size, max_overflow, timeout, use_lifo, config, {
            "min_size": min_size, "max_size": max_size, "max_idle": max_idle, "max_waiting": max_waiting,
            "order": order, "start": start, "acquire_timeout": acquire_timeout, "connect_timeout": connect_timeout,
            "check_timeout": check_timeout, "max_lifetime": max_lifetime, "lifetime_jitter": lifetime_jitter,
            "idle_timeout": idle_timeout, "keepalive": keepalive, "check_after_idle": check_after_idle,
            "max_connecting": max_connecting, "connect_in_caller": connect_in_caller, "leak_after": leak_after,
            "on_leak": on_leak, "use_histogram": use_histogram, "barging_window": barging_window, "backoff": backoff,
            "breaker": breaker, "autoscale": autoscale, "overload": overload, "budget": budget,
            "budget_weight": budget_weight, "classes": classes, "default_class": default_class,
        }, no_time_limit=no_time_limit(self._dialect, creator), **self._fixed)  # fmt: skip
        self._listeners, self._debug = tuple(listeners), debug
        self._endings = Endings(self)
        checked = settled.check_after_idle is not None or settled.keepalive is not None
        self._asked_pre_ping = self._pre_ping
        if settled.check_after_idle is not None:
            self._pre_ping = False  # the engine pings, and only connections idle for that long
        connector = (CheckedRecordConnector if checked else RecordConnector)(self)
        connector.counted = kw.get("_dispatch") is None  # otherwise recreate() created it, not the application
        self.poolkit = Pool(
            connector,
            settled,
            name=name or self._orig_logging_name,
            listeners=self._listeners,
            debug=debug,
            runtime=self._runtime_for_engine(),
        )
        limit_connects(self._dialect, settled)
        look_up_first(self._dialect)
        watch(self._dialect)
        join_wrapped(self._dialect)
        self._resting: dict[str, tuple[Any, Source]] = {}  # this pool's own settings while another pool replaces it
        self._server: str = getattr(self._dialect, "name", "")  # "": a pool created by hand
        self._fairy = BoundedFairy if self._server not in ("", "sqlite") else Fairy
        self._in_transaction = transaction_test(self._dialect, self._reset_on_return)

    def _runtime_for_engine(self) -> Runtime:
        raise NotImplementedError

    # -- SQLAlchemy's interface of a pool ---------------------------------------------------------------------------

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out. Its ``close()`` gives it back. Raises SQLAlchemy's errors, as QueuePool does."""
        fairy: PoolProxiedConnection = check_out(self)
        return fairy

    def _should_wrap_creator(self, creator: Any) -> Any:
        """Do the same as SQLAlchemy, and notify the record when the driver has opened its connection."""
        create: Any = super()._should_wrap_creator(creator)

        def opened(record: Any) -> Any:
            connection = create(record)
            record.opened(connection)
            return connection

        return opened

    def _create_connection(self, most: float | None = None) -> Record:
        record = WatchedRecord(self, most)
        record.open()
        return record

    def _leftover(self) -> Any:
        """Return the task that ends what the last failed connect left on the server, or None."""
        return None

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self.poolkit.acquire()
        except PoolError as error:
            failure = error
        raise self._translate(failure)  # outside the except block, so that the cause does not become the context

    def _do_return_conn(self, record: Any, discard: bool = False) -> None:
        if discard:
            if not self._endings.delay(record, partial(self._do_return_conn, record, discard)):
                self.poolkit.release(record, discard=True)
        elif record.wrong_server is not None or record.dbapi_connection is None:
            self._release_useless(record)
        elif self._in_transaction is not None and self._in_transaction(record.dbapi_connection):
            self._release_in_transaction(record)
        else:
            self.poolkit.release(record)

    def _release_in_transaction(self, record: Record) -> None:
        """Close a connection that is in a transaction after the reset: the next user's commit would be lost."""
        record.broken = OpenTransaction("still in a transaction after the reset")
        self.poolkit.release(record, discard=True)

    def _release_useless(self, record: Record) -> None:
        """Release a record without a usable connection.

        If its server is read-only, it and the older ones are replaced. An empty slot stays, as in QueuePool. With a
        circuit breaker it is closed: SQLAlchemy fills an empty slot without the engine, which would never learn of a
        failed attempt.
        """
        if self._endings.delay(record, partial(self._release_useless, record)):
            return
        error, record.wrong_server = record.wrong_server, None
        if error is not None:
            self.poolkit.release(record, error=error)
        else:
            self.poolkit.release(record, discard=self.poolkit.config.breaker is not None)

    def _translate(self, error: PoolError) -> BaseException:
        """Return SQLAlchemy's error for an engine's error. A timeout starts with QueuePool's text, for log searches."""
        timeout = self.timeout()
        return reported(
            error,
            f"{type(self).__name__} limit of size {self.size()} overflow {self.overflow()} reached, connection timed "
            f"out, timeout {0.0 if timeout is None else timeout:0.2f}: ",
        )

    def recreate(self) -> SQLAlchemyPool:
        """Return a new pool with the current settings, events, listeners and name."""
        self.logger.info("Pool recreating")
        config = self._config()
        size, overflow = queue_sizes(config)
        timeout, lifo, known = config.acquire_timeout, config.order == "lifo", sources_of(config)

        def again(setting: str, value: Any) -> Any:  # a default in this pool is a default in the next
            return value if value is None or known.get(setting, DEFAULT).written else driver_default(value)

        sizes: dict[str, Any] = {
            "pool_size": again("max_idle", size), "max_overflow": again("max_size", overflow),
            "timeout": again("acquire_timeout", timeout), "use_lifo": lifo,
        }  # fmt: skip
        plain = settle(size, overflow, timeout, lifo, None, {}, **self._fixed)
        own: dict[str, Any] = {"listeners": self._listeners} if self._listeners else {}
        if self._debug:
            own["debug"] = True
        self._rest(succeeded=True)
        return self.__class__(
            self._creator,
            **(sizes if plain == config else {"config": config}),
            **own,
            name=self.poolkit.name,
            pre_ping=self._asked_pre_ping,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close the idle connections. Those in use stay open, and the pool stays usable.

        After ``Engine.dispose()``, which replaces this pool, connections in use are closed when they are returned. In
        QueuePool they stay open in the old pool until they are garbage collected.
        """
        self._rest()
        self.poolkit.discard_idle(rest=True)
        self._emptied = True
        self.logger.info("Pool disposed. %s", self.status())

    def _config(self) -> PoolConfig:
        """Return the pool's own settings, even while it is suspended by :meth:`_rest`."""
        config = self.poolkit.config
        return combine(self._resting, base=config) if self._resting else config

    def _rest(self, *, succeeded: bool = False) -> None:
        """Keep no ``min_size`` until the next checkout from this pool.

        ``succeeded``: another pool has replaced this one, so connections in use are closed when they are returned.
        After dispose() the pool keeps nothing at all, because a connect in progress would stay open in the old pool.
        """
        own = self._config()
        changes: dict[str, Any] = {"min_size": 0, "max_idle": 0} if succeeded and self._emptied else {"min_size": 0}
        changes = {name: value for name, value in changes.items() if getattr(own, name) != value}
        if not changes and not succeeded:
            return
        known = sources_of(own)
        self._resting.update({name: (getattr(own, name), known.get(name, DEFAULT)) for name in changes})
        if succeeded and "_do_return_conn" not in self.__dict__:
            self.__dict__["_do_return_conn"] = partial(self._do_return_conn, discard=True)
        self.__dict__["_do_get"] = self._get_again
        if changes:
            self.poolkit.reconfigure(**changes)

    def _get_again(self) -> ConnectionPoolEntry:
        self.__dict__.pop("_do_get", None)
        self.__dict__.pop("_do_return_conn", None)
        self._emptied = False
        own, self._resting = self._resting, {}
        if own:
            self.poolkit.reconfigure(**{name: value for name, (value, _) in own.items()})
        return self._do_get()

    def status(self) -> str:
        """Return the following numbers in QueuePool's format."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """Return how many connections are kept: ``pool_size`` (0: no limit)."""
        return queue_sizes(self._config())[0]

    def timeout(self) -> float | None:
        """Return how many seconds a caller waits: ``pool_timeout`` (None: no limit)."""
        return self.poolkit.config.acquire_timeout

    def checkedin(self) -> int:
        """Return the number of idle slots, with or without a live connection."""
        return self.poolkit.stats().idle

    def checkedout(self) -> int:
        """Return the number of slots in use, with those that callers connect, but not those that are being ended."""
        stats = self.poolkit.stats()
        coming = 0 if self.poolkit.config.connect_in_caller else stats.connecting
        return stats.size - stats.idle - stats.closing - coming - len(self._endings)

    def overflow(self) -> int:
        """Return the number of slots above ``pool_size``: negative if there are fewer, 0 if there is no limit."""
        size = self.size()
        return self.poolkit.stats().size - size if size else 0

    # -- called by the connector ------------------------------------------------------------------------------------

    def _elsewhere(self, record: Record) -> bool:
        """Return whether the record's connection belongs to another event loop and cannot be used here."""
        return False

    def _move(self, record: Record, loop: Any) -> None:
        """Empty a slot whose connection cannot be used here."""
        raise NotImplementedError

    def _ping(self, record: Record, dbapi_connection: Any, timeout: float | None) -> bool:
        """Ping the server within ``timeout`` seconds. A pool without a dialect has no ping."""
        raise NotImplementedError

    def _roll_back(self, dbapi_connection: Any) -> None:
        """Roll back within :func:`rollback_limit`, so that a vanished server cannot block a slot forever."""
        raise NotImplementedError

    def _pre_ask(self, record: Record, dbapi_connection: Any) -> bool:
        """Run the ping of ``pre_ping``, within ``check_timeout`` and the time that the caller has left."""
        limits = [limit for limit in (self.poolkit.config.check_timeout, record.left()) if limit is not None]
        try:
            return self._ping(record, dbapi_connection, min(limits, default=None))
        except TimeoutError as error:
            self.logger.info("Pool pre-ping on connection %s failed: %s", dbapi_connection, error)
            return False

    def _ask(self, dbapi_connection: Any) -> bool:
        dialect: Any = self._dialect
        if isinstance(dialect, _ConnDialect):
            return True
        ping = getattr(dialect, "_do_ping_w_event", None) or dialect.do_ping  # the latter in the first 2.0
        return bool(ping(dbapi_connection))


class WatchedRecord(Record):
    """A record whose connect, "connect" events included, ends in time whatever the server does or does not send."""

    pool: PoolkitPool
    _watched: Any = None

    def _ConnectionRecord__connect(self) -> None:  # noqa: N802  its name in SQLAlchemy
        """As in SQLAlchemy, in a thread of the pool's."""
        self.pool._reconnects.run(self)

    def begun(self, attempt: Attempt) -> None:
        """Do the same as :meth:`Record.begun`. From now on the socket is shut down at the deadline."""
        self._begin_watch(attempt.connecting)

    def opened(self, connection: Any) -> None:
        """Do the same as :meth:`Record.opened`."""
        self.over()
        super().opened(connection)
        self._begin_watch(connection)

    def _begin_watch(self, driver: Any) -> None:
        left = None if self.attempt is None else self.attempt.left()
        if left is not None:
            self._watched = driver
            self.pool._watch.begin(driver, left)

    def over(self) -> bool:
        """Do the same as :meth:`Record.over`."""
        watched, self._watched = self._watched, None
        if watched is None:
            return False
        cut = self.pool._watch.end(watched)
        if isinstance(watched, Connecting):
            return cut
        return self.attempt is not None and self.attempt.left() == 0.0


class PoolkitPool(BasePool):
    """Replaces :class:`sqlalchemy.pool.QueuePool`: ``create_engine(url, poolclass=PoolkitPool)``.

    Takes QueuePool's arguments, with the same meaning and default (``pool_size``, ``max_overflow``, ``timeout``,
    ``use_lifo``, ``recycle``, ``pre_ping``, ``reset_on_return``, ...). In create_engine some of them start with
    ``pool_``. Also takes every setting of :class:`poolkit.PoolConfig`, ``config=`` for all of them, and ``name``
    (default: ``logging_name``), ``listeners`` and ``debug`` of :class:`poolkit.Pool`. Without settings of poolkit it
    behaves as QueuePool does: no lifetime, no idle timeout, no check except ``pre_ping``.

    Thread-safe, and safe after ``fork()``: the child starts with an empty pool, and can only drop a connection that was
    checked out before. Raises :class:`~poolkit.ConfigError` for wrong settings.
    """

    _is_asyncio = False
    _sqla_logger_namespace = "sqlalchemy.pool.impl.PoolkitPool"

    def _runtime_for_engine(self) -> Runtime:
        self._watch = Watch()
        self._reconnects = Reconnects(self)
        return _THREADS

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """Close as in SQLAlchemy, and end the time limit first: another socket may get the descriptor from here on."""
        self._watch.end(connection)
        self._endings.close(connection, partial(super()._close_connection, connection, terminate=terminate))

    def _ping(self, record: Record, dbapi_connection: Any, timeout: float | None) -> bool:
        with self._watch.limit(dbapi_connection, timeout, "ping"):
            return self._ask(dbapi_connection)

    def _roll_back(self, dbapi_connection: Any) -> None:
        limit = rollback_limit(self.poolkit.config.check_timeout, self._server)
        if limit is None:
            dbapi_connection.rollback()
            return
        self._watch.begin(dbapi_connection, limit)
        try:
            dbapi_connection.rollback()
        finally:
            late = self._watch.end(dbapi_connection)
            if late:
                self.logger.warning(LATE_ROLLBACK, dbapi_connection, limit)
        if late:  # the reply arrived at the deadline, but the socket is already shut down
            raise rollback_cut(self._dialect, self.poolkit.name, limit)
