"""Each error of the SQLAlchemy adapter happens, on a real server, and is poolkit's and SQLAlchemy's."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, event, exc, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

import poolkit
from poolkit import BreakerConfig, ConfigError
from poolkit.testing.servers import PostgresServer
from poolkit_adapters import sqlalchemy as sa
from poolkit_adapters.sqlalchemy._cluster import CLUSTER_ERRORS, NoServerAvailable
from tests.adapters.errors.walk import Scenarios, do, other_loop, walked
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect connections that tracebacks hold, so that they do not reach another test."""
    yield
    gc.collect()


WAYS = ["psycopg", "psycopg_async", "asyncpg"]


class Twin:
    """Creates engines on one driver."""

    def __init__(self, server: PostgresServer, driver: str) -> None:
        self.server = server
        self.driver = driver
        self.asynchronous = driver != "psycopg"
        self.make: Any = create_async_engine if self.asynchronous else create_engine
        self.kind: Any = sa.AsyncPoolkitPool if self.asynchronous else sa.PoolkitPool
        self.cluster: Any = sa.AsyncPoolkitCluster if self.asynchronous else sa.PoolkitCluster

    def url(self, place: str = "") -> Any:
        return make_url(
            f"postgresql+{self.driver}://u:p@{place}/d" if place else self.server.sqlalchemy_url(self.driver)
        )

    @contextlib.asynccontextmanager
    async def engine(self, url: Any = None, **settings: Any) -> AsyncIterator[Any]:
        settings = {"pool_size": 1, "max_overflow": 0, "pool_logging_name": "orders", **settings}
        engine = self.make(url or self.url(), poolclass=self.kind, **settings)
        try:
            yield engine
        finally:
            await do(engine.dispose())

    async def of_pool(self, function: Any, *arguments: Any) -> Any:
        """Run a call of the engine that may block."""
        return await greenlet_spawn(function, *arguments) if self.asynchronous else function(*arguments)

    async def until(self, condition: Any) -> None:
        if not self.asynchronous:
            until(condition)
        while not condition():
            await asyncio.sleep(0.005)


SCENARIOS: Scenarios[Twin] = Scenarios(CLUSTER_ERRORS)
happens = SCENARIOS.happens


@happens(sa.AcquireTimeout, "orders", "in use 1/1", "limit of size 1 overflow 0 reached")
async def _(twin: Twin) -> None:
    async with twin.engine() as engine:
        held = await do(engine.connect())
        engine.pool.poolkit.reconfigure(acquire_timeout=0.01)
        try:
            await do(engine.connect())
        finally:
            await do(held.close())


@happens(sa.ServerUnavailable, "orders", "last connect error")
async def _(twin: Twin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        async with twin.engine(twin.url(place), pool_timeout=0.5) as engine:

            async def connect() -> Any:
                return await engine.connect() if twin.asynchronous else await asyncio.to_thread(engine.connect)

            first = asyncio.create_task(connect())
            (await asyncio.to_thread(silent.accept))[0].close()
            await asyncio.gather(first, return_exceptions=True)
            await connect()  # gets no reply


@happens(sa.PoolBusy, "orders", "max_waiting=0")
async def _(twin: Twin) -> None:
    async with twin.engine(max_waiting=0) as engine:
        held = await do(engine.connect())
        try:
            await do(engine.connect())
        finally:
            await do(held.close())


@happens(sa.PoolSuspended, "orders", "suspended")
async def _(twin: Twin) -> None:
    async with twin.engine() as engine:
        engine.pool.poolkit.suspend(fail_fast=True)
        await do(engine.connect())


@happens(sa.PoolClosed, "orders", "closed")
async def _(twin: Twin) -> None:
    async with twin.engine() as engine:
        await twin.of_pool(engine.pool.poolkit.close)
        await do(engine.connect())


@happens(sa.ConnectFailed, "nosuch")
async def _(twin: Twin) -> None:
    # no version of SQLAlchemy wraps asyncpg's connect errors: see below
    driver = "psycopg_async" if twin.asynchronous else "psycopg"
    async with twin.engine(twin.url().set(drivername=f"postgresql+{driver}", database="nosuch")) as engine:
        await do(engine.connect())


@happens(sa.ConnectTimeout, "timeout")
async def _(twin: Twin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        driver = "psycopg_async" if twin.asynchronous else "psycopg"
        url = f"postgresql+{driver}://u@127.0.0.1:{silent.getsockname()[1]}/d?connect_timeout=2"
        async with twin.engine(url) as engine:
            await do(engine.connect())


@happens(sa.CircuitOpen, "orders", "circuit open")
async def _(twin: Twin) -> None:
    async with twin.engine(twin.url("127.0.0.1:1"), breaker=BreakerConfig(failure_threshold=1)) as engine:
        with pytest.raises((exc.OperationalError, OSError)):
            await do(engine.connect())
        await do(engine.connect())


@happens(sa.NotLeased, "orders")
async def _(twin: Twin) -> None:
    cluster = twin.cluster(twin.url(), [f"127.0.0.1:{twin.server.port}"], roles=False, name="orders")
    try:
        await do(cluster.release(object()))
    finally:
        await do(cluster.close())


@happens(exc.OperationalError, "orders", "on_leak='reclaim'")
async def _(twin: Twin) -> None:
    async with twin.engine() as engine:
        connection = await do(engine.connect())
        try:
            await do(connection.execute(text("select 1")))
            await twin.of_pool(engine.pool.poolkit.drain, 0)
            await twin.until(lambda: not engine.pool.poolkit.stats().size)
            await do(connection.commit())
        finally:
            await do(connection.close())


@happens(sa.LeaseOverdue, "orders", "leak_after=0.01")
async def _(twin: Twin) -> None:
    async with twin.engine(leak_after=0.01, on_leak="raise") as engine:
        connection = await do(engine.connect())
        await twin.until(lambda: engine.pool.poolkit.stats().leaks)
        await do(connection.close())


@happens(sa.WrongLoop, "orders", only="async")
async def _(twin: Twin) -> None:
    cluster = twin.cluster(twin.url(), [f"127.0.0.1:{twin.server.port}"], roles=False, name="orders")
    with other_loop() as elsewhere:
        elsewhere(cluster.release(elsewhere(cluster.acquire())))
        try:
            await cluster.acquire()
        finally:
            elsewhere(cluster.close())


@happens(sa.UsageError, "connect", "must return the connection")
async def _(twin: Twin) -> None:
    async with twin.engine() as engine:
        engine.pool._create_connection = lambda limit: None  # as a subclass of the pool may do
        await do(engine.connect())


@happens(ConfigError, "max_overflow=-2")
async def _(twin: Twin) -> None:
    twin.make(twin.url(), poolclass=twin.kind, max_overflow=-2)


@happens(NoServerAvailable, "orders")
async def _(twin: Twin) -> None:
    cluster = twin.cluster(
        twin.url(),
        ["127.0.0.1:1"],
        wait_for_node=0.05,
        eject_after=1,
        max_ejected_share=1.0,
        roles=False,
        name="orders",
    )
    try:
        for _ in range(3):
            try:
                await do(cluster.acquire())
            except NoServerAvailable:
                raise
            except (exc.OperationalError, OSError):
                pass
    finally:
        await do(cluster.close())


@pytest.mark.parametrize("driver", WAYS)
@SCENARIOS.walk()
def test_it_happens_and_is_both(
    row: Any, scenario: Any, words: Any, only: str, driver: str, postgres: PostgresServer
) -> None:
    twin = Twin(postgres, driver)
    if only == ("sync" if twin.asynchronous else "async"):
        pytest.skip(f"can only happen {only}")
    asyncio.run(walked(row, scenario, words, twin))


@pytest.fixture(params=WAYS)
def twin(request: pytest.FixtureRequest, postgres: PostgresServer) -> Twin:
    return Twin(postgres, request.param)


def test_a_connect_error_is_the_drivers_own_as_ever_and_poolkits(twin: Twin) -> None:
    async def main() -> None:
        async with twin.engine(twin.url("127.0.0.1:1")) as engine:
            with pytest.raises((exc.OperationalError, OSError)) as caught:
                await do(engine.connect())
            error: Any = caught.value
            assert isinstance(error, poolkit.ConnectFailed)
            if twin.driver == "asyncpg":  # which SQLAlchemy does not wrap
                assert isinstance(error, ConnectionRefusedError)
                assert error.errno
                assert type(error).__qualname__ == "ConnectionRefusedError"
            else:
                assert isinstance(error.orig, psycopg.OperationalError)
                assert isinstance(error.orig, poolkit.ConnectFailed)
                assert str(error).startswith("(psycopg.OperationalError) connection failed")
                assert error.code == "e3q8"
                assert not error.connection_invalidated
            assert type(pickle.loads(pickle.dumps(error))) is type(copy.copy(error)) is type(error)
            with pytest.raises((psycopg.OperationalError, OSError)) as raw:
                await do(engine.raw_connection())
            assert isinstance(raw.value, poolkit.ConnectFailed)
        url = twin.url().set(database="nosuch")
        async with twin.engine(url) as engine:
            with pytest.raises((exc.DBAPIError, asyncpg.InvalidCatalogNameError)) as caught:  # the latter before 2.1
                await do(engine.connect())
            assert isinstance(caught.value, poolkit.ConnectFailed)
            assert "nosuch" in str(caught.value)

    asyncio.run(main())


def test_handlers_of_the_user_see_the_error_and_may_replace_it(twin: Twin) -> None:
    if twin.driver == "asyncpg":
        pytest.skip("SQLAlchemy wraps no error of a connect")

    class Mine(Exception):
        pass

    async def main() -> None:
        async with twin.engine(twin.url("127.0.0.1:1")) as engine:
            seen: list[Any] = []
            target = engine.sync_engine if twin.asynchronous else engine

            @event.listens_for(target, "handle_error")
            def replace(context: Any) -> Any:
                seen.append(context.original_exception)
                return Mine("no")

            with pytest.raises(Mine):
                await do(engine.connect())
            assert isinstance(seen[0], psycopg.OperationalError)
            assert isinstance(seen[0], poolkit.ConnectFailed)

    asyncio.run(main())


def test_a_creator_that_raises_is_of_its_class_and_poolkits() -> None:
    def creator() -> Any:
        raise LookupError("no such secret")

    pool = sa.PoolkitPool(creator)
    with pytest.raises(LookupError, match="no such secret") as caught:
        pool.connect()
    assert isinstance(caught.value, poolkit.ConnectFailed)
    assert type(caught.value).__qualname__ == "LookupError"


@pytest.mark.parametrize("used", [True, False], ids=["used after it", "not used after it"])
def test_work_on_a_lease_that_is_reclaimed_is_not_lost_without_a_word(twin: Twin, used: bool) -> None:
    async def main() -> None:
        async with twin.engine(leak_after=60, on_leak="reclaim") as engine:
            with pytest.raises(exc.DBAPIError) as caught:
                if twin.asynchronous:
                    async with engine.begin() as connection:
                        await connection.execute(text("select 1"))
                        engine.pool.poolkit.reconfigure(leak_after=0.01)  # from now on: not during a statement
                        await twin.until(lambda: not engine.pool.poolkit.stats().size)
                        if used:
                            await connection.execute(text("select 1"))
                else:
                    with engine.begin() as connection:
                        connection.execute(text("select 1"))
                        engine.pool.poolkit.reconfigure(leak_after=0.01)  # from now on: not during a statement
                        await twin.until(lambda: not engine.pool.poolkit.stats().size)
                        if used:
                            connection.execute(text("select 1"))
            assert isinstance(caught.value, exc.OperationalError)
            assert isinstance(caught.value, poolkit.NotLeased)
            assert "'orders' closed this connection" in str(caught.value)
            await twin.until(lambda: not engine.pool.poolkit.stats().size)

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_connection_of_the_parent_process_is_refused(postgres: PostgresServer) -> None:
    engine = create_engine(postgres.sqlalchemy_url("psycopg"), poolclass=sa.PoolkitPool)
    connection = engine.connect()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = b"nothing"
        try:
            connection.connection.cursor()
        except sa.NotLeased as error:
            told = type(error).__name__.encode()
        finally:
            os.write(write, told)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"NotLeased"
    os.close(read)
    os.close(write)
    connection.close()
    engine.dispose()
