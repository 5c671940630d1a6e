"""Classes of callers in the core: which are served, which wait for reserved connections, what is opened for which."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import ClassConfig, PoolConfig
from poolkit._core import commands, invariants
from poolkit._core.effects import Do
from poolkit._core.queue import Request
from poolkit._core.repair import repair
from poolkit._core.slots import Slot
from poolkit._core.state import Features
from tests.core.kit import SettlingCore, do
from tests.simulation import CoreSimulation

NOW = 1000.0
USUAL = {"health": ClassConfig(reserved=1), "web": ClassConfig(weight=4), "bulk": ClassConfig()}


class Classed(CoreSimulation):
    """Every schedule has callers of several classes."""

    class_share = 1.0


class Sleeper:
    def wake(self) -> None:
        pass


class Scene:
    """A core without a shell. Connects succeed at once, unless they are held."""

    def __init__(self, *, features: Features | None = None, classes: Any = USUAL, **settings: Any) -> None:
        config = PoolConfig(classes=classes, **settings)
        self.core = SettlingCore(config, features or Features(), name="core", barging=0.0, random=lambda: 1.0)
        self.opening: list[Slot] = []
        self.closing: list[Slot] = []
        self.slow = False

    def ask(self, name: str | None = None, key: Any = None) -> Request:
        assert self.core.classes is not None
        request = Request(self.core.add_endpoint(key), NOW)
        request.parker = Sleeper()
        request.caller_class = self.core.classes.of(name)
        self.core.acquire(request, NOW)
        self.work()
        return request

    def work(self) -> None:
        while effects := self.core.take_effects():
            for kind, slot, _ in effects:
                if kind is Do.CONNECT:
                    assert slot is not None
                    self.opening.append(slot)
                elif kind in (Do.CLOSE, Do.ABORT):
                    assert slot is not None
                    self.closing.append(slot)
            if not self.slow:
                self.arrive()
        invariants.check(self.core)

    def arrive(self, capacity: int = 1) -> None:
        while self.opening:
            self.core.connected(self.opening.pop(0), object(), capacity, NOW)

    def leases(self, count: int, name: str) -> list[Slot]:
        slots = [self.ask(name).outcome for _ in range(count)]
        assert all(isinstance(slot, Slot) for slot in slots)
        return slots  # type: ignore[return-value]

    def give(self, slot: Slot) -> None:
        self.core.give_back(slot, NOW)
        self.work()


@pytest.mark.parametrize("seed", range(40))
def test_random_schedules_with_classes_keep_every_promise(seed: int) -> None:
    Classed(seed).run(250)


def test_bulk_work_never_takes_the_last_connection() -> None:
    scene = Scene(max_size=3)
    scene.leases(2, "bulk")
    waiting = scene.ask("bulk")
    assert waiting.outcome is None
    assert isinstance(scene.ask("health").outcome, Slot)


def test_an_idle_connection_is_kept_for_its_class_while_others_wait() -> None:
    scene = Scene(max_size=2)
    [reserved] = scene.leases(1, "health")
    [other] = scene.leases(1, "bulk")
    scene.give(reserved)
    waiting = scene.ask("web")
    assert waiting.outcome is None
    assert scene.ask("health").outcome is reserved
    scene.give(other)
    assert waiting.outcome is other


def test_returned_connections_go_round_by_weight() -> None:
    scene = Scene(max_size=2)
    [slot] = scene.leases(1, "web")
    queues = {name: [scene.ask(name) for _ in range(20)] for name in ("bulk", "web")}
    order = []
    for _ in range(20):
        scene.give(slot)
        [(name, request)] = [(n, w) for n, q in queues.items() for w in q if w.outcome is slot]
        assert request is queues[name].pop(0), "not in order of arrival within the class"
        order.append(name)
        assert abs(order.count("web") / 4 - order.count("bulk")) <= 1 / 4 + 1
    assert 15 <= order.count("web") <= 17


def test_what_a_class_gives_up_by_a_discard_another_may_take_from_the_idle_ones() -> None:
    """The discarded connection is still being closed; the idle one is no longer reserved."""
    scene = Scene(max_size=3, classes={"health": ClassConfig(reserved=1), "bulk": ClassConfig()})
    [kept] = scene.leases(1, "health")
    first, _ = scene.leases(2, "bulk")
    scene.give(kept)
    waiting = scene.ask("bulk")
    assert waiting.outcome is None
    scene.core.discard(first, NOW)
    scene.work()
    assert waiting.outcome is kept


def test_no_connection_is_opened_for_callers_that_may_not_have_it() -> None:
    scene = Scene(max_size=10, classes={"bulk": ClassConfig(limit=2), "web": ClassConfig()})
    scene.leases(2, "bulk")
    for _ in range(5):
        scene.ask("bulk")
    assert len(scene.core.all_slots) == 2


def test_connects_that_hang_leave_the_reserve_alone() -> None:
    """In a keyed pool, bulk work for an endpoint that does not answer holds no more permits than it may use."""
    scene = Scene(max_size=4, features=Features(keyed=True))
    scene.slow = True
    for number in range(10):
        scene.ask("bulk", key=f"dead {number}")
    assert len(scene.opening) == 3
    scene.ask("health", key="well")
    assert scene.opening[-1].endpoint.key == "well"


def test_what_one_endpoint_gives_back_serves_the_class_at_another() -> None:
    scene = Scene(max_size=4, features=Features(keyed=True), classes={"bulk": ClassConfig(limit=1)})
    one = scene.ask("bulk", key="a").outcome
    other = scene.ask("bulk", key="b")
    assert isinstance(one, Slot)
    assert other.outcome is None
    scene.give(one)
    assert isinstance(other.outcome, Slot)


def test_what_a_class_got_and_gave_back_between_two_looks_serves_it_at_another_endpoint() -> None:
    scene = Scene(max_size=4, features=Features(keyed=True), classes={"bulk": ClassConfig(limit=1)})
    scene.slow = True
    first, second = scene.ask("bulk", key="a"), scene.ask("bulk", key="b")
    scene.arrive()  # the second connection is idle now: its caller's class is at its limit
    third = scene.ask("bulk", key="c")
    scene.slow = False
    for served, next_one in ((first, second), (second, third)):
        assert next_one.outcome is None
        scene.give(served.outcome)  # type: ignore[arg-type]
        assert next_one.outcome is not None


def test_classes_share_a_multiplexed_connection_but_not_a_reserved_one() -> None:
    scene = Scene(max_size=2)
    scene.slow = True
    bulk, web = scene.ask("bulk"), scene.ask("web")
    scene.arrive(capacity=3)
    assert isinstance(bulk.outcome, Slot)
    assert web.outcome is bulk.outcome
    scene.ask("bulk")
    health = scene.ask("health")
    scene.arrive(capacity=3)
    scene.work()
    assert health.outcome is not bulk.outcome
    assert isinstance(health.outcome, Slot)
    late = scene.ask("web")
    assert late.outcome is None, "a class with a reserve shares its connections with nobody"
    assert scene.ask("health").outcome is health.outcome


def test_max_waiting_counts_within_the_class() -> None:
    """A long queue of bulk work does not refuse a health check."""
    scene = Scene(max_size=2, max_waiting=1)
    scene.leases(1, "bulk")
    scene.leases(1, "health")
    scene.ask("bulk")
    assert isinstance(scene.ask("bulk").outcome, Exception)
    assert scene.ask("health").outcome is None


def test_who_gives_up_leaves_its_turn_to_the_next_of_its_class() -> None:
    scene = Scene(max_size=2)
    [slot] = scene.leases(1, "bulk")
    first, second = scene.ask("bulk"), scene.ask("bulk")
    scene.core.abandon(first, NOW, timed_out=True)
    scene.give(slot)
    assert second.outcome is slot
    assert first.caller_class is not None
    assert first.caller_class.timeouts == 1


def test_a_failed_check_gives_the_permit_of_the_class_back() -> None:
    scene = Scene(max_size=2, check_after_idle=0, features=Features(checks=True))
    [slot] = scene.leases(1, "bulk")
    scene.give(slot)
    request = scene.ask("bulk")
    assert request.outcome is slot
    assert scene.core.classes is not None
    assert scene.core.classes.of("bulk").held == 1
    scene.core.checked(slot, request, OSError("dead"), NOW)
    scene.work()
    assert isinstance(request.outcome, Slot), "a new connection is its at once: the dead one counts for nobody"
    assert request.outcome is not slot
    assert scene.core.classes.of("bulk").held == 1


def test_live_changes_take_effect_on_waiting_callers() -> None:
    scene = Scene(max_size=4)
    scene.leases(3, "bulk")
    waiting = scene.ask("bulk")
    assert waiting.outcome is None
    changed = scene.core.config.replace(classes={"health": ClassConfig(), "bulk": ClassConfig()})
    do(commands.reconfigure, scene.core, changed, 0.0, "classes", NOW)
    scene.work()
    assert isinstance(waiting.outcome, Slot)


def test_classes_can_come_and_go_while_connections_are_in_use() -> None:
    scene = Scene(max_size=2, classes={"bulk": ClassConfig(limit=1)})
    [slot] = scene.leases(1, "bulk")
    waiting = scene.ask("bulk")
    do(commands.reconfigure, scene.core, scene.core.config.replace(classes=None), 0.0, "classes", NOW)
    scene.work()
    assert isinstance(waiting.outcome, Slot), "without classes nothing holds it up"
    do(commands.reconfigure, scene.core, scene.core.config.replace(classes=USUAL), 0.0, "classes", NOW)
    scene.work()
    assert scene.core.classes is not None
    assert scene.core.classes.default.held == 2
    scene.give(slot)
    assert scene.core.classes.default.held == 1


def test_the_reserve_is_given_first_after_it_was_set_up_under_load() -> None:
    scene = Scene(max_size=2, classes={"health": ClassConfig(), "bulk": ClassConfig(weight=100)})
    one, _ = scene.leases(2, "bulk")
    bulk = scene.ask("bulk")
    health = scene.ask("health")
    changed = scene.core.config.replace(classes={"health": ClassConfig(reserved=1), "bulk": ClassConfig()})
    do(commands.reconfigure, scene.core, changed, 0.0, "classes", NOW)
    scene.give(one)
    assert health.outcome is one
    assert bulk.outcome is None


def test_after_an_interruption_the_counts_of_the_classes_are_corrected() -> None:
    scene = Scene(max_size=2)
    [slot] = scene.leases(1, "bulk")
    waiting = scene.ask("web")
    assert scene.core.classes is not None
    scene.core.classes.of("bulk").held = 7  # in the middle of a step
    scene.core.endpoint.queue.by_class[scene.core.classes.of("web")].requests.clear()
    do(repair, scene.core, NOW)
    invariants.check(scene.core)
    scene.give(slot)
    assert waiting.outcome is slot
