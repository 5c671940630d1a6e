"""After an interruption: the numbers are made true again, and what nobody holds is taken back."""

from __future__ import annotations

import gc
from typing import Any

from poolkit import PoolConfig
from poolkit._core import invariants, repair
from poolkit._core.effects import Do
from poolkit._core.machine import Core
from poolkit._core.queue import Request
from poolkit._core.slots import CLOSED, IN_USE, Slot
from poolkit._core.state import Features
from tests.core.kit import SettlingCore, do


class Sleeper:
    def wake(self) -> None:
        pass


def core_of(max_size: int = 1) -> Core:
    config = PoolConfig(max_size=max_size, barging_window=0.0)
    return SettlingCore(config, Features(), name="repair", barging=0.0, random=lambda: 0.5)


def ask(core: Core, now: float = 1.0) -> Request:
    request = Request(core.endpoint, now)
    request.parker = Sleeper()
    core.acquire(request, now)
    return request


def connect(core: Core) -> Slot:
    """The connection that the last caller has caused stands."""
    slot: Any = next(effect.slot for effect in core.take_effects() if effect.do is Do.CONNECT)
    core.connected(slot, object(), 1, 1.0)
    return slot  # type: ignore[no-any-return]


def test_the_permit_of_a_connect_that_nobody_makes_goes_to_who_waits() -> None:
    core = core_of()
    request = ask(core)
    core.take_effects()  # and the thread that should have connected is gone
    assert do(repair.audit, core, 2.0) == 1
    assert [effect.do for effect in core.take_effects()] == [Do.CONNECT]
    assert request.queued
    invariants.check(core)


def test_a_connection_in_nobodys_hands_is_aborted_and_its_place_free() -> None:
    core = core_of()
    served = ask(core)
    connect(core)
    assert isinstance(served.outcome, Slot)
    core.take_effects()
    del served  # interrupted between the core and the register of leases
    assert do(repair.audit, core, 2.0) == 1
    effects = core.take_effects()
    assert [effect.do for effect in effects] == [Do.ABORT]
    core.closed(effects[0].slot, 2.0)  # type: ignore[arg-type]
    assert not core.all_slots
    invariants.check(core)


def test_nothing_is_taken_back_that_somebody_holds() -> None:
    core = core_of(2)
    first, second = ask(core), ask(core)
    held = connect(core)
    assert held.state is IN_USE
    assert do(repair.audit, core, 2.0) == 1  # the second connect
    assert (first.queued, second.queued) == (False, True)
    invariants.check(core)


def test_a_connection_that_is_lost_again_costs_no_permit() -> None:
    """A finalizer runs once, and the thread that was to abort the connection was interrupted, too."""
    core = core_of()
    served = ask(core)
    connect(core)
    core.take_effects()
    del served
    assert do(repair.audit, core, 2.0) == 1
    core.take_effects()  # and the thread that should have aborted it is gone
    assert len(core.all_slots) == 1
    assert do(repair.audit, core, 3.0) == 0  # its finalizer could be about to report it
    assert core.sweep_at <= 3.0 + core.recheck_interval, "nobody looks again"
    assert do(repair.audit, core, 4.0) == 1
    assert not core.all_slots
    assert core.counts.reclaimed == 2
    invariants.check(core)
    assert ask(core).queued
    assert [effect.do for effect in core.take_effects()] == [Do.CONNECT]


def test_a_connection_that_is_lost_in_a_cycle_keeps_its_permit_until_it_is_closed() -> None:
    """The collector clears the register's reference to a slot before it calls the finalizer."""
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
    slot.state = CLOSED  # cut off in forget(), before it left the register
    do(repair.repair, core, 2.0)
    assert not core.all_slots
    invariants.check(core)


def test_a_waiter_who_was_just_served_is_woken() -> None:
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
