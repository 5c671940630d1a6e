"""From hand to hand: the short way, where callers queue, decides what the long way through all rules decides."""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import Any

import pytest

from poolkit import PoolConfig
from poolkit._core import books, commands, mend
from poolkit._core.effects import Do
from poolkit._core.entry import IDLE, IN_USE, Entry
from poolkit._core.machine import Core
from poolkit._core.state import Features
from poolkit._core.waiter import Waiter

NOW = 1000.0


class Long(Core):
    """Never takes the short way."""

    def review(self) -> None:
        self.plain = False


class Sleeper:
    def wake(self) -> None:
        pass


def make(kind: type[Core] = Core, *, features: Features | None = None, barging: float = 0.0, **settings: Any) -> Core:
    config = PoolConfig(barging_window=barging, **settings)
    return kind(config, features or Features(), name="core", barging=0.0, random=lambda: 1.0)


def ask(core: Core, now: float = NOW, key: Hashable = None) -> Waiter:
    waiter = Waiter(core.add_lane(key), now)
    waiter.parker = Sleeper()
    core.acquire(waiter, now)
    return waiter


def leased(core: Core, capacity: int = 1) -> Entry:
    """A fresh connection in use."""
    waiter = ask(core)
    [entry] = [one.entry for one in core.take_effects() if one.do is Do.CONNECT and one.entry is not None]
    core.connected(entry, object(), capacity, NOW)
    if waiter.queued:  # within the barging window he is woken up, and takes it himself
        core.look(waiter, NOW)
    core.take_effects()
    assert waiter.outcome is entry
    return entry


class Twin:
    """One core and its callers, told what to do by numbers alone, so that two can be told the same."""

    def __init__(self, kind: type[Core], dice: random.Random) -> None:
        self.keyed = dice.random() < 0.3
        features = Features(checks=dice.random() < 0.5, keyed=self.keyed)
        barging = dice.choice((0.0, 0.0, 0.004))
        life = dice.choice((None, 0.5))
        idle = dice.choice((None, 0, 1))
        self.core = make(
            kind, features=features, barging=barging, max_size=dice.choice((1, 2, 4)), max_lifetime=life,
            lifetime_jitter=0.0, idle_timeout=None, max_idle=idle, check_after_idle=dice.choice((None, 0.02)),
        )  # fmt: skip
        self.waiters: list[Waiter] = []
        self.work: list[tuple[Do, Entry]] = []
        self.now = NOW

    def step(self, dice: random.Random) -> list[str]:
        """Do one thing; what came of it."""
        core = self.core
        self.now += dice.choice((0.0, 0.001, 0.01))
        served = [one for one in self.waiters if isinstance(one.outcome, Entry) and one.outcome.state is IN_USE]
        waiting = [one for one in self.waiters if one.queued]
        choice = dice.random()
        if choice < 0.35:
            self.waiters.append(ask(core, self.now, dice.randrange(2) if self.keyed else None))
        elif choice < 0.75 and served:
            waiter = served[dice.randrange(len(served))]
            self.waiters.remove(waiter)
            entry = waiter.outcome
            assert isinstance(entry, Entry)
            (core.give_back if choice < 0.7 else core.discard)(entry, self.now)
        elif choice < 0.9 and self.work:
            self.finish(*self.work.pop(dice.randrange(len(self.work))))
        elif choice < 0.93 and waiting:
            core.abandon(waiting[dice.randrange(len(waiting))], self.now, timed_out=True)
        elif choice < 0.95:
            commands.clear(core, self.now)
        elif choice < 0.96:
            commands.suspend(core, False, self.now)
        elif choice < 0.98:
            commands.resume(core, self.now)
        else:
            changed = PoolConfig(max_size=dice.choice((1, 2, 4)), idle_timeout=None, max_lifetime=None)
            commands.reconfigure(core, changed, core.barging, "max_size", self.now)
        for waiter in self.waiters:
            if waiter.nudged and waiter.queued and dice.random() < 0.5:
                core.look(waiter, self.now)
            if isinstance(waiter.outcome, Entry) and waiter.outcome.state.name == "CHECKING":
                core.checked(waiter.outcome, waiter, None, self.now)
        books.check(core)
        return self.told()

    def finish(self, do: Do, entry: Entry) -> None:
        if do is Do.CONNECT:
            self.core.connected(entry, object(), 1, self.now)
        else:
            self.core.closed(entry, self.now)

    def told(self) -> list[str]:
        """Everything that anybody could see."""
        core, told = self.core, []
        for effect in core.take_effects():
            told.append(f"{effect.do} {effect.entry} {effect.waiter}")
            if effect.entry is not None and effect.do in (Do.CONNECT, Do.CLOSE, Do.ABORT):
                self.work.append((effect.do, effect.entry))
        told.extend(
            f"lane {lane.key}: {list(lane.waiters)} {list(lane.idle)} {lane.live} {lane.connecting}"
            for lane in core.lanes.values()
        )
        told.extend(f"{entry} {entry.leases} {entry.last_used} {entry.good_until}" for entry in core.entries.values())
        told.extend(f"{waiter} {waiter.queued} {waiter.nudged}" for waiter in self.waiters)
        told.append(f"{core.closing} {core.due} {core.counts.waits} {core.counts.timeouts}")
        return told


@pytest.mark.parametrize("seed", range(150))
def test_the_short_way_and_the_long_way_decide_the_same(seed: int) -> None:
    dice = random.Random(seed)
    pair = [Twin(kind, random.Random(seed)) for kind in (Core, Long)]
    for number in range(250):
        turn = dice.random()
        short, long = [twin.step(random.Random(turn)) for twin in pair]
        assert short == long, f"step {number}"


def test_a_connection_that_others_still_share_is_not_handed_over() -> None:
    core = make(max_size=1)
    entry = leased(core, capacity=3)
    assert ask(core).outcome is entry
    core.set_capacity(entry, 1, NOW)  # the server allows one stream less than there are
    waiter = ask(core)
    core.give_back(entry, NOW)
    assert waiter.outcome is None
    assert entry.leases == 1


def test_a_connection_at_the_end_of_its_life_is_not_handed_over() -> None:
    core = make(max_size=1, max_lifetime=60.0, lifetime_jitter=0.0)
    entry = leased(core)
    waiter = ask(core)
    core.give_back(entry, NOW + 61)
    assert waiter.outcome is None
    assert [effect.entry for effect in core.take_effects() if effect.do is Do.CLOSE] == [entry]


def test_the_surplus_goes_although_somebody_waits() -> None:
    core = make(max_size=2)
    first, second = leased(core), leased(core)
    waiter = ask(core)
    commands.reconfigure(core, PoolConfig(max_size=1), 0.0, "max_size=1", NOW)
    core.give_back(first, NOW)
    assert waiter.outcome is None
    core.give_back(second, NOW)
    assert waiter.outcome is second


def test_within_the_barging_window_a_returned_connection_is_for_whoever_comes_first() -> None:
    core = make(max_size=1, barging=0.001)
    entry = leased(core)
    waiter = ask(core)
    core.give_back(entry, NOW + 0.0005)
    assert waiter.outcome is None
    assert entry.state is IDLE
    assert [effect.waiter for effect in core.take_effects() if effect.do is Do.WAKE] == [waiter]
    assert ask(core, NOW + 0.0006).outcome is entry
    core.give_back(entry, NOW + 0.002)
    assert waiter.outcome is entry


def test_after_an_interrupted_suspend_nothing_is_handed_over() -> None:
    core = make(max_size=1)
    entry = leased(core)
    waiter = ask(core)
    core.suspended = True  # and there the thread was interrupted
    mend.mend(core, NOW)
    core.give_back(entry, NOW)
    assert waiter.outcome is None
    commands.resume(core, NOW)
    assert waiter.outcome is entry
