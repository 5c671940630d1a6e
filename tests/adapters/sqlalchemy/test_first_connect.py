"""A new engine whose first users run in several event loops at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit_adapters.sqlalchemy import AsyncPoolkitPool
from tests.adapters.sqlalchemy.servers import Databases
from tests.support.waiting import PATIENCE, until


# a connection that another loop's caller gets is left behind in a loop that is about to end; asyncio says so
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_first_users_may_come_from_several_loops(databases: Databases) -> None:
    """The first one is in a "connect" listener while the others arrive. A cancelled one blocks no other."""
    engine = create_async_engine(databases.url("asyncpg"), poolclass=AsyncPoolkitPool, pool_size=4)
    entered, arrived, given_up, go_on = threading.Event(), [], threading.Event(), threading.Event()

    @event.listens_for(engine.sync_engine, "connect")
    def slow(connection: Any, record: Any) -> None:
        entered.set()
        while not go_on.is_set():
            cursor = connection.cursor()
            cursor.execute("select pg_sleep(0.01)")
            cursor.close()

    @event.listens_for(engine.sync_engine, "do_connect")
    def arrives(*_: Any) -> None:
        arrived.append(1)

    answers: list[Any] = []

    async def ask() -> None:
        async with engine.connect() as connection:
            answers.append((await connection.execute(text("select 1"))).scalar())
            await connection.invalidate()  # closed in its own loop, which ends right after

    async def main(gives_up: bool) -> None:
        task = asyncio.ensure_future(ask())
        while gives_up and len(arrived) < 4:
            await asyncio.sleep(0.01)
        if gives_up:
            task.cancel()
            given_up.set()
        await asyncio.wait([task])
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)  # wait for the end of the abandoned connect

    def loop(gives_up: bool = False) -> threading.Thread:
        thread = threading.Thread(target=lambda: asyncio.run(main(gives_up)), daemon=True)
        thread.start()
        return thread

    threads = [loop()]
    assert entered.wait(PATIENCE)
    threads += [loop(gives_up=True), loop(), loop()]
    until(lambda: len(arrived) == 4, "all connect")
    assert given_up.wait(PATIENCE)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it waits for ever"
    assert answers == [1, 1, 1]
    asyncio.run(engine.dispose())
    gc.collect()
