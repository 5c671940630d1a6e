"""The pool opens connections in its own threads or tasks. SQLAlchemy users see the same connects as before."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import create_engine, event, exc, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only, greenlet_spawn

import poolkit
from poolkit._core import opener
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.adapters.sqlalchemy.servers import Databases, calling
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until, until_async

CALLERS = 50


@pytest.fixture
def through(postgres: PostgresServer) -> Iterator[FaultProxy]:
    proxy = FaultProxy(postgres.host, postgres.port).start()
    yield proxy
    proxy.mode = "pass"
    proxy.cut()
    proxy.stop()


def via(postgres: PostgresServer, proxy: FaultProxy, driver: str = "psycopg") -> str:
    url = make_url(postgres.sqlalchemy_url(driver)).set(host=proxy.host, port=proxy.port)
    return url.render_as_string(hide_password=False)


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause between two connects that no busy machine outlasts; usually it is a part of the time of a connect."""
    monkeypatch.setattr(opener, "pace", lambda connect_time: PATIENCE)


@pytest.mark.usefixtures("paced")
def test_a_spike_that_the_open_connections_serve_opens_few_more(fake: Any) -> None:
    """50 callers use 5 connections. QueuePool would open one for each caller, up to its limit."""
    slow = threading.Event()
    begun: list[int] = []
    go_on = threading.Event()

    def creator() -> Any:
        begun.append(1)
        assert not slow.is_set() or go_on.wait(PATIENCE)
        return fake()

    pool = PoolkitPool(creator, pool_size=20, max_overflow=0, timeout=PATIENCE)
    with ThreadPoolExecutor(CALLERS) as threads:
        held = [pool.connect() for _ in range(5)]
        for connection in held:
            connection.close()
        slow.set()
        begun.clear()
        together = threading.Barrier(CALLERS)

        def use(_: int) -> None:
            together.wait(PATIENCE)
            connection = pool.connect()
            time.sleep(0.001)
            connection.close()

        list(threads.map(use, range(CALLERS)))
    assert len(begun) <= 2
    go_on.set()
    pool.dispose()


def test_events_come_in_order_and_see_the_caller_s_context(make_engine: Any) -> None:
    engine = make_engine(pool_size=1)
    seen: list[tuple[str, str, bool]] = []
    request: ContextVar[str] = ContextVar("request", default="none")
    caller = threading.current_thread()

    def note(name: str) -> Any:
        return lambda *_: seen.append((name, request.get(), threading.current_thread() is caller))

    for name in ("do_connect", "first_connect", "connect", "checkout", "engine_connect"):
        event.listen(engine, name, note(name))
    request.set("first")
    engine.connect().close()
    assert seen == [
        ("do_connect", "first", False), ("first_connect", "first", False), ("connect", "first", False),
        ("checkout", "first", True), ("engine_connect", "first", True),
    ]  # fmt: skip
    seen.clear()
    request.set("second")
    engine.pool.poolkit.clear()
    engine.connect().close()
    assert [name for name, _, _ in seen] == ["do_connect", "connect", "checkout", "engine_connect"]
    assert {context for _, context, _ in seen} == {"second"}


def test_each_waiting_caller_gets_its_own_error_for_a_failed_connect(
    make_engine: Any, postgres: PostgresServer
) -> None:
    engine = make_engine(make_url(postgres.sqlalchemy_url("psycopg")).set(database="nowhere"), pool_size=5)
    go = threading.Event()

    @event.listens_for(engine, "do_connect")
    def wait(*_: Any) -> None:
        go.wait(PATIENCE)

    failures: list[Any] = []

    def use() -> None:
        with pytest.raises(exc.OperationalError) as caught:
            engine.connect()
        failures.append(caught.value)

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: engine.pool.poolkit.stats().waiting == 5)
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    for error in failures:
        assert isinstance(error, poolkit.ConnectFailed)
        assert isinstance(error.orig, engine.dialect.dbapi.OperationalError)
        assert isinstance(error.orig, poolkit.ConnectFailed)
        assert 'database "nowhere" does not exist' in str(error.orig)
    assert len({id(error) for error in failures}) == len({id(error.orig) for error in failures}) == 5


DRIVERS = ("psycopg", "asyncpg", "psycopg_async")


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_deadline_bounds_the_wait_for_a_server_that_never_answers(
    postgres: PostgresServer, through: FaultProxy, driver: str
) -> None:
    """The caller gets its error at its deadline. The connect goes on, and its connection serves the next caller."""
    url = via(postgres, through, driver)
    with calling(url, driver, pool_size=1, max_overflow=0, pool_timeout=0.2) as caller:
        engine: Any = caller.engine.pool.poolkit  # type: ignore[attr-defined]
        through.mode = "hold"
        with pytest.raises(exc.TimeoutError) as caught:
            caller.run(caller.engine.connect)
        assert isinstance(caught.value, poolkit.AcquireTimeout)
        assert engine.stats().connecting == 1
        through.mode = "pass"
        finish(caller, lambda: engine.stats().idle == 1)
        engine.reconfigure(acquire_timeout=PATIENCE)
        assert caller.sql("select 42") == 42
        assert engine.stats().connects == 1


@pytest.mark.parametrize("lost", ["invalidated", "outdated", "dead"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_deadline_bounds_the_reconnect_of_a_slot(
    postgres: PostgresServer, through: FaultProxy, driver: str, lost: str
) -> None:
    """SQLAlchemy itself reconnects what was invalidated, is outdated, or does not answer the ping."""
    settings = {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": lost == "dead", "check_timeout": 0.1}
    with calling(via(postgres, through, driver), driver, pool_timeout=PATIENCE, **settings) as caller:
        pool: Any = caller.engine.pool

        def lose() -> None:
            with caller.engine.connect() as connection:
                connection.execute(text("select 1"))
                if lost != "dead":
                    connection.invalidate() if lost == "invalidated" else connection.connection.invalidate(soft=True)

        caller.run(lose)
        pool.poolkit.reconfigure(acquire_timeout=1.0)
        if lost == "dead":
            through.cut()
        through.mode = "hold"
        with pytest.raises(exc.TimeoutError) as caught:
            caller.run(caller.engine.connect)
        assert isinstance(caught.value, poolkit.AcquireTimeout)
        assert pool.poolkit.stats().size == 1, "its place is taken until the connect has ended"
        through.mode = "pass"
        finish(caller, lambda: pool.poolkit.stats().idle == 1)
        pool.poolkit.reconfigure(acquire_timeout=PATIENCE)
        assert caller.sql("select 42") == 42
        pool.poolkit.check_books()


def finish(caller: Any, condition: Callable[[], bool]) -> None:
    if caller.loop is None:
        until(condition)
    else:
        caller.loop.run_until_complete(until_async(condition))


@pytest.mark.usefixtures("paced")
def test_a_spike_of_tasks_that_the_open_connections_serve_opens_few_more(fake: Any) -> None:
    go_on: asyncio.Event | None = None
    begun: list[int] = []

    def creator() -> Any:
        begun.append(1)
        if go_on is not None:
            await_only(go_on.wait())
        return fake()

    pool = AsyncPoolkitPool(creator, pool_size=20, max_overflow=0, timeout=PATIENCE)

    async def use() -> None:
        connection = await greenlet_spawn(pool.connect)
        await asyncio.sleep(0.001)
        connection.close()

    async def main() -> None:
        nonlocal go_on
        held = [await greenlet_spawn(pool.connect) for _ in range(5)]
        for connection in held:
            connection.close()
        begun.clear()
        go_on = asyncio.Event()
        await asyncio.gather(*[use() for _ in range(CALLERS)])
        assert len(begun) <= 2
        go_on.set()
        await greenlet_spawn(pool.dispose)

    asyncio.run(main())


def test_each_waiting_task_gets_its_own_error_for_a_failed_connect(postgres: PostgresServer) -> None:
    url = make_url(postgres.sqlalchemy_url("psycopg_async")).set(database="nowhere")

    async def main() -> None:
        engine = create_async_engine(url, poolclass=AsyncPoolkitPool, pool_size=5)
        failures: list[Any] = await asyncio.gather(*[engine.connect() for _ in range(5)], return_exceptions=True)
        for error in failures:
            assert isinstance(error, exc.OperationalError)
            assert isinstance(error, poolkit.ConnectFailed)
            assert 'database "nowhere" does not exist' in str(error.orig)
        assert len({id(error) for error in failures}) == len({id(error.orig) for error in failures}) == 5
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_a_connect_ends_with_its_event_loop(postgres: PostgresServer, through: FaultProxy, driver: str) -> None:
    """Nothing is left of it, and the next loop has its slot."""
    engine = create_async_engine(
        via(postgres, through, driver), poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0, pool_timeout=0.2
    )

    async def give_up() -> None:
        with pytest.raises(exc.TimeoutError):
            await engine.connect()

    async def use() -> None:
        engine.pool.poolkit.reconfigure(acquire_timeout=PATIENCE)  # type: ignore[attr-defined]
        async with engine.connect() as connection:
            assert await connection.scalar(text("select 42")) == 42
        await engine.dispose()

    through.mode = "hold"
    asyncio.run(give_up())
    assert engine.pool.poolkit.stats().size == 0  # type: ignore[attr-defined]
    through.mode = "pass"
    asyncio.run(use())


def test_sqlite_connects_in_its_caller(databases: Databases) -> None:
    engine = create_engine(databases.url("pysqlite"), poolclass=PoolkitPool)
    callers: list[threading.Thread] = []
    event.listen(engine, "connect", lambda *_: callers.append(threading.current_thread()))
    with engine.connect() as connection:
        assert connection.scalar(text("select 42")) == 42
    assert callers == [threading.current_thread()]
    setting = engine.pool.poolkit.describe()["connect_in_caller"]  # type: ignore[attr-defined]
    assert (setting.value, setting.source) == (True, "sqlite3's default")
    engine.dispose()


def test_the_error_for_a_creator_that_needs_its_thread_names_the_setting() -> None:
    pool = PoolkitPool(lambda: sqlite3.connect(":memory:"), name="local")
    for _ in range(2):
        with pytest.raises(poolkit.ConfigError, match=r"local: connect_in_caller=False: .* set connect_in_caller=True"):
            pool.connect()
    pool = PoolkitPool(lambda: sqlite3.connect(":memory:"), connect_in_caller=True)
    connection = pool.connect()
    connection.cursor().execute("select 42")
    connection.close()
    pool.dispose()
