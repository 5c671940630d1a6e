"""Several Redis servers (a primary and its replicas, or equals) behind ordinary clients of redis-py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from operator import methodcaller
from sys import exc_info
from typing import TYPE_CHECKING, Any

from poolkit import ConfigError, PoolConfig, Verdict
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

from .._cluster_options import parameters_of, split_cluster_options
from .._errors import Row
from .._time_limits import limit_role_question
from . import _errors
from ._async import AsyncPoolkitConnectionPool
from ._async import take as take_async
from ._driver import (
    AsyncClient,
    AsyncConnectionPool,
    AsyncRetry,
    Client,
    ConnectionPool,
    DriverError,
    NoBackoff,
    Retry,
    async_driver,
    exceptions,
    sync_driver,
)
from ._sync import PoolkitConnectionPool, take

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._keywords import GroupKeywords

__all__ = (
    "AsyncPoolkitServerGroup",
    "PoolkitServerGroup",
    "NoServerAvailable",
    "role_of",
    "role_of_async",
)


class NoServerAvailable(NoNodeAvailable, exceptions.ConnectionError):
    """No server (of the requested role) is available. ``errors`` holds the last error of each server."""


CLUSTER_ERRORS = _errors.ERRORS.with_rows(
    Row("groups: no server (of the requested role) is available; `errors` holds the last error of each server",
        NoServerAvailable, (NoNodeAvailable, exceptions.ConnectionError)),
)  # fmt: skip
"""Every error that a group raises."""


def _role(reply: Any) -> str:
    return "primary" if reply[0] in (b"master", "master") else "replica"


def role_of(connection: Any) -> str:
    """Return the server's role, "primary" or "replica", from the command ROLE."""
    connection.send_command("ROLE")
    return _role(connection.read_response())


async def role_of_async(connection: Any) -> str:
    """Do the same as :func:`role_of` for asyncio."""
    await connection.send_command("ROLE")
    return _role(await connection.read_response())


def _judge(error: BaseException) -> Verdict:
    if isinstance(error, exceptions.ReadOnlyError):
        return Verdict.RETIRE
    return _errors.classify(error) if isinstance(error, DriverError) else Verdict.KEEP


def _kwargs_of(node: Node, common: dict[str, Any], retry: Any) -> dict[str, Any]:
    """Return the arguments of a node's pool: the common ones, its address (host:port, path or URL), its params."""
    address = node.address
    if "://" in address:
        own: dict[str, Any] = {"url": address}
    elif address.startswith("/"):
        own = {"path": address, "connection_class": None}
    else:
        host, _, port = address.rpartition(":") if ":" in address.rpartition("]")[2] else (address, "", "6379")
        if not port.isdecimal():
            raise ConfigError(
                f"node {node.name!r}: address={address!r}: must be a host, host:port, a path or a URL", "address"
            )
        own = {"host": host.strip("[]"), "port": int(port)}
    # a caller that cannot connect here goes to another server, so retries at this one would only delay it
    return {"retry": retry, **common, **own, **node.params}


class _Noted:
    """Stores the last error of a connection in the connection, because redis-py does not report it to the pool."""

    poolkit_error: BaseException | None = None
    poolkit_passing: BaseException | None = None
    """The exception that ends the lease, from release() until the pool of the server has read it."""

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
    """The parsed arguments of a group. ``driver`` is ``redis`` or ``redis.asyncio``."""

    def __init__(self, driver: Any, pool_class: Any, pool: PoolConfig | None, options: dict[str, Any]) -> None:
        self.own, of_pool, self.connection_kwargs = split_cluster_options(options, _known(driver, pool_class, options))
        self._driver = driver
        self._pool_class = pool_class
        self._config = merge(pool, of_pool)

    def pool(self, node: Node, group: str, mixin: type[Any], retry: Any) -> Any:
        """Return the pool of one node. Its connections keep their last error."""
        kwargs = _kwargs_of(node, self.connection_kwargs, retry)
        url = kwargs.pop("url", None)
        if "connection_class" in kwargs and kwargs["connection_class"] is None:
            kwargs["connection_class"] = self._driver.UnixDomainSocketConnection
        # the defaults of a group are poolkit's limits, not redis-py's, so both are set here even if they were not given
        config = self._config
        plain = {setting: (getattr(config, setting), DEFAULT) for setting in ("max_size", "acquire_timeout")}
        kwargs["config"] = combine(plain, layer_of(config), base=config)
        kwargs["name"] = f"{group}/{node.name}"
        pool = self._pool_class.from_url(url, **kwargs) if url else self._pool_class(**kwargs)
        pool.connection_class = _noted(pool.connection_class, mixin)
        return pool


def _known(driver: Any, pool_class: type, given: dict[str, Any]) -> set[str]:
    """Return the argument names of redis-py's pools and connections, including those of a custom class."""
    kinds = [pool_class, driver.SSLConnection, driver.UnixDomainSocketConnection]
    if isinstance(given.get("connection_class"), type):
        kinds.append(given["connection_class"])
    return parameters_of(*kinds)


class _ServerBase(NodePool):
    classify = staticmethod(_judge)

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    @property
    def poolkit(self) -> Any:
        return self.pool.poolkit


class _Server(_ServerBase):
    def lease(self, timeout: float | None) -> NodeLease[Any]:
        connection = take(self.pool, math.inf if timeout is None else timeout, time.monotonic())
        connection.poolkit_error = None
        return NodeLease(connection, self.pool.release, _disconnect)

    def limited(self, connection: Any, timeout: float) -> AbstractContextManager[object]:
        return limit_role_question(connection, timeout)


class _AsyncServer(_ServerBase):
    async def lease(self, timeout: float | None) -> AsyncNodeLease[Any]:
        connection = await take_async(self.pool, math.inf if timeout is None else timeout)
        connection.poolkit_error = None
        return AsyncNodeLease(connection, self._release, _disconnect)

    def _release(self, connection: Any) -> Coroutine[Any, Any, None]:
        passing, connection.poolkit_passing = connection.poolkit_passing, None
        return self.pool._release(connection, exc_info()[1] if passing is None else passing)  # type: ignore[no-any-return]


_disconnect = methodcaller("disconnect")


class _Caches:
    """valkey-py's clients ask their pool to change the caches of its connections: here those of all servers."""

    group: Any

    def flush_cache(self) -> None:
        """Empty the client-side cache of every connection to any server of the group."""
        for pool in self._pools():
            pool.flush_cache()

    def delete_command_from_cache(self, command: Any) -> None:
        """Remove a command from the caches of all connections."""
        for pool in self._pools():
            pool.delete_command_from_cache(command)

    def invalidate_key_from_cache(self, key: Any) -> None:
        """Remove what was read from a key from the caches of all connections."""
        for pool in self._pools():
            pool.invalidate_key_from_cache(key)

    def _pools(self) -> list[Any]:
        found = []
        for node in self.group.nodes:
            try:
                found.append(self.group.pool(node.name).pool)
            except KeyError:
                pass  # removed meanwhile
        return found


class GroupConnectionPool(_Caches, ConnectionPool):  # type: ignore[misc]
    """The pool object of a group's client. Each command uses a connection of a server that the group chooses."""

    def __init__(self, group: PoolkitServerGroup, role: str | None, **connection_kwargs: Any) -> None:
        self.group = group
        self.role = role
        self._out: dict[int, ClusterLease[Any]] = {}
        super().__init__(**connection_kwargs)

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Return a connection to one of the group's servers."""
        lease = self.group.lease(role=self.role)
        self._out[id(lease.connection)] = lease
        return lease.connection

    def release(self, connection: Any) -> None:
        """Give the connection back. Its last error decides whether its server stays in use."""
        lease = self._out.pop(id(connection), None)
        if lease is not None:
            lease.close(error=connection.poolkit_error)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Do nothing: the connections belong to the group, which ``group.close()`` closes."""


class AsyncGroupConnectionPool(_Caches, AsyncConnectionPool):  # type: ignore[misc]
    """The twin of :class:`GroupConnectionPool` for ``redis.asyncio``."""

    def __init__(self, group: AsyncPoolkitServerGroup, role: str | None, **connection_kwargs: Any) -> None:
        self.group = group
        self.role = role
        self._out: dict[int, AsyncClusterLease[Any]] = {}
        super().__init__(**connection_kwargs)

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Return a connection to one of the group's servers."""
        lease = await self.group.lease(role=self.role)
        self._out[id(lease.connection)] = lease
        return lease.connection

    def release(self, connection: Any) -> Coroutine[Any, Any, None]:
        """Give the connection back. Its last error decides whether its server stays in use."""
        if id(connection) in self._out:
            connection.poolkit_passing = exc_info()[1]  # here, as in the pool of one server
        return self._release(connection)

    async def _release(self, connection: Any) -> None:
        lease = self._out.pop(id(connection), None)
        if lease is not None:
            await lease.close(error=connection.poolkit_error)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Do nothing: the connections belong to the group, which ``group.close()`` closes."""


class PoolkitServerGroup(Cluster[Any]):
    """Several Redis servers, each with a :class:`PoolkitConnectionPool`, behind ordinary clients.

    ::

        group = PoolkitServerGroup(["10.0.0.1:6379", "10.0.0.2:6379"], decode_responses=True)
        writes, reads = group.client("primary"), group.client("prefer-replica")

    Args:
        nodes: addresses (``host:port``, URLs, socket paths), :class:`~poolkit.cluster.Node` objects, or a discovery.
        pool: settings of the pool of each server.
        cluster: settings of the cluster.
        roles: whether to ask each server for its role with :func:`role_of`.
        name: name of the group, for messages, statistics and events.
        listeners: functions called for each :class:`~poolkit.cluster.ClusterEvent`.
        connection_kwargs: single settings of the cluster (``wait_for_node=5``) and of the pools (``max_size=5``),
            which override ``cluster`` and ``pool``; ``acquire_timeout`` is the cluster's. All others are redis-py's,
            for every connection. ``retry`` is "never" by default, because another server is the better second try.

    Raises:
        ConfigError: a wrong setting, or a keyword that neither poolkit nor redis-py knows.

    Thread-safe.
    """

    _translated = staticmethod(CLUSTER_ERRORS.translated)

    def __init__(
        self,
        nodes: Iterable[Node | str] | Discovery,
        *,
        pool: PoolConfig | None = None,
        cluster: ClusterConfig | None = None,
        roles: bool = True,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **connection_kwargs: Unpack[GroupKeywords],
    ) -> None:
        plan = _Plan(sync_driver, PoolkitConnectionPool, pool, dict(connection_kwargs))
        self._connection_kwargs = plan.connection_kwargs

        def make(node: Node) -> _Server:
            return _Server(plan.pool(node, self.name, _NotedConnection, Retry(NoBackoff(), 0)))

        asked = role_of if roles else None
        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=asked, **plan.own)

    def client(self, role: str | None = None, **kwargs: Any) -> Any:
        """Return a ``redis.Redis`` that sends each command to a server of this role.

        ``role`` is "primary", "replica", "prefer-replica" or None (any). A pipeline, a transaction and a subscription
        each stay on one server.
        """
        return Client(connection_pool=GroupConnectionPool(self, role, **self._connection_kwargs), **kwargs)


class AsyncPoolkitServerGroup(AsyncCluster[Any]):
    """The twin of :class:`PoolkitServerGroup` for ``redis.asyncio``. Safe for concurrent tasks of one event loop."""

    _translated = staticmethod(CLUSTER_ERRORS.translated)

    def __init__(
        self,
        nodes: Iterable[Node | str] | Discovery,
        *,
        pool: PoolConfig | None = None,
        cluster: ClusterConfig | None = None,
        roles: bool = True,
        name: str | None = None,
        listeners: Iterable[Callable[[ClusterEvent], object]] = (),
        **connection_kwargs: Unpack[GroupKeywords],
    ) -> None:
        plan = _Plan(async_driver, AsyncPoolkitConnectionPool, pool, dict(connection_kwargs))
        self._connection_kwargs = plan.connection_kwargs

        def make(node: Node) -> _AsyncServer:
            return _AsyncServer(plan.pool(node, self.name, _AsyncNotedConnection, AsyncRetry(NoBackoff(), 0)))

        asked = role_of_async if roles else None
        super().__init__(make, nodes, cluster, name=name, listeners=listeners, role_of=asked, **plan.own)

    def client(self, role: str | None = None, **kwargs: Any) -> Any:
        """Return a ``redis.asyncio.Redis`` for this role. See :meth:`PoolkitServerGroup.client`."""
        pool = AsyncGroupConnectionPool(self, role, **self._connection_kwargs)
        return AsyncClient(connection_pool=pool, **kwargs)
