"""Complaints 1 to 5: a caller that is cancelled or interrupted anywhere costs the pool nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import BackoffConfig, Pool
from poolkit.testing import AsyncFakeConnector, FakeConnection, FakeConnector
from tests.shells.kit import ASYNC, Outcome, Rig, ask, attempt

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


QUICK = BackoffConfig(base=0.001, cap=0.01)


class Interrupt(BaseException):
    """Like gevent's Timeout: not an Exception, and raised anywhere."""


async def ticks(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@ASYNC
@pytest.mark.parametrize("resets", [True, False])
async def test_01_cancel_storm_loses_no_capacity(make: Make, resets: bool) -> None:
    chance = random.Random(1)

    async def user(rig: Rig) -> None:
        async with rig.pool.lease() as connection:
            connection.dirty = chance.random() < 0.3
            await anyio.sleep(chance.random() * 0.0005)

    features = {"resets": resets, "connect": 0.0002}
    async with make(
        max_size=2, features=features, check_after_idle=0.0002, max_lifetime=0.02, idle_timeout=0.01
    ) as rig:
        for _ in range(200):
            async with anyio.create_task_group() as group:
                for _ in range(60):
                    group.start_soon(user, rig)
                await ticks(chance.randrange(6))
                if chance.random() < 0.5:
                    await anyio.sleep(chance.random() * 0.002)
                group.cancel_scope.cancel()
        await rig.until(lambda: not rig.stats.in_use and not rig.stats.waiting)
        assert rig.connector.max_live <= 2
        first, second = await rig.lease(1), await rig.lease(1)
        await rig.give(first)
        await rig.give(second)


@pytest.mark.parametrize("flavour", ["asyncio"], indirect=True)
@pytest.mark.parametrize("release_first", [True, False])
@pytest.mark.parametrize("between", [0, 1, 2, 3])
@pytest.mark.parametrize("before", [0, 1, 2])
async def test_02_release_and_cancel_at_the_same_moment(
    make: Make, release_first: bool, between: int, before: int
) -> None:
    """An accepted cancellation is raised, and the connection is idle again. There is no other outcome."""
    async with make(max_size=1) as rig:
        held = await rig.lease()

        async def wait() -> Any:
            return await rig.pool.lease(5)

        waiter = asyncio.get_running_loop().create_task(wait())
        await rig.queued(1)
        await ticks(before)
        accepted = False
        if release_first:
            held.close_nowait()
            await ticks(between)
            accepted = waiter.cancel()
        else:
            accepted = waiter.cancel()
            await ticks(between)
            held.close_nowait()
        try:
            lease = await waiter
        except asyncio.CancelledError:
            assert accepted
        else:
            assert not accepted, "cancel() said yes and the task went on"
            await lease.close()
        await rig.until(lambda: rig.stats.idle == 1)
        assert rig.stats.in_use == 0


@ASYNC
@pytest.mark.parametrize("between", [0, 1, 2, 3])
async def test_02_hand_off_to_a_scope_that_is_cancelled_passes_on(make: Make, between: int) -> None:
    async with make(max_size=1) as rig:
        held = await rig.lease()
        outcome = Outcome()

        async with anyio.create_task_group() as group:
            group.start_soon(attempt, rig, outcome)
            await rig.queued(1)
            held.close_nowait()
            await ticks(between)
            group.cancel_scope.cancel()
        if outcome.lease is not None:
            await rig.give(outcome.lease)
        assert (await rig.lease(1)).close_nowait() is None
        assert rig.connector.calls["connect"] == 1


@ASYNC
async def test_03_a_connect_survives_the_cancellation_of_its_caller(make: Make) -> None:
    async with make(max_size=1) as rig:
        gate = rig.connector.hold("connect")
        with anyio.move_on_after(0.01):
            await rig.lease()
        stats = rig.stats
        assert (stats.waiting, stats.connecting) == (0, 1)
        async with anyio.create_task_group() as group:
            other = ask(group, rig)  # the next caller takes over the connect
            await rig.queued(1)
            gate.set()
        assert other.lease.connection.number == 1
        await rig.give(other.lease)
        assert rig.connector.calls["connect"] == 1


@ASYNC
async def test_03_a_connect_without_a_waiting_caller_becomes_idle(make: Make) -> None:
    async with make(max_size=2) as rig:
        gate = rig.connector.hold("connect")
        with anyio.move_on_after(0.01):
            await rig.lease()
        gate.set()
        await rig.until(lambda: rig.stats.idle == 1)
        assert rig.connector.live == 1


@ASYNC
async def test_03_a_connect_in_the_caller_ends_with_it(make: Make) -> None:
    """For drivers that connect in the task of the caller, the cancellation ends the connect and frees its permit."""
    async with make(max_size=1, features={"in_caller": True}) as rig:
        rig.connector.hold("connect")
        with anyio.move_on_after(0.01):
            await rig.lease()
        assert rig.stats.size == 0
        assert rig.stats.last_connect_error is None  # the caller has failed, not the server
        rig.connector.free_all()
        await rig.give(await rig.lease(1))


@ASYNC
@pytest.mark.parametrize("stage", ["reset", "close", "check"])
async def test_04_cancelled_while_the_pool_works_on_the_connection(make: Make, stage: str) -> None:
    """The reset, close or check goes on without its caller. The slot becomes free in any case."""
    async with make(max_size=1, check_after_idle=0) as rig:
        lease = await rig.lease()
        lease.connection.dirty = stage == "reset"
        gate = rig.connector.hold(stage)
        if stage == "check":
            await rig.give(lease)
            with anyio.move_on_after(0.01):
                await rig.lease()
        elif stage == "reset":
            with anyio.move_on_after(0.01):
                await rig.give(lease)
        else:
            rig.pool.clear()
            with anyio.move_on_after(0.01):
                await rig.give(lease)
        assert rig.stats.size == 1
        assert rig.stats.in_use == 0
        gate.set()
        rig.connector.gates.clear()
        lease = await rig.lease()
        assert lease.connection.number == (2 if stage == "close" else 1)
        assert not lease.connection.dirty
        await rig.give(lease)


@ASYNC
async def test_04_a_reset_that_never_ends_is_cut_short(make: Make) -> None:
    async with make(max_size=1, check_timeout=0.05) as rig:
        lease = await rig.lease()
        lease.connection.dirty = True
        rig.connector.hold("reset")
        with anyio.move_on_after(0.001):
            await rig.give(lease)
        second = await rig.lease()
        assert second.connection.number == 2
        assert rig.connector.calls["abort"] == 1
        await rig.give(second)


@pytest.mark.parametrize("flavour", ["asyncio"], indirect=True)
async def test_04_cancelled_twice_while_giving_back(make: Make) -> None:
    async with make(max_size=1) as rig:
        gate = rig.connector.hold("reset")

        async def work() -> None:
            async with rig.pool.lease() as connection:
                connection.dirty = True
                await asyncio.sleep(30)

        task = asyncio.get_running_loop().create_task(work())
        await rig.until(lambda: rig.stats.in_use == 1)
        await ticks(2)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        lease = await rig.lease(1)
        assert lease.connection.number == 2  # cancelled during use: its state is unknown
        await rig.give(lease)


@ASYNC
async def test_04_shielded_scopes_and_deadlines_around_a_lease(make: Make) -> None:
    async with make(max_size=2, features={"reset": 0.002}) as rig:
        for number in range(30):
            with anyio.move_on_after(0.0005 * (number % 8)):
                async with rig.pool.lease() as connection:
                    connection.dirty = True
                    await anyio.sleep(0.001)
        await rig.until(lambda: rig.stats.in_use == rig.stats.resetting == 0)
        assert rig.stats.size <= 2
        async with anyio.create_task_group() as group:
            outcomes = [ask(group, rig, 1) for _ in range(2)]
        for outcome in outcomes:
            await rig.give(outcome.lease)


@pytest.mark.parametrize("stage", ["connect", "check", "reset", "close", "abort"])
async def test_05_anything_raised_in_any_hook_frees_the_slot(make: Make, stage: str) -> None:
    async with make(max_size=1, check_after_idle=0, backoff=QUICK) as rig:
        lease = await rig.lease() if stage != "connect" else None
        if stage == "reset" and lease is not None:
            lease.connection.dirty = True
        fail_once(rig.connector, stage, Interrupt())
        try:
            if stage == "close":
                rig.pool.clear()
            if lease is not None:
                await rig.give(lease, discard=stage == "abort")
            second = await rig.lease()
        except Interrupt:
            second = await rig.lease()
        assert second.connection.number == (1 if stage == "connect" else 2)
        await rig.give(second)
        assert rig.connector.max_live == 1


@pytest.mark.parametrize("in_caller", [False, True])
async def test_05_a_listener_that_is_interrupted_while_a_lease_begins(make: Make, in_caller: bool) -> None:
    async with make(max_size=1, features={"in_caller": in_caller}) as rig:
        hit: list[int] = []

        def listener(event: Any) -> None:
            if event.kind.value == "acquired" and not hit:
                hit.append(1)
                raise Interrupt

        rig.pool.add_listener(listener)
        with pytest.raises(Interrupt):
            await rig.lease()
        await rig.give(await rig.lease(1))
        assert hit == [1]


@pytest.mark.parametrize("kind", [Interrupt, ValueError])
@pytest.mark.parametrize("hook", ["classify", "needs_reset", "capacity"])
async def test_05_hooks_that_decide_may_fail_too(make: Make, hook: str, kind: type[BaseException]) -> None:
    rig = make(max_size=1, backoff=QUICK, features={"streams": 1} if hook == "capacity" else None)
    right = getattr(rig.connector, hook)
    fail = [True]

    def hooked(argument: object) -> object:
        if fail.pop() if fail else False:
            raise kind
        return right(argument)

    setattr(rig.connector, hook, hooked)
    rig = make(rig.connector, max_size=1, backoff=QUICK)
    async with rig:
        try:
            lease = await rig.lease()
            await rig.give(lease, error=ValueError("the user's") if hook == "classify" else None)
        except kind:
            pass
        second = await rig.lease(2)
        assert second.connection.number == 2
        assert rig.connector.connections[0].closed
        await rig.give(second)


async def test_05_the_blocks_error_decides_about_the_connection(make: Make) -> None:
    """The connection stays in the pool after an application's error, not after an interruption or a network error."""
    numbers = []
    async with make(max_size=1) as rig:
        for error in (ValueError("mine"), Interrupt(), ConnectionResetError(), TimeoutError()):
            lease = await rig.lease()
            numbers.append(lease.connection.number)
            await rig.give(lease, error=error)
        lease = await rig.lease()
        numbers.append(lease.connection.number)
        await rig.give(lease)
    assert numbers == [1, 1, 2, 3, 4]


@pytest.mark.parametrize("stage", ["connect", "check", "reset", "close", "abort"])
@pytest.mark.parametrize("in_caller", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_05_control_c_in_a_hook(stage: str, in_caller: bool, kind: type[BaseException]) -> None:
    connector = FakeConnector(in_caller=in_caller)
    connector.close_in_caller = in_caller
    pool = Pool(connector, max_size=1, check_after_idle=0, backoff=QUICK)
    connection = pool.acquire() if stage != "connect" else None
    if stage == "reset" and connection is not None:
        connection.dirty = True
    fail_once(connector, stage, kind())
    try:
        if stage == "close":
            pool.clear()
        if connection is not None:
            pool.release(connection, discard=stage == "abort")
        second = pool.acquire(timeout=5)
    except kind:
        second = pool.acquire(timeout=5)
    assert second.number == (1 if stage == "connect" else 2)
    pool.release(second)
    assert connector.max_live == 1
    pool.check_books()
    pool.close()


def fail_once(connector: FakeConnector | AsyncFakeConnector, stage: str, error: BaseException) -> None:
    left = [error]
    connector.fail(stage, lambda: left.pop() if left else None)


def test_connections_of_the_kit_say_what_was_done_to_them() -> None:
    connection = FakeConnection(3)
    connection.closed = True
    assert repr(connection) == "<FakeConnection 3 closed>"
