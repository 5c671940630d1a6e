"""Several servers behind one ``connect()``: an engine for each, and the cluster that chooses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from contextvars import ContextVar
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
from ._pool import PoolkitPool

__all__ = ("AsyncPoolkitCluster", "NoServerAvailable", "PoolkitCluster", "role_of", "role_of_async")

_ROLE = "select pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool"
_patience: ContextVar[float | None] = ContextVar("poolkit_patience")


class NoServerAvailable(exc.OperationalError, NoNodeAvailable):
    """No server (of the wanted role) can be used: also a :class:`sqlalchemy.exc.OperationalError`."""

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
    Row("clusters: no server, or none of the wanted role, can be used; `errors` holds each one's last error",
        NoServerAvailable, (NoNodeAvailable, exc.OperationalError)),
)  # fmt: skip
"""Every error that leaves a cluster."""


def role_of(connection: Connection) -> str | None:
    """The server's role: "primary" if it takes writes, else "replica". PostgreSQL alone; None for other databases."""
    if connection.dialect.name != "postgresql":
        return None
    row = connection.exec_driver_sql(_ROLE).scalar()
    connection.rollback()
    return "replica" if row else "primary"


async def role_of_async(connection: AsyncConnection) -> str | None:
    """As :func:`role_of`."""
    role: str | None = await connection.run_sync(role_of)
    return role


_CREATE_ENGINE = frozenset(
    ("connect_args", "creator", "echo_pool", "enable_from_linting", "module", "plugins", "pool", "pool_events",
     "pool_logging_name", "pool_pre_ping", "pool_recycle", "pool_reset_on_return", "pool_timeout", "pool_use_lifo")
)  # fmt: skip


def _known(url: URL) -> set[str]:
    """What ``create_engine`` knows, as far as it can be asked; plugins may know more."""
    return {*_CREATE_ENGINE, *get_cls_kwargs(url.get_dialect()), *get_cls_kwargs(Engine), *get_cls_kwargs(PoolkitPool)}


def url_of(node: Node, common: URL) -> URL:
    """The URL of a node: its address is one, or host:port in the place of the common one's."""
    try:
        if "://" in node.address:
            return make_url(node.address)
        host, _, port = node.address.rpartition(":") if ":" in node.address else (node.address, "", "")
        url = common.set(host=host, port=int(port) if port else None)
    except (exc.ArgumentError, ValueError) as error:
        raise ConfigError(f"node {node.name!r}: address={node.address!r}: {without_quotes(error)}", "address") from None
    return url.update_query_dict({name: str(value) for name, value in node.params.items()})


def _judge(error: BaseException) -> Verdict:
    """What an error in a block means for the server: only the driver's, as SQLAlchemy tells them."""
    if getattr(error, "_poolkit_misled", False):
        return Verdict.RETIRE
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return Verdict.SUSPECT
    return Verdict.KEEP


class _WithPatience:
    """The pool of a node: a caller brings the time that he has left."""

    poolkit: Any
    _told: Any

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            entry: ConnectionPoolEntry = self.poolkit.acquire(_patience.get(None))
        except PoolError as error:
            failure = error
        else:
            return entry
        raise self._told(failure)


class _NodePool(_WithPatience, PoolkitPool):
    pass


class _AsyncNodePool(_WithPatience, AsyncPoolkitPool):
    pass


def _note_misled(connection: Connection, error: BaseException) -> None:
    if connection.closed or connection.invalidated:
        return
    record: Any = getattr(connection.connection, "_connection_record", None)
    if getattr(record, "misled", None) is not None:
        error._poolkit_misled = True  # type: ignore[attr-defined]


def _note_misled_async(connection: AsyncConnection, error: BaseException) -> None:
    if connection.sync_connection is not None:
        _note_misled(connection.sync_connection, error)


class _ServerBase(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    @property
    def poolkit(self) -> Any:
        return self.engine.pool.poolkit


class _Server(_ServerBase):
    def lease(self, timeout: float | None) -> NodeLease[Connection]:
        token = _patience.set(timeout)
        try:
            return NodeLease(self.engine.connect(), Connection.close, Connection.invalidate, _note_misled)
        finally:
            _patience.reset(token)

    def limited(self, connection: Connection, timeout: float) -> AbstractContextManager[object]:
        return limit_role_question(connection.connection.driver_connection, timeout)


class _AsyncServer(_ServerBase):
    async def lease(self, timeout: float | None) -> AsyncNodeLease[AsyncConnection]:
        token = _patience.set(timeout)
        try:
            connection: AsyncConnection = await self.engine.connect()
        finally:
            _patience.reset(token)
        return AsyncNodeLease(connection, AsyncConnection.close, AsyncConnection.invalidate, _note_misled_async)

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


def _told(error: BaseException) -> BaseException:
    return translated(error, "", CLUSTER_ERRORS) if isinstance(error, PoolError) else error


class _Plan:
    """What the two clusters make of their arguments."""

    def __init__(self, url: str | URL, pool: PoolConfig | None, options: dict[str, Any]) -> None:
        self._url = make_url(url)
        self.own, of_pool, self._options = split_cluster_options(options, _known(self._url), open_ended=True)
        self._config = merge(pool, of_pool)
        self.has_roles = self._url.get_backend_name() == "postgresql"

    def engine(self, create: Callable[..., Any], pool: type[Any], node: Node, name: str) -> Any:
        """The engine of a node."""
        url = url_of(node, self._url)
        return create(url, poolclass=pool, config=self._config, name=f"{name}/{node.name}", **self._options)


class PoolkitCluster(Cluster[Connection]):
    """An engine with a :class:`PoolkitPool` for each of several servers, behind :meth:`connect`.

    ``url``: what the servers share (driver, database, user). ``nodes``: ``host:port`` or URLs,
    :class:`~poolkit.cluster.Node` objects, or a discovery. ``pool``: the settings of each server's pool. ``cluster``:
    :class:`~poolkit.cluster.ClusterConfig`. Single settings of the cluster (``wait_for_node=5``) and of the pools
    (``max_size=5``) may be keywords, which win; ``acquire_timeout`` is the cluster's. Other keywords are
    ``create_engine``'s; one that is nearly a setting is a :class:`~poolkit.ConfigError`. Roles are found out by
    :func:`role_of` unless ``roles=False``.
    """

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
        """``with cluster.connect("replica") as connection``: as ``engine.connect()``, on a server of this role.

        ``timeout`` None: ``acquire_timeout``. Arguments and errors as :meth:`lease`; errors are SQLAlchemy's, too.
        """
        return LeaseBlock(self, nullcontext, timeout=timeout, role=role, key=key)

    def begin(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractContextManager[Connection]:
        """As :meth:`connect`, in a transaction that is committed at the end: as ``engine.begin()``."""
        return LeaseBlock(self, _begun, timeout=timeout, role=role, key=key)

    def session(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None, **options: Any
    ) -> AbstractContextManager[Session]:
        """``with cluster.session("primary") as session``: an ORM session on one connection; commit it yourself.

        ``options``: of :class:`sqlalchemy.orm.Session` (or give ``class_=``).
        """
        kind = options.pop("class_", Session)
        return LeaseBlock(
            self, lambda connection: kind(bind=connection, **options), timeout=timeout, role=role, key=key
        )

    def engine(self, node: str) -> Engine:
        """The engine of a node, for its events, say. KeyError if there is none."""
        engine: Engine = self.pool(node).engine
        return engine

    def _translated(self, error: BaseException) -> BaseException:
        return _told(error)


class AsyncPoolkitCluster(AsyncCluster[AsyncConnection]):
    """As :class:`PoolkitCluster`, with ``create_async_engine`` and :class:`AsyncPoolkitPool` (asyncio)."""

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
        """As :meth:`connect`, in a transaction that is committed at the end."""
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
        """The engine of a node. KeyError if there is none."""
        engine: AsyncEngine = self.pool(node).engine
        return engine

    def _translated(self, error: BaseException) -> BaseException:
        return _told(error)
