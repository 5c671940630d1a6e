"""A suspended pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, EventKind, Pool, PoolClosed, PoolSuspended
from poolkit.testing import FakeConnector
from tests.shells.kit import Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


@pytest.mark.parametrize("resets", [True, False])
async def test_callers_wait_and_are_served_in_order(make: Make, resets: bool) -> None:
    async with make(max_size=1, features={"resets": resets}) as rig:
        await rig.fill(1)
        rig.pool.suspend()
        assert rig.stats.phase == "suspended"
        async with anyio.create_task_group() as group:
            waiters = []
            for number in range(3):
                waiters.append(ask(group, rig))
                await rig.queued(number + 1)
            rig.pool.resume()
            for waiter in waiters:
                await rig.until(lambda waiter=waiter: waiter.done)  # type: ignore[misc]
                await rig.give(waiter.lease)
        assert [waiter.at for waiter in waiters] == sorted(waiter.at for waiter in waiters)
        assert rig.stats.phase == "open"
        assert rig.connector.calls["connect"] == 1


async def test_callers_fail_at_once(make: Make) -> None:
    async with make(max_size=1, name="db") as rig:
        await rig.fill(1)
        rig.pool.suspend(fail_fast=True)
        with pytest.raises(PoolSuspended, match="db: the pool is suspended"):
            await rig.lease()
        rig.pool.resume()
        await rig.give(await rig.lease())


async def test_callers_that_wait_already_fail_too(make: Make) -> None:
    async with make(max_size=1, name="db") as rig:
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            rig.pool.suspend(fail_fast=True)
            await rig.until(lambda: waiter.done)
        assert isinstance(waiter.error, PoolSuspended)
        await rig.give(held)
        rig.pool.resume()
        await rig.give(await rig.lease())


async def test_the_deadline_of_a_caller_holds(make: Make) -> None:
    async with make(max_size=1) as rig:
        await rig.fill(1)
        rig.pool.suspend()
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.02)
        with pytest.raises(AcquireTimeout):
            await rig.lease(0)
        rig.pool.resume()
        await rig.give(await rig.lease())


async def test_leases_go_on_and_come_back(make: Make) -> None:
    async with make(max_size=2) as rig:
        held = await rig.lease()
        rig.pool.suspend()
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            await rig.give(held)
            assert rig.stats.idle == 1
            assert not waiter.done
            rig.pool.resume()
        await rig.give(waiter.lease)


async def test_no_connect_and_no_check_hands_out_anything_meanwhile(make: Make) -> None:
    """Connects and checks in progress when the pool is suspended leave idle connections."""
    async with make(max_size=2, check_after_idle=0) as rig:
        await rig.fill(1)
        check, connect = rig.connector.hold("check"), rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            first, second = ask(group, rig), ask(group, rig)
            await rig.until(lambda: rig.stats.checking == 1 and rig.stats.connecting == 1)
            rig.pool.suspend()
            rig.connector.kill_all()
            check.set()
            connect.set()
            await rig.until(lambda: not rig.stats.checking and not rig.stats.connecting)
            await anyio.sleep(0.01)
            assert not first.done
            assert not second.done
            rig.connector.gates.clear()
            rig.pool.resume()
        await rig.give(first.lease)
        await rig.give(second.lease)


async def test_suspend_then_close(make: Make) -> None:
    async with make(max_size=1) as rig:
        rig.pool.suspend()
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            await rig.close()
        assert isinstance(waiter.error, PoolClosed)
        rig.pool.resume()
        with pytest.raises(PoolClosed):
            await rig.lease()


async def test_twice_is_once(make: Make) -> None:
    events: list[Any] = []
    async with make(max_size=1, listeners=[events.append]) as rig:
        rig.pool.suspend()
        rig.pool.suspend()
        rig.pool.resume()
        rig.pool.resume()
        await rig.give(await rig.lease())
        kinds = [event.kind for event in events]
        assert kinds.count(EventKind.POOL_READY) == 2  # at its creation, and after resume()
        assert kinds.count(EventKind.POOL_SUSPENDED) >= 1


async def test_nothing_is_opened_while_suspended_and_resume_restores_min_size(make: Make) -> None:
    async with make(max_size=3, min_size=2) as rig:
        await rig.give(await rig.lease())
        await rig.until(lambda: rig.stats.idle == 2)
        rig.pool.suspend()
        rig.pool.clear()
        await rig.until(lambda: rig.stats.size == 0 and rig.connector.live == 0)
        rig.pool.run_due()
        rig.pool.check_books()
        assert rig.connector.calls["connect"] == 2
        rig.pool.resume()
        await rig.until(lambda: rig.stats.idle == 2 and rig.connector.live == 2)


@pytest.mark.parametrize("way", ["acquire", "lease"])
def test_a_bound_method_kept_from_before_knows_that_the_pool_is_suspended(way: str) -> None:
    """Programs keep ``get = pool.acquire``. On the fast path that is a function made for the open pool."""
    pool: Pool[object] = Pool(FakeConnector())
    pool.release(pool.acquire())
    kept = getattr(pool, way)
    pool.suspend(fail_fast=True)
    with pytest.raises(PoolSuspended):
        kept()
    pool.resume()
    assert kept() is not None
    pool.close()


async def test_warm_up_opens_nothing_while_the_pool_is_suspended(make: Make) -> None:
    """Whether callers would wait or fail. If enough connections exist, there is nothing to refuse."""
    async with make(max_size=4, min_size=2, name="db") as rig:
        await rig.warm_up()
        for fail_fast in (False, True):
            rig.pool.suspend(fail_fast=fail_fast)
            await rig.warm_up()
            with pytest.raises(PoolSuspended, match="db: the pool is suspended"):
                await rig.warm_up(4)
        assert rig.connector.calls["connect"] == 2
        rig.pool.resume()
        await rig.warm_up(4)
        assert rig.connector.calls["connect"] == 4
