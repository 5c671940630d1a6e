"""Which waiting caller of an endpoint is next: the queues alone, without a pool."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import ClassConfig, PoolConfig
from poolkit._core.capacity import ClassUse, NoClasses, configured
from poolkit._core.queue import ClassQueue, FifoQueue, Queue
from poolkit._core.slots import CLOSING, IN_USE
from poolkit.policies.classes import Classes
from tests.core.kit import Request, Slot, endpoint, request, slot

NOW = 1000.0


def use(limit: int = 4, coming: int = 0, *, by_caller: bool = False, **classes: ClassConfig) -> ClassUse:
    made = ClassUse(Classes(), lambda: limit, lambda: coming, by_caller=lambda: by_caller)
    made.classes.configure(classes, None, ())
    return made


def wait(queue: Queue, name: str | None = None, at: float = NOW, *, front: bool = False) -> Request:
    waiting = request(at=at)
    if isinstance(queue, ClassQueue):
        waiting.caller_class = queue.use.classes.of(name)
    queue.add(waiting)
    if front:
        queue.move_first(waiting)
    waiting.ticket = len(queue)
    return waiting


def connection(owner: Any = None, leases: int = 0) -> Slot:
    made = slot()
    made.owner, made.leases = owner, leases
    return made


def both() -> list[Queue]:
    return [FifoQueue(), use(web=ClassConfig()).new_queue()]


@pytest.mark.parametrize("queue", both(), ids=["fifo", "classes"])
def test_callers_come_in_order_of_arrival_and_one_that_was_served_badly_before_them(queue: Queue) -> None:
    assert queue.first() is queue.first_for(connection()) is None
    assert not queue.wanting
    first, second = wait(queue), wait(queue)
    assert queue.first() is queue.first_for(connection()) is first
    again = wait(queue, front=True)
    assert queue.first() is again
    queue.remove(again)
    queue.discard(first)
    queue.discard(first)
    assert queue.first() is second
    assert queue.first_of_each() == [second]
    assert list(queue.beside(second)) == [second]
    assert len(queue) == 1
    queue.check()


@pytest.mark.parametrize("queue", both(), ids=["fifo", "classes"])
def test_connects_are_needed_for_the_callers_that_no_connect_serves_yet(queue: Queue) -> None:
    for _ in range(4):
        wait(queue)
    assert queue.needed(opening=0, streams=1) == 4
    assert queue.needed(opening=3, streams=1) == 1
    assert queue.needed(opening=1, streams=3) == 1
    assert queue.needed(opening=4, streams=1) == 0


def test_a_newcomer_looks_first_only_within_the_barging_window() -> None:
    queue = FifoQueue()
    newcomer = request()
    assert queue.served_before(newcomer, NOW, 0.0)
    wait(queue)
    assert queue.served_before(newcomer, NOW + 0.5, 1.0)
    assert not queue.served_before(newcomer, NOW + 1.0, 1.0)


def test_a_newcomer_is_not_served_before_its_own_class() -> None:
    queue = use(web=ClassConfig(), bulk=ClassConfig()).new_queue()
    wait(queue, "bulk")
    newcomer = request()
    newcomer.caller_class = queue.use.classes.of("web")
    assert queue.served_before(newcomer, NOW, 0.0)
    newcomer.caller_class = queue.use.classes.of("bulk")
    assert not queue.served_before(newcomer, NOW, 0.0)


def test_a_caller_within_the_reserve_of_its_class_comes_first() -> None:
    queue = use(health=ClassConfig(reserved=1), bulk=ClassConfig()).new_queue()
    bulk = wait(queue, "bulk")
    health = wait(queue, "health")
    assert queue.first_of_each() == [health, bulk]
    assert queue.first() is health
    assert list(queue.beside(bulk)) == [bulk]
    assert [queue.count(queue.use.classes.of(name)) for name in ("health", "bulk")] == [1, 1]


def test_a_class_at_its_limit_does_not_hold_up_another() -> None:
    queue = use(limit=9, bulk=ClassConfig(limit=1), web=ClassConfig()).new_queue()
    bulk = wait(queue, "bulk")
    queue.use.charge(connection(), bulk)
    assert not queue.wanting
    assert queue.first() is None
    assert queue.claimant(0) is bulk
    assert queue.barred(9) == [bulk.caller_class]
    assert queue.gaining(9) == 0
    assert queue.needed(opening=0, streams=1) == 0
    web = wait(queue, "web")
    assert queue.first() is queue.first_for(connection()) is web
    assert queue.gaining(9) == 1
    assert queue.needed(opening=0, streams=1) == 1


def test_a_stream_of_a_reserved_class_is_for_that_class_only() -> None:
    queue = use(health=ClassConfig(reserved=1), web=ClassConfig(), bulk=ClassConfig()).new_queue()
    classes = queue.use.classes
    web = wait(queue, "web")
    assert queue.first_for(connection(classes.of("health"), leases=1)) is None
    assert queue.first_for(connection(classes.of("bulk"), leases=1)) is web


def test_connects_that_are_going_on_take_room_until_it_is_known_whose_they_are() -> None:
    queue = use(limit=3, coming=2, bulk=ClassConfig(), health=ClassConfig(reserved=1)).new_queue()
    wait(queue, "bulk")
    assert queue.needed(opening=0, streams=1) == 0
    by_caller = use(limit=3, coming=1, by_caller=True, bulk=ClassConfig()).new_queue()
    wait(by_caller, "bulk")
    wait(by_caller, "bulk")
    assert by_caller.needed(opening=1, streams=1, extra=1) == 2


def test_a_caller_of_a_removed_class_is_of_the_default_one() -> None:
    shares = use(web=ClassConfig(), old=ClassConfig())
    queue = shares.new_queue()
    waiting = request()
    waiting.caller_class = shares.classes.of("old")
    shares.classes.configure({"web": ClassConfig()}, None, ())
    queue.renew()
    queue.add(waiting)
    assert waiting.caller_class is shares.classes.default
    assert shares.classes.default.waits == 1
    queue.check()


def test_after_an_interruption_the_queues_of_the_classes_follow_from_the_order_of_arrival() -> None:
    queue = use(web=ClassConfig(), bulk=ClassConfig()).new_queue()
    requests = [wait(queue, name) for name in ("web", "bulk", "web")]
    queue.by_class[queue.use.classes.of("web")].requests.clear()
    with pytest.raises(AssertionError):
        queue.check()
    queue.rebuild()
    queue.check()
    assert list(queue.beside(requests[0])) == [requests[0], requests[2]]


def test_a_connection_is_charged_to_its_first_user_until_it_is_unused() -> None:
    shares = use(web=ClassConfig(), bulk=ClassConfig())
    queue, used = shares.new_queue(), connection()
    web, bulk = wait(queue, "web"), wait(queue, "bulk")
    shares.charge_lease(used, web)
    used.leases, used.state = 1, IN_USE
    shares.charge_lease(used, bulk)
    assert [shares.classes.of(name).held for name in ("web", "bulk")] == [1, 0]
    assert [shares.classes.of(name).acquires for name in ("web", "bulk")] == [1, 1]
    shares.check([used])
    shares.uncharge(used)
    assert shares.classes.of("web").held == 0
    assert used.owner is None


def test_classes_come_and_go_while_callers_wait() -> None:
    place = endpoint()
    waiting = Request(place, NOW)
    place.queue.add(waiting)
    used, closing = connection(), connection()
    used.state, closing.state = IN_USE, CLOSING
    slots = [used, closing]

    def make(classes: Classes) -> ClassUse:
        return ClassUse(classes, lambda: 4, lambda: 0, by_caller=lambda: False)

    none = NoClasses()
    assert configured(none, PoolConfig(), [place], slots, make) is none
    classed = configured(none, PoolConfig(classes={"web": ClassConfig()}), [place], slots, make)
    assert classed.classes is not None
    assert isinstance(place.queue, ClassQueue)
    assert place.queue.requests is place.requests
    assert place.queue.count(classed.classes.default) == 1
    assert used.owner is classed.classes.default
    assert closing.owner is None
    classed.check(slots)
    changed = PoolConfig(classes={"bulk": ClassConfig()})
    assert configured(classed, changed, [place], slots, make) is classed
    place.queue.check()
    plain = configured(classed, PoolConfig(), [place], slots, make)
    plain.check(slots)
    assert isinstance(place.queue, FifoQueue)
    assert place.queue.first() is waiting


def test_what_was_given_back_since_the_last_note_is_noticed() -> None:
    shares = use(web=ClassConfig())
    queue, used = shares.new_queue(), connection()
    waiting = wait(queue, "web")
    shares.note()
    assert not shares.widened()
    shares.charge(used, waiting)
    assert not shares.widened()
    shares.note()
    shares.uncharge(used)
    assert shares.widened()
