"""Connections that open in their first use, in a pool without keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from poolkit import BreakerConfig, CircuitOpen, ConfigError
from poolkit.testing import AsyncFakeConnector, FakeConnection, FakeConnector, ManualClock
from tests.shells.kit import Rig

pytestmark = pytest.mark.anyio


class Lazy:
    """A connector whose connections open in their first use."""

    def lazy(self, connection: FakeConnection) -> bool:
        return True


class LazyConnector(Lazy, FakeConnector):
    pass


class AsyncLazyConnector(Lazy, AsyncFakeConnector):
    pass


@pytest.fixture
def lazy(make: Callable[..., Rig], flavour: str) -> Callable[..., Rig]:
    def build(**settings: Any) -> Rig:
        kind = LazyConnector if flavour == "threads" else AsyncLazyConnector
        return make(kind(in_caller=True, resets=False), **{"max_size": 4, **settings})

    return build


async def test_a_connection_counts_as_open_when_its_first_user_says_so(lazy: Callable[..., Rig]) -> None:
    async with lazy() as rig:
        first = await rig.lease()
        assert (rig.stats.connecting, rig.stats.in_use, rig.stats.connects) == (1, 0, 0)
        first.set_capacity(1)
        assert (rig.stats.connecting, rig.stats.in_use, rig.stats.connects) == (0, 1, 1)
        await rig.give(first)
        second = await rig.lease()
        assert second.connection is first.connection
        assert (rig.stats.connecting, rig.stats.in_use, rig.stats.connects) == (0, 1, 1)
        await rig.give(second)


async def test_a_first_use_that_fails_is_a_failed_connect(lazy: Callable[..., Rig]) -> None:
    async with lazy(breaker=BreakerConfig(failure_threshold=2, reset_timeout=1000.0)) as rig:
        for _ in range(2):
            lease = await rig.lease()
            await rig.give(lease, error=ConnectionRefusedError("nobody there"))
        assert rig.stats.connect_errors == 2
        with pytest.raises(CircuitOpen):
            await rig.lease()


async def test_the_pool_opens_none_by_itself(lazy: Callable[..., Rig]) -> None:
    """It prepares no replacement of a connection whose lifetime ends, because that would not be open."""
    clock = ManualClock()
    async with lazy(clock=clock, max_lifetime=100.0, lifetime_jitter=0.0, idle_timeout=None) as rig:
        leases = [await rig.lease() for _ in range(2)]
        for lease in leases:
            lease.set_capacity(1)
        await rig.give(leases[0])
        for _ in range(99):
            clock.advance(1.0)
            await rig.tick()
        assert rig.connector.calls["connect"] == 2
        clock.advance(2.0)
        await rig.give(leases[1])
        await rig.tick()
        await rig.until(lambda: rig.stats.size == 0)
        assert rig.connector.calls["connect"] == 2


async def test_min_size_is_refused(lazy: Callable[..., Rig]) -> None:
    with pytest.raises(ConfigError, match="min_size=2: the pool cannot keep connections open"):
        lazy(min_size=2)
    async with lazy() as rig:
        with pytest.raises(ConfigError, match="min_size=2"):
            rig.pool.reconfigure(min_size=2)
