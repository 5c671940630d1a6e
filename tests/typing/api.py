"""Every public name with the types that users see. Never executed: mypy checks it (see ``files`` in pyproject.toml).

``tests/test_docs.py`` holds that no public name is missing here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import httpx2
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Route
from typing_extensions import Unpack, assert_type

import poolkit
import poolkit_adapters.asyncpg
import poolkit_adapters.dbapi
import poolkit_adapters.httpcore
import poolkit_adapters.httpx
import poolkit_adapters.httpx2
import poolkit_adapters.psycopg
import poolkit_adapters.redis
import poolkit_adapters.requests
import poolkit_adapters.sqlalchemy
import poolkit_adapters.urllib3
from poolkit import cluster, fleet, runtimes, testing
from poolkit.connector import default_classify
from poolkit.dashboard import Dashboard, DashboardApp, start
from poolkit.events import Listener
from poolkit.frameworks import asgi, celery, flask
from poolkit.stats import Holder, PoolDetails, Queued


class Socket:
    """Some driver's connection."""


class SyncDriver(poolkit.Connector[Socket]):
    connect_in_caller = True
    close_in_caller = False
    packages = ("driver",)

    def connect(self, timeout: float | None) -> Socket:
        return Socket()

    def connect_to(self, key: Any, timeout: float | None) -> Socket:
        return Socket()

    def close(self, connection: Socket) -> None: ...

    def abort(self, connection: Socket) -> None: ...

    def check(self, connection: Socket, timeout: float | None) -> bool | None:
        return None

    def peek(self, connection: Socket) -> bool:
        return True

    def needs_reset(self, connection: Socket) -> bool:
        return False

    def reset(self, connection: Socket) -> None: ...

    def classify(self, error: BaseException) -> poolkit.Verdict:
        return poolkit.Verdict.RETIRE if isinstance(error, KeyError) else default_classify(error)

    def capacity(self, connection: Socket) -> int:
        return 1

    def streams(self, key: Any) -> int:
        return 1

    def lazy(self, connection: Socket) -> bool:
        return False

    def forget(self, connection: Socket) -> None: ...


class AsyncDriver(poolkit.AsyncConnector[Socket]):
    async def connect(self, timeout: float | None) -> Socket:
        return Socket()

    async def close(self, connection: Socket) -> None: ...

    async def check(self, connection: Socket, timeout: float | None) -> bool | None:
        return True

    async def reset(self, connection: Socket) -> None: ...


def settings() -> poolkit.PoolConfig:
    backoff = poolkit.BackoffConfig(base=0.1, cap=5)
    breaker = poolkit.BreakerConfig(failure_threshold=5, reset_timeout=10.0)
    autoscale = poolkit.AutoscaleConfig(
        target=0.75, max_wait=0.01, up_delay=0.01, down_delay=60.0, prewarm=0.5, peak_memory=900.0, overload_factor=0.8,
        overload_recovery=5.0,
    )  # fmt: skip
    overload = poolkit.OverloadConfig(give_up_share=0.05, interval=0.1, max_wait=None)
    config = poolkit.PoolConfig(
        min_size=1, max_size=None, max_idle=None, max_waiting=100, order="fifo", start="eager",
        acquire_timeout=None, connect_timeout=2, check_timeout=1.5, max_lifetime=None, lifetime_jitter=0,
        idle_timeout=60, keepalive=30, check_after_idle=None, max_connecting=4, leak_after=10, barging_window=0,
        backoff=backoff, breaker=breaker, autoscale=autoscale, overload=overload,
    )  # fmt: skip
    assert_type(config.max_size, int | None)
    assert_type(config.doubts(), list[str])
    config.warn()
    loaded = poolkit.load("orders-db", file="poolkit.toml", environ={}, max_size=3)
    return loaded.replace(min_size=2)


def listener(event: poolkit.Event) -> None:
    assert_type(event.kind, poolkit.EventKind)
    assert_type(event.reason, poolkit.CloseReason | poolkit.FailReason | None)
    assert_type(event.duration, float | None)
    assert_type(event.error, BaseException | None)


def threads(config: poolkit.PoolConfig) -> None:
    heard: Listener = listener
    pool = poolkit.Pool(SyncDriver(), config, name="orders-db", listeners=[heard], debug=True, max_size=3)
    assert_type(pool, poolkit.Pool[Socket])
    with pool as same, same.lease(timeout=None) as connection:
        assert_type(connection, Socket)
    taken = pool.acquire(timeout=2)
    assert_type(taken, Socket)
    pool.release(taken, discard=True, error=None)
    pool.detach(pool.acquire())
    lease = pool.lease(key="origin")
    assert_type(lease, poolkit.Lease[Socket])
    assert_type(lease.connection, Socket)
    assert_type(lease.since, float)
    lease.set_capacity(10)
    lease.close(discard=False, error=ValueError())
    assert_type(lease.detach(), Socket)
    pool.warm_up(2, timeout=5)
    pool.clear()
    assert_type(pool.discard_idle(lambda idle: bool(idle)), int)
    pool.suspend(fail_fast=True)
    pool.resume()
    pool.reconfigure(max_size=20)
    pool.add_listener(listener)
    pool.remove_listener(listener)
    assert_type(pool.describe(), dict[str, poolkit.Setting])
    assert_type(pool.config, poolkit.PoolConfig)
    assert_type(pool.closed, bool)
    assert_type(pool.name, str)
    assert_type(pool.explain(), str)
    assert_type(pool.dump(), str)
    details: PoolDetails = pool.details(most=10)
    waiters: tuple[Queued, ...] = details.waiters
    print(waiters)
    pool.announce(poolkit.EventKind.ALERT_RAISED, "mean_wait: callers wait 0.2 s")
    advice: poolkit.Advice = pool.advice()
    estimated: poolkit.SizeEstimate | None = advice.estimate
    estimated = poolkit.estimate_size(500, 0.02, processes=8, server_max=100)
    print(estimated.size)
    endpoints: list[poolkit.LaneStats] = pool.lane_stats()
    print(endpoints)
    assert_type(poolkit.dump(), str)
    undo: Callable[[], None] = poolkit.dump_on_signal()
    undo()
    statistics(pool.stats())
    found: poolkit.Diagnosis | None = pool.diagnose()
    if found is not None:
        cause: poolkit.Cause = found.cause
        print(cause.value, found.reason)
    pool.check_books()
    assert_type(pool.drain(timeout=10), bool)
    pool.close(timeout=1)
    for any_pool in poolkit.pools():
        any_pool.close()


async def tasks() -> None:
    pool = poolkit.AsyncPool(AsyncDriver(), acquire_timeout=5)
    assert_type(pool, poolkit.AsyncPool[Socket])
    async with pool, pool.lease() as connection:
        assert_type(connection, Socket)
    taken = await pool.acquire(timeout=0)
    assert_type(taken, Socket)
    await pool.release(taken)
    pool.release_nowait(await pool.acquire())
    lease = await pool.lease()
    assert_type(lease, poolkit.AsyncLease[Socket])
    assert_type(lease.connection, Socket)
    lease.close_nowait()
    await lease.close()
    await pool.warm_up()
    assert_type(await pool.drain(), bool)
    await pool.close()


def statistics(stats: poolkit.PoolStats) -> None:
    wait: poolkit.Histogram = stats.wait
    assert_type(wait.quantile(0.99), float)
    window: poolkit.WindowStats = stats.windows[60]
    assert_type(window.mean_use, float)
    assert_type(stats.size, int)
    assert_type(stats.max_size, int | None)
    assert_type(stats.closes, dict[str, int])
    assert_type(stats.utilisation, float)


def held(holder: Holder) -> str | None:
    return holder.place


def errors() -> None:
    try:
        threads(settings())
    except poolkit.ConfigError as error:
        assert_type(error.setting, str)
    except poolkit.LeaseOverdue:
        pass
    except poolkit.CircuitOpen as error:
        assert_type(error.retry_after, float)
    except poolkit.ServerUnavailable as error:
        both: tuple[poolkit.AcquireTimeout, poolkit.ConnectFailed] = (error, error)
        del both
    except (poolkit.ConnectTimeout, poolkit.ConnectFailed) as error:
        assert_type(error.fatal, bool)
        assert_type(error.errors, tuple[BaseException, ...])
    except (poolkit.AcquireTimeout, poolkit.PoolBusy, poolkit.PoolClosed, poolkit.PoolSuspended) as error:
        raise RuntimeError(poolkit.__version__) from error
    except (poolkit.NotLeased, poolkit.WrongLoop, poolkit.UsageError, poolkit.MissingExtra) as error:
        wide: poolkit.PoolError = error
        del wide
    kind: type[UserWarning] = poolkit.PoolConfigWarning
    del kind


def passed_on(name: str, **settings: Unpack[poolkit.PoolSettings]) -> poolkit.Pool[Socket]:
    """A function of an application that takes the settings of a pool."""
    return poolkit.Pool(SyncDriver(), name=name, **settings)


def cluster_passed_on(**settings: Unpack[cluster.ClusterSettings]) -> cluster.Cluster[Socket]:
    return cluster.Cluster(lambda node: SyncDriver(), ["a:1"], **settings)


def misspelt_or_mistyped() -> None:
    """Each of these is an error for the checkers: without one, its comment is reported as unnecessary."""
    import sqlite3

    passed_on("a", max_wating=1)  # type: ignore[call-arg]
    passed_on("a", max_waiting="1")  # type: ignore[arg-type]
    cluster_passed_on(wait_for_nodes=1)  # type: ignore[call-arg]
    poolkit.AsyncPool(AsyncDriver(), order="newest")  # type: ignore[arg-type]
    poolkit.PoolConfig().replace(max_sise=3)  # type: ignore[call-arg]
    passed_on("a").reconfigure(max_sise=3)  # type: ignore[call-arg]
    poolkit.load("orders-db", max_sise=3)  # type: ignore[call-arg]
    poolkit_adapters.httpx.Client(max_sise=3)  # type: ignore[call-arg]
    poolkit_adapters.httpx.AsyncClient(http2="yes")  # type: ignore[arg-type]
    poolkit_adapters.httpx2.PoolkitTransport(max_sise=3)  # type: ignore[call-arg]
    poolkit_adapters.httpx.PoolkitClusterTransport(["a:1"], wait_for_nodes=1)  # type: ignore[call-arg]
    poolkit_adapters.httpcore.AsyncPoolkitConnectionPool(max_sise=3)  # type: ignore[call-arg]
    poolkit_adapters.psycopg.PoolkitConnectionPool("", open=False, max_sise=3)  # type: ignore[call-arg]
    poolkit_adapters.psycopg.AsyncPoolkitNullConnectionPool("", leak_afte=3)  # type: ignore[call-arg]
    poolkit_adapters.psycopg.PoolkitCluster(["a:1"], wait_for_nodes=1)  # type: ignore[call-arg]
    poolkit_adapters.asyncpg.create_pool("", max_wating=3)  # type: ignore[call-arg]
    poolkit_adapters.asyncpg.PoolkitPool(statement_cache_size="3")  # type: ignore[arg-type]
    poolkit_adapters.redis.PoolkitConnectionPool(max_wating=3)  # type: ignore[call-arg]
    poolkit_adapters.redis.PoolkitConnectionPool.from_url("", leak_after="3")  # type: ignore[arg-type]
    poolkit_adapters.redis.AsyncPoolkitConnectionPool(leak_after="3")  # type: ignore[arg-type]
    poolkit_adapters.redis.AsyncPoolkitConnectionPool.from_url("", max_wating=3)  # type: ignore[call-arg]
    poolkit_adapters.redis.PoolkitServerGroup(["a:1"], wait_for_nodes=1)  # type: ignore[call-arg]
    poolkit_adapters.redis.AsyncPoolkitServerGroup(["a:1"], decode_response=True)  # type: ignore[call-arg]
    poolkit_adapters.redis.PoolkitSentinelConnectionPool("main", None, max_wating=3)  # type: ignore[call-arg]
    poolkit_adapters.redis.AsyncPoolkitSentinelConnectionPool("main", None, is_primary=True)  # type: ignore[call-arg]
    poolkit_adapters.urllib3.PoolkitPoolManager(max_sise=3)  # type: ignore[call-arg]
    poolkit_adapters.urllib3.PoolkitHTTPSConnectionPool("a", cert_req="none")  # type: ignore[call-arg]
    poolkit_adapters.urllib3.connection_from_url("http://a", idle_timout=3)  # type: ignore[call-arg]
    poolkit_adapters.urllib3.proxy_from_url("http://a", max_wating=3)  # type: ignore[call-arg]
    poolkit_adapters.urllib3.proxy_from_url("http://a", config=None, max_connections=3, proxy_headers={}, leak_after=3)
    poolkit_adapters.requests.PoolkitAdapter(max_wating=3)  # type: ignore[call-arg]
    poolkit_adapters.dbapi.PooledDatabase(sqlite3, leak_after="3")  # type: ignore[arg-type]


class Greenlets:
    """A way of its own to wait."""

    def parker(self) -> runtimes.SyncParker:
        return runtimes.ThreadRuntime().parker()

    def spawn(self, job: Callable[..., object], *args: Any) -> None: ...

    def schedule(self, task: runtimes.Task, delay: float) -> None: ...

    def nudge(self, task: runtimes.Inbox) -> None: ...

    def caller(self) -> int:
        return 1

    def name_of(self, caller: int) -> str:
        return str(caller)


def worlds(async_runtime: runtimes.AsyncRuntime, inbox: runtimes.Inbox) -> runtimes.Runtime:
    parker: runtimes.AsyncParker = async_runtime.parker()
    waiting: Awaitable[None] = parker.wait(1.0)
    del waiting, inbox
    return Greenlets()


async def kit() -> None:
    clock = testing.ManualClock(start=0)
    clock.advance(5)
    connector = testing.FakeConnector(connect=0.1)
    connector.fail("connect", lambda: OSError())
    pool = poolkit.Pool(connector, clock=clock)
    assert_type(pool, poolkit.Pool[testing.FakeConnection])
    async_pool = poolkit.AsyncPool(testing.AsyncFakeConnector())
    assert_type(await async_pool.acquire(), testing.FakeConnection)


def clusters(found: cluster.Found, event: cluster.ClusterEvent) -> None:
    nodes = [cluster.Node("a", "10.0.0.1:5432", weight=2, priority=1, zone="eu", role="primary", params={"x": 1})]
    config = cluster.ClusterConfig(balance=cluster.DynamicWeights(fall=0.8), zone="eu").replace(slow_start=0)
    many = cluster.Cluster(lambda node: SyncDriver(), nodes, config, pool=settings(), eject_after=5)
    with many, many.lease(timeout=1, role="primary", key=7) as connection:
        assert_type(connection, Socket)
    lease = many.lease()
    assert_type(lease, cluster.ClusterLease[Socket])
    assert_type(lease.node, cluster.Node)
    lease.close(discard=True, error=None)
    many.release(many.acquire())
    many.update(nodes)
    stats = many.stats()
    assert_type(stats, cluster.ClusterStats)
    assert_type(stats.nodes, tuple[cluster.NodeStats, ...])
    assert_type(many.drain(timeout=1), bool)
    kinds: tuple[cluster.ClusterEventKind, cluster.NodeState] = (event.kind, cluster.NodeState.USABLE)
    sources: list[cluster.Discovery] = [
        cluster.StaticDiscovery(nodes),
        cluster.FileDiscovery("nodes.toml", interval=2),
        cluster.DNSDiscovery("db", 5432),
        cluster.SRVDiscovery("_db._tcp.example.com"),
        cluster.EtcdDiscovery("/db/"),
    ]
    balancers: list[cluster.Balancer] = [
        cluster.RoundRobin(),
        cluster.RandomChoice(),
        cluster.WeightedRandom(),
        cluster.SmoothWeighted(),
        cluster.LeastInUse(),
        cluster.PeakEwma(decay=5),
    ]
    candidates: list[cluster.Candidate] = []
    assert_type(cluster.parse_nodes({}, "here"), tuple[cluster.Node, ...])
    assert_type(cluster.parse_node({}, "here"), cluster.Node)
    failures: tuple[type[cluster.NoNodeAvailable], type[cluster.EtcdError]] = (
        cluster.NoNodeAvailable,
        cluster.EtcdError,
    )
    own: type[cluster.NodePool] = cluster.NodePool
    del kinds, sources, balancers, candidates, failures, own


def adapter(sync: cluster.Cluster[Socket], tasks: cluster.AsyncCluster[Socket], socket: Socket) -> None:
    assert_type(cluster.NodeLease(socket, release=id).connection, Socket)
    assert_type(cluster.AsyncNodeLease(socket).connection, Socket)
    inside: Callable[[Socket], contextlib.nullcontext[Socket]] = contextlib.nullcontext
    with cluster.LeaseBlock(sync, inside, timeout=1.0, role="primary") as given:
        assert_type(given, Socket)

    async def task() -> None:
        async with cluster.AsyncLeaseBlock(tasks, inside, key="a") as given:
            assert_type(given, Socket)

    del task


def shards(pool: poolkit.Pool[Socket], found: cluster.Scattered[int]) -> None:
    routers: list[cluster.Router] = [
        cluster.RingRouter({"a": 1, "b": 2}, bound=1.25),
        cluster.RendezvousRouter(["a"]),
        cluster.JumpRouter(["a"]),
        cluster.RangeRouter([1], ["a", "b"]),
        cluster.LookupRouter({"x": "a"}, "b"),
        cluster.FunctionRouter(str, ["a"]),
    ]
    sharded = cluster.ShardedCluster({"a": pool}, routers[0], name="events")
    assert_type(sharded.scatter(lambda connection, keys: 1, [1], timeout=2, partial=True), cluster.Scattered[int])
    assert_type(found.complete, bool)
    assert_type(found.answers, dict[str, int])
    merges: list[Callable[[Any], Any]] = [
        cluster.concat,
        cluster.merge_sorted(limit=3),
        cluster.top(3),
        cluster.total,
        cluster.smallest,
        cluster.largest,
    ]
    del merges
    try:
        sharded.shard_of(1)
    except cluster.ScatterFailed as error:
        assert_type(error.errors, dict[str, BaseException])


async def async_shards(pool: poolkit.AsyncPool[Socket]) -> None:
    sharded = cluster.AsyncShardedCluster({"a": pool}, "jump")

    async def one(connection: Any, keys: Any) -> int:
        return 1

    assert_type(await sharded.scatter(one), cluster.Scattered[int])


async def async_clusters() -> None:
    many = cluster.AsyncCluster(lambda node: AsyncDriver(), ["a", "b"])
    async with many, many.lease() as connection:
        assert_type(connection, Socket)
    request = many.lease()
    assert_type(request, cluster.ClusterLeaseRequest[Socket])
    lease = await request
    assert_type(lease, cluster.AsyncClusterLease[Socket])
    await lease.close()


def deadlines(pool: poolkit.Pool[Socket]) -> None:
    with poolkit.deadline(0.5), poolkit.deadline(2), pool.lease() as connection:
        assert_type(connection, Socket)


def priorities() -> None:
    classes = {"health": poolkit.ClassConfig(reserved=1), "bulk": poolkit.ClassConfig(weight=0.5, limit=5)}
    with poolkit.Pool(testing.FakeConnector(), classes=classes, default_class="bulk") as pool:
        with poolkit.priority("health"), poolkit.priority(None), pool.lease():
            pass
        found: dict[str, poolkit.ClassStats] = pool.stats().classes
        assert_type(found["bulk"].most, int | None)
    error = poolkit.AcquireTimeout()
    assert_type(error.caller_class, str | None)


def tiers() -> None:
    hot = cluster.TierConfig(name="hot", limit=4, most=2)
    config = cluster.ClusterConfig(tiers=(hot, cluster.TierConfig(name="cold")), tier_window=30, promote_above=0.8)
    assert_type(config.tiers, tuple[cluster.TierConfig, ...])
    for node in cluster.Cluster(lambda node: testing.FakeConnector(), ["a"], config).stats().nodes:
        assert_type(node.tier, str)
        assert_type(node.use, float | None)


def budgets() -> None:
    budget = poolkit.Budget(50, name="db")
    poolkit.Pool(testing.FakeConnector(), budget=budget, budget_weight=2.0).close()
    poolkit.PoolConfig(budget=budget)
    budget.resize(40)
    assert_type(budget.limit, int)
    assert_type(budget.explain(), str)
    stats: poolkit.BudgetStats = budget.stats()
    assert_type(stats.pools, tuple[poolkit.BudgetShare, ...])
    store: fleet.Store = fleet.RedisStore("redis://localhost", timeout=0.5)
    for store in (fleet.FileStore("directory"), fleet.PostgresStore("dbname=shop", table="fleet")):
        with fleet.FleetBudget(store, "db", limit=100, block=4, ttl=10) as shared:
            poolkit.PoolConfig(budget=shared)
            numbers: fleet.FleetStats = shared.fleet()
            assert_type(numbers.granted, int)
    try:
        granted: fleet.Grant = store.exchange(fleet.Ask("db", "me", held=1, want=2, limit=10, ttl=5.0))
        assert_type(granted.permits, int)
    except fleet.StoreDown as down:
        problem: fleet.StoreError = down
        del problem


def frameworks(app: Starlette, site: Flask) -> None:
    pools = asgi.PoolLifespan({"db": lambda: poolkit.AsyncPool(testing.AsyncFakeConnector())}, connect="require")
    Starlette(lifespan=pools, routes=[Route("/ready", pools.ready), Route("/db", asgi.Readiness(pools, ["db"]))])
    FastAPI(lifespan=pools)
    assert_type(pools.ready.check(), dict[str, str])
    mine = flask.FlaskPools({"db": lambda app: poolkit.Pool(testing.FakeConnector(), name=app.name)}, site)
    assert_type(mine.lease("db"), poolkit.Lease[Any])
    assert_type(mine.close(site, timeout=5), dict[str, bool])
    undo: Callable[[], None] = celery.install(warm_up=True, drain_timeout=5)
    undo()


def adapters() -> None:
    import sqlite3

    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_engine("sqlite://", poolclass=poolkit_adapters.sqlalchemy.PoolkitPool)
    assert_type(poolkit_adapters.sqlalchemy.pool_of(engine), poolkit.Pool[Any])
    create_async_engine("sqlite+aiosqlite://", poolclass=poolkit_adapters.sqlalchemy.AsyncPoolkitPool)
    caches = poolkit_adapters.redis.PoolkitConnectionPool.from_url("redis://localhost", decode_responses=True)
    assert_type(caches.poolkit, poolkit.Pool[Any])
    poolkit_adapters.redis.AsyncPoolkitConnectionPool.from_url("redis://localhost")
    assert_type(poolkit_adapters.httpx.PoolkitTransport(max_waiting=3).poolkit, poolkit.Pool[Any])
    assert_type(poolkit_adapters.httpx.AsyncPoolkitTransport().poolkit, poolkit.AsyncPool[Any])
    assert_type(poolkit_adapters.httpx.Client(max_waiting=3).poolkit, poolkit.Pool[Any])
    assert_type(poolkit_adapters.httpx.AsyncClient(timeout=3).poolkit, poolkit.AsyncPool[Any])
    assert_type(poolkit_adapters.httpx.Client().get("http://a/"), httpx.Response)
    assert_type(poolkit_adapters.httpx2.Client().get("http://a/"), httpx2.Response)
    httpx2.Client(transport=poolkit_adapters.httpx2.PoolkitTransport())
    poolkit_adapters.httpcore.PoolkitConnectionPool(http2=True)
    poolkit_adapters.httpcore.AsyncPoolkitConnectionPool(max_connections=3)
    poolkit_adapters.psycopg.PoolkitConnectionPool("dbname=shop", open=False)
    pool = poolkit_adapters.psycopg.AsyncPoolkitConnectionPool("dbname=shop", open=False, leak_after=30)
    assert_type(pool.poolkit.stats(), poolkit.PoolStats)
    assert_type(poolkit_adapters.asyncpg.create_pool("", leak_after=30).poolkit.stats(), poolkit.PoolStats)
    assert_type(poolkit_adapters.dbapi.PooledDatabase(sqlite3, ":memory:").stats(), poolkit.PoolStats)


def shown() -> DashboardApp:
    with start(port=8790, token="sixteen characters", allowed_hosts=["pools.internal"]) as dashboard:
        assert_type(dashboard, Dashboard)
        assert_type(dashboard.address, str)
    start(path="/run/shop/pools.sock", actions=True).close()
    return DashboardApp(token="sixteen characters", allowed_hosts=["pools.internal"])
