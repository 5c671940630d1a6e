"""The object that ``connection()`` returns: one block at a time, several one after the other, and a decorator."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

import poolkit
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import AsyncPoolkitCluster, PoolkitCluster

from .support import Twin, do, pid, within


def cluster_of(postgres: PostgresServer, *, asynchronous: bool) -> Any:
    kind: Any = AsyncPoolkitCluster if asynchronous else PoolkitCluster
    return kind([f"{postgres.host}:{postgres.port}"], postgres.url, max_size=3, roles=False)


@pytest.mark.parametrize("clustered", [False, True])
async def test_a_block_inside_itself_is_refused_and_the_outer_one_is_committed(twin: Twin, clustered: bool) -> None:
    where = (
        cluster_of(twin.postgres, asynchronous=twin.asynchronous)
        if clustered
        else twin.pool(min_size=0, max_size=3, open=False)
    )
    async with within(where) as pool:
        async with within(pool.connection()) as connection:
            await do(connection.execute("create table if not exists block_objects (number int)"))
            await do(connection.execute("truncate block_objects"))
        shared = pool.connection()
        async with within(shared) as connection:
            await do(connection.execute("insert into block_objects values (1)"))
            with pytest.raises(poolkit.UsageError, match="already in use by another") as caught:
                async with within(shared):
                    pytest.fail("entered twice")
            assert isinstance(caught.value, psycopg.InterfaceError)
        async with within(shared) as connection:  # one after the other they work
            rows = await do((await do(connection.execute("select number from block_objects"))).fetchall())
            assert rows == [(1,)]


async def test_a_block_whose_connection_is_refused_may_be_entered_again(twin: Twin) -> None:
    async with within(twin.pool(min_size=0, max_size=1)) as pool:
        held, shared = await do(pool.getconn()), pool.connection(timeout=0)
        with pytest.raises(poolkit.AcquireTimeout):
            async with within(shared):
                pytest.fail("there is no connection")
        await do(pool.putconn(held))
        async with within(shared) as connection:
            assert connection is held


async def test_each_call_of_a_decorated_function_has_its_own_block(twin: Twin) -> None:
    """As with psycopg_pool. A call inside another one takes a second connection."""
    async with within(twin.pool(min_size=2, max_size=2)) as pool:
        in_use: list[int] = []

        if twin.asynchronous:

            @pool.connection()
            async def work(depth: int) -> str:
                in_use.append(pool.poolkit.stats().in_use)
                return await work(depth - 1) if depth else "done"
        else:

            @pool.connection()
            def work(depth: int) -> str:
                in_use.append(pool.poolkit.stats().in_use)
                return work(depth - 1) if depth else "done"

        for _ in range(2):
            assert await do(work(1)) == "done"
        assert in_use == [1, 2, 1, 2]
        async with within(pool.connection()) as connection:
            assert pid(connection)
