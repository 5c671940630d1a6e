"""Complaints 25 and 26: the end of a pool, and of surplus connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import ConnectFailed, EventKind, PoolClosed
from poolkit.testing import ManualClock
from tests.shells.kit import PATIENCE, Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


async def test_25_close_with_everything_going_on(make: Make) -> None:
    """One connection is idle, one leased and one being opened, and two callers wait."""
    async with make(max_size=3, max_connecting=1) as rig:
        idle, leased = await rig.lease(), await rig.lease()
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(2)]
            await rig.until(lambda: rig.stats.connecting == 1 and rig.stats.waiting == 2)
            rig.pool.suspend()  # so that the returned one stays idle although callers wait
            await rig.give(idle)
            assert (rig.stats.idle, rig.stats.in_use, rig.stats.connecting, rig.stats.waiting) == (1, 1, 1, 2)
            await rig.close()
            assert idle.connection.closed  # before close() returned
            await rig.until(lambda: all(waiter.done for waiter in waiters))
            assert all(isinstance(waiter.error, PoolClosed) for waiter in waiters)
            assert not leased.connection.closed
            with pytest.raises(PoolClosed):
                await rig.lease()
            with pytest.raises(PoolClosed):
                await rig.warm_up(1)
            gate.set()
            await rig.until(lambda: rig.connector.live == 1, "the late connect is closed")
            await rig.give(leased)  # does not raise
            await rig.until(lambda: rig.connector.live == 0)
            await rig.close()
            await rig.give(leased)
        assert rig.pool.closed
        assert rig.stats.phase == "closed"


async def test_25_release_after_close_does_not_raise(make: Make) -> None:
    async with make(max_size=2) as rig:
        connection = await rig.acquire()
        await rig.close()
        await rig.release(connection)
        await rig.until(lambda: connection.closed)


async def test_25_as_a_context_manager(flavour: str, make: Make) -> None:
    rig = make(max_size=2)
    if rig.threads:
        with rig.pool as pool:
            pool.release(pool.acquire())
        with pytest.raises(PoolClosed):
            pool.__enter__()
    else:
        async with rig.pool as pool:
            await pool.release(await pool.acquire())
        with pytest.raises(PoolClosed):
            await pool.__aenter__()
    assert rig.connector.live == 0
    rig.pool.check_books()


async def test_25_close_while_a_check_runs(make: Make) -> None:
    async with make(max_size=1, check_after_idle=0) as rig:
        await rig.fill(1)
        gate = rig.connector.hold("check")
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.until(lambda: rig.stats.checking == 1)
            await rig.close(timeout=0)
            gate.set()
            await rig.until(lambda: waiter.done)
        assert isinstance(waiter.error, PoolClosed)
        await rig.until(lambda: rig.connector.live == 0)


async def test_25_close_while_a_reset_runs(make: Make) -> None:
    async with make(max_size=1) as rig:
        lease = await rig.lease()
        lease.connection.dirty = True
        gate = rig.connector.hold("reset")
        async with anyio.create_task_group() as group:
            group.start_soon(rig.give, lease)
            await rig.until(lambda: rig.stats.resetting == 1)
            await rig.close(timeout=0)
            gate.set()
        await rig.until(lambda: rig.connector.live == 0)


async def test_25_close_while_warming_up(make: Make) -> None:
    """Connections that are being opened are closed when they are open. Connects that have not begun do not begin."""
    async with make(max_size=50, max_connecting=2) as rig:
        gate = rig.connector.hold("connect")
        errors: list[Exception] = []

        async def warm_up() -> None:
            try:
                await rig.warm_up(50)
            except (ConnectFailed, PoolClosed) as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(warm_up)
            await rig.until(lambda: rig.connector.dialling == 2)
            await rig.close(timeout=0)
            gate.set()
        assert rig.connector.calls["connect"] <= 4
        await rig.until(lambda: rig.stats.size == 0)
        assert rig.connector.live == 0
        assert len(errors) == 1


async def test_25_close_does_not_wait_for_ever_for_a_goodbye(make: Make) -> None:
    async with make(max_size=1, check_timeout=30) as rig:
        await rig.fill(1)
        gate = rig.connector.hold("close")
        await rig.close(timeout=0.02)
        assert rig.stats.closing == 1
        gate.set()
        await rig.until(lambda: rig.connector.live == 0)


@pytest.mark.parametrize("flavour", ["asyncio", "trio"], indirect=True)
async def test_25_a_cancelled_close_has_closed(make: Make) -> None:
    async with make(max_size=1) as rig:
        await rig.fill(1)
        gate = rig.connector.hold("close")
        with anyio.move_on_after(0.01):
            await rig.close(timeout=PATIENCE)
        assert rig.pool.closed
        gate.set()
        await rig.until(lambda: rig.connector.live == 0)


async def test_25_many_close_at_once(make: Make) -> None:
    async with make(max_size=5, features={"close": 0.002}) as rig:
        await rig.fill(3)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(rig.close)
        assert rig.connector.live == 0
        assert rig.connector.calls["close"] == 3


async def test_25_listeners_get_the_close_once(make: Make) -> None:
    events: list[Any] = []
    async with make(max_size=5, listeners=[events.append]) as rig:
        await rig.close()
        await rig.close()
        await rig.drain()
        assert [event.kind for event in events].count(EventKind.POOL_CLOSED) == 1


async def test_26_a_burst_leaves_nothing_behind(make: Make) -> None:
    """After 50 callers at once there is one: the surplus is closed after idle_timeout, without any traffic."""
    clock = ManualClock()
    async with make(max_size=50, min_size=2, idle_timeout=60, max_connecting=None, clock=clock) as rig:
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig) for _ in range(50)]
        for outcome in outcomes:
            await rig.give(outcome.lease)
        for _ in range(7):
            clock.advance(10)
            await rig.give(await rig.lease())
            await rig.tick()
        await rig.until(lambda: rig.connector.live == 2)
        clock.advance(10_000)
        await rig.tick()
        await rig.until(lambda: rig.stats.size == 2)  # min_size is kept


async def test_26_the_surplus_goes_by_itself(make: Make) -> None:
    """On the real clock, without callers: the housekeeping does it."""
    async with make(max_size=10, min_size=1, idle_timeout=0.1) as rig:
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig) for _ in range(10)]
        for outcome in outcomes:
            await rig.give(outcome.lease)
        await rig.until(lambda: rig.connector.live == 1, "one is left")


async def test_26_a_connection_closed_by_its_peer_leaves_within_one_sweep(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=4, clock=clock, features={"peeks": True}) as rig:
        connections = await rig.fill(4)
        connections[0].alive = connections[2].alive = False
        clock.advance(5.1)
        await rig.tick()
        await rig.until(lambda: rig.connector.live == 2)
        assert [one.closed for one in connections] == [True, False, True, False]
        assert rig.connector.calls["connect"] == 4


async def test_26_lives_do_not_end_together(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=50, max_lifetime=100, idle_timeout=None, max_connecting=None, clock=clock) as rig:
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig) for _ in range(50)]
        for outcome in outcomes:
            await rig.give(outcome.lease)
        ends = sorted(slot.expires for slot in rig.pool._core.slots.living())
        assert ends[-1] - ends[0] > 1
        assert clock() + 90 <= ends[0]  # never longer than max_lifetime, and at most the jitter shorter
        assert ends[-1] <= clock() + 100


def test_threads_of_the_kit_are_daemons() -> None:
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("poolkit"))
