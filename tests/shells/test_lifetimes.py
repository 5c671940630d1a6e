"""Lifetimes of connections in virtual time: at acquire, at release and in the sweep."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from poolkit import CloseReason
from poolkit.testing import ManualClock
from tests.shells.kit import Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_max_lifetime_is_enforced_at_acquire(make: Make, clock: ManualClock) -> None:
    async with make(max_size=2, max_lifetime=100, lifetime_jitter=0, clock=clock) as rig:
        await rig.fill(2)
        clock.advance(99.9)
        lease = await rig.lease()
        assert lease.connection.number in (1, 2)
        await rig.give(lease)
        clock.advance(0.1)
        lease = await rig.lease()  # no sweep has run
        assert lease.connection.number >= 3
        await rig.give(lease)
        assert rig.stats.closes[CloseReason.EXPIRED.value] >= 1


@pytest.mark.parametrize("resets", [True, False])
async def test_max_lifetime_is_enforced_at_release(make: Make, clock: ManualClock, resets: bool) -> None:
    features = {"resets": resets}
    async with make(max_size=2, max_lifetime=100, lifetime_jitter=0, clock=clock, features=features) as rig:
        lease = await rig.lease()
        clock.advance(100)
        assert not lease.connection.closed  # never during a lease
        await rig.give(lease)
        await rig.until(lambda: lease.connection.closed)
        assert rig.stats.closes[CloseReason.EXPIRED.value] == 1


async def test_an_expired_connection_is_not_handed_to_a_waiter(make: Make, clock: ManualClock) -> None:
    async with make(max_size=1, max_lifetime=100, lifetime_jitter=0, clock=clock) as rig:
        lease = await rig.lease()
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            clock.advance(100)
            await rig.give(lease)
            clock.advance(0)
            await rig.until(lambda: waiter.done or rig.pool.stats().timeouts)
        if waiter.lease is not None:
            assert waiter.lease.connection.number == 2
            await rig.give(waiter.lease)


async def test_max_lifetime_is_enforced_by_the_sweep(make: Make, clock: ManualClock) -> None:
    async with make(max_size=3, max_lifetime=100, lifetime_jitter=0, idle_timeout=None, clock=clock) as rig:
        await rig.fill(3)
        clock.advance(100)
        await rig.tick()
        await rig.until(lambda: rig.connector.live == 0)
        assert rig.stats.closes[CloseReason.EXPIRED.value] == 3


async def test_the_jitter_shortens_lives_at_random(make: Make, clock: ManualClock) -> None:
    numbers = iter([0.0, 0.5, 1.0])
    features = {"checks": False}
    async with make(
        max_size=3, max_lifetime=100, lifetime_jitter=0.2, clock=clock, features=features, random=lambda: next(numbers)
    ) as rig:
        connections = await rig.fill(3)
        for seconds, alive in ((79, 3), (1.1, 2), (9, 2), (1, 1), (8.8, 1), (1.2, 0)):
            clock.advance(seconds)
            await rig.tick()
            assert sum(not one.closed for one in connections) == alive


async def test_rotation_makes_the_new_connection_before_it_closes_the_old(make: Make, clock: ManualClock) -> None:
    settings = {"max_lifetime": 100, "lifetime_jitter": 0, "idle_timeout": None}
    async with make(max_size=5, min_size=2, clock=clock, **settings) as rig:
        first, second = await rig.fill(2)
        gate = rig.connector.hold("connect")
        clock.advance(95.5)  # 5 % before the end
        rig.pool.run_due()
        await rig.until(lambda: rig.stats.connecting == 2)
        assert not first.closed
        assert not second.closed
        leases = [await rig.lease(1), await rig.lease(1)]  # the capacity is unchanged: the old ones still serve
        for lease in leases:
            await rig.give(lease)
        rig.pool.run_due()
        assert rig.stats.connecting == 2  # requested once
        gate.set()
        await rig.until(lambda: first.closed and second.closed)
        assert rig.stats.idle == 2
        assert rig.connector.calls["connect"] == 4


async def test_rotation_of_a_leased_connection_waits_for_its_return(make: Make, clock: ManualClock) -> None:
    settings = {"max_lifetime": 100, "lifetime_jitter": 0, "idle_timeout": None}
    async with make(max_size=2, min_size=1, clock=clock, **settings) as rig:
        lease = await rig.lease()
        clock.advance(95.5)
        rig.pool.run_due()
        await rig.until(lambda: rig.stats.idle == 1)
        assert not lease.connection.closed
        await rig.give(lease)
        await rig.until(lambda: lease.connection.closed)
        assert rig.stats.idle == 1


async def test_a_successor_that_fails_is_tried_again(make: Make, clock: ManualClock) -> None:
    settings = {"max_lifetime": 100, "lifetime_jitter": 0, "idle_timeout": None, "random": lambda: 0.0}
    async with make(max_size=5, min_size=1, clock=clock, **settings) as rig:
        (first,) = await rig.fill(1)
        rig.connector.fail("connect", lambda: ConnectionRefusedError("for a moment"))
        clock.advance(95.5)
        rig.pool.run_due()
        await rig.until(lambda: rig.connector.calls["connect"] >= 2 and not rig.stats.connecting)
        rig.connector.fail("connect", None)
        clock.advance(1)
        rig.pool.run_due()
        await rig.until(lambda: first.closed, "a successor has come before the end")
        assert rig.stats.idle == 1
        assert clock() < 1000 + 100


async def test_rotation_happens_by_itself(make: Make) -> None:
    """On the real clock, without callers."""
    async with make(max_size=3, min_size=2, max_lifetime=0.1, lifetime_jitter=0.5, idle_timeout=None) as rig:
        await rig.give(await rig.lease())
        await rig.until(lambda: rig.connector.calls["connect"] >= 6)
        assert rig.connector.max_live <= 3


async def test_an_idle_connection_above_min_size_is_closed_and_not_replaced(make: Make, clock: ManualClock) -> None:
    settings = {"max_lifetime": 100, "lifetime_jitter": 0, "idle_timeout": None}
    async with make(max_size=5, clock=clock, **settings) as rig:
        await rig.fill(2)
        for seconds in (95.5, 5):
            clock.advance(seconds)
            await rig.tick()
        await rig.until(lambda: rig.stats.size == 0)
        assert rig.connector.calls["connect"] == 2


async def test_idle_timeout_at_acquire_and_by_the_sweep(make: Make, clock: ManualClock) -> None:
    async with make(max_size=4, min_size=1, idle_timeout=10, clock=clock) as rig:
        await rig.fill(4)
        clock.advance(9.9)
        await rig.tick()
        assert rig.stats.size == 4
        clock.advance(0.2)
        await rig.tick()
        await rig.until(lambda: rig.stats.size == 1)
        assert rig.stats.closes[CloseReason.IDLE.value] == 3
        rig.pool.reconfigure(min_size=0)
        clock.advance(20)
        lease = await rig.lease()
        assert lease.connection.number == 5
        await rig.give(lease)


async def test_keepalive_asks_idle_connections(make: Make, clock: ManualClock) -> None:
    async with make(max_size=3, keepalive=30, clock=clock) as rig:
        connections = await rig.fill(3)
        clock.advance(29)
        await rig.tick()
        assert rig.connector.calls["check"] == 0
        clock.advance(2)
        await rig.tick()
        assert rig.connector.calls["check"] == 2  # not all at once: some stay usable
        for _ in range(3):
            clock.advance(0.1)
            await rig.tick()
        assert rig.connector.calls["check"] == 3
        connections[1].alive = False
        clock.advance(31)
        for _ in range(3):
            clock.advance(0.1)
            await rig.tick()
        await rig.until(lambda: connections[1].closed)
        assert rig.stats.idle == 2


async def test_keepalive_does_not_make_a_connection_look_used(make: Make, clock: ManualClock) -> None:
    async with make(max_size=3, keepalive=4, idle_timeout=10, clock=clock) as rig:
        await rig.fill(3)
        for _ in range(3):
            clock.advance(4)
            await rig.tick()
        await rig.until(lambda: rig.stats.size == 0)


async def test_a_caller_takes_a_connection_during_the_keepalive_of_another(make: Make, clock: ManualClock) -> None:
    async with make(max_size=1, keepalive=30, check_after_idle=None, clock=clock) as rig:
        await rig.fill(1)
        gate = rig.connector.hold("check")
        clock.advance(31)
        rig.pool.run_due()
        await rig.until(lambda: rig.stats.checking == 1)
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            gate.set()
            await rig.until(lambda: waiter.done)
        assert waiter.lease.connection.number == 1
        await rig.give(waiter.lease)


@pytest.mark.parametrize(("window", "checks"), [(0, 3), (5, 1), (None, 0)])
async def test_the_window_in_which_a_connection_is_trusted(
    make: Make, clock: ManualClock, window: float | None, checks: int
) -> None:
    async with make(max_size=1, check_after_idle=window, clock=clock) as rig:
        await rig.give(await rig.lease())
        for seconds in (0, 4, 6):
            clock.advance(seconds)
            await rig.give(await rig.lease())
        assert rig.connector.calls["check"] == checks
        assert rig.stats.checks == checks


async def test_a_look_comes_before_a_question(make: Make, clock: ManualClock) -> None:
    """The socket shows that the peer has closed a connection, so that one is skipped without a round trip."""
    async with make(max_size=3, check_after_idle=1, clock=clock, features={"peeks": True}) as rig:
        connections = await rig.fill(3)
        connections[2].alive = connections[1].alive = False
        clock.advance(2)
        lease = await rig.lease()
        assert lease.connection is connections[0]
        assert rig.connector.calls["check"] == 1
        await rig.give(lease)


@pytest.mark.parametrize(("order", "used"), [("lifo", [3, 3, 3]), ("fifo", [1, 2, 3])])
@pytest.mark.parametrize("resets", [True, False])
async def test_the_order_of_idle_connections(make: Make, order: str, used: list[int], resets: bool) -> None:
    async with make(max_size=3, order=order, features={"resets": resets}) as rig:
        await rig.fill(3)
        found = []
        for _ in range(3):
            lease = await rig.lease()
            found.append(lease.connection.number)
            await rig.give(lease)
        assert found == used


@pytest.mark.parametrize("resets", [True, False])
async def test_max_idle_is_what_stays(make: Make, resets: bool) -> None:
    async with make(max_size=5, max_idle=2, features={"resets": resets}) as rig:
        leases = [await rig.lease() for _ in range(5)]
        for lease in leases:
            await rig.give(lease)
        await rig.until(lambda: rig.connector.live == 2)
        assert rig.stats.closes[CloseReason.SURPLUS.value] == 3


async def test_max_idle_zero_keeps_nothing(make: Make) -> None:
    async with make(max_size=2, max_idle=0) as rig:
        for number in (1, 2):
            lease = await rig.lease()
            assert lease.connection.number == number
            await rig.give(lease)
            await rig.until(lambda: rig.stats.size == 0)


async def test_lazy_and_eager(make: Make, flavour: str) -> None:
    async with make(max_size=5, min_size=2) as rig:
        assert rig.connector.calls["connect"] == 0  # a pool costs nothing until it is used
        await rig.give(await rig.lease())
        await rig.until(lambda: rig.stats.idle == 2)
    async with make(max_size=5, min_size=2, start="eager") as rig:
        if flavour != "threads":
            async with rig.pool:  # tasks need a loop: its first use
                await rig.until(lambda: rig.stats.idle == 2)
                return
        await rig.until(lambda: rig.stats.idle == 2)


async def test_min_size_is_kept_while_a_discarded_connection_is_being_closed(make: Make) -> None:
    """A server that closes slowly delays nothing while permits are free."""
    async with make(max_size=4, min_size=2) as rig:
        await rig.warm_up()
        closing = rig.connector.hold("close")
        assert await rig.call(rig.pool.discard_idle, lambda connection: connection.number == 1) == 1
        await rig.until(lambda: rig.stats.idle == 2 and rig.stats.closing == 1, "a successor is there")
        closing.set()


async def test_min_size_is_refilled(make: Make) -> None:
    async with make(max_size=5, min_size=3) as rig:
        await rig.give(await rig.lease())
        await rig.until(lambda: rig.stats.idle == 3)
        lease = await rig.lease()
        await rig.give(lease, discard=True)
        await rig.until(lambda: rig.stats.idle == 3)
        rig.pool.clear()
        await rig.until(lambda: rig.stats.idle == 3 and rig.connector.live == 3)
        assert rig.connector.calls["connect"] == 7
