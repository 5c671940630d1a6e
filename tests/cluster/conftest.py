"""Four servers of each kind, started when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from poolkit.testing.servers import PostgresServer, RedisServer


@pytest.fixture(params=["threads", "asyncio", "trio"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(flavour: str) -> str:
    """Scenarios on threads are coroutines too, which asyncio runs."""
    return "trio" if flavour == "trio" else "asyncio"


@pytest.fixture(scope="session")
def _postgres_four() -> Iterator[list[PostgresServer]]:
    servers = [PostgresServer(dbname="shop", max_connections=40) for _ in range(4)]
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        for server in servers:
            stack.callback(server.stop)
        list(threads.map(lambda server: server.start(), servers))
        yield servers


@pytest.fixture
def postgres_four(_postgres_four: list[PostgresServer]) -> list[PostgresServer]:
    """Four running PostgreSQL, all of them primaries; a test may kill them, the next one finds them running."""
    for server in _postgres_four:
        server.start()
        with server.connect() as connection:
            connection.execute("alter system reset default_transaction_read_only")
            connection.execute("select pg_reload_conf()")
    return _postgres_four


@pytest.fixture(scope="session")
def _redis_four() -> Iterator[list[RedisServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(RedisServer()) for _ in range(4)]


@pytest.fixture
def redis_four(_redis_four: list[RedisServer]) -> list[RedisServer]:
    """Four running Redis, all of them masters and empty."""
    for server in _redis_four:
        server.start()
        with server.connect() as client:
            client.replicaof("NO", "ONE")
            client.flushall()
    return _redis_four
