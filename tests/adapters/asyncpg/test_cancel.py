"""A cancelled caller or a lost connection costs no slot, and the server never has more than max_size sessions."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from typing import Any

import asyncpg
import pytest

from poolkit.testing.servers import PostgresServer
from tests.adapters.psycopg.support import Admin
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until_async


async def all_serve(pool: Any, size: int) -> None:
    """Check that so many connections are available at once, and that no other is held."""
    leases = [await pool.acquire(timeout=60) for _ in range(size)]
    for lease in leases:
        assert await lease.fetchval("select 1") == 1
        await pool.release(lease)
    assert pool.poolkit.stats().in_use == 0
    pool.poolkit.check_books()


async def test_a_storm_of_cancels(make: Any, admin: Admin, application: str) -> None:
    dice = random.Random(7)
    most = 0

    async def work() -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("set local work_mem = '99kB'")
            await connection.fetchval("select pg_sleep(0.01)")

    async with make(max_size=3) as pool:
        for _ in range(15):
            tasks = [asyncio.ensure_future(work()) for _ in range(12)]
            for task in tasks:
                await asyncio.sleep(dice.random() * 0.004)
                task.cancel()
            most = max(most, len(admin.sessions(application)))
            await asyncio.gather(*tasks, return_exceptions=True)
        await all_serve(pool, 3)
        await until_async(lambda: len(admin.sessions(application)) <= 3, "surplus sessions end")
    assert most <= 4  # a session that is about to end may be visible for a moment


async def test_a_cancelled_statement_is_stopped_and_its_connection_is_used_again(make: Any) -> None:
    async with make(max_size=1) as pool:

        async def work() -> None:
            async with pool.acquire() as connection:
                pids.append(connection.get_server_pid())
                await connection.fetchval("select pg_sleep(600)")

        pids: list[int] = []
        task = asyncio.ensure_future(work())
        await until_async(lambda: pids, "the statement begins")
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with pool.acquire(timeout=60) as connection:
            assert connection.get_server_pid() == pids[0]


async def test_a_cancel_while_it_waits_while_it_connects_and_in_setup(make: Any) -> None:
    stages: list[str] = []

    async def setup(connection: Any) -> None:
        stages.append("setup")
        if len(stages) == 1:
            await connection.fetchval("select pg_sleep(600)")

    async with make(max_size=1, setup=setup) as pool:
        task = asyncio.ensure_future(pool.acquire().__aenter__())
        await until_async(lambda: stages, "setup begins")
        waiting = asyncio.ensure_future(pool.acquire().__aenter__())
        await until_async(lambda: pool.poolkit.stats().waiting, "a caller waits")
        waiting.cancel()
        task.cancel()
        assert all(isinstance(one, asyncio.CancelledError)
                   for one in await asyncio.gather(task, waiting, return_exceptions=True))  # fmt: skip
        connecting = asyncio.ensure_future(pool.acquire().__aenter__())
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await all_serve(pool, 1)


async def test_one_deadline_covers_setup(make: Any) -> None:
    async def setup(connection: Any) -> None:
        await connection.fetchval("select pg_sleep(600)")

    async with make(max_size=1, setup=setup) as pool:
        with pytest.raises(asyncio.TimeoutError):
            await pool.acquire(timeout=0.3)
        await until_async(lambda: not pool.poolkit.stats().in_use, "the slot is free")


async def test_a_session_that_the_server_ends_costs_no_slot(make: Any, admin: Admin, application: str) -> None:
    async with make(max_size=2) as pool:
        first, second = await pool.acquire(), await pool.acquire()
        await pool.release(second)
        admin.kill(*admin.sessions(application))
        await until_async(lambda: pool.get_size() == 0, "both are seen to be gone")
        with pytest.raises(asyncpg.InterfaceError):
            await first.fetchval("select 1")
        await pool.release(first)
        await all_serve(pool, 2)


async def test_a_connection_that_its_user_closes_costs_no_slot(make: Any) -> None:
    async with make(max_size=1) as pool:
        for end in ("close", "terminate"):
            async with pool.acquire(timeout=60) as connection:
                result = getattr(connection, end)()
                if result is not None:
                    await result
        await all_serve(pool, 1)


async def test_a_dropped_connection_is_detected(make: Any) -> None:
    async with make(max_size=1) as pool:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            connection: Any = await pool.acquire()
            await connection.fetchval("select 1")
            statement: Any = await connection.prepare("select 1")
            del connection
            assert await statement.fetchval() == 1  # a statement keeps the lease
            assert pool.poolkit.stats().in_use == 1
            del statement
            gc.collect()
            await until_async(lambda: pool.poolkit.stats().in_use == 0, "the slot is free")
        assert any("dropped without close()" in str(one.message) for one in told)
        await all_serve(pool, 1)


async def test_a_server_that_falls_silent_in_a_reset_holds_no_release(postgres: PostgresServer, make: Any) -> None:
    proxy = FaultProxy("127.0.0.1", postgres.port).start()
    try:
        dsn = postgres.url.replace(f":{postgres.port}", f":{proxy.port}")
        async with make(dsn, max_size=1, check_timeout=0.3, connect_timeout=30) as pool:
            connection = await pool.acquire()
            await connection.execute("set work_mem = '99kB'")
            proxy.mode = "hold"
            with pytest.raises(asyncio.TimeoutError):
                await pool.release(connection)
            proxy.mode = "pass"
            await all_serve(pool, 1)
            connection = await pool.acquire(timeout=60)
            await connection.execute("set work_mem = '99kB'")
            pool.poolkit.reconfigure(check_timeout=60)
            proxy.mode = "hold"
            with pytest.raises(asyncio.TimeoutError):
                await pool.release(connection, timeout=0.1)
            proxy.mode = "pass"
            await all_serve(pool, 1)
    finally:
        proxy.stop()


async def test_a_restart_of_the_server_is_noticed_without_an_error(postgres: PostgresServer, make: Any) -> None:
    async with make(max_size=2, acquire_timeout=60) as pool:
        await all_serve(pool, 2)
        postgres.restart()
        await until_async(lambda: pool.get_size() == 0, "they are seen to be gone")
        await all_serve(pool, 2)
