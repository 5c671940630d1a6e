"""One budget over several pools: threads and tasks, shares, idle connections that are given up."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, Budget, ConfigError, Pool, PoolConfig
from poolkit.policies.retire import LONGEST, SETTLED
from poolkit.testing import FakeConnector, ManualClock
from tests.shells.kit import Outcome, Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


def live(*rigs: Rig) -> int:
    return sum(rig.connector.live for rig in rigs)


async def test_an_idle_connection_of_another_pool_gives_way_the_longest_unused_first(make: Make) -> None:
    """Two pools hold the whole budget in idle connections. The caller of a third one gets the permit of the oldest."""
    budget = Budget(4)
    async with make(budget=budget, name="a") as a, make(budget=budget, name="b") as b, make(budget=budget) as c:
        oldest = (await a.fill(2))[0]
        await b.fill(2)
        lease = await c.lease()
        assert oldest.closed
        assert (a.stats.idle, b.stats.idle) == (1, 2)
        assert budget.stats().held == 4
        await c.give(lease)


@asynccontextmanager
async def crowded(make: Make, clock: ManualClock) -> AsyncIterator[tuple[Rig, Rig, list[Any], Outcome]]:
    """Two pools share a budget of four, and each has two leases. A caller of the first waits for a third one.

    Yields the pools, the leases of the second pool, which it must leave with one, and the outcome of the caller.
    """
    budget = Budget(4)
    async with make(budget=budget, clock=clock) as one, make(budget=budget, clock=clock) as other:
        held = [await one.lease(), await one.lease()]
        busy = [await other.lease(), await other.lease()]
        async with anyio.create_task_group() as group:
            outcome = ask(group, one)
            await one.until(lambda: one.stats.waiting == 1)
            yield one, other, busy, outcome
        for lease in (*held, outcome.lease):
            await one.give(lease)
        await other.give(busy.pop())


async def test_busy_pools_do_not_take_connections_from_each_other_between_two_leases(make: Make) -> None:
    """A caller of a pool that has its share waits while another pool uses its connection again and again."""
    clock = ManualClock()
    async with crowded(make, clock) as (one, other, busy, outcome):
        for _ in range(10):
            await other.give(busy.pop())
            clock.advance(0.5 * SETTLED)
            busy.append(await other.lease(0))
        assert live(one, other) == 4
        assert (one.connector.calls["connect"], other.connector.calls["connect"]) == (2, 2)
        await other.give(busy.pop())
        clock.advance(SETTLED)  # now it is unused there
        await other.tick()
        await one.until(lambda: outcome.lease is not None, "the caller is served")
        assert (one.connector.calls["connect"], live(one, other)) == (3, 4)


async def test_a_caller_waits_a_second_at_most_beside_idle_connections_of_a_busy_pool(make: Make) -> None:
    clock = ManualClock()
    async with crowded(make, clock) as (one, other, busy, outcome):
        for _ in range(4):
            clock.advance(0.25 * LONGEST)
            await other.give(busy.pop())
            await one.tick()
            await other.until(lambda: not other.stats.closing)
            if not other.stats.idle:
                break
            busy.append(await other.lease(0))
        await one.until(lambda: outcome.lease is not None, "the caller is served")
        assert clock() == 1000 + LONGEST


async def test_a_key_without_a_connection_gets_one_of_another_key_at_once_under_a_budget(make: Make) -> None:
    """The pool has its share, and its other keys use their connections again and again."""
    clock = ManualClock()
    async with make(budget=Budget(2), max_size=10, keyed=True, clock=clock) as rig:
        held = await rig.lease(key="a")
        await rig.give(await rig.lease(key="a"))
        lease = await rig.lease(key="b")
        assert clock() == 1000
        assert rig.stats.size == 2
        await rig.give(lease)
        await rig.give(held)


async def test_a_lease_is_never_taken_away_and_the_error_names_the_holders_of_the_budget(make: Make) -> None:
    """All permits are leased elsewhere. The caller waits, and its error names the holders."""
    budget = Budget(2, name="db")
    async with make(budget=budget, name="orders") as a, make(budget=budget, name="users") as b:
        leases = [await a.lease(), await a.lease()]
        with pytest.raises(AcquireTimeout, match=r"budget db: 2 of 2 taken \(orders 2, users 0 and waits for 1\)"):
            await b.lease(0.05)
        assert not any(lease.connection.closed for lease in leases)
        for lease in leases:
            await a.give(lease)
        await b.give(await b.lease())  # the permit is free again, and the claim of the caller that gave up is gone


async def test_what_comes_back_goes_to_the_pool_that_has_less_than_its_share(make: Make) -> None:
    """A pool with callers of its own gives up what is above its share, and keeps its share."""
    budget = Budget(4)
    async with make(budget=budget) as greedy, make(budget=budget) as late:
        leases = [await greedy.lease() for _ in range(4)]
        served: list[str] = []
        seen = anyio.Event()

        async def ask(rig: Rig, name: str) -> None:
            lease = await rig.lease()
            served.append(name)
            await seen.wait()
            await rig.give(lease)

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(ask, greedy, "greedy")
            await greedy.until(lambda: greedy.stats.waiting == 4)
            for _ in range(2):
                group.start_soon(ask, late, "late")
            await late.until(lambda: late.stats.waiting == 2)
            for lease in leases[:2]:
                await greedy.give(lease)
            await late.until(lambda: served == ["late", "late"], "two of four are its share")
            assert greedy.stats.waiting == 4
            seen.set()
            for lease in leases[2:]:
                await greedy.give(lease)
        assert served.count("greedy") == 4
        assert live(greedy, late) <= 4


async def test_min_size_is_reserved_and_weights_divide_the_rest(make: Make) -> None:
    """No other pool can take the permits that are reserved for a pool."""
    budget = Budget(10)
    heavy = make(budget=budget, min_size=2, max_idle=10, budget_weight=3, name="heavy")
    async with make(budget=budget, name="light") as light, heavy as rig:
        shares = {part.pool: part.share for part in budget.stats().pools}
        assert shares == {"light": 2, "heavy": 2 + 6}
        leases = [await light.lease() for _ in range(8)]
        with pytest.raises(AcquireTimeout):
            await light.lease(0.02)
        await rig.give(await rig.lease())
        for lease in leases:
            await light.give(lease)


async def test_a_storm_over_three_pools_stays_within_the_budget_and_serves_everybody(make: Make) -> None:
    """The callers of three pools need more permits than there are, connections end in every way, and commands run."""
    budget = Budget(5)
    chance = random.Random(3)
    features = {"connect": 0.001, "close": 0.001}
    async with (
        make(budget=budget, features=features) as a,
        make(budget=budget, features=features, min_size=1) as b,
        make(budget=budget, features=features, order="fifo") as c,
    ):
        peak = [0]

        async def user(rig: Rig) -> None:
            lease = await rig.lease()
            peak[0] = max(peak[0], live(a, b, c))
            await anyio.sleep(chance.choice([0, 0.001]))
            await rig.give(lease, discard=chance.random() < 0.2)

        async with anyio.create_task_group() as group:
            for number in range(150):
                group.start_soon(user, (a, b, c)[number % 3])
                if number % 50 == 49:
                    b.pool.clear()
        assert peak[0] <= 5
        assert sum(rig.stats.acquires for rig in (a, b, c)) == 150


async def test_a_smaller_limit_takes_effect_as_connections_come_back(make: Make) -> None:
    """resize() closes idle connections at once, leased ones at their return. A larger limit serves waiting callers."""
    budget = Budget(4)
    async with make(budget=budget) as a, make(budget=budget) as b:
        leases = [await a.lease() for _ in range(2)] + [await a.lease()]
        await b.fill(1)
        budget.resize(2)
        await b.until(lambda: b.connector.live == 0, "the idle one is closed")
        await a.give(leases.pop())
        await a.until(lambda: a.connector.live == 2, "one too many is closed when it comes back")
        budget.resize(3)
        await b.give(await b.lease())
        for lease in leases:
            await a.give(lease)


async def test_a_pool_that_is_closed_or_collected_leaves_its_permits_to_the_others(make: Make) -> None:
    """The permits that a pool held or reserved are free when it is gone."""
    budget = Budget(3)
    async with make(budget=budget) as rig:
        other = Pool(FakeConnector(), budget=budget, min_size=2)
        other.acquire()
        del other
        # the thread that has connected drops the pool a moment later
        await rig.until(lambda: gc.collect() >= 0 and len(budget.stats().pools) == 1, "the pool is collected")
        closed = Pool(FakeConnector(), budget=budget, min_size=2)
        connection = closed.acquire()
        closed.close()
        assert [part.reserved for part in budget.stats().pools] == [0, 0]
        closed.release(connection)
        leases = [await rig.lease() for _ in range(3)]
        for lease in leases:
            await rig.give(lease)


async def test_threads_and_tasks_share_one_budget(make: Make, flavour: str) -> None:
    """A pool for threads and one for tasks: each gives up idle connections for the other."""
    budget = Budget(1)
    async with make(budget=budget) as rig:
        connector = FakeConnector()
        with Pool(connector, budget=budget) as pool:
            for _ in range(3):
                lease = await anyio.to_thread.run_sync(pool.lease)
                assert rig.connector.live == 0
                lease.close()
                await rig.give(await rig.lease())
                assert connector.live == 0


async def test_keyed_pools_give_way_between_lanes_and_pools_alike(make: Make) -> None:
    """The longest unused connection of all endpoints of all pools is closed."""
    budget = Budget(3)
    async with make(budget=budget, keyed=True) as keyed, make(budget=budget) as plain:
        for key in ("a", "b"):
            await keyed.give(await keyed.lease(key=key))
        await plain.give(await plain.lease())
        await keyed.give(await keyed.lease(key="c"))
        assert keyed.connector.connections[0].closed
        assert (keyed.connector.live, plain.connector.live) == (2, 1)
        await plain.fill(2)
        assert keyed.connector.connections[1].closed


def test_settings_that_cannot_be_meant_are_refused_by_name() -> None:
    """Each message names the setting, the value and what would be right, and the budget is unchanged."""
    budget = Budget(4, name="db")
    with pytest.raises(ConfigError, match=r"limit=0: must be a whole number, 1 or more"):
        Budget(0)
    with pytest.raises(ConfigError, match=r"budget=50: must be a poolkit.Budget, or None"):
        PoolConfig(budget=50)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"budget_weight=0: must be a number above 0"):
        PoolConfig(budget_weight=0)
    pool = Pool(FakeConnector(), budget=budget, min_size=3)
    with pytest.raises(ConfigError, match=r"min_size=2: .* of db add up to 5, .* at most its limit \(4\)"):
        Pool(FakeConnector(), budget=budget, min_size=2)
    with pytest.raises(ConfigError, match=r"limit=2: .* add up to 3"):
        budget.resize(2)
    with pytest.raises(ConfigError, match="budget: cannot be changed in a live pool"):
        pool.reconfigure(budget=Budget(4))
    second = Pool(FakeConnector(), budget=budget)
    with pytest.raises(ConfigError, match="less than its limit"):
        pool.reconfigure(min_size=4)
    assert pool.config.min_size == 3
    assert (budget.limit, len(budget.stats().pools)) == (4, 2)
    for one in (pool, second):
        one.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_the_whole_budget_and_no_connection() -> None:
    """The parent's connections and permits do not belong to the child."""
    budget = Budget(1)
    pool = Pool(FakeConnector(), budget=budget, acquire_timeout=5)
    lease = pool.lease()
    child = os.fork()
    if child == 0:
        try:
            pool.lease().close()
            os._exit(0 if budget.stats().held == 1 else 2)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert budget.stats().held == 1
    lease.close()
    pool.close()
