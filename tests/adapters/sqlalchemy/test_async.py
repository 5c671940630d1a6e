"""The asyncio twin: cancellation at every point, several event loops, background work in greenlets."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from sqlalchemy import event, exc, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.util import greenlet_spawn

import poolkit
from poolkit import BackoffConfig, BreakerConfig
from poolkit.policies import retire
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool
from poolkit_adapters.sqlalchemy._greenlets import await_
from tests.adapters.sqlalchemy.conftest import since
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

PID = text("select pg_backend_pid()")
ONE = text("select 1")


async def until(condition: Any) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def pid(engine: Any) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(PID))


async def pids(engine: Any, count: int) -> list[int]:
    connections: list[AsyncConnection] = [await engine.connect() for _ in range(count)]
    found = [int(await connection.scalar(PID)) for connection in connections]  # type: ignore[arg-type]
    for connection in connections:
        await connection.close()
    return found


@pytest.fixture
async def quiet_loop() -> None:
    """asyncpg leaves a future with an unread ConnectionError behind when it is cancelled while it connects."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)


@since[2, 0, 58]
@pytest.mark.usefixtures("quiet_loop")
async def test_01_a_storm_of_cancellations_loses_nothing(make_async_engine: Any, postgres: PostgresServer) -> None:
    name = "storm"
    engine = make_async_engine(pool_size=2, max_overflow=1, pool_timeout=5)
    pool: AsyncPoolkitPool = engine.pool

    async def work() -> None:
        async with engine.connect() as connection:
            await connection.execute(text(f"select '{name}'"))
            await asyncio.sleep(0)

    for number in range(40):
        tasks = [asyncio.create_task(work()) for _ in range(12)]
        for task in tasks:
            await asyncio.sleep(0.0005 * (number % 5))
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.done() for task in tasks)
    await until(lambda: pool.checkedout() == 0)
    held = [await engine.connect() for _ in range(3)]
    assert [await connection.scalar(ONE) for connection in held] == [1, 1, 1]
    for connection in held:
        await connection.close()
    pool.poolkit.check_books()


@pytest.mark.parametrize("ticks", range(4))
@pytest.mark.parametrize("cancel_first", [False, True])
async def test_02_a_cancelled_waiter_passes_its_turn_on(fake: Any, ticks: int, cancel_first: bool) -> None:
    pool = AsyncPoolkitPool(fake, pool_size=1, max_overflow=0, timeout=5)
    held = await greenlet_spawn(pool.connect)
    waiter = asyncio.create_task(greenlet_spawn(pool.connect))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(greenlet_spawn(pool.connect))
    await asyncio.sleep(0.01)
    if cancel_first:
        accepted = waiter.cancel()
    else:
        held.close()
    for _ in range(ticks):
        await asyncio.sleep(0)
    if cancel_first:
        held.close()
    else:
        accepted = waiter.cancel()
    await asyncio.wait([waiter])
    assert waiter.cancelled() is accepted
    if not accepted:
        waiter.result().close()
    (await asyncio.wait_for(second, 5)).close()
    assert (pool.checkedin(), pool.checkedout(), len(fake.made)) == (1, 0, 1)
    pool.poolkit.check_books()


@pytest.mark.usefixtures("quiet_loop")
async def test_03_a_cancelled_connect_frees_its_place(make_async_engine: Any) -> None:
    engine = make_async_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    for step in range(12):
        task = asyncio.create_task(pid(engine))
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.result()  # the connects of cancelled callers may have served it
    assert await pid(engine)
    engine.pool.poolkit.check_books()


@since[2, 0, 58]
async def test_04_scopes_of_anyio_lose_no_slot_and_the_statement_is_cancelled(
    make_async_engine: Any, postgres: PostgresServer, driver: str
) -> None:
    # its own name: in other tests a server never hears that a statement is cancelled
    named = {"connect_args": {"server_settings": {"application_name": "test-04"}}} if driver == "asyncpg" else {}
    engine = make_async_engine(pool_size=2, max_overflow=0, pool_timeout=5, **named)
    for _ in range(6):
        with anyio.move_on_after(0.03):
            async with engine.connect() as connection:
                await connection.execute(text("select pg_sleep(600)"))
    assert await asyncio.gather(pid(engine), pid(engine))
    await until(lambda: engine.pool.checkedout() == 0)
    engine.pool.poolkit.check_books()
    if driver == "asyncpg":  # R15: a cancelled statement ends at the server before its slot is free

        def asleep() -> int:
            with postgres.connect() as admin:
                row = admin.execute(
                    "select count(*) from pg_stat_activity"
                    " where wait_event = 'PgSleep' and application_name = 'test-04'"
                ).fetchone()
                assert row is not None
                return int(row[0])

        await until(lambda: asleep() == 0)
    else:  # psycopg itself hangs up when it is cancelled a second time, and the server goes on asleep
        postgres.kill_backends()


async def test_07_the_error_of_a_full_pool_says_so(fake: Any) -> None:
    pool = AsyncPoolkitPool(fake, pool_size=1, max_overflow=0, timeout=0.05, name="orders")
    held = await greenlet_spawn(pool.connect)
    with pytest.raises(
        exc.TimeoutError, match=r"AsyncPoolkitPool limit of size 1 overflow 0 .*timeout 0\.05"
    ) as caught:
        await greenlet_spawn(pool.connect)
    assert isinstance(caught.value, poolkit.AcquireTimeout)
    assert "self-deadlock" in str(caught.value)
    assert "event loop" not in str(caught.value)
    held.close()


async def test_19_no_task_starves(fake: Any) -> None:
    pool = AsyncPoolkitPool(fake, pool_size=4, max_overflow=0)
    counts = [0] * 40
    stop = False

    async def work(number: int) -> None:
        while not stop:
            connection = await greenlet_spawn(pool.connect)
            await asyncio.sleep(0.001)
            connection.close()
            counts[number] += 1

    tasks = [asyncio.create_task(work(number)) for number in range(40)]
    await until(lambda: sum(counts) >= 800)
    stop = True
    await asyncio.gather(*tasks)
    assert max(counts) - min(counts) <= 2, counts


async def test_26_idle_connections_leave_and_the_floor_stays(make_async_engine: Any, postgres: PostgresServer) -> None:
    engine = make_async_engine(pool_size=5, min_size=1, idle_timeout=0.2)
    burst = await pids(engine, 4)
    await until(lambda: len(set(burst) & set(postgres.backends())) == 1)


async def test_a_lifetime_ends_in_the_background(make_async_engine: Any) -> None:
    engine = make_async_engine(pool_size=1, max_overflow=0, max_lifetime=0.2)
    first = await pid(engine)
    with anyio.fail_after(10):
        while await pid(engine) == first:
            await asyncio.sleep(0.02)


async def test_warm_up_in_a_greenlet(make_async_engine: Any) -> None:
    engine = make_async_engine()
    await greenlet_spawn(engine.pool.poolkit.warm_up, 3)
    assert engine.pool.checkedin() == 3
    assert len(set(await pids(engine, 3))) == 3
    assert engine.pool.poolkit.stats().connects == 3


@pytest.mark.parametrize("settings", [{"pool_pre_ping": True}, {"check_after_idle": 0}])
async def test_16_a_restart_of_the_server_costs_no_caller_an_error(
    make_async_engine: Any, postgres: PostgresServer, settings: dict[str, Any]
) -> None:
    engine = make_async_engine(pool_size=5, **settings)
    old = await pids(engine, 5)
    postgres.kill_backends()
    new = await pids(engine, 5)
    assert len(set(new)) == 5
    assert not set(old) & set(new)


async def test_09_a_ping_that_gets_no_answer_is_bounded(
    make_async_engine: Any, postgres: PostgresServer, fault_proxy: Any, driver: str
) -> None:
    proxy = fault_proxy(postgres.host, postgres.port)
    url = postgres.sqlalchemy_url(driver).replace(f":{postgres.port}/", f":{proxy.port}/")
    engine = make_async_engine(url, pool_size=2, check_after_idle=0, check_timeout=0.3)
    old = await pids(engine, 2)
    proxy.mode = "silent"
    asyncio.get_running_loop().call_later(0.15, setattr, proxy, "mode", "pass")
    with anyio.fail_after(20):
        assert await pid(engine) not in old


async def test_a_cancelled_check_takes_its_connection_along(
    make_async_engine: Any, postgres: PostgresServer, fault_proxy: Any, driver: str
) -> None:
    proxy = fault_proxy(postgres.host, postgres.port)
    url = postgres.sqlalchemy_url(driver).replace(f":{postgres.port}/", f":{proxy.port}/")
    engine = make_async_engine(url, pool_size=1, max_overflow=0, check_after_idle=0, pool_timeout=10)
    old = await pid(engine)
    proxy.mode = "mute"
    task = asyncio.create_task(pid(engine))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    proxy.mode = "pass"
    proxy.cut()
    assert await pid(engine) != old


@since[2, 0, 58]
async def test_a_close_goes_on_when_its_caller_is_cancelled(make_async_engine: Any, postgres: PostgresServer) -> None:
    engine = make_async_engine(pool_size=1, max_overflow=1)
    one, two = await engine.connect(), await engine.connect()
    extra = await two.scalar(PID)
    await one.scalar(PID)
    await one.close()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await two.close()
    await until(lambda: extra not in postgres.backends())
    await until(lambda: engine.pool.checkedout() == 0)
    engine.pool.poolkit.check_books()


@since[2, 0, 58]
async def test_13_a_dropped_connection_gives_its_place_back(make_async_engine: Any) -> None:
    engine = make_async_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    lost: Any = await greenlet_spawn(engine.sync_engine.raw_connection)
    first = lost.driver_connection
    cycle = [lost]
    cycle.append(cycle)  # type: ignore[arg-type]
    del lost, cycle
    with pytest.warns(exc.SAWarning, match="garbage collector"):
        gc.collect()
    assert await pid(engine)
    if hasattr(first, "pgconn"):
        await first.close()  # SQLAlchemy drops it unclosed: the dialect cannot close it outside the loop


async def test_leaks_name_the_place_in_the_program(make_async_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = make_async_engine(leak_after=0.05)
    with caplog.at_level("WARNING", logger="poolkit"):
        async with engine.connect():
            await until(lambda: caplog.records)
    assert __file__ in caplog.text


# the first loop ended with connections open: asyncio says so when it collects their transports
unclosed = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@unclosed
def test_a_second_event_loop_gets_connections_of_its_own(postgres: PostgresServer, driver: str) -> None:
    engine = create_async_engine(postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=2)
    first = asyncio.run(pids(engine, 2))
    second = asyncio.run(pids(engine, 2))
    assert not set(first) & set(second)
    assert engine.pool.checkedin() == 2

    async def end() -> None:
        assert await pid(engine) not in first + second
        await engine.dispose()

    asyncio.run(end())
    gc.collect()
    assert not set(first + second) & set(postgres.backends())


@unclosed
def test_loops_that_take_turns_keep_their_connections(postgres: PostgresServer, driver: str) -> None:
    """Between two calls of ``run_until_complete()`` a loop does not run, but uses its idle connections later."""
    engine = create_async_engine(postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=3)
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        own = one.run_until_complete(pids(engine, 3))
        assert other.run_until_complete(pid(engine)) not in own
        assert engine.pool.checkedin() == 3
        assert one.run_until_complete(pids(engine, 2)) == own[1:]
        one.run_until_complete(engine.dispose())
    finally:
        one.close()
        other.close()
        gc.collect()


@unclosed
def test_the_engine_replaces_the_connections_of_a_loop_that_has_ended(
    postgres: PostgresServer, fault_proxy: Any, driver: str
) -> None:
    """Its backoff and circuit breaker apply, which a connect in place would bypass."""
    proxy = fault_proxy(postgres.host, postgres.port)
    url = make_url(postgres.sqlalchemy_url(driver)).set(host=proxy.host, port=proxy.port)
    engine = create_async_engine(
        url, poolclass=AsyncPoolkitPool, pool_size=3, max_overflow=0, pool_timeout=PATIENCE,
        breaker=BreakerConfig(failure_threshold=1, reset_timeout=2 * PATIENCE),
        backoff=BackoffConfig(base=0.001, cap=0.001),
    )  # fmt: skip
    pool: Any = engine.pool
    tries: list[Any] = []
    asyncio.run(pids(engine, 3))
    event.listen(engine.sync_engine, "do_connect", lambda *_: tries.append(1))

    async def refused() -> None:
        proxy.mode = "refuse"
        for error in (poolkit.ConnectFailed, poolkit.CircuitOpen):
            with pytest.raises(error):
                await engine.connect()
        assert len(tries) == 1
        await until(lambda: not pool.poolkit.stats().size)  # the others cannot be used either
        await until(lambda: not proxy.open)

    async def served() -> None:
        proxy.mode = "pass"
        pool.poolkit.reconfigure(breaker=None)
        assert len(set(await pids(engine, 3))) == 3
        assert pool.poolkit.stats().connects == 6
        await engine.dispose()
        pool.poolkit.check_books()

    asyncio.run(refused())
    asyncio.run(served())
    gc.collect()


@unclosed
def test_two_event_loops_at_once_never_share_a_connection(postgres: PostgresServer, driver: str) -> None:
    engine = create_async_engine(
        postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=3, max_overflow=0, pool_timeout=20
    )
    asyncio.run(pid(engine))  # SQLAlchemy's lock around the very first connect belongs to one loop
    failures: list[BaseException] = []
    ready = threading.Barrier(2)

    async def work() -> None:
        for _ in range(15):
            async with engine.connect() as connection:
                assert await connection.scalar(ONE) == 1

    async def main() -> None:
        await asyncio.to_thread(ready.wait, 10)
        await asyncio.gather(*(work() for _ in range(4)))
        await asyncio.to_thread(ready.wait, 20)
        await asyncio.sleep(0.1)  # the other loop may still ask this one to close something

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert engine.pool.checkedout() == 0
    engine.pool.poolkit.check_books()
    asyncio.run(engine.dispose())
    gc.collect()


@unclosed
def test_a_connect_runs_in_the_loop_of_the_caller_that_needs_it(postgres: PostgresServer, driver: str) -> None:
    """The other loop frees the slot and so starts the connect. A connection that it opens there is useless here."""
    engine = create_async_engine(
        postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0, pool_timeout=20
    )
    pool: Any = engine.pool
    connects: list[Any] = []
    loops: list[Any] = []
    event.listen(engine.sync_engine, "do_connect", lambda *_: connects.append(asyncio.get_running_loop()))

    async def other() -> None:
        async with engine.connect() as connection:
            loops.append(asyncio.get_running_loop())
            assert await connection.scalar(ONE) == 1

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        thread = threading.Thread(target=asyncio.run, args=(other(),))
        async with engine.connect() as connection:
            await connection.scalar(ONE)
            thread.start()
            await until(lambda: pool.poolkit.stats().waiting)
            pool.poolkit.clear()
        await asyncio.to_thread(thread.join, 20)

    asyncio.run(main())
    assert connects == loops
    asyncio.run(engine.dispose())
    gc.collect()


@unclosed
def test_a_connect_does_not_serve_an_older_caller_of_another_loop(postgres: PostgresServer, driver: str) -> None:
    """That caller could not use the connection: it would close it and connect again."""
    engine = create_async_engine(
        postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=2, max_overflow=0, pool_timeout=PATIENCE
    )
    pool: Any = engine.pool
    asyncio.run(pid(engine))  # SQLAlchemy makes all others wait for the very first connect
    asyncio.run(engine.dispose())
    pool = engine.pool
    connects: list[Any] = []
    held: list[Any] = []  # the loop in which connects hang, and what they wait for

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(*_: Any) -> None:
        loop = asyncio.get_running_loop()
        connects.append(loop)
        if loop is held[0]:
            await_(held[1].wait())

    served, done = threading.Event(), threading.Event()

    async def younger() -> None:
        async with engine.connect() as connection:
            assert await connection.scalar(ONE) == 1
            served.set()
            await asyncio.to_thread(done.wait, PATIENCE)

    async def main() -> None:
        held[:] = asyncio.get_running_loop(), asyncio.Event()
        older = asyncio.create_task(pid(engine))
        await until(lambda: connects)
        thread = threading.Thread(target=asyncio.run, args=(younger(),))
        thread.start()
        in_time = await asyncio.to_thread(served.wait, PATIENCE)
        held[1].set()
        await older
        done.set()
        await asyncio.to_thread(thread.join, PATIENCE)
        assert in_time, "served by the connect of its own loop"

    asyncio.run(main())
    assert len(connects) == len(set(connects)) == 2
    pool.poolkit.check_books()
    asyncio.run(engine.dispose())
    gc.collect()


@pytest.fixture
def other_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A second event loop, which runs in a thread."""
    found: list[asyncio.AbstractEventLoop] = []
    started, over = threading.Event(), asyncio.Event()

    async def main() -> None:
        found.append(asyncio.get_running_loop())
        started.set()
        await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(PATIENCE)
    yield found[0]
    found[0].call_soon_threadsafe(over.set)
    thread.join()


@unclosed
def test_a_connection_that_is_replaced_in_place_counts_as_closed_and_opened(
    postgres: PostgresServer, driver: str, other_loop: asyncio.AbstractEventLoop
) -> None:
    """The loop of the old one still runs."""
    events: list[poolkit.Event] = []
    engine = create_async_engine(
        postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0,
        pool_timeout=PATIENCE, listeners=[events.append],
    )  # fmt: skip
    pool: Any = engine.pool
    first = asyncio.run_coroutine_threadsafe(pid(engine), other_loop).result(PATIENCE)
    assert asyncio.run(pid(engine)) != first
    stats = pool.poolkit.stats()
    assert (stats.connects, sum(stats.closes.values()), stats.size) == (2, 1, 1)
    kinds = [event.kind for event in events]
    assert kinds.count(poolkit.EventKind.CONNECTION_READY) == 2
    assert kinds.count(poolkit.EventKind.CONNECTION_CLOSED) == 1
    pool.poolkit.check_books()
    asyncio.run(engine.dispose())
    gc.collect()


@unclosed
@pytest.mark.parametrize("patience", [PATIENCE, None], ids=("pool_timeout", "no-pool_timeout"))
def test_a_connect_in_place_that_hangs_ends_for_its_caller_with_the_block(
    postgres: PostgresServer, driver: str, other_loop: asyncio.AbstractEventLoop, patience: float | None
) -> None:
    """The message does not name ``pool_timeout`` as the time that the caller has waited."""
    engine = create_async_engine(
        postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0, pool_timeout=patience
    )
    pool: Any = engine.pool
    asyncio.run_coroutine_threadsafe(pid(engine), other_loop).result(PATIENCE)

    async def main() -> None:
        answers = asyncio.Event()

        @event.listens_for(engine.sync_engine, "do_connect")
        def hang(*_: Any) -> None:
            await_(answers.wait())

        with pytest.raises(exc.TimeoutError, match="the connect continues") as caught, poolkit.deadline(0.2):
            await pid(engine)
        assert f"no connection in {PATIENCE:g} s" not in str(caught.value)
        answers.set()
        await pid(engine)

    asyncio.run(main())
    pool.poolkit.check_books()
    asyncio.run(engine.dispose())
    gc.collect()


@unclosed
@pytest.mark.parametrize("long_waits", [False, True], ids=("it-has-just-come", "it-has-waited-for-long"))
def test_a_returned_connection_goes_to_a_caller_of_its_own_loop(
    postgres: PostgresServer, driver: str, other_loop: asyncio.AbstractEventLoop, long_waits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An older one of another loop would close it and connect once more. It does that when it has waited for long."""
    monkeypatch.setattr(retire, "LONGEST", -1.0 if long_waits else PATIENCE)
    engine = create_async_engine(
        postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0, pool_timeout=PATIENCE
    )
    pool: Any = engine.pool
    served: list[tuple[str, int]] = []

    async def caller(name: str) -> None:
        served.append((name, await pid(engine)))

    async def main() -> int:
        async with engine.connect() as connection:
            held: int = await connection.scalar(PID)
            older = asyncio.run_coroutine_threadsafe(caller("older"), other_loop)
            await until(lambda: pool.poolkit.stats().waiting == 1)
            younger = asyncio.create_task(caller("younger"))
            await until(lambda: pool.poolkit.stats().waiting == 2)
        await asyncio.wait_for(asyncio.gather(asyncio.wrap_future(older), younger), PATIENCE)
        return held

    held = asyncio.run(main())
    names = [name for name, _ in served]
    assert names == (["older", "younger"] if long_waits else ["younger", "older"])
    assert [backend == held for _, backend in served] == ([False, False] if long_waits else [True, False])
    assert pool.poolkit.stats().connects == (3 if long_waits else 2)
    pool.poolkit.check_books()
    asyncio.run(engine.dispose())
    gc.collect()


@unclosed
def test_a_return_waits_for_no_close_of_another_loop(
    postgres: PostgresServer, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of another thread closes a connection during this return."""
    engine = create_async_engine(
        postgres.sqlalchemy_url(driver), poolclass=AsyncPoolkitPool, pool_size=3, max_overflow=0, pool_timeout=20
    )
    pool: Any = engine.pool
    release = pool.poolkit.release

    async def other() -> None:
        async with engine.connect() as connection:
            await connection.scalar(ONE)
        pool.poolkit.discard_idle()
        await asyncio.wait(pool._runtime.pending())

    def interrupted(record: Any, **how: Any) -> None:
        monkeypatch.setattr(pool.poolkit, "release", release)
        thread = threading.Thread(target=asyncio.run, args=(other(),))
        thread.start()
        thread.join(20)
        release(record, **how)

    async def main() -> None:
        async with engine.connect() as connection:
            await connection.scalar(ONE)
            monkeypatch.setattr(pool.poolkit, "release", interrupted)
        async with engine.connect() as connection:
            assert await connection.scalar(ONE) == 1

    asyncio.run(main())
    assert pool.checkedout() == 0
    asyncio.run(engine.dispose())
    gc.collect()


def test_outside_a_greenlet_sqlalchemy_raises(fake: Any) -> None:
    pool = AsyncPoolkitPool(fake, pool_size=1, max_overflow=0, timeout=1)
    held = pool.connect()
    with pytest.raises(exc.MissingGreenlet):
        pool.connect()
    held.close()
