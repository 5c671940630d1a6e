"""Each error of the asyncpg adapter happens, on a real server, and is poolkit's and asyncpg's."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import asyncpg
import pytest

import poolkit
from poolkit import BackoffConfig, BreakerConfig, ConfigError
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.asyncpg import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    LeaseOverdue,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
    create_pool,
)
from poolkit_adapters.asyncpg._errors import ERRORS
from tests.adapters.errors.walk import Scenarios, other_loop, walked
from tests.support.waiting import until_async

SCENARIOS: Scenarios[Any] = Scenarios(ERRORS)
happens = SCENARIOS.happens
NOBODY = "postgresql://nobody@127.0.0.1:1/nothing"


class Make:
    """Creates pools of one connection with the name "orders"."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, dsn: str | None = None, **arguments: Any) -> Any:
        given = {"min_size": 0, "max_size": 1, "name": "orders", **arguments}
        return create_pool(self.url if dsn is None else dsn, **given)


@happens(AcquireTimeout, "orders", "in use 1/1")
async def _(make: Make) -> None:
    async with make() as pool, pool.acquire():
        await pool.acquire(timeout=0.01)


@happens(ServerUnavailable, "orders", "Connect call failed")
async def _(make: Make) -> None:
    async with make(NOBODY, backoff=BackoffConfig(base=600, cap=600)) as pool:
        with pytest.raises(ConnectionRefusedError):
            await pool.acquire(timeout=60)
        await pool.acquire(timeout=0.01)  # waits for the next attempt


@happens(ConnectFailed)
async def _(make: Make) -> None:
    async with make(NOBODY) as pool:
        await pool.acquire(timeout=60)


@happens(ConnectTimeout, "orders")
async def _(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d?sslmode=disable"
        async with make(where, connect_timeout=0.2) as pool:
            await pool.acquire(timeout=60)


@happens(CircuitOpen, "orders", "circuit open")
async def _(make: Make) -> None:
    async with make(NOBODY, breaker=BreakerConfig(failure_threshold=1)) as pool:
        with pytest.raises(ConnectionRefusedError):
            await pool.acquire(timeout=60)
        await pool.acquire(timeout=60)


@happens(PoolBusy, "orders", "max_waiting=0")
async def _(make: Make) -> None:
    async with make(max_waiting=0) as pool, pool.acquire():
        await pool.acquire()


@happens(PoolSuspended, "orders", "suspended")
async def _(make: Make) -> None:
    async with make() as pool:
        pool.poolkit.suspend(fail_fast=True)
        await pool.acquire()


@happens(PoolClosed, "pool is closed")
async def _(make: Make) -> None:
    async with make() as pool:
        pass
    await pool.acquire()


@happens(NotLeased, "not a member of this pool")
async def _(make: Make) -> None:
    async with make() as pool, make() as other, other.acquire() as connection:
        await pool.release(connection)


@happens(LeaseOverdue, "leak_after=0.01")
async def _(make: Make) -> None:
    async with make(leak_after=0.01, on_leak="raise") as pool, pool.acquire():
        await until_async(lambda: pool.poolkit.stats().leaks, "the lease is reported")


@happens(WrongLoop, "orders")
async def _(make: Make) -> None:
    pool = make()

    async def use() -> None:
        await pool
        await pool.fetchval("select 1")

    with other_loop() as elsewhere:
        elsewhere(use())
        try:
            await pool.acquire()
        finally:
            elsewhere(pool.close())


@happens(UsageError, "not initialized")
async def _(make: Make) -> None:
    await make().acquire()


@happens(ConfigError, "max_size=-1")
async def _(make: Make) -> None:
    make(max_size=-1)


@SCENARIOS.walk()
def test_it_happens_and_is_both(row: Any, scenario: Any, words: Any, only: str, postgres: PostgresServer) -> None:
    asyncio.run(walked(row, scenario, words, Make(postgres.url)))


def test_an_error_of_a_connect_keeps_its_class(postgres: PostgresServer) -> None:
    make = Make(postgres.url)

    async def main() -> None:
        async with make(database="nosuch") as pool:
            for _ in range(2):
                with pytest.raises(asyncpg.InvalidCatalogNameError, match="nosuch") as caught:
                    await pool.acquire()
                assert isinstance(caught.value, poolkit.ConnectFailed)
                assert caught.value.sqlstate == "3D000"
        with pytest.raises(asyncpg.InvalidPasswordError) as wrong:
            await make(password="wrong", min_size=1)
        assert isinstance(wrong.value, poolkit.ConnectFailed)
        async with make(NOBODY) as pool:
            errors = await asyncio.gather(*(pool.acquire().__aenter__() for _ in range(3)), return_exceptions=True)
        assert [isinstance(error, ConnectionRefusedError) for error in errors] == [True] * 3
        assert len({id(error) for error in errors}) == 3

    asyncio.run(main())
