"""Cancel a transaction at each of its suspensions, in each way: the commits of the next users are kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from poolkit_adapters.sqlalchemy import AsyncPoolkitPool
from tests.adapters.sqlalchemy.conftest import VERSION
from tests.adapters.sqlalchemy.servers import ASYNC, Databases, calling
from tests.faults.test_cancel_adapters import SIZE, WAYS, everywhere, run

Act = Callable[[AsyncConnection], Awaitable[Any]]


async def commit(connection: AsyncConnection) -> None:
    async with connection.begin():
        await connection.execute(text("insert into numbers values (-1)"))


async def roll_back(connection: AsyncConnection) -> None:
    await connection.execute(text("insert into numbers values (-1)"))
    await connection.rollback()


async def leave_open(connection: AsyncConnection) -> None:
    await connection.execute(text("insert into numbers values (-1)"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("warm", [True, False], ids=["idle", "connects"])
@pytest.mark.parametrize("act", [commit, roll_back, leave_open])
@pytest.mark.parametrize("driver", ASYNC)
def test_the_commits_of_the_next_users_are_there(databases: Databases, driver: str, act: Act, warm: bool) -> None:
    url = databases.url(driver)
    if VERSION < (2, 0, 58):
        pytest.skip("before 2.0.58 SQLAlchemy itself loses connections whose task is cancelled")
    if VERSION < (2, 1) and driver not in ("asyncpg", "aiosqlite"):
        pytest.skip("before 2.1 the driver's error takes the place of a cancellation that strikes in a listener")

    async def main() -> None:
        database = create_async_engine(url, poolclass=AsyncPoolkitPool, pool_size=SIZE, max_overflow=0)
        engine: Any = database.pool.poolkit  # type: ignore[attr-defined]
        armed = [False]

        @event.listens_for(database.sync_engine, "before_cursor_execute")
        def speak(connection: Any, *rest: Any) -> None:
            """Execute a statement that begins the transaction, as programs do for row-level security."""
            if armed[0]:
                cursor = connection.connection.cursor()
                cursor.execute("select 1")
                cursor.fetchall()
                cursor.close()

        async def ask(number: int) -> int:
            armed[0] = False
            async with database.begin() as connection:
                await connection.execute(text(f"insert into numbers values ({number})"))
            return int(other.sql(f"select a from numbers where a = {number}") or 0)

        async def work() -> None:
            armed[0] = True
            connection = await database.connect()
            try:
                await act(connection)
            finally:
                await connection.close()

        def afresh() -> None:
            if not warm:
                engine.clear()

        try:
            assert await everywhere(work, ask, engine, afresh=afresh, ways=WAYS) >= 3
        finally:
            await database.dispose()

    sync = {"aiosqlite": "pysqlite", "aiomysql": "pymysql", "asyncmy": "pymysql"}.get(driver, "psycopg")
    with calling(databases.url(sync), sync) as other:
        engine = " engine=innodb" if other.engine.dialect.name == "mysql" else ""
        other.sql("drop table if exists numbers")
        other.sql(f"create table numbers (a integer){engine}")
        run(main)
