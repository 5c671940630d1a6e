"""When the core asks for a connect, and when it does not."""

from __future__ import annotations

from poolkit import PoolConfig
from poolkit._core.effects import Do
from poolkit._core.machine import Core
from poolkit._core.state import Features
from poolkit._core.waiter import Waiter


class Sleeper:
    def wake(self) -> None:
        pass


def test_a_connect_faster_than_the_barging_window_is_not_followed_by_a_second_one() -> None:
    """The new connection goes to the idle ones and the waiter is told of it: there is nothing more to open."""
    core = Core(PoolConfig(), Features(), name="core", barging=0.001, random=lambda: 0.5)
    waiter = Waiter(core.lane, 1000.0)
    waiter.parker = Sleeper()
    core.acquire(waiter, 1000.0)
    dial = core.take_effects()
    assert [effect.do for effect in dial] == [Do.CONNECT]
    entry = dial[0].entry
    assert entry is not None
    core.connected(entry, object(), 1, 1000.0005)
    assert [effect.do for effect in core.take_effects()] == [Do.WAKE]
    core.look(waiter, 1000.0006)
    assert waiter.outcome is entry
