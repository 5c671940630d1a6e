"""Connects: in the background, raced against returns, limited, and their errors raised in the right callers."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from poolkit import (
    AcquireTimeout,
    BackoffConfig,
    BreakerConfig,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    EventKind,
    Pool,
    ServerUnavailable,
    Setting,
    Verdict,
)
from poolkit.testing import FakeConnector, ManualClock
from tests.shells.kit import NO_DEADLINE, Rig, ask
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]
request_id: ContextVar[str] = ContextVar("request_id")
changed: ContextVar[str] = ContextVar("changed")
NEVER_AGAIN = BackoffConfig(base=1000, cap=1000)


class WrongPassword(Exception):
    verdict = Verdict.FATAL


async def test_a_caller_takes_whichever_comes_first(make: Make) -> None:
    """The connect that it caused goes on and serves the next caller."""
    async with make(max_size=2) as rig:
        held = await rig.lease()
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.until(lambda: rig.stats.connecting == 1)
            await rig.give(held)
            await rig.until(lambda: waiter.done)
        assert waiter.lease.connection.number == 1
        gate.set()
        await rig.until(lambda: rig.stats.idle == 1)
        assert rig.connector.calls["connect"] == 2
        await rig.give(waiter.lease)


async def test_no_more_connects_than_callers(make: Make) -> None:
    async with make(max_size=10) as rig:
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(4)]
            await rig.until(lambda: rig.stats.connecting == 4)
            await anyio.sleep(0.05)
            assert rig.stats.connecting == 4
            gate.set()
        for waiter in waiters:
            await rig.give(waiter.lease)
        assert rig.connector.calls["connect"] == 4


async def test_need_is_looked_at_again_before_dialling(make: Make) -> None:
    """With one connect at a time, callers that returned connections serve meanwhile cause no connect."""
    async with make(max_size=10, max_connecting=1) as rig:
        held = [await rig.lease() for _ in range(3)]
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(4)]
            await rig.queued(4)
            for lease in held:
                await rig.give(lease)
            await rig.until(lambda: sum(waiter.done for waiter in waiters) == 3)
            gate.set()
        for waiter in waiters:
            await rig.give(waiter.lease)
        assert rig.connector.calls["connect"] == 4


async def test_a_burst_is_served_by_few_connections_if_they_come_back_sooner(make: Make) -> None:
    """20 callers and 2 connections that are returned before any connect has ended: the pool does not open 20."""
    async with make(max_size=20) as rig:
        await rig.fill(2)
        gate = rig.connector.hold("connect")

        async def work() -> None:
            lease = await rig.lease(NO_DEADLINE)
            await anyio.sleep(0.0005)
            await rig.give(lease)

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(work)
        gate.set()
        assert rig.connector.calls["connect"] < 20


@pytest.mark.parametrize("limit", [1, 3])
async def test_max_connecting(make: Make, limit: int) -> None:
    async with make(max_size=10, max_connecting=limit) as rig:
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(10)]
            await rig.queued(10)
            await rig.until(lambda: rig.connector.dialling == limit)
            gate.set()
        assert rig.connector.max_dialling == limit
        for waiter in waiters:
            await rig.give(waiter.lease)


@pytest.mark.parametrize(
    "error", [WrongPassword("no such user"), ssl.SSLCertVerificationError("self-signed certificate")]
)
async def test_a_fatal_error_reaches_every_waiter_at_once(make: Make, error: Exception) -> None:
    async with make(max_size=2, backoff=NEVER_AGAIN, name="db") as rig:
        gate = rig.connector.hold("connect")
        rig.connector.fail("connect", lambda: error)
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig, NO_DEADLINE) for _ in range(6)]
            await rig.queued(6)
            gate.set()
        for waiter in waiters:
            assert type(waiter.error) is ConnectFailed
            assert waiter.error.fatal
            assert waiter.error.__cause__ is error
            assert str(waiter.error).startswith(f"db: cannot connect: {type(error).__name__}: ")
        assert len({id(waiter.error) for waiter in waiters}) == 6  # each gets an error of its own
        with pytest.raises(ConnectFailed):  # and a caller that comes during the backoff gets it at once
            await rig.lease()


async def test_a_caller_that_a_return_may_serve_gets_no_fatal_error(make: Make) -> None:
    async with make(max_size=2, backoff=NEVER_AGAIN) as rig:
        held = await rig.lease()
        rig.connector.fail("connect", lambda: WrongPassword("rotated"))
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.until(lambda: rig.stats.connect_errors == 1)
            assert not waiter.done
            await rig.give(held)
        await rig.give(waiter.lease)


async def test_a_transient_error_is_retried_for_the_caller(make: Make) -> None:
    async with make(max_size=2, backoff=BackoffConfig(base=0.005, cap=0.01)) as rig:
        errors: list[BaseException] = [ConnectionRefusedError("starting up") for _ in range(3)]
        rig.connector.fail("connect", lambda: errors.pop() if errors else None)
        lease = await rig.lease()
        assert rig.stats.connect_errors == 3
        await rig.give(lease)


async def test_a_timeout_while_the_server_is_down_says_so(make: Make) -> None:
    """The error is both an AcquireTimeout and a ConnectFailed, with the driver's error as its cause."""
    refused = ConnectionRefusedError("nobody listens")
    async with make(max_size=2, backoff=BackoffConfig(base=0.005, cap=0.01)) as rig:
        rig.connector.fail("connect", lambda: refused)
        with pytest.raises(ServerUnavailable, match="last connect error: ConnectionRefusedError: nobody") as caught:
            await rig.lease(0.05)
        assert isinstance(caught.value, AcquireTimeout)
        assert isinstance(caught.value, ConnectFailed)
        assert caught.value.__cause__ is refused
        rig.connector.fail("connect", None)
        lease = await rig.lease()
        other = await rig.lease()
        with pytest.raises(AcquireTimeout) as full:
            await rig.lease(0.01)
        assert type(full.value) is AcquireTimeout  # exhausted, while the server is available
        assert full.value.__cause__ is None
        await rig.give(lease)
        await rig.give(other)


async def test_backoff_doubles_up_to_its_cap(make: Make) -> None:
    """In virtual time, without jitter: 0.1, 0.2, 0.4, 0.5, 0.5 ... seconds between attempts."""
    clock = ManualClock()
    async with make(max_size=3, clock=clock, backoff=BackoffConfig(base=0.1, cap=0.5), random=lambda: 1.0) as rig:
        rig.connector.fail("connect", lambda: ConnectionRefusedError("down"))
        waits = []
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.until(lambda: rig.stats.connect_errors == 1)
            for number in range(1, 6):
                waited = 0.0
                while rig.stats.connect_errors == number:
                    clock.advance(0.05)
                    waited += 0.05
                    rig.pool.run_due()
                    await rig.until(lambda: not rig.stats.connecting)
                waits.append(round(waited, 2))
            rig.connector.fail("connect", None)
            clock.advance(1)
            rig.pool.run_due()
        await rig.give(waiter.lease)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5], abs=0.051)


async def test_the_breaker_opens_and_says_what_when_and_until(make: Make) -> None:
    clock = ManualClock()
    events: list[Any] = []
    breaker = BreakerConfig(failure_threshold=3, reset_timeout=10)
    backoff = BackoffConfig(base=0.01, cap=0.01)
    settings = {"breaker": breaker, "backoff": backoff, "clock": clock, "listeners": [events.append], "name": "db"}
    async with make(max_size=2, max_connecting=1, **settings) as rig:
        rig.connector.fail("connect", lambda: ConnectionRefusedError("down"))
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(5)]
            await rig.queued(5)
            while not all(waiter.done for waiter in waiters):
                clock.advance(0.02)
                rig.pool.run_due()
                await anyio.sleep(0.001)
        assert rig.connector.calls["connect"] == 3
        assert {type(waiter.error) for waiter in waiters} == {CircuitOpen}
        clock.advance(2)
        with pytest.raises(CircuitOpen) as caught:
            await rig.lease()
        assert rig.connector.calls["connect"] == 3  # no caller connects while it is open
        text = str(caught.value)
        assert "db: circuit open: 3 connects in a row failed" in text
        assert "ConnectionRefusedError: down" in text
        assert re.search(r"open for 2\.\d s, next try in [78]\.\d s", text)
        assert caught.value.retry_after == pytest.approx(8, abs=0.5)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)

        clock.advance(8)  # half-open: one probe; it fails
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(3)]
            await rig.queued(3)
            await rig.until(lambda: rig.connector.dialling == 1)
            assert rig.stats.connecting == 1
            gate.set()
        assert {type(waiter.error) for waiter in waiters} == {CircuitOpen}
        assert rig.connector.calls["connect"] == 4

        rig.connector.free_all()
        clock.advance(10)  # half-open again: the probe succeeds, the breaker closes, all are served
        leases = [await rig.lease() for _ in range(2)]
        for lease in leases:
            await rig.give(lease)
        kinds = [event.kind for event in events]
        assert kinds.count(EventKind.BREAKER_OPENED) == 2
        assert kinds.count(EventKind.BREAKER_CLOSED) == 1


async def test_an_open_breaker_does_not_hide_a_live_connection(make: Make) -> None:
    breaker = BreakerConfig(failure_threshold=1, reset_timeout=1000)
    async with make(max_size=2, breaker=breaker) as rig:
        held = await rig.lease()
        rig.connector.fail("connect", lambda: ConnectionRefusedError("down"))
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.until(lambda: rig.stats.connect_errors == 1)
            await rig.give(held)
        await rig.give(waiter.lease)
        await rig.give(await rig.lease(1))
        rig.pool.clear()  # clear() resets the breaker too
        rig.connector.fail("connect", None)
        await rig.give(await rig.lease())


# -- drivers that must connect in their caller ---------------------------------------------------------------------


async def test_in_the_caller_the_drivers_own_error_is_raised(make: Make) -> None:
    error = WrongPassword("no")
    async with make(max_size=2, features={"in_caller": True}, backoff=NEVER_AGAIN) as rig:
        rig.connector.fail("connect", lambda: error)
        for _ in range(3):  # no backoff: each caller tries and gets its own error
            with pytest.raises(WrongPassword):
                await rig.lease()
        rig.connector.fail("connect", None)
        await rig.give(await rig.lease())


@pytest.mark.parametrize("given", [{"features": {"in_caller": True}}, {"connect_in_caller": True}])
async def test_in_the_caller_it_is_its_own_thread_or_task(make: Make, given: dict[str, Any]) -> None:
    where: list[object] = []
    async with make(max_size=2, **given) as rig:
        original = rig.connector._opened

        def opened() -> Any:
            where.append(rig.pool._caller())
            return original()

        rig.connector._opened = opened  # type: ignore[method-assign]

        async def work() -> None:
            def here() -> None:
                lease = rig.pool.lease()
                where.append(rig.pool._caller())
                lease.close()

            if rig.threads:
                await rig.call(here)
            else:
                async with rig.pool.lease():
                    where.append(rig.pool._caller())

        await work()
        assert where[0] == where[1]


async def test_in_the_caller_can_be_switched_in_a_live_pool(make: Make) -> None:
    async with make(max_size=3, backoff=NEVER_AGAIN) as rig:
        rig.pool.reconfigure(connect_in_caller=True)
        rig.connector.fail("connect", lambda: WrongPassword("no"))
        with pytest.raises(WrongPassword):
            await rig.lease()
        rig.pool.clear()
        rig.pool.reconfigure(connect_in_caller=False)
        with pytest.raises(ConnectFailed, match="cannot connect"):
            await rig.lease()
        rig.pool.clear()
        rig.connector.fail("connect", None)
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            detached = ask(group, rig)
            await rig.until(lambda: rig.connector.dialling == 1)
            rig.pool.reconfigure(connect_in_caller=True)  # with a connect of each kind in progress
            own = ask(group, rig)
            await rig.until(lambda: rig.connector.dialling >= 2)
            rig.pool.reconfigure(connect_in_caller=False)
            gate.set()
        await rig.give(detached.lease)
        await rig.give(own.lease)


def test_a_connector_that_requires_its_caller_refuses_another_setting() -> None:
    words = "connect_in_caller=False: FakeConnector requires that each caller opens its own connection"
    with pytest.raises(ConfigError, match=words):
        Pool(FakeConnector(in_caller=True), connect_in_caller=False)
    with Pool(FakeConnector(in_caller=True)) as pool:
        assert pool.describe()["connect_in_caller"] == Setting(True, "required by FakeConnector")
        with pytest.raises(ConfigError, match=r"connect_in_caller=False: .* \(from reconfigure"):
            pool.reconfigure(connect_in_caller=False)
        pool.reconfigure(max_size=3)


async def test_a_slow_connect_in_a_caller_delays_no_other_caller(make: Make) -> None:
    async with make(max_size=2, features={"in_caller": True}) as rig:
        held = await rig.lease()
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            slow = ask(group, rig)
            await rig.until(lambda: rig.connector.dialling == 1)
            await rig.give(held)
            await rig.give(await rig.lease(NO_DEADLINE))  # the gate is still closed
            gate.set()
        await rig.give(slow.lease)


async def test_in_the_caller_a_closed_pool_keeps_nothing(make: Make) -> None:
    async with make(max_size=2, features={"in_caller": True}) as rig:
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            caller = ask(group, rig)
            await rig.until(lambda: rig.connector.dialling == 1)
            await rig.close(timeout=0)
            gate.set()
        assert caller.lease is None
        assert type(caller.error).__name__ == "PoolClosed"
        await rig.until(lambda: rig.connector.live == 0)


# -- warm-up -------------------------------------------------------------------------------------------------------


async def test_warm_up_opens_them_together(make: Make) -> None:
    async with make(max_size=8, max_connecting=4, features={"connect": 0.01}) as rig:
        await rig.warm_up(6)
        assert rig.stats.idle == 6
        assert rig.connector.max_dialling == 4
        await rig.warm_up(3)  # enough exist
        await rig.warm_up(100)  # as far as max_size goes
        assert rig.connector.calls["connect"] == 8


async def test_warm_up_means_min_size_by_default(make: Make) -> None:
    async with make(max_size=8, min_size=3) as rig:
        await rig.warm_up()
        assert rig.stats.idle == 3


async def test_warm_up_collects_all_errors_and_keeps_what_works(make: Make) -> None:
    async with make(max_size=8, name="db", backoff=NEVER_AGAIN) as rig:
        errors: list[BaseException | None] = [OSError("one"), None, WrongPassword("two"), None, OSError("one")]
        rig.connector.fail("connect", errors.pop)
        with pytest.raises(ConnectFailed, match=r"db: warm_up: 3 of 5 connects failed; .*one") as caught:
            await rig.warm_up(5)
        assert sorted(type(error).__name__ for error in caught.value.errors) == ["OSError", "OSError", "WrongPassword"]
        assert caught.value.__cause__ is caught.value.errors[0]
        assert rig.stats.idle == 2


async def test_warm_up_within_a_time(make: Make) -> None:
    async with make(max_size=8) as rig:
        gate = rig.connector.hold("connect")
        with pytest.raises(ConnectFailed, match="3 of 3 did not finish in time"):
            await rig.warm_up(3, timeout=0.02)
        gate.set()
        await rig.until(lambda: rig.stats.idle == 3)  # the connects go on, and their connections are kept


async def test_warm_up_waits_as_long_as_a_caller_where_a_connect_has_no_limit(make: Make) -> None:
    """Otherwise a server that never answers holds it for ever."""
    async with make(max_size=8, connect_timeout=None, acquire_timeout=0.02) as rig:
        rig.connector.hold("connect")
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectFailed, match="3 of 3 did not finish in time"):
            await rig.warm_up(3)
        rig.connector.free_all()
        await rig.until(lambda: rig.stats.idle == 3)


async def test_warm_up_waits_as_long_as_its_connects_may_take(make: Make) -> None:
    async with make(max_size=8, acquire_timeout=0.001, max_connecting=1, features={"connect": 0.01}) as rig:
        await rig.warm_up(3)
        assert rig.stats.idle == 3


async def test_warm_up_beside_callers(make: Make) -> None:
    async with make(max_size=4, max_connecting=4, features={"connect": 0.005}) as rig:
        async with anyio.create_task_group() as group:
            group.start_soon(rig.warm_up, 4)
            waiters = [ask(group, rig) for _ in range(4)]
        for waiter in waiters:
            await rig.give(waiter.lease)
        assert rig.connector.max_live <= 4


async def test_callers_get_the_error_of_a_failed_connect_at_once_if_the_connector_asks_for_it(make: Make) -> None:
    async with make(max_size=4, features={"reports_errors": True}) as rig:
        gate = rig.connector.hold("connect")
        rig.connector.fail("connect", lambda: ConnectionRefusedError("refused"))
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig, NO_DEADLINE) for _ in range(6)]
            await rig.queued(6)
            gate.set()
        assert {type(waiter.error) for waiter in waiters} == {ConnectFailed}
        assert len({id(waiter.error) for waiter in waiters}) == 6
        rig.connector.fail("connect", None)
        await rig.give(await rig.lease())  # waits for the backoff, and is served


async def test_a_connect_runs_in_a_copy_of_the_context_of_its_caller(make: Make) -> None:
    """This holds even if another caller, or a timer, starts it."""
    seen: list[tuple[str, str]] = []

    def note() -> None:
        seen.append((request_id.get("none"), changed.get("no")))
        changed.set("yes")

    async with make(max_size=2, max_connecting=1) as rig:
        rig.connector.fail("connect", note)  # raises nothing
        gate = rig.connector.hold("connect")

        async def caller(name: str) -> None:
            request_id.set(name)
            leases.append(await rig.lease())
            assert changed.get("no") == "no", "the connect has changed its caller's context"

        leases: list[Any] = []
        async with anyio.create_task_group() as group:
            for number, name in enumerate(("first", "second")):
                group.start_soon(caller, name)
                await rig.queued(number + 1)
            gate.set()
        for lease in leases:
            await rig.give(lease)
    assert seen == [("first", "no"), ("second", "no")]
