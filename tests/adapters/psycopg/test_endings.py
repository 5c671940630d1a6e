"""A connection that is given up in the middle of a statement keeps its slot until the server has ended the session."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from poolkit import Budget
from tests.faults.proxy import FaultProxy
from tests.support.ctrl_c import ctrl_c_when
from tests.support.waiting import PATIENCE, leak_warning

from .support import Admin, Twin, do, pid

SLEEP = b"select pg_sleep(3600)"


@pytest.fixture
def proxy(fault_proxy: Callable[[str, int], FaultProxy], twin: Twin) -> FaultProxy:
    return fault_proxy(twin.postgres.host, twin.postgres.port)


@pytest.fixture
def make(twin: Twin, proxy: FaultProxy, admin: Admin, application: str) -> Iterator[Callable[..., Any]]:
    """A pool for one connection, behind a proxy that can drop cancel requests."""

    def make(**settings: Any) -> Any:
        conninfo = make_conninfo(twin.postgres.url, port=proxy.port, application_name=application)
        return twin.pool(conninfo, min_size=0, max_size=1, kwargs={"autocommit": True}, **settings)

    yield make
    admin.kill(*admin.sessions(application))


async def cancelled(pool: Any, twin: Twin, started: Callable[[], bool]) -> None:
    """Cancel the caller (async), or interrupt it with Ctrl-C (sync), in the middle of its statement."""
    if twin.asynchronous:

        async def work() -> None:
            async with pool.connection() as connection:
                await connection.execute(SLEEP)

        task = asyncio.ensure_future(work())
        await twin.until(started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return

    with ctrl_c_when(started), pool.connection() as connection:
        connection.execute(SLEEP)


async def returned(pool: Any, twin: Twin, started: Callable[[], bool]) -> None:
    connection = await do(pool.getconn())
    connection.pgconn.send_query(SLEEP)
    await twin.until(started)
    await do(pool.putconn(connection))


async def dropped(pool: Any, twin: Twin, started: Callable[[], bool]) -> None:
    connection = await do(pool.getconn())
    connection.pgconn.send_query(SLEEP)
    await twin.until(started)
    with leak_warning():
        del connection
        gc.collect()
        await twin.pause(0)
        pool.poolkit.stats()
        pool.poolkit.resume()


async def cut(pool: Any, twin: Twin, started: Callable[[], bool]) -> None:
    """Take the pool's permits away."""
    connection = await do(pool.getconn())
    connection.pgconn.send_query(SLEEP)
    await twin.until(started)
    assert pool.poolkit._membership.cut() == 1
    await do(pool.putconn(connection))


WAYS = [cancelled, returned, dropped, cut]


@pytest.mark.parametrize("way", WAYS)
async def test_a_place_is_free_when_the_server_has_ended_the_session(
    way: Callable[..., Any], twin: Twin, make: Callable[..., Any], proxy: FaultProxy, admin: Admin, application: str
) -> None:
    budget = {"budget": Budget(1)} if way is cut else {}
    pool = make(check_timeout=PATIENCE, timeout=2 * PATIENCE, **budget)
    await do(pool.open())

    def active() -> bool:
        running = bool(admin.sessions(application, active=True))
        proxy.swallow = running
        return running

    await way(pool, twin, active)
    await twin.until(lambda: proxy.swallowed and pool.poolkit.stats().closing == 1)
    (old,) = admin.sessions(application, active=True)
    with pytest.raises(psycopg.errors.OperationalError):  # no slot
        await do(pool.getconn(timeout=0))
    assert pool.poolkit.stats().size == 1
    proxy.swallow = False
    admin.kill(old)
    connection = await do(pool.getconn())
    assert pid(connection) != old
    assert admin.sessions(application) == {pid(connection)}
    await do(pool.putconn(connection))
    pool.poolkit.check_books()
    await do(pool.close())


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_does_not_end_the_session_keeps_the_place_for_check_timeout(
    way: Callable[..., Any], twin: Twin, make: Callable[..., Any], proxy: FaultProxy, admin: Admin, application: str
) -> None:
    pool = make(check_timeout=0.05, timeout=PATIENCE)
    await do(pool.open())

    def active() -> bool:
        running = bool(admin.sessions(application, active=True))
        proxy.swallow = running
        return running

    await way(pool, twin, active)
    await twin.until(lambda: proxy.swallowed)
    (old,) = admin.sessions(application, active=True)
    proxy.swallow = False
    connection = await do(pool.getconn())
    assert admin.sessions(application) == {old, pid(connection)}
    await do(pool.putconn(connection))
    await do(pool.close())


async def test_a_server_that_gets_the_request_ends_the_session_and_the_slot_is_free(
    twin: Twin, make: Callable[..., Any], admin: Admin, application: str
) -> None:
    pool = make(check_timeout=PATIENCE, timeout=2 * PATIENCE)
    await do(pool.open())
    await returned(pool, twin, lambda: bool(admin.sessions(application, active=True)))
    connection = await do(pool.getconn())
    assert admin.sessions(application) == {pid(connection)}, "the old session has ended"
    await do(pool.putconn(connection))
    await do(pool.close())


async def test_a_new_connection_given_up_in_its_configure_keeps_its_place(
    twin: Twin, make: Callable[..., Any], proxy: FaultProxy, admin: Admin, application: str
) -> None:
    given_up = []

    async def configure(connection: Any) -> None:
        if given_up:
            return
        given_up.append(pid(connection))
        connection.pgconn.send_query(SLEEP)
        connection.pgconn.flush()
        proxy.swallow = True

    pool = make(check_timeout=PATIENCE, timeout=2 * PATIENCE, configure=twin.callback(configure))
    await do(pool.open())
    with contextlib.suppress(psycopg.OperationalError):
        await do(pool.getconn(timeout=0))
    await twin.until(lambda: proxy.swallowed and pool.poolkit.stats().closing == 1)
    assert pool.poolkit.stats().size == 1
    proxy.swallow = False
    admin.kill(*given_up)
    connection = await do(pool.getconn())
    assert admin.sessions(application) == {pid(connection)}
    await do(pool.putconn(connection))
    await do(pool.close())


async def test_a_cancelled_statement_leaves_no_second_descriptor(
    twin: Twin, make: Callable[..., Any], admin: Admin, application: str
) -> None:
    pool = make()
    await do(pool.open())
    await cancelled(pool, twin, lambda: bool(admin.sessions(application, active=True)))
    (old,) = admin.sessions(application)
    connection = await do(pool.getconn())
    assert pid(connection) == old, "the connection is sound"
    ending = connection._poolkit_session.ending
    assert (ending.at_work, ending._fd) == (False, -1)
    await do(pool.putconn(connection))
    await do(pool.close())


@pytest.mark.slow  # psycopg waits five seconds for the end of the statement
async def test_a_statement_that_a_cancel_request_has_missed_is_stopped_when_psycopg_has_closed_its_connection(
    make: Callable[..., Any], twin: Twin, admin: Admin, application: str
) -> None:
    """The request may arrive between BEGIN and the statement, which then begins and goes on."""
    if not twin.asynchronous:
        pytest.skip("psycopg waits in the same way in threads, without a limit")

    async def missed(**_: Any) -> None:
        """Let the request have no effect."""

    async with make(check_timeout=PATIENCE, timeout=2 * PATIENCE) as pool:
        async with pool.connection() as connection:
            connection._try_cancel = missed

        async def work() -> None:
            async with pool.connection() as connection:
                await connection.execute(SLEEP)

        task = asyncio.ensure_future(work())
        await twin.until(lambda: admin.sessions(application, active=True))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await twin.until(lambda: not admin.sessions(application, active=True))
        async with pool.connection() as connection:
            assert pid(connection) in admin.sessions(application)
