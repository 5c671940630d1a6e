"""Several Redis servers (a primary and its replicas, or equals) behind ordinary clients of redis-py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from operator import methodcaller
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from poolkit import ConfigError, PoolConfig, PoolError, Verdict
from poolkit.cluster import (
    AsyncCluster,
    AsyncClusterLease,
    AsyncNodeLease,
    Cluster,
    ClusterConfig,
    ClusterEvent,
    ClusterLease,
    Discovery,
    Node,
    NodeLease,
    NodePool,
    NoNodeAvailable,
)
from poolkit.settings import DEFAULT, combine, layer_of, merge
from poolkit_adapters._cluster_options import parameters_of, split_cluster_options
from poolkit_adapters._errors import Row
from poolkit_adapters._time_limits import limit_role_question
from poolkit_adapters.redis import _errors
from poolkit_adapters.redis._async import AsyncPoolkitConnectionPool
from poolkit_adapters.redis._driver import AsyncConnectionPool, ConnectionPool, exceptions
from poolkit_adapters.redis._guard import USED
from poolkit_adapters.redis._threads import PoolkitConnectionPool

__all__ = (
    "AsyncPoolkitServerGroup",
    "PoolkitServerGroup",
    "RedisNoServerAvailable",
    "role_of",
    "role_of_async",
)


class RedisNoServerAvailable(NoNodeAvailable, exceptions.ConnectionError):
    """No server (of the wanted role) can be used; ``errors`` holds each one's last error."""


CLUSTER_ERRORS = _errors.ERRORS.with_rows(
    Row("groups: no server, or none of the wanted role, can be used; `errors` holds each one's last error",
        RedisNoServerAvailable, (NoNodeAvailable, exceptions.ConnectionError)),
)  # fmt: skip
"""Every error that leaves a group."""


def _role(reply: Any) -> str:
    return "primary" if reply[0] in (b"master", "master") else "replica"


def role_of(connection: Any) -> str:
    """The server's role, "primary" or "replica", by the command ROLE."""
    connection.send_command("ROLE")
    return _role(connection.read_response())


async def role_of_async(connection: Any) -> str:
    """As :func:`role_of`."""
    await connection.send_command("ROLE")
    return _role(await connection.read_response())


def _judge(error: BaseException) -> Verdict:
    if isinstance(error, exceptions.ReadOnlyError):
        return Verdict.RETIRE
    return _errors.classify(error) if isinstance(error, exceptions.RedisError) else Verdict.KEEP


def _kwargs_of(node: Node, common: dict[str, Any], retry: Any) -> dict[str, Any]:
    """Arguments of the node's pool: what all share, its address (host:port, a path or a URL), its params."""
    address = node.address
    if "://" in address:
        own: dict[str, Any] = {"url": address}
    elif address.startswith("/"):
        own = {"path": address, "connection_class": None}
    else:
        host, _, port = address.rpartition(":") if ":" in address.rpartition("]")[2] else (address, "", "6379")
        if not port.isdecimal():
            raise ConfigError(
                f"node {node.name!r}: address={address!r}: must be host, host:port, a path or a URL", "address"
            )
        own = {"host": host.strip("[]"), "port": int(port)}
    # who cannot connect here goes to another server: redis-py's patience with this one would only cost time
    return {"retry": retry, **common, **own, **node.params}


class _Noted:
    """What a connection went through is kept on it: redis-py tells its pool nothing."""

    poolkit_error: BaseException | None = None

    def _note(self, error: BaseException) -> None:
        if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError)):
            self.poolkit_error = error


class _NotedConnection(_Noted):
    def send_packed_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            self._note(error)
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            self._note(error)
            raise


class _AsyncNotedConnection(_Noted):
    async def send_packed_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            self._note(error)
            raise

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            self._note(error)
            raise


def _noted(kind: type[Any], mixin: type[Any]) -> type[Any]:
    return type(f"{kind.__name__}OfGroup", (mixin, kind), {})


class _Plan:
    """What the two groups make of their arguments. ``driver``: ``redis`` or ``redis.asyncio``."""

    def __init__(self, driver: Any, pool_class: Any, pool: PoolConfig | None, options: dict[str, Any]) -> None:
        self.own, of_pool, self.connection_kwargs = split_cluster_options(options, _known(driver, pool_class, options))
        self._driver = driver
        self._pool_class = pool_class
        self._config = merge(pool, of_pool)

    def pool(self, node: Node, group: str, mixin: type[Any], retry: Any) -> Any:
        """The pool of one node, whose connections keep a note of their errors."""
        kwargs = _kwargs_of(node, self.connection_kwargs, retry)
        url = kwargs.pop("url", None)
        if "connection_class" in kwargs and kwargs["connection_class"] is None:
            kwargs["connection_class"] = self._driver.UnixDomainSocketConnection
        # a group begins with poolkit's limits, not with redis-py's, so both are named here even if nobody wrote them
        config = self._config
        plain = {setting: (getattr(config, setting), DEFAULT) for setting in ("max_size", "acquire_timeout")}
        kwargs["config"] = combine(plain, layer_of(config), base=config)
        kwargs["name"] = f"{group}/{node.name}"
        pool = self._pool_class.from_url(url, **kwargs) if url else self._pool_class(**kwargs)
        pool.connection_class = _noted(pool.connection_class, mixin)
        return pool


def _known(driver: Any, pool_class: type, given: dict[str, Any]) -> set[str]:
    """The arguments of redis-py's pools and connections, those of a class of one's own included."""
    kinds = [pool_class, driver.SSLConnection, driver.UnixDomainSocketConnection]
    if isinstance(given.get("connection_class"), type):
        kinds.append(given["connection_class"])
    return parameters_of(*kinds)


class _MemberPool(PoolkitConnectionPool):
    """The pool of one server: the caller brings the time that it has left."""

    def take(self, timeout: float) -> Any:
        """As ``get_connection``, within ``timeout`` seconds."""
        try:
            connection = self.poolkit.acquire(timeout)
        except PoolError as error:
            raise _errors.pool_error(error) from error.__cause__
        guard = self._guards[id(connection)]
        try:
            if not guard.clean():
                self._renew(connection, guard)
        except BaseException:
            self.poolkit.release(connection, discard=True)
            raise
        guard.state = USED
        return connection


class _AsyncMemberPool(AsyncPoolkitConnectionPool):
    """As :class:`_MemberPool`."""

    async def take(self, timeout: float) -> Any:
        """As ``get_connection``, within ``timeout`` seconds."""
        try:
            connection = await self.poolkit.acquire(timeout)
        except PoolError as error:
            raise _errors.pool_error(error) from error.__cause__
        guard = self._guards[id(connection)]
        if not guard.clean():
            await self._ensure(connection)
        guard.state = USED
        return connection


class _ServerBase(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    @property
    def poolkit(self) -> Any:
        return self.pool.poolkit


class _Server(_ServerBase):
    def lease(self, timeout: float | None) -> NodeLease[Any]:
        connection = self.pool.take(math.inf if timeout is None else timeout)
        connection.poolkit_error = None
        return NodeLease(connection, self.pool.release, _disconnect)

    def limited(self, connection: Any, timeout: float) -> AbstractContextManager[object]:
        return limit_role_question(connection, timeout)


class _AsyncServer(_ServerBase):
    async def lease(self, timeout: float | None) -> AsyncNodeLease[Any]:
        connection = await self.pool.take(math.inf if timeout is None else timeout)
        connection.poolkit_error = None
        return AsyncNodeLease(connection, self.pool.release, _disconnect)


_disconnect = methodcaller("disconnect")


class GroupConnectionPool(ConnectionPool):  # type: ignore[misc]
    """What a client of a group holds: each command takes a connection of a server that the group chooses."""

    def __init__(self, group: PoolkitServerGroup, role: str | None, **connection_kwargs: Any) -> None:
        self.group = group
        self.role = role
        self._out: dict[int, ClusterLease[Any]] = {}
        super().__init__(**connection_kwargs)

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connection of one of the group's servers."""
        lease = self.group.lease(role=self.role)
        self._out[id(lease.connection)] = lease
        return lease.connection

    def release(self, connection: Any) -> None:
        """Give it back; what it went through decides about its server."""
        lease = self._out.pop(id(connection), None)
        if lease is not None:
            lease.close(error=connection.poolkit_error)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Nothing: the connections are the group's; see ``group.close()``."""


class AsyncGroupConnectionPool(AsyncConnectionPool):  # type: ignore[misc]
    """As :class:`GroupConnectionPool`, for ``redis.asyncio``."""

    def __init__(self, group: AsyncPoolkitServerGroup, role: str | None, **connection_kwargs: Any) -> None:
        self.group = group
        self.role = role
        self._out: dict[int, AsyncClusterLease[Any]] = {}
        super().__init__(**connection_kwargs)

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connection of one of the group's servers."""
        lease = await self.group.lease(role=self.role)
        self._out[id(lease.connection)] = lease
        return lease.connection

    async def release(self, connection: Any) -> None:
        """Give it back; what it went through decides about its server."""
        lease = self._out.pop(id(connection), None)
        if lease is not None:
            await lease.close(error=connection.poolkit_error)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Nothing: the connections are the group's; see ``group.close()``."""


class PoolkitServerGroup(Cluster[Any]):
    """A :class:`PoolkitConnectionPool` for each of several Redis servers, behind ordinary clients.

    ::

        group = PoolkitServerGroup(["10.0.0.1:6379", "10.0.0.2:6379"], decode_responses=True)
        writes, reads = group.client("primary"), group.client("prefer-replica")

    ``nodes``: addresses (``host:port``, URLs, paths of sockets), :class:`~poolkit.cluster.Node` objects, or a
    discovery. ``pool``: the settings of each server's pool. ``cluster``: :class:`~poolkit.cluster.ClusterConfig`.
    Single settings of the cluster (``wait_for_node=5``) and of the pools (``max_size=5``) may be keywords, which win;
    ``acquire_timeout`` is the cluster's. Other keywords are redis-py's, for all connections; one that it does not know
    is a :class:`~poolkit.ConfigError`. ``retry`` is "never" by default, because another server is the better second
    try. Roles are found out by :func:`role_of` unless ``roles=False``.
    """

    def __init__(
        self,
        nodes: Iterable[Node | str] | Discovery,
        *,
        pool: PoolConfig | None = None,
        cluster: ClusterConfig | None = None,
        roles: bool = True,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **connection_kwargs: Any,
    ) -> None:
        plan = _Plan(redis, _MemberPool, pool, connection_kwargs)
        self._connection_kwargs = plan.connection_kwargs

        def make(node: Node) -> _Server:
            return _Server(plan.pool(node, self.name, _NotedConnection, Retry(NoBackoff(), 0)))

        asked = role_of if roles else None
        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=asked, **plan.own)

    def client(self, role: str | None = None, **kwargs: Any) -> Any:
        """A ``redis.Redis`` whose every command goes to a server of this role ("primary", "replica",
        "prefer-replica"; None: any). A pipeline, a transaction and a subscription stay on one server each.
        """
        return redis.Redis(connection_pool=GroupConnectionPool(self, role, **self._connection_kwargs), **kwargs)

    def _translated(self, error: BaseException) -> BaseException:
        return CLUSTER_ERRORS.adapted(error) if isinstance(error, PoolError) else error


class AsyncPoolkitServerGroup(AsyncCluster[Any]):
    """As :class:`PoolkitServerGroup`, for ``redis.asyncio``."""

    def __init__(
        self,
        nodes: Iterable[Node | str] | Discovery,
        *,
        pool: PoolConfig | None = None,
        cluster: ClusterConfig | None = None,
        roles: bool = True,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **connection_kwargs: Any,
    ) -> None:
        plan = _Plan(redis.asyncio, _AsyncMemberPool, pool, connection_kwargs)
        self._connection_kwargs = plan.connection_kwargs

        def make(node: Node) -> _AsyncServer:
            return _AsyncServer(plan.pool(node, self.name, _AsyncNotedConnection, AsyncRetry(NoBackoff(), 0)))

        asked = role_of_async if roles else None
        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=asked, **plan.own)

    def client(self, role: str | None = None, **kwargs: Any) -> Any:
        """A ``redis.asyncio.Redis`` of this role; see :meth:`PoolkitServerGroup.client`."""
        pool = AsyncGroupConnectionPool(self, role, **self._connection_kwargs)
        return redis.asyncio.Redis(connection_pool=pool, **kwargs)

    def _translated(self, error: BaseException) -> BaseException:
        return CLUSTER_ERRORS.adapted(error) if isinstance(error, PoolError) else error
