"""Cancel each operation of an asynchronous cluster at its 1st, 2nd, ... suspension until it runs to its end.

After each: the cancellation was delivered, every place of every node can be had, nobody else's connection was touched,
nobody is left waiting, and the invariants hold. As in ``test_cancel_everywhere``, which does it for one pool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from poolkit import PoolConfig
from poolkit.cluster import AsyncCluster, Discovery, Found, Node
from poolkit.testing import AsyncFakeConnector, FakeConnection
from tests.faults.cancelling import by_scope, natively, natively_twice
from tests.faults.test_cancel_everywhere import TICK, Act, Way, everywhere, soon

WAYS = [pytest.param("asyncio", way, id=f"asyncio {way.__name__}") for way in (natively, natively_twice)]
WAYS.append(pytest.param("trio", by_scope, id="trio by_scope"))
SIZE = 2
NODES = ("a", "b")
WHOLE = SIZE * len(NODES)


class Slow(Discovery):
    """A discovery that takes a moment to find the nodes."""

    async def find(self, last: Found | None) -> Found:  # type: ignore[override]
        await anyio.sleep(TICK)
        return Found(tuple(map(Node, NODES)), None)


class Stage:
    """A cluster before the scene. Another caller holds one connection throughout."""

    other: FakeConnection | None = None

    def __init__(self, **settings: Any) -> None:
        self.connectors: dict[str, AsyncFakeConnector] = {}
        settings = {"slow_start": 0.0, "balance": "least_in_use", "eject_for": TICK, "eject_max": TICK, **settings}
        self.cluster: AsyncCluster[FakeConnection] = AsyncCluster(
            self.make, settings.pop("nodes", NODES), pool=PoolConfig(max_size=SIZE), random=lambda: 0.0, **settings
        )

    def make(self, node: Node) -> Any:
        self.connectors[node.name] = made = AsyncFakeConnector(connect=TICK, close=TICK, check=TICK, reset=TICK)
        return made

    async def begin(self) -> Stage:
        self.other = await self.cluster.acquire()
        return self

    async def quiet(self) -> None:
        """Wait for the end of the background work."""
        for _ in range(2000):
            await anyio.sleep(TICK)
            stats = self.cluster.stats()
            busy = stats.waiting or any(node.state not in ("usable", "draining") for node in stats.nodes)
            if not busy:
                return
        raise AssertionError(f"never quiet: {self.cluster.explain()}")

    async def all_is_well(self) -> None:
        cluster, mine = self.cluster, int(self.other is not None)
        await self.quiet()
        cluster.check_books()
        assert cluster.stats().leases == mine, cluster.explain()
        leases = [await cluster.lease(timeout=5) for _ in range(WHOLE - mine)]
        got = [lease.connection for lease in leases] + ([self.other] if self.other else [])
        assert len({id(connection) for connection in got}) == WHOLE, "in two hands"
        assert not any(connection.closed or connection.dirty for connection in got)
        for lease in leases:
            await lease.close()
        if self.other is not None:
            await cluster.release(self.other)
        await self.ended()

    async def ended(self) -> None:
        """Close, and check that nothing is left."""
        await self.cluster.close()
        for _ in range(2000):
            if not any(connector.live or connector.dialling for connector in self.connectors.values()):
                break
            await anyio.sleep(TICK)
        self.cluster.check_books()
        assert self.cluster.stats().leases == 0
        assert all(connector.live == 0 for connector in self.connectors.values())
        assert all(connector.max_live <= SIZE for connector in self.connectors.values())


async def _acquire(stage: Stage) -> Act:
    async def act() -> None:
        connection = await stage.cluster.acquire(timeout=5)
        await stage.cluster.release(connection)

    return act


async def _lease(stage: Stage) -> Act:
    async def act() -> None:
        async with stage.cluster.lease(timeout=5) as connection:
            connection.dirty = True
            await anyio.sleep(TICK)

    return act


async def _lease_when_full(stage: Stage) -> Act:
    """All other connections are returned while the caller waits."""
    held = [await stage.cluster.lease() for _ in range(WHOLE - 1)]

    async def act() -> None:
        for lease in held:
            soon(partial(_give, lease))
        async with stage.cluster.lease(timeout=5):
            pass

    return act


def _give(lease: Any) -> None:
    """A close that never suspends: a reset goes on in the background."""
    try:
        lease.close().send(None)
    except StopIteration:
        return
    raise AssertionError("it was suspended")


async def _elsewhere(stage: Stage) -> Act:
    """The node that is tried first refuses and is ejected; then it comes back."""
    refused: list[int] = []

    def refuse() -> BaseException | None:
        refused.append(1)
        return ConnectionRefusedError("down")

    stage.connectors["b"].fail("connect", refuse)

    async def act() -> None:
        try:
            async with stage.cluster.lease(timeout=5):
                assert refused
        finally:
            stage.connectors["b"].fail("connect", None)

    return act


async def _broken(stage: Stage) -> Act:
    """The lease ends with an error that ejects the node."""
    lease = await stage.cluster.lease()
    lease.connection.dirty = True
    return lambda: lease.close(error=ConnectionResetError("gone"))


async def _reset(stage: Stage) -> Act:
    lease = await stage.cluster.lease()
    lease.connection.dirty = True
    return lease.close


SCENES: dict[str, Callable[[Stage], Awaitable[Act]]] = {
    "acquire and release": _acquire,
    "lease": _lease,
    "lease when full": _lease_when_full,
    "lease elsewhere": _elsewhere,
    "close with a reset": _reset,
    "close with an error": _broken,
}


@pytest.mark.parametrize(("backend", "way"), WAYS)
@pytest.mark.parametrize("scene", SCENES)
def test_cancelled_callers_of_a_cluster_cost_nothing(scene: str, backend: str, way: Way) -> None:
    """Their slots serve others, and the cancelled connect serves another caller."""

    async def play(point: int) -> bool:
        stage = await Stage(eject_after=1).begin()
        act = await SCENES[scene](stage)
        more = await way(point, act)
        del act
        try:
            await stage.all_is_well()
        except BaseException as error:
            raise AssertionError(f"cancelled at suspension {point}: {error!r}") from error
        return more

    points = everywhere(backend, way, play)
    assert points or scene == "close with an error", "there was nothing to cancel"


@pytest.mark.parametrize(("backend", "way"), WAYS)
def test_a_cancelled_first_look_of_the_discovery_is_looked_again(backend: str, way: Way) -> None:
    """The next caller asks the discovery itself."""

    async def play(point: int) -> bool:
        stage = Stage(nodes=Slow())

        async def act() -> None:
            async with stage.cluster.lease(timeout=5):
                pass

        more = await way(point, act)
        await stage.all_is_well()
        return more

    assert everywhere(backend, way, play)


@pytest.mark.parametrize(("backend", "way"), WAYS)
@pytest.mark.parametrize("end", ["close", "drain"])
def test_a_cancelled_close_of_a_cluster_admits_no_caller_and_can_be_called_again(
    end: str, backend: str, way: Way
) -> None:
    """After that call every node's pool is closed."""

    async def play(point: int) -> bool:
        stage = await Stage().begin()
        lease, idle = await stage.cluster.lease(), await stage.cluster.lease()
        await idle.close()
        ends: dict[str, Callable[[], Awaitable[Any]]] = {
            "close": stage.cluster.close, "drain": lambda: stage.cluster.drain(timeout=0.05)
        }  # fmt: skip
        more = await way(point, ends[end])
        assert stage.cluster.closed
        await lease.close()
        assert stage.other is not None
        await stage.cluster.release(stage.other)
        await stage.ended()
        assert all(stage.cluster.pool(node).closed for node in NODES)
        return more

    assert everywhere(backend, way, play)
