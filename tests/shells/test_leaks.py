"""Complaints 13 to 15: a dropped lease, finalizers that run anywhere, pools left open at exit."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import EventKind, Pool, _misuse
from poolkit._core.effects import Do, Effect
from poolkit.testing import FakeConnection, FakeConnector
from tests.shells.kit import Rig, ask
from tests.support.waiting import leak_warning

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


async def drop_one(rig: Rig, cycle: bool = False) -> None:
    lease = await rig.lease()
    if cycle:
        knot: list[Any] = [lease]
        knot.append(knot)


@pytest.mark.parametrize("cycle", [False, True])
async def test_13_a_dropped_lease_is_found_and_its_slot_free(make: Make, cycle: bool) -> None:
    async with make(max_size=1, debug=True) as rig:
        await drop_one(rig, cycle)
        with leak_warning() as caught:
            gc.collect()
            lease = await rig.lease(2)
        assert len(caught) == 1
        text = str(caught[0].message)
        assert "dropped without close()" in text
        assert "kit.py:" in text  # the place of the acquire
        assert caught[0].filename.endswith("kit.py")
        assert lease.connection.number == 2
        assert rig.connector.connections[0].closed
        assert rig.stats.leaks == 1
        await rig.give(lease)


async def test_13_an_adapter_may_report_that_its_caller_has_dropped_a_connection(make: Make) -> None:
    """For callers that hold an object of the driver, while the pool's connection is only a record of it."""
    async with make(max_size=1) as rig:
        connection = await rig.acquire()
        rig.pool.release_dropped(id(object()))  # not on lease
        assert rig.stats.in_use == 1
        with leak_warning("dropped without close"):
            rig.pool.release_dropped(id(connection))
            rig.pool.release_dropped(id(connection))  # does nothing: it is no longer on lease
            other = await rig.acquire(2)
        assert connection.closed
        assert rig.stats.leaks == 1
        await rig.release(other)


def connect_in_vain(pool: Any) -> None:
    """A caller with a lease tries one more connect, which fails, and drops both."""
    kept = pool.lease()
    pool._connector.fail("connect", lambda: ConnectionRefusedError("down"))
    with pytest.raises(ConnectionRefusedError):
        pool.lease()
    assert "FakeConnection 1" in repr(kept)


async def connect_in_vain_in_a_task(pool: Any) -> None:
    """The same, awaited."""
    kept = await pool.lease()
    pool._connector.fail("connect", lambda: ConnectionRefusedError("down"))
    with pytest.raises(ConnectionRefusedError):
        await pool.lease()
    assert "FakeConnection 1" in repr(kept)


async def test_13_the_last_connect_error_keeps_no_lease_alive(make: Make) -> None:
    """The traceback of the error holds the frames of a caller that connects itself, and so its lease."""
    async with make(max_size=2, features={"in_caller": True}) as rig:
        await rig.call(connect_in_vain if rig.threads else connect_in_vain_in_a_task, rig.pool)
        rig.connector.fail("connect", None)
        with leak_warning("dropped without close"):
            gc.collect()
            await rig.give(await rig.lease(2))
        assert rig.stats.last_connect_error == "ConnectionRefusedError: down"
        await rig.until(lambda: rig.connector.connections[0].closed, "the dropped connection is closed")


async def test_13_without_debug_the_warning_tells_how_to_learn_more(make: Make) -> None:
    async with make(max_size=1) as rig:
        await drop_one(rig)
        with leak_warning("debug=True"):
            gc.collect()
            await rig.give(await rig.lease(2))


async def test_13_a_caller_that_waits_already_gets_the_slot(make: Make) -> None:
    async with make(max_size=1) as rig:
        kept = [await rig.lease()]
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            with leak_warning():
                kept.clear()
                gc.collect()
                await rig.until(lambda: waiter.done)
        assert waiter.lease is not None
        await rig.give(waiter.lease)


async def test_13_a_dropped_lease_takes_no_other_with_it(make: Make) -> None:
    """The next lease may get the address of the dropped one, and must not be taken for it."""
    async with make(max_size=3, features={"resets": False}) as rig:
        await rig.fill(3)
        with leak_warning():
            for _ in range(5):
                lease: Any = await rig.lease()
                del lease
                kept = await rig.lease()
                assert rig.pool.stats().leases >= 1
                await anyio.sleep(0)
                assert not kept.connection.closed
                await rig.give(kept)
        assert rig.stats.in_use == 0


async def test_13_a_drop_while_suspended(make: Make) -> None:
    async with make(max_size=1) as rig:
        kept = [await rig.lease()]
        rig.pool.suspend()
        with leak_warning():
            kept.clear()
            gc.collect()
            await rig.until(lambda: rig.stats.size == 0)
        rig.pool.resume()
        await rig.give(await rig.lease(2))


async def test_13_a_drop_after_close_is_closed_too(make: Make) -> None:
    async with make(max_size=1) as rig:
        kept = [await rig.lease()]
        await rig.close()
        with leak_warning():
            kept.clear()
            gc.collect()
            await rig.until(lambda: rig.stats.size == 0)
        assert rig.connector.live == 0


async def test_13_warnings_as_errors_reach_no_other_caller(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async with make(max_size=1) as rig:
        await drop_one(rig)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gc.collect()
            await rig.give(await rig.lease(2))
        assert "dropped without close()" in caplog.text


async def test_13_an_idle_pool_tells_of_a_drop_by_itself(make: Make) -> None:
    """No caller uses the pool any more: the housekeeping finds the dropped lease."""
    events: list[Any] = []
    async with make(max_size=1, listeners=[events.append]) as rig:
        kept = [await rig.lease()]
        with leak_warning():
            kept.clear()
            gc.collect()
            await rig.until(lambda: rig.connector.live == 0, "housekeeping closes the connection")
            await rig.until(lambda: rig.stats.size == 0)
        assert EventKind.LEASE_LEAKED in [event.kind for event in events]


async def test_13_leak_after_reports_a_long_lease_once_with_its_place(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    from poolkit.testing import ManualClock

    clock = ManualClock()
    events: list[Any] = []
    async with make(max_size=2, leak_after=5, clock=clock, listeners=[events.append]) as rig:
        lease = await rig.lease()
        clock.advance(4.9)
        await rig.tick()
        assert not caplog.records
        clock.advance(0.2)
        await rig.tick()
        await rig.tick()
        (record,) = [r for r in caplog.records if "lease held" in r.getMessage()]
        assert "5.1 s (leak_after=5)" in record.getMessage()
        assert "kit.py:" in record.getMessage()
        assert [event.kind for event in events].count(EventKind.LEASE_LEAKED) == 1
        assert not lease.connection.closed  # only a report: nothing is aborted
        await rig.give(lease)
        again = await rig.lease()
        clock.advance(6)
        await rig.tick()
        assert rig.stats.leaks == 2
        await rig.give(again)


class Collecting(FakeConnector):
    """Collects garbage, dropped leases in cycles included, wherever the pool calls its driver."""

    def _stage(self, stage: str) -> None:
        gc.collect()
        super()._stage(stage)

    def classify(self, error: BaseException) -> Any:
        gc.collect()
        return super().classify(error)

    def needs_reset(self, connection: FakeConnection) -> bool:
        gc.collect()
        return connection.dirty


def test_14_garbage_collected_in_every_hook_does_not_hang() -> None:
    pool = Pool(Collecting(), max_size=4, check_after_idle=0, acquire_timeout=20)
    gc.collect()
    gc.freeze()  # collections then cost only what this test creates
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for number in range(300):
                lease = pool.lease()
                lease.connection.dirty = number % 3 == 0
                if number % 10 == 0:
                    knot: list[Any] = [lease]
                    knot.append(knot)
                    del knot, lease
                else:
                    lease.close(error=ValueError() if number % 7 == 0 else None)
            gc.collect()
            assert pool.stats().leaks == 30
    finally:
        gc.enable()
        gc.unfreeze()
    pool.check_books()
    pool.close()


def test_14_garbage_collected_at_every_allocation_does_not_hang() -> None:
    """With a threshold of 1 a collection may start inside any critical section of the pool."""

    class Cursor:
        """Like a driver's object: gives its connection back when it is finalized."""

        def __init__(self) -> None:
            self.connection = pool.acquire()
            self.me = self

        def __del__(self) -> None:
            pool.release(self.connection)

    pool = Pool(FakeConnector(), max_size=100, acquire_timeout=20, max_lifetime=0.5, idle_timeout=0.4)
    done: list[int] = []

    def work() -> None:
        for number in range(60):
            Cursor()
            with pool.lease():
                pass
            if number % 10 == 0:
                gc.collect()  # objects that have survived a young collection
        done.append(1)

    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1)
    try:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
    assert len(done) == 3
    gc.collect()
    assert pool.stats().in_use == 0
    pool.check_books()
    pool.close()


EXIT = """
import sys, time, threading
from poolkit import Pool, AsyncPool
from poolkit.testing import FakeConnector, AsyncFakeConnector
pool = Pool(FakeConnector(close=3600, connect=0.01), max_size=10, min_size=3, idle_timeout=300, keepalive=100)
held = [pool.lease() for _ in range(2)]
dropped = pool.acquire()
pool.release(pool.acquire())
threading.Thread(target=lambda: pool.acquire(timeout=3600), daemon=True).start()
{more}
"""
TASKS = """
import {library}
async def main():
    global tasks, kept
    tasks = AsyncPool(AsyncFakeConnector(connect=0.01, close=3600), max_size=4, min_size=2)
    kept = await tasks.lease()
    await tasks.release(await tasks.acquire())
    await {library}.sleep(0.05)
    lease = await tasks.lease()
{library}.run({main})
"""


@pytest.mark.parametrize("more", ["", "asyncio", "trio", "pool.close(0)", "slow connect", "cycle"])
def test_15_the_interpreter_exits_at_once_and_silently(more: str) -> None:
    if more == "slow connect":
        text = "pool.connect = None\nslow = Pool(FakeConnector(connect=3600), max_size=1)\n"
        text += "try: slow.acquire(timeout=0)\nexcept Exception: pass"
    elif more == "cycle":
        text = "pool.me = pool; held.append(held); del held, pool"
    elif more in ("asyncio", "trio"):
        text = TASKS.format(library=more, main="main()" if more == "asyncio" else "main")
    else:
        text = more
    program = EXIT.format(more=text)
    # the close and the sleeping caller take an hour: a wait for them exceeds the test's limit
    # some of the leases are dropped, and a debug build shows each ResourceWarning
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-W", "error::RuntimeWarning", "-c", program]
    process = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert process.returncode == 0
    assert process.stderr == ""


class Raced(deque[Any]):
    """A container from which another thread takes what this one has just seen."""

    def __bool__(self) -> bool:
        there = len(self) > 0
        self.clear()
        return there


def test_13_two_threads_that_report_the_same_lease_do_not_fail_a_caller() -> None:
    """The same for pools that are forgotten."""
    with Pool(FakeConnector()) as pool:
        pool._register.reports = Raced([("dropped", ("file.py", 1))])
        pool._gate.post(lambda: pool._core.effects.append(Effect(Do.REPORT)))
        assert not pool._register.reports
    reports = _misuse._Reports()
    reports.texts = Raced(["forgotten"])
    reports.run_inbox()


def test_15_a_pool_that_is_forgotten_is_collected() -> None:
    import weakref

    pool = Pool(FakeConnector(), max_size=2, min_size=1)
    pool.release(pool.acquire())
    ref = weakref.ref(pool)
    del pool
    for _ in range(200):
        gc.collect()
        if ref() is None:
            break
        threading.Event().wait(0.01)
    assert ref() is None, "something of the process keeps a pool alive that nobody has"


def test_15_a_lease_outlives_its_loop() -> None:
    from poolkit import AsyncPool
    from poolkit.testing import AsyncFakeConnector

    pool = AsyncPool(AsyncFakeConnector(), max_size=1)

    async def main() -> Any:
        return await pool.lease()

    lease = asyncio.run(main())
    lease.close_nowait()  # the loop has ended: nothing hangs, and nothing is raised
    asyncio.run(_again(pool))


async def _again(pool: Any) -> None:
    async with pool.lease() as connection:
        assert connection.number == 2
    pool.check_books()
    await pool.close()
