"""Connects in threads and tasks of the pool: the caller's context, one deadline, errors, the limit under cancels."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg_pool

import poolkit
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until_async

from .support import Admin, Twin, do

PLACE = contextvars.ContextVar("PLACE", default="nowhere")
SOON = 0.3


async def take(twin: Twin, pool: Any, timeout: float | None = None) -> Any:
    if twin.asynchronous:
        return await pool.getconn(timeout)
    return await asyncio.to_thread(pool.getconn, timeout)


async def errors_of(twin: Twin, pool: Any, callers: int, timeout: float | None = None) -> list[Any]:
    found = await asyncio.gather(*(take(twin, pool, timeout) for _ in range(callers)), return_exceptions=True)
    assert all(isinstance(error, BaseException) for error in found)
    return found


async def test_a_connect_runs_in_the_context_of_its_caller(twin: Twin) -> None:
    seen: list[tuple[str, Any]] = []

    def look() -> None:
        seen.append((PLACE.get(), asyncio.current_task() if twin.asynchronous else threading.current_thread()))

    async def coroutine(connection: Any) -> None:
        look()

    PLACE.set("here")
    pool = twin.pool(min_size=0, max_size=1, configure=coroutine if twin.asynchronous else lambda connection: look())
    await do(pool.open())
    await do(pool.putconn(await do(pool.getconn())))
    await do(pool.close())
    [(place, where)] = seen
    assert place == "here"
    assert where not in (threading.current_thread(), asyncio.current_task())


async def test_the_caller_gets_its_error_at_its_deadline_and_the_connect_serves_the_next(
    twin: Twin, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(twin.postgres.host, twin.postgres.port)
    proxy.mode = "hold"
    url = twin.postgres.url.replace(f":{twin.postgres.port}", f":{proxy.port}")
    pool = twin.pool(url, min_size=0, max_size=1, timeout=30)
    await do(pool.open())
    for _ in range(2):
        [error] = await errors_of(twin, pool, 1, SOON)
        assert isinstance(error, psycopg_pool.PoolTimeout)
        assert isinstance(error, poolkit.AcquireTimeout)
    assert pool.poolkit.stats().connecting == 1
    proxy.mode = "pass"
    await do(pool.putconn(await take(twin, pool)))
    assert proxy.accepted == 1
    await do(pool.close())


async def test_each_caller_has_an_error_of_its_own(twin: Twin) -> None:
    pool = twin.pool(kwargs={"dbname": "no such database"}, min_size=0, max_size=4)
    await do(pool.open())
    errors = await errors_of(twin, pool, 5)
    assert len({id(error) for error in errors}) == 5
    for error in errors:
        assert isinstance(error, psycopg.OperationalError)
        assert isinstance(error, poolkit.ConnectFailed)
        assert isinstance(error.__cause__, psycopg.OperationalError)
        assert "no such database" in str(error)
    await do(pool.close())


async def test_never_more_sessions_than_the_limit_under_cancels(
    twin: Twin, admin: Admin, application: str, named: dict[str, Any]
) -> None:
    pool = twin.pool(kwargs=named, min_size=0, max_size=3)
    await do(pool.open())

    async def at_most_three() -> None:  # the server needs a moment to end a session that its client has closed
        await until_async(lambda: len(admin.sessions(application)) <= 3, "no session is one too many")

    for turn in range(24):
        tasks = [asyncio.ensure_future(take(twin, pool, 0.005 * (turn % 4))) for _ in range(5)]
        await asyncio.sleep(0.002 * (turn % 8))
        await at_most_three()
        for task in tasks if twin.asynchronous else ():
            task.cancel()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(found, BaseException):
                await do(pool.putconn(found))
        if turn % 3 == 0:
            pool.poolkit.clear()
        await at_most_three()
    await until_async(lambda: pool.poolkit.stats().connecting == 0, "all have ended")
    await do(pool.close())
