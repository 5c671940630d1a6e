"""Several PostgreSQL servers behind one ``connection()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

import poolkit
from poolkit import ConfigError, PoolConfig, Verdict
from poolkit.cluster import (
    AsyncCluster,
    AsyncLeaseBlock,
    AsyncNodeLease,
    Cluster,
    ClusterConfig,
    ClusterEvent,
    ClusterSettings,
    Discovery,
    LeaseBlock,
    Node,
    NodeLease,
    NodePool,
    NoNodeAvailable,
)
from poolkit.config import NodePoolSettings
from poolkit.errors import without_quotes
from poolkit.settings import merge

from .._cluster_options import split_cluster_options
from .._errors import Row
from .._time_limits import limit_role_question
from ._async import AsyncPoolkitConnectionPool
from ._errors import ERRORS, LeaseCut, WrongLoop, classify
from ._io import limited_rollback
from ._session import note_wrong_server, was_cut
from ._shared import cut_block_error
from ._sync import PoolkitConnectionPool

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncPoolkitCluster", "NoServerAvailable", "PoolkitCluster", "role_of", "role_of_async")

_ROLE = "select pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool"


class NoServerAvailable(NoNodeAvailable, psycopg_pool.PoolTimeout):
    """No server (of the requested role) is available. ``errors`` holds the last error of each server."""


CLUSTER_ERRORS = ERRORS.with_rows(
    Row("clusters: no server (of the requested role) is available; `errors` holds the last error of each server",
        NoServerAvailable, (NoNodeAvailable, psycopg_pool.PoolTimeout)),
    Row("an asynchronous cluster is used from a second event loop", WrongLoop,
        (poolkit.WrongLoop, psycopg.InterfaceError)),
)  # fmt: skip
"""Every error that a cluster raises."""


def role_of(connection: psycopg.Connection[Any]) -> str:
    """Return "primary" if the server accepts writes, else "replica" (libpq's ``read-write``, ``read-only``)."""
    try:
        with connection.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(_ROLE).fetchone()
    finally:
        if not connection.closed:
            connection.rollback()
    return "replica" if row is not None and row[0] else "primary"


async def role_of_async(connection: psycopg.AsyncConnection[Any]) -> str:
    """Do the same as :func:`role_of` for asyncio."""
    try:
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_ROLE)
            row = await cursor.fetchone()
    finally:
        if not connection.closed:
            await connection.rollback()
    return "replica" if row is not None and row[0] else "primary"


def conninfo_of(node: Node, common: str) -> str:
    """Return a node's connection string: the common part, its address (host:port, URL or key=value), its params."""
    address = node.address
    try:
        if "=" in address or "://" in address:
            own = conninfo_to_dict(address)
        elif address.startswith("/"):
            own = {"host": address}
        else:
            host, _, port = address.rpartition(":") if ":" in address.rpartition("]")[2] else (address, "", "")
            own = {"host": host.strip("[]"), **({"port": port} if port else {})}
        return make_conninfo(common, **{**own, **node.params})
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"node {node.name!r}: address={address!r}: {without_quotes(error)}", "address") from None


def _judge(error: BaseException) -> Verdict:
    """Return what an error in a block means for the server. Only psycopg's own errors count."""
    if getattr(error, "_poolkit_wrong_server", False):
        return Verdict.RETIRE
    if isinstance(error, LeaseCut) or not isinstance(error, psycopg.Error):
        return Verdict.KEEP  # the pool closed the connection, or it is an error of the application
    return classify(error)


def _mark_wrong_server(connection: Any, error: BaseException) -> None:
    if note_wrong_server(connection, error):
        error._poolkit_wrong_server = True  # type: ignore[attr-defined]


class _Server(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, pool: PoolkitConnectionPool[Any]) -> None:
        self.pool = pool
        self.poolkit = pool.poolkit

    def lease(self, timeout: float | None) -> NodeLease[Any]:
        connection = self.pool.getconn(math.inf if timeout is None else timeout)
        return NodeLease(connection, self.pool.putconn, self._hang_up, _mark_wrong_server)

    def limited(self, connection: psycopg.Connection[Any], timeout: float) -> AbstractContextManager[object]:
        return limit_role_question(connection, timeout)

    def _hang_up(self, connection: psycopg.Connection[Any]) -> None:
        connection._pool = None  # otherwise its close() would give it back
        connection.close()
        connection._pool = self.pool

    def close(self, timeout: float | None) -> None:
        self.pool.close(math.inf if timeout is None else timeout)


class _AsyncServer(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, pool: AsyncPoolkitConnectionPool[Any]) -> None:
        self.pool = pool
        self.poolkit = pool.poolkit

    async def lease(self, timeout: float | None) -> AsyncNodeLease[Any]:
        if self.pool.closed and not self.poolkit.closed:
            await self.pool.open()
        connection = await self.pool.getconn(math.inf if timeout is None else timeout)
        return AsyncNodeLease(connection, self.pool.putconn, self._hang_up, _mark_wrong_server)

    async def _hang_up(self, connection: psycopg.AsyncConnection[Any]) -> None:
        connection._pool = None  # otherwise its close() would give it back
        await connection.close()
        connection._pool = self.pool

    async def close(self, timeout: float | None) -> None:
        await self.pool.close(math.inf if timeout is None else timeout)


class _Block:
    """The inner part of a cluster's block.

    Does at its end what psycopg's connections do at the end of their own block. Raises an error if the pool has closed
    the connection meanwhile.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._name: str = connection._pool.name
        self._check_timeout: float | None = connection._pool._engine.config.check_timeout

    def _cut(self, error: BaseException | None) -> BaseException | None:
        if was_cut(self._connection) and (error is None or isinstance(error, psycopg.Error)):
            return cut_block_error(self._name, self._connection, error)
        return None

    def __enter__(self) -> Any:
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with limited_rollback(self._connection, self._check_timeout, error):
                self._connection.__exit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            cut = self._cut(error)
            if cut is not None:
                raise cut

    async def __aenter__(self) -> Any:
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with limited_rollback(self._connection, self._check_timeout, error):
                await self._connection.__aexit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            cut = self._cut(error)
            if cut is not None:
                raise cut


class _Keywords(ClusterSettings, NodePoolSettings, total=False):
    """The settings of the cluster and of its pools as keywords."""


class PoolkitCluster(Cluster[Any]):
    """Several servers, each with a :class:`PoolkitConnectionPool`, behind one :meth:`connection`. Thread-safe.

    Args:
        nodes: addresses (``host:port``, URLs, connection strings), :class:`~poolkit.cluster.Node` objects, or a
            discovery.
        conninfo: the part that all servers share, such as database and user.
        pool: settings of the pool of each server.
        pool_options: further arguments of each :class:`PoolkitConnectionPool` (``configure``, ``kwargs``,
            ``connection_class``, ...).
        roles: whether to ask each server for its role with :func:`role_of`.
        config: settings of the cluster.
        name: name of the cluster, for messages, statistics and events.
        listeners: functions called for each :class:`~poolkit.cluster.ClusterEvent`.
        settings: single settings of the cluster (``wait_for_node=5``) and of the pools (``max_size=5``), which
            override ``config`` and ``pool``. ``acquire_timeout`` is the cluster's.

    Raises:
        ConfigError: a wrong setting or an unknown keyword.
    """

    _translated = staticmethod(CLUSTER_ERRORS.translated)

    def __init__(
        self,
        nodes: Iterable[Node | str] | Discovery,
        conninfo: str = "",
        *,
        pool: PoolConfig | None = None,
        pool_options: dict[str, Any] | None = None,
        roles: bool = True,
        config: ClusterConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **settings: Unpack[_Keywords],
    ) -> None:
        own, of_pool, _ = split_cluster_options(settings, ())
        settled, options = merge(pool, of_pool), pool_options or {}

        def make(node: Node) -> _Server:
            return _Server(
                PoolkitConnectionPool(
                    conninfo_of(node, conninfo), config=settled, open=True, name=f"{self.name}/{node.name}", **options
                )
            )

        super().__init__(make, nodes, config, name=name, listeners=listeners, role_of=role_of if roles else None, **own)

    def connection(
        self, timeout: float | None = None, *, role: str | None = None, key: Hashable = None
    ) -> LeaseBlock[psycopg.Connection[Any]]:
        """Lease a connection: ``with cluster.connection(role="primary") as conn``.

        The end of the block commits or rolls back and returns the connection. ``timeout`` is in seconds (None:
        ``acquire_timeout``). Takes the arguments of :meth:`lease`. Its errors inherit from psycopg's errors too.
        """
        return LeaseBlock(self, _Block, timeout=timeout, role=role, key=key)


class AsyncPoolkitCluster(AsyncCluster[Any]):
    """The twin of :class:`PoolkitCluster` with :class:`AsyncPoolkitConnectionPool` (asyncio). Safe for concurrent tasks
    of one event loop.
    """

    _translated = staticmethod(CLUSTER_ERRORS.translated)

    def __init__(
        self,
        nodes: Iterable[Node | str] | Discovery,
        conninfo: str = "",
        *,
        pool: PoolConfig | None = None,
        pool_options: dict[str, Any] | None = None,
        roles: bool = True,
        config: ClusterConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **settings: Unpack[_Keywords],
    ) -> None:
        own, of_pool, _ = split_cluster_options(settings, ())
        settled, options = merge(pool, of_pool), pool_options or {}

        def make(node: Node) -> _AsyncServer:
            return _AsyncServer(
                AsyncPoolkitConnectionPool(
                    conninfo_of(node, conninfo), config=settled, open=False, name=f"{self.name}/{node.name}", **options
                )
            )

        super().__init__(
            make, nodes, config, name=name, listeners=listeners, role_of=role_of_async if roles else None, **own
        )

    def connection(
        self, timeout: float | None = None, *, role: str | None = None, key: Hashable = None
    ) -> AsyncLeaseBlock[psycopg.AsyncConnection[Any]]:
        """``async with cluster.connection(role="primary") as conn``. See :meth:`PoolkitCluster.connection`."""
        return AsyncLeaseBlock(self, _Block, timeout=timeout, role=role, key=key)
