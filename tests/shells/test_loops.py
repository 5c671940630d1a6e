"""An AsyncPool belongs to one event loop at a time."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial
from typing import Any

import pytest
import trio

from poolkit import AsyncPool, UsageError, WrongLoop
from poolkit.runtimes.current import current_runtime
from poolkit.testing import AsyncFakeConnector, ManualClock
from tests.support.waiting import until_async


def pool_of(**settings: Any) -> tuple[AsyncPool[Any], AsyncFakeConnector]:
    connector = AsyncFakeConnector()
    return AsyncPool(connector, max_size=2, **settings), connector


async def use(pool: AsyncPool[Any]) -> int:
    async with pool.lease() as connection:
        return int(connection.number)


def test_made_outside_a_loop() -> None:
    pool, _ = pool_of(min_size=1, start="eager")
    pool.reconfigure(max_waiting=5)
    assert pool.stats().size == 0
    pool.clear()
    assert asyncio.run(use(pool)) == 1


def test_without_a_loop_there_is_a_clear_error() -> None:
    pool, _ = pool_of()
    with pytest.raises(UsageError, match=r"an AsyncPool needs a running event loop .*; use Pool in threads"):
        pool.acquire().send(None)


@pytest.mark.parametrize("second", ["asyncio", "trio"])
@pytest.mark.parametrize("first", ["asyncio", "trio"])
def test_a_second_loop_after_the_first_has_connections_of_its_own(first: str, second: str) -> None:
    pool, connector = pool_of()
    run = {"asyncio": lambda: asyncio.run(use(pool)), "trio": lambda: trio.run(use, pool)}
    assert run[first]() == 1
    assert run[second]() == 2
    assert connector.connections[0].closed  # by an abort: no orderly close is possible on a loop that has ended
    assert pool.stats().size == 1
    pool.check_books()


def test_a_second_loop_beside_the_first_is_refused() -> None:
    pool, _ = pool_of(name="db")
    started, over = threading.Event(), threading.Event()

    async def first() -> None:
        await use(pool)
        started.set()
        while not over.is_set():
            await asyncio.sleep(0.001)
        assert await use(pool) == 1  # still usable
        pool.check_books()
        await pool.close()

    thread = threading.Thread(target=lambda: asyncio.run(first()))
    thread.start()
    started.wait(10)
    try:
        with pytest.raises(
            WrongLoop, match="db: this AsyncPool belongs to another asyncio event loop, which has not been closed"
        ):
            asyncio.run(use(pool))
        with pytest.raises(WrongLoop):
            trio.run(use, pool)
    finally:
        over.set()
        thread.join()


def test_an_open_loop_that_does_not_run_still_owns_the_pool() -> None:
    """run_until_complete several times: the same connections."""
    pool, _ = pool_of()
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(use(pool)) == 1
    assert loop.run_until_complete(use(pool)) == 1
    loop.run_until_complete(pool.close())
    loop.close()


def test_callers_of_a_loop_that_ended_are_forgotten() -> None:
    pool, connector = pool_of()
    connector.hold("connect")

    async def stuck() -> None:
        waiter = asyncio.ensure_future(use(pool))
        await asyncio.sleep(0.01)
        waiter.cancel()

    asyncio.run(stuck())
    connector.free_all()
    gc.collect()
    assert asyncio.run(use(pool)) == 1
    assert pool.stats().waiting == 0
    pool.check_books()


def test_background_work_at_the_end_of_a_loop_makes_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    """The end of the loop interrupts connects, checks, closes and resets without warnings."""

    async def main(pool: AsyncPool[Any], connector: AsyncFakeConnector, stage: str) -> None:
        leases = [await pool.lease() for _ in range(2)]
        connector.hold(stage)
        if stage == "connect":
            for lease in leases:
                lease.close_nowait(discard=True)
        elif stage == "reset":
            for lease in leases:
                lease.connection.dirty = True
                lease.close_nowait()
        else:
            for lease in leases:
                lease.close_nowait()
            if stage == "close":
                pool.clear()
            else:
                waiter = asyncio.ensure_future(use(pool)) if library == "asyncio" else None
                await sleep(0.005)
                if waiter is not None:
                    waiter.cancel()
        await sleep(0.005)

    for library in ("asyncio", "trio"):
        for stage in ("connect", "check", "reset", "close"):
            pool, connector = pool_of(min_size=2, check_after_idle=0)
            if library == "asyncio":
                sleep: Any = asyncio.sleep
                asyncio.run(main(pool, connector, stage))
            else:
                sleep = trio.sleep
                trio.run(main, pool, connector, stage)
            connector.free_all()
            gc.collect()
            assert asyncio.run(use(pool)) > 0
            pool.check_books()
    assert capfd.readouterr().err == ""


def test_release_from_another_thread() -> None:
    pool, _ = pool_of()

    async def main() -> None:
        for dirty in (False, True):
            lease = await pool.lease()
            lease.connection.dirty = dirty
            await asyncio.to_thread(lease.close_nowait)
            connection = await pool.acquire()
            assert connection.number == 1
            assert not connection.dirty
            await asyncio.to_thread(pool.release_nowait, connection)
        pool.check_books()
        await pool.close()

    asyncio.run(main())


def test_housekeeping_asked_for_before_the_first_use_is_not_lost() -> None:
    clock = ManualClock()
    connector = AsyncFakeConnector()
    pool = AsyncPool(connector, max_size=2, idle_timeout=0.05)
    pool.reconfigure(idle_timeout=0.06)  # requests a sweep before there is a loop
    del clock

    async def main() -> None:
        await use(pool)
        for _ in range(2000):
            if connector.live == 0:
                break
            await asyncio.sleep(0.005)
        assert connector.live == 0, "nobody swept"
        await pool.close()

    asyncio.run(main())


def test_commands_from_a_thread_without_a_loop() -> None:
    """clear, reconfigure, suspend, resume and stats are plain calls that work in any thread."""
    pool, connector = pool_of()

    async def main() -> None:
        await use(pool)
        await asyncio.to_thread(pool.clear)
        await asyncio.to_thread(pool.reconfigure, max_size=5)
        await asyncio.to_thread(pool.suspend)
        await asyncio.to_thread(pool.resume)
        assert (await asyncio.to_thread(pool.stats)).max_size == 5
        assert await use(pool) == 2
        while connector.live > 1:
            await asyncio.sleep(0.001)
        pool.check_books()
        await pool.close()

    asyncio.run(main())


def test_close_needs_the_pools_own_loop_while_that_runs() -> None:
    pool, connector = pool_of()
    asyncio.run(use(pool))
    asyncio.run(pool.close())  # the loop has ended: another one may close the pool
    assert pool.closed
    assert connector.live == 0


@pytest.mark.parametrize("flavour", ["asyncio", "trio"], indirect=True)
@pytest.mark.anyio
async def test_an_eager_pool_made_in_a_loop_opens_min_size_at_once(flavour: str) -> None:
    pool, connector = pool_of(min_size=2, start="eager")
    await until_async(lambda: pool.stats().idle == 2, "min_size is open", pool.stats)
    assert connector.calls["connect"] == 2
    await pool.close()


@pytest.mark.parametrize("flavour", ["asyncio"], indirect=True)
@pytest.mark.anyio
async def test_an_eager_pool_with_a_runtime_of_its_own_opens_min_size_at_once(flavour: str) -> None:
    pool, _ = pool_of(min_size=2, start="eager", runtime=current_runtime())
    await until_async(lambda: pool.stats().idle == 2, "min_size is open", pool.stats)
    await pool.close()


def test_a_lazy_pool_made_in_a_loop_belongs_to_the_loop_of_its_first_use() -> None:
    async def make() -> AsyncPool[Any]:
        return pool_of(min_size=1)[0]

    pool = asyncio.run(make())
    assert asyncio.run(use(pool)) == 1


async def eager(*, opened: bool) -> tuple[AsyncPool[Any], AsyncFakeConnector]:
    """Create a pool in this loop, which returns with its connects open or in progress."""
    pool, connector = pool_of(min_size=2, start="eager")
    if not opened:
        connector.hold("connect")
    await until_async(lambda: connector.calls["connect"] == 2, "the pool connects", pool.stats)
    if opened:
        await until_async(lambda: pool.stats().idle == 2, "min_size is open", pool.stats)
    return pool, connector


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("second", ["asyncio", "trio"])
@pytest.mark.parametrize("first", ["asyncio", "trio", "stopped"])
def test_an_eager_pool_that_nobody_has_used_is_bound_by_its_first_use(first: str, second: str, *, opened: bool) -> None:
    """The loop that created it has ended, or is open and does not run."""
    loop = asyncio.new_event_loop()
    make = partial(eager, opened=opened)
    pool, connector = trio.run(make) if first == "trio" else loop.run_until_complete(make())
    if first == "asyncio":
        end(loop)
    assert (pool.stats().connect_errors, pool.stats().last_connect_error) == (0, None)
    connector.free_all()
    assert (asyncio.run(use(pool)) if second == "asyncio" else trio.run(use, pool)) > 0
    assert (pool.stats().connect_errors, pool.stats().last_connect_error) == (0, None)
    pool.check_books()
    if not loop.is_closed():
        end(loop)
    assert all(one.closed for one in connector.connections[:2]) or not opened
    pool.check_books()


@pytest.mark.parametrize("begun", [True, False])
def test_a_late_connect_of_the_loop_that_created_an_eager_pool_is_dropped(*, begun: bool) -> None:
    """The loop runs again after another one has taken the pool over. Its connect has begun, or begins only then."""
    loop = asyncio.new_event_loop()
    connector = AsyncFakeConnector()

    async def make() -> AsyncPool[Any]:
        pool = AsyncPool(connector, max_size=2, min_size=2 if begun else 0, start="eager")
        if begun:
            connector.hold("connect")
            await until_async(lambda: connector.calls["connect"] == 2, "the pool connects", pool.stats)
        return pool

    async def take() -> None:
        await use(pool)
        await until_async(lambda: pool.stats().idle == 2, "min_size is open", pool.stats)
        await asyncio.to_thread(loop.run_until_complete, asyncio.sleep(0.05))
        assert pool.stats().size == connector.live == 2
        pool.check_books()
        await pool.close()

    pool = loop.run_until_complete(make())
    if not begun:
        pool.reconfigure(min_size=2)
        assert pool.stats().connecting == 2
        assert not connector.calls["connect"]
    connector.free_all()
    asyncio.run(take())
    end(loop)
    assert connector.live == 0


@pytest.mark.parametrize("used", ["lease", "open", "warm_up"])
def test_an_eager_pool_that_was_used_stays_with_its_loop(used: str) -> None:
    loop = asyncio.new_event_loop()
    pool, _ = loop.run_until_complete(eager(opened=True))
    if used == "lease":
        loop.run_until_complete(use(pool))
    elif used == "open":
        loop.run_until_complete(pool.__aenter__())
    else:
        loop.run_until_complete(pool.warm_up())
    with pytest.raises(WrongLoop):
        asyncio.run(use(pool))
    loop.run_until_complete(pool.close())
    end(loop)


def end(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop as asyncio.run() does."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
