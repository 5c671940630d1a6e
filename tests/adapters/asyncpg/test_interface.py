"""Each argument and each method of asyncpg's pool, on a real server."""

from __future__ import annotations

import asyncio
import gc
import io
import multiprocessing
import warnings
from typing import Any

import asyncpg
import pytest

import poolkit
from poolkit import ConfigError, PoolConfig
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.asyncpg import PoolkitPool, WrongLoop, create_pool
from tests.adapters.psycopg.support import Admin
from tests.support.waiting import until_async


async def test_the_one_line_that_changes(postgres: PostgresServer) -> None:
    async with create_pool(postgres.url, min_size=1) as pool:
        assert isinstance(pool, asyncpg.Pool)
        assert await pool.fetchval("select 1") == 1
        assert (pool.get_min_size(), pool.get_max_size(), pool.get_size()) == (1, 10, 1)
        async with pool.acquire() as connection:
            assert isinstance(connection, asyncpg.pool.PoolConnectionProxy)
            assert isinstance(connection, asyncpg.Connection)
            assert pool.get_idle_size() == 0
        assert pool.get_idle_size() == 1
    assert pool.is_closing()
    pool = await create_pool(postgres.url, min_size=0, max_size=1)
    assert await pool.fetch("select 2 as two") == [(2,)]
    await pool.close()
    await pool.close()


async def test_every_shorthand(make: Any) -> None:
    async with make() as pool:
        await pool.execute("drop table if exists asyncpg_copy")
        assert await pool.execute("create table asyncpg_copy (a int, b text)") == "CREATE TABLE"
        await pool.executemany("insert into asyncpg_copy values ($1, $2)", [(1, "x"), (2, "y")])
        assert (await pool.fetchrow("select * from asyncpg_copy where a = $1", 2))["b"] == "y"
        assert len(await pool.fetchmany("select $1::int as n", [(1,), (2,)])) == 2
        await pool.copy_records_to_table("asyncpg_copy", records=[(3, "z")])
        out = io.BytesIO()
        await pool.copy_from_query("select a from asyncpg_copy order by a", output=out, format="csv")
        assert out.getvalue() == b"1\n2\n3\n"
        again = io.BytesIO()
        await pool.copy_from_table("asyncpg_copy", output=again, columns=["b"])
        await pool.copy_to_table("asyncpg_copy", source=io.BytesIO(b"4\tw\n"))
        assert await pool.fetchval("select count(*) from asyncpg_copy") == 4
        await pool.execute("drop table asyncpg_copy")


async def test_a_released_connection_raises_and_a_second_release_does_nothing(make: Any) -> None:
    async with make() as pool:
        connection = await pool.acquire()
        statement = await connection.prepare("select 1")
        await pool.release(connection)
        await pool.release(connection)
        for use in (
            lambda: connection.fetch("select 1"),
            lambda: connection.is_closed(),
            lambda: connection.cursor("x"),
        ):
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                use()
        with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
            await statement.fetch()
        assert "[released]" in repr(connection)


async def test_callbacks_and_classes(make: Any) -> None:
    calls: list[str] = []

    class Mine(asyncpg.Connection):  # type: ignore[misc]
        async def both(self) -> Any:
            return await self.fetchrow("select 1 as a, 2 as b")

    class Row(asyncpg.Record):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:
            return self[name]

    def noted(word: str) -> Any:
        async def call(connection: Any) -> None:
            calls.append(word)

        return call

    pool = make(
        connection_class=Mine, record_class=Row, init=noted("init"), setup=noted("setup"), reset=noted("reset"),
    )  # fmt: skip
    async with pool:
        for _ in range(2):
            async with pool.acquire() as connection:
                assert (await connection.both()).b == 2
    assert calls == ["init", "setup", "reset", "setup", "reset"]


async def test_a_failing_callback_costs_the_connection_and_no_slot(make: Any, admin: Admin, application: str) -> None:
    broken = {"init": True, "setup": True, "reset": True}

    def failing(name: str) -> Any:
        async def call(connection: Any) -> None:
            await connection.fetchval("select 1")
            if broken[name]:
                raise LookupError(name)

        return call

    async with make(max_size=1, **{name: failing(name) for name in broken}) as pool:
        for name in broken:
            with pytest.raises(LookupError, match=name) as caught:
                async with pool.acquire(timeout=30):
                    pass
            assert name != "init" or isinstance(caught.value, poolkit.ConnectFailed)
            broken[name] = False
        async with pool.acquire(timeout=30) as connection:
            assert await connection.fetchval("select 1") == 1
        await until_async(lambda: len(admin.sessions(application)) == 1, "one session is left")


async def test_max_queries_and_expiry_replace_a_connection(make: Any) -> None:
    async def pid(pool: Any) -> int:
        async with pool.acquire(timeout=30) as connection:
            await connection.fetchval("select 1")
            return int(connection.get_server_pid())

    async with make(max_size=1, max_queries=2) as pool:
        assert await pid(pool) == await pid(pool)
        assert await pid(pool) != await pid(pool) or pool.poolkit.stats().connects >= 2
        assert pool.poolkit.stats().connects >= 2
    async with make(max_size=1) as pool:
        first = await pid(pool)
        await pool.expire_connections()
        assert await pid(pool) != first


async def test_set_connect_args(make: Any, postgres: PostgresServer) -> None:
    async with make(max_size=1) as pool:
        assert await pool.fetchval("show application_name") != "other"
        pool.set_connect_args(postgres.url, server_settings={"application_name": "other"})
        await pool.expire_connections()
        assert await pool.fetchval("show application_name") == "other"


async def test_terminate_ends_leases_and_waiting_callers(make: Any, admin: Admin, application: str) -> None:
    pool = await make(max_size=1)
    connection = await pool.acquire()
    waiting = asyncio.ensure_future(pool.acquire().__aenter__())
    await until_async(lambda: pool.poolkit.stats().waiting, "a caller waits")
    pool.terminate()
    with pytest.raises(asyncpg.InterfaceError, match="closed"):
        await waiting
    with pytest.raises(asyncpg.InterfaceError, match="released"):
        connection.fetchval("select 1")
    await pool.release(connection)
    await until_async(lambda: not admin.sessions(application), "no session is left")


async def test_close_waits_for_leases_and_a_cancelled_close_terminates(make: Any) -> None:
    pool = await make()
    connection = await pool.acquire()
    closing = asyncio.ensure_future(pool.close())
    await until_async(pool.is_closing, "the pool closes")
    with pytest.raises(asyncpg.InterfaceError, match="pool is closing"):
        await pool.acquire()
    assert await connection.fetchval("select 1") == 1
    await pool.release(connection)
    await closing
    pool = await make()
    connection = await pool.acquire()
    closing = asyncio.ensure_future(pool.close())
    await until_async(pool.is_closing, "the pool closes")
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert pool.poolkit.stats().in_use == 0


async def test_close_does_not_wait_for_a_connect(make: Any) -> None:
    begun = asyncio.Event()

    async def never(*_: Any, **__: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    pool = await make(connect=never, connect_timeout=None)
    waiting = asyncio.ensure_future(pool.acquire().__aenter__())
    await begun.wait()
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError):
        await waiting


async def test_use_before_it_is_awaited(make: Any) -> None:
    pool = make()
    with pytest.raises(poolkit.UsageError, match="pool is not initialized"):
        await pool.acquire()
    await pool
    await pool.close()
    with pytest.raises(poolkit.PoolClosed, match="pool is closed"):
        await pool.acquire()


async def test_a_notification_reaches_a_listener_with_its_proxy(make: Any) -> None:
    heard: list[Any] = []
    async with make() as pool, pool.acquire() as connection:
        await connection.add_listener("news", lambda *what: heard.append(what))
        await pool.execute("select pg_notify('news', 'x')")
        await until_async(lambda: heard, "the notification arrives")
        assert heard[0][0] is connection
        await connection.remove_listener("news", heard.append)
        await connection.reset()


async def test_settings_of_poolkit(make: Any) -> None:
    events: list[Any] = []
    pool = make(name="orders", max_waiting=0, max_size=1, listeners=[events.append], debug=True, leak_after=30)
    async with pool:
        assert pool.name == pool.poolkit.name == "orders"
        async with pool.acquire():
            with pytest.raises(poolkit.PoolBusy, match="max_waiting=0"):
                await pool.acquire()
        assert events
        assert pool.poolkit.describe()["acquire_timeout"].value is None
        pool.poolkit.reconfigure(max_size=5)
        assert pool.get_max_size() == 5
    assert make(config=PoolConfig(max_size=7, min_size=1)).get_max_size() == 2  # the argument counts
    assert make(timeout=4).poolkit.describe()["connect_timeout"].value == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_size": 0}, "max_size is expected to be greater than zero"),
        ({"min_size": -1}, "min_size is expected to be greater or equal to zero"),
        ({"min_size": 3, "max_size": 2}, "min_size is greater than max_size"),
        ({"init_size": 3, "max_size": 2}, "init_size is greater than max_size"),
        ({"min_size": 2, "init_size": 1, "max_size": 2}, "init_size is smaller than min_size"),
        ({"max_queries": 0}, "max_queries=0"),
        ({"max_inactive_connection_lifetime": -1}, "max_inactive_connection_lifetime=-1"),
        ({"setup": 5}, "setup=5"),
        ({"max_sise": 5}, "did you mean 'max_size'"),
        ({"statement_cache_sise": 5}, "did you mean 'statement_cache_size'"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(make: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**given)


def test_a_wrong_class_is_asyncpgs_error(make: Any) -> None:
    with pytest.raises(TypeError, match="connection_class"):
        make(connection_class=int)
    with pytest.raises(TypeError, match="record_class"):
        make(record_class=int)


def test_a_second_loop_is_an_error_while_the_first_is_open_and_works_after_it(make: Any) -> None:
    pool = make()

    async def use() -> int:
        return int(await pool.fetchval("select 1"))

    async def begin() -> None:
        await pool
        await use()

    first = asyncio.new_event_loop()
    first.run_until_complete(begin())
    with pytest.raises(WrongLoop) as caught:
        asyncio.run(use())
    assert isinstance(caught.value, asyncpg.InterfaceError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the first loop's connection is dropped with it
        first.close()
        assert asyncio.run(_both(use, pool)) == 1
        gc.collect()


async def _both(use: Any, pool: PoolkitPool) -> int:
    found = int(await use())
    await pool.close()
    return found


def _child(pool: PoolkitPool, connection: Any, answers: Any) -> None:
    async def main() -> None:
        await pool.release(connection)  # the parent's
        answers.put(await pool.fetchval("select pg_backend_pid()"))
        pool.terminate()

    asyncio.run(main())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this platform")
def test_a_forked_child_uses_none_of_its_parents_connections(make: Any) -> None:
    fork: Any = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    loop = asyncio.new_event_loop()

    async def before() -> tuple[Any, Any, int]:
        pool = await make(min_size=1)
        connection = await pool.acquire()
        return pool, connection, await connection.fetchval("select pg_backend_pid()")

    async def after(pool: Any, connection: Any, mine: int) -> None:
        assert await connection.fetchval("select pg_backend_pid()") == mine
        await pool.release(connection)
        assert await pool.fetchval("select 1") == 1
        await pool.close()

    pool, connection, mine = loop.run_until_complete(before())
    process = fork.Process(target=_child, args=(pool, connection, answers))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answers.get() != mine
    loop.run_until_complete(after(pool, connection, mine))
    loop.close()
