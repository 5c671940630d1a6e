"""A connect whose caller is gone leaves nothing open, and counts against the limit until it has ended.

The garbage collector is off: nothing may be left to it. Sessions are the sockets that the kernel has for this process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.adapters.sqlalchemy.servers import Databases, sockets_to
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until, until_async

pytestmark = [
    pytest.mark.usefixtures("no_collector"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts sockets in /proc"),
    pytest.mark.timeout(240),
]

DRIVERS = ("asyncpg", "psycopg_async")
LIMIT = 2


@pytest.fixture
def through(postgres: PostgresServer) -> Iterator[FaultProxy]:
    proxy = FaultProxy(postgres.host, postgres.port).start()
    yield proxy
    proxy.reply_limit = None
    until(lambda: not proxy.open)
    proxy.stop()


def address(postgres: PostgresServer, driver: str, proxy: FaultProxy | None = None) -> str:
    url = postgres.sqlalchemy_url(driver)
    return url if proxy is None else url.replace(f":{postgres.port}/", f":{proxy.port}/")


@asynccontextmanager
async def pooled(url: str, **settings: Any) -> AsyncIterator[tuple[AsyncEngine, Any]]:
    database = create_async_engine(
        url, **{"poolclass": AsyncPoolkitPool, "pool_size": LIMIT, "max_overflow": 0, "pool_timeout": 30, **settings}
    )
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # asyncpg leaves futures unread
    try:
        yield database, database.pool.poolkit  # type: ignore[attr-defined]
    finally:
        await database.dispose()


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def use(database: AsyncEngine) -> Any:
    async with database.connect() as connection:
        return await connection.scalar(text("select 42"))


async def connect(database: AsyncEngine) -> None:
    """Connect without a statement: to cancel one, the driver would open another connection for a moment."""
    async with database.connect():
        pass


async def make_empty_slots(database: AsyncEngine) -> None:
    """Lose the connections, so that their records are kept for the next connects."""
    connections = [await database.connect() for _ in range(LIMIT)]
    for connection in connections:
        await connection.invalidate()
        await connection.close()


@pytest.mark.parametrize("slots", ["new", "empty"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_never_more_sessions_than_the_limit(postgres: PostgresServer, driver: str, slots: str) -> None:
    """The caller is cancelled after 0, 2, 4, ... milliseconds, in every phase of the connect."""

    async def main() -> None:
        async with pooled(address(postgres, driver)) as (database, engine):
            most, watching = 0, True

            async def watch() -> None:
                nonlocal most
                while watching:
                    most = max(most, sockets_to(postgres.port))
                    await asyncio.sleep(0.001)

            before = sockets_to(postgres.port)
            await use(database)
            watcher = asyncio.get_running_loop().create_task(watch())
            for number in range(12):
                if slots == "empty":
                    await make_empty_slots(database)
                else:
                    engine.clear()
                tasks = [asyncio.get_running_loop().create_task(connect(database)) for _ in range(2 * LIMIT)]
                await asyncio.sleep(number / 500)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert await asyncio.gather(*[use(database) for _ in range(4 * LIMIT)]) == [42] * (4 * LIMIT)
            await until_async(lambda: not engine.stats().closing)
            watching = False
            await watcher
            assert most - before <= LIMIT
            engine.check_books()
        await until_async(lambda: sockets_to(postgres.port) == before)

    asyncio.run(main())


@pytest.mark.parametrize("driver", DRIVERS)
def test_it_is_closed_through_the_method_that_a_subclass_extends(postgres: PostgresServer, driver: str) -> None:
    """``_close_connection()`` sees each connection that was opened, as with SQLAlchemy's own pool."""
    closed: list[Any] = []

    class Extended(AsyncPoolkitPool):
        def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
            closed.append(connection)
            super()._close_connection(connection, terminate=terminate)

    async def main() -> None:
        opened: list[Any] = []
        async with pooled(address(postgres, driver), poolclass=Extended) as (database, _):
            task = asyncio.get_running_loop().create_task(connect(database))

            @event.listens_for(database.sync_engine, "connect")
            def cancel(connection: Any, record: Any) -> None:
                opened.append(connection)
                task.cancel()

            with pytest.raises(asyncio.CancelledError):
                await task
        await until_async(lambda: closed)
        assert closed == opened

    asyncio.run(main())


PHASES = {"before the greeting": 0, "in the authentication": 9, "after it": 400}
"""The number of bytes that the server answers before it falls silent."""


@pytest.mark.parametrize("slots", ["new", "empty"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_connect_that_hangs_keeps_its_place_for_a_while_and_is_then_cut(
    postgres: PostgresServer, through: FaultProxy, driver: str, phase: str, slots: str
) -> None:
    async def main() -> None:
        url = address(postgres, driver, through)
        async with pooled(url, check_timeout=1.0, connect_timeout=1.0) as (database, engine):
            await use(database)
            if slots == "empty":
                await make_empty_slots(database)
            engine.clear() if slots == "new" else None
            await until_async(lambda: not through.open)
            accepted = through.accepted
            through.reply_limit = PHASES[phase]
            tasks = [asyncio.get_running_loop().create_task(use(database)) for _ in range(LIMIT)]
            await until_async(lambda: through.accepted == accepted + LIMIT)
            for task in tasks:
                await cancelled(task)
            assert engine.stats().size == LIMIT, "their places are free while their sessions stand"
            await until_async(lambda: engine.stats().connecting + engine.stats().closing + engine.stats().in_use == 0)
            assert sockets_to(through.port) == 0
            through.reply_limit = None
            assert await use(database) == 42
            engine.check_books()

    asyncio.run(main())


@pytest.mark.parametrize("slots", ["new", "empty"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_connect_that_is_cancelled_in_a_listener_goes_on_and_is_kept(
    postgres: PostgresServer, driver: str, slots: str
) -> None:
    async def main() -> None:
        async with pooled(address(postgres, driver)) as (database, engine):
            before = sockets_to(postgres.port)
            await use(database)
            if slots == "empty":
                await make_empty_slots(database)
            else:
                engine.clear()
            await until_async(lambda: sockets_to(postgres.port) == before)
            events: list[str] = []

            @event.listens_for(database.sync_engine, "connect")
            def slow(connection: Any, record: Any) -> None:
                events.append("connect")
                cursor = connection.cursor()
                cursor.execute("select pg_sleep(0.05)")
                cursor.close()
                connection.rollback()  # a connection in a transaction is not kept
                events.append("connected")

            event.listen(database.sync_engine, "close", lambda connection, record: events.append("close"))
            event.listen(
                database.sync_engine, "checkin", lambda connection, record: events.append(f"checkin {connection}")
            )
            task = asyncio.get_running_loop().create_task(use(database))
            await until_async(lambda: events)
            await cancelled(task)
            assert engine.stats().size >= 1
            assert sockets_to(postgres.port) == before + 1
            await until_async(lambda: events[-1] == "connected" and not engine.stats().in_use)
            assert events == ["connect", "connected"]
            assert sockets_to(postgres.port) == before + 1
            assert await use(database) == 42

    asyncio.run(main())


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_loop_that_ends_at_once_leaves_no_session(postgres: PostgresServer, through: FaultProxy, driver: str) -> None:
    """This holds without dispose()."""
    database = create_async_engine(
        address(postgres, driver, through), poolclass=AsyncPoolkitPool, pool_size=LIMIT, max_overflow=0
    )

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        tasks = [asyncio.get_running_loop().create_task(use(database)) for _ in range(LIMIT)]
        await until_async(lambda: through.accepted == LIMIT)
        for task in tasks:
            await cancelled(task)

    through.reply_limit = 9
    asyncio.run(main())
    assert sockets_to(through.port) == 0
    through.reply_limit = None

    async def again() -> None:
        assert await use(database) == 42
        await database.dispose()

    asyncio.run(again())


def test_aiosqlite_leaves_no_thread(databases: Databases) -> None:
    """Each of its connections is a thread."""

    async def main() -> None:
        async with pooled(databases.url("aiosqlite")) as (database, engine):
            await use(database)
            for number in range(30):
                engine.clear()
                task = asyncio.get_running_loop().create_task(use(database))
                for _ in range(number):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert await use(database) == 42
            await until_async(lambda: not engine.stats().closing)

    before = threading.active_count()
    asyncio.run(main())
    until(lambda: threading.active_count() <= before)


class Struck(Exception):
    """An exception like those that a signal handler, a gevent timeout or a debugger raises in a thread."""


@pytest.mark.parametrize("in_caller", [True, False])
def test_an_exception_that_is_thrown_into_a_connect_leaves_no_session(
    postgres: PostgresServer, through: FaultProxy, in_caller: bool
) -> None:
    """This holds even if the traceback is kept. The pool's own connect goes on and serves the next caller."""
    engine = create_engine(
        address(postgres, "psycopg", through),
        poolclass=PoolkitPool,
        pool_size=1,
        max_overflow=0,
        connect_in_caller=in_caller,
    )
    through.reply_limit = 9

    def strike(number: int, frame: Any) -> None:
        raise Struck

    def watch() -> None:
        while not through.accepted:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, strike)
    thread = threading.Thread(target=watch)
    try:
        thread.start()
        with pytest.raises(Struck) as kept:
            engine.connect()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert sockets_to(through.port) == (0 if in_caller else 1)
    through.reply_limit = None
    if not in_caller:
        through.cut()
        until(lambda: not engine.pool.poolkit.stats().connecting)  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.scalar(text("select 42")) == 42
    assert kept.value.__traceback__ is not None
    engine.dispose()


@pytest.mark.parametrize("error", [Struck, KeyboardInterrupt])
def test_an_exception_in_a_connect_listener_leaves_no_session(
    postgres: PostgresServer, error: type[BaseException]
) -> None:
    engine = create_engine(address(postgres, "psycopg"), poolclass=PoolkitPool, pool_size=1, max_overflow=0)
    before, armed = sockets_to(postgres.port), True

    @event.listens_for(engine, "connect")
    def listener(connection: Any, record: Any) -> None:
        if armed:
            raise error

    with pytest.raises(error) as kept:
        engine.connect()
    assert sockets_to(postgres.port) == before
    armed = False
    with engine.connect() as connection:
        assert connection.scalar(text("select 42")) == 42
    del kept
    engine.dispose()
