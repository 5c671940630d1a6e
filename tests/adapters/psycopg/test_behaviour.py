"""What happens to connections: transactions, callbacks, notifications, statistics, null pools."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus

import poolkit

from .support import Admin, Twin, do, pid, within

VERSION = tuple(int(part) for part in psycopg.__version__.split(".")[:3])


async def one(connection: Any, statement: str) -> Any:
    return (await do((await do(connection.execute(statement))).fetchone()))[0]


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, logger="psycopg.pool")
    return lambda: [record.message for record in caplog.records if record.name == "psycopg.pool"]


async def test_the_block_commits_and_rolls_back(twin: Twin, application: str) -> None:
    table = application.replace("-", "_")
    async with within(twin.pool(min_size=1)) as pool:
        async with within(pool.connection()) as connection:
            await do(connection.execute(f"create table {table} (x int)"))
            first = pid(connection)
        with pytest.raises(ZeroDivisionError):
            async with within(pool.connection()) as connection:
                await do(connection.execute(f"insert into {table} values (1)"))
                raise ZeroDivisionError
        async with within(pool.connection()) as connection:
            assert await one(connection, f"select count(*) from {table}") == 0
            assert pid(connection) == first
            await do(connection.execute(f"drop table {table}"))


@pytest.mark.parametrize(("statement", "status"), [("select 1", "INTRANS"), ("nonsense", "INERROR")])
async def test_an_open_transaction_is_rolled_back_with_a_warning(
    twin: Twin, warned: Callable[[], list[str]], statement: str, status: str
) -> None:
    async with within(twin.pool(min_size=1)) as pool:
        connection = await do(pool.getconn())
        first = pid(connection)
        if status == "INERROR":
            with pytest.raises(psycopg.ProgrammingError):
                await do(connection.execute(statement))
        else:
            await do(connection.execute(statement))
        await do(pool.putconn(connection))
        async with within(pool.connection()) as connection:
            assert pid(connection) == first
            assert connection.info.transaction_status == TransactionStatus.IDLE
    assert len(warned()) == 1
    assert status in warned()[0]


async def test_a_connection_returned_in_mid_statement_is_closed_and_the_statement_cancelled(
    twin: Twin, warned: Callable[[], list[str]], admin: Admin, application: str, named: dict[str, Any]
) -> None:
    async with within(twin.pool(min_size=1, kwargs=named)) as pool:
        connection = await do(pool.getconn())
        connection.pgconn.send_query(b"select pg_sleep(600)")
        first = pid(connection)
        await twin.until(lambda: admin.sessions(application, active=True))
        await do(pool.putconn(connection))
        async with within(pool.connection()) as connection:
            assert pid(connection) != first
            await twin.until(lambda: first not in admin.sessions(application))  # long before the statement would end
    assert "ACTIVE" in warned()[0]
    assert "BAD" in warned()[1]
    assert len(warned()) == 2


async def test_a_pipeline_left_open_does_not_reach_the_next_user(twin: Twin) -> None:
    async with within(twin.pool(min_size=1)) as pool:
        connection = await do(pool.getconn())
        connection.pgconn.enter_pipeline_mode()
        first = pid(connection)
        await do(pool.putconn(connection))
        async with within(pool.connection()) as connection:
            assert await one(connection, "select 1") == 1
            assert pid(connection) != first


async def test_configure_runs_once_for_each_connection(twin: Twin) -> None:
    calls = []

    async def configure(connection: Any) -> None:
        calls.append(pid(connection))
        await do(connection.execute("set application_name to 'configured'"))
        await do(connection.commit())

    async with within(twin.pool(min_size=1, configure=twin.callback(configure))) as pool:
        for _ in range(2):
            async with within(pool.connection()) as connection:
                assert await one(connection, "show application_name") == "configured"
        assert calls == [pid(connection)]


async def test_configure_that_leaves_a_transaction_open_is_refused(twin: Twin, warned: Callable[[], list[str]]) -> None:
    async def configure(connection: Any) -> None:
        await do(connection.execute("select 1"))

    async with within(twin.pool(min_size=1, configure=twin.callback(configure))) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout, match="INTRANS"):
            await do(pool.wait(2.0))
    assert "INTRANS" in warned()[0]


async def test_reset_runs_after_each_use_and_a_bad_one_costs_the_connection(
    twin: Twin, warned: Callable[[], list[str]]
) -> None:
    fail = False

    async def reset(connection: Any) -> None:
        if fail:
            await do(connection.execute("nonsense"))
        await do(connection.execute("reset all"))
        await do(connection.commit())

    async with within(twin.pool(min_size=1, reset=twin.callback(reset))) as pool:
        async with within(pool.connection()) as connection:
            first = pid(connection)
            await do(connection.execute("set timezone to '+2:00'"))
        async with within(pool.connection()) as connection:
            assert await one(connection, "show timezone") != "+2:00"
            assert pid(connection) == first
            fail = True
        async with within(pool.connection()) as connection:
            assert pid(connection) != first
            fail = False
    assert "nonsense" in warned()[0]


async def test_a_check_is_asked_at_every_getconn_and_of_new_connections(twin: Twin) -> None:
    asked = []

    async def check(connection: Any) -> None:
        asked.append(pid(connection))

    async with within(twin.pool(min_size=0, max_size=1, check=twin.callback(check))) as pool:
        for _ in range(3):
            async with within(pool.connection()):
                pass
    assert len(asked) == 3


async def test_a_check_that_always_fails_ends_in_a_timeout(twin: Twin) -> None:
    async def check(connection: Any) -> None:
        raise RuntimeError("not good enough")

    for pool in (twin.pool(min_size=1, timeout=0.5, check=twin.callback(check)),
                 twin.null(timeout=0.5, check=twin.callback(check))):  # fmt: skip
        async with within(pool):
            with pytest.raises(psycopg_pool.PoolTimeout):
                await do(pool.getconn())


@pytest.mark.skipif(VERSION < (3, 2, 4), reason="psycopg itself drops what arrives outside of notifies()")
async def test_a_notification_does_not_count_as_a_dead_connection_nor_get_lost(twin: Twin, admin: Admin) -> None:
    async with within(twin.pool(min_size=1, check_after_idle=0)) as pool:
        async with within(pool.connection()) as connection:
            first = pid(connection)
            await do(connection.execute("listen news"))
        admin.connection.execute("notify news, 'hello'")
        async with within(pool.connection()) as connection:
            assert pid(connection) == first
            await do(connection.execute("select 1"))
            if twin.asynchronous:
                notes = [note.payload async for note in connection.notifies(timeout=0.5, stop_after=1)]
            else:
                notes = [note.payload for note in connection.notifies(timeout=0.5, stop_after=1)]
        assert notes == ["hello"]


async def test_connections_closed_by_the_server_while_idle_are_skipped(twin: Twin, admin: Admin) -> None:
    async with within(twin.pool(min_size=3, check_after_idle=0)) as pool:
        await do(pool.wait())
        pids = set()
        async with within(pool.connection()) as a, within(pool.connection()) as b, within(pool.connection()) as c:
            pids = {pid(a), pid(b), pid(c)}
        admin.kill(*pids)
        for _ in range(3):
            async with within(pool.connection(timeout=5)) as connection:
                assert pid(connection) not in pids
        assert pool.get_stats()["connections_lost"] >= 1


async def test_an_interrupted_check_costs_one_connection_at_most(twin: Twin, admin: Admin) -> None:
    """The interruption (Ctrl-C, a time limit) strikes in the last of three checks: while psycopg calls a handler."""

    class Interruption(BaseException):
        pass

    def interrupt(notification: Any) -> None:
        raise Interruption

    arguments: dict[str, Any] = {"order": "lifo", "check_after_idle": None, "kwargs": {"autocommit": True}}
    async with within(twin.pool(min_size=3, max_size=3, **arguments)) as pool:
        await do(pool.wait())
        connections = [await do(pool.getconn()) for _ in range(3)]
        connections[0].add_notify_handler(interrupt)
        await do(connections[0].execute("listen interrupted_check"))
        for connection in connections:  # check() begins with the last one
            await do(pool.putconn(connection))
        admin.connection.execute("notify interrupted_check")
        with pytest.raises(Interruption):
            await do(pool.check())
        await twin.until(lambda: pool.get_stats()["pool_available"] == 3)


@pytest.mark.parametrize("order", ["fifo", "lifo"])
async def test_a_check_counts_as_no_request(twin: Twin, admin: Admin, order: str) -> None:
    """As in psycopg_pool: users look at these numbers to see how often and how long they use connections."""
    arguments: dict[str, Any] = {"order": order, "check_after_idle": None, "kwargs": {"autocommit": True}}
    async with within(twin.pool(min_size=2, max_size=2, **arguments)) as pool:
        await do(pool.wait())
        connections = [await do(pool.getconn()) for _ in range(2)]
        for connection in connections:
            connection.add_notify_handler(lambda _: time.sleep(0.2))  # psycopg calls it in the check
            await do(connection.execute("listen slow_check"))
        sockets = [connection.fileno() for connection in connections]
        for connection in connections:
            await do(pool.putconn(connection))
        admin.connection.execute("notify slow_check")
        await twin.until(lambda: len(select.select(sockets, [], [], 0)[0]) == 2)
        before, begun = pool.get_stats(), time.monotonic()
        await do(pool.check())
        after, took = pool.get_stats(), time.monotonic() - begun
        assert took >= 0.4
        assert after["requests_num"] == before["requests_num"] == 2
        assert after["usage_ms"] - before["usage_ms"] < took * 1000 / 2


async def test_drain_replaces_idle_ones_now_and_the_others_on_return(twin: Twin) -> None:
    async with within(twin.pool(min_size=2)) as pool:
        await do(pool.wait())
        async with within(pool.connection()) as out, within(pool.connection()) as idle:
            old = {pid(out), pid(idle)}
        connection = await do(pool.getconn())
        await do(pool.drain())
        assert await one(connection, "select 1") == 1
        await do(connection.rollback())
        await do(pool.putconn(connection))
        await do(pool.wait())
        async with within(pool.connection()) as a, within(pool.connection()) as b:
            assert not {pid(a), pid(b)} & old


async def test_uniform_use_by_default_and_the_last_used_with_lifo(twin: Twin) -> None:
    async def used(pool: Any) -> list[int]:
        pids = []
        for _ in range(8):
            async with within(pool.connection()) as connection:
                pids.append(pid(connection))
        return pids

    async with within(twin.pool(min_size=4)) as pool:
        await do(pool.wait())
        pids = await used(pool)
        assert len(set(pids)) == 4
        assert pids[:4] == pids[4:]
    async with within(twin.pool(min_size=4, order="lifo")) as pool:
        await do(pool.wait())
        assert len(set(await used(pool))) == 1


async def test_statistics_have_the_stock_names(twin: Twin) -> None:
    async with within(twin.pool(min_size=2, max_size=3)) as pool:
        await do(pool.wait())
        async with within(pool.connection()):
            stats = pool.get_stats()
        assert {k: stats[k] for k in ("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting")} == {
            "pool_min": 2, "pool_max": 3, "pool_size": 2, "pool_available": 1, "requests_waiting": 0,
        }  # fmt: skip
        assert stats["connections_num"] == 2
        assert stats["requests_num"] == 1
        assert all(isinstance(value, int) for value in stats.values())
        assert pool.pop_stats()["requests_num"] == 1
        assert pool.get_stats()["requests_num"] == 0
        async with within(pool.connection()):
            pass
        assert pool.get_stats()["requests_num"] == 1


async def test_a_null_pool_keeps_nothing_and_hands_on(twin: Twin, admin: Admin, application: str) -> None:
    pool = twin.null(max_size=1, kwargs={"application_name": application})
    async with within(pool):
        await do(pool.wait())
        pids: list[int] = []

        async def work(n: int) -> None:
            async with within(pool.connection()) as connection:
                pids.append(pid(connection))
                assert pool.poolkit.stats().size == 1
                await twin.until(lambda: pool.get_stats()["requests_waiting"] or len(pids) > 1)

        results = await twin.together(work, 2)
        assert results == [None, None]
        assert pids[0] == pids[1]
        async with within(pool.connection()) as connection:
            assert pid(connection) != pids[0]
        assert connection.closed
        assert pool.poolkit.stats().size == 0
        await do(pool.check())


async def test_a_null_pools_connect_errors_are_psycopgs_own(twin: Twin) -> None:
    async with within(twin.null("host=127.0.0.1 port=1")) as pool:
        with pytest.raises(psycopg.OperationalError, match="connection failed") as caught:
            await do(pool.getconn())
        assert type(caught.value).__name__ == "OperationalError"
        assert isinstance(caught.value, poolkit.ConnectFailed)
    with pytest.raises(ValueError, match="min_size"):
        twin.null(min_size=1)
    assert twin.null().max_size == 0
    assert twin.null(max_size=3).max_size == 3


async def test_a_read_only_server_is_left_by_all(twin: Twin) -> None:
    async with within(twin.pool(min_size=2)) as pool:
        await do(pool.wait())
        async with within(pool.connection()) as a, within(pool.connection()) as b:
            old = {pid(a), pid(b)}
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with within(pool.connection()) as connection:
                await do(connection.execute("set session characteristics as transaction read only"))
                await do(connection.execute("set default_transaction_read_only to on"))
                await do(connection.commit())
                await do(connection.execute("create table nowhere ()"))
        async with within(pool.connection()) as a, within(pool.connection()) as b:
            assert not {pid(a), pid(b)} & old


async def test_a_transaction_that_was_meant_to_be_read_only_costs_nothing(twin: Twin) -> None:
    async with within(twin.pool(min_size=1)) as pool:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with within(pool.connection()) as connection:
                first = pid(connection)
                await do(connection.execute("set transaction read only"))
                await do(connection.execute("create table nowhere ()"))
        async with within(pool.connection()) as connection:
            assert pid(connection) == first
