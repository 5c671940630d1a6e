"""The gate, the order of its queue, the listeners and the access without the lock, each alone."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import pytest

from poolkit import Event, EventKind, Pool
from poolkit._gate import Gate, InOrder, NoWork
from poolkit._listeners import Listeners
from poolkit.cluster._gate import ClusterGate
from poolkit.testing import FakeConnector


class Rig:
    """A gate around a core without decisions, which records the calls."""

    def __init__(self, kind: type[Gate] = Gate, answers: tuple[bool | None, ...] = (True,)) -> None:
        self.core = NoWork()
        self.said: list[object] = []
        self.answers = iter(answers)
        self.gate = kind(
            self.core, name="gate", clock=lambda: 5.0, lock=threading.RLock(),
            settle=lambda now: self.said.append("settle"), renew=lambda: self.said.append("renew"),
            repair=lambda: self.said.append("repair"), perform=self.perform, call_later=self.call_later,
            run_due=lambda: self.said.append("run_due"), note_alone=lambda: self.said.append("alone"),
        )  # fmt: skip

    def perform(self, effects: deque[Any]) -> None:
        while effects:
            effect = effects.popleft()
            assert not self.gate.held, "an effect is carried out under the lock"
            if isinstance(effect, Exception):
                raise effect
            self.said.append(effect)

    def call_later(self, delay: float) -> bool | None:
        self.said.append(delay)
        return next(self.answers)

    def ask(self, *effects: object) -> str:
        assert self.gate.held
        self.core.effects.extend(effects)
        return "done"


def test_effects_of_a_step_are_carried_out_when_the_lock_is_free_again() -> None:
    rig = Rig()
    assert rig.gate.step(rig.ask, "first", "second") == "done"
    assert rig.said == ["settle", "first", "second"]


def test_a_step_posted_in_a_critical_section_runs_after_it() -> None:
    rig = Rig()

    def outer() -> None:
        rig.gate.post(rig.ask, "posted")
        rig.said.append("outer")

    rig.gate.step(outer)
    assert rig.said == ["outer", "settle", "settle", "posted"]


def test_an_interrupted_step_is_repaired_under_the_lock_and_its_effects_are_not_lost() -> None:
    rig = Rig()

    def interrupted() -> None:
        rig.core.effects.append("left over")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.gate.step(interrupted)
    assert rig.said == ["repair", "left over"]
    assert not rig.gate.held


def test_an_effect_that_raises_keeps_none_of_the_others_from_being_carried_out() -> None:
    rig = Rig()
    with pytest.raises(ValueError, match="broken"):
        rig.gate.step(rig.ask, ValueError("broken"), "next")
    assert rig.said == ["settle", "next"]


def test_what_depends_on_a_stale_core_is_renewed_before_the_lock_is_free() -> None:
    rig = Rig()

    def change() -> None:
        rig.core.stale = True

    rig.gate.step(change)
    assert rig.said == ["settle", "renew"]


def test_the_timer_is_set_once_for_one_time() -> None:
    rig = Rig(answers=(True,))

    def due() -> None:
        rig.core.due = 7.0

    rig.gate.step(due)
    rig.gate.step(due)
    assert rig.said == ["settle", 2.0, "settle"]


def test_where_no_thread_can_be_started_each_step_does_what_is_due() -> None:
    rig = Rig(answers=(False, False, False, True))
    rig.core.due = 5.0
    rig.gate.keep_time()
    assert rig.gate.alone
    assert rig.said.count("run_due") >= 1
    assert rig.said.count("alone") == 1
    rig.gate.keep_time()
    rig.gate.keep_time()
    assert not rig.gate.alone


def test_the_gate_of_a_cluster_repeats_an_interrupted_step_once() -> None:
    rig = Rig(ClusterGate)
    calls: list[int] = []

    def fails() -> None:
        calls.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rig.gate.post(fails)
    rig.gate.post(rig.ask, "goes on")
    assert len(calls) == 2
    assert "goes on" in rig.said


def test_items_that_arrive_meanwhile_are_handled_in_order_by_the_same_thread() -> None:
    handled: list[int] = []

    def handle(item: int) -> None:
        if item == 1:
            queue.items.append(3)
            queue.flush()  # another thread is inside: returns at once
        handled.append(item)

    queue: InOrder[int] = InOrder(handle, deque([1, 2]))
    queue.flush()
    assert handled == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "begun", "handled"),
    [(KeyboardInterrupt, False, [1, 1, 2]), (KeyboardInterrupt, True, [1, 2]), (ValueError, False, [1, 2])],
    ids=["interrupted", "interrupted once it had begun", "failed"],
)
def test_a_handler_that_raises_leaves_the_queue_to_the_next_thread(
    error: type[BaseException], begun: bool, handled: list[int]
) -> None:
    found: list[int] = []

    def handle(item: int) -> None:
        found.append(item)
        if len(found) == 1:
            queue.begun = item if begun else None
            raise error

    queue: InOrder[int] = InOrder(handle, deque([1, 2]))
    with pytest.raises(error):
        queue.flush()
    queue.flush()
    assert found == handled
    assert not queue.items


def test_a_listener_is_called_for_its_kinds_and_removed_when_it_raises() -> None:
    heard: list[EventKind] = []
    removed: list[object] = []
    listeners: Listeners[Event] = Listeners("name", removed.append)

    def raises(event: Event) -> None:
        raise ValueError

    listeners.add(lambda event: heard.append(event.kind), frozenset({EventKind.POOL_READY}))
    listeners.add(raises, frozenset({EventKind.POOL_CLOSED}))
    assert listeners.kinds == {EventKind.POOL_READY, EventKind.POOL_CLOSED}
    for kind in (EventKind.POOL_READY, EventKind.POOL_CLOSED, EventKind.POOL_CLEARED):
        listeners.pending.append(Event(kind, "name", 0.0))
    listeners.flush()
    assert (heard, removed) == ([EventKind.POOL_READY], [raises])


def test_a_change_that_does_not_renew_the_access_without_the_lock_is_found() -> None:
    with Pool(FakeConnector()) as pool:
        pool.check_books()

        def forget() -> None:
            pool._core.suspended = True

        pool._gate.step(forget)
        with pytest.raises(AssertionError, match="fast path is not the one"):
            pool.check_books()
        pool.resume()
        pool.check_books()
