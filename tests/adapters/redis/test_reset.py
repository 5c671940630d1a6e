"""``reset()`` and ``disconnect()`` of a pool in use: callers keep waiting, and no connection stays open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from poolkit.testing.servers import RedisServer
from poolkit_adapters.redis import (
    AcquireTimeout,
    AsyncPoolkitConnectionPool,
    PoolClosed,
    PoolkitConnectionPool,
)
from tests.support.waiting import until, until_async

from .support import in_threads, ports, unique


def in_a_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run ``work()`` in a thread. Its result or its error is appended to the list."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_a_thread_that_waits_at_reset_gets_a_new_connection(
    make_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    name = unique()
    pool = make_pool(max_connections=1, timeout=30, client_name=name)
    held = pool.get_connection()
    thread, results = in_a_thread(lambda: redis.Redis(connection_pool=pool).echo("served"))
    until(lambda: pool.poolkit.stats().waiting == 1)
    pool.reset()
    thread.join(10)
    assert results == [b"served"], "it waits for a connection that is not the pool's any more"
    held.send_command("ECHO", "still mine")
    assert held.read_response() == b"still mine"
    assert len(ports(redis_server, name)) == 2
    pool.release(held)
    until(lambda: len(ports(redis_server, name)) == 1)
    assert pool.poolkit.stats().size == 1
    pool.poolkit.check_books()


@pytest.mark.anyio
async def test_a_task_that_waits_at_reset_gets_a_new_connection(
    make_async_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    name = unique()
    pool = make_async_pool(max_connections=1, timeout=30, client_name=name)
    held = await pool.get_connection()
    waiter = asyncio.ensure_future(redis.asyncio.Redis(connection_pool=pool).echo("served"))
    await until_async(lambda: pool.poolkit.stats().waiting == 1)
    pool.reset()
    assert await asyncio.wait_for(waiter, 10) == b"served"
    await held.send_command("ECHO", "still mine")
    assert await held.read_response() == b"still mine"
    assert len(ports(redis_server, name)) == 2
    await pool.release(held)
    await until_async(lambda: len(ports(redis_server, name)) == 1)
    assert pool.poolkit.stats().size == 1
    pool.poolkit.check_books()


def test_many_resets_leave_a_waiting_thread_its_one_deadline(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1, timeout=0.3)
    pool.poolkit.suspend()
    thread, results = in_a_thread(pool.get_connection)
    for _ in range(500):
        pool.reset()
        thread.join(0.01)
        if not thread.is_alive():
            break
    pool.poolkit.resume()
    thread.join(10)
    assert [type(result) for result in results] == [AcquireTimeout]


@pytest.mark.anyio
async def test_many_resets_leave_a_waiting_task_its_one_deadline(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=1, timeout=0.3)
    pool.poolkit.suspend()
    waiter = asyncio.ensure_future(pool.get_connection())
    for _ in range(500):
        await asyncio.sleep(0.01)
        pool.reset()
        if waiter.done():
            break
    pool.poolkit.resume()
    with pytest.raises(AcquireTimeout):
        await waiter


def test_threads_that_work_notice_no_reset(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=3, timeout=30)
    client = redis.Redis(connection_pool=pool)
    done = threading.Event()

    def work(index: int) -> None:
        for number in range(100):
            text = f"{index}.{number}".encode()
            assert client.echo(text) == text

    def reset() -> None:
        while not done.wait(0.005):
            pool.reset()

    thread, results = in_a_thread(reset)
    errors = in_threads(8, work)
    done.set()
    thread.join(10)
    assert errors == []
    assert results == [None]
    until(lambda: pool.poolkit.stats().closing == 0)
    assert pool.poolkit.stats().size <= 3


def test_a_connection_that_is_being_opened_at_reset_is_not_used(
    make_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    name = unique()
    begun, go_on = threading.Event(), threading.Event()

    def connected(connection: Any) -> None:
        connection.on_connect()
        if not begun.is_set():
            begun.set()
            go_on.wait(10)

    pool = make_pool(max_connections=1, timeout=30, client_name=name, redis_connect_func=connected)
    thread, results = in_a_thread(pool.get_connection)
    assert begun.wait(10)
    old = ports(redis_server, name)
    pool.reset()
    go_on.set()
    thread.join(10)
    (connection,) = results
    assert isinstance(connection, redis.Connection)
    until(lambda: not old & ports(redis_server, name))
    pool.release(connection)


@pytest.mark.parametrize("moment", ["before it is taken out", "after it was taken out"])
def test_a_connection_released_while_reset_runs_is_closed(
    make_pool: Callable[..., Any], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The two orders in which a release() in another thread and reset() can overlap."""
    name = unique()
    pool = make_pool(max_connections=1, client_name=name)
    engine = pool.poolkit
    held = pool.get_connection()
    watch = pool._watches[id(held)]
    detach = engine.detach

    def detach_meanwhile(connection: Any) -> None:
        if moment == "before it is taken out":
            pool._watches[id(held)] = watch  # the other thread has found it before
            pool.release(held)
            pool._watches.pop(id(held), None)
            detach(connection)
        else:
            detach(connection)
            pool.release(held)

    monkeypatch.setattr(engine, "detach", detach_meanwhile)
    pool.reset()
    until(lambda: not ports(redis_server, name))
    assert engine.stats().size == 0
    assert redis.Redis(connection_pool=pool).ping() is True
    engine.check_books()


@pytest.mark.anyio
async def test_releasing_twice_after_reset_is_an_error_as_before(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=1)
    held = await pool.get_connection()
    pool.reset()
    await pool.release(held)
    assert not held.is_connected
    with pytest.raises(KeyError):
        await pool.release(held)


def test_reset_keeps_the_engine_and_reopens_a_closed_one(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=2)
    client = redis.Redis(connection_pool=pool)
    engine = pool.poolkit
    pool.max_connections, pool.timeout = 7, 3.0
    pool.reset()
    assert pool.poolkit is engine
    assert (pool.max_connections, pool.timeout) == (7, 3.0)
    held = pool.get_connection()
    engine.close()
    with pytest.raises(PoolClosed):
        client.ping()
    pool.reset()
    assert client.ping() is True
    pool.release(held)
    assert held._sock is None


@pytest.mark.anyio
async def test_reset_of_a_closed_engine_reopens_it_async(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=2)
    client = redis.asyncio.Redis(connection_pool=pool)
    held = await pool.get_connection()
    await pool.poolkit.close()
    with pytest.raises(PoolClosed):
        await client.ping()
    pool.reset()
    assert await client.ping() is True
    await pool.release(held)
    assert not held.is_connected


def test_a_thread_that_waits_at_disconnect_goes_on(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1, timeout=30)
    held = pool.get_connection()
    thread, results = in_a_thread(lambda: redis.Redis(connection_pool=pool).echo("served"))
    until(lambda: pool.poolkit.stats().waiting == 1)
    pool.disconnect()
    pool.release(held)
    thread.join(10)
    assert results == [b"served"]


@pytest.mark.anyio
async def test_a_task_that_waits_at_disconnect_goes_on(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=1, timeout=30)
    held = await pool.get_connection()
    waiter = asyncio.ensure_future(redis.asyncio.Redis(connection_pool=pool).echo("served"))
    await until_async(lambda: pool.poolkit.stats().waiting == 1)
    await pool.disconnect()
    await pool.release(held)
    assert await asyncio.wait_for(waiter, 10) == b"served"


# -- a pool that was disconnected opens nothing until its next use ----------------------------------------------------


def test_a_closed_pool_with_a_minimum_opens_nothing_until_it_is_used_again(redis_server: RedisServer) -> None:
    """Like redis-py's own pool: after ``close()`` no socket is open, and the next command connects."""
    name = unique()
    pool = PoolkitConnectionPool.from_url(redis_server.url, min_size=2, client_name=name)
    client = redis.Redis(connection_pool=pool)
    for end in (pool.disconnect, pool.close):
        client.ping()
        until(lambda: len(redis_server.client_list(name)) == 2, "min_size is kept")
        end()
        pool.poolkit.run_due()
        until(lambda: pool.poolkit.stats().size == 0, "a connect on its way is closed too")
        until(lambda: not redis_server.client_list(name), "all are closed")


@pytest.mark.anyio
async def test_a_closed_pool_of_tasks_opens_nothing_until_it_is_used_again(redis_server: RedisServer) -> None:
    name = unique()
    pool = AsyncPoolkitConnectionPool.from_url(redis_server.url, min_size=2, client_name=name)
    client: Any = redis.asyncio.Redis(connection_pool=pool)
    for end in (pool.disconnect, pool.aclose):
        await client.ping()
        await until_async(lambda: len(redis_server.client_list(name)) == 2, "min_size is kept")
        await end()
        pool.poolkit.run_due()
        await until_async(lambda: pool.poolkit.stats().size == 0, "a connect on its way is closed too")
        await until_async(lambda: not redis_server.client_list(name), "all are closed")
