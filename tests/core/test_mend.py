"""After an interruption: the numbers are made true again, and what nobody holds is taken back."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import PoolConfig
from poolkit._core import books, mend
from poolkit._core.effects import Do
from poolkit._core.entry import CLOSED, IN_USE, Entry
from poolkit._core.machine import Core
from poolkit._core.state import Features
from poolkit._core.waiter import Waiter
from tests.core.kit import SettlingCore, do

exact = pytest.mark.skipif(not mend._EXACT, reason="reference counts are not exact here: nothing is taken back")


class Sleeper:
    def wake(self) -> None:
        pass


def core_of(max_size: int = 1) -> Core:
    config = PoolConfig(max_size=max_size, barging_window=0.0)
    return SettlingCore(config, Features(), name="mend", barging=0.0, random=lambda: 0.5)


def ask(core: Core, now: float = 1.0) -> Waiter:
    waiter = Waiter(core.lane, now)
    waiter.parker = Sleeper()
    core.acquire(waiter, now)
    return waiter


def connect(core: Core) -> Entry:
    """The connection that the last caller has caused stands."""
    entry: Any = next(effect.entry for effect in core.take_effects() if effect.do is Do.CONNECT)
    core.connected(entry, object(), 1, 1.0)
    return entry  # type: ignore[no-any-return]


@exact
def test_the_permit_of_a_connect_that_nobody_makes_goes_to_who_waits() -> None:
    core = core_of()
    waiter = ask(core)
    core.take_effects()  # and the thread that should have connected is gone
    assert do(mend.audit, core, 2.0) == 1
    assert [effect.do for effect in core.take_effects()] == [Do.CONNECT]
    assert waiter.queued
    books.check(core)


@exact
def test_a_connection_in_nobodys_hands_is_aborted_and_its_place_free() -> None:
    core = core_of()
    served = ask(core)
    connect(core)
    assert isinstance(served.outcome, Entry)
    core.take_effects()
    del served  # interrupted between the core and the register of leases
    assert do(mend.audit, core, 2.0) == 1
    effects = core.take_effects()
    assert [effect.do for effect in effects] == [Do.ABORT]
    core.closed(effects[0].entry, 2.0)  # type: ignore[arg-type]
    assert not core.entries
    books.check(core)


@exact
def test_nothing_is_taken_back_that_somebody_holds() -> None:
    core = core_of(2)
    first, second = ask(core), ask(core)
    held = connect(core)
    assert held.state is IN_USE
    assert do(mend.audit, core, 2.0) == 1  # the second connect
    assert (first.queued, second.queued) == (False, True)
    books.check(core)


def test_a_connection_on_its_way_out_holds_no_permit() -> None:
    core = core_of()
    ask(core)
    entry = connect(core)
    entry.state = CLOSED  # cut off in forget(), before it left the register
    do(mend.mend, core, 2.0)
    assert not core.entries
    books.check(core)


def test_a_waiter_who_was_just_served_is_woken() -> None:
    core = core_of()
    waiter = ask(core)
    waiter.outcome = TimeoutError("cut off in serve(), after its first line")
    core.take_effects()
    do(mend.mend, core, 2.0)
    assert [(effect.do, effect.waiter) for effect in core.take_effects()] == [(Do.WAKE, waiter)]
    assert not core.lane.waiters
    assert not waiter.queued


def test_the_numbers_are_made_true_again() -> None:
    core = core_of(3)
    ask(core)
    connect(core)
    moved = core.moved
    core.lane.size = core.lane.live = core.lane.connecting = core.slots.closing = 7
    do(mend.mend, core, 2.0)
    books.check(core)
    assert (core.lane.size, core.lane.live, core.lane.connecting, core.closing) == (1, 1, 0, 0)
    assert moved, "who is just putting a connection back must look again"
    assert core.due <= 2.0, "everything is looked over soon"
