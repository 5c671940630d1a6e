"""Shards: over fakes on all runtimes, over four PostgreSQL and four Redis, and under SQLAlchemy's horizontal_shard."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import poolkit
from poolkit import AsyncPool, ClassConfig, ConfigError, Pool, PoolConfig, UsageError
from poolkit.cluster import (
    AsyncShardedCluster,
    Cluster,
    JumpRouter,
    RangeRouter,
    ScatterFailed,
    ShardedCluster,
    concat,
    merge_sorted,
    top,
    total,
)
from poolkit.testing import AsyncFakeConnector, FakeConnector
from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters.psycopg import AsyncPoolkitCluster, PoolkitCluster
from poolkit_adapters.redis import PoolkitServerGroup
from poolkit_adapters.sqlalchemy import PoolkitPool
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.timeout(120)  # the first test starts four servers

NAMES = ["s0", "s1", "s2", "s3"]


class Rig:
    """Four fake shards on threads, asyncio or trio."""

    def __init__(self, flavour: str, names: list[str] = NAMES) -> None:
        self.threads = flavour == "threads"
        self.fakes: dict[str, Any] = {}
        pools: dict[str, Any] = {}
        for name in names:
            fake = self.fakes[name] = (FakeConnector if self.threads else AsyncFakeConnector)()
            pools[name] = (Pool if self.threads else AsyncPool)(fake, name=name, max_size=2)
        self.sharded: Any = (ShardedCluster if self.threads else AsyncShardedCluster)(pools)

    def function(self, answer: Callable[[Any], Any], hold: str | None = None) -> Any:
        """What is scattered: answers out of its keys; on the shard ``hold`` it hangs."""

        def now(connection: Any, keys: Any) -> Any:
            if hold is not None and connection in self.fakes[hold].connections:
                time.sleep(0.4)
            return answer(keys)

        async def soon(connection: Any, keys: Any) -> Any:
            if hold is not None and connection in self.fakes[hold].connections:
                await anyio.sleep(30)
            return answer(keys)

        return now if self.threads else soon

    async def scatter(self, *args: Any, **kwargs: Any) -> Any:
        if self.threads:
            return await anyio.to_thread.run_sync(lambda: self.sharded.scatter(*args, **kwargs))
        return await self.sharded.scatter(*args, **kwargs)

    async def close(self) -> None:
        result = self.sharded.close()
        if inspect.isawaitable(result):
            await result


@pytest.mark.anyio
async def test_a_scattered_function_gets_each_shard_its_own_keys(flavour: str) -> None:
    """Answers come in the order of the shards; without keys every shard is used."""
    rig = Rig(flavour)
    keys = [f"k{number}" for number in range(40)]
    found = await rig.scatter(rig.function(lambda mine: list(mine)), keys)
    assert list(found.answers) == NAMES
    assert found.answers == rig.sharded.groups(keys)
    assert sorted(found.gather(concat)) == sorted(keys)
    assert all(rig.sharded.shard_of(key) == shard for shard, mine in found.answers.items() for key in mine)
    everywhere = await rig.scatter(rig.function(lambda mine: 1 if mine is None else 0))
    assert everywhere.complete
    assert everywhere.gather(total) == 4
    one = await rig.scatter(rig.function(list), ["k1"])
    assert list(one.answers) == [rig.sharded.shard_of("k1")]
    await rig.close()


@pytest.mark.anyio
async def test_a_shard_that_fails_or_is_too_slow_is_named(flavour: str) -> None:
    """ScatterFailed, or with partial=True the answers and the errors; one deadline for all shards."""
    rig = Rig(flavour)
    rig.fakes["s2"].fail("connect", lambda: ConnectionRefusedError("refused"))
    slow = rig.function(lambda mine: 1, hold="s1")
    part = await rig.scatter(slow, timeout=0.2, partial=True)
    assert (list(part.answers), list(part.errors), part.complete) == (["s0", "s3"], ["s1", "s2"], False)
    assert isinstance(part.errors["s1"], TimeoutError)
    with pytest.raises(ScatterFailed, match=r"shards: 2 of 4 shards failed: s1: AcquireTimeout: .*; s2: ") as told:
        await rig.scatter(slow, timeout=0.2)
    assert told.value.answers == {"s0": 1, "s3": 1}
    assert set(told.value.errors) == {"s1", "s2"}
    assert pickle.loads(pickle.dumps(ScatterFailed("x", {"a": 1}, {}))).answers == {"a": 1}
    await rig.close()


@pytest.mark.anyio
async def test_a_cancelled_scatter_leaves_no_lease(flavour: str) -> None:
    """Its tasks are cancelled too."""
    if flavour == "threads":
        pytest.skip("threads are not cancelled")
    rig = Rig(flavour)
    with anyio.move_on_after(0.02) as scope:
        await rig.scatter(rig.function(lambda mine: 1, hold="s1"))
    assert scope.cancelled_caught
    assert [pool.stats().leases for pool in rig.sharded.shards.values()] == [0, 0, 0, 0]
    await rig.close()


@pytest.mark.anyio
async def test_a_shard_that_ignores_its_cancellation_delays_no_caller(flavour: str) -> None:
    """A driver may wait for the server's answer to a cancel request. The task ends in the background."""
    if flavour != "asyncio":
        pytest.skip("threads are not cancelled, and trio has no tasks in the background")
    rig = Rig(flavour)
    answered = asyncio.Event()

    async def stubborn(connection: Any, keys: Any) -> int:
        if connection not in rig.fakes["s1"].connections:
            return 1
        try:
            await asyncio.Event().wait()
        finally:
            await answered.wait()
        return 1

    with anyio.fail_after(PATIENCE):
        part = await rig.scatter(stubborn, timeout=0.1, partial=True)
    assert (list(part.answers), list(part.errors)) == (["s0", "s2", "s3"], ["s1"])
    assert rig.sharded.shards["s1"].stats().leases == 1
    answered.set()
    with anyio.fail_after(PATIENCE):
        while rig.sharded.shards["s1"].stats().leases:
            await asyncio.sleep(0.001)
    await rig.close()


def test_shards_are_called_concurrently() -> None:
    """All four are in the function at once."""
    rig = Rig("threads")
    together = threading.Barrier(4, timeout=10)
    assert rig.sharded.scatter(lambda connection, keys: together.wait() >= 0).gather(list) == [True] * 4
    rig.sharded.close()


def test_a_key_leases_on_its_shard_and_a_fifth_shard_takes_about_a_fifth_of_the_keys() -> None:
    """4 to 5, with the default router."""
    keys = [f"user:{number}" for number in range(5000)]
    four, five = Rig("threads"), Rig("threads", [*NAMES, "s4"])
    with four.sharded.lease("user:1", 1) as connection:
        assert connection in four.fakes[four.sharded.shard_of("user:1")].connections
    moved = [key for key in keys if four.sharded.shard_of(key) != five.sharded.shard_of(key)]
    assert 0.15 < len(moved) / len(keys) < 0.26
    assert {five.sharded.shard_of(key) for key in moved} == {"s4"}
    four.sharded.close()
    five.sharded.close()


def test_any_object_may_represent_a_shard() -> None:
    """It is passed as it is, and lease() raises UsageError."""
    sharded = ShardedCluster({"a": {"x": 1}, "b": {"x": 2}}, RangeRouter([10], ["a", "b"]), name="dicts")
    assert sharded.scatter(lambda shard, keys: shard["x"] * len(keys), [1, 2, 10]).answers == {"a": 2, "b": 2}
    assert sharded.shard(11) == {"x": 2}
    with pytest.raises(UsageError, match=r"use shard\(key\)"):
        sharded.lease(1)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda pool: ShardedCluster({}), "shards={}"),
        (lambda pool: ShardedCluster({"": pool}), "shards: ''"),
        (lambda pool: ShardedCluster({"a": pool}, "rings"), "did you mean 'ring'"),
        (lambda pool: ShardedCluster({"a": pool}, 7), "router=7"),
        (lambda pool: ShardedCluster({"a": pool}, JumpRouter(["a", "b"])), r"sends keys to \['b'\]"),
        (lambda pool: ShardedCluster({"a": pool}).lease(1.5), "key=1.5"),
        (lambda pool: ShardedCluster({"a": pool}).scatter(lambda c, k: 0, [None]), "key=None"),
    ],
)
def test_an_invalid_value_raises_a_config_error_that_names_it(build: Any, match: str) -> None:
    """The constructor raises."""
    with Pool(FakeConnector()) as pool, pytest.raises(ConfigError, match=match):
        build(pool)


def test_a_shard_may_be_a_cluster() -> None:
    """Options are passed to its lease()."""
    from poolkit.cluster import Node

    def cluster(name: str) -> Cluster[Any]:
        nodes = [Node(f"{name}-p", role="primary"), Node(f"{name}-r", role="replica")]
        return Cluster(lambda node: FakeConnector(), nodes, name=name)

    with ShardedCluster({"a": cluster("a"), "b": cluster("b")}) as sharded:
        lease = sharded.lease("key", timeout=1, role="replica")
        assert lease.node.name == f"{sharded.shard_of('key')}-r"
        lease.close()


# -- four PostgreSQL --------------------------------------------------------------------------------------------------


def clusters(kind: Any, servers: list[PostgresServer]) -> dict[str, Any]:
    return {
        name: kind([server.url], roles=False, pool=PoolConfig(max_size=3), name=name)
        for name, server in zip(NAMES, servers, strict=True)
    }


def insert(connection: Any, rows: list[int]) -> int:
    with connection.transaction():
        connection.execute("create table if not exists events (id int primary key)")
        connection.execute("delete from events")
        connection.cursor().executemany("insert into events values (%s)", [(row,) for row in rows])
    return len(rows)


def test_four_postgresql_hold_a_quarter_each_and_answer_as_one(postgres_four: list[PostgresServer]) -> None:
    """count, order by with a limit, top n; with a shard down, partial=True gives the other answers."""
    with ShardedCluster(clusters(PoolkitCluster, postgres_four), name="events") as sharded:
        assert sharded.scatter(insert, range(400)).gather(total) == 400

        def count(connection: Any, keys: Any) -> int:
            return int(connection.execute("select count(*) from events").fetchone()[0])

        each = sharded.scatter(count)
        assert each.gather(total) == 400
        assert min(each.answers.values()) > 50

        def ordered(connection: Any, keys: Any) -> list[int]:
            return [row[0] for row in connection.execute("select id from events order by id limit 10")]

        assert sharded.scatter(ordered).gather(merge_sorted(limit=10)) == list(range(10))
        largest = sharded.scatter(lambda c, k: [r[0] for r in c.execute("select id from events")]).gather(top(3))
        assert largest == [399, 398, 397]
        with sharded.lease(7) as connection:
            assert connection.execute("select id from events where id = 7").fetchone() == (7,)
        postgres_four[2].kill()
        part = sharded.scatter(count, partial=True, timeout=10)
        assert list(part.errors) == ["s2"]
        assert part.gather(total) == 400 - each.answers["s2"]


def test_asynchronous_shards_on_four_postgresql(postgres_four: list[PostgresServer]) -> None:
    """The same, with tasks."""

    async def port(connection: Any, keys: Any) -> int:
        row = await (await connection.execute("select inet_server_port()")).fetchone()
        return int(row[0])

    async def run() -> None:
        async with AsyncShardedCluster(clusters(AsyncPoolkitCluster, postgres_four)) as sharded:
            found = await sharded.scatter(port)
            assert found.answers == {name: s.port for name, s in zip(NAMES, postgres_four, strict=True)}
            async with sharded.lease("key") as connection:
                assert await port(connection, None) == found.answers[sharded.shard_of("key")]

    asyncio.run(run())


# -- four Redis -------------------------------------------------------------------------------------------------------


def test_four_redis_by_their_clients(redis_four: list[RedisServer]) -> None:
    """mset and mget over shards, and a single key."""
    groups = [PoolkitServerGroup([server.url], roles=False, decode_responses=True) for server in redis_four]
    sharded = ShardedCluster({name: group.client() for name, group in zip(NAMES, groups, strict=True)}, "rendezvous")
    values = {f"k{number}": f"v{number}" for number in range(200)}
    sharded.scatter(lambda client, keys: client.mset({key: values[key] for key in keys}), values)
    found = sharded.scatter(lambda client, keys: dict(zip(keys, client.mget(keys), strict=True)), values)
    assert {key: value for part in found.answers.values() for key, value in part.items()} == values
    assert sharded.scatter(lambda client, keys: client.dbsize()).gather(total) == 200
    assert sharded.shard("k7").get("k7") == "v7"
    for group in groups:
        group.close()


# -- SQLAlchemy's horizontal_shard ------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def test_routers_work_with_sqlalchemys_horizontal_shard(postgres_four: list[PostgresServer]) -> None:
    """A router implements its choosers; its engines use poolkit's pool."""
    router = JumpRouter(NAMES)
    engines = {
        name: sa.create_engine(server.sqlalchemy_url(), poolclass=PoolkitPool, max_size=3)
        for name, server in zip(NAMES, postgres_four, strict=True)
    }
    for engine in engines.values():
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)

    def shard_chooser(mapper: Any, instance: Any, clause: Any = None) -> str:
        return router.shard_of(instance.id)

    def session() -> ShardedSession:
        return ShardedSession(
            shards=engines,
            shard_chooser=shard_chooser,
            identity_chooser=lambda mapper, primary_key, **kw: [router.shard_of(primary_key[0])],
            execute_chooser=lambda context: NAMES,
        )

    with session() as writing:
        writing.add_all([Customer(id=number, name=f"c{number}") for number in range(40)])
        writing.commit()
    with session() as reading:
        assert sorted(reading.scalars(sa.select(Customer.id))) == list(range(40))
        found = reading.get(Customer, 7)
        assert found is not None
        assert found.name == "c7"
    with engines[router.shard_of(7)].connect() as connection:
        assert connection.scalar(sa.text("select name from customers where id = 7")) == "c7"
    for engine in engines.values():
        with engine.connect() as connection:
            assert 0 < (connection.scalar(sa.text("select count(*) from customers")) or 0) < 40
        engine.dispose()
        engine.pool.poolkit.close()  # dispose() puts another pool in its place


def test_the_sharded_twins_have_the_same_names_parameters_and_defaults() -> None:
    """ShardedCluster and AsyncShardedCluster."""
    for name in {n for n in (*dir(ShardedCluster), *dir(AsyncShardedCluster)) if not n.startswith("_")}:
        one, other = getattr(ShardedCluster, name), getattr(AsyncShardedCluster, name)
        mine, others = inspect.signature(one).parameters, inspect.signature(other).parameters
        assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in others.values()], name


@pytest.mark.anyio
async def test_a_scattered_function_has_the_callers_context(flavour: str) -> None:
    """Its deadline, its class of callers and its trace, on every shard; in threads too."""
    rig = Rig(flavour)
    for pool in rig.sharded.shards.values():
        pool.reconfigure(classes={"web": ClassConfig(), "bulk": ClassConfig(limit=1)}, default_class="web")
    trace = ContextVar("trace", default="none")
    trace.set("request 7")

    def look(_: Any) -> Any:
        return trace.get(), poolkit.deadline.left()

    with poolkit.priority("bulk"), poolkit.deadline(PATIENCE):
        found = await rig.scatter(rig.function(look))
    assert {name for name, _ in found.answers.values()} == {"request 7"}
    assert all(left is not None for _, left in found.answers.values())
    for pool in rig.sharded.shards.values():
        assert {name: one.acquires for name, one in pool.stats().classes.items()} == {"web": 0, "bulk": 1}
    await rig.close()


@pytest.mark.anyio
async def test_a_scatter_waits_no_longer_than_the_callers_deadline(flavour: str) -> None:
    rig = Rig(flavour)
    pool = rig.sharded.shards["s1"]
    held = [pool.acquire() if rig.threads else await pool.acquire() for _ in range(2)]
    with poolkit.deadline(0.1), pytest.raises(ScatterFailed, match="1 of 4 shards failed: s1: AcquireTimeout"):
        await rig.scatter(rig.function(lambda _: 1), timeout=None)
    for connection in held:
        done = pool.release(connection)
        if done is not None:
            await done
    await rig.close()


@pytest.mark.anyio
async def test_a_scattered_function_that_outlasts_the_callers_deadline_is_not_awaited(flavour: str) -> None:
    rig = Rig(flavour)
    over = threading.Event()

    def slow(_connection: Any, _keys: Any) -> None:
        over.wait(PATIENCE)

    async def slow_task(_connection: Any, _keys: Any) -> None:
        with anyio.move_on_after(PATIENCE):
            await anyio.sleep_forever()

    with poolkit.deadline(0.1), pytest.raises(ScatterFailed, match="4 of 4 shards failed"):
        await rig.scatter(slow if rig.threads else slow_task, timeout=None)
    over.set()
    await rig.close()


@pytest.mark.anyio
async def test_the_timeout_of_close_is_for_all_shards(flavour: str) -> None:
    given: list[float] = []

    class Slow:
        lease = None

        def close(self, timeout: float) -> Any:
            given.append(timeout)
            time.sleep(0.02)
            return anyio.sleep(0) if flavour != "threads" else None

    kind: Any = ShardedCluster if flavour == "threads" else AsyncShardedCluster
    ended = kind({"a": Slow(), "b": Slow(), "c": Slow()}).close(0.03)
    if ended is not None:
        await ended
    assert given[0] <= 0.03
    assert given[1] <= given[0] - 0.02
    assert given[2] == 0, "the time is up"
