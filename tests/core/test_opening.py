"""When the core asks for a connect, and when it does not."""

from __future__ import annotations

from poolkit import PoolConfig, Verdict
from poolkit._core.effects import Do
from poolkit._core.invariants import check
from poolkit._core.maintenance import tick
from poolkit._core.queue import Request
from poolkit._core.slots import Slot, State
from poolkit._core.state import Features
from tests.core.kit import SettlingCore, do


class Sleeper:
    def wake(self) -> None:
        pass


def test_a_connect_faster_than_the_barging_window_is_not_followed_by_a_second_one() -> None:
    """The new connection becomes idle and the request is notified, so no further connection is needed."""
    core = SettlingCore(PoolConfig(), Features(), name="core", barging=0.001, random=lambda: 0.5)
    request = Request(core.endpoint, 1000.0)
    request.parker = Sleeper()
    core.acquire(request, 1000.0)
    connect = core.take_effects()
    assert [effect.do for effect in connect] == [Do.CONNECT]
    slot = connect[0].slot
    assert slot is not None
    core.connected(slot, object(), 1, 1000.0005)
    assert [effect.do for effect in core.take_effects()] == [Do.WAKE]
    core.look(request, 1000.0006)
    assert request.outcome is slot


def test_after_an_outage_the_first_connect_that_works_brings_min_size_back_at_once() -> None:
    """This holds for any caller's connect: the others do not wait for the end of the backoff."""
    core = SettlingCore(PoolConfig(min_size=3), Features(), name="core", barging=0.0, random=lambda: 1.0)

    def ask(now: float) -> list[Slot]:
        request = Request(core.endpoint, now)
        request.parker = Sleeper()
        core.acquire(request, now)
        return [effect.slot for effect in core.take_effects() if effect.do is Do.CONNECT and effect.slot is not None]

    now = 1000.0
    for slot in ask(now):
        core.connect_failed(slot, OSError(), Verdict.SUSPECT, now)
    assert core.take_effects() == []
    now = core.endpoint.dialer.retry_at
    first, *others = ask(now)
    for slot in others:
        core.connect_failed(slot, OSError(), Verdict.SUSPECT, now)
    core.connected(first, object(), 1, now)
    opened = [effect for effect in core.take_effects() if effect.do is Do.CONNECT]
    assert core.endpoint.live + len(opened) == 3


def test_while_the_server_is_down_min_size_is_tried_after_a_backoff_where_callers_connect_themselves() -> None:
    """It was tried again at once, a thousand times a second."""
    config = PoolConfig(min_size=1, connect_in_caller=True)
    core = SettlingCore(config, Features(), name="core", barging=0.0, random=lambda: 1.0)

    def ask(now: float) -> Slot:
        request = Request(core.endpoint, now)
        request.parker = Sleeper()
        core.acquire(request, now)
        assert isinstance(request.outcome, Slot)
        core.connect_failed(request.outcome, OSError(), Verdict.SUSPECT, now)
        return request.outcome

    ask(1000.0)
    assert not [effect for effect in core.take_effects() if effect.do is Do.CONNECT]
    check(core)
    again = core.endpoint.dialer.retry_at
    assert core.due <= again
    ask(again - 0.01)  # callers do not wait for that
    do(tick, core, core.endpoint.dialer.retry_at)
    (effect,) = (effect for effect in core.take_effects() if effect.do is Do.CONNECT)
    assert effect.slot is not None
    core.connect_failed(effect.slot, OSError(), Verdict.SUSPECT, core.endpoint.dialer.retry_at)
    assert not [effect for effect in core.take_effects() if effect.do is Do.CONNECT]
    check(core)


def test_callers_that_share_a_late_connect_get_another_one_beside_it_one_at_a_time() -> None:
    """A lost packet in one connect does not delay all callers that were to share that connection."""
    config = PoolConfig(max_size=4, connect_in_caller=True)
    core = SettlingCore(config, Features(keyed=True), name="core", barging=0.0, random=lambda: 0.5)

    def ask(now: float) -> Request:
        request = Request(core.add_endpoint("origin"), now)
        request.parker = Sleeper()
        core.acquire(request, now)
        return request

    def connecting(request: Request) -> bool:
        return isinstance(request.outcome, Slot) and request.outcome.state is State.CONNECTING

    core.add_endpoint("origin").streams = 100  # as known from an earlier connection
    first, second, third = (ask(1000.0) for _ in range(3))
    assert [connecting(request) for request in (first, second, third)] == [True, False, False]
    assert core.due == 1000.25
    do(tick, core, 1000.2)
    assert not connecting(second)
    do(tick, core, core.due)
    assert [connecting(request) for request in (second, third)] == [True, False]
    late = ask(1000.3)
    do(tick, core, 1000.4)
    assert not connecting(third)
    do(tick, core, 1000.5)
    assert [connecting(request) for request in (third, late)] == [True, False]
    check(core)
