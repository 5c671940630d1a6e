"""Elastic size in a live pool: it follows the load, reports it, respects budgets, and backs off from a full server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from poolkit import AutoscaleConfig, Budget, ConfigError, Event, EventKind, Pool, PoolConfig, PoolConfigWarning, load
from poolkit._core.capacity import FixedSize
from poolkit._fast import decline_put
from poolkit.policies.retire import SETTLED
from poolkit.testing import FakeConnector, ManualClock
from tests.shells.kit import Outcome, Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]

QUICK = AutoscaleConfig(max_wait=0.02, up_delay=0.05, down_delay=60, prewarm=0)


async def grow(rig: Rig, clock: ManualClock, until: Callable[[], bool], step: float = 0.05) -> None:
    """Let time pass, with housekeeping."""
    for _ in range(200):
        if until():
            return
        clock.advance(step)
        rig.pool.run_due()
        await anyio.sleep(0.002)
    raise AssertionError(f"in vain: {rig.pool.explain()}")


async def crowd(rig: Rig, clock: ManualClock, callers: int) -> list[Any]:
    """Start ``callers`` callers at once, each of which keeps its connection."""
    async with anyio.create_task_group() as group:
        asked: list[Outcome] = [ask(group, rig) for _ in range(callers)]
        await grow(rig, clock, lambda: all(one.done for one in asked))
    assert not [one.error for one in asked if one.error]
    return [one.lease for one in asked]


async def test_it_grows_while_callers_wait_and_shrinks_when_they_are_gone(make: Make) -> None:
    """8 callers find a pool of 1, which grows to 8. A minute after the last of them it has min_size again."""
    clock = ManualClock()
    async with make(min_size=1, max_size=20, autoscale=QUICK, clock=clock) as rig:
        leases = await crowd(rig, clock, 8)
        assert 8 <= rig.stats.limit <= 16  # type: ignore[operator]
        assert rig.stats.size <= rig.stats.limit  # type: ignore[operator]
        for lease in leases:
            await rig.give(lease)
        clock.advance(50)
        await rig.tick()
        assert rig.stats.size >= 8, "not before down_delay is over"
        for _ in range(10):
            clock.advance(11)
            await rig.tick()
        await rig.until(lambda: rig.stats.size == 1, "only min_size is left")
        assert rig.connector.live == 1


async def test_leases_are_never_cut_by_a_smaller_limit(make: Make) -> None:
    """Connections in use above the limit are closed when they are returned. Then returns need no lock again."""
    clock = ManualClock()
    plain = {"features": {"resets": False}, "max_lifetime": None}
    async with make(min_size=1, max_size=20, autoscale=QUICK, clock=clock, **plain) as rig:
        leases = await crowd(rig, clock, 8)
        rig.connector.fail("connect", lambda: OSError("FATAL:  sorry, too many clients already"))
        async with anyio.create_task_group() as group:
            late = [ask(group, rig) for _ in range(12)]
            await grow(rig, clock, lambda: rig.stats.limit == 6)  # 0.8 * 8
            assert rig.stats.in_use == 8
            await rig.until(lambda: rig.pool._put is decline_put)
            assert not [lease for lease in leases if lease.connection.closed]
            for lease in leases:
                await rig.give(lease)
            await rig.until(lambda: rig.stats.size == 6, "the surplus is closed on return")
            await rig.until(lambda: rig.pool._put is not decline_put)
            served = 0
            while served < len(late):
                await rig.until(lambda: any(one.lease for one in late), "the others share what is left")
                for one in late:
                    if one.lease:
                        lease, one.lease = one.lease, None
                        await rig.give(lease)
                        served += 1
        assert not [one.error for one in late if one.error]
        rig.connector.fail("connect", None)


async def test_a_full_server_is_asked_for_one_more_from_time_to_time(make: Make) -> None:
    """Refused at 8, the pool keeps 6, and adds one every ``overload_recovery`` until the server refuses again."""
    clock = ManualClock()
    config = AutoscaleConfig(down_delay=600, overload_recovery=5, up_delay=0, max_wait=0)
    full = [8]

    def admit() -> BaseException | None:
        refuse = rig.connector.live >= full[0]
        return ConnectionRefusedError("-ERR max number of clients reached") if refuse else None

    events: list[Event] = []
    rig = make(min_size=1, max_size=20, autoscale=config, clock=clock, listeners=[events.append])
    async with rig:
        rig.connector.fail("connect", admit)
        async with anyio.create_task_group() as group:
            asked = [ask(group, rig) for _ in range(20)]
            await grow(rig, clock, lambda: rig.stats.connect_errors > 0)
            await grow(rig, clock, lambda: rig.stats.limit == 6)
            assert "the server refused more" in rig.stats.limit_reason
            refused = rig.stats.connect_errors
            full[0] = 100
            for limit in (7, 8, 9, 10):
                clock.advance(5)
                rig.pool.run_due()
                assert rig.stats.limit == limit
            await grow(rig, clock, lambda: all(one.done for one in asked), step=5)
        assert rig.stats.connect_errors == refused, "nobody asked a full server again and again"
        for one in asked:
            await rig.give(one.lease)
        assert any("the server refused more" in str(event.detail) for event in events)


async def test_it_says_what_it_does_and_why(make: Make) -> None:
    clock = ManualClock()
    events: list[Event] = []
    rig = make(min_size=1, max_size=20, autoscale=QUICK, clock=clock, listeners=[events.append], name="orders-db")
    async with rig:
        assert rig.pool.stats().limit == 1
        assert rig.pool.describe()["limit"].source == "autoscale: min_size"
        leases = await crowd(rig, clock, 3)
        resized = [event.detail for event in events if event.kind is EventKind.POOL_RESIZED]
        assert str(resized[0]).startswith("1 -> 2: ")
        assert re.search(r"(a caller waited|[23] callers waited, the first) 0\.\d\d s", str(resized[0]))
        limit = rig.stats.limit
        assert f"in use 3/{limit}" in rig.pool.explain()
        assert f"elastic size {limit} of 1 to 20: {rig.stats.limit_reason}" in rig.pool.explain()
        assert rig.pool.describe()["limit"].value == limit
        assert rig.pool.describe()["autoscale"].value == QUICK
        for lease in leases:
            await rig.give(lease)


async def test_a_pool_without_it_says_nothing_of_it(make: Make) -> None:
    async with make(max_size=4) as rig:
        assert (rig.stats.limit, rig.stats.limit_reason) == (4, "")
        assert "limit" not in rig.pool.describe()
        assert "elastic" not in rig.pool.explain()
        assert isinstance(rig.pool._core.size, FixedSize)


async def test_after_an_outage_the_connections_of_before_are_opened_without_a_caller(make: Make) -> None:
    """One caller finds the server available again, and the connections of the others are opened too."""
    clock = ManualClock()
    async with make(min_size=1, max_size=20, autoscale=QUICK, clock=clock, check_after_idle=None) as rig:
        leases = await crowd(rig, clock, 8)
        for lease in leases:
            await rig.give(lease, discard=True)
        await grow(rig, clock, lambda: rig.stats.idle >= 8)
        assert rig.connector.live == rig.stats.idle


async def test_warm_up_makes_room(make: Make) -> None:
    async with make(max_size=10, autoscale=QUICK) as rig:
        await rig.warm_up(6)
        assert rig.stats.idle == rig.stats.limit == 6


async def test_a_keyed_pool_is_elastic_over_all_its_keys(make: Make) -> None:
    """It cannot keep connections open in advance, but it limits their number."""
    clock = ManualClock()
    async with make(max_size=8, autoscale=QUICK, clock=clock, keyed=True) as rig:
        assert rig.stats.limit == 1
        async with anyio.create_task_group() as group:
            asked = [Outcome() for _ in range(4)]

            async def one(key: str, outcome: Outcome) -> None:
                outcome.lease = await rig.lease(key=key)

            for number, outcome in enumerate(asked):
                group.start_soon(one, "ab"[number % 2], outcome)
            await grow(rig, clock, lambda: all(outcome.done for outcome in asked))
        assert rig.stats.size == 4
        for outcome in asked:
            await rig.give(outcome.lease)
        for _ in range(10):
            clock.advance(11)
            await rig.tick()
        await rig.until(lambda: rig.stats.size <= 1, "one of them may stay until idle_timeout")


async def test_what_is_kept_warm_gives_way_to_another_pool_of_the_budget(make: Make) -> None:
    """The pool does not open it again while the other one needs it: one close and one connect, no churn."""
    clock = ManualClock()
    budget = Budget(6)
    async with make(max_size=6, autoscale=QUICK, clock=clock, budget=budget, name="elastic") as rig:
        for lease in await crowd(rig, clock, 6):
            await rig.give(lease)
        clock.advance(SETTLED)  # they are not in use every moment
        async with make(max_size=6, budget=budget, name="other") as other:
            held = [await other.lease() for _ in range(4)]
            for _ in range(20):
                clock.advance(1)
                await rig.tick()
            assert budget.stats().held <= 6
            assert rig.stats.size == 2
            assert rig.connector.calls["connect"] == 6, "nothing was opened that had to be closed again"
            for lease in held:
                await other.give(lease)


async def test_it_can_be_switched_on_and_off_in_a_live_pool(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=10, clock=clock) as rig:
        leases = [await rig.lease() for _ in range(5)]
        rig.pool.reconfigure(autoscale=QUICK)
        assert rig.stats.limit == 5, "it begins with what there is"
        for lease in leases:
            await rig.give(lease)
        for _ in range(10):
            clock.advance(11)
            await rig.tick()
        assert rig.stats.limit == 1
        rig.pool.reconfigure(autoscale=None)
        assert rig.stats.limit == 10
        leases = [await rig.lease() for _ in range(10)]
        for lease in leases:
            await rig.give(lease)


async def test_max_idle_holds_beside_it(make: Make) -> None:
    """No connection is kept open and then closed at once."""
    clock = ManualClock()
    async with make(max_size=10, max_idle=2, autoscale=QUICK, clock=clock) as rig:
        for lease in await crowd(rig, clock, 6):
            await rig.give(lease)
        await rig.until(lambda: rig.stats.idle == 2)
        opened = rig.connector.calls["connect"]
        for _ in range(5):
            clock.advance(1)
            await rig.tick()
        assert rig.connector.calls["connect"] == opened


def test_settings_come_from_files_and_are_checked_there(tmp_path: Path) -> None:
    file = tmp_path / "pools.toml"
    file.write_text("[orders-db]\nmax_size = 20\nautoscale = {target = 0.6}\n[jobs.autoscale]\ntarget = 60\n")
    config = load("orders-db", file=file, environ={})
    assert config.autoscale == AutoscaleConfig(target=0.6)
    with pytest.raises(ConfigError, match=r"autoscale\.target=60: must be a share, above 0 to 1 \(from .*\[jobs\]\)"):
        load("jobs", file=file, environ={})
    with pytest.raises(ConfigError, match=r"autoscale\.up_dealy=1.*did you mean 'up_delay'"):
        Pool(FakeConnector(), autoscale={"up_dealy": 1})
    with pytest.raises(ConfigError, match="autoscale=True: must be an AutoscaleConfig, or None"):
        PoolConfig(autoscale=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be set in the environment; use a file or a keyword"):
        load("orders-db", environ={"POOLKIT_ORDERS_DB_AUTOSCALE": "yes"})


def test_bounds_that_leave_it_nothing_to_do_are_doubted() -> None:
    with pytest.warns(PoolConfigWarning, match="autoscale has no effect: min_size and max_size are both 5"):
        Pool(FakeConnector(), min_size=5, max_size=5, autoscale=QUICK).close()
