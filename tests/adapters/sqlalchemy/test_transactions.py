"""The pool hands out no connection in the middle of a transaction, so the commits of the next user are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.adapters.sqlalchemy.conftest import VERSION
from tests.adapters.sqlalchemy.servers import ASYNC, MODULES, Caller, Databases, calling
from tests.faults.cancelling import natively

ONE: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 10}
# drivers whose rollback() does nothing for a BEGIN that the application has sent itself in autocommit mode
BLIND = ("asyncpg", "psycopg2")


def table(caller: Caller) -> None:
    engine = " engine=innodb" if caller.engine.dialect.name == "mysql" else ""
    caller.sql("drop table if exists rows_of_mine")
    caller.sql(f"create table rows_of_mine (a integer){engine}")


def rows(databases: Databases, driver: str) -> int:
    """Return what another session sees."""
    with calling(databases.url(driver), driver, **ONE) as other:
        return int(other.sql("select count(*) from rows_of_mine"))


@pytest.mark.parametrize("driver", MODULES)
@pytest.mark.parametrize("reset", ["rollback", "commit"])
def test_what_the_reset_has_left_in_a_transaction_is_closed(
    databases: Databases, driver: str, reset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any reason: in this test the reset does nothing."""
    with calling(databases.url(driver), driver, pool_reset_on_return=reset, **ONE) as caller:
        table(caller)
        closed: list[Any] = []
        event.listen(caller.engine, "invalidate", lambda connection, record, error: closed.append(error))
        with monkeypatch.context() as patched:
            patched.setattr(caller.engine.dialect, "do_rollback", lambda connection: None)
            patched.setattr(caller.engine.dialect, "do_commit", lambda connection: None)
            caller.sql("insert into rows_of_mine values (1)", commit=False)
        assert [str(error) for error in closed] == ["still in a transaction after the reset"]
        caller.sql("insert into rows_of_mine values (2)")
        assert rows(databases, driver) == 1
        assert caller.sql("select a from rows_of_mine") == 2
        caller.engine.pool.poolkit.check_books()  # type: ignore[attr-defined]


@pytest.mark.parametrize("driver", MODULES)
@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
def test_a_clean_connection_is_kept(databases: Databases, driver: str, level: str | None) -> None:
    if level and driver == "mysqlconnector" and VERSION < (2, 1):
        pytest.skip("SQLAlchemy 2.0 has no AUTOCOMMIT with this driver")
    with calling(databases.url(driver), driver, isolation_level=level, **ONE) as caller:
        made: list[Any] = []
        event.listen(caller.engine, "connect", lambda connection, record: made.append(connection))
        table(caller)
        for number in range(5):
            caller.sql(f"insert into rows_of_mine values ({number})")
            caller.sql("select a from rows_of_mine", commit=False)
        caller.sql("insert into rows_of_mine values (9)", commit=False)
        assert len(made) == 1
        assert rows(databases, driver) == (6 if level else 5)


@pytest.mark.parametrize("driver", MODULES)
def test_begin_sent_by_the_application_in_autocommit_mode_ends_with_its_checkout(
    databases: Databases, driver: str
) -> None:
    if driver == "mysqlconnector" and VERSION < (2, 1):
        pytest.skip("SQLAlchemy 2.0 has no AUTOCOMMIT with this driver")
    with calling(databases.url(driver), driver, isolation_level="AUTOCOMMIT", **ONE) as caller:
        made: list[Any] = []
        table(caller)
        event.listen(caller.engine, "connect", lambda connection, record: made.append(connection))
        caller.sql("begin", "insert into rows_of_mine values (1)", commit=False)
        caller.sql("insert into rows_of_mine values (2)")
        assert rows(databases, driver) == 1, "the second insert stands in the first one's transaction"
        assert bool(made) == (driver in BLIND)


@pytest.mark.parametrize("driver", ["psycopg", "pysqlite", "psycopg_async", "aiosqlite", "asyncpg"])
@pytest.mark.parametrize("whose", ["own", "poolkit"])
def test_without_a_reset_the_transaction_is_handed_on_as_by_queuepool(
    databases: Databases, driver: str, whose: str
) -> None:
    """``pool_reset_on_return=None`` asks for that."""
    kinds = {
        "own": AsyncAdaptedQueuePool if driver in ASYNC else QueuePool,
        "poolkit": AsyncPoolkitPool if driver in ASYNC else PoolkitPool,
    }
    with calling(databases.url(driver), driver, kinds[whose], pool_reset_on_return=None, **ONE) as caller:
        table(caller)

        def leave_open() -> None:
            connection = caller.engine.raw_connection()
            cursor = connection.cursor()
            cursor.execute("insert into rows_of_mine values (1)")
            cursor.close()
            connection.close()

        caller.run(leave_open)
        caller.sql("insert into rows_of_mine values (2)")
        assert rows(databases, driver) == 2


@pytest.mark.parametrize("reset", ["rollback", "commit", None])
@pytest.mark.parametrize("level", [None, "SERIALIZABLE"])
def test_a_begin_that_is_cancelled_half_way_does_not_swallow_the_next_commit(
    postgres: PostgresServer, reset: str | None, level: str | None
) -> None:
    """asyncpg's transaction is begun, and SQLAlchemy (before 2.0.59) does not know of it: its reset does nothing."""

    async def main() -> None:
        database = create_async_engine(
            postgres.sqlalchemy_url("asyncpg"), poolclass=AsyncPoolkitPool, pool_reset_on_return=reset,
            isolation_level=level, **ONE,
        )  # fmt: skip
        armed = False

        @event.listens_for(database.sync_engine, "before_cursor_execute")
        def listener(connection: Any, *rest: Any) -> None:
            if armed:
                cursor = connection.connection.cursor()
                cursor.execute("select set_config('my.tenant', '42', true)")
                cursor.close()

        async def act() -> None:
            async with database.connect() as connection:
                await connection.execute(text("select 2"))

        async with database.begin() as connection:
            await connection.execute(text("drop table if exists committed"))
            await connection.execute(text("create table committed (a int)"))
        struck, point = True, 0
        while struck:
            point += 1
            armed = True
            struck = await natively(point, act)
            armed = False
            async with database.begin() as connection:
                await connection.execute(text(f"insert into committed values ({point})"))
            with postgres.connect() as other:
                seen = other.execute("select max(a), count(*) from committed").fetchone()
            assert seen == (point, point), f"cancelled at suspension {point}"
        assert point > 3
        await database.dispose()

    asyncio.run(main())
