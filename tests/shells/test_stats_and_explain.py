"""What a pool reports about itself."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import anyio
import pytest

import poolkit
from poolkit import AcquireTimeout, CloseReason, Pool
from poolkit.stats import Holder, LaneStats, PoolStats, WindowStats
from poolkit.testing import FakeConnector, ManualClock
from tests.shells.kit import Rig, ask
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


def balanced(rig: Rig) -> bool:
    stats = rig.pool.stats()
    parts = (stats.idle, stats.in_use, stats.connecting, stats.checking, stats.resetting, stats.closing)
    return sum(parts) == stats.size


async def test_every_state_is_counted_and_the_sum_is_the_size(make: Make) -> None:
    async with make(max_size=6, check_after_idle=0, max_connecting=1) as rig:
        first = await rig.lease()
        leases = [await rig.lease() for _ in range(4)]
        await rig.give(leases[0])
        check, reset, close = (rig.connector.hold(stage) for stage in ("check", "reset", "close"))
        leases[1].connection.dirty = True
        async with anyio.create_task_group() as group:
            checked = ask(group, rig)
            await rig.until(lambda: rig.pool.stats().checking == 1)
            group.start_soon(rig.give, leases[1])
            await rig.until(lambda: rig.pool.stats().resetting == 1)
            rig.pool.reconfigure(max_size=4)
            await rig.give(leases[2])
            await rig.until(lambda: rig.pool.stats().closing == 1)
            stats = rig.pool.stats()
            assert balanced(rig)
            assert (stats.in_use, stats.checking, stats.resetting, stats.closing) == (2, 1, 1, 1)
            assert stats.size == 5
            assert stats.waiting == 0
            for gate in (check, reset, close):
                gate.set()
        await rig.give(checked.lease)
        await rig.give(leases[3])
        await rig.give(first)


async def test_counters(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=3, clock=clock, check_after_idle=5) as rig:
        await rig.fill(2)
        lease = await rig.lease()
        clock.advance(2)
        assert rig.stats.busy_seconds == pytest.approx(2)  # open leases count too
        await rig.give(lease)
        clock.advance(6)
        await rig.give(await rig.lease())
        await rig.give(await rig.lease(), discard=True)
        rig.pool.clear()
        await rig.until(lambda: rig.stats.size == 0)
        stats = rig.stats
        assert (stats.acquires, stats.connects, stats.connect_errors, stats.checks) == (5, 2, 0, 1)
        assert stats.busy_seconds == pytest.approx(2)
        assert stats.closes[CloseReason.DISCARDED.value] == 1
        assert stats.closes[CloseReason.STALE.value] == 1
        assert set(stats.closes) == {reason.value for reason in CloseReason}
        assert stats.utilisation == 0


async def test_a_snapshot_is_frozen_and_plain(make: Make) -> None:
    async with make(max_size=3, name="db") as rig:
        stats = rig.pool.stats()
        with pytest.raises(dataclasses.FrozenInstanceError):
            stats.idle = 3
        data = dataclasses.asdict(stats)
        assert data["name"] == "db"
        assert all(isinstance(value, (str, int, float, dict, type(None))) for value in data.values())


async def test_a_snapshot_has_every_field(make: Make) -> None:
    """Its parts are created without their ``__init__``, so a field could be missing."""
    async with make(max_size=1, use_histogram=True) as rig:
        lease = await rig.lease()
        details = rig.pool.details()
        parts = details.stats, *details.stats.windows.values(), *details.leases, *details.lanes
        await rig.give(lease)
    assert {type(part) for part in parts} == {PoolStats, WindowStats, Holder, LaneStats}
    for part in parts:
        assert set(vars(part)) == {field.name for field in dataclasses.fields(part)}


async def test_the_last_connect_error_is_told(make: Make) -> None:
    async with make(max_size=1, features={"in_caller": True}) as rig:
        rig.connector.fail("connect", lambda: ConnectionRefusedError("port  closed\nby the admin"))
        with pytest.raises(ConnectionRefusedError):
            await rig.lease()
        assert rig.stats.last_connect_error == "ConnectionRefusedError: port closed by the admin"
        assert "last connect error: ConnectionRefusedError: port closed" in rig.pool.explain()


async def test_explain_in_plain_words(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=3, name="db", debug=True, clock=clock) as rig:
        assert rig.pool.explain() == "db: in use 0/3, idle 0, connecting 0, 0 waiting; last connect error: none"
        older = await rig.lease()
        clock.advance(40)
        newer = await rig.lease()
        clock.advance(2.14)
        text = rig.pool.explain()
        assert text.startswith("db: in use 2/3, idle 0, connecting 0, 0 waiting; longest held 42.1 s by ")
        assert "kit.py:" in text
        await rig.give(older)
        assert "longest held 2.1 s" in rig.pool.explain()
        await rig.give(newer)


async def test_the_timeout_says_how_many_are_ahead(make: Make) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            others = [ask(group, rig) for _ in range(3)]
            await rig.queued(3)
            with pytest.raises(AcquireTimeout, match="3 ahead of you"):
                await rig.lease(0.02)
            await rig.give(held)
            for other in others:
                await rig.until(lambda: any(each.lease is not None for each in others))
                done = next(each for each in others if each.lease is not None)
                lease, done.lease = done.lease, None
                await rig.give(lease)
                del other


def test_without_debug_no_place_is_noted() -> None:
    with Pool(FakeConnector(), max_size=1) as pool, pool.lease():
        assert "MainThread; last" in pool.explain()


def test_the_place_is_the_callers_and_not_the_pools() -> None:
    with Pool(FakeConnector(), max_size=1, debug=True) as pool:
        with pool.lease():
            text = pool.explain()
        connection = pool.acquire()
        again = pool.explain()
        pool.release(connection)
    assert f"by MainThread at {__file__}:" in text
    assert f"by MainThread at {__file__}:" in again
    assert text != again


def test_the_name_of_a_thread_that_has_ended() -> None:
    with Pool(FakeConnector(), max_size=1) as pool:
        taken = []
        thread = threading.Thread(target=lambda: taken.append(pool.acquire()), name="worker-7")
        thread.start()
        thread.join()
        assert "(ended)" in pool.explain()
        pool.release(taken[0])


def test_a_sync_wait_that_blocks_an_event_loop_says_so() -> None:
    import asyncio

    with Pool(FakeConnector(), max_size=1) as pool:
        held = pool.acquire()

        async def handler() -> None:
            pool.acquire(timeout=0.01)

        with pytest.raises(AcquireTimeout, match="this thread runs an event loop, which the wait has blocked"):
            asyncio.run(handler())
        pool.release(held)


async def test_pools_lists_every_live_pool(make: Make, flavour: str) -> None:
    name = f"listed-{flavour}"
    async with make(name=name) as rig:
        assert rig.pool in poolkit.pools()
        assert name in repr(rig.pool)
        assert "open: 0 open, 0 leased, 0 waiting" in repr(rig.pool)


def test_names_are_made_up_and_different() -> None:
    first, second = Pool(FakeConnector()), Pool(FakeConnector())
    assert first.name != second.name
    assert Pool(FakeConnector(), name="").name == ""


async def test_a_lease_shows_what_it_is(make: Make) -> None:
    async with make(name="db") as rig:
        lease = await rig.lease()
        assert repr(lease).endswith("Lease of 'db': <FakeConnection 1>>")
        await rig.give(lease)
        assert repr(lease).endswith("Lease of 'db': closed>")


async def test_stats_never_wait_for_io(make: Make) -> None:
    async with make(max_size=3, check_after_idle=0) as rig:
        await rig.fill(1)
        gates = [rig.connector.hold(stage) for stage in ("connect", "check")]
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(3)]
            await rig.until(lambda: rig.pool.stats().checking == 1 and rig.pool.stats().connecting == 2)
            rig.pool.explain()
            rig.pool.describe()
            for gate in gates:
                gate.set()
        for waiter in waiters:
            await rig.give(waiter.lease)


def test_explain_says_that_a_pool_is_draining_or_closed() -> None:
    """And does not advise resume() for one that was suspended before: that has no effect any more."""
    pool = Pool(FakeConnector(), name="db", max_size=2)
    held = pool.acquire()
    ending = threading.Thread(target=pool.drain, args=(None,))
    ending.start()
    until(lambda: pool.stats().phase == "draining")
    assert pool.explain().startswith("db: draining, in use 1/2")
    pool.release(held)
    ending.join()
    assert pool.explain().startswith("db: closed, in use 0/2")

    suspended = Pool(FakeConnector(), name="db")
    suspended.suspend()
    assert "resume()" in suspended.explain()
    suspended.close()
    assert suspended.explain().startswith("db: closed")
    assert "resume()" not in suspended.explain()
    assert suspended.diagnose() is None
