"""A pool whose connections belong to no event loop (``AsyncConnector.any_loop``): every loop may use it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import Any

import pytest

from poolkit import AcquireTimeout, AsyncPool
from poolkit.testing import AsyncFakeConnector
from tests.support.loops import running
from tests.support.waiting import PATIENCE, until


def pool_of(connector: AsyncFakeConnector | None = None, **settings: Any) -> AsyncPool[Any]:
    connector = AsyncFakeConnector() if connector is None else connector
    connector.any_loop = True
    return AsyncPool(connector, **{"max_size": 2, "acquire_timeout": PATIENCE, **settings})


async def use(pool: AsyncPool[Any]) -> int:
    async with pool.lease() as connection:
        await asyncio.sleep(0)
        return int(connection.number)


def test_one_loop_after_the_other_uses_the_same_connections() -> None:
    pool = pool_of()
    assert {asyncio.run(use(pool)) for _ in range(5)} == {1}
    pool.check_books()
    asyncio.run(pool.close())
    assert pool.stats().size == 0


def test_a_loop_that_has_stopped_may_go_on() -> None:
    pool = pool_of()
    first = asyncio.new_event_loop()
    assert first.run_until_complete(use(pool)) == 1
    assert asyncio.run(use(pool)) == 1
    assert first.run_until_complete(use(pool)) == 1
    first.run_until_complete(pool.close())
    first.close()


def test_loops_in_two_threads_share_the_limit_and_wait_for_each_other() -> None:
    connector = AsyncFakeConnector()
    pool = pool_of(connector)

    async def many() -> None:
        await asyncio.gather(*(use(pool) for _ in range(200)))

    with running() as one, running() as other:
        works = [run(many()) for run in (one, other, one, other)]
        for work in works:
            work.result(PATIENCE)
        assert connector.max_live <= 2
        pool.check_books()

        held = [one(pool.acquire()).result(PATIENCE) for _ in range(2)]
        waiting = other(pool.acquire())
        until(lambda: pool.stats().waiting == 1)
        one(pool.release(held.pop())).result(PATIENCE)
        other(pool.release(waiting.result(PATIENCE))).result(PATIENCE)
        one(pool.release(held.pop())).result(PATIENCE)
        other(pool.close()).result(PATIENCE)
    assert pool.stats().size == 0


def test_a_connect_that_is_cut_off_with_its_loop_is_done_for_the_next_one() -> None:
    connector = AsyncFakeConnector()
    pool = pool_of(connector, max_size=1)
    connector.hold("connect")

    async def late() -> None:
        with pytest.raises(AcquireTimeout):
            await pool.acquire(timeout=0)
        while not connector.dialling:
            await asyncio.sleep(0)

    asyncio.run(late())  # asyncio cancels the connect in the background
    connector.free_all()
    asyncio.run(use(pool))
    pool.check_books()
    assert connector.max_live == 1
    asyncio.run(pool.close())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_with_its_tasks_costs_no_place() -> None:
    connector = AsyncFakeConnector()
    pool = pool_of(connector, max_size=1)
    connector.hold("connect")
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # asyncio says that a task was pending

    async def late() -> None:
        with contextlib.suppress(AcquireTimeout):
            await pool.acquire(timeout=0)
        while not connector.dialling:
            await asyncio.sleep(0)

    loop.run_until_complete(late())
    loop.close()
    connector.free_all()

    async def after() -> None:
        waiting = asyncio.ensure_future(use(pool))
        await asyncio.sleep(0)
        gc.collect()
        await waiting

    asyncio.run(after())
    pool.check_books()
    asyncio.run(pool.close())


def test_work_that_a_loop_has_not_begun_when_it_stops_is_done_by_the_next() -> None:
    pool = pool_of(max_size=1)
    loop = asyncio.new_event_loop()

    async def stop_at_once() -> None:
        with contextlib.suppress(AcquireTimeout):
            await pool.acquire(timeout=0)

    loop.run_until_complete(stop_at_once())
    assert pool.stats().connecting == 1
    asyncio.run(use(pool))
    pool.check_books()
    loop.run_until_complete(asyncio.sleep(0))  # work that was taken over is not done again
    pool.check_books()
    loop.run_until_complete(pool.close())
    loop.close()


def test_a_waiting_caller_takes_over_from_a_loop_that_ends() -> None:
    """The first loop was to retry the failed connect."""
    connector = AsyncFakeConnector()
    pool = pool_of(connector, max_size=1)
    with running() as other:
        with running() as one:
            connector.fail("connect", lambda: OSError("down"))
            with contextlib.suppress(Exception):
                one(pool.acquire(timeout=0)).result(PATIENCE)
            waiting = other(pool.acquire())
            until(lambda: pool.stats().waiting == 1)
        connector.fail("connect", None)
        other(pool.release(waiting.result(PATIENCE))).result(PATIENCE)
        pool.check_books()
        other(pool.close()).result(PATIENCE)


def test_a_connect_that_raises_cancelled_error_by_itself_is_tried_again_at_once() -> None:
    """The loop does not end, although the error suggests it."""
    connector = AsyncFakeConnector()
    pool = pool_of(connector, max_size=1)
    errors: list[BaseException] = [asyncio.CancelledError()]
    connector.fail("connect", lambda: errors.pop() if errors else None)

    async def main() -> None:
        waiting = asyncio.ensure_future(pool.acquire())
        while pool.stats().idle or not pool.stats().in_use:
            await asyncio.sleep(0.001)  # not by the caller's own check
        await pool.release(await waiting)
        await pool.close()

    asyncio.run(main())


def test_a_pool_that_no_loop_uses_any_more_is_collected() -> None:

    pool = pool_of()
    asyncio.run(use(pool))
    asyncio.run(pool.close())
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
