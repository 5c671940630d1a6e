"""A statement is cancelled while its server no longer answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE


async def test_a_server_that_has_not_answered_a_cancel_request_is_not_asked_again(
    fault_proxy: Callable[[str, int], FaultProxy], postgres: PostgresServer
) -> None:
    """The caller goes on after one request, and its connection is closed."""
    proxy = fault_proxy(postgres.host, postgres.port)
    conninfo = make_conninfo(postgres.url, port=proxy.port)
    async with AsyncPoolkitConnectionPool(conninfo, min_size=0, max_size=1, open=False) as pool:
        used: list[psycopg.AsyncConnection] = []

        async def work() -> None:
            async with pool.connection() as connection:
                used.append(connection)
                await connection.execute("select pg_sleep(3600)")

        task = asyncio.ensure_future(work())
        while not used or used[0].pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            await asyncio.sleep(0.001)
        used.clear()
        accepted = proxy.accepted
        proxy.mode = "silent"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)
        assert proxy.accepted == accepted + 1
        assert pool.poolkit.stats().idle == 0
        proxy.mode = "pass"
        async with pool.connection(timeout=PATIENCE) as connection:  # its slot is free
            assert await (await connection.execute("select 2")).fetchone() == (2,)


async def test_a_server_that_answers_a_cancel_request_keeps_its_connection(postgres: PostgresServer) -> None:
    async with AsyncPoolkitConnectionPool(postgres.url, min_size=0, max_size=1, open=False) as pool:
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
            task = asyncio.ensure_future(connection.execute("select pg_sleep(3600)"))
            with postgres.connect() as admin:  # a request before the statement stops nothing
                running = "select 1 from pg_stat_activity where pid = %s and wait_event = 'PgSleep'"
                while admin.execute(running, (pid,)).fetchone() is None:
                    await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, PATIENCE)
            await connection.rollback()
        async with pool.connection() as connection:
            assert connection.info.backend_pid == pid


async def test_a_stream_whose_rows_have_all_arrived_keeps_its_connection(postgres: PostgresServer) -> None:
    async with AsyncPoolkitConnectionPool(postgres.url, min_size=0, max_size=1, open=False) as pool:
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
            stream = connection.cursor().stream("select generate_series(1, 3)")
            async for row in stream:
                assert row == (1,)
                break
            await stream.aclose()  # type: ignore[attr-defined]  # psycopg's is a generator
        async with pool.connection() as connection:
            assert connection.info.backend_pid == pid
