"""Complaints 29 and 30: costs as ratios of two runs side by side, which do not depend on the load of the machine."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, Pool, PoolConfig
from poolkit._core import commands, maintenance
from poolkit._core.machine import Core
from poolkit._core.state import Features
from poolkit.testing import FakeConnector, ManualClock
from tests.shells.kit import ASYNC, PATIENCE, Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


def cost(work: Callable[[], object], yardstick: Callable[[], object], turns: int = 10) -> float:
    """Return the CPU time of ``work`` in units of that of ``yardstick``: the least of each, measured in turns."""
    best = [float("inf"), float("inf")]
    gc.collect()
    gc.disable()
    try:
        for _ in range(turns):
            for index, call in enumerate((work, yardstick)):
                began = time.thread_time()
                call()
                best[index] = min(best[index], time.thread_time() - began)
    finally:
        gc.enable()
    return best[0] / best[1]


def idle_pool(size: int, **settings: Any) -> Pool[Any]:
    pool = Pool(FakeConnector(resets=False), max_size=size, max_connecting=None, **settings)
    for connection in [pool.acquire() for _ in range(size)]:
        pool.release(connection)
    return pool


@pytest.mark.parametrize("debug", [False, True])
def test_29_the_cost_does_not_grow_with_connections(debug: bool) -> None:
    def rounds(pool: Pool[Any]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(2000):
                pool.release(pool.acquire())

        return work

    small, large = idle_pool(10, debug=debug), idle_pool(1000, debug=debug)
    assert cost(rounds(large), rounds(small)) < 2
    small.close()
    large.close()


def test_29_the_cost_does_not_grow_with_waiters() -> None:
    """A hand-over with 1000 waiting callers costs the same as with 10."""

    class Sleeper:
        def wake(self) -> None: ...

    from poolkit._core.queue import Request

    def rounds(waiting: int) -> Callable[[], None]:
        pool = Pool(FakeConnector(), max_size=1, barging_window=0)
        pool.acquire()
        core = pool._core
        for _ in range(waiting):
            waiter = Request(core.endpoint, 0.0)
            waiter.parker = Sleeper()
            core.acquire(waiter, 1.0)
            core.settle(1.0)

        def work() -> None:
            (slot,) = core.slots.living()
            for _ in range(300):
                core.give_back(slot, 1.0)
                core.settle(1.0)
                waiter = Request(core.endpoint, 0.0)
                waiter.parker = Sleeper()
                core.acquire(waiter, 1.0)
                core.settle(1.0)
                late = Request(core.endpoint, 0.0)
                late.parker = Sleeper()
                core.acquire(late, 1.0)
                core.settle(1.0)
                core.abandon(late, 1.0)
                core.settle(1.0)
                core.take_effects()

        return work

    assert cost(rounds(2000), rounds(10)) < 2


def test_29_the_cost_of_a_timeout_does_not_grow_with_waiters() -> None:
    """The last of 20 000 gives up. The pool does not count all of them for its error message."""

    class Sleeper:
        def wake(self) -> None: ...

    from poolkit._core.queue import Request

    def rounds(waiting: int) -> tuple[Callable[[], None], list[str]]:
        pool = Pool(FakeConnector(), max_size=1, barging_window=0)
        pool.acquire()
        core = pool._core
        told: list[str] = []

        def ask() -> Request:
            waiter = Request(core.endpoint, 0.0)
            waiter.parker = Sleeper()
            core.acquire(waiter, 1.0)
            core.settle(1.0)
            return waiter

        for _ in range(waiting):
            ask()

        def work() -> None:
            for _ in range(50):
                told.append(str(pool._slow.expire(ask(), 1.0)))
                core.take_effects()

        return work, told

    (few, short), (many, long) = rounds(1000), rounds(20_000)
    assert cost(many, few) < 2
    assert "at least 1000 ahead of you" in long[0]
    assert "1000 ahead of you" in short[0]


def test_29_timeouts_at_once_on_a_large_pool_share_their_picture_of_it() -> None:
    """Examining 2000 connections for each of many callers that give up would block all others at the lock."""

    def rounds(size: int) -> Callable[[], None]:
        pool = idle_pool(size)
        held = [pool.acquire() for _ in range(size)]

        def work() -> None:
            for _ in range(100):
                with pytest.raises(AcquireTimeout, match=f"in use {len(held)}/{len(held)}"):
                    pool.acquire(timeout=0)

        return work

    assert cost(rounds(2000), rounds(100)) < 4


def test_29_sweeps_take_a_small_share_of_the_time_however_many_connections() -> None:
    """The lifetimes of 3000 connections end one after the other. The pool does not examine all of them for each."""
    clock = ManualClock(0.0)
    core = Core(
        PoolConfig(max_size=3000, max_connecting=None, max_lifetime=100, lifetime_jitter=0.9, idle_timeout=None),
        Features(), name="core", barging=0.0, random=Random(1).random,
    )  # fmt: skip
    for slot in commands.reserve(core, 3000, clock()):
        core.connected(slot, object(), 1, clock())
    core.settle(clock())
    core.take_effects()
    sweeps = 0
    while clock() < 60:
        clock.advance(max(0.0, core.due - clock()))
        maintenance.tick(core, clock())
        core.settle(clock())
        core.take_effects()
        sweeps += 1
    assert 10 < sweeps < 60 / 0.2


def test_29_an_uncontended_pair_is_a_few_function_calls() -> None:
    """Measured in calls of a Python function: no lock, no allocation, no system call."""

    def call() -> None: ...

    def yardstick() -> None:
        for _ in range(20_000):
            call()

    pool = idle_pool(4)
    acquire, release = pool.acquire, pool.release

    def work() -> None:
        for _ in range(20_000):
            release(acquire())

    pair = cost(work, yardstick)
    assert pair < 60, f"one acquire and release cost as much as {pair:.0f} function calls"
    pool.close()


def test_29_a_busy_loop_asks_the_server_nothing() -> None:
    connector = FakeConnector(resets=False, peeks=True)
    pool = Pool(connector, max_size=2)
    pool.release(pool.acquire())
    calls: dict[str, int] = dict(connector.calls)
    for _ in range(5000):
        pool.release(pool.acquire())
        with pool.lease():
            pass
    assert connector.calls == calls
    assert pool.stats().acquires == 10_001
    pool.close()


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="reads CPython's counts")
def test_29_nothing_is_left_behind() -> None:
    """Memory does not grow with the number of leases."""
    pool = idle_pool(2)

    def rounds(count: int) -> int:
        for _ in range(count):
            with pool.lease():
                pass
            pool.release(pool.acquire())
        gc.collect()
        return len(gc.get_objects())

    rounds(100)
    before = rounds(100)
    assert rounds(5000) - before < 50
    assert not pool._core.leased
    pool.close()


@ASYNC
async def test_29_nothing_is_left_behind_of_waiters_that_gave_up(make: Make) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        for _ in range(200):
            with anyio.move_on_after(0):
                await rig.lease()
        core = rig.pool._core
        assert not core.endpoint.requests
        await rig.give(held)


async def test_30_connects_go_on_side_by_side(make: Make) -> None:
    """20 callers of an empty pool cause 20 connects at once."""
    async with make(max_size=20, max_connecting=None) as rig:
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig) for _ in range(20)]
            await rig.until(lambda: rig.connector.dialling == 20, "all connects are under way at once")
            gate.set()
        for outcome in outcomes:
            await rig.give(outcome.lease)


@pytest.mark.parametrize("stage", ["connect", "check", "reset", "close"])
async def test_30_no_lock_is_held_during_io(make: Make, stage: str) -> None:
    """While the I/O of one caller hangs, others acquire, release, read statistics and run commands."""
    async with make(max_size=4, check_after_idle=None) as rig:
        first, second, third = await rig.lease(), await rig.lease(), await rig.lease()
        if stage == "check":
            await rig.give(first)
            rig.pool.reconfigure(check_after_idle=0)
        gate = rig.connector.hold(stage)
        async with anyio.create_task_group() as group:
            if stage == "connect":
                hanging = ask(group, rig)
                await rig.until(lambda: rig.stats.connecting == 1)
            elif stage == "check":
                hanging = ask(group, rig)
                await rig.until(lambda: rig.stats.checking == 1)
                rig.connector.gates.clear()
            else:
                hanging = None
                first.connection.dirty = stage == "reset"
                if stage == "close":
                    rig.pool.clear()
                group.start_soon(rig.give, first)
                await rig.until(lambda: rig.stats.resetting or rig.stats.closing)
            with anyio.fail_after(PATIENCE):
                await rig.give(second)
                await rig.give(third)
                await rig.give(await rig.lease())
                rig.pool.stats()
                rig.pool.explain()
                rig.pool.reconfigure(max_waiting=50)
                rig.pool.suspend()
                rig.pool.resume()
            gate.set()
        if hanging is not None:
            await rig.give(hanging.lease)
            if stage == "connect":
                await rig.give(first)


def test_30_threads_do_not_queue_for_the_lock_during_a_connect() -> None:
    connector = FakeConnector(resets=False)
    pool = Pool(connector, max_size=2)
    pool.release(pool.acquire())
    held = pool.acquire()
    gate = connector.hold("connect")
    slow = threading.Thread(target=lambda: pool.release(pool.acquire(timeout=20)))
    slow.start()
    while not connector.dialling:
        time.sleep(0.001)
    assert pool._gate.lock.acquire(False)
    pool._gate.lock.release()
    pool.release(held)
    slow.join(20)
    assert not slow.is_alive()
    gate.set()
    pool.close()
