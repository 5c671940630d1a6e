"""Clusters on threads, asyncio and trio, over connectors that fail on command."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, BackoffConfig, ConfigError, NotLeased, PoolClosed, PoolConfig, UsageError, Verdict
from poolkit.cluster import (
    AsyncCluster,
    Cluster,
    ClusterConfig,
    ClusterEvent,
    ClusterEventKind,
    Discovery,
    Found,
    Node,
    NoNodeAvailable,
)
from poolkit.testing import AsyncFakeConnector, FakeConnector
from tests.support.waiting import PATIENCE, leak_warning, until_async


class Rig:
    """A cluster of fake nodes and the words of a scenario, on any of the three."""

    def __init__(self, flavour: str, *nodes: Node | str, pool: dict[str, Any] | None = None, **settings: Any) -> None:
        self.threads = flavour == "threads"
        self.connectors: dict[str, Any] = {}
        self.events: list[ClusterEvent] = []
        self.in_caller: bool = settings.pop("in_caller", False)
        kind: Any = Cluster if self.threads else AsyncCluster
        settings = {"slow_start": 0.0, "eject_for": 0.05, "eject_max": 0.2, **settings}
        source = settings.pop("discovery", nodes)
        self.cluster = kind(
            self.make, source, pool=PoolConfig(**{"max_size": 2, **(pool or {})}), listeners=[self.events.append],
            name="fakes", **settings,
        )  # fmt: skip

    def make(self, node: Node) -> Any:
        fake = (FakeConnector if self.threads else AsyncFakeConnector)(in_caller=self.in_caller)
        self.connectors[node.name] = fake
        return fake

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.threads:
            return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), abandon_on_cancel=False)
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def lease(self, timeout: Any = PATIENCE, **kwargs: Any) -> Any:
        return await self.call(self.cluster.lease, timeout, **kwargs)

    async def give(self, lease: Any, **kwargs: Any) -> None:
        await self.call(lease.close, **kwargs)

    async def until(self, condition: Callable[[], object], what: str = "it happens") -> None:
        await until_async(condition, what, self.cluster.explain)

    def down(self, name: str) -> None:
        """The node refuses connections; those that stand are dead."""
        self.connectors[name].fail("connect", lambda: ConnectionRefusedError(f"{name} refuses"))
        self.connectors[name].kill_all()

    def up(self, name: str) -> None:
        self.connectors[name].fail("connect", None)

    def states(self) -> dict[str, str]:
        return {node.name: node.state for node in self.cluster.stats().nodes}

    def kinds(self) -> list[ClusterEventKind]:
        return [event.kind for event in self.events]

    async def __aenter__(self) -> Rig:
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for fake in self.connectors.values():
            fake.free_all()
        if error is None:
            self.cluster.check_books()
        await self.call(self.cluster.close)
        if error is None:
            assert not any(node.leases for node in self.cluster.stats().nodes)


pytestmark = pytest.mark.anyio


async def test_leases_spread_over_all_nodes_up_to_their_limits(flavour: str) -> None:
    """Three nodes of two: six leases, two on each; the seventh waits for whichever comes back first."""
    async with Rig(flavour, "a", "b", "c", balance="least_in_use") as rig:
        leases = [await rig.lease() for _ in range(6)]
        assert Counter(lease.node.name for lease in leases) == {"a": 2, "b": 2, "c": 2}
        with pytest.raises(
            AcquireTimeout, match=r"fakes: no free place on a node within 0\.\d+ s \(0 ahead of you; a usable 2/2"
        ):
            await rig.lease(0.02)
        got: list[Any] = []

        async def seventh() -> None:
            got.append(await rig.lease())

        async with anyio.create_task_group() as group:
            group.start_soon(seventh)
            await rig.until(lambda: rig.cluster.stats().waiting == 1, "the caller waits")
            await rig.give(leases[3])
        assert got[0].node == leases[3].node
        for lease in [*leases, *got]:
            await rig.give(lease)


async def test_a_node_that_refuses_connections_fails_no_lease(flavour: str) -> None:
    """After a failed connect the same call uses another node; three failures eject the node, and it comes back."""
    async with Rig(
        flavour, "a", "b", balance="round_robin", pool={"backoff": BackoffConfig(base=0.001, cap=0.01)}
    ) as rig:
        rig.down("a")
        for _ in range(10):
            lease = await rig.lease()
            assert lease.node.name == "b"
            await rig.give(lease)
            await anyio.sleep(0.005)
        await rig.until(lambda: rig.states()["a"] in ("ejected", "probing"), "a is ejected")
        rig.up("a")
        await rig.until(lambda: rig.states()["a"] == "usable", "a is back")
        found = set()
        for _ in range(4):
            lease = await rig.lease()
            found.add(lease.node.name)
            await rig.give(lease)
        assert found == {"a", "b"}
        kinds = rig.kinds()
        assert kinds.index(ClusterEventKind.NODE_EJECTED) < kinds.index(ClusterEventKind.NODE_USABLE)


async def test_broken_leases_eject_their_node_and_close_its_idle_connections(flavour: str) -> None:
    """Three open leases break: the node is ejected at once and has no idle connections left."""
    async with Rig(
        flavour, "a", "b", pool={"max_size": 5}, balance="least_in_use", eject_for=9.0, eject_max=9.0
    ) as rig:
        leases = [await rig.lease() for _ in range(8)]
        on_a = [lease for lease in leases if lease.node.name == "a"]
        rig.down("a")
        await rig.give(on_a.pop())  # one more idle, which nobody has seen to be dead
        for lease in on_a:
            await rig.give(lease, error=ConnectionResetError("reset"))
        assert rig.states()["a"] == "ejected"
        await rig.until(lambda: not rig.cluster.pool("a").stats().size, "its connections are closed")
        for lease in leases:
            await rig.give(lease)


async def test_application_errors_do_not_count_against_a_node(flavour: str) -> None:
    """After a hundred errors the node is still usable."""
    async with Rig(flavour, "a", "b") as rig:
        for _ in range(100 if flavour != "threads" else 20):
            lease = await rig.lease()
            await rig.give(lease, error=ValueError("the application's"))
        assert set(rig.states().values()) == {"usable"}


async def test_waiters_of_a_dying_node_are_served_by_another(flavour: str) -> None:
    """They wait in its pool for a connect that hangs; after its ejection another node serves them in time."""
    async with Rig(flavour, "a", "b", "c", balance="round_robin", max_ejected_share=0.7, eject_for=9.0,
                   eject_max=9.0, pool={"max_size": 4}) as rig:  # fmt: skip
        warm = [await rig.lease() for _ in range(3)]
        gate = rig.connectors["a"].hold("connect")
        rig.cluster.pool("a").clear()
        got: list[Any] = []

        async def ask() -> None:
            got.append(await rig.lease())

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            await rig.until(lambda: len(got) == 2 and rig.cluster.pool("a").stats().waiting == 1, "one waits for a")
            for number in range(3):
                rig.cluster._gate.post(_fail_one, rig.cluster, OSError(f"broken {number}"))
        assert {lease.node.name for lease in got} <= {"b", "c"}
        gate.set()
        for lease in [*warm, *got]:
            await rig.give(lease)


def _fail_one(cluster: Any, error: OSError) -> None:
    entry = cluster._core.entries["a"]
    entry.assign(-1)
    cluster._core.failed(entry, -1, error, 0.0, cluster._clock())


@pytest.mark.parametrize("in_caller", [False, True])
async def test_a_lease_dropped_after_another_node_refused_is_reclaimed_at_once(flavour: str, in_caller: bool) -> None:
    """The refusal is kept as the node's last error, but its traceback does not keep the lease alive."""
    async with Rig(flavour, "a", "b", balance="round_robin", in_caller=in_caller) as rig:
        rig.down("a")
        gc.collect()
        gc.disable()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                lease = await rig.lease()
                assert lease.node.name == "b"
                del lease
                await rig.until(lambda: rig.cluster.stats().leases == 0, "the place is free again")
        finally:
            gc.enable()


async def test_when_every_node_refuses_the_error_names_them_all(flavour: str) -> None:
    """It is raised at once, not after the timeout."""
    async with Rig(flavour, "a", "b") as rig:
        rig.down("a")
        rig.down("b")
        with pytest.raises(NoNodeAvailable) as caught:
            await rig.lease()
        assert set(caught.value.errors) == {"a", "b"}
        assert all(isinstance(error, ConnectionRefusedError) for error in caught.value.errors.values())
        assert "a (usable): ConnectionRefusedError: a refuses" in str(caught.value)


async def test_one_deadline_covers_queue_pool_and_connect(flavour: str) -> None:
    """A connect hangs on the only node: the caller's timeout ends the wait, and its place is free again."""
    async with Rig(flavour, "a", pool={"max_size": 1}) as rig:
        gate = rig.connectors["a"].hold("connect")
        with pytest.raises(AcquireTimeout):
            await rig.lease(0.05)
        assert rig.cluster.stats().leases == 0
        gate.set()
        await rig.give(await rig.lease())


async def test_a_cancelled_caller_leaves_nothing_behind(flavour: str) -> None:
    """In the queue or during the connect: its place goes to the next caller."""
    if flavour == "threads":
        pytest.skip("threads are not cancelled")
    async with Rig(flavour, "a", pool={"max_size": 1}) as rig:
        held = await rig.lease()
        with anyio.move_on_after(0.01):
            await rig.lease()
        assert rig.cluster.stats().waiting == 0
        await rig.give(held, discard=True)
        gate = rig.connectors["a"].hold("connect")
        with anyio.move_on_after(0.01):
            await rig.lease()
        assert rig.cluster.stats().leases == 0
        gate.set()
        await rig.give(await rig.lease())


async def test_a_dropped_lease_frees_its_place_for_a_waiting_caller(flavour: str) -> None:
    """The node's pool reports the leak."""
    async with Rig(flavour, "a", pool={"max_size": 1}) as rig:
        lease = await rig.lease()
        got: list[Any] = []

        async def wait() -> None:
            got.append(await rig.lease())

        with leak_warning("fakes/a: a lease was dropped"):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await rig.until(lambda: rig.cluster.stats().waiting == 1, "the caller waits")
                del lease
                gc.collect()
        await rig.give(got.pop())


async def test_adding_and_removing_nodes_under_load_fails_no_lease(flavour: str) -> None:
    """Added nodes are warmed up first, removed nodes are drained."""
    async with Rig(flavour, "a", "b", pool={"max_size": 3}) as rig:
        stop, served = [False], Counter[str]()

        async def work() -> None:
            while not stop[0]:
                lease = await rig.lease()
                served[lease.node.name] += 1
                await anyio.sleep(0.001)
                await rig.give(lease)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(work)
            await rig.until(lambda: served["a"] and served["b"], "both serve")
            rig.cluster.update(["b", "c"])
            await rig.until(lambda: served["c"], "c serves")
            await rig.until(lambda: "a" not in rig.states(), "a is gone")
            stop[0] = True
        assert rig.connectors["a"].live == 0
        assert rig.connectors["a"].calls["abort"] == 0
        assert [e.node for e in rig.events if e.kind is ClusterEventKind.NODE_REMOVED] == ["a"]


async def test_an_added_node_opens_its_connections_one_after_another(flavour: str) -> None:
    """warm_up=4: four connects before it gets requests, never two at once."""
    async with Rig(flavour, "a", warm_up=4, pool={"max_size": 5}) as rig:
        await rig.give(await rig.lease())
        rig.cluster.update(["a", "b"])
        await rig.until(lambda: rig.states()["b"] == "usable", "b is usable")
        assert (rig.connectors["b"].calls["connect"], rig.connectors["b"].max_dialling) == (4, 1)


async def test_close_fails_waiting_callers_and_closes_every_pool(flavour: str) -> None:
    """An open lease is closed when it is returned."""
    async with Rig(flavour, "a", pool={"max_size": 1}) as rig:
        lease = await rig.lease()
        outcome: list[BaseException] = []

        async def wait() -> None:
            try:
                await rig.lease()
            except PoolClosed as error:
                outcome.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await rig.until(lambda: rig.cluster.stats().waiting == 1, "the caller waits")
            await rig.call(rig.cluster.close)
        assert "closed while this caller waited" in str(outcome[0])
        await rig.give(lease)
        await rig.until(lambda: rig.connectors["a"].live == 0, "it is closed")
        with pytest.raises(PoolClosed):
            await rig.lease()


async def test_drain_lets_leases_end(flavour: str) -> None:
    """It returns True if no lease was aborted."""
    async with Rig(flavour, "a", "b") as rig:
        lease = await rig.lease()

        async def later() -> None:
            await anyio.sleep(0.02)
            await rig.give(lease)

        async with anyio.create_task_group() as group:
            group.start_soon(later)
            assert await rig.call(rig.cluster.drain, PATIENCE) is True


async def test_acquire_and_release_do_what_lease_does(flavour: str) -> None:
    """A connection of another pool is refused."""
    async with Rig(flavour, "a") as rig:
        connection = await rig.call(rig.cluster.acquire, PATIENCE, role=None)
        assert rig.cluster.stats().leases == 1
        await rig.call(rig.cluster.release, connection)
        with pytest.raises(NotLeased):
            await rig.call(rig.cluster.release, connection)


async def test_roles_are_looked_up_and_followed_through_a_failover(flavour: str) -> None:
    """An error that retires a connection starts a new lookup with role_of, and callers follow the primary."""
    roles = {"a": "primary", "b": "replica"}
    owner: dict[int, str] = {}

    def role_of(connection: Any) -> str:
        name = next(n for n, fake in rig.connectors.items() if connection in fake.connections)
        owner[id(connection)] = name
        return roles[name]

    async with Rig(flavour, "a", "b", role_of=role_of, role_interval=30.0) as rig:
        lease = await rig.lease(role="primary")
        assert lease.node.name == "a"
        roles.update(a="replica", b="primary")
        error = RuntimeError("25006")
        error.verdict = Verdict.RETIRE  # type: ignore[attr-defined]
        await rig.give(lease, error=error)
        lease = await rig.lease(role="primary")
        assert lease.node.name == "b"
        await rig.give(lease)
        changed = [(e.node, e.detail) for e in rig.events if e.kind is ClusterEventKind.ROLE_CHANGED]
        assert any(node == "b" and detail.endswith("to primary") for node, detail in changed)


class Scripted(Discovery):
    """A discovery that returns what a test puts in."""

    interval = 0.005

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.closed = threading.Event()

    def find(self, last: Found | None) -> Found:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer if answer is None or isinstance(answer, list) else Found(answer, again=0.005)

    def close(self) -> None:
        self.closed.set()


class ScriptedInTasks(Scripted):
    """The same, as a coroutine function."""

    async def find(self, last: Found | None) -> Found:  # type: ignore[override]
        return super().find(last)


async def test_discovery_changes_the_nodes_and_its_failures_change_nothing(flavour: str) -> None:
    """An invalid answer is logged and passed to listeners, and the nodes are unchanged."""
    one, two = (Node("a"),), (Node("a"), Node("b"))
    source = Scripted(one, ConfigError("broken"), (Node("a"), Node("a")), two)
    async with Rig(flavour, discovery=source) as rig:
        await rig.give(await rig.lease())
        await rig.until(lambda: rig.states().get("b") == "usable", "b is there")
        failures = [str(e.error) for e in rig.events if e.kind is ClusterEventKind.DISCOVERY_FAILED]
        assert failures == ["broken", "Scripted: two nodes are called 'a'; names must be unique"]
        assert rig.kinds().count(ClusterEventKind.NODE_ADDED) == 2
    assert source.closed.is_set()


async def test_a_discovery_whose_first_call_fails_raises_its_error(flavour: str) -> None:
    """There are no previous nodes to keep."""
    with pytest.raises(ConfigError, match="broken"):
        async with Rig(flavour, discovery=Scripted(ConfigError("broken"))) as rig:
            await rig.lease()


@pytest.mark.parametrize("kind", [Scripted, ScriptedInTasks])
async def test_an_answer_that_is_not_found_is_reported_and_asked_again(flavour: str, kind: type[Scripted]) -> None:
    if flavour == "threads" and kind is ScriptedInTasks:
        pytest.skip("threads call no coroutine functions")
    one, two = (Node("a"),), (Node("a"), Node("b"))
    source = kind(one, None, ["a", "c"], two)
    async with Rig(flavour, discovery=source) as rig:
        await rig.give(await rig.lease())
        await rig.until(lambda: rig.states().get("b") == "usable", "b is there")
        failures = [str(e.error) for e in rig.events if e.kind is ClusterEventKind.DISCOVERY_FAILED]
        right = "must be a Found (the last one, if nothing has changed)"
        assert failures == [
            f"{kind.__name__}.find() returned None: {right}", f"{kind.__name__}.find() returned ['a', 'c']: {right}",
        ]  # fmt: skip


@pytest.mark.parametrize("kind", [Scripted, ScriptedInTasks])
async def test_a_first_answer_that_is_not_found_is_raised(flavour: str, kind: type[Scripted]) -> None:
    if flavour == "threads" and kind is ScriptedInTasks:
        pytest.skip("threads call no coroutine functions")
    with pytest.raises(UsageError, match=rf"{kind.__name__}\.find\(\) returned None: must be a Found"):
        async with Rig(flavour, discovery=kind(None)) as rig:
            await rig.lease()


async def test_an_exit_in_the_thread_of_a_discovery_does_not_end_it(flavour: str) -> None:
    source = Scripted((Node("a"),), SystemExit(1), (Node("a"), Node("b")))
    async with Rig(flavour, discovery=source) as rig:
        await rig.give(await rig.lease())
        await rig.until(lambda: rig.states().get("b") == "usable", "b is there")
        assert ClusterEventKind.DISCOVERY_FAILED in rig.kinds()


@pytest.mark.parametrize("again", [float("nan"), -1, "1", True])
def test_found_refuses_what_is_no_time(again: Any) -> None:
    with pytest.raises(ConfigError, match=r"again=.*: must be a time in seconds"):
        Found((Node("a"),), again=again)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda kind: kind(lambda n: None, []), "the list of nodes is empty"),
        (lambda kind: kind(lambda n: None, ["a", "a"]), "two nodes are called 'a'"),
        (lambda kind: kind(lambda n: None, "a"), "must be a list of nodes"),
        (lambda kind: kind(lambda n: None, [7]), "7: must be a Node"),
        (lambda kind: kind(lambda n: None, ["a"]), r"must be a connector or have lease\(timeout\)"),
        (lambda kind: kind(None, ["a"]), "make=None"),
        (lambda kind: kind(lambda n: None, ["a"], balance="p2d"), "did you mean 'p2c'"),
        (lambda kind: kind(lambda n: None, ["a"], eject_form=1), "did you mean 'eject_for'"),
        (lambda kind: Node("a", weight=0), "weight=0: must be a number above 0"),
        (lambda kind: Node("a", weight=-1.5), "weight=-1.5"),
        (lambda kind: Node("a", priority=-1), "priority=-1"),
        (lambda kind: Node(""), "name=''"),
        (lambda kind: ClusterConfig(max_ejected_share=1.5), "not below 0 and at most 1"),
        (lambda kind: ClusterConfig(eject_for=0), "eject_for=0: must be a number above 0"),
        (lambda kind: ClusterConfig(eject_after=2.5), "a whole number not below 1, or None"),
    ],
)
async def test_an_invalid_value_raises_a_config_error_that_names_it(flavour: str, build: Any, match: str) -> None:
    """The error is a ConfigError."""
    with pytest.raises(ConfigError, match=match):
        build(Cluster if flavour == "threads" else AsyncCluster)


def test_an_asynchronous_cluster_may_be_updated_before_there_is_an_event_loop() -> None:
    """The new node is probed at the first use; a second event loop uses the same nodes."""

    async def use() -> set[str]:
        found = set()
        for _ in range(100):
            lease = await cluster.lease(PATIENCE)
            found.add(lease.node.name)
            await lease.close()
            await asyncio.sleep(0.001)
            if len(found) == 2:
                break
        return found

    cluster = AsyncCluster(lambda node: AsyncFakeConnector(), ["a", "b"], slow_start=0, balance="round_robin")
    cluster.update(["a", "c"])
    assert asyncio.run(use()) == {"a", "c"}
    assert asyncio.run(use()) == {"a", "c"}
    asyncio.run(cluster.close())


def test_the_twins_have_the_same_names_parameters_and_defaults() -> None:
    """Cluster and AsyncCluster."""
    for name in {n for n in dir(Cluster) if not n.startswith("_")} | {n for n in dir(AsyncCluster) if n[0] != "_"}:
        one, other = getattr(Cluster, name, None), getattr(AsyncCluster, name, None)
        assert one is not None, name
        assert other is not None, name
        if callable(one):
            mine, others = inspect.signature(one).parameters, inspect.signature(other).parameters
            assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in others.values()], name


def test_priorities_hold_in_a_second_loop_too() -> None:
    """The state of the nodes is kept when the event loop ends."""
    cluster: AsyncCluster[Any] = AsyncCluster(
        lambda node: AsyncFakeConnector(), [Node("spare", priority=1), Node("first")], balance="round_robin"
    )

    async def use() -> set[str]:
        found = set()
        for _ in range(4):
            lease = await cluster.lease(PATIENCE)
            found.add(lease.node.name)
            await lease.close()
        return found

    assert [asyncio.run(use()), asyncio.run(use())] == [{"first"}, {"first"}]
    asyncio.run(cluster.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_the_nodes_and_none_of_the_leases() -> None:
    """The child takes its own leases; closing the parent's leases in the child changes nothing."""
    fakes: dict[str, FakeConnector] = {}
    cluster = Cluster(
        lambda node: fakes.setdefault(node.name, FakeConnector()), ["a", "b"], pool=PoolConfig(max_size=1)
    )
    leases = [cluster.lease(1) for _ in range(2)]
    pid = os.fork()
    if not pid:
        code = 1
        try:
            fresh = [cluster.lease(1) for _ in range(2)]
            leases[0].close()
            good = cluster.stats().leases == 2
            for lease in fresh:
                lease.close()
            cluster.check_books()
            code = 0 if good and not cluster.stats().leases else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for lease in leases:
        lease.close()
    cluster.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_node_that_is_probed_during_a_fork_is_probed_again_in_the_child() -> None:
    """The thread that probed it does not exist in the child."""
    fakes: dict[str, FakeConnector] = {}
    cluster = Cluster(lambda node: fakes.setdefault(node.name, FakeConnector()), ["a"], slow_start=0)
    cluster.lease(1).close()
    fakes["b"] = FakeConnector()
    gate = fakes["b"].hold("connect")
    cluster.update(["a", "b"])
    deadline = time.monotonic() + PATIENCE
    while not fakes["b"].dialling and time.monotonic() < deadline:
        time.sleep(0.002)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            fakes["b"].gates.clear()
            cluster.lease(1).close()
            deadline = time.monotonic() + PATIENCE
            while cluster.stats().nodes[1].state != "usable" and time.monotonic() < deadline:
                time.sleep(0.002)
            code = 0 if cluster.stats().nodes[1].state == "usable" else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    gate.set()
    cluster.close()
