"""The asynchronous pool serves every event loop: one after the other (asgiref's async_to_sync), or several at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import Any

import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool, AsyncPoolkitNullConnectionPool
from tests.support.loops import running
from tests.support.waiting import PATIENCE, until

from .support import Admin, pid

KINDS = [AsyncPoolkitConnectionPool, AsyncPoolkitNullConnectionPool]


async def ask(pool: Any) -> int:
    async with pool.connection() as connection:
        cursor = await connection.execute("select pg_backend_pid()")
        return int((await cursor.fetchone())[0])


async def many(pool: Any, count: int = 50) -> set[int]:
    return set(await asyncio.gather(*(ask(pool) for _ in range(count))))


@pytest.mark.parametrize("kind", KINDS)
def test_loops_that_end_one_after_the_other_share_the_pool(
    kind: Any, postgres: PostgresServer, admin: Admin, named: Any, application: str
) -> None:
    pool = kind(postgres.url, min_size=0, max_size=2, kwargs=named, open=False)
    asyncio.run(pool.open())
    pids = [asyncio.run(many(pool, 20)) for _ in range(4)]
    if kind is AsyncPoolkitConnectionPool:
        assert len(set.union(*pids)) <= 2, "the connections are kept"
        assert len(admin.sessions(application)) <= 2
    pool.poolkit.check_books()
    asyncio.run(pool.close())
    until(lambda: not admin.sessions(application))


def test_a_loop_that_has_stopped_and_another_one_share_the_pool(postgres: PostgresServer) -> None:
    """asgiref's async_to_sync does so, and the synchronous methods of procrastinate and Django."""
    pool = AsyncPoolkitConnectionPool(postgres.url, min_size=1, max_size=2, open=False)
    first = asyncio.new_event_loop()
    first.run_until_complete(pool.open(wait=True))
    before = first.run_until_complete(ask(pool))
    assert asyncio.run(ask(pool)) == before
    assert first.run_until_complete(ask(pool)) == before
    first.run_until_complete(pool.close())
    first.close()


@pytest.mark.parametrize("kind", KINDS)
def test_loops_in_two_threads_share_the_limit(
    kind: Any, postgres: PostgresServer, admin: Admin, named: Any, application: str
) -> None:
    pool = kind(postgres.url, min_size=0, max_size=2, kwargs=named, open=False, timeout=PATIENCE)
    most, over = [0], threading.Event()

    def watch() -> None:
        watcher = Admin(postgres)
        while not over.is_set():
            most[0] = max(most[0], len(watcher.sessions(application, active=True)))
        watcher.close()

    with running() as one, running() as other:
        one(pool.open()).result(PATIENCE)
        watching = threading.Thread(target=watch)
        watching.start()
        works = [run(many(pool)) for run in (one, other, one, other)]
        for work in works:
            work.result(PATIENCE)
        over.set()
        watching.join()
        assert most[0] <= 2
        pool.poolkit.check_books()

        held = [one(pool.getconn()).result(PATIENCE) for _ in range(2)]
        waiting = other(ask(pool))
        until(lambda: pool.poolkit.stats().waiting == 1)
        one(pool.putconn(held.pop())).result(PATIENCE)
        waiting.result(PATIENCE)
        one(pool.putconn(held.pop())).result(PATIENCE)
        other(pool.close()).result(PATIENCE)


def test_a_connection_on_which_two_tasks_have_waited_moves_to_another_loop(postgres: PostgresServer) -> None:
    """asyncio binds a lock to the first loop in which a task waits for it."""
    pool = AsyncPoolkitConnectionPool(postgres.url, min_size=0, max_size=1, open=False)

    async def together() -> int:
        await pool.open()
        async with pool.connection() as connection:
            await asyncio.gather(*(connection.execute("select 1") for _ in range(3)))
            return pid(connection)

    assert asyncio.run(together()) == asyncio.run(together())
    asyncio.run(pool.close())


def test_a_loop_that_ends_in_the_middle_of_a_statement_leaves_a_sound_pool(
    postgres: PostgresServer, admin: Admin, named: Any, application: str
) -> None:
    pool = AsyncPoolkitConnectionPool(
        postgres.url, min_size=0, max_size=1, kwargs=named, open=False, timeout=2 * PATIENCE, check_timeout=PATIENCE
    )

    async def begin() -> None:
        await pool.open()

        async def work() -> None:
            async with pool.connection() as connection:
                await connection.execute("select pg_sleep(3600)")

        task = asyncio.ensure_future(work())
        while not admin.sessions(application, active=True):
            await asyncio.sleep(0)
        del task

    asyncio.run(begin())  # asyncio cancels the task
    asyncio.run(ask(pool))
    until(lambda: len(admin.sessions(application)) == 1, "the session of the statement has ended")
    pool.poolkit.check_books()
    asyncio.run(pool.close())


def test_reconnect_failed_is_called_though_the_loop_of_the_first_failure_has_ended(postgres: PostgresServer) -> None:
    called = threading.Event()

    async def note(pool: Any) -> None:
        called.set()

    pool = AsyncPoolkitConnectionPool(
        "host=127.0.0.1 port=1", min_size=0, max_size=1, open=False, reconnect_timeout=0.2, reconnect_failed=note
    )

    async def fail() -> None:
        await pool.open()
        with contextlib.suppress(Exception):
            await pool.getconn(timeout=0.05)

    asyncio.run(fail())
    until(lambda: asyncio.run(fail()) or called.is_set())
    asyncio.run(pool.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_loops_of_a_forked_child_share_the_pool_too(postgres: PostgresServer) -> None:
    pool = AsyncPoolkitConnectionPool(postgres.url, min_size=0, max_size=1, open=False)
    asyncio.run(pool.open())
    before = asyncio.run(ask(pool))
    child = os.fork()
    if not child:
        try:
            mine = asyncio.run(ask(pool))
            os._exit(0 if mine != before and asyncio.run(ask(pool)) == mine else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(ask(pool)) == before
    asyncio.run(pool.close())
