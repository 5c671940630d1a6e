"""Drain: a pool ends after its leases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import PoolClosed
from tests.shells.kit import PATIENCE, Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


async def test_leases_end_and_then_the_pool_is_closed(make: Make) -> None:
    async with make(max_size=4, name="db") as rig:
        leases = [await rig.lease() for _ in range(3)]
        await rig.give(leases[0])
        result: list[bool] = []

        async def drain() -> None:
            result.append(await rig.drain(PATIENCE))

        async with anyio.create_task_group() as group:
            group.start_soon(drain)
            await rig.until(lambda: rig.stats.phase == "draining")
            await rig.until(lambda: leases[0].connection.closed)  # the idle one is closed at once
            with pytest.raises(PoolClosed, match="db: the pool is draining"):
                await rig.lease()
            assert not leases[1].connection.closed
            assert not result
            for lease in leases[1:]:
                await rig.give(lease)
        assert result == [True]
        assert rig.connector.live == 0
        assert rig.connector.calls["abort"] == 0
        assert rig.stats.phase == "closed"


async def test_what_does_not_end_in_time_is_aborted(make: Make) -> None:
    async with make(max_size=4) as rig:
        good, bad = await rig.lease(), await rig.lease()
        await rig.give(good)
        assert await rig.drain(0.05) is False
        assert bad.connection.closed
        assert rig.connector.calls["abort"] == 1
        assert rig.connector.live == 0
        await rig.give(bad)  # not an error, and nothing is done twice
        assert rig.connector.calls["abort"] == 1
        assert rig.stats.size == 0


async def test_waiters_are_told(make: Make) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            group.start_soon(rig.drain, PATIENCE)
            await rig.until(lambda: waiter.done)
            await rig.give(held)
        assert isinstance(waiter.error, PoolClosed)


async def test_a_connect_on_its_way_is_closed_when_it_arrives(make: Make) -> None:
    async with make(max_size=1) as rig:
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.until(lambda: rig.stats.connecting == 1)
            group.start_soon(rig.drain, PATIENCE)
            await rig.until(lambda: waiter.done)
            gate.set()
        assert rig.connector.live == 0


async def test_close_during_a_drain(make: Make) -> None:
    """close() does not wait for the leases; the drain still does."""
    async with make(max_size=1) as rig:
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            group.start_soon(rig.drain, PATIENCE)
            await rig.until(lambda: rig.stats.phase == "draining")
            await rig.close()
            assert not held.connection.closed
            await rig.give(held)
        assert rig.connector.live == 0


async def test_many_leases_end_at_the_moment_of_the_abort(make: Make) -> None:
    """Leases are returned without the pool's lock while they are being aborted."""
    for _ in range(20):
        async with make(max_size=20, features={"resets": False}) as rig:
            leases = [await rig.lease() for _ in range(20)]

            async def give(lease: Any, rig: Rig = rig) -> None:
                await rig.give(lease)

            async with anyio.create_task_group() as group:
                group.start_soon(rig.drain, 0)
                for lease in leases:
                    group.start_soon(give, lease)
            await rig.until(lambda rig=rig: rig.connector.live == 0)  # type: ignore[misc]


async def test_a_drain_ends_when_the_last_connect_fails(make: Make) -> None:
    async with make(max_size=1, min_size=1) as rig:
        gate = rig.connector.gates["connect"] = threading.Event()
        rig.connector.fail("connect", lambda: OSError("down"))
        ended: list[Any] = []

        async def lease() -> None:
            with pytest.raises(PoolClosed):
                await rig.lease()

        async def drain() -> None:
            ended.append(await rig.drain(None))

        async with anyio.create_task_group() as group:
            group.start_soon(lease)
            await rig.until(lambda: rig.connector.dialling == 1, "a connect is on its way")
            group.start_soon(drain)
            await rig.until(lambda: rig.stats.phase == "draining")
            gate.set()
            await rig.until(lambda: ended, "the drain ends")


@pytest.mark.parametrize("flavour", ["asyncio", "trio"], indirect=True)
async def test_a_cancelled_drain_goes_no_further(make: Make) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        with anyio.move_on_after(0.01):
            await rig.drain(PATIENCE)
        assert rig.stats.phase == "draining"
        assert not held.connection.closed
        await rig.give(held)
        assert await rig.drain(PATIENCE)
