"""One changed line: ``poolclass=``. A program must see what it saw before, with each driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.adapters.sqlalchemy.conftest import since

PID = text("select pg_backend_pid()")


def test_a_closed_connection_serves_the_next_user(postgres: PostgresServer) -> None:
    engine = create_engine(postgres.sqlalchemy_url("psycopg"), poolclass=PoolkitPool)
    with engine.connect() as connection:
        first = connection.scalar(PID)
    with Session(engine) as session:
        assert session.scalar(PID) == first
    assert engine.pool.status() == (
        "Pool size: 5  Connections in pool: 1 Current Overflow: -4 Current Checked out connections: 0"
    )
    engine.dispose()
    assert first not in postgres.backends()


@pytest.mark.anyio
async def test_a_closed_async_connection_serves_the_next_user(postgres: PostgresServer, driver: str) -> None:
    engine = create_async_engine(postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool)
    async with engine.connect() as connection:
        first = await connection.scalar(PID)
    async with engine.begin() as connection:
        assert await connection.scalar(PID) == first
    assert engine.pool.status().startswith("Pool size: 5  Connections in pool: 1 Current Overflow: -4")
    await engine.dispose()
    assert first not in postgres.backends()


def test_sqlite_file(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", poolclass=PoolkitPool)
    with engine.begin() as connection:
        connection.execute(text("create table t (n integer)"))
        connection.execute(text("insert into t values (1)"))
        first = connection.connection.driver_connection
    with engine.connect() as connection:
        assert connection.scalar(text("select n from t")) == 1
        assert connection.connection.driver_connection is first
    engine.dispose()


def test_sqlite_memory_with_one_connection() -> None:
    engine = create_engine("sqlite://", poolclass=PoolkitPool, pool_size=1, max_overflow=0)
    with engine.begin() as connection:
        connection.execute(text("create table t (n integer)"))
    with engine.connect() as connection:
        assert connection.scalar(text("select count(*) from t")) == 0
    engine.dispose()


@pytest.mark.anyio
async def test_aiosqlite_file(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}", poolclass=AsyncPoolkitPool)
    async with engine.begin() as connection:
        await connection.execute(text("create table t (n integer)"))
        first = (await connection.get_raw_connection()).driver_connection
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from t")) == 0
        assert (await connection.get_raw_connection()).driver_connection is first
    await engine.dispose()


@pytest.mark.parametrize("poolclass", [QueuePool, PoolkitPool])
def test_events_come_in_the_same_order(postgres: PostgresServer, poolclass: Any) -> None:
    engine = create_engine(postgres.sqlalchemy_url("psycopg"), poolclass=poolclass, pool_size=1, max_overflow=1)
    seen: list[str] = []
    for name in ("first_connect", "connect", "checkout", "reset", "checkin", "invalidate", "close", "detach",
                 "soft_invalidate", "close_detached"):  # fmt: skip
        event.listen(engine, name, lambda *_, name=name: seen.append(name))
    with engine.connect() as connection, engine.connect() as other:
        connection.execute(select(1))
        other.execute(select(1))
    with engine.connect() as connection:
        connection.connection.info["mine"] = 1
        connection.connection.record_info["ours"] = 2
        connection.invalidate()
        connection.execute(select(1))
        assert connection.connection.info == {}
        assert connection.connection.record_info == {"ours": 2}
        connection.connection.invalidate(soft=True)
    with engine.connect() as connection:
        connection.execute(select(1))
        connection.detach()
    engine.dispose()
    assert seen == [
        "first_connect", "connect", "checkout", "connect", "checkout",
        "reset", "checkin", "reset", "checkin", "close",
        "checkout", "invalidate", "close", "checkin", "connect", "checkout", "soft_invalidate", "reset", "checkin",
        "close", "connect", "checkout", "detach", "reset", "close_detached",
    ]  # fmt: skip


@since[2, 0, 25]
@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "postgresql+asyncpg://h/d"])
def test_a_sync_pool_on_an_async_driver_is_refused(url: str) -> None:
    with pytest.raises(Exception, match="PoolkitPool cannot be used with asyncio engine"):
        create_async_engine(url, poolclass=PoolkitPool)


@since[2, 0, 25]
def test_an_async_pool_on_a_sync_driver_is_refused() -> None:
    with pytest.raises(Exception, match="AsyncPoolkitPool cannot be used with non-asyncio engine"):
        create_engine("postgresql+psycopg://h/d", poolclass=AsyncPoolkitPool)


@pytest.mark.parametrize(("ours", "theirs"), [(PoolkitPool, QueuePool), (AsyncPoolkitPool, AsyncAdaptedQueuePool)])
def test_logging_goes_where_it_went(ours: Any, theirs: Any, fake: Any, caplog: pytest.LogCaptureFixture) -> None:
    def lines(poolclass: Any) -> list[str]:
        caplog.clear()
        pool = poolclass(fake, pool_size=1, logging_name="orders")
        with caplog.at_level("DEBUG", logger="sqlalchemy.pool"):
            pool = pool.recreate()
            pool.connect().close()
            pool.dispose()
        return [r.getMessage().split(" connection")[0].split(" <")[0] for r in caplog.records]

    assert lines(ours) == lines(theirs) != []
    assert {r.name for r in caplog.records} == {f"sqlalchemy.pool.impl.{theirs.__name__}.orders"}
