"""Reported complaints about asyncpg's own pool: each happens there, and does not happen with poolkit's.

``docs/adapters/asyncpg.md`` lists them. A scenario returns whether the complaint comes true.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.asyncpg import create_pool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

MOMENT = 0.05


class Pools:
    """Pools of one kind, with one connection."""

    def __init__(self, ours: bool, server: PostgresServer) -> None:
        self.ours = ours
        self.server = server
        self.limit = PATIENCE if ours else MOMENT  # do not wait for what never ends

    @asynccontextmanager
    async def pool(self, dsn: str | None = None, **settings: Any) -> AsyncIterator[Any]:
        """``settings``: poolkit's, which asyncpg does not have."""
        make: Any = create_pool if self.ours else asyncpg.create_pool
        pool = await make(dsn or self.server.url, min_size=0, max_size=1, **(settings if self.ours else {}))
        try:
            yield pool
        finally:
            pool.terminate()

    async def endless(self, work: Awaitable[Any]) -> bool:
        """Return whether something does not end."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=self.limit)
        ended = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return not ended


async def drop_one(pool: Any) -> None:
    """Take a connection and drop it."""
    connection = await pool.acquire()
    await connection.fetchval("select 1")
    del connection
    gc.collect()


async def loses_a_dropped_connection(pools: Pools) -> bool:
    """MagicStack/asyncpg#290: the place of a connection that nobody has any more is never free again."""
    async with pools.pool() as pool:
        await drop_one(pool)
        return await pools.endless(pool.fetchval("select 1"))


async def cannot_be_closed(pools: Pools) -> bool:
    """MagicStack/asyncpg#299, encode/databases#477: then ``close()`` does not end either."""
    async with pools.pool() as pool:
        await drop_one(pool)
        return await pools.endless(pool.close())


async def waits_without_a_limit(pools: Pools) -> bool:
    """hushh-labs/hushh-research#5871: in a full pool a caller without a timeout waits for ever."""
    async with pools.pool(acquire_timeout=MOMENT) as pool:
        held = await pool.acquire(timeout=PATIENCE)
        try:
            return await pools.endless(pool.fetchval("select 1"))
        finally:
            await pool.release(held)


async def hangs_in_release(pools: Pools) -> bool:
    """MagicStack/asyncpg#431: the release after a cancelled statement waits for the server's confirmation for ever."""
    proxy = FaultProxy("127.0.0.1", pools.server.port).start()
    try:
        dsn = pools.server.url.replace(f":{pools.server.port}", f":{proxy.port}")
        async with pools.pool(dsn, check_timeout=MOMENT) as pool:
            connection = await pool.acquire()
            statement = asyncio.ensure_future(connection.fetchval("select pg_sleep(600)"))
            await until_running(pools.server, connection.get_server_pid())
            proxy.swallow = True  # as a firewall that drops cancel requests
            statement.cancel()
            await asyncio.gather(statement, return_exceptions=True)
            try:
                return await pools.endless(pool.release(connection))
            finally:
                proxy.swallow = False
    finally:
        proxy.stop()


async def until_running(server: PostgresServer, pid: int) -> None:
    """Wait until the server executes the statement of a session."""
    admin = await asyncpg.connect(server.url)
    try:
        query = "select count(*) from pg_stat_activity where pid = $1 and state = 'active' and query like '%pg_sleep%'"
        while not await admin.fetchval(query, pid):
            await asyncio.sleep(0.01)
    finally:
        await admin.close()


async def hands_on_temporary_tables(pools: Pools) -> bool:
    """MagicStack/asyncpg#1293: the next user of a connection sees the temporary tables of the last one."""
    async with pools.pool() as pool:
        async with pool.acquire() as connection:
            await connection.execute("create temporary table left_over (id int)")
        return bool(await pool.fetchval("select to_regclass('pg_temp.left_over') is not null"))


COMPLAINTS: tuple[Callable[[Pools], Awaitable[bool]], ...] = (
    loses_a_dropped_connection,
    cannot_be_closed,
    waits_without_a_limit,
    hangs_in_release,
    hands_on_temporary_tables,
)


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda one: one.__name__)
async def test_it_happens_with_the_own_pool_and_not_with_poolkit(postgres: PostgresServer, complaint: Any) -> None:
    assert await complaint(Pools(False, postgres))
    assert not await complaint(Pools(True, postgres))
