"""A node whose pool is suspended, or shares a budget with the other nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from poolkit import AsyncPool, Budget, Pool, PoolSuspended
from poolkit.cluster import ClusterEventKind, Node, NoNodeAvailable
from poolkit.policies.hashing import rendezvous_order
from tests.cluster.test_cluster import PATIENCE, Rig

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def asking(rig: Rig, **options: Any) -> AsyncIterator[list[Any]]:
    """Let a caller ask for a lease during the block. The list has then what it got: the lease, or NoNodeAvailable."""
    got: list[Any] = []

    async def caller() -> None:
        try:
            got.append(await rig.lease(**options))
        except NoNodeAvailable as error:
            got.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        yield got


@pytest.mark.parametrize("fail_fast", [False, True])
@pytest.mark.parametrize("balance", ["p2c", "round_robin", "least_in_use"])
async def test_a_suspended_node_gets_no_callers(flavour: str, balance: str, *, fail_fast: bool) -> None:
    async with Rig(flavour, "a", "b", balance=balance) as rig:
        rig.cluster.pool("a").suspend(fail_fast=fail_fast)
        for _ in range(8):
            lease = await rig.lease()
            assert lease.node.name == "b"
            await rig.give(lease)
        assert "a usable suspended 0/2" in rig.cluster.explain()
        assert rig.states() == {"a": "usable", "b": "usable"}, "suspension is no failure of the node"
        rig.cluster.pool("a").resume()
        leases = [await rig.lease() for _ in range(4)]
        assert {lease.node.name for lease in leases} == {"a", "b"}, "its places count again"
        for lease in leases:
            await rig.give(lease)


async def test_a_caller_that_waits_in_a_pool_goes_elsewhere_when_it_is_suspended(flavour: str) -> None:
    async with Rig(flavour, "a", "b") as rig:
        rig.connectors["a"].hold("connect")
        rig.cluster.pool("b").suspend()
        async with asking(rig) as got:
            await rig.until(lambda: rig.cluster.pool("a").stats().waiting, "the caller waits in the pool of a")
            rig.cluster.pool("b").resume()
            rig.cluster.pool("a").suspend()
        assert got[0].node.name == "b"
        await rig.give(got[0])


async def test_callers_wait_while_all_nodes_are_suspended(flavour: str) -> None:
    """With wait_for_node=0 too: the nodes are usable. The first one that is resumed serves them."""
    async with Rig(flavour, "a", "b") as rig:
        for name in ("a", "b"):
            rig.cluster.pool(name).suspend()
        async with asking(rig) as got:
            await rig.until(lambda: rig.cluster.stats().waiting == 1, "the caller waits in the cluster")
            rig.cluster.pool("b").resume()
        assert got[0].node.name == "b"
        await rig.give(got[0])


async def test_callers_fail_if_all_nodes_are_suspended_with_fail_fast(flavour: str) -> None:
    async with Rig(flavour, "a", "b") as rig:
        for name in ("a", "b"):
            rig.cluster.pool(name).suspend(fail_fast=True)
        with pytest.raises(NoNodeAvailable, match=r"a \(usable, suspended\)"):
            await rig.lease()


async def test_a_caller_in_the_queue_fails_when_the_last_node_is_suspended_with_fail_fast(flavour: str) -> None:
    async with Rig(flavour, "a") as rig:
        rig.cluster.pool("a").suspend()
        async with asking(rig) as got:
            await rig.until(lambda: rig.cluster.stats().waiting == 1, "the caller waits in the cluster")
            rig.cluster.pool("a").suspend(fail_fast=True)
        assert isinstance(got[0], NoNodeAvailable)


async def test_an_ejected_node_stays_suspended(flavour: str) -> None:
    """The ejection sends the waiters of the node's pool away by a suspension of its own; it ends only that one."""
    async with Rig(flavour, "a", "b", eject_after=1, eject_for=60, eject_max=60) as rig:
        leases = [await rig.lease() for _ in range(4)]
        mine = next(lease for lease in leases if lease.node.name == "a")
        rig.cluster.pool("a").suspend()
        leases.remove(mine)
        await rig.give(mine, error=ConnectionResetError("gone"))
        await rig.until(lambda: rig.states()["a"] == "ejected", "a is ejected")
        for lease in leases:
            await rig.give(lease)
        await rig.until(lambda: not rig.cluster.pool("a").stats().size, "its connections are closed")
        assert rig.cluster.pool("a").stats().phase == "suspended"


@pytest.mark.parametrize("role", [None, "primary"])
async def test_a_new_node_whose_pool_is_suspended_is_probed_after_that(flavour: str, role: str | None) -> None:
    """Its pool is created suspended. Callers wait for it; nothing counts as a failure."""

    class Late(Rig):
        def make(self, node: Node) -> Any:
            pool = (Pool if self.threads else AsyncPool)(super().make(node), name=node.name)
            if node.name == "b":
                pool.suspend()
            return pool

    settings: dict[str, Any] = {} if role is None else {"role_of": lambda _: "primary"}
    async with Late(flavour, "a", eject_for=60, eject_max=60, probe_timeout=PATIENCE, **settings) as rig:
        await rig.give(await rig.lease())
        rig.cluster.update(["b"])
        async with asking(rig, role=role) as got:
            await rig.until(lambda: rig.cluster.stats().waiting == 1, "the caller waits in the cluster")
            assert rig.states()["b"] == "probing"
            rig.cluster.pool("b").resume()
        assert got[0].node.name == "b"
        await rig.give(got[0])
        assert not {ClusterEventKind.PROBE_FAILED, ClusterEventKind.NODE_EJECTED} & set(rig.kinds())


async def test_a_pool_that_is_suspended_during_a_probe_is_probed_after_that(flavour: str) -> None:
    class Held(Rig):
        def make(self, node: Node) -> Any:
            fake = super().make(node)
            if node.name == "b":
                fake.hold("connect")
            return fake

    async with Held(flavour, "a", eject_for=60, eject_max=60, probe_timeout=PATIENCE) as rig:
        await rig.give(await rig.lease())
        rig.cluster.update(["b"])
        await rig.until(lambda: rig.cluster.pool("b").stats().waiting, "the probe waits for its connect")
        rig.cluster.pool("b").suspend()
        async with asking(rig) as got:
            await rig.until(lambda: rig.cluster.stats().waiting == 1, "the caller waits in the cluster")
            await rig.until(lambda: not rig.cluster.pool("b").stats().waiting, "the probe was refused")
            rig.connectors["b"].free_all()
            rig.cluster.pool("b").resume()
        assert got[0].node.name == "b"
        await rig.give(got[0])
        assert not {ClusterEventKind.PROBE_FAILED, ClusterEventKind.NODE_EJECTED} & set(rig.kinds())


async def test_a_suspension_adds_nothing_to_an_ejection(flavour: str) -> None:
    """The ejection ends while the pool is suspended. After resume() the node serves at once."""
    async with Rig(flavour, "a", eject_after=1, eject_for=0.05, eject_max=60, max_ejected_share=1) as rig:
        lease = await rig.lease()
        rig.cluster.pool("a").suspend()
        await rig.give(lease, error=ConnectionResetError("gone"))
        await rig.until(lambda: rig.states()["a"] == "probing", "the ejection has ended")
        await anyio.sleep(0.2)
        assert rig.states()["a"] == "probing"
        assert rig.cluster.stats().nodes[0].ejections == 1
        rig.cluster.pool("a").resume()
        await rig.until(lambda: rig.states()["a"] == "usable", "a serves again")
        assert rig.cluster.stats().nodes[0].ejections == 1


async def test_a_lookup_of_roles_in_a_suspended_pool_is_no_failure(flavour: str) -> None:
    async with Rig(
        flavour, "a", "b", role_of=lambda _: "primary", role_interval=0.01, eject_after=1, eject_for=60, eject_max=60
    ) as rig:
        rig.cluster.pool("a").suspend()
        for _ in range(3):
            lease = await rig.lease(role="primary")
            assert lease.node.name == "b"
            await rig.give(lease)
            await anyio.sleep(0.03)
        assert rig.states()["a"] == "usable"


@pytest.mark.parametrize("by", ["tier", "key"])
async def test_a_shared_budget_does_not_change_which_node_serves(flavour: str, by: str) -> None:
    """After an outage the idle connections of the other node hold all permits. The budget takes them back for callers
    that go to the right node.
    """
    nodes = [Node("a", priority=0), Node("b", priority=1)] if by == "tier" else [Node("a"), Node("b")]
    async with Rig(flavour, *nodes, pool={"budget": Budget(2)}) as rig:
        key = None if by == "tier" else next(key for key in range(99) if rendezvous_order(key, ["a", "b"])[0] == "a")
        leases = [await rig.lease(avoid=["a"]) for _ in range(2)]
        for lease in leases:
            await rig.give(lease)
        for _ in range(4):
            lease = await rig.lease(key=key)
            assert lease.node.name == "a"
            await rig.give(lease)


async def test_who_leases_from_a_nodes_suspended_pool_itself_fails_at_once(flavour: str) -> None:
    async with Rig(flavour, "a") as rig:
        pool = rig.cluster.pool("a")
        pool.suspend()
        with pytest.raises(PoolSuspended):
            await rig.call(pool.acquire)
