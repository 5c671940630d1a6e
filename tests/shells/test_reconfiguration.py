"""Complaints 23 and 24: a live pool takes new settings and new credentials."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import ConfigError, EventKind
from poolkit._fast import decline_put
from poolkit.testing import AsyncFakeConnector, FakeConnection, FakeConnector
from tests.shells.kit import Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


@pytest.mark.parametrize("resets", [True, False])
async def test_23_smaller_and_larger_under_load(make: Make, resets: bool) -> None:
    chance = random.Random(3)
    async with make(max_size=10, features={"resets": resets}) as rig:
        cut: list[FakeConnection] = []
        over = [False]

        async def user() -> None:
            while not over[0]:
                lease = await rig.lease()
                await anyio.sleep(chance.random() * 0.002)
                if lease.connection.closed:
                    cut.append(lease.connection)
                await rig.give(lease)

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(user)
            for size in (2, 10, 1, 5, 10):
                rig.pool.reconfigure(max_size=size)
                await rig.until(lambda size=size: rig.stats.size <= size)  # type: ignore[misc]
                await anyio.sleep(0.01)
                assert rig.stats.size <= size
                assert rig.connector.live <= size
            over[0] = True
        assert not cut
        assert rig.pool.describe()["max_size"].value == 10
        assert rig.pool.describe()["max_size"].source == "reconfigure()"


async def test_23_below_the_number_in_use(make: Make) -> None:
    """Leases go on. A connection returned above the new limit is closed, not handed over."""
    async with make(max_size=4) as rig:
        leases = [await rig.lease() for _ in range(4)]
        rig.pool.reconfigure(max_size=1)
        assert rig.stats.in_use == 4
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            for lease in leases[:3]:
                assert not waiter.done
                await rig.give(lease)
            await rig.until(lambda: rig.stats.size == 1)
            assert not waiter.done
            await rig.give(leases[3])
            await rig.until(lambda: waiter.done)
        assert waiter.lease.connection is leases[3].connection
        await rig.give(waiter.lease)


async def test_23_growth_serves_waiters_at_once(make: Make) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(3)]
            await rig.queued(3)
            rig.pool.reconfigure(max_size=4)
            await rig.until(lambda: all(waiter.done for waiter in waiters))
        for lease in [held, *(waiter.lease for waiter in waiters)]:
            await rig.give(lease)


async def test_23_a_mistake_changes_nothing(make: Make) -> None:
    async with make(max_size=4, min_size=2) as rig:
        for changes, text in (
            ({"max_siz": 3}, r"max_siz=3 \(from reconfigure\(\)\): no such setting; did you mean 'max_size'"),
            (
                {"max_size": 1},
                r"min_size=2: must be at most max_size \(1\) \(min_size from keyword, max_size from reconf",
            ),
            ({"idle_timeout": -1}, r"idle_timeout=-1: must be a time"),
        ):
            with pytest.raises(ConfigError, match=text):
                rig.pool.reconfigure(**changes)
        assert rig.pool.config.max_size == 4
        await rig.give(await rig.lease())


async def test_23_a_smaller_idle_limit_and_shorter_lives_count_at_once(make: Make) -> None:
    from poolkit.testing import ManualClock

    clock = ManualClock()
    async with make(max_size=6, clock=clock, lifetime_jitter=0) as rig:
        await rig.fill(6)
        rig.pool.reconfigure(max_idle=3)
        await rig.until(lambda: rig.connector.live == 3)
        clock.advance(50)
        rig.pool.reconfigure(max_lifetime=40, idle_timeout=30)
        await rig.tick()
        await rig.until(lambda: rig.connector.live == 0)
        clock.advance(1)
        await rig.fill(2)
        clock.advance(20)
        rig.pool.reconfigure(idle_timeout=10)
        await rig.tick()
        await rig.until(lambda: rig.connector.live == 0)


async def test_23_suspicion_outlives_a_reconfiguration(make: Make) -> None:
    """Connections that were idle beside a dead one are checked before use, whatever is set in between."""
    async with make(max_size=3, check_after_idle=30) as rig:
        await rig.fill(3)
        lease = await rig.lease()
        rig.connector.kill_all()
        await rig.give(lease, error=ConnectionResetError())
        rig.pool.reconfigure(check_after_idle=60)
        lease = await rig.lease()
        assert lease.connection.alive
        await rig.give(lease)


async def test_23_min_size_is_filled_when_it_grows(make: Make) -> None:
    async with make(max_size=6) as rig:
        await rig.fill(1)
        rig.pool.reconfigure(min_size=4)
        await rig.until(lambda: rig.stats.idle == 4)


async def test_23_listeners_get_an_event(make: Make) -> None:
    events: list[Any] = []
    async with make(max_size=6, listeners=[events.append]) as rig:
        rig.pool.reconfigure(max_size=7, idle_timeout=5)
        (event,) = [event for event in events if event.kind is EventKind.POOL_RECONFIGURED]
        assert event.detail == "max_size=7, idle_timeout=5"


class Rotating:
    """A driver whose credentials change. Each connection stores those with which it was opened."""

    password = "old"


class RotatingConnector(Rotating, FakeConnector):
    def connect(self, timeout: float | None) -> FakeConnection:
        connection = super().connect(timeout)
        connection.password = self.password  # type: ignore[attr-defined]
        return connection


class AsyncRotatingConnector(Rotating, AsyncFakeConnector):
    async def connect(self, timeout: float | None) -> FakeConnection:
        connection = await super().connect(timeout)
        connection.password = self.password  # type: ignore[attr-defined]
        return connection


async def test_24_new_credentials_after_clear(make: Make, flavour: str) -> None:
    connector = RotatingConnector() if flavour == "threads" else AsyncRotatingConnector()
    async with make(connector, max_size=5) as rig:
        over = [False]
        wrong: list[str] = []
        rotated = [False]

        async def user() -> None:
            while not over[0]:
                new = rotated[0]
                lease = await rig.lease()
                if new and lease.connection.password == "old":
                    wrong.append(lease.connection.password)
                await anyio.sleep(0.001)
                await rig.give(lease)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(user)
            await anyio.sleep(0.02)
            connector.password = "new"
            rig.pool.clear()
            rotated[0] = True
            await anyio.sleep(0.03)
            over[0] = True
        assert not wrong
        old = [one for one in connector.connections if one.password == "old"]  # type: ignore[attr-defined]
        await rig.until(lambda: all(one.closed for one in old))
        assert rig.connector.max_live <= 5


async def test_once_the_surplus_is_gone_releases_need_no_lock_again(make: Make) -> None:
    async with make(max_size=4, max_lifetime=None, features={"resets": False}) as rig:
        leased = [await rig.lease() for _ in range(4)]
        rig.pool.reconfigure(max_size=1)
        assert rig.pool._put is decline_put
        for lease in leased:
            await rig.give(lease)
        await rig.until(lambda: rig.stats.size == 1)
        await rig.until(lambda: rig.pool._put is not decline_put)
