"""A connection that is returned after the first phase of a two-phase commit is of no use to anybody else."""

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
