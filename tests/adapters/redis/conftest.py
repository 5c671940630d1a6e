"""Pools under test, closed at the end and their invariants checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from poolkit.testing.servers import RedisServer
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool


@pytest.fixture
def anyio_backend() -> str:
    """redis.asyncio knows asyncio alone."""
    return "asyncio"


@pytest.fixture
def make_pool(redis_server: RedisServer) -> Iterator[Callable[..., PoolkitConnectionPool]]:
    pools: list[PoolkitConnectionPool] = []

    def make(url: str | None = None, **kwargs: Any) -> PoolkitConnectionPool:
        pools.append(PoolkitConnectionPool.from_url(url or redis_server.url, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
        if not pool._in_use_connections:
            pool.poolkit.check_books()


@pytest.fixture
async def make_async_pool(redis_server: RedisServer) -> AsyncIterator[Callable[..., AsyncPoolkitConnectionPool]]:
    pools: list[AsyncPoolkitConnectionPool] = []

    def make(url: str | None = None, **kwargs: Any) -> AsyncPoolkitConnectionPool:
        pools.append(AsyncPoolkitConnectionPool.from_url(url or redis_server.url, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.aclose()
        if not pool._in_use_connections:
            pool.poolkit.check_books()
