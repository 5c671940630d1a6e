"""Complaints 16 to 18: the server stops and comes back; the demoted primary."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from poolkit import BackoffConfig, CloseReason, Verdict
from tests.shells.kit import NO_DEADLINE, PATIENCE, Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


class ReadOnly(Exception):
    """The server has become a standby. The connection still answers pings."""

    verdict = Verdict.RETIRE


@pytest.mark.parametrize("features", [{}, {"peeks": True}, {"peeks": True, "checks": False}])
async def test_16_five_killed_connections_cost_five_callers_nothing(make: Make, features: dict[str, bool]) -> None:
    """Backoff applies to failed connects, not to connections found dead, so no caller waits for it."""
    slow = BackoffConfig(base=3600, cap=3600)
    async with make(max_size=5, check_after_idle=0, backoff=slow, features={"connect": 0.02, **features}) as rig:
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig) for _ in range(5)]
        for outcome in outcomes:
            await rig.give(outcome.lease)
        rig.connector.kill_all()
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig, NO_DEADLINE) for _ in range(5)]
        assert [outcome.error for outcome in outcomes] == [None] * 5
        assert all(outcome.lease.connection.alive for outcome in outcomes)
        assert rig.connector.calls["connect"] <= 10
        for outcome in outcomes:
            await rig.give(outcome.lease)
        assert rig.connector.max_live <= 5


async def test_16_one_failed_check_makes_the_others_suspect(make: Make) -> None:
    """They were not idle for long enough to be checked, but another one was dead, so they are checked before use."""
    async with make(max_size=3, check_after_idle=30) as rig:
        await rig.fill(3)
        lease = await rig.lease()
        rig.connector.kill_all()
        await rig.give(lease, error=ConnectionResetError("the server hung up"))
        fresh = [await rig.lease() for _ in range(3)]
        # in any order: on a busy machine a second connect begins beside the first, and may end before it
        assert sorted(one.connection.number for one in fresh) == [4, 5, 6]
        assert rig.stats.failed_checks == 2
        for one in fresh:
            await rig.give(one)


async def test_16_a_driver_that_cannot_be_asked_drops_what_is_suspect(make: Make) -> None:
    async with make(max_size=3, features={"checks": False}) as rig:
        await rig.fill(3)
        lease = await rig.lease()
        rig.connector.kill_all()
        await rig.give(lease, error=ConnectionResetError())
        fresh = await rig.lease()
        assert fresh.connection.alive
        await rig.give(fresh)


async def test_16_a_check_without_an_answer_drops_the_others_unasked(make: Make) -> None:
    """With a silent server, each idle connection would cost ``check_timeout``."""
    async with make(max_size=4, check_after_idle=0, check_timeout=0.05) as rig:
        await rig.fill(1)
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig) for _ in range(4)]
        for outcome in outcomes:
            await rig.give(outcome.lease)
        rig.connector.calls["check"] = 0
        rig.connector.fail("check", lambda: TimeoutError("silent"))
        lease = await rig.lease()
        assert rig.connector.calls["check"] == 1
        assert rig.stats.failed_checks == 1
        await rig.give(lease)


async def test_16_a_sound_connection_is_not_asked_again_and_again(make: Make) -> None:
    async with make(max_size=1, check_after_idle=30) as rig:
        for _ in range(100):
            await rig.give(await rig.lease())
        assert rig.connector.calls["check"] == 0


async def test_17_an_outage_under_load_is_survived_without_a_storm(make: Make) -> None:
    """50 callers wait and share one backoff. All are served soon after the server is back."""
    backoff = BackoffConfig(base=0.05, cap=0.2)
    async with make(max_size=10, max_connecting=4, backoff=backoff, random=lambda: 0.5) as rig:
        await rig.fill(2)
        rig.connector.kill_all()
        rig.pool.clear()
        rig.connector.fail("connect", lambda: ConnectionRefusedError("down"))
        before = rig.connector.calls["connect"]
        down_for = 1.0
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig) for _ in range(50)]
            await rig.queued(50)
            await anyio.sleep(down_for)
            attempts = rig.connector.calls["connect"] - before
            # the first burst, then one at a time after 0.025, 0.05, 0.1, 0.1 ... seconds
            assert attempts <= 4 + down_for / 0.1 + 4
            assert attempts >= 4
            rig.connector.fail("connect", None)
            served = 0
            while served < 50:
                await rig.until(lambda: any(outcome.lease is not None for outcome in outcomes))
                for outcome in outcomes:
                    if outcome.lease is not None:
                        lease, outcome.lease = outcome.lease, None
                        await rig.give(lease)
                        served += 1
        assert not any(outcome.error for outcome in outcomes)
        assert rig.connector.max_live <= 10


async def test_17_after_a_long_outage_the_first_caller_is_served(make: Make) -> None:
    backoff = BackoffConfig(base=0.01, cap=0.02)
    async with make(max_size=2, backoff=backoff) as rig:
        rig.connector.fail("connect", lambda: ConnectionRefusedError("down"))
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await rig.lease(0.01)
        rig.connector.fail("connect", None)
        failed = rig.connector.calls["connect"]
        await rig.give(await rig.lease(PATIENCE))
        assert rig.connector.calls["connect"] <= failed + 2


async def test_18_an_error_may_retire_the_generation(make: Make) -> None:
    """After a failover the old primary answers pings. The adapter's verdict on the error replaces all connections."""
    async with make(max_size=4) as rig:
        await rig.fill(4)
        leased = [await rig.lease() for _ in range(2)]
        await rig.give(leased[0], error=ReadOnly())
        assert leased[0].connection.closed
        await rig.until(lambda: rig.stats.idle == 0, "the idle ones are closed")
        assert not leased[1].connection.closed  # in use: closed when it is returned
        fresh = await rig.lease()
        assert fresh.connection.number == 5
        await rig.give(leased[1])
        await rig.until(lambda: leased[1].connection.closed)
        await rig.give(fresh)
        assert rig.stats.closes[CloseReason.STALE.value] == 3


async def test_18_clear_retires_what_is_idle_leased_and_being_opened(make: Make) -> None:
    async with make(max_size=3) as rig:
        leases = [await rig.lease() for _ in range(2)]
        await rig.give(leases[1])
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            first, second = ask(group, rig), ask(group, rig)  # one takes the idle connection
            await rig.until(lambda: rig.stats.connecting == 1)
            rig.pool.clear()
            gate.set()
            await rig.until(lambda: first.done and second.done)
        stale = {lease.connection.number for lease in leases}
        new = [one.lease for one in (first, second) if one.lease.connection.number not in stale]
        assert [lease.connection.number for lease in new] == [4]  # 3 was opened before the call and never used
        for one in (first, second):
            await rig.give(one.lease)
        await rig.give(leases[0])
        await rig.until(lambda: rig.connector.live == 1)
        last = await rig.lease()
        assert last.connection.number == 4
        await rig.give(last)
