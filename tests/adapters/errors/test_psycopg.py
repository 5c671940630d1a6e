"""Each error of the psycopg adapter happens, on a real server, and is poolkit's and psycopg's."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import psycopg
import psycopg_pool
import pytest

import poolkit
from poolkit import BreakerConfig, ConfigError
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import (
    AcquireTimeout,
    AsyncPoolkitCluster,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    InvalidConninfo,
    LeaseCut,
    LeaseOverdue,
    NoServerAvailable,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolkitCluster,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
)
from poolkit_adapters.psycopg._cluster import CLUSTER_ERRORS
from tests.adapters.errors.walk import Scenarios, do, other_loop, walked
from tests.adapters.psycopg.support import Twin, within

pytestmark = pytest.mark.filterwarnings("ignore:.*opened by its constructor:RuntimeWarning")
SCENARIOS: Scenarios[Twin] = Scenarios(CLUSTER_ERRORS)
happens = SCENARIOS.happens
NOBODY = "host=127.0.0.1 port=1"


@happens(AcquireTimeout, "orders", "in use 1/1")
async def _(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, max_size=1, name="orders")) as pool, within(pool.connection()):
        await do(pool.getconn(0.01))


@happens(ServerUnavailable, "orders", "Connection refused")
async def _(twin: Twin) -> None:
    async with within(twin.pool(NOBODY, min_size=0, max_size=1, name="orders")) as pool:
        await do(pool.getconn(0.3))


@happens(ConnectFailed, "orders", "nosuch")
async def _(twin: Twin) -> None:
    pool = twin.pool(kwargs={"dbname": "nosuch"}, min_size=0, max_size=1, name="orders")
    async with within(pool):
        await do(pool.getconn(60))


@happens(ConnectTimeout, "orders")
async def _(twin: Twin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"host=127.0.0.1 port={silent.getsockname()[1]} connect_timeout=2"
        async with within(twin.null(where, name="orders")) as pool:  # a null pool connects in its caller
            await do(pool.getconn(60))


@happens(CircuitOpen, "orders", "circuit open")
async def _(twin: Twin) -> None:
    pool = twin.pool(NOBODY, min_size=0, max_size=1, name="orders", breaker=BreakerConfig(failure_threshold=1))
    async with within(pool):
        with pytest.raises(psycopg_pool.PoolTimeout):
            await do(pool.getconn(0.3))
        await do(pool.getconn(60))


@happens(PoolBusy, "orders", "max_waiting=0")
async def _(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, max_size=1, name="orders")) as pool, within(pool.connection()):
        pool.poolkit.reconfigure(max_waiting=0)
        await do(pool.getconn(60))


@happens(PoolSuspended, "orders", "suspended")
async def _(twin: Twin) -> None:
    async with within(twin.pool(min_size=0, max_size=1, name="orders")) as pool:
        pool.poolkit.suspend(fail_fast=True)
        await do(pool.getconn(60))


@happens(PoolClosed, "orders", "already closed")
async def _(twin: Twin) -> None:
    async with within(twin.pool(min_size=0, max_size=1, name="orders")) as pool:
        pass
    await do(pool.getconn(60))


@happens(NotLeased, "orders")
async def _(twin: Twin) -> None:
    async with within(twin.pool(min_size=0, max_size=1, name="orders")) as pool:
        connection = await do(pool.getconn())
        await do(pool.putconn(connection))
        await do(pool.putconn(connection))


@happens(LeaseCut, "orders", "on_leak='reclaim'")
async def _(twin: Twin) -> None:
    async with (
        within(twin.pool(min_size=0, max_size=1, name="orders")) as pool,
        within(pool.connection()) as connection,
    ):
        await do(connection.execute("select 1"))
        await do(pool.poolkit.drain(0))


@happens(LeaseOverdue, "leak_after=0.01")
async def _(twin: Twin) -> None:
    pool = twin.pool(min_size=0, max_size=1, name="orders", leak_after=0.01, on_leak="raise")
    async with within(pool):
        connection = await do(pool.getconn())
        await twin.until(lambda: pool.poolkit.stats().leaks)
        await do(pool.putconn(connection))


@happens(UsageError, "event loop", only="async")
async def _(twin: Twin) -> None:
    await asyncio.to_thread(twin.pool, min_size=0, max_size=1, open=True)


@happens(InvalidConninfo, "conninfo")
async def _(twin: Twin) -> None:
    twin.pool("no such=thing")


@happens(ConfigError, "max_size=-1")
async def _(twin: Twin) -> None:
    twin.pool(min_size=0, max_size=-1)


@happens(NoServerAvailable, "orders")
async def _(twin: Twin) -> None:
    kind: Any = AsyncPoolkitCluster if twin.asynchronous else PoolkitCluster
    cluster = kind(["127.0.0.1:1"], max_size=1, wait_for_node=0.05, eject_after=1, roles=False, name="orders")
    async with within(cluster):
        for _ in range(3):
            try:
                async with within(cluster.connection(timeout=0.3)):
                    pass
            except NoServerAvailable:
                raise
            except psycopg_pool.PoolTimeout:
                pass


@happens(WrongLoop, "orders", only="async")
async def _(twin: Twin) -> None:
    with other_loop() as elsewhere:
        cluster: Any = AsyncPoolkitCluster(
            [f"127.0.0.1:{twin.postgres.port}"], twin.postgres.url, roles=False, name="orders"
        )
        elsewhere(cluster.release(elsewhere(cluster.acquire())))
        try:
            await cluster.acquire()
        finally:
            elsewhere(cluster.close())


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@SCENARIOS.walk()
def test_it_happens_and_is_both(
    row: Any, scenario: Any, words: Any, only: str, asynchronous: bool, postgres: PostgresServer
) -> None:
    if only == ("sync" if asynchronous else "async"):
        pytest.skip(f"can only happen {only}")
    asyncio.run(walked(row, scenario, words, Twin(postgres, asynchronous=asynchronous)))


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def twin(request: pytest.FixtureRequest, postgres: PostgresServer) -> Twin:
    return Twin(postgres, asynchronous=request.param)


def test_a_null_pools_connect_error_is_psycopgs_own_and_poolkits(twin: Twin) -> None:
    async def main() -> None:
        async with within(twin.null(NOBODY)) as pool:
            with pytest.raises(psycopg.OperationalError, match="refused") as caught:
                await do(pool.getconn())
            error = caught.value
            assert type(error).__qualname__ == "OperationalError"
            assert isinstance(error, poolkit.ConnectFailed)
            assert isinstance(error.__cause__, psycopg.OperationalError)
            assert error.sqlstate is None
            assert error.pgconn is not None
        async with within(twin.null(kwargs={"dbname": "nosuch"})) as pool:
            with pytest.raises(poolkit.ConnectFailed) as caught:
                await do(pool.getconn())
            assert isinstance(caught.value, psycopg.OperationalError)

    asyncio.run(main())


@pytest.mark.parametrize("used", [True, False], ids=["used after it", "not used after it"])
def test_a_lease_that_is_reclaimed_ends_in_an_error_of_psycopg(twin: Twin, used: bool) -> None:
    async def main() -> None:
        pool = twin.pool(min_size=0, max_size=1, name="orders", leak_after=0.01, on_leak="reclaim")
        async with within(pool):
            with pytest.raises(psycopg.OperationalError) as caught:
                async with within(pool.connection()) as connection:
                    await twin.until(lambda: connection.closed)
                    if used:
                        await do(connection.execute("select 1"))
            assert isinstance(caught.value, LeaseCut)
            told = [str(caught.value), *getattr(caught.value, "__notes__", ())]
            assert any("'orders' closed this connection" in text for text in told)
            connection = await do(pool.getconn())
            await twin.until(lambda: connection.closed)
            await do(pool.putconn(connection))  # no error: nothing was to be committed
            with pytest.raises(NotLeased):
                await do(pool.putconn(connection))
            with pytest.raises(KeyError):  # the error of the block itself stays
                async with within(pool.connection()) as connection:
                    await twin.until(lambda: connection.closed)
                    raise KeyError("mine")
            assert pool.poolkit.stats().in_use == 0

    asyncio.run(main())


def test_a_lease_that_lasted_too_long_does_not_hide_the_error_of_its_block(twin: Twin) -> None:
    async def main() -> None:
        async with within(twin.pool(min_size=0, max_size=1, leak_after=0.01, on_leak="raise")) as pool:
            with pytest.raises(KeyError):
                async with within(pool.connection()):
                    await twin.until(lambda: pool.poolkit.stats().leaks)
                    raise KeyError("mine")
            with pytest.raises(LeaseOverdue):
                async with within(pool.connection()):
                    await twin.until(lambda: pool.poolkit.stats().leaks == 2)
            with pytest.raises(LeaseOverdue):  # also if the connection must be reset first
                async with within(pool.connection()) as connection:
                    await do(connection.execute("select 1"))
                    pool._reset = twin.callback(nothing)
                    await twin.until(lambda: pool.poolkit.stats().leaks == 3)
            assert pool.poolkit.stats().idle == 1

    async def nothing(_: Any) -> None:
        """The reset."""

    asyncio.run(main())


def test_errors_of_a_cluster_itself_are_both(twin: Twin) -> None:
    kind: Any = AsyncPoolkitCluster if twin.asynchronous else PoolkitCluster

    async def main() -> None:
        cluster = kind([f"127.0.0.1:{twin.postgres.port}"], twin.postgres.url, roles=False, name="orders")
        with pytest.raises(psycopg.InterfaceError, match="orders") as foreign:
            await do(cluster.release(object()))
        assert isinstance(foreign.value, poolkit.NotLeased)
        await do(cluster.close())
        with pytest.raises(psycopg_pool.PoolClosed, match="orders"):
            async with within(cluster.connection()):
                pass

    asyncio.run(main())
