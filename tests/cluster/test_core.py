"""The decisions of a cluster without threads or tasks: each rule by name, and random schedules."""

from __future__ import annotations

import random
from typing import Any

import pytest

from poolkit import AcquireTimeout, PoolClosed
from poolkit.cluster import ClusterConfig, Node, NodeState, NoNodeAvailable
from poolkit.cluster._core import ClusterCore, Do, Effect, NodeEntry, NodeRequest
from poolkit.cluster._node import checked_nodes
from poolkit.cluster._parts import Made
from poolkit.policies.balance import SmoothWeighted
from poolkit.policies.retire import NEVER


class Rig:
    """A core with a clock; effects are recorded but not carried out."""

    def __init__(
        self, *nodes: Node | str, places: int = 2, roles: bool = False, seed: int = 1, **settings: Any
    ) -> None:
        self.now = 0.0
        self.others = 0
        self.places = dict.fromkeys([n.name if isinstance(n, Node) else n for n in nodes], places)
        config = ClusterConfig(**{"slow_start": 0.0, **settings})
        self.core = ClusterCore("c", config, random.Random(seed).random, asks_roles=roles)
        self.update(*nodes)
        self.todo: list[Effect] = []
        self.take()

    def update(self, *nodes: Node | str) -> None:
        wanted = checked_nodes(nodes)
        old = self.core.entries
        made: dict[str, Made] = {}
        for node in wanted:
            if node.name not in old or not old[node.name].node.same_endpoint(node):
                self.places.setdefault(node.name, 2)
                made[node.name] = Made(object(), lambda name=node.name: self.places[name])
        self.core.update(wanted, made, self.now)

    def take(self) -> list[Effect]:
        new = list(self.core.effects)
        self.core.effects.clear()
        self.todo += [effect for effect in new if effect.do in (Do.PROBE, Do.ROLE)]
        return new

    def ask(self, role: str | None = None, key: Any = None) -> NodeRequest:
        request = NodeRequest(role, key, self.now)
        self.core.acquire(request, self.now)
        return request

    def entry(self, name: str) -> NodeEntry:
        return self.core.entries[name]

    def fail(self, name: str, times: int = 3) -> None:
        """Let leases on the node fail, each with its own error."""
        for number in range(times):
            self.core.failed(*self.new_lease_on(name), OSError(f"broken {number}"), 0.01, self.now)

    def lease_on(self, name: str) -> tuple[NodeEntry, int]:
        """The entry and the ticket of one lease on the node."""
        entry = self.entry(name)
        return entry, next(iter(entry.tickets))

    def new_lease_on(self, name: str) -> tuple[NodeEntry, int]:
        """Assign a new lease to this node, whatever node the balancer would choose."""
        entry = self.entry(name)
        self.others += 1
        entry.assign(-self.others)
        return entry, -self.others


def on(request: NodeRequest) -> str | None:
    return request.outcome.name if isinstance(request.outcome, NodeEntry) else None


def test_no_request_waits_while_a_usable_node_has_a_place() -> None:
    """Four requests fill two nodes of two places; the fifth waits and gets the first place that is free."""
    rig = Rig("a", "b")
    callers = [rig.ask() for _ in range(5)]
    assert sorted(map(str, map(on, callers))) == ["None", "a", "a", "b", "b"]
    rig.core.succeeded(*rig.lease_on("b"), 0.1, 1.0)
    assert on(callers[4]) == "b"
    rig.core.check()


def test_the_oldest_request_that_accepts_the_node_is_served_first() -> None:
    """Each role has its own queue; among the requests that accept a node the oldest is served."""
    rig = Rig(Node("p", role="primary"), Node("r", role="replica"), places=1)
    assert {on(rig.ask("primary")), on(rig.ask("replica"))} == {"p", "r"}
    first, second, third = rig.ask("replica"), rig.ask(), rig.ask("primary")
    rig.core.succeeded(*rig.lease_on("p"), 0.1, 0.0)
    assert (on(first), on(second), on(third)) == (None, "p", None)
    rig.core.succeeded(*rig.lease_on("r"), 0.1, 0.0)
    assert on(first) == "r"
    fourth, fifth, sixth = rig.ask(), rig.ask("replica"), rig.ask()
    rig.core.succeeded(*rig.lease_on("r"), 0.1, 0.0)
    rig.core.succeeded(*rig.lease_on("r"), 0.1, 0.0)
    assert (on(fourth), on(fifth), on(sixth)) == ("r", "r", None)
    rig.core.check()


def test_a_request_that_could_not_connect_keeps_its_position_and_is_served_elsewhere() -> None:
    """It is ahead of later requests."""
    rig = Rig("a", "b", places=1)
    callers = [rig.ask() for _ in range(2)]
    unlucky = next(request for request in callers if on(request) == "a")
    later = rig.ask()
    unlucky.tried = {rig.entry("a")}
    rig.core.failed(rig.entry("a"), unlucky.ticket, OSError("refused"), 0.0, 0.0)
    assert on(later) == "a"
    rig.core.acquire(unlucky, 0.0)
    latest = rig.ask()
    rig.core.succeeded(*rig.lease_on("b"), 0.1, 0.0)
    assert on(unlucky) == "b"
    assert latest.queued


def test_failures_in_a_row_eject_a_node_and_success_in_between_does_not() -> None:
    """Three by default; one failed connect that several callers receive counts as one."""
    rig = Rig("a", "b", "c")
    rig.fail("a", 2)
    rig.core.succeeded(*rig.new_lease_on("a"), 0.1, 0.0)
    rig.fail("a", 2)
    one = OSError("refused")
    for _ in range(5):
        rig.core.failed(*rig.new_lease_on("b"), one, 0.0, 0.0)
    assert [m.state for m in rig.core.entries.values()] == [NodeState.USABLE] * 3
    rig.fail("a", 1)
    assert rig.entry("a").state is NodeState.EJECTED
    assert Do.DROP in [effect.do for effect in rig.take()]
    assert {on(rig.ask()) for _ in range(4)} == {"b", "c"}


def test_an_ejection_lasts_longer_each_time_up_to_a_limit_and_the_count_is_reset() -> None:
    """5, 10, 15, ... 20 seconds here; after 20 good seconds it counts from the start again."""
    rig = Rig("a", "b", "c", eject_for=5.0, eject_max=20.0)
    lengths = []
    rig.fail("a")
    for _ in range(6):
        entry = rig.entry("a")
        lengths.append(entry.until - rig.now)
        rig.now = entry.until
        rig.core.tick(rig.now)
        assert entry.state is NodeState.PROBING
        rig.core.probed(entry, OSError("still down"), None, rig.now)
    assert lengths == [5, 10, 15, 20, 20, 20]
    rig.now = rig.entry("a").until
    rig.core.tick(rig.now)
    rig.core.probed(rig.entry("a"), None, None, rig.now)
    assert rig.entry("a").state is NodeState.USABLE
    rig.now += 21
    rig.core.succeeded(*rig.new_lease_on("a"), 0.1, rig.now)
    rig.fail("a")
    assert rig.entry("a").until - rig.now == 5


def test_never_more_than_a_share_of_the_nodes_is_ejected() -> None:
    """At most half of four; the others stay in use, nodes without failures first."""
    rig = Rig("a", "b", "c", "d")
    for name in "abc":
        rig.fail(name)
    states = [entry.state for entry in rig.core.entries.values()]
    assert states.count(NodeState.EJECTED) == 2
    assert rig.entry("c").state is NodeState.USABLE
    assert [on(rig.ask()) for _ in range(3)] == ["d", "d", "c"]
    single = Rig("only")
    single.fail("only", 50)
    assert single.entry("only").state is NodeState.USABLE


def test_without_a_usable_node_a_request_fails_at_once_with_each_nodes_last_error() -> None:
    """So do requests that wait when the last node is ejected."""
    rig = Rig("a", "b", places=1, max_ejected_share=1.0)
    rig.ask(), rig.ask()
    waiting = rig.ask()
    for name in "ab":
        rig.fail(name)
    assert isinstance(waiting.outcome, NoNodeAvailable)
    refused = rig.ask().outcome
    assert isinstance(refused, NoNodeAvailable)
    assert {name: str(error) for name, error in refused.errors.items()} == {"a": "broken 2", "b": "broken 2"}
    assert "a (ejected): OSError: broken 2; b (ejected): OSError: broken 2" in str(refused)


def test_with_wait_for_node_a_request_waits_for_a_node() -> None:
    """wait_for_node: a probe that succeeds serves the request; after wait_for_node it fails."""
    rig = Rig("a", max_ejected_share=1.0, wait_for_node=2.0, eject_for=1.0)
    rig.fail("a")
    lucky = rig.ask()
    assert lucky.queued
    rig.now = 1.0
    rig.core.tick(rig.now)
    rig.core.probed(rig.entry("a"), None, None, rig.now)
    assert on(lucky) == "a"
    rig.fail("a")
    rig.fail("a")
    unlucky = rig.ask()
    assert rig.core.due <= 3.0
    rig.now = 3.0
    rig.core.tick(rig.now)
    rig.core.probed(rig.entry("a"), OSError("no"), None, rig.now)
    assert isinstance(unlucky.outcome, NoNodeAvailable)


def test_an_added_node_is_probed_first_and_starts_slowly() -> None:
    """Its share rises with time: at a tenth of the slow start it gets about a tenth of its part."""
    rig = Rig("a", slow_start=10.0, places=10**6, balance="random")
    rig.update("a", "b")
    rig.places["b"] = 10**6
    assert [effect.entry.name for effect in rig.take() if effect.do is Do.PROBE and effect.entry] == ["b"]
    assert {on(rig.ask()) for _ in range(20)} == {"a"}
    rig.core.probed(rig.entry("b"), None, None, 0.0)

    def share(now: float) -> float:
        rig.now = now
        return [on(rig.ask()) for _ in range(2000)].count("b") / 2000

    assert 0.02 < share(1.0) < 0.08
    assert 0.2 < share(5.0) < 0.3
    assert 0.45 < share(10.0) < 0.55


def test_a_removed_node_drains_and_a_changed_one_keeps_its_leases() -> None:
    """Another weight is a change in place, another address is another node."""
    rig = Rig(Node("a", "x:1"), Node("b", "x:2"))
    a = rig.entry("a")
    _, ticket = rig.new_lease_on("a")
    rig.update(Node("a", "x:1", weight=7), Node("c", "x:3"))
    effects = [(effect.do, effect.entry.name) for effect in rig.take() if effect.entry]
    assert rig.entry("a") is a
    assert a.weight == 7
    assert effects == [(Do.PROBE, "c"), (Do.DRAIN, "b")]
    rig.update(Node("a", "x:9"), Node("c", "x:3"))
    assert rig.entry("a") is not a
    assert a.state is NodeState.DRAINING
    rig.core.succeeded(a, ticket, 1.0, 0.0)
    assert a.leases == 0


def test_priorities_spill_over_when_full_down_or_thinned_out() -> None:
    """The second group serves if the first is full, and a part of the requests if the first has lost nodes."""
    far = Node("far", priority=1)
    rig = Rig("a", "b", far, places=1)
    assert [{on(rig.ask()), on(rig.ask())}, on(rig.ask())] == [{"a", "b"}, "far"]
    thin = Rig("a", "b", "c", "d", far, places=10**6, balance="random")
    thin.fail("a"), thin.fail("b")
    chosen = [on(thin.ask()) for _ in range(4000)]
    assert 0.25 < chosen.count("far") / 4000 < 0.32  # 1 - (2/4) / 0.7


def test_the_own_zone_comes_first() -> None:
    """Within a priority; other zones serve when it is full."""
    rig = Rig(Node("here", zone="eu"), Node("there", zone="us"), places=2, zone="eu")
    assert [on(rig.ask()) for _ in range(4)] == ["here", "here", "there", "there"]


def test_prefer_replica_takes_a_replica_while_one_is_free() -> None:
    """Otherwise it takes the primary; a plain role does not."""
    rig = Rig(Node("p", role="primary"), Node("r", role="replica"), places=1)
    assert [on(rig.ask("prefer-replica")) for _ in range(2)] == ["r", "p"]
    assert rig.ask("replica").queued


def test_a_key_stays_with_its_node_while_that_is_free() -> None:
    """It also returns to that node; other keys are not moved."""
    rig = Rig("a", "b", "c", "d", places=1000)
    home = {key: on(rig.ask(key=key)) for key in range(40)}
    assert set(home.values()) == {"a", "b", "c", "d"}
    rig.fail("a")
    moved = {key: on(rig.ask(key=key)) for key in range(40)}
    assert {key for key in home if home[key] != moved[key]} == {key for key in home if home[key] == "a"}


def test_a_request_for_a_role_waits_for_the_lookup() -> None:
    """A request for the primary waits during the lookup, and fails if no node is the primary."""
    rig = Rig("a", "b", roles=True)
    request = rig.ask("primary")
    rig.take()
    assert request.queued
    assert {effect.entry.name for effect in rig.todo if effect.entry} == {"a", "b"}
    rig.core.role_found(rig.entry("a"), None, "replica", 0.0)
    rig.core.role_found(rig.entry("b"), None, "primary", 0.0)
    assert on(request) == "b"
    rig.todo.clear()
    rig.core.wrong_server(*rig.lease_on("b"), RuntimeError("25006"), 0.0, 1.0)
    rig.now = 1.0
    waiting = rig.ask("primary")
    rig.take()
    assert waiting.queued
    assert {effect.entry.name for effect in rig.todo if effect.entry} == {"a", "b"}
    rig.core.role_found(rig.entry("b"), None, "replica", 1.0)
    rig.core.role_found(rig.entry("a"), None, "primary", 1.0)
    assert on(waiting) == "a"
    rig.core.wrong_server(*rig.lease_on("a"), RuntimeError("25006"), 0.0, 2.0)
    lost = rig.ask("primary")
    for name in "ab":
        rig.core.role_found(rig.entry(name), None, "replica", 2.0)
    assert isinstance(lost.outcome, NoNodeAvailable)
    assert "a (usable, replica)" in str(lost.outcome)


def elect(rig: Rig, role: str, *, at: float, until: float, takes: float = 0.002) -> int:
    """Time goes by; each question for a role takes a while, and from ``at`` on "a" has ``role``. The questions."""
    asked = 0
    answers: list[tuple[float, NodeEntry]] = []
    while True:
        rig.take()
        for effect in rig.todo:
            if effect.do is Do.ROLE and effect.entry is not None:
                asked += 1
                answers.append((rig.now + takes, effect.entry))
        rig.todo.clear()
        answers.sort(key=lambda one: one[0])
        then = min(rig.core.due, answers[0][0] if answers else NEVER)
        if then >= until:
            return asked
        rig.now = max(rig.now, then)
        if answers and answers[0][0] <= rig.now:
            entry = answers.pop(0)[1]
            found = role if entry.name == "a" and rig.now >= at else "replica"
            rig.core.role_found(entry, None, found, rig.now)
        else:
            rig.core.tick(rig.now)


@pytest.mark.parametrize("at", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_request_is_served_soon_after_a_node_gets_the_wanted_role(at: float, seed: int) -> None:
    """It does not wait for the next regular lookup, ``role_interval`` later."""
    rig = Rig("a", "b", roles=True, seed=seed, wait_for_node=60.0, role_interval=30.0)
    for name in "ab":
        rig.core.role_found(rig.entry(name), None, "replica", 0.0)
    waiting = rig.ask("primary")
    assert waiting.queued
    asked = elect(rig, "primary", at=at, until=at + 0.2)
    assert on(waiting) == "a"
    assert asked <= 2 * (5 + at / 0.05)
    before = rig.now
    assert elect(rig, "primary", at=0.0, until=before + 25.0) == 0  # the search has ended


def test_without_wait_for_node_a_request_fails_once_all_nodes_have_answered() -> None:
    """Other requests do not delay it; the next request starts a new lookup."""
    rig = Rig("a", "b", roles=True, role_interval=30.0)
    for name in "ab":
        rig.core.role_found(rig.entry(name), None, "replica", 0.0)
    first = rig.ask("primary")
    rig.take()
    rig.now = 1.0
    rig.core.role_found(rig.entry("a"), None, "replica", rig.now)
    assert first.queued
    second = rig.ask("primary")
    rig.core.role_found(rig.entry("b"), None, "replica", rig.now)
    assert isinstance(first.outcome, NoNodeAvailable)
    assert isinstance(second.outcome, NoNodeAvailable)
    rig.todo.clear()
    rig.now = 2.0
    third = rig.ask("primary")
    rig.take()
    assert {effect.entry.name for effect in rig.todo if effect.entry} == {"a", "b"}
    rig.core.role_found(rig.entry("a"), None, "primary", rig.now)
    assert on(third) == "a"


def test_the_balancer_chooses_only_among_candidates() -> None:
    """Smooth weighting of a cluster: exact shares, as in the policy's own test."""
    rig = Rig(
        *(Node(f"n{i}", weight=w) for i, w in enumerate((1, 1, 2, 2, 5, 5))), places=1000, balance=SmoothWeighted()
    )
    got = [on(rig.ask()) for _ in range(160)]
    assert [got.count(f"n{i}") for i in range(6)] == [10, 10, 20, 20, 50, 50]


@pytest.mark.parametrize("seed", range(60))
def test_in_random_schedules_the_invariants_hold(seed: int) -> None:
    """Requests of all kinds arrive, time out and leave; nodes fail, come back, change and are added and removed."""
    chance = random.Random(seed)
    names = ["a", "b", "c", "d", "e"]
    strategies = ["p2c", "least_in_use", "round_robin", "random", "weighted", "smooth", "dynamic"]
    rig = Rig(*names[:4], places=chance.randint(1, 3), roles=chance.random() < 0.5, seed=seed, eject_for=0.5,
              balance=chance.choice(strategies), wait_for_node=chance.choice([0.0, 1.0]),
              max_ejected_share=chance.choice([0.25, 0.5, 1.0]), slow_start=chance.choice([0.0, 2.0]))  # fmt: skip
    core = rig.core
    waiting: list[NodeRequest] = []
    held: list[tuple[NodeRequest, NodeEntry]] = []
    ended: set[int] = set()

    def collect() -> None:
        """Callers who have their outcome go on with it."""
        for request in [one for one in waiting if one.outcome is not None]:
            waiting.remove(request)
            assert id(request) not in ended
            outcome = request.outcome
            if isinstance(outcome, NodeEntry):
                assert request.accepts(outcome) or rig.core.asks_roles
                if chance.random() < 0.2:  # connecting fails: elsewhere
                    request.outcome = None
                    request.tried = {*request.tried, outcome}
                    core.failed(outcome, request.ticket, OSError("refused"), 0.0, rig.now)
                    core.acquire(request, rig.now)
                    waiting.append(request)
                else:
                    request.outcome = None
                    held.append((request, outcome))
            else:
                assert isinstance(outcome, (NoNodeAvailable, AcquireTimeout))

    for _ in range(400):
        rig.now += chance.random() * 0.1
        what = chance.random()
        if what < 0.4:
            role = chance.choice([None, None, "primary", "replica", "prefer-replica"])
            key = chance.choice([None, chance.randint(0, 5)])
            waiting.append(rig.ask(role, key))
        elif what < 0.7 and held:
            request, entry = held.pop(chance.randrange(len(held)))
            error = OSError("broke")
            chance.choice([
                lambda m=entry, t=request.ticket: core.succeeded(m, t, 0.1, rig.now),
                lambda m=entry, t=request.ticket: core.succeeded(m, t, 0.1, rig.now),
                lambda m=entry, t=request.ticket, e=error: core.failed(m, t, e, 0.1, rig.now),
                lambda m=entry, t=request.ticket: core.give_up(m, t, rig.now),
                lambda m=entry, t=request.ticket, e=error: core.wrong_server(m, t, e, 0.1, rig.now),
            ])()  # fmt: skip
        elif what < 0.75 and waiting:
            core.abandon(waiting.pop(chance.randrange(len(waiting))), rig.now, timed_out=True)
        elif what < 0.8:
            rig.update(*(Node(n, role=None) for n in chance.sample(names, chance.randint(1, 5))))
        elif what < 0.84:
            rig.places[chance.choice(names)] = chance.randint(1, 4)
            core.requests.settle(rig.now)
        elif rig.todo:
            effect = rig.todo.pop(chance.randrange(len(rig.todo)))
            assert effect.entry is not None
            found = None if chance.random() < 0.6 else OSError("down")
            done = core.probed if effect.do is Do.PROBE else core.role_found
            done(effect.entry, found, chance.choice(["primary", "replica"]), rig.now)
        if rig.now >= core.due:
            core.tick(rig.now)
        rig.take()
        collect()
        core.check()
        on_nodes = sum(entry.leases for entry in (*core.entries.values(), *core.draining))
        assert on_nodes == len(held) + sum(isinstance(one.outcome, NodeEntry) for one in waiting)
    core.close(rig.now)
    assert all(isinstance(request.outcome, (PoolClosed, NodeEntry, NoNodeAvailable)) for request in waiting)
