"""Complaints 7 to 10: one absolute deadline for a caller, an error with a reason, nothing lost at the last moment."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import anyio
import pytest

from poolkit import (
    AcquireTimeout,
    BackoffConfig,
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    Pool,
    ServerUnavailable,
)
from poolkit.runtimes.threads import ThreadParker
from poolkit.testing import AsyncFakeConnector, FakeConnector, ManualClock
from tests.shells.kit import ASYNC, NO_DEADLINE, PATIENCE, Outcome, Rig, ask, attempt

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


async def test_07_a_full_pool_says_so_when_the_time_is_up(make: Make) -> None:
    async with make(max_size=2, name="orders-db", debug=True) as rig:
        async with anyio.create_task_group() as group:
            others = [ask(group, rig), ask(group, rig)]
        held = [other.lease for other in others]
        with pytest.raises(AcquireTimeout) as caught:
            await rig.lease(0.2)
        text = str(caught.value)
        waited = re.match(r"orders-db: no connection in (\d+\.\d+) s", text)
        assert waited is not None, text
        assert float(waited[1]) >= 0.2
        assert "in use 2/2, idle 0, connecting 0, 0 ahead of you; longest held" in text
        assert "kit.py:" in text  # where the longest holder took its lease
        assert "last connect error: none" in text
        # exhaustion is not "server down": handlers for that must not catch it
        assert isinstance(caught.value, TimeoutError)
        assert not isinstance(caught.value, (ConnectFailed, ConnectionError))
        assert rig.stats.timeouts == 1
        for lease in held:
            await rig.give(lease)


async def test_07_the_pools_own_setting_is_the_default(make: Make) -> None:
    async with make(max_size=1, acquire_timeout=0.05) as rig:
        held = await rig.lease()
        with pytest.raises(AcquireTimeout, match="no connection in"):
            await rig.call(rig.pool.lease)  # with the default of 30 s, the test itself would time out
        await rig.give(held)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "5", True, object()])
async def test_07_a_timeout_that_cannot_be_meant(make: Make, wrong: object) -> None:
    async with make(max_size=1) as rig:
        await rig.fill(1)
        held = await rig.lease()
        with pytest.raises(ConfigError, match="timeout="):
            await rig.lease(wrong)
        await rig.give(held)


async def test_08_timeout_zero_never_waits(make: Make) -> None:
    async with make(max_size=2) as rig:
        gate = rig.connector.hold("connect")
        for _ in range(3):  # also while connects are in progress, and any number of times
            with pytest.raises(AcquireTimeout):
                await rig.lease(0)
        gate.set()
        await rig.until(lambda: rig.stats.idle > 0)
        await rig.give(await rig.lease(0))
        held = [await rig.lease(), await rig.lease()]
        with pytest.raises(AcquireTimeout):
            await rig.lease(0)
        for lease in held:
            await rig.give(lease)
        await rig.give(await rig.lease(0))


@pytest.mark.parametrize("flavour", ["threads"], indirect=True)
async def test_08_timeout_zero_costs_no_sleep(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with make(max_size=1) as rig:
        rig.connector.hold("connect")
        sleeps: list[float | None] = []
        here, wait = threading.get_ident(), ThreadParker.wait

        def noted(parker: ThreadParker, timeout: float | None) -> None:
            if threading.get_ident() == here:  # background threads sleep as usual
                sleeps.append(timeout)
            wait(parker, timeout)

        monkeypatch.setattr(ThreadParker, "wait", noted)
        for _ in range(20):
            with pytest.raises(AcquireTimeout):
                rig.pool.lease(0)
        monkeypatch.undo()
        assert not sleeps


async def test_08_timeout_zero_never_hands_out_a_suspect(make: Make) -> None:
    """One connection was found dead. There is no time to check the others, so no caller gets one unchecked."""
    async with make(max_size=3, check_after_idle=30) as rig:
        await rig.fill(3)
        lease = await rig.lease()
        rig.connector.kill_all()
        await rig.give(lease, error=ConnectionResetError())
        try:
            got = await rig.lease(0)
        except AcquireTimeout:
            return
        assert got.connection.alive
        await rig.give(got)


async def test_09_stale_connections_and_a_connect_share_one_deadline(make: Make) -> None:
    """Three dead connections, 0.05 s for the check of each, and a new one: all within the caller's second."""
    async with make(max_size=3, check_after_idle=0, features={"check": 0.05}) as rig:
        leases = [await rig.lease() for _ in range(3)]
        for lease in leases:
            await rig.give(lease)
        rig.connector.kill_all()
        rig.connector.delays["connect"] = 0.05
        lease = await rig.lease(PATIENCE)
        assert lease.connection.number == 4
        assert rig.connector.calls["connect"] == 4
        assert not rig.stats.connect_errors, "a stale connection counts as a failed connect and causes a backoff"
        await rig.give(lease)


async def test_09_a_black_hole_takes_no_longer_than_the_deadline(make: Make) -> None:
    """The server answers neither checks nor connects. The caller gets its error at its deadline, not later."""
    async with make(max_size=1, check_after_idle=0, check_timeout=None, connect_timeout=None) as rig:
        await rig.fill(1)
        rig.connector.hold("check")
        rig.connector.hold("connect")
        if rig.threads:  # a driver for threads keeps to the limit itself, and is given it here
            rig.connector.gates["check"].wait = lambda timeout=None: False  # type: ignore[method-assign]
            rig.connector.fail("check", lambda: TimeoutError("silent"))
        with pytest.raises(AcquireTimeout):  # otherwise the call would last until the test times out
            await rig.lease(0.3)


async def test_09_a_check_is_given_the_rest_of_the_callers_time() -> None:
    given: list[float | None] = []

    class Asked(FakeConnector):
        def check(self, connection: object, timeout: float | None) -> bool:
            given.append(timeout)
            return True

    with Pool(Asked(), max_size=1, check_after_idle=0, check_timeout=2) as pool:
        pool.release(pool.acquire())  # new: not checked
        pool.release(pool.acquire(timeout=0.5))
        pool.release(pool.acquire(timeout=60))
        pool.check_books()
    assert given[0] is not None
    assert given[0] <= 0.5
    assert given[1] == 2


@ASYNC
async def test_09_connect_timeout_has_an_error_of_its_own(make: Make) -> None:
    quick = BackoffConfig(base=0.001, cap=0.01)
    async with make(max_size=1, connect_timeout=0.02, acquire_timeout=0.3, backoff=quick) as rig:
        rig.connector.hold("connect")
        with pytest.raises(ServerUnavailable) as caught:
            await rig.call(rig.pool.lease)
        assert isinstance(caught.value.__cause__, ConnectTimeout)
        assert "connect_timeout" in str(caught.value.__cause__)


@pytest.mark.parametrize("round_", range(10))
async def test_10_a_release_at_the_moment_of_a_timeout_goes_to_the_next(make: Make, round_: int) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        async with anyio.create_task_group() as group:
            first = ask(group, rig, 0.02)
            await rig.until(lambda: rig.stats.waiting == 1 or first.done)  # a busy machine may miss it
            second = ask(group, rig, NO_DEADLINE)  # if the hand-over is lost, the second caller waits without end
            await anyio.sleep(0.0175 + 0.0005 * round_)
            await rig.give(held)
            await rig.until(lambda: first.done)
            if first.lease is not None:
                await rig.give(first.lease)
            await rig.until(lambda: second.done)
        assert second.lease is not None
        await rig.give(second.lease)
        assert rig.connector.calls["connect"] == 1


async def test_10_no_caller_is_lost_when_many_time_out_at_once(make: Make) -> None:
    async with make(max_size=2) as rig:
        held = [await rig.lease(), await rig.lease()]
        outcomes = [Outcome() for _ in range(60)]
        async with anyio.create_task_group() as group:
            for number, outcome in enumerate(outcomes):
                group.start_soon(attempt, rig, outcome, 0.05 if number % 2 else PATIENCE)
            await anyio.sleep(0.05)
            for lease in held:
                await rig.give(lease)
            open_ = set(outcomes)
            while open_:
                await rig.until(lambda: any(outcome.done for outcome in open_))
                for outcome in [outcome for outcome in open_ if outcome.done]:
                    open_.discard(outcome)
                    if outcome.lease is not None:
                        await rig.give(outcome.lease)
        assert all(outcome.lease is not None for outcome in outcomes[::2])


async def test_10_a_thousand_timeouts_do_not_cost_a_thousand_reports(make: Make) -> None:
    """The time to raise the errors of many callers with one deadline grows only with their number."""
    waiting = 400
    async with make(max_size=100) as rig:
        held = [await rig.lease() for _ in range(100)]
        outcomes = [Outcome() for _ in range(waiting)]
        cpu = time.process_time()
        async with anyio.create_task_group() as group:
            for outcome in outcomes:
                group.start_soon(attempt, rig, outcome, 0.3)
        cpu = time.process_time() - cpu
        assert all(isinstance(outcome.error, AcquireTimeout) for outcome in outcomes)
        assert cpu / waiting < 0.01, f"{cpu / waiting * 1000:.1f} ms of CPU for each timeout"
        for lease in held:
            await rig.give(lease)


# A connect that may go on beyond the caller's time (``connect_grace`` of the connector) -----------------------------


async def test_a_caller_waits_beyond_its_time_while_its_connect_goes_on(make: Make, flavour: str) -> None:
    connector = FakeConnector() if flavour == "threads" else AsyncFakeConnector()
    gate = connector.hold("connect")
    beyond: list[float] = []

    def grace(over: float) -> float:
        beyond.append(over)
        if len(beyond) == 3:  # its longer time ended twice as well, and it asked again
            gate.set()
        return 0.01 if len(beyond) < 3 else NO_DEADLINE

    connector.connect_grace = grace  # type: ignore[union-attr]
    async with make(connector, max_size=1) as rig:
        lease = await rig.lease(0.0)
        assert len(beyond) == 3
        assert beyond == sorted(set(beyond))  # how late it is
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.0)  # every connection is in use, so no connect is for this caller
        await rig.give(lease)


async def test_a_caller_whose_connect_may_not_go_on_gets_the_timeout(make: Make, flavour: str) -> None:
    connector = FakeConnector() if flavour == "threads" else AsyncFakeConnector()
    connector.hold("connect")
    left = [0.01, 0.0]
    connector.connect_grace = lambda over: left.pop(0)  # type: ignore[union-attr]
    async with make(connector, max_size=1) as rig:
        with pytest.raises(AcquireTimeout, match="connecting 1"):
            await rig.lease(0.0)
        assert not left
        connector.free_all()
        await rig.give(await rig.lease())


async def test_a_connect_that_ends_at_once_serves_the_caller_beyond_its_time(make: Make, flavour: str) -> None:
    """It is woken to take the idle connection itself, like every caller that has just arrived."""
    connector = FakeConnector() if flavour == "threads" else AsyncFakeConnector()
    gate = connector.hold("connect")

    def grace(over: float) -> float:
        gate.set()
        return NO_DEADLINE

    connector.connect_grace = grace  # type: ignore[union-attr]
    async with make(connector, max_size=1, clock=ManualClock()) as rig:
        await rig.give(await rig.lease(0.0))
