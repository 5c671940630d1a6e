"""Connections that serve several leases at once, and keyed pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, AsyncPool, Pool, UsageError, Verdict
from poolkit.policies.retire import LONGEST, SETTLED
from poolkit.testing import AsyncFakeConnector, FakeConnection, FakeConnector, ManualClock
from tests.shells.kit import PATIENCE, Outcome, Rig, ask
from tests.support.waiting import leak_warning

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


class Broken(Exception):
    verdict = Verdict.SUSPECT


async def test_one_connection_serves_as_many_as_it_can(make: Make) -> None:
    async with make(max_size=2, features={"streams": 3, "resets": False}) as rig:
        leases = [await rig.lease() for _ in range(5)]
        assert [lease.connection.number for lease in leases] == [1, 1, 1, 2, 2]
        stats = rig.stats
        assert (stats.size, stats.in_use, stats.leases) == (2, 2, 5)
        sixth = await rig.lease()
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.01)
        await rig.give(leases[0])
        again = await rig.lease(1)
        assert again.connection.number == 1
        for lease in [*leases[1:], sixth, again]:
            await rig.give(lease)
        assert rig.stats.idle == 2


async def test_waiters_share_the_connect_that_they_wait_for(make: Make) -> None:
    """Once it is known that a connection serves 5 leases, ten callers do not open ten connections."""
    async with make(max_size=10, features={"streams": 5, "resets": False}, clock=ManualClock()) as rig:
        await rig.give(await rig.lease())
        rig.pool.clear()
        await rig.until(lambda: rig.stats.size == 0)
        gate = rig.connector.hold("connect")
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(10)]
            await rig.queued(10)
            gate.set()
        assert rig.connector.calls["connect"] == 3
        assert sorted(waiter.lease.connection.number for waiter in waiters) == [2] * 5 + [3] * 5
        for waiter in waiters:
            await rig.give(waiter.lease)


async def test_the_last_one_out_closes_a_broken_connection(make: Make) -> None:
    async with make(max_size=2, features={"streams": 2, "resets": False}) as rig:
        first, second = await rig.lease(), await rig.lease()
        await rig.give(first, error=Broken())
        assert not second.connection.closed
        third = await rig.lease()
        assert third.connection.number == 2  # the broken one gets no new lease
        await rig.give(second)
        await rig.until(lambda: second.connection.closed)
        await rig.give(third)


async def test_capacity_may_change_while_leased(make: Make) -> None:
    """As in HTTP/2, where SETTINGS raise it and GOAWAY ends it."""
    async with make(max_size=1, features={"streams": 1, "resets": False}) as rig:
        first = await rig.lease()
        async with anyio.create_task_group() as group:
            waiters = [ask(group, rig) for _ in range(2)]
            await rig.queued(2)
            first.set_capacity(3)
            await rig.until(lambda: all(waiter.done for waiter in waiters))
        assert {waiter.lease.connection.number for waiter in waiters} == {1}
        first.set_capacity(0)  # those go on, and no new lease begins
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.01)
        for lease in (first, *(waiter.lease for waiter in waiters)):
            assert not lease.connection.closed
            await rig.give(lease)
        fresh = await rig.lease()
        assert fresh.connection.number == 2
        await rig.give(fresh)


async def test_lower_capacity_waits_for_the_surplus_to_end(make: Make) -> None:
    async with make(max_size=1, features={"streams": 3, "resets": False}) as rig:
        leases = [await rig.lease() for _ in range(3)]
        leases[0].set_capacity(1)
        await rig.give(leases[0])
        await rig.give(leases[1])
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.01)
        await rig.give(leases[2])
        await rig.give(await rig.lease())


async def test_expired_while_shared(make: Make) -> None:
    from poolkit.testing import ManualClock

    clock = ManualClock()
    settings = {"max_lifetime": 100, "lifetime_jitter": 0, "clock": clock}
    async with make(max_size=2, features={"streams": 3, "resets": False}, **settings) as rig:
        first, second = await rig.lease(), await rig.lease()
        clock.advance(101)
        third = await rig.lease()
        assert third.connection.number == 2
        await rig.give(first)
        assert not second.connection.closed
        await rig.give(second)
        await rig.until(lambda: second.connection.closed)
        await rig.give(third)


async def test_a_shared_connection_cannot_be_taken_out(make: Make) -> None:
    async with make(max_size=1, features={"streams": 3, "resets": False}) as rig:
        first, second = await rig.lease(), await rig.lease()
        with pytest.raises(UsageError, match="other leases"):
            first.detach()
        await rig.give(first)
        connection = second.detach()
        assert rig.stats.size == 0
        rig.connector.abort(connection)


async def test_a_shared_connection_needs_leases(make: Make) -> None:
    """acquire() returns the bare connection, so two leases of it could not be distinguished at their return."""
    async with make(max_size=1, features={"streams": 3, "resets": False}) as rig:
        with pytest.raises(UsageError, match=r"lease\(\)"):
            await rig.acquire()
        await rig.give(await rig.lease())


async def test_drop_in_a_crowd(make: Make) -> None:
    import gc

    async with make(max_size=1, features={"streams": 2, "resets": False}) as rig:
        kept, dropped = await rig.lease(), [await rig.lease()]
        with leak_warning():
            dropped.clear()
            gc.collect()
            await rig.until(lambda: rig.pool.stats().leases == 1)
        assert not kept.connection.closed
        await rig.give(kept)
        await rig.until(lambda: kept.connection.closed)


# -- keyed -----------------------------------------------------------------------------------------------------


class Keyed:
    """Endpoints by name. A connection stores the name of its endpoint."""

    lazily = False
    guess = 1

    def streams(self, key: Any) -> int:
        return self.guess

    def lazy(self, connection: FakeConnection) -> bool:
        return self.lazily


class KeyedConnector(Keyed, FakeConnector):
    def connect_to(self, key: Any, timeout: float | None) -> FakeConnection:
        connection = self.connect(timeout)
        connection.key = key  # type: ignore[attr-defined]
        return connection


class AsyncKeyedConnector(Keyed, AsyncFakeConnector):
    async def connect_to(self, key: Any, timeout: float | None) -> FakeConnection:
        connection = await self.connect(timeout)
        connection.key = key  # type: ignore[attr-defined]
        return connection


@pytest.fixture
def keyed(make: Make, flavour: str) -> Callable[..., Rig]:
    def build(features: dict[str, Any] | None = None, **settings: Any) -> Rig:
        kind = KeyedConnector if flavour == "threads" else AsyncKeyedConnector
        return make(kind(**{"resets": False, **(features or {})}), keyed=True, **settings)

    return build


async def use(rig: Rig, key: str) -> FakeConnection:
    lease = await rig.lease(key=key)
    assert lease.connection.key == key
    await rig.give(lease)
    connection: FakeConnection = lease.connection
    return connection


async def test_each_key_has_connections_of_its_own(keyed: Callable[..., Rig]) -> None:
    async with keyed(max_size=4) as rig:
        assert (await use(rig, "a")).number == 1
        assert (await use(rig, "b")).number == 2
        assert (await use(rig, "a")).number == 1
        assert rig.stats.lanes == 3  # and the endpoint without a key
        assert rig.stats.idle == 2


async def test_the_longest_unused_of_another_key_gives_way(keyed: Callable[..., Rig]) -> None:
    async with keyed(max_size=3) as rig:
        for key in ("a", "b", "c", "a"):
            await use(rig, key)
        fourth = await use(rig, "d")
        assert fourth.number == 4
        assert [one.closed for one in rig.connector.connections] == [False, True, False, False]  # b
        assert rig.connector.max_live == 3


async def test_busy_keys_do_not_take_connections_from_each_other_between_two_leases(
    keyed: Callable[..., Rig],
) -> None:
    """A caller of a key that has connections waits while another key uses one again and again, but not for ever."""
    clock = ManualClock()
    async with keyed(max_size=4, clock=clock) as rig:
        held = [await rig.lease(key="a") for _ in range(2)]
        busy = [await rig.lease(key="b") for _ in range(2)]

        async def one_more() -> None:
            held.append(await rig.lease(PATIENCE, key="a"))

        async def use_it(times: int) -> None:
            for _ in range(times):
                await rig.give(busy.pop())
                clock.advance(0.5 * SETTLED)
                await rig.tick()
                busy.append(await rig.lease(0, key="b"))

        async with anyio.create_task_group() as group:
            group.start_soon(one_more)
            await rig.queued(1)
            await use_it(10)
            assert (len(held), rig.connector.calls["connect"]) == (2, 4)
            await rig.give(busy.pop())
            clock.advance(SETTLED)  # now it is unused there
            await rig.tick()
            await rig.until(lambda: len(held) == 3, "the caller is served")
            group.start_soon(one_more)
            await rig.queued(1)
            await use_it(10)
            assert len(held) == 3
            clock.advance(LONGEST)
            await rig.give(busy.pop())
            await rig.tick()
            await rig.until(lambda: len(held) == 4, "no caller waits for longer than that")
        assert (rig.connector.calls["connect"], rig.connector.max_live) == (6, 4)
        for lease in held:
            await rig.give(lease)


async def test_a_leased_connection_never_gives_way(keyed: Callable[..., Rig]) -> None:
    async with keyed(max_size=2) as rig:
        leases = [await rig.lease(key="a"), await rig.lease(key="b")]
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.02, key="c")
        async with anyio.create_task_group() as group:
            outcome = Outcome()

            async def wait() -> None:
                outcome.lease = await rig.lease(PATIENCE, key="c")

            group.start_soon(wait)
            await rig.queued(1)
            await rig.give(leases[0])
        assert outcome.lease.connection.key == "c"
        await rig.give(outcome.lease)
        await rig.give(leases[1])


async def test_over_all_keys_in_order_of_arrival(keyed: Callable[..., Rig]) -> None:
    async with keyed(max_size=1) as rig:
        held = await rig.lease(key="a")
        served: list[str] = []

        async def user(key: str) -> None:
            lease = await rig.lease(PATIENCE, key=key)
            served.append(key)
            await rig.give(lease)

        async with anyio.create_task_group() as group:
            for number, key in enumerate(("b", "c", "b2", "d")):
                group.start_soon(user, key)
                await rig.queued(number + 1)
            await rig.give(held)
        assert served == ["b", "c", "b2", "d"]


async def test_an_unused_key_is_forgotten(keyed: Callable[..., Rig]) -> None:
    async with keyed(max_size=2) as rig:
        for number in range(50):
            await use(rig, f"host-{number}")
        await rig.until(lambda: not rig.stats.closing)
        assert rig.stats.lanes <= 3
        assert rig.connector.max_live <= 2


async def test_one_endpoint_that_is_down_harms_no_other(keyed: Callable[..., Rig]) -> None:
    from poolkit import BackoffConfig, BreakerConfig, CircuitOpen

    breaker, backoff = BreakerConfig(failure_threshold=1, reset_timeout=1000), BackoffConfig(base=0.001, cap=0.01)
    async with keyed(max_size=3, breaker=breaker, backoff=backoff) as rig:
        rig.connector.fail("connect", lambda: ConnectionRefusedError("a is down"))
        with pytest.raises(CircuitOpen):
            await rig.lease(key="a")
        rig.connector.fail("connect", None)
        await use(rig, "b")
        with pytest.raises(CircuitOpen):
            await rig.lease(key="a")


async def test_others_wait_for_a_lazy_connect(keyed: Callable[..., Rig]) -> None:
    """The connection opens with its first request. Until its capacity is known, the others wait for it."""
    async with keyed({"in_caller": True, "streams": 1}, max_size=10, clock=ManualClock()) as rig:
        rig.connector.lazily, rig.connector.guess = True, 100  # type: ignore[union-attr]
        first = await rig.lease(key="h2")
        assert (rig.stats.connecting, rig.stats.in_use, rig.stats.leases) == (1, 0, 1)
        async with anyio.create_task_group() as group:
            outcomes: list[Any] = []

            async def user() -> None:
                outcomes.append(await rig.lease(PATIENCE, key="h2"))

            for _ in range(5):
                group.start_soon(user)
            await rig.queued(5)
            assert rig.stats.size == 1
            first.set_capacity(100)
            assert (rig.stats.connecting, rig.stats.in_use) == (0, 1)
        assert {lease.connection.number for lease in outcomes} == {1}
        for lease in [first, *outcomes]:
            await rig.give(lease)


async def test_a_lazy_connect_that_turns_out_plain(keyed: Callable[..., Rig]) -> None:
    """It turns out to be HTTP/1.1, so the others open their own at once."""
    async with keyed({"in_caller": True, "streams": 1}, max_size=10) as rig:
        rig.connector.lazily, rig.connector.guess = True, 100  # type: ignore[union-attr]
        first = await rig.lease(key="h1")
        async with anyio.create_task_group() as group:
            outcomes: list[Any] = []

            async def user() -> None:
                lease = await rig.lease(PATIENCE, key="h1")
                lease.set_capacity(1)
                outcomes.append(lease)

            for _ in range(3):
                group.start_soon(user)
            await rig.queued(3)
            first.set_capacity(1)
            await rig.until(lambda: len(outcomes) == 3)
        assert len({lease.connection.number for lease in [first, *outcomes]}) == 4
        for lease in [first, *outcomes]:
            await rig.give(lease)


async def test_a_lazy_connect_that_fails(keyed: Callable[..., Rig]) -> None:
    async with keyed({"in_caller": True, "streams": 1}, max_size=10) as rig:
        rig.connector.lazily, rig.connector.guess = True, 100  # type: ignore[union-attr]
        first = await rig.lease(key="h2")
        async with anyio.create_task_group() as group:
            outcomes: list[Any] = []

            async def user() -> None:
                outcomes.append(await rig.lease(PATIENCE, key="h2"))

            group.start_soon(user)
            await rig.queued(1)
            await rig.give(first, error=ConnectionRefusedError("nobody there"))
        assert outcomes[0].connection.number == 2
        assert rig.stats.connect_errors == 1
        await rig.give(outcomes[0])


async def test_max_idle_is_over_all_keys(keyed: Callable[..., Rig]) -> None:
    async with keyed(max_size=10, max_idle=2) as rig:
        for key in ("a", "b", "c"):
            await use(rig, key)
        await rig.until(lambda: rig.connector.live == 2)
        assert rig.connector.connections[0].closed


async def test_clear_and_close_reach_every_key(keyed: Callable[..., Rig]) -> None:
    async with keyed(max_size=10) as rig:
        for key in ("a", "b", "c"):
            await use(rig, key)
        rig.pool.clear()
        await rig.until(lambda: rig.connector.live == 0)
        for key in ("a", "b", "c"):
            await use(rig, key)
        await rig.close()
        assert rig.connector.live == 0


async def test_an_interrupted_clear_leaves_no_older_connection_to_the_next_caller(keyed: Callable[..., Rig]) -> None:
    """KeyboardInterrupt may end clear() after the new generation has begun, before idle connections are closed."""
    async with keyed(max_size=10) as rig:
        await use(rig, "a")
        rig.pool._core.all_endpoints["a"].generation += 1
        lease = await rig.lease(key="a")
        assert lease.connection.number == 2
        await rig.give(lease)


def test_min_size_means_nothing_for_a_keyed_pool() -> None:
    from poolkit import ConfigError

    for pool, connector in ((Pool, KeyedConnector()), (AsyncPool, AsyncKeyedConnector())):
        with pytest.raises(ConfigError, match=r"min_size=2: .*keyed"):
            pool(connector, keyed=True, min_size=2)  # type: ignore[operator]
