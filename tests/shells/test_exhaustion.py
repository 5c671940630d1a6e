"""Complaints 21 and 22: never more than max_size, and a queue with a limit."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
import pytest

from poolkit import AcquireTimeout, Pool, PoolBusy
from poolkit.testing import FakeConnector
from tests.shells.kit import ASYNC, Outcome, Rig, ask, attempt

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


@pytest.mark.parametrize("failing", [None, "close", "abort", "reset"])
async def test_21_never_more_than_max_size(make: Make, failing: str | None) -> None:
    """200 callers, and connections that end in every way. A closing connection counts until it is closed."""
    chance = random.Random(5)
    features = {"connect": 0.001, "close": 0.001}
    async with make(max_size=10, features=features) as rig:
        if failing:
            rig.connector.fail(failing, lambda: OSError("the goodbye failed"))
        ended: list[bool] = []

        async def user() -> None:
            lease = await rig.lease()
            lease.connection.dirty = chance.random() < 0.3
            await anyio.sleep(0)
            discard = chance.random() < 0.3
            ended.append(discard)
            await rig.give(lease, discard=discard)

        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(user)
                if number % 40 == 39:
                    rig.pool.clear()
        assert len(ended) == 200
        assert rig.connector.max_live <= 10
        await rig.until(lambda: not rig.stats.closing and not rig.stats.connecting)
        assert rig.stats.size == rig.connector.live
        if failing is None:
            assert rig.connector.calls["connect"] <= 10 + sum(ended) + 5 * 10


async def test_21_a_closing_connection_keeps_its_place(make: Make) -> None:
    async with make(max_size=1) as rig:
        lease = await rig.lease()
        gate = rig.connector.hold("close")
        rig.pool.clear()
        await rig.give(lease)
        with pytest.raises(AcquireTimeout, match="closing 1"):
            await rig.lease(0.02)
        gate.set()
        rig.connector.gates.clear()
        await rig.give(await rig.lease())
        assert rig.connector.max_live == 1


async def test_21_no_limit_means_no_limit(make: Make) -> None:
    async with make(max_size=None, max_connecting=None) as rig:
        leases = [await rig.lease() for _ in range(30)]
        assert rig.stats.size == 30
        assert rig.stats.max_size is None
        assert "30/no limit" in rig.pool.explain()
        for lease in leases:
            await rig.give(lease)


async def test_22_the_queue_has_an_end(make: Make) -> None:
    async with make(max_size=1, max_waiting=5, name="db") as rig:
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            waiters = []
            for number in range(5):
                waiters.append(ask(group, rig))
                await rig.queued(number + 1)
            with pytest.raises(PoolBusy, match=r"db: .*max_waiting=5"):
                await rig.lease()
            assert rig.stats.waiting == 5
            await rig.give(held)
            for waiter in waiters:
                await rig.until(lambda waiter=waiter: waiter.done)  # type: ignore[misc]
                await rig.give(waiter.lease)


@pytest.mark.parametrize("in_caller", [False, True])
async def test_22_max_waiting_zero_still_opens_connections(make: Make, in_caller: bool) -> None:
    """A caller that waits only for its own connect blocks no other one."""
    async with make(max_size=2, max_waiting=0, features={"in_caller": in_caller, "connect": 0.01}) as rig:
        outcomes = [Outcome() for _ in range(2)]
        async with anyio.create_task_group() as group:
            for outcome in outcomes:
                group.start_soon(attempt, rig, outcome)
        assert [outcome.error for outcome in outcomes] == [None, None]
        with pytest.raises(PoolBusy):
            await rig.lease()
        for outcome in outcomes:
            await rig.give(outcome.lease)


async def test_22_a_caller_that_gives_up_leaves_the_queue(make: Make) -> None:
    async with make(max_size=1, max_waiting=1) as rig:
        held = await rig.lease()
        for _ in range(3):
            with pytest.raises(AcquireTimeout):
                await rig.lease(0.01)
        await rig.give(held)


@ASYNC
async def test_22_self_deadlock_is_named_for_tasks(make: Make) -> None:
    async with make(max_size=2) as rig:
        first, second = await rig.lease(), await rig.lease()
        with pytest.raises(AcquireTimeout, match=r"self-deadlock: .* holds all 2"):
            await rig.lease(0.02)
        outcome = Outcome()
        async with anyio.create_task_group() as group:  # another task is affected, and is not the cause
            group.start_soon(attempt, rig, outcome, 0.02)
        assert "self-deadlock" not in str(outcome.error)
        await rig.give(first)
        await rig.give(second)


def test_22_self_deadlock_is_named_for_threads() -> None:
    with Pool(FakeConnector(), max_size=2) as pool:
        leases = [pool.lease(), pool.lease()]
        with pytest.raises(AcquireTimeout, match=r"self-deadlock: MainThread waits .* holds all 2 leases of this pool"):
            pool.acquire(timeout=0.02)
        for lease in leases:
            lease.close()
        pool.check_books()
