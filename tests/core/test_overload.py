"""A core whose callers give up, in virtual time: it serves as many in time as any order could, and stays fair."""

from __future__ import annotations

import random
from typing import Any

import pytest

from poolkit import ClassConfig, OverloadConfig, PoolBusy, PoolConfig
from poolkit._core import commands, invariants, maintenance
from poolkit._core.queue import ArrivalOrder, FifoQueue, NewestFirst
from poolkit._core.state import Phase
from poolkit.events import EventKind
from tests.core.kit import Board, Request, request
from tests.simulation.overload import Load

OFF: dict[str, Any] = {"overload": None}


def impatient(chance: random.Random, client: int) -> float:
    return chance.uniform(0.05, 0.15)


def patient(chance: random.Random, client: int) -> float:
    return float("inf")


# -- the order ---------------------------------------------------------------------------------------------------------


def line(*ages: float, young: float = 0.0, patient: float = float("inf")) -> tuple[FifoQueue, list[Request]]:
    """A queue whose newest come first, with callers of these ages."""
    queue = FifoQueue()
    order = NewestFirst(queue.requests)
    order.young, order.patient = young, patient
    queue.follow(order)
    callers = [request(number + 1, 1000.0 - age) for number, age in enumerate(ages)]
    for one in callers:
        queue.add(one)
    return queue, callers


def served(queue: FifoQueue) -> Request:
    first = queue.first()
    assert first is not None
    assert queue.first_of_each() == [first]
    queue.remove(first)
    return first


def test_the_oldest_caller_with_time_left_is_next_and_then_the_newest() -> None:
    queue, (old, middle, young, newest) = line(0.9, 0.3, 0.2, 0.0, young=0.25)
    assert served(queue) is young
    assert served(queue) is newest
    assert served(queue) is middle, "now the newest, and it was young when the others were there"
    assert served(queue) is old
    assert queue.first() is None
    assert queue.first_of_each() == []


def test_who_is_gone_is_passed_over() -> None:
    queue, (first, second, third) = line(0.2, 0.1, 0.0, young=1.0)
    queue.discard(first)
    assert queue.first() is second
    queue.discard(second)
    assert queue.first() is third


def test_every_fourth_lease_goes_to_the_oldest_if_it_is_patient() -> None:
    queue, callers = line(*(3.0 - 0.1 * number for number in range(30)), patient=0.5)
    order = [callers.index(served(queue)) for _ in range(8)]
    assert order == [0, 29, 28, 27, 1, 26, 25, 24]


def test_a_caller_that_was_served_badly_is_the_first_of_those_with_time_left() -> None:
    queue, (first, second) = line(0.2, 0.1, young=1.0)
    again = request(9, 999.95)
    queue.add(again)
    queue.move_first(again)
    assert queue.first() is again
    assert list(queue.requests) == [again, first, second]


def test_no_newcomer_is_served_before_waiting_callers() -> None:
    queue, _ = line(0.0001, young=1.0)
    assert not queue.served_before(request(at=1000.0), 1000.0, window=1.0)
    assert FifoQueue().served_before(request(at=1000.0), 1000.0, window=0.0)


# -- how many are answered, and how evenly -----------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False], ids=["cancelled in the lease", "late"])
@pytest.mark.parametrize("clients", [12, 24, 36, 60, 600])
def test_as_many_are_answered_in_time_as_the_connections_can_serve(clients: int, told: bool) -> None:
    load = Load(clients, impatient, told=told).measure(8)
    assert load.goodput > 0.96
    assert load.core.counts.overloads == (clients > 12)
    if 12 < clients < 600:
        plain = Load(clients, impatient, told=told, settings=OFF).measure(8)
        assert load.goodput > 1.15 * plain.goodput
        assert load.share > 0.98 * plain.share, "of all calls, too, no fewer are answered than in order of arrival"
        assert load.jain > 0.97


@pytest.mark.parametrize("clients", [24, 36, 60])
def test_deadlines_that_the_pool_does_not_know_cannot_be_kept(clients: int) -> None:
    """As with the one ``timeout`` of a client of redis-py: a caller that is late neither times out nor is cancelled.
    With a timeout as short as the shortest of these deadlines it does.
    """
    hidden = Load(clients, impatient, told=False, hold=0.03, limit=0.1).measure(8)
    plain = Load(clients, impatient, told=False, hold=0.03, limit=0.1, settings=OFF).measure(8)
    heard = Load(clients, impatient, told=False, hold=0.03, limit=0.05).measure(8)
    assert plain.goodput <= hidden.goodput < 0.8  # none of 24 times out: they wait for 90 ms
    assert heard.goodput > 0.96


@pytest.mark.parametrize("hold", [0.02, 0.03])
@pytest.mark.parametrize("clients", [24, 36, 60])
def test_deadlines_of_blocks_are_kept(clients: int, hold: float) -> None:
    """Beside clients that only look at their clock themselves: they wait for as long as it takes."""
    load = Load(clients, impatient, told=False, blocks=True, hold=hold).measure(8)
    own = Load(clients, impatient, told=False, hold=hold, limit=float("inf")).measure(8)
    assert load.goodput > 0.96
    assert load.goodput > 1.3 * own.goodput
    assert load.jain > 0.95


@pytest.mark.parametrize("offered", [1.1, 2.0, 5.0])
def test_callers_from_outside_are_answered_as_well(offered: float) -> None:
    load = Load(20, impatient, rate=300 * offered).measure(8)
    plain = Load(20, impatient, rate=300 * offered, settings=OFF).measure(8)
    assert load.goodput > max(0.93, 1.05 * plain.goodput)


@pytest.mark.parametrize("clients", [60, 600])
def test_patient_callers_are_served_in_order_of_arrival_however_long_the_queue_stands(clients: int) -> None:
    load = Load(clients, patient)
    load.run(8)
    assert load.order == sorted(load.order)
    assert load.core.counts.overloads == 0
    if clients == 60:
        assert load.jain > 0.999


@pytest.mark.parametrize("share", [0.001, 0.01, 0.03, 0.05])
def test_a_few_impatient_callers_do_not_change_the_order_of_the_others(share: float) -> None:
    def few(chance: random.Random, client: int) -> float:
        return impatient(chance, client) if chance.random() < share and load.now > 0.3 else float("inf")

    for seed in range(3):
        load = Load(60, few, seed=seed, pause=0.001)
        load.run(15)
        assert load.order == sorted(load.order)
        assert load.core.counts.overloads == 0


def test_patient_callers_among_impatient_ones_are_served() -> None:
    def half(chance: random.Random, client: int) -> float:
        return impatient(chance, client) if client % 2 else float("inf")

    load = Load(60, half).measure(15)
    assert load.goodput > 0.97
    mean = load.in_time.total() / 60
    assert min(load.in_time[client] for client in range(60)) > 0.5 * mean
    plain = Load(60, half, settings=OFF).measure(15)
    assert max(load.longest.values()) < 4 * max(plain.longest.values())


def test_a_burst_of_patient_callers_is_served_in_order() -> None:
    load = Load(100, lambda chance, client: 5.0, rate=150)
    for client in range(100):
        load._call(client)
    load.run(5)
    assert load.core.counts.overloads == 0
    assert load.order == sorted(load.order)


def test_callers_that_give_up_together_do_not_make_leases_seem_short() -> None:
    """Eight callers on four connections are cancelled together, those with a lease first. Then eight others come."""
    load = Load(0, lambda chance, client: 0.12, size=4, hold=10.0, reconnect=0.05, pause=1e9)
    for _ in range(4):
        for client in range(8):
            load._call(client)
        load.run(0.121)
    assert load.core.counts.overloads == 0
    assert load.order == [8 * turn + place for turn in range(4) for place in (1, 2, 3, 4)]
    invariants.check(load.core)


def test_when_the_overload_is_over_the_oldest_come_first_again() -> None:
    load = Load(20, impatient, rate=900)
    load.run(10)
    assert load.core.overload.words
    load.rate = 100
    load.run(1.5)
    assert not load.core.overload.words
    assert isinstance(load.core.endpoint.queue.line_of(None).order, ArrivalOrder)
    assert load.core.counts.overloads == 1
    invariants.check(load.core)


def test_when_callers_are_patient_again_the_oldest_come_first_though_the_queue_still_stands() -> None:
    load = Load(60, lambda chance, client: impatient(chance, client) if load.now < 3 else float("inf"))
    load.run(3)
    assert load.core.overload.words
    load.run(2)
    assert not load.core.overload.words
    assert len(load.core.endpoint.requests) > 40
    load.order.clear()
    load.run(1)
    assert load.order == sorted(load.order)


def test_a_server_that_becomes_slower_is_followed() -> None:
    load = Load(36, lambda chance, client: 10 * impatient(chance, client))
    load.run(3)
    assert load.core.counts.overloads == 0
    load.hold = 0.2
    load.run(10)
    assert load.core.overload.words
    load.in_time.clear()
    load.since = load.now
    load.run(20)
    assert load.goodput > 0.95


def test_leases_that_are_long_for_their_callers_are_no_worse_than_in_order_of_arrival() -> None:
    """Where no order gives callers enough time, the pool measures which order serves more of them."""

    def brief(chance: random.Random, client: int) -> float:
        return chance.uniform(0.02, 0.06)

    for clients in (24, 60):
        load = Load(clients, brief, hold=0.03).measure(15)
        plain = Load(clients, brief, hold=0.03, settings=OFF).measure(15)
        assert load.goodput > 1.05 * plain.goodput


# -- endpoints and classes ---------------------------------------------------------------------------------------------


def test_each_endpoint_has_an_order_of_its_own() -> None:
    def patience(chance: random.Random, client: int) -> float:
        return impatient(chance, client) if client % 2 else float("inf")

    load = Load(60, patience, keyed=True, key_of=lambda client: client % 2)
    load.run(4)
    odd, even = load.core.all_endpoints[1], load.core.all_endpoints[0]
    assert isinstance(odd.queue.line_of(None).order, NewestFirst)
    assert isinstance(even.queue.line_of(None).order, ArrivalOrder)
    invariants.check(load.core)


def test_each_class_has_an_order_of_its_own() -> None:
    def patience(chance: random.Random, client: int) -> float:
        return impatient(chance, client) if client % 2 else float("inf")

    classes = {"web": ClassConfig(), "bulk": ClassConfig()}
    load = Load(60, patience, class_of=lambda client: "web" if client % 2 else "bulk", settings={"classes": classes})
    load.run(4)
    known = load.core.classes
    assert known is not None
    queue = load.core.endpoint.queue
    assert isinstance(queue.line_of(known.of("web")).order, NewestFirst)
    assert isinstance(queue.line_of(known.of("bulk")).order, ArrivalOrder)
    assert load.core.overload.words[0].endswith("of the callers of class 'web' that waited gave up")
    invariants.check(load.core)
    load.in_time.clear()
    load.since = load.now
    load.run(8)
    assert load.goodput > 0.95


# -- settings and the end ----------------------------------------------------------------------------------------------


def overloaded(**settings: Any) -> Load:
    load = Load(60, impatient, settings=settings)
    load.run(2)
    assert load.core.overload.words
    return load


@pytest.mark.parametrize(
    "changes",
    [{"overload": None}, {"max_size": 3}, {"classes": {"web": ClassConfig()}}],
    ids=lambda one: next(iter(one)),
)
def test_other_settings_begin_with_the_oldest(changes: dict[str, Any]) -> None:
    load = overloaded()
    load.reconfigure(**changes)
    assert not load.core.overload.words
    assert load.core.endpoint.queue.first_of_each() == [load.core.endpoint.oldest()]
    invariants.check(load.core)
    load.run(2)
    assert bool(load.core.overload.words) is ("overload" not in changes)
    invariants.check(load.core)


def test_a_closed_pool_is_not_overloaded() -> None:
    load = overloaded()
    load._decide(commands.shut, load.core, Phase.CLOSED, load.now)
    assert not load.core.overload.words
    invariants.check(load.core)


def test_begin_and_end_are_events() -> None:
    load = Load(20, impatient, rate=900)
    load.core.wanted_events = frozenset({EventKind.OVERLOAD_BEGAN, EventKind.OVERLOAD_ENDED})
    told: list[EventKind] = []
    load.on_event = lambda event: told.append(event.kind)
    load.run(3)
    load.rate = 50
    load.run(2)
    assert told == [EventKind.OVERLOAD_BEGAN, EventKind.OVERLOAD_ENDED]


def test_a_full_queue_refuses_the_oldest_while_it_is_overloaded() -> None:
    busy: list[tuple[float, str]] = []
    load = Load(60, impatient, pause=0.01, settings={"max_waiting": 30})
    load.on_refusal = lambda request, error: busy.append((load.now - request.since, str(error)))
    load.run(1)
    busy.clear()
    load.run(1)
    waits = [waited for waited, text in busy if "overloaded" in text]
    assert len(waits) > 0.9 * len(busy)
    assert min(waits) > 0.01
    assert load.goodput > 0.8
    invariants.check(load.core)


def test_who_has_waited_too_long_is_refused_while_the_queue_is_overloaded() -> None:
    refused: list[float] = []
    load = Load(60, impatient, pause=0.05, settings={"overload": OverloadConfig(max_wait=0.04)})
    load.on_refusal = lambda request, error: (
        (isinstance(error, PoolBusy) and "overloaded: refused after" in str(error))
        and refused.append(load.now - request.since)
    )
    load.measure(3)
    assert len(refused) > 100
    assert min(refused) > 0.04
    assert load.goodput > 0.95
    assert load.core.overload.words


def test_a_cancelled_lease_is_no_evidence_if_no_caller_waits() -> None:
    load = Load(1, impatient)
    load.run(0.1)
    slot = next(iter(load.core.slots.living()))
    commands.lease_given_up(load.core, slot, load.now)
    assert load.core.endpoint.queue.line_of(None).evidence is None


def test_a_pool_without_the_rule_has_a_part_that_does_nothing() -> None:
    board = Board(**OFF)
    waiting = board.request()
    board.overload.gave_up(waiting, 1.0)
    board.overload.tick(1.0)
    board.overload.end_all()
    assert board.overload.late(1e9) is None
    assert not board.overload.words
    assert not board.overload.refuses
    assert not board.overload.knows(FifoQueue())


def test_housekeeping_looks_again_while_a_queue_is_overloaded() -> None:
    load = overloaded()
    maintenance.tick(load.core, load.now)
    assert load.core.due <= load.now + PoolConfig().overload.interval  # type: ignore[union-attr]
