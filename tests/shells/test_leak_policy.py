"""What happens to a lease that is held longer than leak_after."""

from __future__ import annotations

import gc
from collections.abc import Callable

import anyio
import pytest

from poolkit import ConfigError, LeaseOverdue, PoolConfig, PoolConfigWarning
from poolkit.testing import ManualClock
from tests.shells.kit import Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


@pytest.mark.parametrize("resets", [True, False])
async def test_raise_tells_the_holder_when_it_gives_it_back_and_keeps_the_connection(make: Make, resets: bool) -> None:
    clock = ManualClock()
    async with make(max_size=1, leak_after=5, on_leak="raise", clock=clock, features={"resets": resets}) as rig:
        lease = await rig.lease()
        clock.advance(6)
        await rig.tick()
        assert not lease.connection.closed
        with pytest.raises(LeaseOverdue, match=r"held for 6\.0 s \(leak_after=5\), taken at .*kit\.py:\d+; the conn"):
            await rig.give(lease)
        again = await rig.lease()
        assert again.connection.number == 1
        await rig.give(again)  # in time: no error


async def test_raise_hides_no_error_of_the_block(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=1, leak_after=5, on_leak="raise", clock=clock) as rig:
        lease = await rig.lease()
        clock.advance(6)
        await rig.tick()
        await rig.give(lease, error=ValueError("the block's own"))


async def test_reclaim_frees_the_place_and_the_connection_is_never_used_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    async with make(max_size=1, leak_after=5, on_leak="reclaim", clock=clock) as rig:
        lost = await rig.lease()
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            clock.advance(6)
            rig.pool.run_due()
            await rig.until(lambda: waiter.done, "the one who waits is served")
        assert waiter.lease.connection.number == 2
        assert lost.connection.closed
        assert "taken away (on_leak='reclaim')" in caplog.text
        assert rig.stats.closes["leaked"] == 1
        await rig.give(lost)  # returning it later raises no error and puts nothing into the pool
        assert rig.stats.in_use == 1
        await rig.give(waiter.lease)
        assert rig.stats.idle == 1


async def test_reclaim_lets_a_bare_connection_be_released_once(make: Make) -> None:
    clock = ManualClock()
    async with make(max_size=2, leak_after=5, on_leak="reclaim", clock=clock) as rig:
        connection = await rig.acquire()
        clock.advance(6)
        await rig.tick()
        await rig.release(connection)
        with pytest.raises(Exception, match="not leased from this pool"):
            await rig.release(connection)


async def test_reclaim_remembers_no_lease_that_is_gone(make: Make) -> None:
    """Another lease may get the identity of one that is gone."""
    clock = ManualClock()
    async with make(max_size=1, leak_after=5, on_leak="reclaim", clock=clock) as rig:
        lost = await rig.lease()
        clock.advance(6)
        rig.pool.run_due()
        assert rig.pool._register.revoked
        del lost
        gc.collect()  # without the GIL the thread that made it would finalize it, when it runs again
        await rig.until(lambda: not rig.pool._register.revoked, "it is forgotten")


async def test_reclaim_leaves_multiplexed_connections_alone(make: Make) -> None:
    """Its other leases are intact, and the old one among them is not known."""
    clock = ManualClock()
    async with make(
        max_size=1, leak_after=5, on_leak="reclaim", clock=clock, features={"streams": 3, "resets": False}
    ) as rig:
        lease = await rig.lease()
        clock.advance(6)
        await rig.tick()
        assert not lease.connection.closed
        assert rig.stats.leaks == 1
        await rig.give(lease)


def test_the_setting_is_checked() -> None:
    with pytest.raises(ConfigError, match="on_leak='kill': must be 'warn', 'raise' or 'reclaim'"):
        PoolConfig(on_leak="kill")  # type: ignore[arg-type]
    with pytest.warns(PoolConfigWarning, match="on_leak='raise' has no effect without leak_after"):
        PoolConfig(on_leak="raise").warn()
