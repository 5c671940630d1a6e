"""PoolkitPool: SQLAlchemy's pool interface on poolkit's engine. SQLAlchemy's fairies, events, reset and ping remain."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.pool import Pool as SQLAlchemyPool

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
from poolkit.config import SharedBudget, sources_of
from poolkit.settings import DEFAULT

from .._options import UNSET, driver_default, given_settings, with_limit_of_driver
from ._connect_time import limit_connects, no_time_limit, own_limit
from ._creator import with_own_arguments
from ._endings import Endings
from ._errors import join_wrapped, reported
from ._fairy import BoundedFairy, Fairy, check_out
from ._io import ServerIO, ThreadIO
from ._names import look_up_first
from ._readonly import watch
from ._record import Record, RecordChecks, RecordConnector
from ._rest import Rest
from ._settings import MAX_OVERFLOW, POOL_SIZE, TIMEOUT, fixed, queue_sizes, settle, well_spelt
from ._transactions import OpenTransaction, transaction_test

__all__ = ("BasePool", "PoolkitPool")


class BasePool(SQLAlchemyPool):
    """The common part of the sync and the async pool."""

    poolkit: Pool[Record]
    """The engine: ``stats()``, ``explain()``, ``clear()``, ``drain()``, ``reconfigure()``, ``warm_up()``, ..."""

    _barging_window: float | None = None
    _kind: Callable[[BasePool], ServerIO]

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
        budget: SharedBudget | None = UNSET,
        budget_weight: float = UNSET,
        classes: Mapping[str, ClassConfig] | None = UNSET,
        default_class: str | None = UNSET,
        **kw: Any,
    ) -> None:
        settings = given_settings(locals())
        super().__init__(with_own_arguments(creator), **well_spelt(type(self), kw))
        self._fixed = fixed(self._dialect, self._barging_window, asynchronous=self._is_asyncio)
        untimed = no_time_limit(self._dialect, creator)
        settled = settle(
            pool_size, max_overflow, timeout, use_lifo, config, settings, no_time_limit=untimed, **self._fixed
        )
        own_time = None if untimed else own_limit(self._dialect, creator)
        recreated = kw.get("_dispatch") is not None
        if own_time is not None and not recreated:  # otherwise the settings show it, or what has replaced it
            settled = with_limit_of_driver(settled, *own_time)
        self._listeners, self._debug = tuple(listeners), debug
        self._endings = Endings(self)
        self._spare: deque[Record] = deque()  # empty records, without a slot, for the next connects
        self._io = type(self)._kind(self)
        self._runtime, self._roll_back = self._io.runtime, self._io.roll_back  # nearer, on the way of each lease
        checked = settled.check_after_idle is not None or settled.keepalive is not None
        self._asked_pre_ping = self._pre_ping
        if settled.check_after_idle is not None:
            self._pre_ping = False  # the engine pings, and only connections idle for that long
        connector = RecordConnector(self, RecordChecks(self) if checked else None)
        connector.counted = not recreated  # otherwise the application has not created it
        self.poolkit = Pool(
            connector,
            settled,
            name=name or self._orig_logging_name,
            listeners=self._listeners,
            debug=debug,
            runtime=self._runtime,
        )
        look_up_first(self._dialect)
        limit_connects(self._dialect, own=own_time is not None)
        watch(self._dialect)
        join_wrapped(self._dialect)
        self._rest = Rest(self)
        self._server: str = getattr(self._dialect, "name", "")  # "": a pool created by hand
        self._fairy = BoundedFairy if self._server not in ("", "sqlite") else Fairy
        self._in_transaction = transaction_test(self._dialect, self._reset_on_return)

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
        return self._io.connected(most)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """Close as in SQLAlchemy, within a time limit."""
        close = partial(super()._close_connection, connection, terminate=terminate)
        self._io.close(connection, close, terminate=terminate)

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

        If its server is read-only, it and the older ones are replaced. The slot of an empty record becomes free. The
        record is kept for the next connect.
        """
        if self._endings.delay(record, partial(self._release_useless, record)):
            return
        error, record.wrong_server = record.wrong_server, None
        record.spare = error is None
        self.poolkit.release(record, error=error, discard=error is None)

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
        config = self._rest.config()
        size, overflow = queue_sizes(config)
        timeout, lifo, known = config.acquire_timeout, config.order == "lifo", sources_of(config)

        def again(setting: str, value: Any) -> Any:  # a default in this pool is a default in the next
            return value if value is None or known.get(setting, DEFAULT).written else driver_default(value)

        sizes: dict[str, Any] = {
            "pool_size": again("max_idle", size), "max_overflow": again("max_size", overflow),
            "timeout": again("acquire_timeout", timeout), "use_lifo": lifo,
        }  # fmt: skip
        plain = settle(size, overflow, timeout, lifo, None, {}, **self._fixed)
        alike = plain == config and not any(source.lowered for source in known.values())
        own: dict[str, Any] = {"listeners": self._listeners} if self._listeners else {}
        if self._debug:
            own["debug"] = True
        self._rest.begin(succeeded=True)
        return self.__class__(
            self._creator,
            **(sizes if alike else {"config": config}),
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
        self._rest.begin()
        self.poolkit.discard_idle(rest=True)
        self._spare.clear()
        self._rest.emptied = True
        self.logger.info("Pool disposed. %s", self.status())

    def status(self) -> str:
        """Return the following numbers in QueuePool's format."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """Return how many connections are kept: ``pool_size`` (0: no limit)."""
        return queue_sizes(self._rest.config())[0]

    def timeout(self) -> float | None:
        """Return how many seconds a caller waits: ``pool_timeout`` (None: no limit)."""
        return self.poolkit.config.acquire_timeout

    def checkedin(self) -> int:
        """Return the number of idle connections, and of records that lost theirs."""
        return self.poolkit.stats().idle + len(self._spare)

    def checkedout(self) -> int:
        """Return the number of slots in use, with those that callers connect, but not those that are being ended."""
        stats = self.poolkit.stats()
        coming = 0 if self.poolkit.config.connect_in_caller else stats.connecting
        return stats.size - stats.idle - stats.closing - coming - len(self._endings)

    def overflow(self) -> int:
        """Return the number of slots above ``pool_size``: negative if there are fewer, 0 if there is no limit."""
        size = self.size()
        return self.poolkit.stats().size + len(self._spare) - size if size else 0


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

    _kind = ThreadIO
