"""An exception between any two bytecodes of a cluster's lease, exit, release and close costs at most the connection.

Never a place on a node, never anybody else's connection, and nobody is left waiting. As in
``test_interrupt_everywhere``; what a node's own pool does when interrupted is tested there, and here once more from
above, in two scenes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest

import poolkit.cluster
import poolkit.policies
from poolkit import Pool, PoolClosed, PoolConfig
from poolkit.cluster import Cluster, Node
from poolkit.cluster._core import NodeEntry, NodeRequest
from poolkit.testing import FakeConnection, FakeConnector
from tests.faults.inline import InlineRuntime
from tests.faults.interrupts import interrupted_at, opcode_at, place_of, spared

SIZE = 2
NODES = ("a", "b")
SOON = 3.0
CLUSTER = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (poolkit.cluster, poolkit.policies))
ENGINE = (os.path.dirname(poolkit.__file__) + os.sep,)

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("no_collector"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # leases that interrupted callers have dropped
]


class Stage:
    """A cluster of two nodes with two slots each, before the scene. Another caller holds one connection throughout."""

    def __init__(self, *, idle: int = 0, **settings: Any) -> None:
        self.runtime = InlineRuntime()
        self.connectors: dict[str, FakeConnector] = {}
        settings = {"slow_start": 0.0, "balance": "least_in_use", "eject_for": 0.1, "eject_max": 0.1, **settings}
        self.cluster: Cluster[FakeConnection] = Cluster(
            self.make, NODES, runtime=self.runtime, clock=self.runtime.clock, random=lambda: 0.0, **settings
        )
        self.other = self.cluster.acquire()
        rest = [self.cluster.lease() for _ in range(idle)]
        for lease in rest:
            lease.close()
        self.runtime.run_jobs()

    def make(self, node: Node) -> Pool[FakeConnection]:
        self.connectors[node.name] = FakeConnector(resets=False)
        return Pool(
            self.connectors[node.name], PoolConfig(max_size=SIZE), name=node.name, runtime=self.runtime,
            clock=self.runtime.clock,
        )  # fmt: skip

    def queue(self, role: str | None = None) -> NodeRequest:
        """Add another request that must wait."""
        cluster = self.cluster
        caller = NodeRequest(role, None, self.runtime.clock.now)
        caller.parker = self.runtime.parker()
        cluster._gate.step(cluster._core.acquire, caller, self.runtime.clock.now)
        assert caller.queued
        return caller

    def leave(self, caller: NodeRequest) -> None:
        """Check that the waiting request was served and woken; then it leaves."""
        self.runtime.until(lambda: caller.outcome is not None, self.runtime.clock.now + SOON)
        assert isinstance(caller.outcome, NodeEntry), f"the one who waited got {caller.outcome!r}"
        assert caller.parker is not None
        assert caller.parker.woken, "the request was served but not woken"  # type: ignore[attr-defined]
        self.cluster._gate.step(self.cluster._core.abandon, caller, self.runtime.clock.now)

    def all_is_well(self, *, missing: int = 0) -> None:
        """Check that every slot of every node can be used, no other connection was changed, and the invariants hold."""
        whole = SIZE * len(NODES)
        assert not self.other.closed, "somebody else's connection was closed"
        leases = [self.cluster.lease(timeout=SOON) for _ in range(whole - 1 - missing)]
        got = [self.other, *(lease.connection for lease in leases)]
        assert len({id(connection) for connection in got}) == whole - missing, "in two hands"
        assert not any(connection.closed for connection in got)
        for lease in leases:
            lease.close()
        self.runtime.run_jobs()
        self.cluster.check_books()
        assert self.cluster.stats().leases == 1 + missing
        if not missing:
            self.cluster.release(self.other)
            self.cluster.close()
            self.runtime.run_jobs()
            assert not any(node.leases for node in self.cluster.stats().nodes)


def in_the_tail_of_acquire(place: tuple[CodeType, int]) -> bool:
    """Return whether only the return of acquire() is left: as if interrupted in the caller, which has it then."""
    return place[0].co_name == "acquire" and opcode_at(place).startswith(("LOAD_FAST", "LOAD_ATTR", "RETURN_VALUE"))


def everywhere(
    make: Callable[[], Stage],
    scene: Callable[[Stage], Callable[[], object]],
    *,
    least: int,
    roots: tuple[str, ...] = CLUSTER,
) -> None:
    """Interrupt ``scene`` at its 1st, 2nd, ... bytecode until it runs to its end."""
    at = tails = 0
    while True:
        at += 1
        stage = make()
        act = scene(stage)
        waiting = stage.cluster._core.requests.in_order()
        place = interrupted_at(at, act, roots=roots)
        del act
        try:
            if place is None:
                break
            missing = 0
            if in_the_tail_of_acquire(place) and len(stage.cluster._leases) == 2:
                missing, tails = 1, tails + 1
            for caller in waiting:
                stage.leave(caller)
            stage.all_is_well(missing=missing)
        except BaseException as error:
            raise AssertionError(f"interrupted at bytecode {at}, {place_of(place)}: {error!r}") from error
    assert at > least, f"only {at} bytecodes: nothing was tested"
    assert tails <= 4


WORLDS: dict[str, dict[str, Any]] = {
    "idle": {"idle": 3},
    "connects": {},
    "by latency": {"idle": 3, "balance": "p2c"},
    "told to listeners, roles known": {"role_of": lambda connection: "primary", "listeners": [lambda event: None]},
}


@pytest.mark.parametrize("world", ["connects", "by latency"])
def test_acquire(world: str) -> None:
    """A connection that no caller has taken serves the next one."""
    everywhere(lambda: Stage(**WORLDS[world]), lambda stage: lambda: stage.cluster.acquire(timeout=SOON), least=150)


@pytest.mark.parametrize("world", ["idle", "told to listeners, roles known"])
def test_lease_and_its_exit(world: str) -> None:
    """A whole ``with`` block."""

    def scene(stage: Stage) -> Callable[[], object]:
        def act() -> None:
            with stage.cluster.lease(timeout=SOON):
                pass

        return act

    everywhere(lambda: Stage(**WORLDS[world]), scene, least=300)


def test_lease_and_its_exit_with_the_nodes_pool() -> None:
    """The pool's code is interrupted too."""

    def scene(stage: Stage) -> Callable[[], object]:
        def act() -> None:
            with stage.cluster.lease(timeout=SOON):
                pass

        return act

    everywhere(lambda: Stage(idle=3), scene, least=500, roots=ENGINE)


ENDS: dict[str, dict[str, Any]] = {
    "sound": {},
    "discarded": {"discard": True},
    "broken, ejects the node": {"error": ConnectionResetError("gone")},
    "the application's error": {"error": ValueError("not the connection's")},
}


@pytest.mark.parametrize(("end", "waiting"), [*((end, 2) for end in ENDS), ("sound", 0)])
def test_lease_close(end: str, waiting: int) -> None:
    """Waiting callers get the slots; a node that it ejects comes back."""

    def scene(stage: Stage) -> Callable[[], object]:
        leases = [stage.cluster.lease() for _ in range(3)]
        lease, rest = leases[0], leases[1:]
        del leases
        for _ in range(waiting):
            stage.queue()

        def act() -> None:
            try:
                lease.close(**ENDS[end])
            finally:
                with spared():
                    lease.close()  # as the ``finally`` of a caller would
                    for one in rest:
                        one.close()

        return act

    everywhere(lambda: Stage(eject_after=1), scene, least=90)


def test_release() -> None:
    """Releases what acquire() returned; the pool's code is interrupted too."""

    def scene(stage: Stage) -> Callable[[], object]:
        cluster = stage.cluster
        connection = cluster.acquire()
        rest = [cluster.lease() for _ in range(2)]
        stage.queue()

        def act() -> None:
            try:
                cluster.release(connection)
            finally:
                with spared():
                    if id(connection) in cluster._leases:  # had not begun: the caller still has it
                        cluster.release(connection)
                    for one in rest:
                        one.close()

        return act

    everywhere(Stage, scene, least=200, roots=ENGINE)


def test_a_lease_that_is_waited_for() -> None:
    """The cluster is full, and others return connections."""

    def scene(stage: Stage) -> Callable[[], object]:
        for lease in [stage.cluster.lease() for _ in range(3)]:
            stage.runtime.spawn(lease.close)
        return lambda: stage.cluster.lease(timeout=SOON).close()

    everywhere(Stage, scene, least=300)


def test_a_lease_elsewhere_after_a_node_has_refused() -> None:
    """The first node is down and is ejected; the second one serves."""

    def scene(stage: Stage) -> Callable[[], object]:
        stage.connectors["b"].fail("connect", lambda: ConnectionRefusedError("down"))

        def act() -> None:
            try:
                stage.cluster.lease(timeout=SOON).close()
            finally:
                with spared():
                    stage.connectors["b"].fail("connect", None)

        return act

    everywhere(lambda: Stage(eject_after=1), scene, least=400)


def test_close_cut_short_can_be_called_again() -> None:
    """Every waiting caller gets an error, and every pool is closed."""
    at, place = 0, None
    while at == 0 or place is not None:
        at += 1
        stage = Stage()
        leases = [stage.cluster.lease() for _ in range(3)]
        waiting = [stage.queue() for _ in range(2)]
        place = interrupted_at(at, lambda: stage.cluster.close(), roots=CLUSTER)  # noqa: B023
        try:
            stage.cluster.close()
            assert all(isinstance(caller.outcome, PoolClosed) for caller in waiting)
            assert all(caller.parker.woken for caller in waiting)  # type: ignore[union-attr]
            for lease in leases:
                lease.close()
            stage.cluster.release(stage.other)
            stage.runtime.run_jobs()
            assert all(stage.cluster.pool(node).closed for node in NODES)
            assert stage.cluster.stats().leases == 0
            stage.cluster.check_books()
        except BaseException as error:
            raise AssertionError(f"interrupted at bytecode {at}, {place_of(place)}: {error!r}") from error
    assert at > 100
