"""A connection that psycopg counts as inside a transaction is of no use to anybody else, even if the server is idle.

It was returned after the first phase of a two-phase commit, or in a ``transaction()`` block whose transaction was ended
by a statement.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.dbapi import PooledDatabase

from .support import Twin, do, pid, within


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"max_prepared_transactions": "10"}) as server:
        yield server


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("end", ["nothing", "prepare"])
async def test_the_next_user_gets_another_connection(server: PostgresServer, asynchronous: bool, end: str) -> None:
    twin = Twin(server, asynchronous=asynchronous)
    async with within(twin.pool(min_size=1, max_size=1)) as pool:
        connection = await do(pool.getconn())
        first, xid = pid(connection), connection.xid(1, f"{end} {asynchronous}", "pool")
        await do(connection.tpc_begin(xid))
        if end == "prepare":
            await do(connection.tpc_prepare())
        await do(pool.putconn(connection))
        async with within(pool.connection()) as other:
            assert pid(other) != first
            await do(other.execute("select 1"))
            await do(other.commit())
            left = [one.gtrid for one in await do(other.tpc_recover())]
            assert (xid.gtrid in left) == (end == "prepare")
            await do(other.rollback())


def test_the_next_user_of_the_dbapi_pool_gets_another_connection(server: PostgresServer) -> None:
    with PooledDatabase(psycopg, server.url, max_size=1) as database:
        connection = database.connect()
        first = connection.info.backend_pid
        connection.tpc_begin(connection.xid(1, "dbapi", "pool"))
        connection.tpc_prepare()
        connection.close()
        with database.connect() as other:
            assert other.info.backend_pid != first
            other.execute("select 1")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("autocommit", [False, True])
async def test_a_transaction_block_that_was_left_open_does_not_reach_the_next_user(
    server: PostgresServer, asynchronous: bool, reset: bool, autocommit: bool
) -> None:
    twin = Twin(server, asynchronous=asynchronous)

    async def nothing(connection: object) -> None:
        pass

    callback = twin.callback(nothing) if reset else None
    pool = twin.pool(min_size=1, max_size=1, reset=callback, kwargs={"autocommit": autocommit})
    async with within(pool):
        connection = await do(pool.getconn())
        block = within(connection.transaction())  # kept, as by a generator that was not closed
        await block.__aenter__()
        await do(connection.execute("commit"))
        await do(pool.putconn(connection))
        async with within(pool.connection()) as other:
            async with within(other.transaction()):
                await do(other.execute("select 1"))
            await do(other.commit())
        assert pool.get_stats()["returns_bad"] == 1
        del block
