"""Timers, tasks, threads, descriptors and objects of a pool do not increase with use.

Each scenario is repeated a hundred times, the resources are counted, and counted again after ten thousand. Time is
virtual: the timers of all these rounds do run.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from poolkit import AcquireTimeout, AsyncConnector, AsyncPool, Budget, ConnectFailed, Connector, Pool
from poolkit.cluster import AsyncCluster
from poolkit.runtimes import threads
from poolkit.runtimes.asyncio_ import AsyncioRuntime
from poolkit.testing import ManualClock
from tests.support.in_turn import OneThread

pytestmark = pytest.mark.timeout(180)  # a few seconds of CPU for each test, on a machine with other work

FEW, MANY = 100, 10_000
SETTLED = 5.0  # virtual seconds after which a pool has done all immediate work


# -- virtual time -----------------------------------------------------------------------------------------------------


class _Jump(selectors.DefaultSelector):
    """A selector that advances the time at once where the loop would sleep."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.loop.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop in virtual time."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(selector := _Jump())
        selector.loop = self

    def time(self) -> float:
        return self.now

    def timers(self) -> int:
        """Return the timers that will run."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # there is no public way
        return sum(not handle.cancelled() for handle in scheduled)


@dataclass(frozen=True)
class Resources:
    """The resources at one moment."""

    timers: int
    tasks: int
    threads: int
    descriptors: int
    objects: int


def count(timers: int, tasks: int) -> Resources:
    """Count the resources. The windows of the statistics fill up in the first hour, so they are not counted."""
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    modules = (str(type(one).__module__) for one in gc.get_objects())
    objects = sum(name.partition(".")[0] == "poolkit" and not name.endswith(".meters") for name in modules)
    return Resources(timers, tasks, threading.active_count(), descriptors, objects)


class World:
    """An event loop in virtual time, and its pool."""

    def __init__(self, clock: Callable[[], float], count: Callable[[], Resources]) -> None:
        self.clock = clock
        self.count = count


Scenario = Callable[[World], Awaitable[None]]


def run_asyncio(scenario: Scenario) -> None:
    loop = VirtualLoop()

    async def main() -> None:
        await scenario(World(loop.time, lambda: count(loop.timers(), len(asyncio.all_tasks()))))

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def run_trio(scenario: Scenario) -> None:
    import trio.testing

    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main() -> None:
        living = lambda: trio.lowlevel.current_statistics().tasks_living  # noqa: E731
        await scenario(World(trio.current_time, lambda: count(0, living())))

    trio.run(main, clock=clock)


LIBRARIES = pytest.mark.parametrize("run", [run_asyncio, run_trio], ids=["asyncio", "trio"])
"""A timer of trio is a task that sleeps."""


# -- scenarios --------------------------------------------------------------------------------------------------------


class Works(AsyncConnector[Any]):
    async def connect(self, timeout: float | None) -> Any:
        return object()

    async def check(self, connection: Any, timeout: float | None) -> bool:
        return True


class Fails(AsyncConnector[Any]):
    async def connect(self, timeout: float | None) -> Any:
        raise ConnectionRefusedError("down")


async def queue_for_a_moment(pool: Any) -> None:
    """All connections are leased; a caller waits and is served."""

    async def wait() -> None:
        await pool.release(await pool.acquire())

    held = await pool.acquire()
    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await pool.release(held)
    await anyio.sleep(1.2)  # long enough for the check that is due while a caller waits


SLACK = {"threads": 40, "objects": 40}
"""What other tests have left in this process may start threads, and objects may be in use at one moment and not at the
other. Whatever is left behind by each round, or by each tenth one, is more."""


def flat(before: Resources, after: Resources) -> None:
    """Check that no resource has increased."""
    grown = {
        name: (getattr(before, name), getattr(after, name))
        for name in ("timers", "tasks", "threads", "descriptors", "objects")
        if getattr(after, name) > getattr(before, name) + SLACK.get(name, 0)
    }
    assert not grown, f"more after {MANY} rounds than after {FEW}: {grown}"


async def measured(world: World, once: Callable[[], Awaitable[None]], many: int = MANY) -> tuple[Resources, Resources]:
    for _ in range(FEW):
        await once()
    before = await settled(world)
    for _ in range(many - FEW):
        await once()
    return before, await settled(world)


async def settled(world: World) -> Resources:
    """Return the resources when all work has ended and dropped objects are collected."""
    await anyio.sleep(SETTLED)
    gc.collect()
    await anyio.sleep(0.01)
    return world.count()


@LIBRARIES
def test_short_queues_leave_one_timer_at_most(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        empty = world.count()
        pool = AsyncPool(Works(), max_size=1, idle_timeout=60.0, max_lifetime=1800.0, clock=world.clock)
        before, after = await measured(world, lambda: queue_for_a_moment(pool))
        flat(before, after)
        assert after.timers + after.tasks <= empty.timers + empty.tasks + 1
        await pool.close()
        closed = await settled(world)
        assert (closed.timers, closed.tasks) == (empty.timers, empty.tasks), "left after close()"

    run(scenario)


@LIBRARIES
def test_connects_that_fail_leave_nothing(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        empty = world.count()
        pool = AsyncPool(Fails(), max_size=2, clock=world.clock)

        async def once() -> None:
            with pytest.raises((AcquireTimeout, ConnectFailed)):
                await pool.acquire(0.01)
            await anyio.sleep(0.1)

        flat(*await measured(world, once))
        await pool.close()
        closed = await settled(world)
        assert (closed.timers, closed.tasks) == (empty.timers, empty.tasks), "left after close()"

    run(scenario)


@LIBRARIES
@pytest.mark.parametrize("end", ["close", "drain", "drop"])
def test_pools_that_are_made_and_ended_leave_nothing(run: Callable[[Scenario], None], end: str) -> None:
    async def scenario(world: World) -> None:
        async def once() -> None:
            pool = AsyncPool(Works(), max_size=1, idle_timeout=60.0, clock=world.clock)
            await queue_for_a_moment(pool)
            if end == "drop":
                pool.discard_idle()  # a pool that is forgotten with connections is reported
            else:
                await getattr(pool, end)()

        empty = world.count()
        before, after = await measured(world, once, many=1000)
        flat(before, after)
        assert (after.timers, after.tasks) == (empty.timers, empty.tasks)

    run(scenario)


@LIBRARIES
def test_short_queues_under_a_budget_leave_one_timer_for_each_pool(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        empty, budget = world.count(), Budget(1)
        pools = [AsyncPool(Works(), max_size=1, budget=budget, clock=world.clock) for _ in range(2)]

        async def once() -> None:
            for pool in pools:
                await queue_for_a_moment(pool)

        before, after = await measured(world, once, many=MANY // 4)
        flat(before, after)
        assert after.timers + after.tasks <= empty.timers + empty.tasks + 2
        for pool in pools:
            await pool.close()
        closed = await settled(world)
        assert (closed.timers, closed.tasks) == (empty.timers, empty.tasks), "left after close()"

    run(scenario)


@LIBRARIES
def test_short_queues_of_a_cluster_leave_one_timer_for_it_and_each_pool(run: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        empty = world.count()

        def pool_of(node: Any) -> AsyncPool[Any]:
            return AsyncPool(Works(), max_size=1, clock=world.clock)

        cluster: AsyncCluster[Any] = AsyncCluster(pool_of, ["a", "b"], role_of=lambda _: "primary", clock=world.clock)

        async def once() -> None:
            first, second = await cluster.acquire(), await cluster.acquire()

            async def wait() -> None:
                await cluster.release(await cluster.acquire())

            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                await cluster.release(first)
                await cluster.release(second)
            await anyio.sleep(1.2)

        before, after = await measured(world, once, many=MANY // 4)
        flat(before, after)
        assert after.timers + after.tasks <= empty.timers + empty.tasks + 3
        await cluster.close()
        closed = await settled(world)
        assert (closed.timers, closed.tasks) == (empty.timers, empty.tasks), "left after close()"

    run(scenario)


# -- the timer itself -------------------------------------------------------------------------------------------------


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def run_due(self) -> None:
        self.calls += 1


def loops() -> list[Any]:
    try:
        import uvloop
    except ImportError:
        return [asyncio.new_event_loop]
    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("make", loops(), ids=lambda make: str(make.__module__.partition(".")[0]))
def test_however_often_a_task_asks_it_is_called_once(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On the loops' own clocks, from the loop's thread and from another one."""

    async def main() -> None:
        runtime, task = AsyncioRuntime(asyncio.get_running_loop()), Counting()

        def ask_late() -> None:
            for number in range(1000):
                runtime.schedule(task, 60.0 - number / 100)

        ask_late()
        thread = threading.Thread(target=ask_late)
        thread.start()
        thread.join()
        runtime.schedule(task, 0.01)
        while not task.calls:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert task.calls == 1
        runtime.schedule(task, 0.01)
        runtime.schedule(task, float("inf"))
        await asyncio.sleep(0.05)
        assert task.calls == 1, "called after it had asked for no more"

    loop = make()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_later_time_from_another_thread_does_not_replace_an_earlier_one() -> None:
    """Two threads decide at once, and their messages reach the loop in the wrong order."""
    loop = VirtualLoop()

    async def main() -> None:
        runtime, task = AsyncioRuntime(loop), Counting()
        thread = threading.Thread(target=runtime.schedule, args=(task, 100.0))
        thread.start()
        thread.join()
        runtime.schedule(task, 1.0)
        await asyncio.sleep(2.0)
        assert task.calls == 1
        assert not loop.timers()

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


# -- threads ----------------------------------------------------------------------------------------------------------


class Simple(Connector[Any]):
    fails = False

    def connect(self, timeout: float | None) -> Any:
        if self.fails:
            raise ConnectionRefusedError("down")
        return object()


FIRST, LATER = 600.0, 1000.0


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[threads._Housekeeper]:
    """The housekeeping of this test alone. Its thread waits for what is due first in a pool that lives as long as the
    test, so that it does not come by what is due later.
    """
    monkeypatch.setattr(threads, "_process", threads._Process())
    with Pool(Simple(), idle_timeout=FIRST, max_lifetime=None) as other:
        use(other, threads._process.housekeeper)
        yield threads._process.housekeeper


def use(pool: Pool[Any], keeper: threads._Housekeeper) -> None:
    """Use the pool. Afterwards the housekeeping thread knows when it has work there."""
    pool.release(pool.acquire())
    while pool._gate.scheduled == float("inf"):
        time.sleep(0)
    slots(keeper)


def slots(keeper: threads._Housekeeper) -> int:
    """Return the entries of the housekeeping thread, once it has read its messages."""
    while keeper._inbox or not keeper._until:
        keeper._parker.wake()
        time.sleep(0)  # let the thread run
    return len(keeper._due)


@contextmanager
def queueing(pool: Pool[Any], runtime: OneThread) -> Iterator[Callable[[], None]]:
    """Yield a function that makes a caller queue behind another one."""
    held = [pool.acquire()]
    runtime.give = lambda: pool.release(held.pop())

    def once() -> None:
        held.append(pool.acquire())

    yield once
    runtime.give = None
    pool.release(held.pop())


def test_short_queues_of_threads_leave_little_with_the_housekeeper(keeper: threads._Housekeeper) -> None:
    clock, runtime = ManualClock(), OneThread()
    pool = Pool(Simple(), max_size=1, idle_timeout=LATER, max_lifetime=None, clock=clock, runtime=runtime)
    with queueing(pool, runtime) as queue:

        def rounds(many: int) -> Resources:
            for _ in range(many):
                queue()
                clock.advance(1.2)
                keeper.schedule(pool, 0.0)  # real time has not passed: what was due in a second is due now
                slots(keeper)
            return count(slots(keeper), 0)

        before, after = rounds(FEW), rounds(MANY // 20)
    assert after.timers <= 2 * threads.FEW
    assert after.threads <= before.threads + 5
    assert after.objects <= before.objects + 3
    pool.close()


def test_connects_that_fail_in_threads_leave_nothing(keeper: threads._Housekeeper) -> None:
    connector = Simple()
    connector.fails = True
    pool = Pool(connector, max_size=2)

    def rounds(many: int) -> Resources:
        for _ in range(many):
            with pytest.raises((AcquireTimeout, ConnectFailed)):
                pool.acquire(0.0)
        return count(slots(keeper), 0)

    before, after = rounds(FEW), rounds(MANY - FEW)
    assert after.timers <= 2 * threads.FEW
    assert after.threads <= before.threads + 5  # workers start and end
    assert after.objects <= before.objects + 100
    pool.close()


@pytest.mark.parametrize("end", ["close", "drain", "drop"])
def test_pools_of_threads_that_are_made_and_ended_leave_nothing(keeper: threads._Housekeeper, end: str) -> None:
    def rounds(many: int) -> Resources:
        for _ in range(many):
            pool = Pool(Simple(), max_size=1, idle_timeout=LATER, max_lifetime=None)
            use(pool, keeper)
            if end == "drop":
                pool.discard_idle()
                del pool
            else:
                getattr(pool, end)()
        return count(slots(keeper), 0)

    before, after = rounds(FEW), rounds(MANY // 20)
    assert after.timers <= 2 * threads.FEW
    assert after.threads <= before.threads + 5  # workers start and end
    assert after.objects <= before.objects + 2 * threads.FEW
