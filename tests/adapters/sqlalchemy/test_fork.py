"""R16: a forked child leaves the parent's connections alone, whatever it does with its engine."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PID = text("select pg_backend_pid()")


def in_child(work: Callable[[], Any]) -> str:
    """Return ``str(work())`` of a forked child, or its traceback."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = str(work())
        except BaseException:
            answer = traceback.format_exc()
        os.write(write, answer.encode())
        sys.stdout.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def engine(postgres: PostgresServer) -> Iterator[Any]:
    engine = create_engine(postgres.sqlalchemy_url("psycopg"), poolclass=PoolkitPool, pool_size=3)
    yield engine
    engine.dispose()


def test_11_the_child_opens_its_own_and_the_parents_still_answer(engine: Any) -> None:
    held = engine.connect()
    others = [engine.connect() for _ in range(2)]
    mine = [c.scalar(PID) for c in (held, *others)]
    for connection in others:
        connection.close()

    def child() -> int:
        with engine.connect() as connection:
            found: int = connection.scalar(PID)
        engine.dispose()
        with engine.connect() as connection:
            assert connection.scalar(PID) not in mine
        gc.collect()
        return found

    assert int(in_child(child)) not in mine
    assert held.scalar(PID) == mine[0]
    held.close()
    again = [engine.connect() for _ in range(3)]
    assert sorted(c.scalar(PID) for c in again) == sorted(mine)
    for connection in again:
        connection.close()


def test_a_connection_in_use_can_only_be_put_away_in_the_child_and_is_intact_in_the_parent(engine: Any) -> None:
    with engine.begin() as held:
        mine = held.scalar(PID)
        held.execute(text("create temporary table t (n integer)"))

        def child() -> str:
            nonlocal held
            with pytest.raises(exc.StatementError, match="belongs to the parent process"):
                held.execute(PID)
            held.rollback()
            held.close()
            held = None
            gc.collect()
            with engine.connect() as connection:
                assert connection.scalar(PID) != mine
            engine.dispose()
            return "ok"

        answer = in_child(child)
        assert answer == "ok", answer
        held.execute(text("insert into t values (1)"))
        assert held.scalar(text("select count(*) from t")) == 1
        assert held.scalar(PID) == mine


def test_a_dropped_connection_says_nothing_in_the_child(engine: Any) -> None:
    held = engine.raw_connection()
    cursor = held.cursor()
    cursor.execute("select pg_backend_pid()")
    [mine] = cursor.fetchone()

    def child() -> str:
        nonlocal held, cursor
        held = cursor = None
        gc.collect()
        return engine.pool.status()

    assert "Connections in pool: 0" in in_child(child)
    cursor.execute("select pg_backend_pid()")
    assert cursor.fetchone() == (mine,)
    held.close()


def test_12_a_fork_while_another_thread_connects(engine: Any) -> None:
    go = threading.Event()
    busy = threading.Event()

    def churn() -> None:
        while not go.is_set():
            with engine.connect() as connection:
                connection.scalar(PID)
            busy.set()

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    busy.wait(10)

    def child() -> str:
        with engine.connect() as connection:
            return str(connection.scalar(text("select 1")))

    answers = [in_child(child) for _ in range(5)]
    go.set()
    for thread in threads:
        thread.join(10)
    assert answers == ["1"] * 5
    engine.pool.poolkit.check_books()


def test_the_floor_is_kept_in_the_child_by_the_child(postgres: PostgresServer) -> None:
    engine = create_engine(
        postgres.sqlalchemy_url("psycopg"), poolclass=PoolkitPool, min_size=2, connect_args={"application_name": "f"}
    )
    with engine.connect() as connection:
        connection.scalar(PID)

    def child() -> str:
        assert engine.pool.poolkit.stats().size == 0
        with engine.connect() as connection:
            return str(connection.scalar(text("select 1")))

    assert in_child(child) == "1"
    engine.dispose()


def test_11_async(postgres: PostgresServer, driver: str) -> None:
    engine = create_async_engine(postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool)

    async def pid() -> int:
        async with engine.connect() as connection:
            return int(await connection.scalar(PID))  # type: ignore[arg-type]

    async def child() -> int:
        found = await pid()
        await engine.dispose()
        return found

    async def main() -> None:
        mine = await pid()
        held = await engine.connect()
        assert await held.scalar(PID) == mine
        answer = in_child(lambda: threaded(child))
        assert answer.isdigit(), answer
        assert int(answer) != mine
        assert await held.scalar(PID) == mine
        await held.close()
        assert await pid() == mine
        await engine.dispose()

    asyncio.run(main())


def threaded(work: Callable[[], Any]) -> Any:
    """Run a coroutine in a child whose thread seems to run the parent's loop."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(work())))
    thread.start()
    thread.join(20)
    return results[0]
