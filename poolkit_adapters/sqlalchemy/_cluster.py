"""Several servers behind one ``connect()``: one engine for each, and the cluster that chooses one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, exc, make_url
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import get_cls_kwargs

from poolkit import ConfigError, PoolConfig, PoolError, Verdict
from poolkit.cluster import (
    AsyncCluster,
    AsyncLeaseBlock,
    AsyncNodeLease,
    Cluster,
    ClusterConfig,
    ClusterEvent,
    Discovery,
    LeaseBlock,
    Node,
    NodeLease,
    NodePool,
    NoNodeAvailable,
)
from poolkit.errors import without_quotes
from poolkit.settings import merge

from .._cluster_options import split_cluster_options
from .._errors import Row
from .._time_limits import limit_role_question
from ._async import AsyncPoolkitPool
from ._errors import ERRORS, translated
from ._exchange import TIME_LEFT, time_left
from ._pool import BasePool, PoolkitPool
from ._record import Record

__all__ = ("AsyncPoolkitCluster", "NoServerAvailable", "PoolkitCluster", "role_of", "role_of_async")

_ROLE = "select pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool"


class NoServerAvailable(exc.OperationalError, NoNodeAvailable):
    """No server (of the requested role) is available. Also a :class:`sqlalchemy.exc.OperationalError`."""

    def __init__(self, message: str, errors: dict[str, BaseException | None] | None = None) -> None:
        last = [error for error in (errors or {}).values() if error is not None]
        exc.OperationalError.__init__(self, None, None, last[-1] if last else ConnectionError(message))
        self.args = (message, errors)
        self.errors = errors or {}

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


CLUSTER_ERRORS = ERRORS.with_rows(
    Row("clusters: no server (of the requested role) is available; `errors` holds the last error of each server",
        NoServerAvailable, (NoNodeAvailable, exc.OperationalError)),
)  # fmt: skip
"""Every error that a cluster raises."""


def role_of(connection: Connection) -> str | None:
    """Return "primary" if the server accepts writes, else "replica". Only for PostgreSQL; None for other databases."""
    if connection.dialect.name != "postgresql":
        return None
    row = connection.exec_driver_sql(_ROLE).scalar()
    connection.rollback()
    return "replica" if row else "primary"


async def role_of_async(connection: AsyncConnection) -> str | None:
    """Do the same as :func:`role_of` for asyncio."""
    role: str | None = await connection.run_sync(role_of)
    return role


_CREATE_ENGINE = frozenset(
    ("connect_args", "creator", "echo_pool", "enable_from_linting", "module", "plugins", "pool", "pool_events",
     "pool_logging_name", "pool_pre_ping", "pool_recycle", "pool_reset_on_return", "pool_timeout", "pool_use_lifo")
)  # fmt: skip


def _known(url: URL) -> set[str]:
    """Return the argument names that ``create_engine`` is known to accept. Plugins may accept more."""
    return {*_CREATE_ENGINE, *get_cls_kwargs(url.get_dialect()), *get_cls_kwargs(Engine), *get_cls_kwargs(PoolkitPool)}


def url_of(node: Node, common: URL) -> URL:
    """Return the URL of a node. Its address is a URL, or a host:port that replaces the one in the common URL."""
    try:
        if "://" in node.address:
            return make_url(node.address)
        host, _, port = node.address.rpartition(":") if ":" in node.address else (node.address, "", "")
        url = common.set(host=host, port=int(port) if port else None)
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigError(f"node {node.name!r}: address={node.address!r}: {without_quotes(error)}", "address") from None
    return url.update_query_dict({name: str(value) for name, value in node.params.items()})


def _judge(error: BaseException) -> Verdict:
    """Return what an error in a block means for the server. Only the driver's errors count, wrapped by SQLAlchemy."""
    if getattr(error, "_poolkit_wrong_server", False):
        return Verdict.RETIRE
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return Verdict.SUSPECT
    return Verdict.KEEP


def _timed(pool: BasePool) -> Any:
    """Get a record for a caller that waits at most for the time that it has left."""
    try:
        return pool.poolkit.acquire(time_left(pool, pool.timeout()))
    except PoolError as error:
        failure = error
    raise pool._translate(failure)  # outside the except block, so that the cause does not become the context


class _NodePool(PoolkitPool):
    """The pool of a node."""

    def _do_get(self) -> ConnectionPoolEntry:
        entry: ConnectionPoolEntry = _timed(self)
        return entry


class _AsyncNodePool(AsyncPoolkitPool):
    """The same for asyncio: a connection of another loop is replaced."""

    def _do_get(self) -> ConnectionPoolEntry:
        loop = self._io.enter()
        record: Record = _timed(self)
        if record.loop is not loop:
            self._io.move(record, loop)
        return record


def _mark_wrong_server(connection: Connection, error: BaseException) -> None:
    if connection.closed or connection.invalidated:
        return
    record: Any = getattr(connection.connection, "_connection_record", None)
    if getattr(record, "wrong_server", None) is not None:
        error._poolkit_wrong_server = True  # type: ignore[attr-defined]


def _mark_wrong_server_async(connection: AsyncConnection, error: BaseException) -> None:
    if connection.sync_connection is not None:
        _mark_wrong_server(connection.sync_connection, error)


class _ServerBase(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    @property
    def poolkit(self) -> Any:
        return self.engine.pool.poolkit


class _Server(_ServerBase):
    def lease(self, timeout: float | None) -> NodeLease[Connection]:
        token = TIME_LEFT.set((self.engine.dialect, timeout))
        try:
            return NodeLease(self.engine.connect(), Connection.close, Connection.invalidate, _mark_wrong_server)
        finally:
            TIME_LEFT.reset(token)

    def limited(self, connection: Connection, timeout: float) -> AbstractContextManager[object]:
        return limit_role_question(connection.connection.driver_connection, timeout)


class _AsyncServer(_ServerBase):
    async def lease(self, timeout: float | None) -> AsyncNodeLease[AsyncConnection]:
        token = TIME_LEFT.set((self.engine.dialect, timeout))
        try:
            connection: AsyncConnection = await self.engine.connect()
        finally:
            TIME_LEFT.reset(token)
        return AsyncNodeLease(connection, AsyncConnection.close, AsyncConnection.invalidate, _mark_wrong_server_async)

    async def drain(self, timeout: float | None) -> bool:
        from sqlalchemy.util import greenlet_spawn

        whole: bool = await greenlet_spawn(self.poolkit.drain, timeout)
        return whole

    async def close(self, timeout: float | None) -> None:
        from sqlalchemy.util import greenlet_spawn

        await greenlet_spawn(self.poolkit.close, timeout)


@contextmanager
def _begun(connection: Connection) -> Iterator[Connection]:
    with connection.begin():
        yield connection


@asynccontextmanager
async def _begun_async(connection: AsyncConnection) -> AsyncIterator[AsyncConnection]:
    async with connection.begin():
        yield connection


def _translate(error: BaseException) -> BaseException:
    return translated(error, "", CLUSTER_ERRORS) if isinstance(error, PoolError) else error


class _Plan:
    """The parsed arguments of a cluster."""

    def __init__(self, url: str | URL, pool: PoolConfig | None, options: dict[str, Any]) -> None:
        self._url = make_url(url)
        self.own, of_pool, self._options = split_cluster_options(options, _known(self._url), open_ended=True)
        self._config = merge(pool, of_pool)
        self.has_roles = self._url.get_backend_name() == "postgresql"

    def engine(self, create: Callable[..., Any], pool: type[Any], node: Node, name: str) -> Any:
        """Return the engine of a node."""
        url = url_of(node, self._url)
        return create(url, poolclass=pool, config=self._config, name=f"{name}/{node.name}", **self._options)


class PoolkitCluster(Cluster[Connection]):
    """Several servers, each with an engine and a :class:`PoolkitPool`, behind one :meth:`connect`. Thread-safe.

    Args:
        url: the part that all servers share (driver, database, user).
        nodes: ``host:port`` or URLs, :class:`~poolkit.cluster.Node` objects, or a discovery.
        pool: settings of the pool of each server.
        cluster: settings of the cluster.
        roles: whether to ask each server for its role with :func:`role_of`.
        name: name of the cluster, for messages, statistics and events.
        listeners: functions called for each :class:`~poolkit.cluster.ClusterEvent`.
        engine_options: single settings of the cluster (``wait_for_node=5``) and of the pools (``max_size=5``), which
            override ``cluster`` and ``pool``; ``acquire_timeout`` is the cluster's. All others are ``create_engine``'s.

    Raises:
        ConfigError: a wrong setting, or a keyword that resembles a setting.
    """

    _translated = staticmethod(_translate)

    def __init__(
        self,
        url: str | URL,
        nodes: Iterable[Node | str] | Discovery,
        *,
        pool: PoolConfig | None = None,
        cluster: ClusterConfig | None = None,
        roles: bool = True,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **engine_options: Any,
    ) -> None:
        plan = _Plan(url, pool, engine_options)

        def make(node: Node) -> _Server:
            return _Server(plan.engine(create_engine, _NodePool, node, self.name))

        asked = role_of if roles and plan.has_roles else None
        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=asked, **plan.own)

    def connect(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractContextManager[Connection]:
        """Connect to a server of this role: ``with cluster.connect("replica") as connection``.

        Works as ``engine.connect()``. ``timeout`` is in seconds (None: ``acquire_timeout``). Takes the arguments of
        :meth:`lease`. Its errors inherit from SQLAlchemy's errors too.
        """
        return LeaseBlock(self, nullcontext, timeout=timeout, role=role, key=key)

    def begin(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractContextManager[Connection]:
        """Do the same as :meth:`connect`, in a transaction that is committed at the end, as in ``engine.begin()``."""
        return LeaseBlock(self, _begun, timeout=timeout, role=role, key=key)

    def session(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None, **options: Any
    ) -> AbstractContextManager[Session]:
        """Open an ORM session on one connection: ``with cluster.session("primary") as session``.

        The caller must commit it. ``options`` are those of :class:`sqlalchemy.orm.Session`, or of ``class_=``.
        """
        kind = options.pop("class_", Session)
        return LeaseBlock(
            self, lambda connection: kind(bind=connection, **options), timeout=timeout, role=role, key=key
        )

    def engine(self, node: str) -> Engine:
        """Return the engine of a node, for example to listen to its events. Raises KeyError if there is none."""
        engine: Engine = self.pool(node).engine
        return engine


class AsyncPoolkitCluster(AsyncCluster[AsyncConnection]):
    """The twin of :class:`PoolkitCluster` with ``create_async_engine`` and :class:`AsyncPoolkitPool` (asyncio). Safe
    for concurrent tasks of one event loop.
    """

    _translated = staticmethod(_translate)

    def __init__(
        self,
        url: str | URL,
        nodes: Iterable[Node | str] | Discovery,
        *,
        pool: PoolConfig | None = None,
        cluster: ClusterConfig | None = None,
        roles: bool = True,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **engine_options: Any,
    ) -> None:
        plan = _Plan(url, pool, engine_options)

        def make(node: Node) -> _AsyncServer:
            return _AsyncServer(plan.engine(create_async_engine, _AsyncNodePool, node, self.name))

        asked = role_of_async if roles and plan.has_roles else None
        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=asked, **plan.own)

    def connect(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """``async with cluster.connect("replica") as connection``. See :meth:`PoolkitCluster.connect`."""
        return AsyncLeaseBlock(self, nullcontext, timeout=timeout, role=role, key=key)

    def begin(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """Do the same as :meth:`connect`, in a transaction that is committed at the end."""
        return AsyncLeaseBlock(self, _begun_async, timeout=timeout, role=role, key=key)

    def session(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None, **options: Any
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """``async with cluster.session("primary") as session``. See :meth:`PoolkitCluster.session`."""
        kind = options.pop("class_", AsyncSession)
        return AsyncLeaseBlock(
            self, lambda connection: kind(bind=connection, **options), timeout=timeout, role=role, key=key
        )

    def engine(self, node: str) -> AsyncEngine:
        """Return the engine of a node. Raises KeyError if there is none."""
        engine: AsyncEngine = self.pool(node).engine
        return engine
