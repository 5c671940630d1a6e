"""An exception between any two bytecodes of acquire, release and lease exit costs at most the caller's connection.

Never its place in the pool, never anybody else's connection, and nobody is left waiting. Time is virtual: an
interrupted step is made good within three seconds, while somebody wants a connection.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest

from poolkit import ClassConfig, Pool
from poolkit._core.queue import Request
from poolkit._core.slots import Slot
from poolkit.runtimes.threads import _Housekeeper
from poolkit.testing import FakeConnection, FakeConnector
from tests.faults.inline import InlineRuntime
from tests.faults.interrupts import interrupted_at, line_of, opcode_at, place_of, spared
from tests.support.story import Story

pytestmark = [
    pytest.mark.timeout(180),  # thousands of interrupts in each test
    pytest.mark.usefixtures("no_collector"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # leases that interrupted callers have dropped
]

SIZE = 3
SOON = 3.0


class Stage:
    """A pool before the scene that is interrupted. Another caller holds one connection throughout."""

    def __init__(
        self, *, idle: int = 0, features: dict[str, Any] | None = None, told: int = 0, **settings: Any
    ) -> None:
        self.story = Story()
        self.runtime = InlineRuntime()
        self.connector = FakeConnector(**(features or {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pool: Pool[FakeConnection] = Pool(
                self.connector, runtime=self.runtime, clock=self.runtime.clock, max_size=SIZE,
                listeners=[self.story, lambda event: None][:told], **settings,
            )  # fmt: skip
        self.other = self.pool.acquire()
        rest = [self.pool.acquire() for _ in range(idle)]
        for connection in rest:
            self.pool.release(connection)
        self.runtime.run_jobs()

    def queue(self) -> Request:
        """Add another caller that must wait."""
        pool = self.pool
        request = Request(pool._endpoint, self.runtime.clock.now, 2)
        request.parker = self.runtime.parker()
        pool._gate.step(pool._core.acquire, request, self.runtime.clock.now)
        return request

    def leave(self, request: Request) -> None:
        """Check that the waiting caller was served; then it returns its connection."""
        pool = self.pool
        wait_until = self.runtime.clock.now + SOON
        self.runtime.until(lambda: request.outcome is not None, wait_until)
        slot = request.outcome
        assert isinstance(slot, Slot), f"the one who waited got {slot!r}"
        assert request.parker is not None
        assert request.parker.woken, "it was served but not woken"  # type: ignore[attr-defined]
        pool._leased[id(slot.connection)] = pool._slow._begin(slot, request, self.runtime.clock.now)
        request.outcome = None
        pool.release(slot.connection)

    def all_is_well(self, *, missing: int = 0, untold: bool = False) -> None:
        """Check that the whole capacity can be used, no other connection was changed, and the invariants hold.

        ``untold``: the listener itself was interrupted.
        """
        assert not self.other.closed, "somebody else's connection was closed"
        got = [self.pool.acquire(timeout=SOON) for _ in range(SIZE - 1 - missing)]
        assert len({id(connection) for connection in (self.other, *got)}) == SIZE - missing, "in two hands"
        assert not any(connection.closed or connection.dirty for connection in got)
        for connection in got:
            self.pool.release(connection)
        self.runtime.run_jobs()
        self.pool.check_books()
        if not missing:
            self.pool.release(self.other)
            self.runtime.run_jobs()
            assert self.connector.max_live <= SIZE + self.connector.strays  # type: ignore[attr-defined]
            self.pool.close()
            self.runtime.run_jobs()
            assert self.pool.stats().size == 0
        if not untold:
            self.story.check(leased=None if missing else 0)


def in_the_tail_of_acquire(place: tuple[CodeType, int]) -> bool:
    """Return whether only the return of acquire() is left: as if interrupted in the caller, which has it then.

    CPython delivers no asynchronous exception there (only at calls, at jumps back and at the begin of functions).
    """
    last = ("LOAD_FAST", "RETURN_VALUE")
    return place[0].co_name in ("acquire", "acquire_bare") and opcode_at(place).startswith(last)


_TELLS = ("deliver(first)", "deliver(event)", "deliver(told)", "self._handle(item)", "listener(event)",
          "pending.append(event)")  # fmt: skip


def at_a_listener(place: tuple[CodeType, int]) -> bool:
    """Return whether the next call is the listener's: as if interrupted in the listener, which has the event then.

    CPython delivers no asynchronous exception between what is written down before a call and the call.
    """
    return line_of(place).strip().endswith(_TELLS)


def everywhere(make: Callable[[], Stage], scene: Callable[[Stage], Callable[[], object]], *, least: int) -> None:
    """Interrupt ``scene`` at its 1st, 2nd, ... bytecode until it runs to its end."""
    at = 0
    tails = 0
    while True:
        at += 1
        stage = make()
        stage.connector.strays = 0  # type: ignore[attr-defined]
        act = scene(stage)
        requests = list(stage.pool._endpoint.requests)
        place = interrupted_at(at, act)
        del act
        try:
            if place is None:
                break
            leased = len(stage.pool._leased)
            missing = 0
            if in_the_tail_of_acquire(place) and leased == 2:
                missing, tails = 1, tails + 1
            for request in requests:
                stage.leave(request)
            # a connection that was opened but not yet registered is left to the garbage collector
            stage.connector.strays = 1  # type: ignore[attr-defined]
            stage.all_is_well(missing=missing, untold=at_a_listener(place))
        except BaseException as error:
            raise AssertionError(f"interrupted at bytecode {at}, {place_of(place)}: {error!r}") from error
    assert at > least, f"only {at} bytecodes: nothing was tested"
    assert tails <= 3


OF_A_CLASS: dict[str, Any] = {"classes": {"bulk": ClassConfig(limit=SIZE)}, "default_class": "bulk"}

WORLDS: dict[str, dict[str, Any]] = {
    "idle": {"idle": 2},
    "connects": {},
    "connects in the caller": {"features": {"in_caller": True}},
    "checked first": {"idle": 2, "check_after_idle": 0},
    "looked at first": {"idle": 2, "check_after_idle": 0, "features": {"checks": False, "peeks": True}},
    "told to a listener": {"idle": 2, "told": 1},
    "told to listeners": {"idle": 2, "told": 2},
    "connects, told": {"told": 1},
    "tracing": {"idle": 1, "debug": True},
    # the class may have exactly the whole pool, so a slot that is not given back to it would be noticed
    "of a class": {"idle": 1, **OF_A_CLASS},
    "of a class, told": {"idle": 1, "told": 1, **OF_A_CLASS},
    "keyed, told": {"idle": 2, "told": 1, "keyed": True},
}


@pytest.mark.parametrize("world", WORLDS)
def test_acquire(world: str) -> None:
    def scene(stage: Stage) -> Callable[[], object]:
        return lambda: stage.pool.acquire(timeout=SOON)

    everywhere(lambda: Stage(**WORLDS[world]), scene, least=20)


@pytest.mark.parametrize("world", WORLDS)
def test_lease_and_its_exit(world: str) -> None:
    def scene(stage: Stage) -> Callable[[], object]:
        def act() -> None:
            with stage.pool.lease(timeout=SOON) as connection:
                connection.dirty = True

        return act

    everywhere(lambda: Stage(**WORLDS[world]), scene, least=100)


HANDED_OVER: dict[str, Any] = {"barging_window": 0, "check_after_idle": None}
"""Waiting callers get the connection itself; they are not woken to look for one."""

ENDS: dict[str, dict[str, Any]] = {
    "sound": {},
    "discarded": {"discard": True},
    "broken": {"error": ConnectionResetError("gone")},
    "the application's error": {"error": ValueError("not the connection's")},
}


@pytest.mark.parametrize("resets", [False, True], ids=["no reset", "reset"])
@pytest.mark.parametrize("waiting", [0, 2], ids=["nobody waits", "two wait"])
@pytest.mark.parametrize("end", ENDS)
def test_release(end: str, waiting: int, resets: bool) -> None:
    def scene(stage: Stage) -> Callable[[], object]:
        connection = stage.pool.acquire()
        third = stage.pool.acquire()
        connection.dirty = resets
        for _ in range(waiting):
            stage.queue()

        def act() -> None:
            stage.pool.release(connection, **ENDS[end])

        def both() -> None:
            try:
                act()
            finally:
                with spared():
                    if id(connection) in stage.pool._leased:  # had not begun: the caller still has it
                        stage.pool.release(connection)
                    stage.pool.release(third)

        return both

    everywhere(lambda: Stage(features={"resets": resets}, **HANDED_OVER), scene, least=20)


@pytest.mark.parametrize(
    "settings",
    [{}, {"told": 1}, {"told": 1, **OF_A_CLASS}, {"told": 1, "keyed": True}],
    ids=["", "told to a listener", "of a class, told", "keyed, told"],
)
@pytest.mark.parametrize("waiting", [0, 1], ids=["nobody waits", "one waits"])
@pytest.mark.parametrize("end", ENDS)
def test_lease_close(end: str, waiting: int, settings: dict[str, Any]) -> None:
    def scene(stage: Stage) -> Callable[[], object]:
        lease = stage.pool.lease()
        third = stage.pool.lease()
        for _ in range(waiting):
            stage.queue()
        third_close = third.close

        def act() -> None:
            try:
                lease.close(**ENDS[end])
            finally:
                with spared():
                    lease.close()  # as the ``finally`` of a caller would
                    third_close()

        return act

    everywhere(lambda: Stage(features={"resets": False}, **settings, **HANDED_OVER), scene, least=30)


def test_acquire_from_a_full_pool_while_another_returns() -> None:
    def scene(stage: Stage) -> Callable[[], object]:
        first, second = stage.pool.acquire(), stage.pool.acquire()
        stage.runtime.spawn(stage.pool.release, first)
        stage.runtime.spawn(stage.pool.release, second)
        return lambda: stage.pool.acquire(timeout=SOON)

    everywhere(Stage, scene, least=100)


def test_the_start_of_the_housekeeping_thread() -> None:
    """Wherever it is interrupted, the next caller is served."""
    at, place = 0, None
    while at == 0 or place is not None:
        at += 1
        keeper = _Housekeeper()
        called = threading.Event()
        task = _Due(called)
        place = interrupted_at(at, lambda: keeper.schedule(task, 0.0))  # noqa: B023
        keeper.schedule(task, 0.0)
        assert called.wait(5), f"interrupted at bytecode {at}, {place_of(place)}: housekeeping never came"
    assert at > 20


class _Due:
    def __init__(self, called: threading.Event) -> None:
        self.called = called

    def run_due(self) -> None:
        self.called.set()
