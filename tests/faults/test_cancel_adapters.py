"""Cancel each asynchronous operation of each adapter, on its real driver and server, at each of its suspensions.

After each: the cancellation was delivered, the next ten replies are the right ones, and the capacity is as before.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from tests.faults.cancelling import (
    Swallowed,
    by_scope,
    by_timeout,
    by_wait_for,
    natively,
    natively_twice,
)

SIZE = 2
MOST = 60
PROMPT = 10.0

Act = Callable[[], Awaitable[Any]]
Ask = Callable[[int], Awaitable[Any]]
Way = Callable[[int, Act], Awaitable[bool]]


WAYS: list[Way] = [natively, natively_twice, by_scope]
# the full set where no connect makes it slow
WARM = [*WAYS, by_wait_for, *([by_timeout] if sys.version_info >= (3, 11) else [])]


async def everywhere(
    act: Act,
    ask: Ask,
    engine: Any,
    *,
    afresh: Callable[[], object] | None = None,
    ways: Iterable[Way] = WAYS,
    excused: Collection[str] = (),
) -> int:
    """Cancel ``act()`` at its 1st, 2nd, ... point in each of the ways; ``ask(k)`` must answer k.

    The number of points. ``excused``: places at which the driver's own pool was seen to swallow a cancellation.
    """
    numbers = itertools.count(1)
    deepest = 0
    for way in ways:
        for point in range(1, MOST):
            if afresh is not None:
                afresh()
            try:
                struck = await way(point, act)
            except Swallowed as swallowed:
                if not swallowed.inside <= set(excused):
                    raise
                struck = True
            try:
                await _all_is_well(ask, engine, numbers)
            except BaseException as error:
                raise AssertionError(f"{way.__name__}: cancelled at suspension {point}: {error!r}") from error
            if not struck:
                break
            deepest = max(deepest, point)
        else:
            raise AssertionError("does not come to its end")
    return deepest


async def _together(ask: Ask, wanted: list[int]) -> list[int]:
    answers = [0] * len(wanted)

    async def one(place: int) -> None:
        answers[place] = await ask(wanted[place])

    with anyio.fail_after(PROMPT):
        async with anyio.create_task_group() as group:
            for place in range(len(wanted)):
                group.start_soon(one, place)
    return answers


async def _all_is_well(ask: Ask, engine: Any, numbers: Any) -> None:
    for _ in range(10 // SIZE):  # as many at once as the pool has slots
        wanted = [next(numbers) for _ in range(SIZE)]
        answers = await _together(ask, wanted)
        assert answers == wanted, f"asked for {wanted}, got {answers}"
    for _ in range(2000):
        stats = engine.stats()
        if not (stats.in_use or stats.waiting or stats.connecting or stats.closing or stats.resetting):
            break
        await anyio.sleep(0.001)
    else:
        raise AssertionError(f"never quiet: {stats}")
    engine.check_books()
    assert stats.size <= SIZE


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run it on asyncio, without the warnings of drivers that leave the error of a cancelled connect unread."""

    async def quiet() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        await main()

    asyncio.run(quiet())


# -- psycopg -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["idle", "connects"])
@pytest.mark.parametrize("scene", ["connection", "getconn and putconn", "transaction left open"])
def test_psycopg(postgres: PostgresServer, scene: str, warm: bool) -> None:
    from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool

    async def main() -> None:
        async with AsyncPoolkitConnectionPool(postgres.url, min_size=0, max_size=SIZE, open=False) as pool:

            async def ask(number: int) -> int:
                async with pool.connection() as connection:
                    cursor = await connection.execute("select %s::int", (number,))
                    row = await cursor.fetchone()
                    assert row is not None
                    return int(row[0])

            async def block() -> None:
                async with pool.connection() as connection:
                    await connection.execute("select 1")

            async def by_hand() -> None:
                connection = await pool.getconn()
                try:
                    await connection.execute("select 2")
                    if scene != "transaction left open":
                        await connection.rollback()
                finally:
                    await pool.putconn(connection)

            def afresh() -> None:
                if not warm:
                    pool.poolkit.clear()

            act = block if scene == "connection" else by_hand
            assert await everywhere(act, ask, pool.poolkit, afresh=afresh, ways=WARM if warm else WAYS) >= 3

    run(main)


# -- SQLAlchemy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["idle", "connects"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_sqlalchemy(postgres: PostgresServer, driver: str, warm: bool) -> None:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    from poolkit_adapters.sqlalchemy import AsyncPoolkitPool
    from tests.adapters.sqlalchemy.conftest import VERSION

    if VERSION < (2, 0, 58):
        pytest.skip("before 2.0.58 SQLAlchemy itself loses connections whose task is cancelled")

    async def main() -> None:
        database = create_async_engine(
            postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=SIZE, max_overflow=0
        )
        engine: Any = database.pool.poolkit  # type: ignore[attr-defined]

        async def ask(number: int) -> int:
            async with database.connect() as connection:
                return int(await connection.scalar(text(f"select {number}")))

        async def act() -> None:
            connection = await database.connect()
            try:
                await connection.execute(text("select -1"))
            finally:
                await connection.close()

        def afresh() -> None:
            if not warm:
                engine.clear()

        try:
            assert await everywhere(act, ask, engine, afresh=afresh, ways=WARM if warm else WAYS) >= 3
        finally:
            await database.dispose()

    run(main)


# -- redis-py ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["idle", "connects"])
@pytest.mark.parametrize("scene", ["get", "pipeline", "blocking"])
def test_redis(redis_server: RedisServer, scene: str, warm: bool) -> None:
    import redis.asyncio

    from poolkit_adapters.redis import AsyncPoolkitConnectionPool

    async def main() -> None:
        pool: Any = AsyncPoolkitConnectionPool(
            host=redis_server.host, port=redis_server.port, max_connections=SIZE, timeout=20
        )
        client: Any = redis.asyncio.Redis(connection_pool=pool)

        async def ask(number: int) -> int:
            return int(await client.echo(f"{number}"))

        async def get() -> None:
            await client.get("planted")

        async def pipeline() -> None:
            async with client.pipeline() as pipe:
                await pipe.get("planted").get("planted").execute()

        @asynccontextmanager
        async def planted() -> AsyncIterator[None]:
            await client.set("planted", "not a number: a reply to another question")
            try:
                yield
            finally:
                await client.aclose()
                await pool.aclose()

        def afresh() -> None:
            if not warm:
                pool.poolkit.clear()

        async with planted():
            if scene == "blocking":
                await _while_exhausted(pool, ask)
                return
            act = get if scene == "get" else pipeline
            assert await everywhere(act, ask, pool.poolkit, afresh=afresh, ways=WARM if warm else WAYS) >= 1

    run(main)


async def _while_exhausted(pool: Any, ask: Ask) -> None:
    """Cancelled while it waits for a connection, or just when it got one."""
    numbers = itertools.count(1)
    for delay in range(12):
        held = [await pool.get_connection() for _ in range(SIZE)]

        async def act() -> None:
            await pool.release(await pool.get_connection())

        task = asyncio.get_running_loop().create_task(act())
        for _ in range(2):
            await asyncio.sleep(0)
        for connection in held:
            await pool.release(connection)
        for _ in range(delay):
            await asyncio.sleep(0)
        accepted = task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert accepted
        else:
            assert not accepted, "cancel() said yes and the task went on"
        await _all_is_well(ask, pool.poolkit, numbers)


# -- httpx -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["idle", "connects"])
@pytest.mark.parametrize("scene", ["get", "stream"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_httpx(http_server: HTTPServer, scene: str, warm: bool, backend: str) -> None:
    import httpx

    from poolkit_adapters.httpx import AsyncPoolkitTransport

    async def main() -> None:
        excused: set[str] = set()
        if not warm and sys.version_info < (3, 11) and backend == "asyncio":
            excused = await _swallowed_by_httpx(f"{http_server.url}/echo?key=planted")
        transport = AsyncPoolkitTransport(limits=httpx.Limits(max_connections=SIZE))
        async with httpx.AsyncClient(transport=transport, timeout=10) as client:

            async def ask(number: int) -> int:
                answer = await client.get(f"{http_server.url}/echo?key={number}")
                return int(answer.json()["key"])

            async def get() -> None:
                await client.get(f"{http_server.url}/echo?key=planted")

            async def stream() -> None:
                async with client.stream("GET", f"{http_server.url}/echo?key=planted") as answer:
                    async for _ in answer.aiter_bytes():
                        pass

            def afresh() -> None:
                if not warm:
                    transport.poolkit.clear()

            act = get if scene == "get" else stream
            ways = [by_scope] if backend == "trio" else WARM if warm else WAYS
            engine = transport.poolkit
            assert await everywhere(act, ask, engine, afresh=afresh, ways=ways, excused=excused) >= 1

    if backend == "trio":
        anyio.run(main, backend="trio")
    else:
        run(main)


async def _swallowed_by_httpx(url: str) -> set[str]:
    """Return the places in which a cancellation of a request through httpx's own transport is lost.

    On Python 3.10 that is the end of the task group in anyio's connect_tcp. What is lost there is not ours to keep.
    """
    import httpx

    places: set[str] = set()
    for way in (natively, natively_twice):
        for point in range(1, MOST):
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(), timeout=10) as client:
                try:
                    if not await way(point, partial(client.get, url)):
                        break
                except Swallowed as swallowed:
                    places |= swallowed.inside
    return places
