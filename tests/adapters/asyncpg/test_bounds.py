"""A connect with ``init`` and a ``setup`` end in their time, whatever hangs. Their place is free then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

import poolkit
from poolkit.testing.servers import PostgresServer
from tests.adapters.asyncpg.test_cancel import all_serve
from tests.adapters.psycopg.support import Admin
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until_async

pytestmark = pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning")

LIMIT = 0.5
"""Seconds that must pass for what hangs."""
CONNECT = 2.0
"""Seconds for a connect whose ``init`` hangs. A busy machine has to come as far as ``init`` in this time."""


class Hangs:
    """A callback of the pool, which hangs as long as ``how`` says so."""

    def __init__(self, how: str, proxy: FaultProxy) -> None:
        self.how = how
        self.calls = 0
        self._proxy = proxy

    async def __call__(self, connection: Any) -> None:
        self.calls += 1
        if self.how == "it sleeps":
            await asyncio.Event().wait()
        elif self.how == "it waits for the server":
            await connection.execute("select pg_sleep(3600)")
        elif self.how == "the peer swallows everything":
            self._proxy.mode = "silent"
            await connection.execute("select 1")

    def heal(self) -> None:
        self.how = ""
        self._proxy.mode = "pass"


WAYS = pytest.mark.parametrize("how", ["it sleeps", "it waits for the server", "the peer swallows everything"])


@pytest.fixture
def proxy(postgres: PostgresServer, fault_proxy: Callable[[str, int], FaultProxy]) -> FaultProxy:
    return fault_proxy(postgres.host, postgres.port)


@pytest.fixture
def through(postgres: PostgresServer, proxy: FaultProxy) -> str:
    return postgres.url.replace(f":{postgres.port}/", f":{proxy.port}/")


async def test_a_peer_that_swallows_everything_ends_a_connect(make: Any, proxy: FaultProxy, through: str) -> None:
    proxy.mode = "silent"
    async with make(through, max_size=1, timeout=LIMIT, check_timeout=LIMIT) as pool:
        with pytest.raises(poolkit.ConnectTimeout):
            await pool.acquire(timeout=PATIENCE)
        proxy.mode = "pass"
        pool.poolkit.reconfigure(connect_timeout=PATIENCE)
        await all_serve(pool, 1)


@WAYS
async def test_an_init_that_hangs_ends_with_its_connect(
    make: Any, proxy: FaultProxy, through: str, how: str, admin: Admin, application: str
) -> None:
    init = Hangs(how, proxy)
    async with make(through, max_size=1, init=init, connect_timeout=CONNECT, check_timeout=LIMIT) as pool:
        with pytest.raises(poolkit.ConnectTimeout):
            await pool.acquire(timeout=PATIENCE)
        assert init.calls == 1
        init.heal()
        pool.poolkit.reconfigure(connect_timeout=PATIENCE)
        await all_serve(pool, 1)
        await until_async(lambda: len(admin.sessions(application)) == 1, "the first session has ended")


@WAYS
async def test_an_init_whose_caller_is_cancelled_ends_with_its_connect(
    make: Any, proxy: FaultProxy, through: str, how: str, admin: Admin, application: str
) -> None:
    init = Hangs(how, proxy)
    async with make(through, max_size=1, init=init, connect_timeout=CONNECT, check_timeout=LIMIT) as pool:
        task = asyncio.ensure_future(pool.acquire().__aenter__())
        await until_async(lambda: init.calls, "init begins")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_async(lambda: not pool.poolkit.stats().size, "the place is free")
        init.heal()
        pool.poolkit.reconfigure(connect_timeout=PATIENCE)
        await all_serve(pool, 1)
        await until_async(lambda: len(admin.sessions(application)) == 1, "the first session has ended")


@WAYS
@pytest.mark.parametrize("of", ["call", "pool", "block"])
async def test_a_setup_that_hangs_ends_with_the_time_of_its_caller(
    make: Any, proxy: FaultProxy, through: str, how: str, of: str, admin: Admin, application: str
) -> None:
    """The time of the call, or else ``acquire_timeout``; in any case that of a ``poolkit.deadline`` block."""
    setup = Hangs("", proxy)
    async with make(through, max_size=1, setup=setup, acquire_timeout=PATIENCE, check_timeout=LIMIT) as pool:
        await all_serve(pool, 1)
        setup.how = how
        if of == "pool":
            pool.poolkit.reconfigure(acquire_timeout=LIMIT)
        with poolkit.deadline(LIMIT) if of == "block" else contextlib.nullcontext():
            task = asyncio.ensure_future(pool.acquire(timeout=LIMIT if of == "call" else None).__aenter__())
            done, _ = await asyncio.wait([task], timeout=PATIENCE)
        assert done, "it hangs"
        assert isinstance(task.exception(), asyncio.TimeoutError)
        assert isinstance(task.exception(), poolkit.AcquireTimeout)
        assert setup.calls == 2
        setup.heal()
        pool.poolkit.reconfigure(acquire_timeout=PATIENCE)
        await all_serve(pool, 1)
        await until_async(lambda: len(admin.sessions(application)) == 1, "the first session has ended")


async def test_a_caller_without_time_for_setup_costs_no_connection(make: Any, through: str) -> None:
    calls: list[Any] = []

    async def setup(connection: Any) -> None:
        calls.append(connection)

    async with make(through, min_size=2, max_size=2, setup=setup) as pool:
        await until_async(lambda: pool.poolkit.stats().idle == 2, "two connections are idle")
        for _ in range(3):
            with poolkit.deadline(0), pytest.raises(poolkit.AcquireTimeout, match="no time is left for setup"):
                await pool.acquire()
        stats = pool.poolkit.stats()
        assert (stats.idle, stats.connects, sum(stats.closes.values())) == (2, 2, 0)
        assert not calls


async def test_a_caller_that_never_waits_has_time_for_setup(make: Any, through: str) -> None:
    done: list[int] = []

    async def setup(connection: Any) -> None:
        done.append(await connection.fetchval("select 1 from pg_sleep(0.01)"))

    async with make(through, min_size=1, setup=setup, acquire_timeout=0) as pool:
        await until_async(lambda: pool.poolkit.stats().idle == 1, "a connection is idle")
        connection = await pool.acquire()
        assert done == [1]
        await pool.release(connection)
