"""An exhausted pool: which callers wait, how long, in which order, and the text of the error."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

import poolkit
from poolkit.testing.servers import RedisServer
from poolkit_adapters.redis import PoolkitConnectionPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until

from .support import in_threads, ports, unique


def test_07_timeout_is_both_types_and_says_why(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1)
    held = pool.get_connection()
    pool.timeout = 0.05
    with pytest.raises(redis.exceptions.MaxConnectionsError) as caught:
        pool.get_connection()
    assert isinstance(caught.value, poolkit.AcquireTimeout)
    assert isinstance(caught.value, redis.ConnectionError)
    assert not isinstance(caught.value, poolkit.ConnectFailed)
    assert "in use 1/1" in str(caught.value)
    assert "longest held" in str(caught.value)
    pool.release(held)


@pytest.mark.anyio
async def test_07_async_timeout_is_both_types_and_says_why(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=1)
    held = await pool.get_connection()
    pool.timeout = 0.05
    with pytest.raises(redis.exceptions.MaxConnectionsError) as caught:
        await pool.get_connection()
    assert isinstance(caught.value, poolkit.AcquireTimeout)
    assert "in use 1/1" in str(caught.value)
    await pool.release(held)


def test_08_timeout_0_never_waits_and_connects_without_limit_of_turns(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=40, timeout=0)
    held: list[Any] = []
    assert in_threads(40, lambda i: held.append(pool.get_connection())) == []
    assert len(held) == 40
    with pytest.raises(redis.exceptions.MaxConnectionsError):
        pool.get_connection()
    for connection in held:
        pool.release(connection)


def test_timeout_and_limit_can_be_set_on_the_live_pool(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1, timeout=30)
    first = pool.get_connection()
    pool.timeout = 0
    with pytest.raises(redis.exceptions.MaxConnectionsError):
        pool.get_connection()
    pool.max_connections = 2
    second = pool.get_connection()
    pool.release(first)
    pool.release(second)


def test_programs_that_count_redis_pys_lists_go_on(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=5)
    held = [pool.get_connection() for _ in range(3)]
    pool.release(held.pop())
    assert (len(pool._available_connections), len(pool._in_use_connections)) == (1, 2)
    assert (pool._created_connections, pool.pool.qsize(), len(pool.pool.queue)) == (3, 3, 1)
    for connection in held:
        pool.release(connection)


def test_server_down_is_another_error_than_exhaustion(fault_proxy: Callable[..., FaultProxy]) -> None:
    proxy = fault_proxy("127.0.0.1", 1)
    proxy.mode = "refuse"
    with PoolkitConnectionPool(host=proxy.host, port=proxy.port, retry=None) as pool:
        with pytest.raises(redis.ConnectionError) as caught:
            pool.get_connection()
        assert isinstance(caught.value, poolkit.ConnectFailed)
        assert not isinstance(caught.value, redis.exceptions.MaxConnectionsError)
        assert isinstance(caught.value.__cause__, redis.ConnectionError)


def test_connect_timeout_is_another_error_than_exhaustion(
    redis_server: RedisServer, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(redis_server.host, redis_server.port)
    proxy.mode = "silent"
    with PoolkitConnectionPool(
        host=proxy.host, port=proxy.port, socket_connect_timeout=0.1, socket_timeout=0.1,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    ) as pool:  # fmt: skip
        with pytest.raises(redis.TimeoutError) as caught:
            pool.get_connection()
        assert isinstance(caught.value, poolkit.ConnectTimeout)
        assert not isinstance(caught.value, poolkit.AcquireTimeout)
        assert pool.poolkit.stats().size == 0


def test_wrong_password_is_redis_pys_own_error(redis_server: RedisServer) -> None:
    with PoolkitConnectionPool.from_url(redis_server.url, username="nobody", password="wrong") as pool:
        with pytest.raises(redis.AuthenticationError):
            pool.get_connection()
        assert pool.poolkit.stats().size == 0


def test_19_r2_threads_get_equal_shares(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=4, timeout=20)
    counts = [0] * 20
    stop = time.monotonic() + 1.5

    def work(index: int) -> None:
        while time.monotonic() < stop:
            connection = pool.get_connection()
            time.sleep(0.005)
            pool.release(connection)
            counts[index] += 1

    assert in_threads(20, work) == []
    assert max(counts) <= 1.5 * min(counts) + 2, counts


@pytest.mark.anyio
async def test_19_r3_tasks_get_equal_shares(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=5, timeout=20)
    counts = [0] * 50
    stop = time.monotonic() + 1.5

    async def work(index: int) -> None:
        while time.monotonic() < stop:
            connection = await pool.get_connection()
            await asyncio.sleep(0.01)
            await pool.release(connection)
            counts[index] += 1

    await asyncio.gather(*(work(index) for index in range(50)))
    assert max(counts) <= min(counts) + 2, counts


def test_20_waiters_are_served_in_order(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1, timeout=20)
    held = pool.get_connection()
    served: list[int] = []

    def wait(index: int) -> None:
        connection = pool.get_connection()
        served.append(index)
        pool.release(connection)

    threads = []
    for index in range(5):
        threads.append(threading.Thread(target=wait, args=(index,)))
        threads[-1].start()
        until(lambda index=index: pool.poolkit.stats().waiting == index + 1)  # type: ignore[misc]
    pool.release(held)
    for thread in threads:
        thread.join()
    assert served == [0, 1, 2, 3, 4]


def test_21_the_server_never_sees_more_than_max_connections(
    redis_server: RedisServer, make_pool: Callable[..., Any]
) -> None:
    name = unique()
    pool = make_pool(max_connections=5, timeout=20, client_name=name)
    client = redis.Redis(connection_pool=pool)
    most: list[int] = []

    def work(index: int) -> None:
        for number in range(20):
            if index == 0:
                most.append(len(ports(redis_server, name)))
            elif number % 5 == 4:
                connection = pool.get_connection()
                connection.disconnect()
                pool.release(connection)
            else:
                client.ping()

    assert in_threads(20, work) == []
    assert 0 < max(most) <= 5


def test_22_max_waiting(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1, timeout=20, max_waiting=1)
    held = pool.get_connection()
    waiter = threading.Thread(target=lambda: pool.release(pool.get_connection()))
    waiter.start()
    until(lambda: pool.poolkit.stats().waiting == 1)
    with pytest.raises(poolkit.PoolBusy) as caught:
        pool.get_connection()
    assert isinstance(caught.value, redis.exceptions.MaxConnectionsError)
    pool.release(held)
    waiter.join()


def test_30_connects_run_side_by_side(redis_server: RedisServer, fault_proxy: Callable[..., FaultProxy]) -> None:
    proxy = fault_proxy(redis_server.host, redis_server.port)
    with PoolkitConnectionPool(host=proxy.host, port=proxy.port, max_connections=10, protocol=2) as pool:
        held: list[Any] = []
        proxy.mode = "silent"  # no connect gets a reply before all nine have started
        threads = [threading.Thread(target=lambda: held.append(pool.get_connection())) for _ in range(9)]
        for thread in threads:
            thread.start()
        until(lambda: proxy.open == 9)
        proxy.mode = "pass"
        for thread in threads:
            thread.join()
        assert len(held) == 9
        for connection in held:
            pool.release(connection)


def test_errors_that_are_timeouts_too_can_be_shown_and_pickled() -> None:
    """redis-py's repr() needs what its __init__ sets, which a base class of TimeoutError does not call."""
    from poolkit_adapters.redis import _errors

    for kind in (_errors.AcquireTimeout, _errors.ServerUnavailable, _errors.ConnectTimeout):
        error = kind("no connection")
        assert kind.__name__ in repr(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error) == "no connection"
