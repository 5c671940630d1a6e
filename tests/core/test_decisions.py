"""Single decisions of the core, each of which a random schedule meets only now and then."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import BackoffConfig, ConnectFailed, PoolConfig, Verdict
from poolkit._core import commands
from poolkit._core.effects import Do
from poolkit._core.entry import CHECKING, IDLE, IN_USE, Entry
from poolkit._core.machine import Core
from poolkit._core.service import Service
from poolkit._core.state import Features
from poolkit._core.waiter import Waiter
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


def ask(core: Core, now: float = NOW) -> Waiter:
    waiter = Waiter(core.lane, now)
    waiter.parker = Sleeper()
    core.acquire(waiter, now)
    return waiter


def connects(core: Core) -> list[Entry]:
    """The connects that the core wants now."""
    return [effect.entry for effect in core.take_effects() if effect.do is Do.CONNECT and effect.entry is not None]


def leased(core: Core, now: float = NOW, capacity: int = 1) -> Entry:
    """A fresh connection in use."""
    waiter = ask(core, now)
    [entry] = connects(core)
    core.connected(entry, object(), capacity, now)
    core.take_effects()
    assert waiter.outcome is entry
    return entry


def idle(core: Core, now: float = NOW) -> Entry:
    entry = leased(core, now)
    core.give_back(entry, now)
    assert entry.state is IDLE
    return entry


def test_who_was_given_a_dead_connection_stands_before_those_who_came_later() -> None:
    core = make(max_size=1, check_after_idle=0.5, features=Features(checks=True))
    entry = idle(core)
    first = ask(core, NOW + 1)
    assert first.outcome is entry
    assert entry.state is CHECKING
    second = ask(core, NOW + 1)
    core.checked(entry, first, OSError("dead"), NOW + 1)
    assert core.lane.oldest() is first
    core.closed(entry, NOW + 1)
    [new] = connects(core)
    core.connected(new, object(), 1, NOW + 1)
    assert first.outcome is new
    assert second.outcome is None


@pytest.mark.parametrize("most", [None, 5], ids=["the short way", "the long way"])
def test_a_caller_sees_what_was_put_back_while_he_queued(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between his look at the idle ones and his place in the queue another thread puts one back without the lock."""

    core = make(max_size=1, max_waiting=most)
    entry = leased(core)
    enqueue = Service.enqueue

    def racing(service: Service, waiter: Waiter, now: float) -> None:
        entry.leases, entry.state = 0, IDLE
        core.lane.idle.append(entry)
        enqueue(service, waiter, now)

    monkeypatch.setattr(Service, "enqueue", racing)
    waiter = ask(core)
    assert waiter.outcome is entry


def test_an_idle_connection_at_the_end_of_its_life_is_closed_by_whoever_comes() -> None:
    core = make(max_lifetime=60.0, lifetime_jitter=0.0, idle_timeout=None)
    entry = idle(core)
    waiter = ask(core, NOW + 61)
    assert waiter.outcome is not entry
    assert [effect.entry for effect in core.take_effects() if effect.do is Do.CLOSE] == [entry]


def test_a_broken_multiplexed_connection_takes_nobody_in() -> None:
    core = make(max_size=2)
    entry = leased(core, capacity=3)
    assert ask(core).outcome is entry
    core.discard(entry, NOW)
    assert entry.state is IN_USE  # until the other lease ends
    assert ask(core).outcome is not entry
    core.give_back(entry, NOW)
    assert [effect.entry for effect in core.take_effects() if effect.do is Do.CLOSE] == [entry]


def test_a_full_multiplexed_connection_takes_nobody_in() -> None:
    core = make(max_size=1)
    entry = leased(core, capacity=2)
    assert ask(core).outcome is entry
    core.lane.spare[entry] = None  # as long as nobody has looked at it
    assert ask(core).outcome is None
    assert entry.leases == 2


def test_a_connection_made_by_its_caller_is_not_his_if_the_pool_was_cleared_meanwhile() -> None:
    core = make(features=Features(connect_in_caller=True))
    waiter = ask(core)
    entry = waiter.outcome
    assert isinstance(entry, Entry)
    do(commands.clear, core, NOW)
    assert core.connected(entry, object(), 1, NOW, keep=True) is False
    assert Do.CLOSE in [effect.do for effect in core.take_effects()]


def test_newcomers_hear_of_a_fatal_error_at_once_while_the_backoff_lasts() -> None:
    core = make(backoff=BackoffConfig(base=5.0, cap=5.0))
    first = ask(core)
    [entry] = connects(core)
    core.connect_failed(entry, OSError("no such user"), Verdict.FATAL, NOW)
    assert isinstance(first.outcome, ConnectFailed)
    assert isinstance(ask(core, NOW + 1).outcome, ConnectFailed)


def test_connects_that_fail_together_are_one_round_of_the_backoff() -> None:
    core = make(max_connecting=5)
    for _ in range(5):
        ask(core)
    together = connects(core)
    assert len(together) == 5
    for number, entry in enumerate(together):
        core.connect_failed(entry, OSError("refused"), Verdict.SUSPECT, NOW + 0.001 * (1 + number))
    assert core.lane.dialer.rounds == 1


@pytest.mark.parametrize("checks", [True, False])
def test_what_comes_back_after_clear_is_closed(checks: bool) -> None:
    core = make(features=Features(checks=checks))
    entry = leased(core)
    do(commands.clear, core, NOW)
    core.take_effects()
    core.give_back(entry, NOW)
    assert [effect.entry for effect in core.take_effects() if effect.do is Do.CLOSE] == [entry]


def test_half_of_the_idle_connections_stay_at_hand_while_the_others_are_looked_at() -> None:
    from poolkit._core import upkeep

    core = make(max_size=4, keepalive=1.0, idle_timeout=None, features=Features(checks=True))
    entries = [leased(core) for _ in range(4)]
    for entry in entries:
        core.give_back(entry, NOW)
    core.want_sweep(NOW + 5)
    do(upkeep.tick, core, NOW + 5)
    assert sum(entry.state is CHECKING for entry in entries) == 2


def test_a_connection_handed_over_is_not_touched_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiter may see it, use it and put it back without the lock before the one who serves him goes on."""

    serve = Service.serve

    def quick(service: Service, waiter: Waiter, outcome: Any) -> None:
        serve(service, waiter, outcome)
        if isinstance(outcome, Entry):
            outcome.leases, outcome.state = 0, IDLE
            core.lane.idle.append(outcome)

    monkeypatch.setattr(Service, "serve", quick)
    core = make(max_size=1)
    core.acquire(first := Waiter(core.lane, NOW), NOW)
    [entry] = connects(core)
    core.connected(entry, object(), 1, NOW)
    assert first.outcome is entry
    assert list(core.lane.idle) == [entry]


def test_the_permit_of_one_who_left_before_he_connected_goes_to_the_next() -> None:
    core = make(max_size=1, features=Features(connect_in_caller=True))
    first, second = ask(core), ask(core)
    assert isinstance(first.outcome, Entry)
    assert second.outcome is None
    core.abandon(first, NOW)
    assert isinstance(second.outcome, Entry)


def test_the_place_of_a_detached_connection_goes_to_the_oldest_waiter() -> None:
    core = make(max_size=1)
    entry = leased(core)
    waiter = ask(core)
    core.detach(entry, NOW)
    [new] = connects(core)
    core.connected(new, object(), 1, NOW)
    assert waiter.outcome is new


def test_retire_is_the_end_of_all_connections_of_the_generation() -> None:
    core = make()
    first, second = leased(core), leased(core)
    core.give_back(second, NOW)
    core.discard(first, NOW, Verdict.RETIRE)
    ended = {effect.entry for effect in core.take_effects() if effect.do in (Do.CLOSE, Do.ABORT)}
    assert ended == {first, second}


def test_what_a_connection_was_used_for_is_counted_beyond_its_end() -> None:
    core = make()
    entry = leased(core)
    entry.uses, entry.busy = 2, 1.0
    core.discard(entry, NOW + 0.5)
    core.closed(entry, NOW)
    assert (core.counts.uses, core.counts.busy) == (3, 1.5)
