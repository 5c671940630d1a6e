"""After each step settle() does what the state requires, and no other code does."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import PoolConfig
from poolkit._core import commands, invariants, maintenance, repair
from poolkit._core.effects import Do
from poolkit._core.endpoints import WaitingEndpoints
from poolkit._core.machine import Core
from poolkit._core.opener import Opener
from poolkit._core.queue import Request
from poolkit._core.slots import IDLE, IN_USE, Slot
from poolkit._core.state import Features
from tests.core.kit import SettlingCore, at, do
from tests.simulation import CoreSimulation
from tests.support.instructions import instructions

NOW = 1000.0


class Sleeper:
    def wake(self) -> None:
        pass


def make(
    kind: type[Core] = SettlingCore, *, features: Features | None = None, barging: float = 0.0, **settings: Any
) -> Core:
    config = PoolConfig(barging_window=barging, **settings)
    return kind(config, features or Features(), name="core", barging=0.0, random=lambda: 1.0)


def ask(core: Core, now: float = NOW, key: Any = None) -> Request:
    request = Request(core.add_endpoint(key), now)
    request.parker = Sleeper()
    core.acquire(request, now)
    return request


def connects(core: Core) -> list[Slot]:
    """Return the connects that the core asks for now."""
    return [effect.slot for effect in core.take_effects() if effect.do is Do.CONNECT and effect.slot is not None]


def leased(core: Core, capacity: int = 1) -> Slot:
    """Return a new connection in use."""
    request = ask(core)
    [slot] = connects(core)
    core.connected(slot, object(), capacity, NOW)
    if request.queued:  # within the barging window it is woken up and takes the connection itself
        core.look(request, NOW)
    core.take_effects()
    assert request.outcome is slot
    return slot


# -- from hand to hand ------------------------------------------------------------------------------------------------


def test_a_connection_that_others_still_share_is_not_handed_over() -> None:
    core = make(max_size=1)
    slot = leased(core, capacity=3)
    assert ask(core).outcome is slot
    core.set_capacity(slot, 1, NOW)  # the server allows one stream less than there are
    request = ask(core)
    core.give_back(slot, NOW)
    assert request.outcome is None
    assert slot.leases == 1


def test_a_connection_at_the_end_of_its_life_is_not_handed_over() -> None:
    core = make(max_size=1, max_lifetime=60.0, lifetime_jitter=0.0)
    slot = leased(core)
    request = ask(core)
    core.give_back(slot, NOW + 61)
    assert request.outcome is None
    assert [effect.slot for effect in core.take_effects() if effect.do is Do.CLOSE] == [slot]


def test_the_surplus_is_closed_although_a_caller_waits() -> None:
    core = make(max_size=2)
    first, second = leased(core), leased(core)
    request = ask(core)
    do(commands.reconfigure, core, PoolConfig(max_size=1), 0.0, "max_size=1", NOW)
    core.give_back(first, NOW)
    assert request.outcome is None
    core.give_back(second, NOW)
    assert request.outcome is second


def test_within_the_barging_window_a_returned_connection_is_for_whoever_comes_first() -> None:
    core = make(max_size=1, barging=0.001)
    slot = leased(core)
    request = ask(core)
    core.give_back(slot, NOW + 0.0005)
    assert request.outcome is None
    assert slot.state is IDLE
    assert [effect.request for effect in core.take_effects() if effect.do is Do.WAKE] == [request]
    assert ask(core, NOW + 0.0006).outcome is slot
    core.give_back(slot, NOW + 0.002)
    assert request.outcome is slot


def test_after_an_interrupted_suspend_nothing_is_handed_over() -> None:
    core = make(max_size=1)
    slot = leased(core)
    request = ask(core)
    core.suspended = True  # the thread is interrupted here
    do(repair.repair, core, NOW)
    core.give_back(slot, NOW)
    assert request.outcome is None
    do(commands.resume, core, NOW)
    assert request.outcome is slot


def test_a_connection_whose_return_was_interrupted_before_the_look_is_handed_over_by_the_next_one() -> None:
    core = make(Core, max_size=1)
    request = ask(core)
    core.settle(NOW)
    [slot] = connects(core)
    core.connected(slot, object(), 1, NOW)  # the thread is interrupted here
    repair.repair(core, NOW)
    core.settle(NOW)
    assert request.outcome is slot
    assert slot.state is IN_USE
    invariants.check(core)


def test_two_leases_of_one_connection_may_end_before_the_next_step() -> None:
    core = make(Core, max_size=2)
    first = ask(core)
    core.settle(NOW)
    [slot] = connects(core)
    core.connected(slot, object(), 2, NOW)
    core.settle(NOW)
    second = ask(core)
    core.settle(NOW)
    assert first.outcome is second.outcome is slot
    core.give_back(slot, NOW)
    core.discard(slot, NOW)
    core.settle(NOW)
    assert [effect.slot for effect in core.take_effects() if effect.do is Do.ABORT] == [slot]
    invariants.check(core)


# -- min_size ---------------------------------------------------------------------------------------------------------


def filled(**settings: Any) -> Core:
    """Return a pool in use that has its ``min_size``."""
    core = make(**settings)
    request = ask(core)
    for slot in connects(core):
        core.connected(slot, object(), 1, NOW)
    slot = request.outcome  # type: ignore[assignment]
    core.give_back(slot, NOW)
    core.take_effects()
    assert len(core.endpoint.idle) == core.size.minimum
    return core


def discard_one(core: Core) -> Slot:
    slot = ask(core).outcome
    assert isinstance(slot, Slot)
    core.discard(slot, NOW)
    return slot


def test_min_size_is_kept_while_a_discarded_connection_is_being_closed() -> None:
    core = filled(min_size=2, max_size=4)
    discard_one(core)
    assert len(connects(core)) == 1
    invariants.check(core)


def test_a_connection_that_is_being_closed_keeps_its_permit_before_min_size() -> None:
    core = filled(min_size=2, max_size=2)
    slot = discard_one(core)
    assert not connects(core)
    core.closed(slot)
    assert len(connects(core)) == 1
    invariants.check(core)


@pytest.mark.parametrize("lose", ["clear", "discard_idle", "dropped"])
def test_min_size_is_kept_however_a_connection_was_lost(lose: str) -> None:
    core = filled(min_size=2, max_size=9)
    if lose == "clear":
        do(commands.clear, core, NOW)
    elif lose == "discard_idle":
        do(commands.discard_idle, core, None, NOW, False, NOW)
    else:
        slot = ask(core).outcome
        assert isinstance(slot, Slot)
        core.dropped(slot, NOW)
    opened = len(connects(core))
    assert core.endpoint.live + opened == 2
    invariants.check(core)


def test_nothing_is_opened_while_the_pool_is_suspended() -> None:
    core = filled(min_size=2, max_size=4, max_lifetime=100.0, lifetime_jitter=0.0, idle_timeout=None)
    do(commands.suspend, core, False, NOW)
    discard_one_idle = core.endpoint.idle[0]
    do(commands.discard_idle, core, lambda connection: connection is discard_one_idle.connection, NOW, False, NOW)
    do(maintenance.tick, core, NOW + 99)  # a successor for the other one would be due
    assert not connects(core)
    invariants.check(core)
    do(commands.resume, core, NOW + 99)
    assert len(connects(core)) == 1


def test_the_books_notice_that_min_size_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    core = filled(min_size=2, max_size=4)
    monkeypatch.setattr(Opener, "keep_minimum", lambda self, endpoint, now: None)
    discard_one(core)
    with pytest.raises(AssertionError, match="min_size is not kept"):
        invariants.check(core)


def test_the_simulation_notices_that_min_size_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opener, "keep_minimum", lambda self, endpoint, now: None)
    with pytest.raises(AssertionError, match="min_size is not kept"):
        for seed in range(20):
            CoreSimulation(seed).run(100)


# -- the cost of a look -----------------------------------------------------------------------------------------------


def crowd(endpoints: int) -> tuple[Core, list[Request]]:
    """Return a core with one connection, in use at one endpoint, and a waiting caller at each of the others."""
    core = make(Core, max_size=1, features=Features(keyed=True))
    requests = []
    for key in range(endpoints):
        requests.append(ask(core, key=key))
        core.settle(NOW)
    [slot] = connects(core)
    core.connected(slot, object(), 1, NOW)
    core.settle(NOW)
    core.take_effects()
    return core, requests


def test_many_waiting_endpoints_cost_what_few_do() -> None:
    """Counts the bytecodes in which the connection of one endpoint is returned and given up for the next."""
    counts = []
    for endpoints in (100, 10_000):
        core, _requests = crowd(endpoints)

        def turn(core: Core = core) -> None:
            [slot] = core.slots.living()
            core.give_back(slot, NOW)
            core.settle(NOW)
            core.closed(slot)
            core.settle(NOW)
            [slot] = connects(core)
            core.connected(slot, object(), 1, NOW)
            core.settle(NOW)
            core.take_effects()

        counts.append(instructions(turn, warm=2, rounds=5))
    few, many = counts
    assert many < 1.05 * few, f"{many} bytecodes beside 10,000 endpoints, {few} beside 100"


def test_a_second_look_does_nothing() -> None:
    core, _requests = crowd(10)
    core.touch_all()
    core.settle(NOW)
    assert not core.effects


def test_waiting_endpoints_come_by_their_oldest_waiters() -> None:
    core = make(Core, max_size=1, features=Features(keyed=True))
    requests = [ask(core, key=key) for key in "abca"]
    order = WaitingEndpoints()
    for key in "cab":
        order.add(at(core, key))
    assert len(order) == 3
    first = order.first()
    assert first is at(core, "a")
    first.queue.discard(requests[0])
    order.add(first)
    assert order.first() is at(core, "b")
    order.discard(at(core, "b"))
    assert order.first() is at(core, "c")
    order.discard(at(core, "c"))
    assert order.first() is at(core, "a")
    order.discard(at(core, "a"))
    assert order.first() is None


def test_endpoints_that_come_and_go_behind_another_one_leave_nothing_behind() -> None:
    core = make(Core, max_size=1, features=Features(keyed=True))
    ask(core, key="first")
    ask(core, key="other")
    order = WaitingEndpoints()
    order.add(at(core, "first"))
    for _ in range(1000):
        order.add(at(core, "other"))
        order.discard(at(core, "other"))
    assert len(order._heap) < 30
    assert order.first() is at(core, "first")


def test_two_endpoints_whose_waiters_have_one_ticket_are_not_compared() -> None:
    cores = [make(Core, max_size=1, features=Features(keyed=True)) for _ in range(2)]
    assert len({ask(core, key="a").ticket for core in cores}) == 1
    [old, new] = [at(core, "a") for core in cores]
    order = WaitingEndpoints()
    order.add(old)
    order.discard(old)
    order.add(new)
    assert order.first() is new


# -- endpoints that are looked at again -------------------------------------------------------------------------------


def test_the_other_streams_of_a_connection_that_was_just_checked_are_for_waiting_callers() -> None:
    core = make(max_size=1, check_after_idle=1.0, features=Features(keyed=True, checks=True))
    first = ask(core, key="a")
    [slot] = connects(core)
    core.connected(slot, object(), 2, NOW)
    assert first.outcome is slot
    core.give_back(slot, NOW)
    second, third = ask(core, NOW + 2, "a"), ask(core, NOW + 2, "a")
    assert second.outcome is slot
    assert third.outcome is None
    core.checked(slot, second, None, NOW + 2)
    assert third.outcome is slot
    invariants.check(core)


def test_an_endpoint_whose_permit_went_to_an_older_one_has_another_idle_connection_closed() -> None:
    core = make(max_size=2, features=Features(keyed=True))
    held = {key: ask(core, key=key).outcome for key in "ax"} and {}
    for slot in connects(core):
        core.connected(slot, object(), 1, NOW)
        held[slot.endpoint.key] = slot
    core.give_back(held["a"], NOW)
    older = ask(core, key="b")  # for which the idle connection of a is closed
    younger = ask(core, key="d")
    core.give_back(held["x"], NOW)  # closed for d
    core.closed(held["x"])
    [slot] = connects(core)
    assert slot.endpoint.key == "b"
    core.connected(slot, object(), 1, NOW)
    assert older.outcome is slot
    core.take_effects()
    core.give_back(slot, NOW)
    assert [effect.slot for effect in core.take_effects() if effect.do is Do.CLOSE] == [slot]
    assert younger.queued
    invariants.check(core)
