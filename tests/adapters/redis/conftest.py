"""Pools under test, closed at the end and their invariants checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from poolkit.testing.servers import RedisServer
from tests.support import both_libraries


@pytest.fixture
def anyio_backend() -> str:
    """redis.asyncio supports asyncio only."""
    return "asyncio"


@pytest.fixture
def redis_server(request: pytest.FixtureRequest) -> RedisServer:
    """A running Redis, and for the tests of valkey-py a running Valkey."""
    second = getattr(request.module, "SECOND", None) == "valkey"
    server: RedisServer = request.getfixturevalue("_valkey_server" if second else "_redis_server")
    return server.start()


@pytest.fixture
def make_pool(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    pools: list[Any] = []
    kind = both_libraries.adapter("redis", request.module).PoolkitConnectionPool

    def make(url: str | None = None, **kwargs: Any) -> Any:
        pools.append(kind.from_url(url or redis_server.url, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
        if not pool._in_use_connections:
            pool.poolkit.check_books()
        pool.poolkit.close()  # redis-py's close() leaves the pool open, and its locks keep a client for ever


@pytest.fixture
async def make_async_pool(
    redis_server: RedisServer, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[..., Any]]:
    pools: list[Any] = []
    kind = both_libraries.adapter("redis", request.module).AsyncPoolkitConnectionPool

    def make(url: str | None = None, **kwargs: Any) -> Any:
        pools.append(kind.from_url(url or redis_server.url, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.aclose()
        if not pool._in_use_connections:
            pool.poolkit.check_books()
        await pool.poolkit.close()
