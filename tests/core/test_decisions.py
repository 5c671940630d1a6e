"""Single decisions of the core that random schedules rarely reach."""

from __future__ import annotations

import re
from typing import Any

import pytest

from poolkit import BackoffConfig, ConnectFailed, PoolConfig, Verdict
from poolkit._core import commands, invariants
from poolkit._core.effects import Do
from poolkit._core.machine import Core
from poolkit._core.queue import Request
from poolkit._core.service import Service
from poolkit._core.slots import CHECKING, CLOSING, IDLE, IN_USE, Slot
from poolkit._core.state import Features
from poolkit.policies.retire import NEVER
from tests.core.kit import SettlingCore, do

NOW = 1000.0


class Sleeper:
    def wake(self) -> None:
        pass


def make(kind: type[Core] = SettlingCore, *, features: Features | None = None, **settings: Any) -> Core:
    return kind(
        PoolConfig(**{"barging_window": 0.0, **settings}), features or Features(), name="core", barging=0.0,
        random=lambda: 1.0,
    )  # fmt: skip


def ask(core: Core, now: float = NOW) -> Request:
    request = Request(core.endpoint, now)
    request.parker = Sleeper()
    core.acquire(request, now)
    return request


def connects(core: Core) -> list[Slot]:
    """Return the connects that the core asks for now."""
    return [effect.slot for effect in core.take_effects() if effect.do is Do.CONNECT and effect.slot is not None]


def leased(core: Core, now: float = NOW, capacity: int = 1) -> Slot:
    """Return a new connection in use."""
    request = ask(core, now)
    [slot] = connects(core)
    core.connected(slot, object(), capacity, now)
    core.take_effects()
    assert request.outcome is slot
    return slot


def idle(core: Core, now: float = NOW) -> Slot:
    slot = leased(core, now)
    core.give_back(slot, now)
    assert slot.state is IDLE
    return slot


def test_a_caller_that_got_a_dead_connection_is_before_those_that_came_later() -> None:
    core = make(max_size=1, check_after_idle=0.5, features=Features(checks=True))
    slot = idle(core)
    first = ask(core, NOW + 1)
    assert first.outcome is slot
    assert slot.state is CHECKING
    second = ask(core, NOW + 1)
    core.checked(slot, first, OSError("dead"), NOW + 1)
    assert core.endpoint.oldest() is first
    core.closed(slot)
    [new] = connects(core)
    core.connected(new, object(), 1, NOW + 1)
    assert first.outcome is new
    assert second.outcome is None


@pytest.mark.parametrize("most", [None, 5], ids=["a few newcomers", "no limit"])
def test_a_caller_sees_what_was_put_back_while_it_queued(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it found none idle and before it queued, another thread returns one without the lock."""

    core = make(max_size=1, max_waiting=most)
    slot = leased(core)
    enqueue = Service.enqueue

    def racing(service: Service, request: Request, now: float) -> None:
        slot.leases, slot.state = 0, IDLE
        core.endpoint.idle.append(slot)
        enqueue(service, request, now)

    monkeypatch.setattr(Service, "enqueue", racing)
    request = ask(core)
    assert request.outcome is slot


def test_an_idle_connection_at_the_end_of_its_life_is_closed_by_whoever_comes() -> None:
    core = make(max_lifetime=60.0, lifetime_jitter=0.0, idle_timeout=None)
    slot = idle(core)
    request = ask(core, NOW + 61)
    assert request.outcome is not slot
    assert [effect.slot for effect in core.take_effects() if effect.do is Do.CLOSE] == [slot]


def test_a_broken_multiplexed_connection_gets_no_new_lease() -> None:
    core = make(max_size=2)
    slot = leased(core, capacity=3)
    assert ask(core).outcome is slot
    core.discard(slot, NOW)
    assert slot.state is IN_USE  # until the other lease ends
    assert ask(core).outcome is not slot
    core.give_back(slot, NOW)
    assert [effect.slot for effect in core.take_effects() if effect.do is Do.CLOSE] == [slot]


def test_a_full_multiplexed_connection_gets_no_new_lease() -> None:
    core = make(max_size=1)
    slot = leased(core, capacity=2)
    assert ask(core).outcome is slot
    core.endpoint.spare[slot] = None  # until the core has examined it
    assert ask(core).outcome is None
    assert slot.leases == 2


def test_a_connection_made_by_its_caller_is_not_its_if_the_pool_was_cleared_meanwhile() -> None:
    core = make(connect_in_caller=True)
    request = ask(core)
    slot = request.outcome
    assert isinstance(slot, Slot)
    do(commands.clear, core, NOW)
    assert core.connected(slot, object(), 1, NOW, keep=True) is False
    assert Do.CLOSE in [effect.do for effect in core.take_effects()]


def test_newcomers_get_a_fatal_error_at_once_during_the_backoff() -> None:
    core = make(backoff=BackoffConfig(base=5.0, cap=5.0))
    first = ask(core)
    [slot] = connects(core)
    core.connect_failed(slot, OSError("no such user"), Verdict.FATAL, NOW)
    assert isinstance(first.outcome, ConnectFailed)
    late = ask(core, NOW + 1).outcome
    assert isinstance(late, ConnectFailed)
    assert re.search(r"cannot connect \(tried 1\.0 s ago, next try in [\d.]+ s\): OSError: no such user", str(late))
    assert "ago" not in str(first.outcome)


def test_connects_that_fail_together_are_one_round_of_the_backoff() -> None:
    core = make(max_connecting=5)
    for _ in range(5):
        ask(core)
    together = connects(core)
    assert len(together) == 5
    for number, slot in enumerate(together):
        core.connect_failed(slot, OSError("refused"), Verdict.SUSPECT, NOW + 0.001 * (1 + number))
    assert core.endpoint.dialer.rounds == 1


@pytest.mark.parametrize("checks", [True, False])
def test_what_comes_back_after_clear_is_closed(checks: bool) -> None:
    core = make(features=Features(checks=checks))
    slot = leased(core)
    do(commands.clear, core, NOW)
    core.take_effects()
    core.give_back(slot, NOW)
    assert [effect.slot for effect in core.take_effects() if effect.do is Do.CLOSE] == [slot]


def test_half_of_the_idle_connections_stay_at_hand_while_the_others_are_looked_at() -> None:
    from poolkit._core import maintenance

    core = make(max_size=4, keepalive=1.0, idle_timeout=None, features=Features(checks=True))
    slots = [leased(core) for _ in range(4)]
    for slot in slots:
        core.give_back(slot, NOW)
    core.want_sweep(NOW + 5)
    do(maintenance.tick, core, NOW + 5)
    assert sum(slot.state is CHECKING for slot in slots) == 2


def test_a_connection_handed_over_is_not_touched_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request may use and return it without the lock before the thread that serves it continues."""

    serve = Service.serve

    def quick(service: Service, request: Request, outcome: Any) -> None:
        serve(service, request, outcome)
        if isinstance(outcome, Slot):
            outcome.leases, outcome.state = 0, IDLE
            core.endpoint.idle.append(outcome)

    monkeypatch.setattr(Service, "serve", quick)
    core = make(max_size=1)
    core.acquire(first := Request(core.endpoint, NOW), NOW)
    [slot] = connects(core)
    core.connected(slot, object(), 1, NOW)
    assert first.outcome is slot
    assert list(core.endpoint.idle) == [slot]


def test_the_permit_of_a_caller_that_left_before_it_connected_goes_to_the_next() -> None:
    core = make(max_size=1, connect_in_caller=True)
    first, second = ask(core), ask(core)
    assert isinstance(first.outcome, Slot)
    assert second.outcome is None
    core.abandon(first, NOW)
    assert isinstance(second.outcome, Slot)


def test_the_place_of_a_detached_connection_goes_to_the_oldest_waiter() -> None:
    core = make(max_size=1)
    slot = leased(core)
    request = ask(core)
    core.detach(slot)
    [new] = connects(core)
    core.connected(new, object(), 1, NOW)
    assert request.outcome is new


def test_retire_is_the_end_of_all_connections_of_the_generation() -> None:
    core = make()
    first, second = leased(core), leased(core)
    core.give_back(second, NOW)
    core.discard(first, NOW, Verdict.RETIRE)
    ended = {effect.slot for effect in core.take_effects() if effect.do in (Do.CLOSE, Do.ABORT)}
    assert ended == {first, second}


def test_what_a_connection_was_used_for_is_counted_beyond_its_end() -> None:
    core = make()
    slot = leased(core)
    slot.uses, slot.busy = 2, 1.0
    core.discard(slot, NOW + 0.5)
    core.closed(slot)
    assert (core.counts.uses, core.counts.busy) == (3, 1.5)


def test_a_resting_pool_keeps_no_connect_that_was_on_its_way() -> None:
    """The driver's ``close()`` leaves the pool usable, so nothing would close a connection that opens later."""
    core = make(min_size=2)
    request = ask(core)
    core.settle(NOW)
    first, coming = connects(core)
    core.connected(first, object(), 1, NOW)
    core.settle(NOW)
    assert request.outcome is first
    commands.discard_idle(core, None, NEVER, True, NOW)
    core.settle(NOW)
    assert connects(core) == []
    core.connected(coming, object(), 1, NOW)
    core.settle(NOW)
    assert coming.state is CLOSING
    core.closed(coming)
    core.settle(NOW)
    invariants.check(core)
    core.discard(first, NOW)
    core.settle(NOW)
    assert connects(core) == []
    ask(core)
    core.settle(NOW)
    assert connects(core), "used again, it opens what it needs"


def test_a_resting_pool_keeps_no_connect_whose_caller_is_gone() -> None:
    core = make(max_size=3)
    gone, waiting = ask(core), ask(core)
    first, second = connects(core)
    core.abandon(gone, NOW)
    do(commands.discard_idle, core, None, NEVER, True, NOW)
    core.connected(first, object(), 1, NOW)
    core.settle(NOW)
    assert waiting.outcome is first
    core.connected(second, object(), 1, NOW)
    core.settle(NOW)
    assert second.state is CLOSING


def test_a_caller_that_counted_on_a_connect_of_a_resting_pool_gets_another_one() -> None:
    """This holds in a keyed pool too, which examines only endpoints that have changed."""
    core = make(features=Features(keyed=True), max_size=4)
    [coming] = do(commands.reserve, core, 1, NOW)
    request = ask(core)
    assert connects(core) == [], "the connect that is on its way will do"
    do(commands.discard_idle, core, None, NEVER, True, NOW)
    [other] = connects(core)
    core.connected(coming, object(), 1, NOW)
    assert coming.state is CLOSING
    core.connected(other, object(), 1, NOW)
    assert request.outcome is other
