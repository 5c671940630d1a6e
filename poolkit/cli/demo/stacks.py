"""One request handler with three clients. Only the pools of the clients differ."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from poolkit.cli.demo.plan import ROWS, Plan

__all__ = ("AsyncStack", "Sites", "Stack", "async_stack", "import_everything", "sync_stack")

_QUERY = "select name, stock from product, pg_sleep(:seconds) where id = :id"


@dataclass(frozen=True)
class Sites:
    """Where the three servers are."""

    database_url: str
    redis_host: str
    redis_port: int
    service_url: str


@dataclass(frozen=True)
class Stack:
    """The clients of one program, used by all of its threads."""

    engine: Any
    cache: Any
    service: Any
    query: Any
    plan: Plan
    states: Callable[[], list[tuple[str, str]]]
    """Name and state of each pool, in words."""

    def handle(self, number: int) -> None:
        """Answer one request for a product's page: stock from the database, description from the cache, price
        from the service next door.
        """
        product = number % ROWS
        with self.engine.connect() as connection:
            name, _stock = connection.execute(self.query, {"id": product, "seconds": self.plan.query_seconds}).one()
        if self.cache.get(f"product:{product}") is None:
            self.cache.set(f"product:{product}", name)
        self.service.get(f"/sleep?ms={self.plan.service_ms}").raise_for_status()


@dataclass(frozen=True)
class AsyncStack:
    """The same for the tasks of one event loop."""

    engine: Any
    cache: Any
    service: Any
    query: Any
    plan: Plan
    states: Callable[[], list[tuple[str, str]]]

    async def handle(self, number: int) -> None:
        """See :meth:`Stack.handle`."""
        product = number % ROWS
        async with self.engine.connect() as connection:
            found = await connection.execute(self.query, {"id": product, "seconds": self.plan.query_seconds})
            name, _stock = found.one()
        if await self.cache.get(f"product:{product}") is None:
            await self.cache.set(f"product:{product}", name)
        (await self.service.get(f"/sleep?ms={self.plan.service_ms}")).raise_for_status()


@contextlib.contextmanager
def sync_stack(pools: str, sites: Sites, plan: Plan) -> Iterator[Stack]:
    """Open the clients on ``"own"`` or ``"poolkit"`` pools, and close them."""
    import httpx
    import redis
    import sqlalchemy

    database_pool, redis_pool, transport = _sync_classes(pools)
    seen = _Watch()
    engine = sqlalchemy.create_engine(sites.database_url, poolclass=database_pool, **_database(plan))
    seen.name("PostgreSQL")
    connections = redis_pool(host=sites.redis_host, port=sites.redis_port, **_redis(plan))
    seen.name("Redis")
    service = httpx.Client(transport=transport(limits=_limits(plan)), **_service(sites, plan))
    seen.name("HTTP")
    states = seen.states if pools == "poolkit" else lambda: _own_states(engine, connections)
    with service, redis.Redis(connection_pool=connections) as cache:
        try:
            yield Stack(engine, cache, service, sqlalchemy.text(_QUERY), plan, states)
        finally:
            connections.disconnect()
            engine.dispose()


@contextlib.asynccontextmanager
async def async_stack(pools: str, sites: Sites, plan: Plan) -> AsyncIterator[AsyncStack]:
    """The same, asynchronous."""
    import httpx
    import redis.asyncio
    import sqlalchemy
    from sqlalchemy.ext.asyncio import create_async_engine

    database_pool, redis_pool, transport = _async_classes(pools)
    seen = _Watch()
    engine = create_async_engine(sites.database_url, poolclass=database_pool, **_database(plan))
    seen.name("PostgreSQL")
    connections = redis_pool(host=sites.redis_host, port=sites.redis_port, **_redis(plan))
    seen.name("Redis")
    service = httpx.AsyncClient(transport=transport(limits=_limits(plan)), **_service(sites, plan))
    seen.name("HTTP")
    states = seen.states if pools == "poolkit" else lambda: _own_states(engine, connections)
    async with service, redis.asyncio.Redis(connection_pool=connections) as cache:
        try:
            yield AsyncStack(engine, cache, service, sqlalchemy.text(_QUERY), plan, states)
        finally:
            await connections.disconnect()
            await engine.dispose()


def import_everything() -> None:
    """Import every client and adapter, so that a missing one fails before a server starts and no round is delayed."""
    for pools in ("own", "poolkit"):
        _sync_classes(pools)
        _async_classes(pools)


def _sync_classes(pools: str) -> tuple[Any, Any, Any]:
    if pools == "poolkit":
        from poolkit_adapters.httpx import PoolkitTransport
        from poolkit_adapters.redis import PoolkitConnectionPool
        from poolkit_adapters.sqlalchemy import PoolkitPool

        return PoolkitPool, PoolkitConnectionPool, PoolkitTransport
    import httpx
    import redis
    import sqlalchemy

    return sqlalchemy.QueuePool, redis.BlockingConnectionPool, httpx.HTTPTransport


def _async_classes(pools: str) -> tuple[Any, Any, Any]:
    if pools == "poolkit":
        from poolkit_adapters.httpx import AsyncPoolkitTransport
        from poolkit_adapters.redis import AsyncPoolkitConnectionPool
        from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

        return AsyncPoolkitPool, AsyncPoolkitConnectionPool, AsyncPoolkitTransport
    import httpx
    import redis.asyncio
    import sqlalchemy

    return sqlalchemy.AsyncAdaptedQueuePool, redis.asyncio.BlockingConnectionPool, httpx.AsyncHTTPTransport


def _database(plan: Plan) -> dict[str, Any]:
    return {"pool_size": plan.pool_size, "max_overflow": 0, "pool_timeout": plan.timeout}


def _redis(plan: Plan) -> dict[str, Any]:
    return {
        "max_connections": plan.pool_size,
        "timeout": plan.timeout,
        "socket_timeout": plan.timeout,
        "socket_connect_timeout": plan.timeout,
        "decode_responses": True,
    }


def _limits(plan: Plan) -> Any:
    import httpx

    return httpx.Limits(max_connections=plan.pool_size, max_keepalive_connections=plan.pool_size)


def _service(sites: Sites, plan: Plan) -> dict[str, Any]:
    return {"base_url": sites.service_url, "timeout": plan.timeout}


class _Watch:
    """Maps the pools of the process to their clients."""

    def __init__(self) -> None:
        import poolkit

        self._all = poolkit.pools
        self._known = set(map(id, self._all()))
        self._named: list[tuple[str, Any]] = []

    def name(self, client: str) -> None:
        """Give the pools made since the last call the client's name."""
        for pool in self._all():
            if id(pool) not in self._known:
                self._known.add(id(pool))
                self._named.append((client, pool))

    def states(self) -> list[tuple[str, str]]:
        """The state of each pool, without its own name."""
        return [(client, pool.explain().removeprefix(f"{pool.name}: ")) for client, pool in self._named]


def _own_states(engine: Any, connections: Any) -> list[tuple[str, str]]:
    """The public state of the drivers' own pools."""
    return [
        ("PostgreSQL", f"in use {engine.pool.checkedout()}/{engine.pool.size()}, idle {engine.pool.checkedin()}"),
        ("Redis", "not public in redis-py"),
        ("HTTP", "not public in httpx"),
    ]
