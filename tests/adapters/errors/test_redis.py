"""Each error of the redis adapter happens, on a real server, and is poolkit's and redis-py's."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
import redis.asyncio

import poolkit
from poolkit import BreakerConfig, ConfigError
from poolkit.testing.servers import RedisServer
from poolkit_adapters import redis as rd
from poolkit_adapters.redis._group import CLUSTER_ERRORS, NoServerAvailable
from tests.adapters.errors.walk import Scenarios, do, other_loop, walked
from tests.support.waiting import until


class Twin:
    """Creates pools of one kind."""

    def __init__(self, server: RedisServer, *, asynchronous: bool) -> None:
        self.server = server
        self.asynchronous = asynchronous
        self.driver: Any = redis.asyncio if asynchronous else redis
        self.kind: Any = rd.AsyncPoolkitConnectionPool if asynchronous else rd.PoolkitConnectionPool
        self.group: Any = rd.AsyncPoolkitServerGroup if asynchronous else rd.PoolkitServerGroup

    @contextlib.asynccontextmanager
    async def pool(self, url: str | None = None, **arguments: Any) -> AsyncIterator[Any]:
        pool = self.kind.from_url(url or self.server.url, **{"name": "orders", "max_connections": 1, **arguments})
        try:
            yield pool
        finally:
            await do(pool.aclose() if self.asynchronous else pool.close())

    async def until(self, condition: Any) -> None:
        await asyncio.to_thread(until, condition)


SCENARIOS: Scenarios[Twin] = Scenarios(CLUSTER_ERRORS)
happens = SCENARIOS.happens
NOBODY = "redis://127.0.0.1:1"


@happens(rd.AcquireTimeout, "orders", "in use 1/1")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        held = await do(pool.get_connection())
        pool.timeout = 0.01
        try:
            await do(pool.get_connection())
        finally:
            await do(pool.release(held))


@happens(rd.ServerUnavailable, "orders", "last connect error")
async def _(twin: Twin) -> None:
    def begin(pool: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(
            pool.get_connection() if twin.asynchronous else asyncio.to_thread(pool.get_connection)
        )

    with socket.create_server(("127.0.0.1", 0)) as rude:
        url = f"redis://127.0.0.1:{rude.getsockname()[1]}"
        async with twin.pool(url, protocol=3, socket_timeout=60, retry=None) as pool:
            first = begin(pool)
            (await asyncio.to_thread(rude.accept))[0].close()
            with pytest.raises(redis.ConnectionError):
                await first
            second = begin(pool)  # gets no reply, and has the only place
            answer, _ = await asyncio.to_thread(rude.accept)
            pool.timeout = 0.05
            try:
                await do(pool.get_connection())
            finally:
                answer.close()
                await asyncio.gather(second, return_exceptions=True)


@happens(rd.PoolBusy, "orders", "max_waiting=0")
async def _(twin: Twin) -> None:
    async with twin.pool(max_waiting=0) as pool:
        held = await do(pool.get_connection())
        try:
            await do(pool.get_connection())
        finally:
            await do(pool.release(held))


@happens(rd.ConnectFailed, "127.0.0.1:1")
async def _(twin: Twin) -> None:
    async with twin.pool(NOBODY) as pool:
        await do(pool.get_connection())


@happens(rd.ConnectTimeout)
async def _(twin: Twin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        never = redis.asyncio.retry.Retry if twin.asynchronous else redis.retry.Retry
        retry = never(redis.backoff.NoBackoff(), 0)
        async with twin.pool(url, socket_timeout=0.05, socket_connect_timeout=0.05, protocol=3, retry=retry) as pool:
            await do(pool.get_connection())


@happens(rd.CircuitOpen, "orders", "circuit open")
async def _(twin: Twin) -> None:
    async with twin.pool(NOBODY, breaker=BreakerConfig(failure_threshold=1)) as pool:
        with pytest.raises(rd.ConnectFailed):
            await do(pool.get_connection())
        await do(pool.get_connection())


@happens(rd.PoolSuspended, "orders", "suspended")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        pool.poolkit.suspend(fail_fast=True)
        await do(pool.get_connection())


@happens(rd.PoolClosed, "orders", "closed")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        await do(pool.poolkit.close())
        await do(pool.get_connection())


@happens(rd.LeaseCut, "orders", "on_leak='reclaim'")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        connection = await do(pool.get_connection())
        await do(pool.poolkit.drain(0))
        try:
            await do(connection.send_command("PING"))
        finally:
            await do(pool.release(connection)) if not twin.asynchronous else None


@happens(rd.NotLeased, "orders", only="async")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        connection = await pool.get_connection()
        await pool.release(connection)
        await pool.release(connection)


@happens(rd.LeaseOverdue, "orders", "leak_after=0.01")
async def _(twin: Twin) -> None:
    async with twin.pool(leak_after=0.01, on_leak="raise") as pool:
        connection = await do(pool.get_connection())
        await twin.until(lambda: pool.poolkit.stats().leaks)
        await do(pool.release(connection))


@happens(rd.WrongLoop, "orders", only="async")
async def _(twin: Twin) -> None:
    pool = twin.kind.from_url(twin.server.url, name="orders")
    with other_loop() as elsewhere:
        elsewhere(pool.release(elsewhere(pool.get_connection())))
        try:
            await pool.get_connection()
        finally:
            elsewhere(pool.aclose())


@happens(rd.UsageError, "get_connection()", only="async")
async def _(twin: Twin) -> None:
    twin.kind.from_url(twin.server.url).get_available_connection()


@happens(ConfigError, "max_waiting=-1")
async def _(twin: Twin) -> None:
    twin.kind(max_waiting=-1)


@happens(NoServerAvailable, "orders")
async def _(twin: Twin) -> None:
    group = twin.group(["127.0.0.1:1"], wait_for_node=0.05, eject_after=1, roles=False, name="orders")
    try:
        for _ in range(3):
            try:
                await do(group.client().ping())
            except NoServerAvailable:
                raise
            except redis.ConnectionError:
                pass
    finally:
        await do(group.close())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@SCENARIOS.walk()
def test_it_happens_and_is_both(
    row: Any, scenario: Any, words: Any, only: str, asynchronous: bool, redis_server: RedisServer
) -> None:
    if only == ("sync" if asynchronous else "async"):
        pytest.skip(f"can only happen {only}")
    asyncio.run(walked(row, scenario, words, Twin(redis_server, asynchronous=asynchronous)))


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest, redis_server: RedisServer) -> Twin:
    return Twin(redis_server, asynchronous=request.param)


async def failed(twin: Twin, url: str, **arguments: Any) -> BaseException:
    async with twin.pool(url, **arguments) as pool:
        with pytest.raises(Exception) as caught:
            await do(pool.get_connection())
    return caught.value


def test_a_special_error_of_a_connect_keeps_its_class(twin: Twin) -> None:
    async def main() -> None:
        error = await failed(twin, twin.server.url, username="nobody", password="wrong")
        assert isinstance(error, (redis.AuthenticationError, redis.ResponseError))
        assert isinstance(error, poolkit.ConnectFailed)
        assert type(error).__module__ == "redis.exceptions"
        assert type(copy.copy(error)) is type(error)
        wrong = await failed(twin, f"{twin.server.url}/9999")
        assert isinstance(wrong, redis.ResponseError)
        assert isinstance(wrong, poolkit.ConnectFailed)
        host = await failed(twin, "redis://nobody.invalid:6379", retry=None)
        assert isinstance(host, redis.ConnectionError)
        assert isinstance(host, rd.ConnectFailed)
        tls = await failed(twin, f"rediss://127.0.0.1:{twin.server.tls_port}", retry=None)  # an untrusted certificate
        assert isinstance(tls, redis.ConnectionError)
        assert isinstance(tls, rd.ConnectFailed)
        strange = await failed(twin, twin.server.url, no_such_argument=1)
        assert isinstance(strange, TypeError)
        assert isinstance(strange, poolkit.ConnectFailed)

    asyncio.run(main())


def test_a_lease_that_is_reclaimed_does_not_open_again(twin: Twin) -> None:
    async def main() -> None:
        async with twin.pool(leak_after=0.01, on_leak="reclaim") as pool:
            connection = await do(pool.get_connection())
            if twin.asynchronous:
                while pool.poolkit.stats().size:
                    await asyncio.sleep(0.01)
            else:
                await twin.until(lambda: not pool.poolkit.stats().size)
            for _ in range(2):
                with pytest.raises(rd.LeaseCut, match="'orders' closed this connection"):
                    await do(connection.send_command("PING"))
                with pytest.raises(rd.LeaseCut):
                    await do(connection.connect())
            if not twin.asynchronous:
                pool.release(connection)
            assert not pool._watches
            pool.poolkit.reconfigure(leak_after=60)
            client = twin.driver.Redis(connection_pool=pool)
            assert await do(client.ping())

    asyncio.run(main())


def test_errors_of_a_group_itself_are_both(twin: Twin) -> None:
    async def main() -> None:
        group = twin.group([f"127.0.0.1:{twin.server.port}"], roles=False, name="orders")
        with pytest.raises(redis.RedisError, match="orders") as foreign:
            await do(group.release(object()))
        assert isinstance(foreign.value, poolkit.NotLeased)
        await do(group.close())
        with pytest.raises(rd.PoolClosed, match="orders"):
            await do(group.client().ping())
        if twin.asynchronous:
            with other_loop() as elsewhere:
                group = twin.group([f"127.0.0.1:{twin.server.port}"], roles=False, name="orders")
                elsewhere(group.release(elsewhere(group.acquire())))
                with pytest.raises(rd.WrongLoop, match="orders"):
                    await group.client().ping()
                elsewhere(group.close())
        with pytest.raises(ConfigError, match=r"address='127\.0\.0\.1:no'"):
            twin.group(["127.0.0.1:no"])

    asyncio.run(main())
