"""*cells*: each adapter beside its driver's own pool, with 1 to 64 callers on fewer and on as many connections.

Whole requests to real servers: what a user would notice of a change of the pool.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from bench.experiments import redis as redis_bench
from bench.experiments import sql
from bench.experiments.spike import short
from bench.http_clients import OURS, OWN, REQUESTS, URLLIB3, Turn, async_client, blocking_client, client
from bench.load import Load, by_tasks, by_threads, record
from bench.turns import Run
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer

__all__ = ("OPTIONAL", "PAIRS", "SIZES", "SPIKE", "run")

SPIKE = ("SQLAlchemy -> poolkit", "redis-py -> poolkit")
"""Adapters whose spike (see *spike*) is compared with the engine's own."""

OPTIONAL = ("urllib3", "requests", "valkey")
"""Modules that may be absent. valkey-py needs Python 3.11."""

SIZES = ((1, 1), (4, 1), (4, 4), (16, 4), (16, 16), (64, 16), (64, 64))
"""Callers and connections."""
PAIRS: dict[str, tuple[str, str, str, str]] = {
    "SQLAlchemy": ("sql", "threads", "SQLAlchemy QueuePool", "SQLAlchemy -> poolkit"),
    "SQLAlchemy (psycopg), asyncio": (
        "sql", "tasks", "SQLAlchemy (psycopg) AsyncAdaptedQueuePool", "SQLAlchemy (psycopg) -> poolkit",
    ),
    "SQLAlchemy (asyncpg), asyncio": (
        "sql", "tasks", "SQLAlchemy (asyncpg) AsyncAdaptedQueuePool", "SQLAlchemy (asyncpg) -> poolkit",
    ),
    "psycopg": ("sql", "threads", "psycopg_pool", "psycopg -> poolkit"),
    "psycopg, asyncio": ("sql", "tasks", "psycopg_pool", "psycopg -> poolkit"),
    "redis-py": ("redis", "threads", "redis-py BlockingConnectionPool", "redis-py -> poolkit"),
    "redis-py, asyncio": ("redis", "tasks", "redis-py BlockingConnectionPool", "redis-py -> poolkit"),
    "httpx": ("http", "threads", OWN, OURS),
    "httpx, asyncio": ("http", "tasks", OWN, OURS),
    "urllib3": ("http", "threads", *URLLIB3),
    "requests": ("http", "threads", *REQUESTS),
    "asyncpg": ("sql", "tasks", "asyncpg", "asyncpg -> poolkit"),
    "valkey-py": ("redis", "threads", "valkey-py BlockingConnectionPool", "valkey-py -> poolkit"),
    "valkey-py, asyncio": ("redis", "tasks", "valkey-py BlockingConnectionPool", "valkey-py -> poolkit"),
}  # fmt: skip
"""By the adapter's name: the servers, threads or tasks, the driver's own pool, and poolkit."""


def run(bench: Run) -> None:
    """Each adapter at each size, both pools in turns."""
    repeat, seconds = bench.pick(1, 1, 7), bench.pick(0.02, 0.1, 0.3)
    sizes = bench.pick(SIZES[:2], SIZES[:5], SIZES)
    bench.say("spike")
    for turn in bench.turns(("poolkit", *SPIKE), repeat):
        with turn as name:
            short(bench, name, 20, bench.pick(0.02, 0.15, 0.15))
    bench.say("starting PostgreSQL, Redis and the HTTP server")
    with PostgresServer(max_connections=150) as postgres, RedisServer() as redis, HTTPServer(fast=True) as http:
        servers = {"sql": postgres, "redis": redis, "http": http}
        for adapter, (kind, world, *pools) in PAIRS.items():
            module = adapter.partition(",")[0].partition("-")[0]
            if module in OPTIONAL and importlib.util.find_spec(module) is None:
                continue
            for callers, connections in sizes:
                params: dict[str, Any] = {"adapter": adapter, "callers": callers, "connections": connections}
                bench.say(f"{adapter}, {callers} callers on {connections} connections")
                for turn in bench.turns(pools, repeat):
                    with turn as name:
                        subject = (kind, name, servers[kind], connections)
                        if world == "threads":
                            with _threads(*subject) as request:
                                found = by_threads(request, callers, seconds)
                        else:
                            found = asyncio.run(_tasks(subject, callers, seconds))
                        record(bench, name, found, **params)


@contextmanager
def _threads(kind: str, name: str, server: Any, size: int) -> Iterator[Callable[[], object]]:
    if kind == "sql":
        with sql.SYNC[name](server, size) as (request, _, _):
            yield request
    elif kind == "redis":
        pool = redis_bench.pool_of(redis_bench.sync_pools()[name], server, size)
        try:
            made = redis_bench.client_of(pool)
            yield lambda: made.get("key")
        finally:
            pool.disconnect()
    else:
        opened = blocking_client if name in (*URLLIB3, *REQUESTS) else client
        with opened(Turn(name, server.url, size)) as request:
            yield request


@asynccontextmanager
async def _asynchronous(kind: str, name: str, server: Any, size: int) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    if kind == "sql":
        async with sql.ASYNC[name](server, size) as (request, _, _):
            yield request
    elif kind == "redis":
        pool = redis_bench.pool_of(redis_bench.async_pools()[name], server, size)
        try:
            made = redis_bench.async_client_of(pool)
            yield lambda: made.get("key")
        finally:
            await pool.disconnect()
    else:
        async with async_client(Turn(name, server.url, size)) as get:
            yield lambda: get("/")


async def _tasks(subject: tuple[str, str, Any, int], callers: int, seconds: float) -> Load:
    opened: AbstractAsyncContextManager[Any] = _asynchronous(*subject)
    async with opened as request:
        return await by_tasks(request, callers, seconds, seconds / 3)
