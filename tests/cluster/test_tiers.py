"""Tiers: tried in order, with limits of their own; nodes move by their use."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import psycopg
import pytest
import redis

from poolkit import ConfigError, Connector
from poolkit.cluster import (
    AsyncCluster,
    Cluster,
    ClusterConfig,
    ClusterEvent,
    ClusterEventKind,
    Node,
    TierConfig,
)
from poolkit.cluster._core import NodeEntry
from poolkit.testing import AsyncFakeConnector, FakeConnector, ManualClock
from poolkit.testing.servers import PostgresServer, RedisServer
from tests.cluster.test_core import Rig

TIERS = (
    TierConfig(name="hot", limit=4, most=1),
    TierConfig(name="warm", limit=2, most=2),
    TierConfig(name="cold", limit=1),
)
NAMES = ["a", "b", "c", "d"]


def tiers_of(rig: Rig) -> dict[str, int]:
    return {name: entry.tier for name, entry in rig.core.entries.items()}


def rig_of(*nodes: Node | str, places: int = 10, **settings: Any) -> Rig:
    return Rig(*(nodes or NAMES), places=places, **{"tiers": TIERS, "tier_window": 10.0, **settings})


def served(rig: Rig, count: int) -> list[str]:
    found = [rig.ask().outcome for _ in range(count)]
    assert all(isinstance(entry, NodeEntry) for entry in found)
    return [entry.name for entry in found]  # type: ignore[union-attr]


def pass_time(rig: Rig, seconds: float, load: dict[str, float]) -> None:
    """Let time pass with this average number of leases on each node, each 0.1 s long."""
    end = rig.now + seconds
    while rig.now < end:
        rig.now = min(end, rig.now + 1.0)
        for name, leases in load.items():
            for _ in range(round(leases * 10)):
                rig.core.succeeded(*rig.new_lease_on(name), 0.1, rig.now)
        if rig.now >= rig.core.due:
            rig.core.tick(rig.now)
        rig.core.check()


def test_nodes_start_in_the_first_tier_that_has_room() -> None:
    assert tiers_of(rig_of()) == {"a": 0, "b": 1, "c": 1, "d": 2}
    assert tiers_of(rig_of(Node("a", priority=2), "b", Node("c", priority=9))) == {"a": 2, "b": 0, "c": 2}


def test_each_tier_is_tried_when_the_one_before_is_at_its_limit() -> None:
    rig = rig_of()
    order = served(rig, 9)
    assert order[:4] == ["a"] * 4
    assert Counter(order[4:8]) == {"b": 2, "c": 2}
    assert order[8:] == ["d"]
    waiting = rig.ask()
    assert waiting.outcome is None
    rig.core.succeeded(*rig.lease_on("c"), 0.1, rig.now)
    assert waiting.outcome is rig.entry("c")


def test_the_limit_of_the_pool_applies_in_addition_to_the_tiers() -> None:
    rig = rig_of(places=3)
    assert served(rig, 3) == ["a"] * 3
    assert served(rig, 1) != ["a"]


def test_a_tier_that_is_down_is_skipped() -> None:
    rig = rig_of()
    rig.fail("a")
    assert set(served(rig, 4)) == {"b", "c"}


def test_high_use_moves_nodes_up_and_low_use_down() -> None:
    rig = rig_of()
    pass_time(rig, 30, {"a": 3.0, "d": 0.9})
    assert tiers_of(rig)["d"] == 1, "one of the unused warm nodes has made room"
    assert sorted(tiers_of(rig).values()) == [0, 1, 2, 2]
    pass_time(rig, 60, {"a": 0.0, "d": 1.9})
    assert tiers_of(rig)["d"] == 0
    assert tiers_of(rig)["a"] > 0
    moved = [effect.event for effect in rig.take() if effect.event is not None]
    told = [(event.node, event.detail) for event in moved if event.kind is ClusterEventKind.NODE_MOVED]
    assert ("d", "cold to warm") in told
    assert ("d", "warm to hot") in told


def test_a_burst_moves_nothing() -> None:
    rig = rig_of()
    pass_time(rig, 40, {"a": 2.0, "b": 1.0, "c": 1.0})
    before = tiers_of(rig)
    pass_time(rig, 2, {"a": 2.0, "b": 1.0, "c": 1.0, "d": 1.0})
    pass_time(rig, 20, {"a": 2.0, "b": 1.0, "c": 1.0})
    assert tiers_of(rig) == before


def test_an_open_long_lease_counts_as_use() -> None:
    rig = rig_of("a", "b", "c", "d")
    [entry] = [m for m in rig.core.entries.values() if m.tier == 2]
    rig.new_lease_on(entry.name)
    pass_time(rig, 40, {"a": 3.0})
    assert entry.tier == 1


def test_a_node_that_moves_up_serves_waiting_callers_at_once() -> None:
    rig = rig_of()
    served(rig, 9)
    waiting = [rig.ask() for _ in range(3)]
    assert all(caller.outcome is None for caller in waiting)
    rig.entry("a").tickets.clear()  # its holders are gone
    rig.entry("a").leases = 0
    rig.core.entries["a"].load = 0.0
    pass_time(rig, 15, {})
    assert all(caller.outcome is not None for caller in waiting)


def test_a_removed_node_leaves_its_tier_to_another() -> None:
    rig = rig_of()
    rig.update("b", "c", "d")
    pass_time(rig, 30, {"b": 1.9, "c": 1.0})
    assert tiers_of(rig)["b"] == 0


@pytest.mark.parametrize("seed", range(30))
def test_in_random_schedules_sizes_and_limits_hold_and_no_caller_is_stranded(seed: int) -> None:
    """Callers, failures and time at random: no caller waits while a place is free, no tier exceeds its size."""
    pick = random.Random(seed)
    rig = rig_of(seed=seed)
    held: list[NodeEntry] = []
    callers: list[Any] = []
    for _ in range(400):
        roll = pick.random()
        if roll < 0.4:
            callers.append(rig.ask())
        elif roll < 0.7 and held:
            rig.core.succeeded(*rig.lease_on(held.pop(pick.randrange(len(held))).name), pick.random(), rig.now)
        elif roll < 0.75 and held:
            rig.core.failed(*rig.lease_on(held.pop(pick.randrange(len(held))).name), OSError("broken"), 0.1, rig.now)
        else:
            rig.now += pick.choice([0.1, 1.0, 5.0])
            if rig.now >= rig.core.due:
                rig.core.tick(rig.now)
        rig.take()
        for effect in rig.todo:
            assert effect.entry is not None
            rig.core.probed(effect.entry, None, None, rig.now)
        rig.todo.clear()
        for caller in [one for one in callers if one.outcome is not None]:
            callers.remove(caller)
            if isinstance(caller.outcome, NodeEntry):
                held.append(caller.outcome)
        rig.core.check()
        counts = Counter(entry.tier for entry in rig.core.entries.values())
        assert 1 <= counts[0] <= 1
        assert counts[1] <= 2
    for entry in held:
        rig.core.succeeded(*rig.lease_on(entry.name), 0.1, rig.now)
        rig.core.check()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tiers": "hot"}, "must be a tuple of TierConfig"),
        ({"tiers": [TierConfig(name="hot")]}, "only one tier, 'hot': must be two or more"),
        ({"tiers": [TierConfig(name="hot"), TierConfig(name="hot")]}, "two tiers are called 'hot'"),
        ({"tiers": [TierConfig(name="hot"), TierConfig(name="cold", most=3)]}, "the last tier .*must be None"),
        ({"promote_above": 0.2}, r"demote_below=0.25: must be below promote_above \(0.2\)"),
        ({"tier_window": 0}, "tier_window=0: must be a number above 0"),
    ],
)
def test_an_invalid_value_raises_a_config_error_that_names_it(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ClusterConfig(**settings)
    with pytest.raises(ConfigError, match="tier 'hot': most=0: must be a whole number"):
        TierConfig(name="hot", most=0)
    with pytest.raises(ConfigError, match="tier name='': must be a non-empty string"):
        TierConfig(name="")


def test_statistics_and_explanations_name_the_tier() -> None:
    with Cluster(lambda node: FakeConnector(), NAMES, tiers=TIERS) as cluster:
        with cluster.lease():
            stats = {node.name: (node.tier, node.leases, node.places) for node in cluster.stats().nodes}
            assert stats == {"a": ("hot", 1, 4), "b": ("warm", 0, 2), "c": ("warm", 0, 2), "d": ("cold", 0, 1)}
            assert "a usable hot 1/4" in cluster.explain()
        assert all(node.use == 0.0 for node in cluster.stats().nodes)
    with Cluster(lambda node: FakeConnector(), NAMES) as plain:
        assert {(node.tier, node.use) for node in plain.stats().nodes} == {("", None)}


def test_tiers_work_for_tasks_too() -> None:
    async def main() -> list[str]:
        async with AsyncCluster(lambda node: AsyncFakeConnector(), NAMES, tiers=TIERS) as cluster:
            leases = [await cluster.lease() for _ in range(9)]
            names = [lease.node for lease in leases]
            for lease in leases:
                await lease.close()
            return [str(name) for name in names]

    assert len(asyncio.run(main())) == 9


class Postgres(Connector[psycopg.Connection[Any]]):
    def __init__(self, url: str) -> None:
        self.url = url

    def connect(self, timeout: float | None) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True)

    def close(self, connection: psycopg.Connection[Any]) -> None:
        connection.close()


def test_four_postgres_servers_are_used_in_order_and_change_places(postgres_four: list[PostgresServer]) -> None:
    """Each server has as many sessions as its tier allows; lasting demand moves a server up."""
    ports = {f"pg{number}": server.port for number, server in enumerate(postgres_four)}
    urls = {f"pg{number}": server.url for number, server in enumerate(postgres_four)}
    clock = ManualClock()
    events: list[ClusterEvent] = []
    with Cluster(
        lambda node: Postgres(urls[node.name]), list(urls), tiers=TIERS, tier_window=10.0, clock=clock,
        listeners=[events.append],
    ) as cluster:  # fmt: skip
        with contextlib.ExitStack() as held:
            seen: Counter[int] = Counter()
            for _ in range(9):
                connection = held.enter_context(cluster.lease(timeout=10))
                seen[int(connection.execute("SHOW port").fetchone()[0])] += 1  # type: ignore[index]
            assert seen == {ports["pg0"]: 4, ports["pg1"]: 2, ports["pg2"]: 2, ports["pg3"]: 1}
        with contextlib.ExitStack() as hot, contextlib.ExitStack() as warm:
            for _ in range(4):
                hot.enter_context(cluster.lease(timeout=10))
            for _ in range(4):
                warm.enter_context(cluster.lease(timeout=10))
            hot.close()  # only those go on for whom the hot one had no place
            for _ in range(40):
                clock.advance(1.0)
                cluster._gate.step(cluster._core.tick, clock())
        [promoted] = [node.name for node in cluster.stats().nodes if node.tier == "hot"]
        assert promoted in ("pg1", "pg2")
        moved = [(event.node, event.detail) for event in events if event.kind is ClusterEventKind.NODE_MOVED]
        assert (promoted, "warm to hot") in moved
        assert ("pg0", "hot to warm") in moved
        with cluster.lease(timeout=10) as connection:
            assert int(connection.execute("SHOW port").fetchone()[0]) == ports[promoted]  # type: ignore[index]


class Redis(Connector[redis.Connection]):
    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self, timeout: float | None) -> redis.Connection:
        connection = redis.Connection(port=self.port)
        connection.connect()
        return connection

    def close(self, connection: redis.Connection) -> None:
        connection.disconnect()


def test_when_the_hot_redis_dies_the_warm_ones_serve(redis_four: list[RedisServer]) -> None:
    by_name = {f"r{number}": server for number, server in enumerate(redis_four)}
    with Cluster(lambda node: Redis(by_name[node.name].port), list(by_name), tiers=TIERS, eject_after=1) as cluster:

        def where() -> str:
            with cluster.lease(timeout=10) as connection:
                connection.send_command("PING")
                assert connection.read_response() == b"PONG"
                return next(name for name, server in by_name.items() if server.port == connection.port)

        assert {where() for _ in range(5)} == {"r0"}
        by_name["r0"].kill()
        cluster.pool("r0").clear()
        assert {where() for _ in range(20)} == {"r1", "r2"}
