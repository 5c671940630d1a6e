"""Events: in the order in which things happened, and outside every lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import (
    AcquireTimeout,
    ClassConfig,
    CloseReason,
    ConfigError,
    Event,
    EventKind,
    FailReason,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
)
from poolkit.testing import ManualClock
from tests.shells.kit import ASYNC, Rig, ask

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]
K = EventKind
WHATEVER = pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, None),
        ({"keyed": True}, "endpoint"),
        ({"classes": {"web": ClassConfig()}}, None),
        ({"keyed": True, "classes": {"web": ClassConfig()}, "leak_after": 1000.0}, "endpoint"),
    ],
    ids=["plain", "keyed", "classes", "all"],
)
"""What a pool has that its listeners do not matter to."""


def kinds(events: list[Event]) -> list[EventKind]:
    return [event.kind for event in events]


async def test_the_life_of_a_connection_in_order(make: Make) -> None:
    events: list[Event] = []
    clock = ManualClock()
    async with make(max_size=1, name="db", listeners=[events.append], clock=clock) as rig:
        lease = await rig.lease()
        clock.advance(3)
        await rig.give(lease)
        await rig.give(await rig.lease())
        rig.pool.clear()
        await rig.until(lambda: rig.stats.size == 0)
        await rig.close()
        assert kinds(events) == [
            K.POOL_CREATED, K.POOL_READY,
            K.ACQUIRE_STARTED, K.CONNECTION_CREATED, K.CONNECTION_READY, K.ACQUIRED, K.RELEASED,
            K.ACQUIRE_STARTED, K.ACQUIRED, K.RELEASED,
            K.POOL_CLEARED, K.CONNECTION_CLOSED,
            K.POOL_CLOSED,
        ]  # fmt: skip
        assert {event.pool for event in events} == {"db"}
        assert [event.connection_id for event in events if event.kind is K.ACQUIRED] == [1, 1]
        released = next(event for event in events if event.kind is K.RELEASED)
        assert released.duration == pytest.approx(3)
        closed = next(event for event in events if event.kind is K.CONNECTION_CLOSED)
        assert closed.reason is CloseReason.STALE
        ready = next(event for event in events if event.kind is K.CONNECTION_READY)
        assert ready.duration is not None
        assert [event.at for event in events] == sorted(event.at for event in events)


async def test_released_comes_before_closed(make: Make) -> None:
    events: list[Event] = []
    async with make(max_size=1, listeners=[events.append]) as rig:
        await rig.give(await rig.lease(), discard=True)
        assert kinds(events)[-2:] == [K.RELEASED, K.CONNECTION_CLOSED]
        assert events[-1].reason is CloseReason.DISCARDED


async def test_why_an_acquire_failed(make: Make) -> None:
    events: list[Event] = []

    def failure() -> Event:
        assert kinds(events).count(K.ACQUIRE_STARTED) == kinds(events).count(K.ACQUIRED) + kinds(events).count(
            K.ACQUIRE_FAILED
        )
        return [event for event in events if event.kind is K.ACQUIRE_FAILED][-1]

    async with make(max_size=1, max_waiting=1, listeners=[events.append]) as rig:
        held = await rig.lease()
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.01)
        assert failure().reason is FailReason.TIMEOUT
        assert isinstance(failure().error, AcquireTimeout)
        assert failure().duration is not None
        async with anyio.create_task_group() as group:
            waiter = ask(group, rig)
            await rig.queued(1)
            with pytest.raises(PoolBusy):
                await rig.lease()
            assert [event for event in events if event.kind is K.ACQUIRE_FAILED][-1].reason is FailReason.BUSY
            await rig.give(held)
        await rig.give(waiter.lease)
        rig.pool.suspend(fail_fast=True)
        with pytest.raises(PoolSuspended):
            await rig.lease()
        assert failure().reason is FailReason.SUSPENDED
        rig.pool.resume()
        await rig.close()
        with pytest.raises(PoolClosed):
            await rig.lease()
        assert failure().reason is FailReason.POOL_CLOSED


async def test_a_failed_connect_in_the_caller(make: Make) -> None:
    events: list[Event] = []
    error = ConnectionRefusedError("no")
    async with make(max_size=1, listeners=[events.append], features={"in_caller": True}) as rig:
        rig.connector.fail("connect", lambda: error)
        with pytest.raises(ConnectionRefusedError):
            await rig.lease()
        assert kinds(events)[2:] == [K.ACQUIRE_STARTED, K.CONNECTION_CREATED, K.CONNECT_FAILED, K.ACQUIRE_FAILED]
        assert events[-2].error is error
        assert events[-1].reason is FailReason.CONNECTION_ERROR
        assert events[-1].error is error


@ASYNC
async def test_a_cancelled_acquire(make: Make) -> None:
    events: list[Event] = []
    async with make(max_size=1, listeners=[events.append]) as rig:
        held = await rig.lease()
        with anyio.move_on_after(0.01):
            await rig.lease()
        assert events[-1].kind is K.ACQUIRE_FAILED
        assert events[-1].reason is FailReason.CANCELLED
        await rig.give(held)


async def test_a_listener_that_raises_is_dropped_and_logged_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("the listener is broken")

    async with make(max_size=1, listeners=[broken, events.append]) as rig:
        await rig.give(await rig.lease())
        assert len(calls) == 1
        assert K.RELEASED in kinds(events)  # the others go on
        records = [record for record in caplog.records if "listener" in record.getMessage()]
        assert len(records) == 1
        assert "the listener is broken" in caplog.text


async def test_without_a_listener_no_event_is_created(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import poolkit._core.machine as machine

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an event for nobody")

    monkeypatch.setattr(machine, "Event", refuse)
    async with make(max_size=1) as rig:
        await rig.give(await rig.lease())
        rig.pool.clear()
        await rig.close()


@pytest.mark.parametrize("resets", [True, False])
async def test_listeners_come_and_go(make: Make, resets: bool) -> None:
    events: list[Event] = []
    async with make(max_size=1, features={"resets": resets}) as rig:
        await rig.give(await rig.lease())
        rig.pool.add_listener(events.append)
        await rig.give(await rig.lease())
        assert kinds(events) == [K.ACQUIRE_STARTED, K.ACQUIRED, K.RELEASED]
        rig.pool.remove_listener(events.append)
        rig.pool.remove_listener(events.append)  # no longer a listener: no error
        await rig.give(await rig.lease())
        assert len(events) == 3


async def test_a_listener_may_use_the_pool(make: Make, flavour: str) -> None:
    """No lock is held: statistics, commands and, on threads, even an acquire."""
    seen: list[Any] = []
    async with make(max_size=2) as rig:

        def listener(event: Event) -> None:
            if event.kind is K.RELEASED and not seen:
                seen.append(rig.pool.stats())
                rig.pool.reconfigure(max_waiting=3)
                rig.pool.explain()
                if flavour == "threads":
                    rig.pool.release(rig.pool.acquire(timeout=1))

        rig.pool.add_listener(listener)
        await rig.give(await rig.lease())
        assert seen


async def test_order_under_load(make: Make) -> None:
    """With many threads or tasks, the events of each connection are in order."""
    events: list[Event] = []
    async with make(max_size=3, listeners=[events.append], features={"connect": 0.0005}) as rig:

        async def user(number: int) -> None:
            for _ in range(5):
                lease = await rig.lease()
                await anyio.sleep(0)
                await rig.give(lease, discard=number % 4 == 0)

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(user, number)
        await rig.until(lambda: not rig.stats.closing and not rig.stats.connecting)
        await rig.close()
    follows = {
        None: {K.CONNECTION_CREATED},
        K.CONNECTION_CREATED: {K.CONNECTION_READY, K.CONNECT_FAILED},
        K.CONNECTION_READY: {K.ACQUIRED, K.CONNECTION_CLOSED},
        K.ACQUIRED: {K.RELEASED},
        K.RELEASED: {K.ACQUIRED, K.CONNECTION_CLOSED},
        K.CONNECTION_CLOSED: set(),
    }
    last: dict[int, EventKind] = {}
    for event in events:
        if event.connection_id is not None:
            assert event.kind in follows[last.get(event.connection_id)], f"{event} after {last}"
            last[event.connection_id] = event.kind
    assert set(last.values()) == {K.CONNECTION_CLOSED}
    assert kinds(events).count(K.ACQUIRED) == 60


class Picky:
    """A listener that asks for some kinds only."""

    def __init__(self, *wanted: EventKind) -> None:
        self.kinds = frozenset(wanted)
        self.heard: list[EventKind] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event.kind)


async def test_a_listener_gets_the_kinds_that_it_asks_for(make: Make) -> None:
    """Another listener gets all kinds. After its removal only the requested kinds are emitted."""
    everything: list[Event] = []
    picky = Picky(K.CONNECTION_READY, K.ACQUIRE_FAILED)
    async with make(max_size=1, listeners=[picky, everything.append]) as rig:
        held = await rig.lease()
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.01)
        await rig.give(held)
        assert picky.heard == [K.CONNECTION_READY, K.ACQUIRE_FAILED]
        assert K.RELEASED in kinds(everything)
        rig.pool.remove_listener(everything.append)
        rig.pool.add_listener(everything.append)
        rig.pool.remove_listener(picky)
        await rig.give(await rig.lease())
        assert picky.heard == [K.CONNECTION_READY, K.ACQUIRE_FAILED]


@WHATEVER
async def test_a_listener_leaves_the_leases_their_short_way(
    make: Make, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], key: str | None
) -> None:
    """This holds whether it asks for them or not: the core is not involved."""
    async with make(max_size=1, **settings) as rig:
        everything: list[Event] = []
        await rig.give(await rig.lease(key=key))

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the core was asked")

        for listener in (Picky(K.CONNECTION_READY), Picky(K.ACQUIRED), Picky(K.RELEASED), everything.append):
            rig.pool.add_listener(listener)
            with monkeypatch.context() as patch:
                patch.setattr(rig.pool._core, "acquire", refuse)
                patch.setattr(rig.pool._core, "give_back", refuse)
                await rig.give(await rig.lease(key=key))
            if isinstance(listener, Picky):
                assert listener.heard == list(listener.kinds - {K.CONNECTION_READY})
                rig.pool.remove_listener(listener)
        assert kinds(everything) == [K.ACQUIRE_STARTED, K.ACQUIRED, K.RELEASED]
        first = Picky(K.ACQUIRE_STARTED)
        rig.pool.remove_listener(everything.append)
        rig.pool.add_listener(first)
        await rig.give(await rig.lease(key=key))
        assert first.heard == [K.ACQUIRE_STARTED]
        started, acquired, released = everything
        number, name = acquired.connection_id, rig.pool.name
        assert number is not None
        assert started == Event(K.ACQUIRE_STARTED, name, started.at)
        assert acquired == Event(K.ACQUIRED, name, started.at, number, 0.0, key=key)
        assert released == Event(K.RELEASED, name, released.at, number, released.at - started.at, key=key)


@WHATEVER
async def test_an_interrupted_listener_keeps_no_event_from_those_that_come_later(
    make: Make, settings: dict[str, Any], key: str | None
) -> None:
    """The event of the interrupted call counts as delivered. The next thread delivers the others."""
    heard: list[EventKind] = []
    interrupt = True

    def listener(event: Event) -> None:
        nonlocal interrupt
        heard.append(event.kind)
        if event.kind is K.RELEASED and interrupt:
            interrupt = False
            raise KeyboardInterrupt

    async with make(max_size=1, **settings) as rig:
        await rig.give(await rig.lease(key=key))
        rig.pool.add_listener(listener)
        lease = await rig.lease(key=key)

        def give() -> None:
            with contextlib.suppress(KeyboardInterrupt):
                lease.close() if rig.threads else lease.close_nowait()

        await rig.call(give)
        await rig.give(await rig.lease(key=key))
        assert heard == [K.ACQUIRE_STARTED, K.ACQUIRED, K.RELEASED] * 2


@WHATEVER
async def test_a_caller_that_is_interrupted_in_a_listener_leaves_nothing_behind(
    make: Make, settings: dict[str, Any], key: str | None
) -> None:
    """Its lease never began for it: the connection is closed, and its place and its class are free again."""
    heard: list[EventKind] = []

    def listener(event: Event) -> None:
        heard.append(event.kind)
        if heard == [K.ACQUIRE_STARTED, K.ACQUIRED]:
            raise KeyboardInterrupt

    async with make(max_size=1, **settings) as rig:
        await rig.give(await rig.lease(key=key))
        rig.pool.add_listener(listener)
        rig.pool._core.recheck_interval = 0.05

        async def interrupted() -> bool:
            try:
                if rig.threads:
                    rig.pool.lease(key=key)
                else:
                    await rig.pool.lease(key=key)
            except KeyboardInterrupt:
                return True
            return False

        assert await interrupted()
        await rig.give(await rig.lease(key=key))
        # a sweep finds the connection, while the caller waits for its place
        counts = {kind: heard.count(kind) for kind in heard}
        assert counts == {
            K.ACQUIRE_STARTED: 2, K.ACQUIRED: 2, K.RELEASED: 1,
            K.CONNECTION_CLOSED: 1, K.CONNECTION_CREATED: 1, K.CONNECTION_READY: 1,
        }  # fmt: skip
        assert heard[-2:] == [K.ACQUIRED, K.RELEASED]
        rig.pool.check_books()


async def test_kinds_that_are_none_are_refused(make: Make) -> None:
    """The message names the listener and the kinds that it asked for."""

    def listener(event: Event) -> None: ...

    listener.kinds = "acquired"  # type: ignore[attr-defined]
    async with make() as rig:
        with pytest.raises(ConfigError, match="kinds='acquired' must be a collection of EventKind"):
            rig.pool.add_listener(listener)
    with pytest.raises(ConfigError, match="EventKind"):
        make(listeners=[listener])
