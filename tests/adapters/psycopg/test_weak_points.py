"""The eighteen weak points found in psycopg_pool 3.3.3: each test fails with the stock pool."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

import poolkit
from poolkit import BackoffConfig
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE

from .support import Admin, Twin, do, pid, within

QUICK = BackoffConfig(base=0.02, cap=0.1)


@pytest.fixture
def proxy(fault_proxy: Callable[[str, int], FaultProxy], postgres: PostgresServer) -> FaultProxy:
    return fault_proxy(postgres.host, postgres.port)


@pytest.fixture
def through(proxy: FaultProxy, postgres: PostgresServer) -> str:
    return make_conninfo(postgres.url, port=proxy.port)


def test_01_asyncio_run_returns_though_the_pool_is_still_connecting(through: str, proxy: FaultProxy) -> None:
    proxy.mode = "silent"
    code = (
        "import asyncio, sys\n"
        "from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool\n"
        "async def main():\n"
        "    pool = AsyncPoolkitConnectionPool(sys.argv[1], min_size=3, open=False)\n"
        "    await pool.open()\n"
        "    await asyncio.sleep(0.2)\n"
        "asyncio.run(main())\n"
        "print('over')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, through], capture_output=True, text=True, timeout=20)
    assert done.stdout == "over\n", done.stderr


async def test_02_a_cancellation_at_the_moment_of_the_hand_off_is_never_lost(postgres: PostgresServer) -> None:
    async with AsyncPoolkitConnectionPool(postgres.url, min_size=1, open=False) as pool:
        await pool.wait()
        for attempt in range(60):
            held = await pool.getconn()

            async def wait_for_it() -> None:
                async with pool.connection():
                    await asyncio.sleep(30)

            waiter = asyncio.ensure_future(wait_for_it())
            await asyncio.sleep(0)
            if attempt % 2:
                await pool.putconn(held)
                for _ in range(attempt // 2 % 4):
                    await asyncio.sleep(0)
                waiter.cancel()
            else:
                waiter.cancel()
                await pool.putconn(held)
            with pytest.raises(asyncio.CancelledError):
                await waiter
            await pool.putconn(await pool.getconn(timeout=5))  # the connection is back
        assert pool.get_stats()["connections_num"] == 1


async def test_03_cancelling_check_cancels_it_and_costs_no_connection(through: str, proxy: FaultProxy) -> None:
    async with AsyncPoolkitConnectionPool(through, min_size=2, open=False) as pool:
        await pool.wait()
        proxy.latency = 0.1
        checking = asyncio.ensure_future(pool.check())
        await asyncio.sleep(0.05)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        while pool.get_stats()["pool_available"] < 2:
            await asyncio.sleep(0.01)
        assert pool.get_stats()["connections_num"] == 2


def test_04_a_keyboard_interrupt_while_waiting_loses_no_connection(postgres: PostgresServer) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with PoolkitConnectionPool(postgres.url, min_size=1, open=False) as pool:
            held = pool.getconn()
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                pool.getconn(timeout=20)
            timer.join()
            pool.putconn(held)
            for _ in range(3):
                pool.putconn(pool.getconn(timeout=2))
            assert pool.get_stats()["connections_num"] == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_05_close_is_bounded_and_waiting_callers_fail_at_once(
    twin: Twin, through: str, proxy: FaultProxy
) -> None:
    proxy.mode = "silent"
    pool = twin.pool(through, min_size=3, kwargs={"connect_timeout": 20}, timeout=60)
    await do(pool.open())

    async def work(n: int) -> None:
        if n:
            async with within(pool.connection()):
                pass
        else:
            await twin.until(lambda: pool.get_stats()["requests_waiting"] == 2)
            await do(pool.close(timeout=0.1))

    results = await twin.together(work, 3)
    assert results[0] is None
    assert [type(result) for result in results[1:]] == [type(results[1])] * 2
    assert isinstance(results[1], psycopg_pool.PoolClosed)
    assert proxy.open  # the connects still hang, and no caller has waited for them
    proxy.reset()


async def test_05_a_graceful_close_lets_leases_end(twin: Twin) -> None:
    pool = twin.pool(min_size=1)
    await do(pool.open(wait=True))
    connection = await do(pool.getconn())

    async def work(n: int) -> Any:
        if n:
            return await do(pool.poolkit.drain(10))
        await twin.until(lambda: pool.closed)
        await do(connection.execute("select 1"))
        await do(pool.putconn(connection))
        return None

    assert await twin.together(work, 2) == [None, True]


async def test_06_several_may_wait_and_a_wait_that_times_out_closes_nothing(
    twin: Twin, through: str, proxy: FaultProxy
) -> None:
    proxy.mode = "refuse"
    async with within(twin.pool(through, min_size=2, backoff=QUICK)) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout, match="0 of 2") as caught:
            await do(pool.wait(0.2))
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert not pool.closed
        proxy.mode = "pass"

        async def work(n: int) -> None:
            await do(pool.wait(10))

        assert await twin.together(work, 2) == [None, None]


def test_06_a_forked_child_has_backends_of_its_own_and_harms_nothing(postgres: PostgresServer) -> None:
    with PoolkitConnectionPool(postgres.url, min_size=2, max_size=3, open=False) as pool:
        pool.wait()
        with pool.connection() as leased:
            leased.execute("create temporary table mine (x int)")
            with pool.connection() as other:
                backends = {pid(leased), pid(other)}
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    with pool.connection(timeout=5) as connection:
                        os.write(write, str(pid(connection)).encode())
                    pool.putconn(leased)
                    pool.close()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            assert int(os.read(read, 20)) not in backends
            assert leased.execute("select count(*) from mine").fetchone() == (0,)  # still in its transaction
        with pool.connection() as one, pool.connection() as two:
            assert {one.execute("select pg_backend_pid()").fetchone()[0], pid(two)} == backends  # type: ignore[index]
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("size", [1, 6])
async def test_07_stale_connections_cost_no_backoff(twin: Twin, admin: Admin, size: int) -> None:
    check = twin.pool_class.check_connection
    async with within(twin.pool(min_size=size, check=check, backoff=BackoffConfig(base=60, cap=60))) as pool:
        await do(pool.wait())
        connections = [await do(pool.getconn()) for _ in range(size)]
        pids = [pid(connection) for connection in connections]
        for connection in connections:
            await do(pool.putconn(connection))
        admin.kill(*pids)
        for _ in range(size):
            async with within(pool.connection(timeout=5)) as connection:
                assert pid(connection) not in pids


async def test_08_after_an_outage_the_next_client_is_served_within_the_backoff_cap(
    twin: Twin, through: str, proxy: FaultProxy
) -> None:
    async with within(twin.pool(through, min_size=1, reconnect_timeout=0.1, backoff=QUICK)) as pool:
        await do(pool.wait())
        proxy.mode = "refuse"
        proxy.reset()
        await do(pool.check())
        await twin.until(lambda: pool.get_stats().get("connections_errors", 0) >= 8)
        proxy.mode = "pass"
        async with within(pool.connection(timeout=5)) as connection:
            await do(connection.execute("select 1"))


async def test_08_reconnect_failed_is_called_and_the_pool_keeps_trying(
    twin: Twin, through: str, proxy: FaultProxy
) -> None:
    told: list[Any] = []

    async def failed(pool: Any) -> None:
        told.append(pool)

    proxy.mode = "refuse"
    pool = twin.pool(through, min_size=1, reconnect_timeout=0.3, reconnect_failed=twin.callback(failed), backoff=QUICK)
    async with within(pool):
        await twin.until(lambda: len(told) >= 2)
        assert told[0] is pool
        proxy.mode = "pass"
        await do(pool.wait(5))
        count = len(told)
        await twin.pause(0.4)
        assert len(told) == count


async def test_09_the_error_says_why_there_is_no_connection(twin: Twin) -> None:
    async with within(twin.pool("host=127.0.0.1 port=1", min_size=1)) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout, match=r"[Rr]efused") as caught:
            await do(pool.getconn(timeout=2))  # a busy machine needs a while for the first connect
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert isinstance(caught.value, poolkit.ServerUnavailable)
    wrong = make_conninfo(twin.postgres.url, password="wrong")
    async with within(twin.pool(wrong, min_size=1)) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout, match="authentication failed") as caught:
            await do(pool.getconn(timeout=600))  # at once, not after ten minutes
        assert isinstance(caught.value, poolkit.ConnectFailed)
        with pytest.raises(psycopg_pool.PoolTimeout, match="authentication failed"):
            await do(pool.wait(600))


async def test_10_a_connect_that_hangs_holds_up_no_return(twin: Twin, through: str, proxy: FaultProxy) -> None:
    async def reset(connection: Any) -> None:
        await do(connection.execute("select 1"))
        await do(connection.rollback())

    # through the proxy only the first connection works
    def conninfo() -> str:
        return twin.postgres.url if not made else through

    made: list[int] = []
    pool = twin.pool(
        conninfo, min_size=1, max_size=2, reset=twin.callback(reset), kwargs={"connect_timeout": 20}, num_workers=1
    )
    async with within(pool):
        await do(pool.wait())
        made.append(1)
        proxy.mode = "silent"
        held = await do(pool.getconn())

        async def work(n: int) -> int:
            if n:
                await twin.until(lambda: proxy.open)  # a connect for the other one hangs
                await do(pool.putconn(held))
                return pid(held)
            async with within(pool.connection(timeout=15)) as connection:
                return pid(connection)

        results = await twin.together(work, 2)
        assert results[0] == results[1]
        assert proxy.open == 1
        proxy.reset()


async def test_11_resize_never_leads_beyond_max_size(
    twin: Twin, admin: Admin, application: str, named: dict[str, Any]
) -> None:
    async with within(twin.pool(min_size=2, max_size=4, kwargs=named)) as pool:
        connections = [await do(pool.getconn()) for _ in range(4)]
        for connection in connections:
            await do(pool.putconn(connection))
        await do(pool.resize(4, 4))
        await do(pool.wait())
        assert pool.get_stats()["pool_size"] == 4
        assert len(admin.sessions(application)) == 4


async def test_12_max_waiting_counts_only_callers_that_wait(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, max_size=1, max_waiting=2)) as pool:
        async with within(pool.connection()):
            for _ in range(4):
                with pytest.raises(psycopg_pool.PoolTimeout):
                    await do(pool.getconn(timeout=0.05))
            assert pool.get_stats()["requests_waiting"] == 0

            async def work(n: int) -> None:
                await do(pool.getconn(timeout=0.5))

            results = await twin.together(work, 3)
        kinds = sorted(type(result).__name__ for result in results)
        assert kinds == ["AcquireTimeout", "AcquireTimeout", "PoolBusy"]
        busy = next(result for result in results if isinstance(result, psycopg_pool.TooManyRequests))
        assert isinstance(busy, poolkit.PoolBusy)
        assert pool.name in str(busy)
        assert "2" in str(busy)
        assert pool.get_stats()["requests_errors"] == 7


async def test_13_a_timeout_of_zero_takes_what_is_there(twin: Twin) -> None:
    async with within(twin.pool(min_size=1)) as pool:
        await do(pool.wait())
        connection = await do(pool.getconn(timeout=0))
        with pytest.raises(psycopg_pool.PoolTimeout, match="in use 1/1"):
            await do(pool.getconn(timeout=0))
        assert pool.get_stats()["requests_errors"] == 1
        await do(pool.putconn(connection))
        await do(pool.putconn(await do(pool.getconn(timeout=-1))))


async def test_14_an_idle_connection_beyond_its_lifetime_is_not_handed_out(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, max_lifetime=0.3)) as pool:
        async with within(pool.connection()) as connection:
            first = pid(connection)
        await twin.pause(0.35)
        async with within(pool.connection()) as connection:
            assert pid(connection) != first


async def test_14_keepalive_speaks_on_idle_connections(twin: Twin) -> None:
    async with within(twin.pool(min_size=1, keepalive=0.1)) as pool:
        await do(pool.wait())
        await twin.until(lambda: pool.poolkit.stats().checks >= 2)


async def test_15_growth_is_parallel_and_the_surplus_goes(twin: Twin) -> None:
    waiting: list[int] = []

    class Slow(twin.connection_class):  # type: ignore[name-defined, misc]
        """A pool that hands out no connection before four are being opened."""

        if twin.asynchronous:

            @classmethod
            async def connect(cls, *args: Any, **kwargs: Any) -> Any:
                waiting.append(1)
                await twin.until(lambda: len(waiting) >= 4)
                return await super().connect(*args, **kwargs)
        else:

            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                waiting.append(1)
                deadline = time.monotonic() + PATIENCE
                while len(waiting) < 4 and time.monotonic() < deadline:
                    time.sleep(0.01)
                return super().connect(*args, **kwargs)

    pool = twin.pool(min_size=0, max_size=4, max_idle=0.4, connection_class=Slow)
    async with within(pool):

        async def work(n: int) -> int:
            async with within(pool.connection(timeout=8)) as connection:
                held.append(pid(connection))
                await twin.until(lambda: len(held) == 4)
                return pid(connection)

        held: list[int] = []
        assert len(set(await twin.together(work, 4))) == 4
        await twin.until(lambda: pool.get_stats()["pool_size"] == 0)


async def test_16_short_uses_add_up(twin: Twin) -> None:
    async with within(twin.pool(min_size=1)) as pool:
        spent = 0.0
        for _ in range(100):
            async with within(pool.connection()):
                begun = time.perf_counter()
                while time.perf_counter() - begun < 0.0004:
                    pass
                spent += time.perf_counter() - begun
        assert pool.get_stats()["usage_ms"] >= int(spent * 1000)
        assert pool.poolkit.stats().acquires == 100


async def test_16_a_lease_held_too_long_is_reported_with_its_place(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    async with within(twin.pool(min_size=1, leak_after=0.1)) as pool:
        async with within(pool.connection()):
            await twin.until(lambda: "test_weak_points.py" in caplog.text or "support.py" in caplog.text)


async def test_17_check_takes_one_connection_at_a_time(twin: Twin, through: str, proxy: FaultProxy) -> None:
    async with within(twin.pool(through, min_size=3)) as pool:
        await do(pool.wait())
        proxy.latency = 0.05

        async def work(n: int) -> Any:
            if n == 0:
                return await do(pool.check())
            await twin.until(lambda: pool.get_stats()["pool_available"] < 3)
            return pool.get_stats()["pool_available"]

        results = await twin.together(work, 2)
        assert results == [None, 2]


async def test_17_check_replaces_the_dead(twin: Twin, admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    for order in ("fifo", "lifo"):
        async with within(twin.pool(min_size=3, order=order)) as pool:
            await do(pool.wait())
            connections = [await do(pool.getconn()) for _ in range(3)]
            pids = [pid(connection) for connection in connections]
            for connection in connections:
                await do(pool.putconn(connection))
            admin.kill(pids[1])
            await do(pool.check())
            await do(pool.wait())
            connections = [await do(pool.getconn(timeout=5)) for _ in range(3)]
            assert len({pid(connection) for connection in connections} & set(pids)) == 2
            for connection in connections:
                await do(pool.putconn(connection))


async def test_18_null_pools_report_a_failed_reconnection_too(twin: Twin, proxy: FaultProxy, through: str) -> None:
    told: list[Any] = []

    async def failed(pool: Any) -> None:
        told.append(pool)

    proxy.mode = "refuse"
    async with within(twin.null(through, reconnect_timeout=0.1, reconnect_failed=twin.callback(failed))) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout):
            await do(pool.wait(0.5))
        await twin.until(lambda: told)


def test_18_pools_at_rest_share_one_thread(postgres: PostgresServer) -> None:
    code = (
        "import sys, threading, time\n"
        "from poolkit_adapters.psycopg import PoolkitConnectionPool\n"
        "pools = [PoolkitConnectionPool(sys.argv[1], min_size=1, open=True) for _ in range(4)]\n"
        "for pool in pools: pool.wait()\n"
        "while threading.active_count() > 2: time.sleep(0.05)\n"
        "print('one thread beside this one')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, postgres.url], capture_output=True, text=True, timeout=20)
    assert done.stdout == "one thread beside this one\n", done.stderr


def test_18_an_open_pool_does_not_hold_up_the_exit(postgres: PostgresServer) -> None:
    code = (
        "import sys, time\n"
        "from poolkit_adapters.psycopg import PoolkitConnectionPool\n"
        "pool = PoolkitConnectionPool(sys.argv[1], min_size=3, open=True)\n"
        "pool.wait()\n"
        "held = pool.getconn()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, postgres.url], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")  # a thread that does not end would be reported


async def test_r15_cancelled_statements_do_not_pile_up_at_the_server(
    postgres: PostgresServer, admin: Admin, application: str, named: dict[str, Any]
) -> None:
    worst = 0
    async with AsyncPoolkitConnectionPool(postgres.url, min_size=2, kwargs=named, open=False) as pool:
        for _ in range(10):
            with anyio.move_on_after(0.05):
                async with pool.connection(timeout=10) as connection:
                    await connection.execute("select pg_sleep(20)")
            worst = max(worst, len(admin.sessions(application, active=True)))
    assert worst <= 2


async def test_r14_a_storm_of_cancellations_loses_neither_cancellations_nor_connections(
    postgres: PostgresServer, admin: Admin, application: str, named: dict[str, Any]
) -> None:
    lost = 0

    async def work() -> None:
        async with pool.connection() as connection:
            if psycopg.__version__ >= "3.3":  # earlier versions of psycopg sometimes lose one
                await connection.execute("select pg_sleep(0.005)")
            else:
                await asyncio.sleep(0.005)

    async with AsyncPoolkitConnectionPool(postgres.url, min_size=4, kwargs=named, open=False) as pool:
        await pool.wait()
        for turn in range(15):
            tasks = [asyncio.ensure_future(work()) for _ in range(30)]
            await asyncio.sleep(0.001 * turn)
            cancelled = [task for task in tasks if task.cancel()]
            await asyncio.wait(tasks)
            lost += sum(not task.cancelled() and task.exception() is None for task in cancelled)
        assert lost == 0
        connections = [await pool.getconn(timeout=10) for _ in range(4)]
        for connection in connections:
            assert (await (await connection.execute("select 1")).fetchone()) == (1,)
            await pool.putconn(connection)
        pool.poolkit.check_books()
        assert len(admin.sessions(application)) <= 4


async def test_a_silent_host_leaves_time_for_the_next_one(
    twin: Twin, postgres: PostgresServer, proxy: FaultProxy
) -> None:
    """psycopg applies ``connect_timeout`` to each host: together they have the pool's."""
    proxy.mode = "silent"
    hosts = make_conninfo(postgres.url, host=f"{proxy.host},{postgres.host}", port=f"{proxy.port},{postgres.port}")
    async with within(twin.pool(hosts, min_size=0, max_size=1, connect_timeout=4, timeout=60)) as pool:
        connection = await do(pool.getconn())
        assert connection.info.port == postgres.port
        assert connection.info.get_parameters()["connect_timeout"] == "2"
        await do(pool.putconn(connection))
    assert proxy.accepted >= 1
