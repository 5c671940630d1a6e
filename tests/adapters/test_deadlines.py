"""A deadline for several calls in every adapter, on real servers: the driver's API is unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import redis
import redis.asyncio
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

import poolkit
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitCluster, PoolkitPool
from tests.adapters.test_priorities import SYNC, Servers, opened
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE


@pytest.fixture
def servers(postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer) -> Servers:
    return Servers(postgres, redis_server, http_server)


@pytest.mark.parametrize("adapter", SYNC)
def test_a_thread_waits_no_longer_than_its_block(adapter: str, servers: Servers) -> None:
    """The pool's own timeout is longer than this test may run."""
    with opened(adapter, servers, max_connecting=3) as (engine, use):
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(use())
            with poolkit.deadline(0.05), pytest.raises(poolkit.AcquireTimeout):
                held.enter_context(use())
            assert engine.stats().timeouts == 1
        with poolkit.deadline(PATIENCE), use():
            pass
        engine.check_books()


def test_a_caller_of_a_cluster_waits_no_longer_than_its_block(postgres: PostgresServer) -> None:
    nodes = [f"{postgres.host}:{postgres.port}"]
    with PoolkitCluster(
        postgres.sqlalchemy_url(), nodes, roles=False, acquire_timeout=PATIENCE, pool_size=1, max_overflow=0
    ) as cluster:
        with cluster.connect():
            with poolkit.deadline(0.05), pytest.raises(poolkit.AcquireTimeout), cluster.connect():
                pass
        with poolkit.deadline(PATIENCE), cluster.connect():
            pass


# -- each part of a checkout, with limits of its own that are longer than this test may run -------------------------

MakeProxy = Callable[[str, int], FaultProxy]
ONE = text("select 1")
BLOCK = 0.3
"""Seconds. The caller comes as far as the part that hangs, unless the machine is very busy."""
LONG = 10 * PATIENCE


PINGING = 2.0
"""Seconds for the tests of pings. On a very busy machine a ping must begin within them, or there is none."""

Use = Callable[[Engine, FaultProxy], None]


@pytest.fixture(params=[False, True], ids=["threads", "asyncio"])
def pinging(
    postgres: PostgresServer, fault_proxy: MakeProxy, request: pytest.FixtureRequest
) -> Callable[[int, Use], None]:
    """Run ``use(engine, proxy)`` with an engine of so many connections that pings a server behind a proxy."""
    proxy = fault_proxy(postgres.host, postgres.port)
    url = postgres.sqlalchemy_url("psycopg").replace(f":{postgres.port}/", f":{proxy.port}/")

    def run(size: int, use: Use) -> None:
        settings: dict[str, Any] = {
            "pool_pre_ping": True, "pool_size": size, "max_overflow": 0, "pool_timeout": None, "check_timeout": LONG,
        }  # fmt: skip

        def used(engine: Engine) -> None:
            use(engine, proxy)
            engine.dispose()

        if request.param:
            engine = create_async_engine(url, poolclass=AsyncPoolkitPool, **settings)
            asyncio.run(greenlet_spawn(used, engine.sync_engine))
        else:
            used(create_engine(url, poolclass=PoolkitPool, **settings))

    return run


def test_a_ping_of_sqlalchemy_ends_with_the_block(pinging: Callable[[int, Use], None]) -> None:
    """``pool_pre_ping`` asks a server that has vanished."""

    def use(engine: Engine, proxy: FaultProxy) -> None:
        with engine.connect() as connection:
            assert connection.scalar(ONE) == 1
        proxy.mode = "silent"
        with poolkit.deadline(PINGING), pytest.raises(poolkit.AcquireTimeout):
            engine.connect()
        proxy.cut()

    pinging(1, use)


def test_a_late_ping_of_sqlalchemy_costs_no_other_connection(pinging: Callable[[int, Use], None]) -> None:
    """The time of one caller says nothing about the server. After its end there is no ping."""

    def use(engine: Engine, proxy: FaultProxy) -> None:
        connects: list[Any] = []
        event.listen(engine, "connect", lambda *_: connects.append(1))

        def all_in_use() -> int:
            with contextlib.ExitStack() as held:
                for _ in range(3):
                    assert held.enter_context(engine.connect()).scalar(ONE) == 1
            return len(connects)

        assert all_in_use() == 3
        proxy.mode = "silent"  # a ping would not end
        with poolkit.deadline(0):
            connection = engine.connect()
        proxy.mode = "pass"
        connection.close()
        assert all_in_use() == 3
        proxy.mode = "silent"
        with poolkit.deadline(PINGING), pytest.raises(poolkit.AcquireTimeout):
            engine.connect()
        proxy.mode = "pass"
        assert all_in_use() == 4

    pinging(3, use)


class _Token:
    """New credentials, as redis-py's credential providers hand them on."""

    def try_get(self, key: str) -> str:
        return "default"

    def get_value(self) -> str:
        return ""


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_new_credentials_of_redis_end_with_the_block(
    redis_server: RedisServer, fault_proxy: MakeProxy, asynchronous: bool
) -> None:
    """An idle connection authenticates again before it is handed out."""
    proxy = fault_proxy(redis_server.host, redis_server.port)
    settings: dict[str, Any] = {
        "host": proxy.host, "port": proxy.port, "socket_timeout": LONG, "max_connections": 1, "timeout": None,
        "check_timeout": LONG, "check_after_idle": LONG,
    }  # fmt: skip

    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(**settings)
        await redis.asyncio.Redis(connection_pool=pool).ping()
        await pool.re_auth_callback(_Token())
        proxy.mode = "silent"
        with poolkit.deadline(BLOCK), pytest.raises(poolkit.AcquireTimeout):
            await pool.get_connection()
        proxy.cut()
        await pool.aclose()

    if asynchronous:
        asyncio.run(main())
        return
    pool = PoolkitConnectionPool(**settings)
    redis.Redis(connection_pool=pool).ping()
    pool.re_auth_callback(_Token())
    proxy.mode = "silent"
    with poolkit.deadline(BLOCK), pytest.raises(poolkit.AcquireTimeout):
        pool.get_connection()
    proxy.cut()
    pool.close()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_a_handshake_of_httpx_ends_with_the_block(silent: int, asynchronous: bool) -> None:
    async def main() -> None:
        transport = AsyncPoolkitTransport(verify=False)
        async with httpx.AsyncClient(transport=transport, timeout=LONG) as client:
            with poolkit.deadline(BLOCK), pytest.raises(poolkit.AcquireTimeout):
                await client.get(f"https://127.0.0.1:{silent}/")

    if asynchronous:
        asyncio.run(main())
        return
    with httpx.Client(transport=PoolkitTransport(verify=False), timeout=LONG) as client:
        with poolkit.deadline(BLOCK), pytest.raises(poolkit.AcquireTimeout):
            client.get(f"https://127.0.0.1:{silent}/")


@pytest.mark.parametrize("retries", [False, 3], ids=["no-retries", "retries"])
@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through-a-proxy"])
def test_a_handshake_of_urllib3_ends_with_the_block(silent: int, retries: Any, proxied: bool) -> None:
    """urllib3 opens its connections itself, in its caller. So the error is that of a connect which took too long."""
    module = pytest.importorskip("poolkit_adapters.urllib3")
    settings: dict[str, Any] = {"timeout": LONG, "retries": retries, "cert_reqs": "CERT_NONE"}
    if proxied:
        manager = module.PoolkitProxyManager(f"http://127.0.0.1:{silent}", **settings)
    else:
        manager = module.PoolkitPoolManager(**settings)
    with manager, poolkit.deadline(BLOCK), pytest.raises((poolkit.ConnectTimeout, poolkit.AcquireTimeout)):
        manager.request("GET", f"https://127.0.0.1:{silent}/")


def test_the_time_that_is_left_can_be_asked_for() -> None:
    """For the work on a connection, which no block ends: a statement, or a request."""
    assert poolkit.deadline.left() is None
    with poolkit.deadline(PATIENCE):
        outer = poolkit.deadline.left()
        assert outer is not None
        assert 0 < outer <= PATIENCE
        with poolkit.deadline(0):
            assert poolkit.deadline.left() == 0.0
        with poolkit.deadline(2 * PATIENCE):
            inner = poolkit.deadline.left()
            assert inner is not None
            assert inner <= outer, "an outer block counts too"
    assert poolkit.deadline.left() is None
