"""Interrupts in the middle of a command: every GET kN that returns yields vN, and the connection is closed."""

from __future__ import annotations

import asyncio
import ctypes
import random
import threading
import time
from collections.abc import Callable

import pytest
import redis
import redis.asyncio

from poolkit.testing.servers import RedisServer
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.faults.proxy import FaultProxy

from .support import unique

KEYS = 50


@pytest.fixture
def slow_server(redis_server: RedisServer, fault_proxy: Callable[..., FaultProxy]) -> FaultProxy:
    with redis.Redis(host=redis_server.host, port=redis_server.port) as client:
        client.mset({f"k{number}": f"v{number}" for number in range(KEYS)})
    proxy = fault_proxy(redis_server.host, redis_server.port)
    proxy.latency = 0.003
    return proxy


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.anyio
async def test_06_cancel_storm(slow_server: FaultProxy, protocol: int) -> None:
    pool = AsyncPoolkitConnectionPool(
        host=slow_server.host, port=slow_server.port, max_connections=5, timeout=20, protocol=protocol
    )
    client = redis.asyncio.Redis(connection_pool=pool)
    right = wrong = lost = cancelled = 0

    async def get(number: int) -> None:
        nonlocal right, wrong
        if await client.get(f"k{number}") == b"v%d" % number:
            right += 1
        else:
            wrong += 1

    dice = random.Random(protocol)
    for _ in range(40):
        tasks = [asyncio.create_task(get(dice.randrange(KEYS))) for _ in range(12)]
        await asyncio.sleep(dice.random() * 0.02)
        chosen = [task for task in dice.sample(tasks, 6) if task.cancel()]
        await asyncio.gather(*tasks, return_exceptions=True)
        cancelled += len(chosen)
        lost += sum(not task.cancelled() for task in chosen)
    assert wrong == 0
    assert right > 100
    assert cancelled > 100
    await asyncio.gather(*(get(number) for number in range(KEYS)))
    assert wrong == 0
    stats = pool.poolkit.stats()
    assert stats.in_use == stats.waiting == 0
    assert slow_server.max_open <= 5 + 5  # the proxy sees a closing one a moment longer
    pool.poolkit.check_books()
    await pool.aclose()


@pytest.mark.anyio
async def test_06_a_connection_cut_in_mid_command_is_closed(slow_server: FaultProxy) -> None:
    pool = AsyncPoolkitConnectionPool(host=slow_server.host, port=slow_server.port, max_connections=1)
    client = redis.asyncio.Redis(connection_pool=pool)
    first = await client.client_id()
    slow_server.latency = 0.2
    task = asyncio.create_task(client.get("k1"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slow_server.latency = 0.0
    assert await client.get("k2") == b"v2"
    assert await client.client_id() != first
    await pool.aclose()


@pytest.mark.anyio
async def test_02_r13_a_cancellation_at_the_hand_off_is_never_lost(redis_server: RedisServer) -> None:
    for ticks in range(4):
        for release_first in (True, False):
            pool = AsyncPoolkitConnectionPool.from_url(redis_server.url, max_connections=1, timeout=5)
            held = await pool.get_connection()
            task = asyncio.create_task(pool.get_connection())
            while not pool.poolkit.stats().waiting:
                await asyncio.sleep(0)
            if release_first:
                await pool.release(held)
            accepted = task.cancel() if not release_first else None
            for _ in range(ticks):
                await asyncio.sleep(0)
            if release_first:
                accepted = task.cancel()
            else:
                await pool.release(held)
            (result,) = await asyncio.gather(task, return_exceptions=True)
            if accepted:
                assert isinstance(result, asyncio.CancelledError)
            else:
                await pool.release(result)
            assert pool.poolkit.stats().idle == 1 or pool.poolkit.stats().size == 0
            pool.poolkit.check_books()
            again = await pool.get_connection()
            await pool.release(again)
            await pool.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("in_caller", [False, True])
async def test_03_a_cancelled_connect_is_kept_or_leaves_nothing_behind(
    redis_server: RedisServer, fault_proxy: Callable[..., FaultProxy], in_caller: bool
) -> None:
    proxy = fault_proxy(redis_server.host, redis_server.port)
    proxy.mode = "hold"
    pool = AsyncPoolkitConnectionPool(
        host=proxy.host,
        port=proxy.port,
        max_connections=1,
        connect_in_caller=in_caller,
        socket_timeout=60,
        socket_connect_timeout=60,
    )
    task = asyncio.create_task(pool.get_connection())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.poolkit.stats().size == (0 if in_caller else 1)
    proxy.mode = "pass"
    await pool.release(await pool.get_connection())
    assert proxy.accepted == (2 if in_caller else 1)
    pool.poolkit.check_books()
    await pool.aclose()


@pytest.mark.anyio
async def test_a_release_that_is_cancelled_loses_nothing(redis_server: RedisServer) -> None:
    """redis-py's asyncio pools lose the connection and its slot when the release waits for their lock."""
    pool = AsyncPoolkitConnectionPool.from_url(redis_server.url, max_connections=1, timeout=0.5)
    for ticks in range(3):
        connection = await pool.get_connection()
        task = asyncio.create_task(pool.release(connection))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not ticks:  # cancelled before it started, so it was not released
            await pool.release(connection)
        await pool.release(await pool.get_connection())
    pool.poolkit.check_books()
    await pool.aclose()


class Interrupt(BaseException):
    """An interrupt, as gevent's Timeout or a signal handler raises it."""


# an interrupt between socket() and the line that keeps its result, in redis-py's connect, leaves it to the collector
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
# and one in a finalizer or a weak reference's callback is reported there and not raised
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_06_threads_interrupted_in_mid_command(slow_server: FaultProxy) -> None:
    pool = PoolkitConnectionPool(host=slow_server.host, port=slow_server.port, max_connections=4, timeout=20)
    client = redis.Redis(connection_pool=pool, client_name=unique())
    wrong: list[object] = []
    end = time.monotonic() + 2

    def work(seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < end:
            number = dice.randrange(KEYS)
            try:
                try:
                    value = client.get(f"k{number}")
                    if value != b"v%d" % number:
                        wrong.append((number, value))
                finally:
                    pass
            except Interrupt:
                continue

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    dice = random.Random(1)
    while time.monotonic() < end - 0.5:
        time.sleep(0.02)
        victim = dice.choice(threads)
        assert victim.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim.ident), ctypes.py_object(Interrupt))
    for thread in threads:
        thread.join()
    assert wrong == []
    pool.close()


def test_06_an_interrupt_between_a_request_and_its_reply(slow_server: FaultProxy) -> None:
    """redis-py disconnects if a read is interrupted, but not if the interrupt comes just before the read."""
    pool = PoolkitConnectionPool(host=slow_server.host, port=slow_server.port, max_connections=1)
    client = redis.Redis(connection_pool=pool)
    connection = pool.get_connection()
    read = connection.read_response

    def interrupted(*_args: object, **_kwargs: object) -> None:
        connection.read_response = read
        raise Interrupt

    connection.read_response = interrupted
    pool.release(connection)
    with pytest.raises(Interrupt):
        client.get("k1")
    assert client.get("k2") == b"v2"
    pool.close()
