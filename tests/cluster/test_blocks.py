"""The kit of the adapters' clusters: leases of a node's own pool, and blocks with a context manager inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import anyio
import pytest

from poolkit import UsageError, Verdict
from poolkit.cluster import (
    AsyncCluster,
    AsyncLeaseBlock,
    AsyncNodeLease,
    Cluster,
    LeaseBlock,
    NodeLease,
    NodePool,
    NoNodeAvailable,
)


class _Inner:
    """A driver's context manager, synchronous and asynchronous, that may fail at either end."""

    def __init__(self, log: list[Any], fails: str = "") -> None:
        self._log = log
        self._fails = fails

    def _reach(self, end: str) -> None:
        self._log.append(end)
        if self._fails == end:
            raise ConnectionError(end)

    def __enter__(self) -> str:
        self._reach("begin")
        return "given"

    def __exit__(self, *exc: object) -> None:
        self._reach("end")

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()


class World:
    """A cluster of one node whose connections are strings, on threads or on an event loop; what happens is logged."""

    def __init__(self, flavour: str) -> None:
        self.flavour = flavour
        self.threads = flavour == "threads"
        self.log: list[Any] = []
        world = self

        class Server(NodePool):
            poolkit = None

            def classify(self, error: BaseException) -> Verdict:  # type: ignore[override]
                return Verdict.SUSPECT

            def lease(self, timeout: float | None) -> Any:
                world.log.append("lease")
                kind: Any = NodeLease if world.threads else AsyncNodeLease
                names = ("release", "discard")
                lease = kind("connection", *(world.logging(name) for name in names), world.note)
                return lease if world.threads else _later(lease)

            def drain(self, timeout: float | None) -> Any:
                return True if world.threads else _later(True)

            def close(self, timeout: float | None) -> Any:
                return None if world.threads else _later(None)

        kind: Any = Cluster if self.threads else AsyncCluster
        self.cluster = kind(lambda node: Server(), ["one"], slow_start=0.0, eject_after=1, wait_for_node=0.0)

    def logging(self, name: str) -> Callable[[Any], Any]:
        def write(connection: Any) -> Any:
            self.log.append((name, connection))
            return None if self.threads else _later(None)

        return write

    def note(self, connection: Any, error: BaseException) -> None:
        self.log.append(("note", str(error)))

    def block(self, inside: Callable[[Any], Any], **asked: Any) -> Any:
        return (LeaseBlock if self.threads else AsyncLeaseBlock)(self.cluster, inside, **asked)

    def run(self, scenario: Callable[[], Any]) -> None:
        async def whole() -> None:
            await scenario()
            closed = self.cluster.close()
            if inspect.isawaitable(closed):
                await closed

        anyio.run(whole, backend="asyncio" if self.threads else self.flavour)

    async def through(self, block: Any, work: Callable[[Any], None] = lambda given: None) -> Any:
        if self.threads:
            with block as given:
                work(given)
        else:
            async with block as given:
                work(given)
        return given


async def _later(value: Any) -> Any:
    return value


@pytest.fixture(params=["threads", "asyncio", "trio"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_a_block_takes_its_lease_when_entered_and_returns_it_after_the_inner_context_manager(world: World) -> None:
    async def scenario() -> None:
        block = world.block(lambda connection: _Inner(world.log))
        assert world.log == []
        assert await world.through(block, lambda given: world.log.append("work")) == "given"
        assert world.log == ["lease", "begin", "work", "end", ("release", "connection")]
        assert world.cluster.stats().leases == 0

    world.run(scenario)


def test_a_null_context_gives_the_connection_itself(world: World) -> None:
    async def scenario() -> None:
        assert await world.through(world.block(nullcontext, timeout=1.0)) == "connection"

    world.run(scenario)


@pytest.mark.parametrize("end", ["begin", "end"])
def test_an_inner_context_manager_that_fails_returns_the_lease_and_counts_against_the_node(
    world: World, end: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(ConnectionError, match=end):
            await world.through(world.block(lambda connection: _Inner(world.log, fails=end)))
        assert world.log[-2:] == [("note", end), ("release", "connection")]
        stats = world.cluster.stats()
        assert (stats.leases, stats.nodes[0].failures) == (0, 1)

    world.run(scenario)


def test_a_connection_is_discarded_before_it_is_released(world: World) -> None:
    async def scenario() -> None:
        lease = world.cluster.lease()
        lease = lease if world.threads else await lease
        closed = lease.close(discard=True, error=ValueError("unusable"))
        if inspect.isawaitable(closed):
            await closed
        assert world.log[1:] == [("note", "unusable"), ("discard", "connection"), ("release", "connection")]

    world.run(scenario)


def test_a_block_asks_for_its_role(world: World) -> None:
    async def scenario() -> None:
        with pytest.raises(NoNodeAvailable):
            await world.through(world.block(nullcontext, role="primary", timeout=0.0))
        assert world.log == []

    world.run(scenario)


def test_a_block_serves_one_block_at_a_time(world: World) -> None:
    """Inside itself it is refused, and the outer one returns its lease. Afterwards it works, also after an error."""

    async def scenario() -> None:
        block = world.block(nullcontext)

        async def nested() -> None:
            with pytest.raises(UsageError, match="already in use by another"):
                await world.through(block)

        if world.threads:
            with block:
                await nested()
        else:
            async with block:
                await nested()
        assert world.log == ["lease", ("release", "connection")]
        assert world.cluster.stats().leases == 0
        failing = world.block(lambda connection: _Inner(world.log, fails="begin"))
        for _ in range(2):
            with pytest.raises(ConnectionError, match="begin"):
                await world.through(failing)
        assert await world.through(block) == "connection"

    world.run(scenario)
