"""Each lease has its own holder, start and place, also when many leases share a connection."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from poolkit import EventKind, LeaseOverdue
from poolkit.testing import ManualClock
from tests.shells.kit import Rig

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def shared(make: Make, clock: ManualClock, **settings: object) -> Rig:
    """A pool of one connection that serves three leases."""
    return make(max_size=1, features={"streams": 3, "resets": False}, clock=clock, **settings)


async def test_every_lease_of_a_connection_is_reported(make: Make, clock: ManualClock) -> None:
    async with shared(make, clock) as rig:
        first = await rig.lease()
        clock.advance(2)
        second = await rig.lease()
        clock.advance(1)
        assert [lease.held for lease in rig.pool.details().leases] == [3, 1]
        assert [lease.connection_id for lease in rig.pool.details().leases] == [1, 1]
        assert rig.stats.longest_held == 3
        assert len(re.findall(r"^  lease of connection 1: ", rig.pool.dump(), re.MULTILINE)) == 2
        assert (first.since, second.since) == (clock() - 3, clock() - 1)
        await rig.give(first)
        assert [lease.held for lease in rig.pool.details().leases] == [1]
        assert rig.stats.longest_held == 1
        await rig.give(second)
        assert not rig.pool.details().leases


async def test_a_later_lease_of_the_same_connection_changes_nothing_about_an_earlier_one(
    make: Make, clock: ManualClock
) -> None:
    async with shared(make, clock, debug=True) as rig:
        first = await rig.lease()
        [before] = rig.pool.details().leases
        for _ in range(5):
            clock.advance(1)
            await rig.give(await rig.lease())
        [after] = rig.pool.details().leases
        assert (after.held, after.holder, after.place) == (5, before.holder, before.place)
        await rig.give(first)


async def test_busy_seconds_are_those_of_all_leases(make: Make, clock: ManualClock) -> None:
    async with shared(make, clock, use_histogram=True) as rig:
        first, second = await rig.lease(), await rig.lease()
        clock.advance(2)
        assert rig.stats.busy_seconds == 4
        await rig.give(second)
        clock.advance(1)
        assert rig.stats.busy_seconds == 5
        await rig.give(first)
        assert rig.stats.busy_seconds == 5
        assert (rig.stats.use.count, rig.stats.use.sum) == (2, 5)


async def test_a_lease_that_lasts_too_long_is_reported_beside_short_ones(make: Make, clock: ManualClock) -> None:
    seen: list[EventKind] = []
    async with shared(make, clock, leak_after=3, listeners=[lambda event: seen.append(event.kind)]) as rig:
        held = await rig.lease()
        for _ in range(10):
            clock.advance(1)
            await rig.give(await rig.lease())
            await rig.tick()
        assert seen.count(EventKind.LEASE_LEAKED) == 1
        assert rig.stats.leaks == 1
        await rig.give(held)


async def test_the_holder_of_a_lease_that_lasted_too_long_gets_the_error_although_others_came_later(
    make: Make, clock: ManualClock
) -> None:
    async with shared(make, clock, leak_after=3, on_leak="raise") as rig:
        held = await rig.lease()
        clock.advance(4)
        await rig.tick()
        other = await rig.lease()
        await rig.give(other)
        with pytest.raises(LeaseOverdue, match=r"held for 4\.0 s"):
            await rig.give(held)


async def test_a_lease_that_was_the_only_one_and_those_beside_it_end_in_any_order(
    make: Make, clock: ManualClock
) -> None:
    async with shared(make, clock) as rig:
        first, second = await rig.lease(), await rig.lease()
        clock.advance(1)
        await rig.give(first)
        third = await rig.lease()
        clock.advance(1)
        assert [lease.held for lease in rig.pool.details().leases] == [2, 1]
        await rig.give(second)
        fourth = await rig.lease()
        clock.advance(1)
        assert [lease.held for lease in rig.pool.details().leases] == [2, 1]
        rig.pool.check_books()
        await rig.give(third)
        await rig.give(fourth)
        assert rig.stats.busy_seconds == 6
