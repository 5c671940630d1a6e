"""After an interruption the core corrects its numbers, and takes back what no caller holds."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from poolkit import PoolConfig
from poolkit._core import commands, invariants, repair
from poolkit._core.effects import Do
from poolkit._core.machine import Core
from poolkit._core.queue import Request
from poolkit._core.slots import CLOSED, IN_USE, Slot, SlotRef
from poolkit._core.state import Features, Phase
from poolkit.stats import parts, take_sample
from tests.core.kit import SettlingCore, at, do


class Sleeper:
    def wake(self) -> None:
        pass


class InterruptedCore(SettlingCore):
    """What a test does not refer to is in nobody's hands."""

    def hold(self) -> None:
        pass


def core_of(max_size: int = 1, *, keyed: bool = False) -> Core:
    config = PoolConfig(max_size=max_size, barging_window=0.0)
    return InterruptedCore(config, Features(keyed=keyed), name="repair", barging=0.0, random=lambda: 0.5)


def ask(core: Core, now: float = 1.0, key: str | None = None) -> Request:
    request = Request(core.endpoint if key is None else at(core, key), now)
    request.parker = Sleeper()
    core.acquire(request, now)
    return request


def connect(core: Core) -> Slot:
    """Complete the connect that the last caller has caused."""
    slot: Any = next(effect.slot for effect in core.take_effects() if effect.do is Do.CONNECT)
    core.connected(slot, object(), 1, 1.0)
    return slot  # type: ignore[no-any-return]


def test_the_permit_of_a_connect_that_does_not_begin_goes_to_a_waiting_caller() -> None:
    core = core_of()
    request = ask(core)
    core.take_effects()  # and the thread that was to connect has ended
    assert do(repair.audit, core, 2.0) == 1
    effects = core.take_effects()
    assert [effect.do for effect in effects] == [Do.CONNECT]
    assert request.queued
    invariants.check(core)


def test_a_connection_without_a_holder_is_aborted_and_its_slot_is_free() -> None:
    core = core_of()
    served = ask(core)
    connect(core)
    assert isinstance(served.outcome, Slot)
    core.take_effects()
    del served  # interrupted between the core and the register of leases
    assert do(repair.audit, core, 2.0) == 1
    effects = core.take_effects()
    assert [effect.do for effect in effects] == [Do.ABORT]
    core.closed(effects[0].slot)  # type: ignore[arg-type]
    assert not core.all_slots
    invariants.check(core)


def test_a_connection_with_a_holder_is_not_taken_back() -> None:
    core = core_of(2)
    first, second = ask(core), ask(core)
    held = connect(core)
    assert held.state is IN_USE
    assert do(repair.audit, core, 2.0) == 1  # the second connect
    assert (first.queued, second.queued) == (False, True)
    invariants.check(core)


def test_a_connection_that_is_lost_again_costs_no_permit() -> None:
    """The thread that was to abort the connection was interrupted, too."""
    core = core_of()
    served = ask(core)
    slot = connect(core)
    connection = slot.connection
    core.take_effects()
    del served, slot
    assert do(repair.audit, core, 2.0) == 1
    core.take_effects()  # and the thread that was to abort it has ended
    assert len(core.all_slots) == 1
    assert do(repair.audit, core, 3.0) == 1
    (effect,) = core.take_effects()
    assert effect.do is Do.ABORT
    assert effect.slot is not None
    assert effect.slot.connection is connection
    assert sum(core.counts.closes.values()) == 1, "it is counted twice"
    core.closed(effect.slot)
    assert not core.all_slots
    assert core.counts.reclaimed == 2
    invariants.check(core)
    assert ask(core).queued
    assert [effect.do for effect in core.take_effects()] == [Do.CONNECT]


def test_a_connection_that_is_lost_in_a_cycle_keeps_its_permit_until_it_is_closed() -> None:
    core = core_of()
    served = ask(core)
    connect(core)
    core.take_effects()
    slot = served.outcome
    slot.place = [slot]  # any cycle, such as a driver's connection that knows who holds it
    del served, slot
    gc.collect()
    assert do(repair.audit, core, 2.0) == 1
    assert len(core.all_slots) == 1
    (effect,) = core.take_effects()
    assert effect.do is Do.ABORT
    assert core.slots.living() == [effect.slot]
    assert do(repair.audit, core, 3.0) == 0


def test_a_sweep_that_is_interrupted_is_made_good_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_of()
    served = ask(core)
    connect(core)
    core.take_effects()
    del served

    def interrupted(lost: SlotRef) -> Slot:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SlotRef, "new_slot", interrupted)
        repair.audit(core, 2.0)
    repair.repair(core, 2.0)
    core.settle(2.0)
    assert do(repair.audit, core, 3.0) == 1
    assert [effect.do for effect in core.take_effects()] == [Do.ABORT]


def test_the_end_of_a_slot_runs_no_python_code() -> None:
    """An exception could strike there, and the traceback that someone keeps would keep the slot."""
    assert not hasattr(Slot, "__del__")
    core = core_of()
    served = ask(core)
    connect(core)
    core.take_effects()
    called: list[str] = []
    sys.setprofile(lambda frame, event, arg: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        served.outcome = None
    finally:
        sys.setprofile(None)
    assert not called
    assert do(repair.audit, core, 2.0) == 1


def test_an_endpoint_in_use_is_not_forgotten_with_a_connect_that_does_not_begin() -> None:
    """The interruption was repaired before the connect was missed: the endpoint counted without it for a while."""
    core = core_of(3, keyed=True)
    asked = ask(core, key="a")
    leased = connect(core)
    core.leased[leased.key] = leased
    asked_more = ask(core, key="a")
    core.take_effects()  # and the thread that was to connect has ended
    core.abandon(asked_more, 2.0)
    do(repair.repair, core, 2.0)
    assert do(repair.audit, core, 3.0) == 1
    assert core.all_endpoints["a"] is leased.endpoint
    assert (leased.endpoint.size, leased.endpoint.connecting) == (1, 0)
    invariants.check(core)
    del asked


def test_a_pool_that_is_shut_closes_a_connection_that_was_lost() -> None:
    core = core_of()
    served = ask(core)
    slot = connect(core)
    core.take_effects()
    del served, slot
    do(commands.shut, core, Phase.CLOSED, 2.0)
    assert [effect.do for effect in core.take_effects() if effect.slot is not None] == [Do.ABORT]


def test_no_total_falls_below_what_was_reported() -> None:
    """The slot that is gone has counted its own uses. A lower total is a restart to a monitoring system."""
    core = core_of()
    served = ask(core)
    slot = connect(core)
    slot.uses, slot.busy = 41, 8.0
    core.take_effects()
    before = take_sample(core, parts(core), 1.0)
    assert before.acquires == 42
    del served, slot
    for number in range(2):  # the slot is gone, and then it is reclaimed
        after = take_sample(core, parts(core), 2.0)
        assert (after.acquires, after.busy) == (42, 8.0)
        assert do(repair.audit, core, 2.0) == 1 - number
        for effect in core.take_effects():
            if effect.do is Do.ABORT:
                core.closed(effect.slot)
    again = ask(core)
    connect(core)
    assert take_sample(core, parts(core), 3.0).acquires == 43
    del again


def test_garbage_is_collected_for_a_connection_that_stays_away() -> None:
    """It is in a cycle with a traceback, or the thread that made it sleeps (free-threaded builds)."""
    core = core_of()
    served = ask(core)
    away = connect(core)
    del served
    core.take_effects()
    waiting = ask(core)

    def looks(first: float, last: float, pause: float = 0.5) -> list[float]:
        """The times, from ``first`` to ``last``, of the sweeps that want a collection."""
        found, now = [], first
        while now <= last:
            repair.search(core, now)
            if any(effect.do is Do.COLLECT for effect in core.take_effects()):
                found.append(now)
            now += pause
        return found

    assert looks(10.0, 28.0) == [11.0, 12.0, 14.0, 18.0, 26.0], "after a second, then in pauses that double"
    away.uses += 1  # it was used meanwhile, so it is another thread that takes it now
    assert looks(50.0, 52.0) == [51.0]
    away.uses += 1
    assert looks(60.0, 66.0) == [], "each time it is away: the pauses have not become short again"
    assert looks(300.0, 302.5) == [300.0, 301.0], "nothing was collected for a minute"
    assert len(looks(400.0, 4000.0)) == 65, "once a minute at last"
    core.leased[away.key] = away
    assert looks(5000.0, 5010.0) == []
    del core.leased[away.key]
    core.abandon(waiting, 2.0)
    assert looks(6000.0, 6010.0) == [], "nobody waits for it"


def test_connections_on_their_way_are_no_garbage() -> None:
    core = core_of(3)
    requests = [ask(core) for _ in range(3)]
    effects = core.take_effects()
    assert [effect.do for effect in effects] == [Do.CONNECT] * 3  # and they take long
    requests.append(ask(core))
    for now in range(9):
        repair.search(core, float(now))
    assert not core.take_effects()


def test_a_lease_is_held_by_the_register_of_leases() -> None:
    core = core_of()
    served = ask(core)
    slot = connect(core)
    core.leased[slot.key] = slot
    core.take_effects()
    del served, slot
    assert do(repair.audit, core, 2.0) == 0
    [slot] = core.slots.living()
    assert slot.state is IN_USE


def test_a_connection_on_its_way_out_holds_no_permit() -> None:
    core = core_of()
    ask(core)
    slot = connect(core)
    slot.state = CLOSED  # interrupted in forget(), before it left the register
    do(repair.repair, core, 2.0)
    assert not core.all_slots
    invariants.check(core)


def test_a_caller_that_was_just_served_is_woken() -> None:
    core = core_of()
    request = ask(core)
    request.outcome = TimeoutError("cut off in serve(), after its first line")
    core.take_effects()
    do(repair.repair, core, 2.0)
    assert [(effect.do, effect.request) for effect in core.take_effects()] == [(Do.WAKE, request)]
    assert not core.endpoint.requests
    assert not request.queued


def test_the_numbers_are_made_true_again() -> None:
    core = core_of(3)
    ask(core)
    connect(core)
    moved = core.moved
    core.endpoint.size = core.endpoint.live = core.endpoint.connecting = core.slots.closing = 7
    do(repair.repair, core, 2.0)
    invariants.check(core)
    assert (core.endpoint.size, core.endpoint.live, core.endpoint.connecting, core.closing) == (1, 1, 0, 0)
    assert moved, "who is just putting a connection back must look again"
    assert core.due <= 2.0, "everything is looked over soon"
