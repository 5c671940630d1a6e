"""A deadline for several calls, which no code has to pass on."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import copy_context
from typing import Any

import anyio
import pytest

import poolkit
from poolkit import AcquireTimeout, AsyncPool, ConnectFailed, ConnectTimeout, OverloadConfig, Pool, UsageError
from poolkit._deadline import BLOCKS, current
from poolkit.testing import AsyncFakeConnector, FakeConnector
from tests.shells.kit import ASYNC, NO_DEADLINE, Rig
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


@pytest.fixture(autouse=True)
def all_blocks_end() -> Iterator[None]:
    BLOCKS.clear()  # left by a failed test
    yield
    assert not BLOCKS


def lost(pool: Any) -> float:
    """Return how many callers the pool has counted as given up."""
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


async def test_a_caller_begins_no_connect_of_its_own_after_its_block(make: Make) -> None:
    async with make(max_size=1, features={"in_caller": True}) as rig:
        for timeout in (NO_DEADLINE, None, 0.0):
            with pytest.raises(AcquireTimeout, match="no connection in"):
                await in_block(rig, 0.0, timeout)
        assert rig.connector.calls["connect"] == 0
        assert rig.stats.timeouts == 3
        assert rig.stats.size == 0
        await rig.give(await rig.lease())
        await rig.give(await in_block(rig, 0.0))  # an idle connection is handed out


@pytest.mark.parametrize("timeout", [None, NO_DEADLINE, 0.0])
async def test_its_own_connect_has_what_is_left_of_its_block(make: Make, timeout: float | None) -> None:
    given: list[Any] = []
    async with make(max_size=1, features={"in_caller": True}, connect_timeout=None) as rig:
        connect = rig.connector.connect

        def noted(limit: float | None) -> Any:
            given.append(limit)
            return connect(limit)

        rig.connector.connect = noted
        await rig.give(await in_block(rig, NO_DEADLINE / 2, timeout))
    (limit,) = given
    assert limit is not None
    assert NO_DEADLINE / 2 - PATIENCE < limit <= NO_DEADLINE / 2


@ASYNC
@pytest.mark.parametrize("timeout", [NO_DEADLINE, None, 0.0])
async def test_its_own_connect_in_a_task_ends_after_connect_timeout(make: Make, timeout: float | None) -> None:
    """In a block or not, whatever the driver does with its limit."""
    async with make(
        max_size=1, features={"in_caller": True}, connect_timeout=0.02, acquire_timeout=NO_DEADLINE, name="db"
    ) as rig:
        rig.connector.hold("connect")
        for lease in (rig.lease(timeout), in_block(rig, NO_DEADLINE, timeout)):
            with anyio.fail_after(PATIENCE), pytest.raises(ConnectTimeout, match="db: no connection within connect_"):
                await lease
        assert (rig.stats.timeouts, rig.stats.connect_errors) == (0, 2)
        await rig.until(lambda: rig.stats.size == 0)
        rig.connector.free_all()
        rig.pool.reconfigure(connect_timeout=PATIENCE)
        await rig.give(await rig.lease())


@ASYNC
@pytest.mark.parametrize("limit", [NO_DEADLINE, None])
async def test_its_own_connect_in_a_task_ends_with_its_block(make: Make, limit: float | None) -> None:
    """This holds however the driver treats its limit."""
    async with make(max_size=1, features={"in_caller": True}, connect_timeout=limit) as rig:
        rig.connector.hold("connect")
        for timeout in (NO_DEADLINE, None, 0.0):
            with pytest.raises(AcquireTimeout):
                await in_block(rig, 0.02, timeout)
        assert rig.stats.timeouts == 3
        await rig.until(lambda: rig.stats.size == 0)
        rig.connector.free_all()
        await rig.give(await rig.lease())


@ASYNC
async def test_its_own_connect_is_left_to_a_driver_that_bounds_it(make: Make) -> None:
    async with make(max_size=1, features={"in_caller": True}) as rig:
        gate = rig.connector.hold("connect")
        rig.pool._driver.operations.bounds_connects = True

        async def late() -> None:
            await rig.until(lambda: rig.connector.dialling == 1)
            await anyio.sleep(0.1)
            gate.set()

        async with anyio.create_task_group() as group:
            group.start_soon(late)
            lease = await rig.lease(0.05)
        await rig.give(lease)


async def test_a_caller_that_is_served_when_its_time_is_up_begins_no_connect(make: Make, flavour: str) -> None:
    """The slot of a connect that ended at its caller's deadline goes to a caller whose deadline has passed too."""
    if flavour == "threads":
        pytest.skip("only the connector itself can end a connect in a thread")
    async with make(max_size=1, features={"in_caller": True}, connect_timeout=None) as rig:
        rig.connector.hold("connect")
        errors: list[Exception] = []

        async def caller() -> None:
            with pytest.raises(AcquireTimeout) as caught:
                await rig.lease(0.05)
            errors.append(caught.value)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(caller)
        assert len(errors) == 4
        assert rig.stats.connecting == 0
        rig.connector.free_all()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="cancellations are not counted")
def test_a_cancellation_at_the_end_of_a_connect_is_not_lost() -> None:
    """The limit expires and another task cancels the caller in one iteration of the loop."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncPool(AsyncFakeConnector(in_caller=True), max_size=1) as pool:
            pool._connector.hold("connect")
            task = asyncio.ensure_future(pool.acquire(0.01))
            await asyncio.sleep(0)
            timers: list[Any] = []
            loop.call_later(0.01, lambda: timers.append(task.cancel()))
            time.sleep(0.05)  # both are due
            with pytest.raises(asyncio.CancelledError):
                await task
            assert timers
            pool._connector.free_all()

    asyncio.run(main())


async def test_warm_up_waits_no_longer_than_its_block(make: Make) -> None:
    async with make(max_size=2) as rig:
        rig.connector.hold("connect")

        def in_thread() -> None:
            with poolkit.deadline(0.02):
                rig.pool.warm_up(2)

        with anyio.fail_after(PATIENCE), pytest.raises(ConnectFailed, match="2 of 2 did not finish in time"):
            if rig.threads:
                await rig.call(in_thread)
            else:
                with poolkit.deadline(0.02):
                    await rig.pool.warm_up(2)
        rig.connector.free_all()
        await rig.until(lambda: rig.stats.idle == 2)


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


@contextmanager
def entered_twice(one: poolkit.deadline) -> Iterator[Callable[[], Any]]:
    """Another thread has entered ``one`` before the body does, and leaves it when the body calls the function. Returns
    what that thread then sees as its block.
    """
    inside, leave = threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> None:
        with one:
            mine = current()
            inside.set()
            leave.wait(PATIENCE)
            seen.append(current() is mine)
        seen.append(current())

    def ended() -> list[Any]:
        leave.set()
        thread.join()
        return seen

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(PATIENCE)
    try:
        yield ended
    finally:
        ended()


@pytest.mark.parametrize("leaves_first", [False, True])
def test_threads_may_share_one(leaves_first: bool) -> None:
    one = poolkit.deadline(NO_DEADLINE)
    with entered_twice(one) as ended:
        with one:
            mine = current()
            if leaves_first:
                assert ended() == [True, None]
            assert current() is mine is not None
        assert current() is None
        assert ended() == [True, None]
    assert not BLOCKS


def test_tasks_may_share_one() -> None:
    async def main() -> None:
        one, turns = poolkit.deadline(NO_DEADLINE), [asyncio.Event() for _ in range(3)]

        async def work(number: int) -> None:
            await turns[number].wait()
            with one:
                mine = current()
                turns[number + 1].set()
                await asyncio.sleep(0)
                assert current() is mine
            assert current() is None

        turns[0].set()
        await asyncio.gather(work(0), work(1))

    asyncio.run(main())
    assert not BLOCKS


def blocks(one: poolkit.deadline) -> Iterator[Any]:
    with one:
        yield current()


@pytest.mark.parametrize("shared", [False, True])
def test_generators_leave_their_blocks_in_any_order(shared: bool) -> None:
    one = poolkit.deadline(10.0)
    first, second = blocks(one), blocks(one if shared else poolkit.deadline(1.0))
    at, latest = next(first).at, next(second)
    first.close()
    block = current()
    assert block is not None
    assert block.at == (at if shared else latest.at)
    second.close()
    assert current() is None
    assert not BLOCKS


def test_a_frame_id_that_is_used_again_ends_no_block_of_another_task() -> None:
    """The frame that entered the other block is gone: a hook has entered it."""
    one = poolkit.deadline(10.0)
    other = copy_context()
    other.run(one.__enter__)
    theirs = other.run(current)
    assert theirs is not None

    def leave() -> None:
        theirs.frame = id(sys._getframe())
        one.__exit__(None, None, None)

    one.__enter__()
    leave()
    assert current() is None
    assert {theirs} == BLOCKS
    other.run(one.__exit__, None, None, None)
    assert not BLOCKS


@pytest.mark.parametrize("nested", [False, True])
def test_a_generator_may_be_ended_by_another_thread(nested: bool) -> None:
    generator = blocks(poolkit.deadline(10.0))
    copy_context().run(next, generator)
    with poolkit.deadline(1.0) if nested else nullcontext():
        mine = current()
        thread = threading.Thread(target=generator.close)
        thread.start()
        thread.join()
        assert current() is mine
        assert ({mine} if nested else set()) == BLOCKS


@pytest.mark.parametrize("begun_inside", [False, True], ids=("its-thread-is-outside", "its-thread-is-inside"))
def test_a_generator_that_another_thread_ends_inside_the_same_object_leaves_that_threads_block(
    begun_inside: bool,
) -> None:
    one = poolkit.deadline(NO_DEADLINE)
    generator = blocks(one)
    begun, ended = threading.Event(), threading.Event()
    seen: list[Any] = []

    def begin() -> None:
        with one if begun_inside else nullcontext():
            mine, inner = current(), next(generator)
            begun.set()
            ended.wait(PATIENCE)
            seen.extend([inner is not mine, inner not in BLOCKS, current() is mine])

    thread = threading.Thread(target=begin)
    with one:
        mine = current()
        thread.start()
        assert begun.wait(PATIENCE)
        generator.close()
        assert current() is mine is not None
        ended.set()
        thread.join()
        assert seen == [True, True, True]
        assert current() is mine
    assert current() is None
    assert not BLOCKS


@pytest.mark.parametrize("inside", [False, True])
def test_a_stack_of_contexts_leaves_the_block_that_it_has_entered(inside: bool) -> None:
    """Its frames at the beginning and at the end differ."""
    one = poolkit.deadline(NO_DEADLINE)
    with one if inside else nullcontext():
        mine = current()
        with ExitStack() as stack:
            stack.enter_context(one)
            assert current() is not mine
        assert current() is mine
        assert ({mine} if inside else set()) == BLOCKS


def test_a_task_that_outlives_its_block_is_in_the_outer_one() -> None:
    async def main() -> None:
        async def look() -> Any:
            return current()

        with poolkit.deadline(10.0):
            outer = current()
            with poolkit.deadline(1.0):
                task = asyncio.ensure_future(look())
            assert await task is outer is not None

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_the_blocks_of_its_own_thread_only() -> None:
    with entered_twice(poolkit.deadline(NO_DEADLINE)), poolkit.deadline(10.0), poolkit.deadline(1.0):
        inner = current()
        assert inner is not None
        assert len(BLOCKS) == 3
        pid = os.fork()
        if pid == 0:
            os._exit(0 if {inner, inner.outer} == BLOCKS else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(BLOCKS) == 3


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
    """Run ``work()`` in another thread, where it waits until the block ends: the only connection is in use."""
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
    """It counts like a lease of a task that is cancelled during it."""
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


def test_a_block_keeps_no_connection_of_a_dropped_pool_open() -> None:
    connector = FakeConnector()
    with poolkit.deadline(NO_DEADLINE):
        pool = Pool(connector, max_size=1)
        pool.release(pool.acquire(NO_DEADLINE))
        gone = weakref.ref(pool._core), weakref.ref(connector.connections.pop())
        del pool
        gc.collect()
        assert [one() for one in gone] == [None, None]


def test_a_keyed_pool_learns_of_a_late_block_at_its_endpoint() -> None:
    with Pool(
        FakeConnector(resets=False), max_size=1, keyed=True, barging_window=0.0, overload=OverloadConfig()
    ) as pool:

        def use() -> None:
            pool.lease(NO_DEADLINE, key="a").close()

        block = poolkit.deadline(NO_DEADLINE)
        block.__enter__()
        use()
        use_again = threading.Thread(target=use)
        lease = pool.lease(NO_DEADLINE, key="a")
        use_again.start()
        until(lambda: pool.stats().waiting == 1, "it waits")
        running = current()
        assert running is not None
        running.at -= NO_DEADLINE
        block.__exit__(None)
        evidence = pool._core.all_endpoints["a"].queue.line_of(None).evidence
        lease.close()
        use_again.join()
        assert evidence is not None
        assert evidence.lost == 1.0
