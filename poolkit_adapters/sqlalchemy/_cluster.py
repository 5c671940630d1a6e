"""Several servers behind one ``connect()``: an engine for each, and the cluster that chooses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
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
    AsyncClusterLease,
    Cluster,
    ClusterConfig,
    ClusterEvent,
    ClusterLease,
    Discovery,
    Node,
    NodePool,
    NoNodeAvailable,
)
from poolkit.errors import without_quotes
from poolkit.settings import merge

from .._cluster_options import split_cluster_options
from .._errors import Row
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


def _note_misled(connection: Any, error: BaseException | None) -> None:
    if error is None or connection.closed or connection.invalidated:
        return
    record: Any = getattr(connection.connection, "_connection_record", None)
    if getattr(record, "misled", None) is not None:
        error._poolkit_misled = True  # type: ignore[attr-defined]


class _Lease:
    """A connection of one node's engine, as the cluster wants it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        _note_misled(self.connection, error)
        if discard:
            self.connection.invalidate()
        self.connection.close()


class _AsyncLease:
    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        if self.connection.sync_connection is not None:
            _note_misled(self.connection.sync_connection, error)
        if discard:
            await self.connection.invalidate()
        await self.connection.close()


class _Server(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def poolkit(self) -> Any:
        pool: Any = self.engine.pool
        return pool.poolkit

    def lease(self, timeout: float | None) -> _Lease:
        token = _patience.set(timeout)
        try:
            return _Lease(self.engine.connect())
        finally:
            _patience.reset(token)


class _AsyncServer(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @property
    def poolkit(self) -> Any:
        pool: Any = self.engine.pool
        return pool.poolkit

    async def lease(self, timeout: float | None) -> _AsyncLease:
        token = _patience.set(timeout)
        try:
            return _AsyncLease(await self.engine.connect())
        finally:
            _patience.reset(token)

    async def drain(self, timeout: float | None) -> bool:
        from sqlalchemy.util import greenlet_spawn

        whole: bool = await greenlet_spawn(self.poolkit.drain, timeout)
        return whole

    async def close(self, timeout: float | None) -> None:
        from sqlalchemy.util import greenlet_spawn

        await greenlet_spawn(self.poolkit.close, timeout)


class _Block:
    def __init__(self, take: Callable[[], ClusterLease[Any]], then: Callable[[Connection], Any] | None) -> None:
        self._take = take
        self._then = then
        self._inner: Any = None

    def __enter__(self) -> Any:
        self._lease = self._take()
        connection: Connection = self._lease.connection
        if self._then is None:
            return connection
        try:
            self._inner = self._then(connection)
            given = self._inner.__enter__()
        except BaseException as error:
            self._lease.close(error=error)
            raise
        return given if isinstance(given, Session) else connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._inner is not None:
                self._inner.__exit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            self._lease.close(error=error)


class _AsyncBlock:
    def __init__(
        self, take: Callable[[], Awaitable[AsyncClusterLease[Any]]], then: Callable[[AsyncConnection], Any] | None
    ) -> None:
        self._take = take
        self._then = then
        self._inner: Any = None

    async def __aenter__(self) -> Any:
        self._lease = await self._take()
        connection: AsyncConnection = self._lease.connection
        if self._then is None:
            return connection
        try:
            self._inner = self._then(connection)
            given = await self._inner.__aenter__()
        except BaseException as error:
            await self._lease.close(error=error)
            raise
        return given if isinstance(given, AsyncSession) else connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._inner is not None:
                await self._inner.__aexit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            await self._lease.close(error=error)


def _told(error: BaseException) -> BaseException:
    return translated(error, "", CLUSTER_ERRORS) if isinstance(error, PoolError) else error


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
        common = make_url(url)
        own, of_pool, options = split_cluster_options(engine_options, _known(common), open_ended=True)
        settled = merge(pool, of_pool)
        asks = roles and common.get_backend_name() == "postgresql"

        def make(node: Node) -> _Server:
            return _Server(
                create_engine(
                    url_of(node, common), poolclass=_NodePool, config=settled, name=f"{self.name}/{node.name}",
                    **options,
                )
            )  # fmt: skip

        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=role_of if asks else None, **own)

    def connect(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractContextManager[Connection]:
        """``with cluster.connect("replica") as connection``: as ``engine.connect()``, on a server of this role.

        ``timeout`` None: ``acquire_timeout``. Arguments and errors as :meth:`lease`; errors are SQLAlchemy's, too.
        """
        return _Block(self._taker(role, key, timeout), None)

    def begin(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractContextManager[Connection]:
        """As :meth:`connect`, in a transaction that is committed at the end: as ``engine.begin()``."""
        return _Block(self._taker(role, key, timeout), lambda connection: connection.begin())

    def session(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None, **options: Any
    ) -> AbstractContextManager[Session]:
        """``with cluster.session("primary") as session``: an ORM session on one connection; commit it yourself.

        ``options``: of :class:`sqlalchemy.orm.Session` (or give ``class_=``).
        """
        kind = options.pop("class_", Session)
        return _Block(self._taker(role, key, timeout), lambda connection: kind(bind=connection, **options))

    def _taker(self, role: str | None, key: Hashable, timeout: float | None) -> Callable[[], ClusterLease[Any]]:
        asked: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        return lambda: self.lease(role=role, key=key, **asked)

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
        common = make_url(url)
        own, of_pool, options = split_cluster_options(engine_options, _known(common), open_ended=True)
        settled = merge(pool, of_pool)
        asks = roles and common.get_backend_name() == "postgresql"

        def make(node: Node) -> _AsyncServer:
            return _AsyncServer(
                create_async_engine(
                    url_of(node, common), poolclass=_AsyncNodePool, config=settled, name=f"{self.name}/{node.name}",
                    **options,
                )
            )  # fmt: skip

        asked = role_of_async if asks else None
        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=asked, **own)

    def connect(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """``async with cluster.connect("replica") as connection``. See :meth:`PoolkitCluster.connect`."""
        return _AsyncBlock(self._taker(role, key, timeout), None)

    def begin(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """As :meth:`connect`, in a transaction that is committed at the end."""
        return _AsyncBlock(self._taker(role, key, timeout), lambda connection: connection.begin())

    def session(
        self, role: str | None = None, *, key: Hashable = None, timeout: float | None = None, **options: Any
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """``async with cluster.session("primary") as session``. See :meth:`PoolkitCluster.session`."""
        kind = options.pop("class_", AsyncSession)
        return _AsyncBlock(self._taker(role, key, timeout), lambda connection: kind(bind=connection, **options))

    def _taker(
        self, role: str | None, key: Hashable, timeout: float | None
    ) -> Callable[[], Awaitable[AsyncClusterLease[Any]]]:
        asked: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        return lambda: self.lease(role=role, key=key, **asked)

    def engine(self, node: str) -> AsyncEngine:
        """The engine of a node. KeyError if there is none."""
        engine: AsyncEngine = self.pool(node).engine
        return engine

    def _translated(self, error: BaseException) -> BaseException:
        return _told(error)
