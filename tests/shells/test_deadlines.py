"""A deadline for several calls, which their code need not pass on."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import pytest

import poolkit
from poolkit import AcquireTimeout, OverloadConfig, Pool, UsageError
from poolkit._deadline import current
from poolkit.testing import FakeConnector
from tests.shells.kit import NO_DEADLINE, Rig
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


def lost(pool: Any) -> float:
    """Give-ups that the pool has noted."""
    evidence = pool._core.endpoint.queue.line_of(None).evidence
    return 0.0 if evidence is None else float(evidence.lost)


async def in_block(rig: Rig, seconds: float, timeout: float | None = NO_DEADLINE) -> Any:
    """A lease in a block with a deadline, in the caller's own thread or task."""
    if rig.threads:

        def lease() -> Any:
            with poolkit.deadline(seconds):
                return rig.pool.lease(timeout)

        return await rig.call(lease)
    with poolkit.deadline(seconds):
        return await rig.pool.lease(timeout)


async def test_a_caller_waits_no_longer_than_its_block(make: Make) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        with pytest.raises(AcquireTimeout):
            await in_block(rig, 0.02)
        with pytest.raises(AcquireTimeout):
            await in_block(rig, NO_DEADLINE, 0.02)
        with pytest.raises(AcquireTimeout):
            await in_block(rig, 0.02, None)
        await rig.give(held)
        await rig.give(await in_block(rig, 0.0))  # an idle connection costs no time
        await rig.give(await in_block(rig, math.inf))


async def test_a_caller_does_not_wait_longer_for_its_connect(make: Make) -> None:
    async with make(max_size=1) as rig:
        rig.connector.hold("connect")
        rig.pool._driver.operations.connect_grace = lambda over: NO_DEADLINE
        with pytest.raises(AcquireTimeout):
            await in_block(rig, 0.02)
        rig.connector.free_all()


def test_the_earliest_of_nested_blocks_counts() -> None:
    def at() -> float:
        block = current()
        assert block is not None
        return block.at

    assert current() is None
    with poolkit.deadline(10.0):
        outer = at()
        with poolkit.deadline(60.0):
            assert at() == outer
        with poolkit.deadline(1.0):
            assert at() < outer
        assert at() == outer
    assert current() is None


def test_a_thread_starts_without_it_unless_it_runs_in_the_context() -> None:
    half = poolkit.deadline(0.5)
    with half, half:
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        copied = threading.Thread(target=copy_context().run, args=(lambda: seen.append(current()),))
        copied.start()
        copied.join()
        assert seen == [None, current()]
    assert current() is None


def test_it_applies_to_the_tasks_that_the_block_starts() -> None:
    async def look() -> Any:
        return current()

    async def main() -> None:
        with poolkit.deadline(1.0):
            task, block = asyncio.ensure_future(look()), current()
            assert await task is block is not None
            task = asyncio.ensure_future(look())
        assert await task is None, "it outlives the block"

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), True, None, "1"])
def test_a_deadline_that_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(UsageError, match=r"deadline\(.*\): must be a time in seconds, 0 or more"):
        poolkit.deadline(seconds)


# -- leases that end late ---------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[Any]:
    with Pool(FakeConnector(resets=False), max_size=1, barging_window=0.0, overload=OverloadConfig()) as pool:
        yield pool
        pool.check_books()


@contextmanager
def queued(pool: Any, work: Callable[[], object]) -> Iterator[None]:
    """``work()`` waits in another thread until the block ends, because somebody else holds the only connection."""
    held = pool.acquire(NO_DEADLINE)
    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: pool.stats().waiting == 1, "it waits")
    yield
    pool.release(held)
    thread.join()


def use(pool: Any) -> None:
    pool.release(pool.acquire(NO_DEADLINE))


def late(pool: Any, *, by: float, error: type[BaseException] | None = None) -> float:
    """A thread waits in a block, is served, and leaves the block while others wait. What the pool has noted then."""
    block = poolkit.deadline(NO_DEADLINE)
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        block.__enter__()
        running = current()
        use(pool)
        assert running is not None
        running.at -= by
        inside.set()
        leave.wait(PATIENCE)
        block.__exit__(error)

    held = pool.acquire(NO_DEADLINE)
    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: pool.stats().waiting == 1, "it waits")
    pool.release(held)
    inside.wait(PATIENCE)
    with queued(pool, lambda: use(pool)):
        leave.set()
        thread.join()
        return lost(pool)


def test_a_lease_of_a_block_that_ends_late_was_given_up(pool: Any) -> None:
    """As that of a task that is cancelled in the middle of it."""
    assert late(pool, by=NO_DEADLINE) == 1.0
    assert late(pool, by=NO_DEADLINE, error=ValueError) > 1.5


def test_a_lease_of_a_block_that_ends_in_time_was_not(pool: Any) -> None:
    assert late(pool, by=0.0) == 0.0


def test_a_caller_that_is_cancelled_does_not_count_twice(pool: Any) -> None:
    assert late(pool, by=NO_DEADLINE, error=asyncio.CancelledError) == 0.0, "its lease has told of it"


def test_a_caller_that_gave_up_in_the_queue_does_not_count_twice(pool: Any) -> None:
    with queued(pool, lambda: use(pool)), poolkit.deadline(0.0):
        with pytest.raises(AcquireTimeout):
            pool.acquire(NO_DEADLINE)
        before = lost(pool)
        assert before
    assert lost(pool) == before


def test_a_block_keeps_no_pool_alive() -> None:
    with poolkit.deadline(NO_DEADLINE):
        pool = Pool(FakeConnector(), max_size=1)
        pool.release(pool.acquire(NO_DEADLINE))
        pool.close()
        gone = weakref.ref(pool)
        del pool
        gc.collect()
        assert gone() is None
