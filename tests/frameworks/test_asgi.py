"""Pools in ASGI applications: opened at the start, found by requests, drained at the end; readiness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import httpx
import psycopg
import pytest
import redis
import redis.asyncio
import requests
import uvicorn
from fastapi import Depends, FastAPI, Request
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from poolkit import AsyncPool, BreakerConfig, ConfigError, ConnectFailed, Pool, UsageError
from poolkit.cluster import AsyncCluster, ShardedCluster
from poolkit.frameworks.asgi import PoolLifespan, Readiness
from poolkit.testing import AsyncFakeConnector, FakeConnector, ManualClock
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer, free_port
from poolkit_adapters import asyncpg as asyncpg_adapter
from poolkit_adapters.httpx import AsyncPoolkitClusterTransport, AsyncPoolkitTransport, PoolkitTransport
from poolkit_adapters.psycopg import AsyncPoolkitCluster, AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.redis import AsyncPoolkitConnectionPool as AsyncRedisPool
from poolkit_adapters.redis import AsyncPoolkitServerGroup
from poolkit_adapters.redis import PoolkitConnectionPool as RedisPool
from poolkit_adapters.requests import PoolkitAdapter
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from poolkit_adapters.urllib3 import PoolkitPoolManager

Get = Callable[[str], Awaitable[httpx.Response]]


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application in its own uvicorn, as in production; end it as SIGTERM does."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="on", log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the server has given up"
        await asyncio.sleep(0.01)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[Get]:
    """Run the application without a server, on any event loop; yields a function that gets a page."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://app") as client:
            yield client.get


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_all_objects_that_use_a_pool_serve_requests_and_are_closed_at_shutdown(
    postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer
) -> None:
    """Seven kinds of objects under uvicorn; afterwards the servers have none of their sessions left."""
    plain, url = (f"{url}?application_name=lifespan" for url in (postgres.url, postgres.sqlalchemy_url()))
    assert plain.count("?") == url.count("?") == 1
    pools = PoolLifespan(
        {
            "psycopg_async": lambda: AsyncPoolkitConnectionPool(plain, min_size=1, open=False),
            "psycopg": lambda: PoolkitConnectionPool(plain, min_size=1, open=False),
            "alchemy_async": lambda: create_async_engine(url, poolclass=AsyncPoolkitPool),
            "alchemy": lambda: create_engine(url, poolclass=PoolkitPool),
            "redis_async": lambda: redis.asyncio.Redis(
                connection_pool=AsyncRedisPool.from_url(redis_server.url, client_name="lifespan")
            ),
            "redis": lambda: redis.Redis(connection_pool=RedisPool.from_url(redis_server.url, client_name="lifespan")),
            "http_async": lambda: httpx.AsyncClient(transport=AsyncPoolkitTransport(), base_url=http_server.url),
            "http": lambda: httpx.Client(transport=PoolkitTransport(), base_url=http_server.url),
        },
        connect="require",
    )
    seen: dict[str, Any] = {}

    async def use(request: Any) -> JSONResponse:
        state = request.state
        async with state.psycopg_async.connection() as connection:
            [a] = await (await connection.execute("select 1")).fetchone()
        async with state.alchemy_async.connect() as connection:
            b = (await connection.execute(text("select 1"))).scalar()
        await state.redis_async.ping()
        answer = await state.http_async.get("/echo", params={"key": "x"})

        def sync() -> list[Any]:
            with state.psycopg.connection() as connection, state.alchemy.connect() as other:
                numbers = [connection.execute("select 1").fetchone()[0], other.execute(text("select 1")).scalar()]
            state.redis.ping()
            return [*numbers, state.http.get("/echo", params={"key": "y"}).status_code]

        seen.update(state._state)
        return JSONResponse([a, b, answer.status_code, *await anyio.to_thread.run_sync(sync)])

    async with served(Starlette(lifespan=pools, routes=[Route("/", use), Route("/ready", pools.ready)])) as client:
        assert (await client.get("/")).json() == [1, 1, 200, 1, 1, 200]
        assert (await client.get("/ready")).json() == {"ready": True, "pools": dict.fromkeys(seen, "ok")}
        with psycopg.connect(postgres.url) as other:
            count = "select count(*) from pg_stat_activity where application_name = 'lifespan'"
            assert other.execute(count).fetchone() == (4,)
    with psycopg.connect(postgres.url, autocommit=True) as other:
        for _ in range(500):
            if other.execute(count).fetchone() == (0,):
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("sessions are left")
    with redis.Redis.from_url(redis_server.url) as other_client:
        assert not [one for one in other_client.client_list() if one["name"] == "lifespan"]
    assert seen["http_async"].is_closed
    assert seen["psycopg"].closed


@pytest.mark.anyio
async def test_a_start_that_requires_connections_fails_without_them_and_leaves_nothing_open() -> None:
    """connect="require" fails at once; pools that could connect are closed again."""
    good, bad = AsyncFakeConnector(), FakeConnector()
    bad.fail("connect", lambda: ConnectionRefusedError("refused"))
    pools = PoolLifespan({"good": lambda: AsyncPool(good), "bad": lambda: Pool(bad)}, connect="require")
    with pytest.raises(ConnectFailed, match="refused"):
        async with running(Starlette(lifespan=pools)):
            pytest.fail("it has started")
    assert good.calls["connect"] == 1
    assert good.live == 0


@pytest.mark.anyio
async def test_a_start_that_only_tries_to_connect_logs_the_failure_and_continues(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """connect="try", the default: the application serves, and the pool keeps trying by its own rules."""
    connector = AsyncFakeConnector()
    connector.fail("connect", lambda: ConnectionRefusedError("refused"))
    pools = PoolLifespan({"db": lambda: AsyncPool(connector)})
    with caplog.at_level(logging.WARNING, "poolkit"):
        async with running(Starlette(lifespan=pools)):
            assert "db cannot connect yet" in caplog.text
            connector.fail("connect", None)
            async with pools["db"].lease(timeout=5):
                pass


@pytest.mark.anyio
async def test_connects_that_are_running_do_not_count_as_open_connections() -> None:
    """The start waits for a pool that connects by itself (start="eager")."""
    connector = FakeConnector()
    connector.fail("connect", lambda: ConnectionRefusedError("refused"))
    pools = PoolLifespan({"db": lambda: Pool(connector, min_size=1, start="eager")}, connect="require")
    with pytest.raises(ConnectFailed):
        async with running(Starlette(lifespan=pools)):
            pytest.fail("it has started")


@pytest.mark.anyio
async def test_the_application_has_its_own_lifespan_inside() -> None:
    """It runs while the pools are open, and both add to the state of requests."""
    connector = AsyncFakeConnector()
    order = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, Any]]:
        async with pools["db"].lease():
            order.append("started")
        yield {"answer": 42}
        async with pools["db"].lease():
            order.append("stopping")

    async def show(request: Any) -> JSONResponse:
        async with request.state.db.lease() as connection:
            return JSONResponse([request.state.answer, str(connection)])

    pools = PoolLifespan({"db": lambda: AsyncPool(connector)}, inside=own)
    async with running(Starlette(lifespan=pools, routes=[Route("/", show)])) as get:
        assert (await get("/")).json() == [42, "<FakeConnection 1>"]
    assert order == ["started", "stopping"]
    assert connector.live == 0


async def database(request: Request) -> AsyncIterator[Any]:
    """A dependency, as in the guide."""
    async with request.state.db.lease() as connection:
        yield connection


@pytest.mark.anyio
async def test_fastapi_gives_leases_by_a_dependency() -> None:
    """The recipe of the guide."""
    connector = AsyncFakeConnector()
    pools = PoolLifespan({"db": lambda: AsyncPool(connector, max_size=1)})
    app = FastAPI(lifespan=pools)
    app.add_route("/ready", pools.ready)

    @app.get("/")
    async def show(connection: Annotated[Any, Depends(database)]) -> str:
        return str(connection)

    async with running(app) as get:
        assert [(await get("/")).json() for _ in range(2)] == ["<FakeConnection 1>"] * 2
        assert (await get("/ready")).status_code == 200


@pytest.mark.anyio
async def test_work_that_runs_at_shutdown_may_finish_within_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """A background task has a lease when the application stops: it keeps its connection until it returns it."""
    connector = AsyncFakeConnector()
    pools = PoolLifespan({"db": lambda: AsyncPool(connector)}, drain_timeout=20)
    done = []

    async with anyio.create_task_group() as group:
        holding = anyio.Event()

        async def work(pool: Any) -> None:
            async with pool.lease() as connection:
                holding.set()
                while not pool.closed:
                    await anyio.sleep(0.001)
                done.append(connection.alive)

        async with running(Starlette(lifespan=pools)):
            group.start_soon(work, pools["db"])
            await holding.wait()
    assert done == [True]
    assert "cut" not in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_statements_of_an_asynchronous_engine_may_finish_too(caplog: pytest.LogCaptureFixture) -> None:
    """Its pool uses greenlets, and is drained in one."""
    pools = PoolLifespan(
        {"db": lambda: create_async_engine("sqlite+aiosqlite://", poolclass=AsyncPoolkitPool)}, drain_timeout=20
    )
    done = []

    async with anyio.create_task_group() as group:
        holding = anyio.Event()

        async def work(engine: Any) -> None:
            async with engine.connect() as connection:
                holding.set()
                while not engine.pool.poolkit.closed:
                    await anyio.sleep(0.001)
                done.append((await connection.execute(text("select 42"))).scalar())

        async with running(Starlette(lifespan=pools)):
            group.start_soon(work, pools["db"])
            await holding.wait()
    assert done == [42]
    assert "cut" not in caplog.text


@pytest.mark.anyio
async def test_work_that_takes_too_long_is_aborted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """drain_timeout limits the shutdown, for pools of threads and of tasks."""
    connectors = AsyncFakeConnector(), FakeConnector()
    pools = PoolLifespan(
        {"tasks": lambda: AsyncPool(connectors[0]), "threads": lambda: Pool(connectors[1])}, drain_timeout=0.05
    )
    async with running(Starlette(lifespan=pools)):
        await pools["tasks"].acquire()
        pools["threads"].acquire()
    assert [connector.live for connector in connectors] == [0, 0]
    for name in ("tasks", "threads"):
        assert f"leases of {name} did not end within 0.05 s" in caplog.text


@pytest.mark.anyio
async def test_functions_create_new_pools_at_each_start_and_a_closed_pool_is_refused() -> None:
    """An application object may be started again, as test clients do."""
    pool = AsyncPool(AsyncFakeConnector())
    app = Starlette(lifespan=PoolLifespan({"db": lambda: AsyncPool(AsyncFakeConnector())}))
    for _ in range(2):
        async with running(app):
            pass
    app = Starlette(lifespan=PoolLifespan({"db": pool}))
    async with running(app):
        pass
    with pytest.raises(UsageError, match=r"'db' is closed; .* give a function"):
        async with running(app):
            pytest.fail("it has started")


@pytest.mark.anyio
async def test_a_function_that_fails_closes_the_pools_created_before_it() -> None:
    """The server shows the error of the function."""
    made: list[Any] = []

    def first() -> Any:
        made.append(AsyncPool(AsyncFakeConnector()))
        return made[0]

    def second() -> Any:
        raise LookupError("no URL")

    with pytest.raises(LookupError, match="no URL"):
        async with running(Starlette(lifespan=PoolLifespan({"one": first, "two": second}))):
            pytest.fail("it has started")
    assert made[0].closed


@pytest.mark.anyio
async def test_readiness_follows_suspension_and_breaker_and_recovers_by_itself() -> None:
    """503 while suspended or while the breaker is open; ready again when a probe is due, which needs a request."""
    clock, connector = ManualClock(), AsyncFakeConnector()
    breaker = BreakerConfig(failure_threshold=1, reset_timeout=30)
    pools = PoolLifespan({"db": lambda: AsyncPool(connector, breaker=breaker, clock=clock)}, connect="lazy")
    app = Starlette(lifespan=pools, routes=[Route("/ready", pools.ready), Mount("/mounted", pools.ready)])

    async with running(app) as get:

        async def ready(path: str = "/ready") -> tuple[int, str]:
            answer = await get(path)
            return answer.status_code, answer.json()["pools"]["db"]

        assert await ready() == await ready("/mounted/") == (200, "ok")
        pools["db"].suspend()
        assert await ready() == (503, "suspended")
        pools["db"].resume()
        connector.fail("connect", lambda: ConnectionRefusedError("refused"))
        with pytest.raises(ConnectFailed):
            await pools["db"].acquire()
        assert await ready() == (503, "circuit open")
        clock.advance(30)
        assert await ready() == (200, "ok")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(pools.ready), base_url="http://app") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "pools": {}})


@pytest.mark.anyio
async def test_readiness_checks_the_named_pools_and_one_serving_node_of_a_cluster_is_enough() -> None:
    """A cache that is down does not have to make the process unready."""
    pools = PoolLifespan(
        {
            "cache": lambda: AsyncPool(AsyncFakeConnector()),
            "shards": lambda: AsyncCluster(lambda node: AsyncFakeConnector(), ["one", "two"]),
        },
        connect="lazy",
    )
    vital = Readiness(pools, ["shards"])
    async with running(Starlette(lifespan=pools)):
        pools["cache"].suspend()
        pools["shards"].pool("one").suspend()
        assert vital.check() == {"shards": "ok"}
        pools["shards"].pool("two").suspend()
        assert vital.check() == {"shards": "every node: suspended"}
        assert pools.ready.check()["cache"] == "suspended"
    with pytest.raises(ConfigError, match="'shard': no such pool; the pools are cache, shards"):
        Readiness(pools, ["shard"])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clusters_of_every_driver_are_found_checked_and_drained() -> None:
    """Also those used by a redis client and by an httpx transport or client."""
    nodes = ["127.0.0.1:1", "127.0.0.1:2"]
    group = AsyncPoolkitServerGroup(nodes, roles=False)
    transports = [AsyncPoolkitClusterTransport(nodes) for _ in range(2)]
    clusters: dict[str, Any] = {
        "psycopg": AsyncPoolkitCluster([f"host=127.0.0.1 port={port}" for port in (1, 2)]),
        "redis": group.client(),
        "transport": transports[0],
        "client": httpx.AsyncClient(transport=transports[1]),
    }
    pools = PoolLifespan(clusters)
    behind = [transport.cluster for transport in transports]  # a closed transport creates a new one
    async with running(Starlette(lifespan=pools)):
        assert pools.ready.check() == dict.fromkeys(clusters, "ok")
        for node in group.nodes:
            group.pool(node.name).poolkit.suspend()
        assert pools.ready.check()["redis"] == "every node: suspended"
    assert [one.closed for one in (clusters["psycopg"], group, *behind)] == [True] * 4


def test_invalid_arguments_are_refused_at_once() -> None:
    """Each error names the setting and the value."""
    pool = Pool(FakeConnector())
    with pytest.raises(ConfigError, match="db=Redis: does not use a poolkit pool"):
        PoolLifespan({"db": redis.Redis()})
    with pytest.raises(ConfigError, match="connect='eager': must be 'require', 'try' or 'lazy'"):
        PoolLifespan({"db": pool}, connect="eager")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="drain_timeout=None: must be a time in seconds"):
        PoolLifespan({"db": pool}, drain_timeout=None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'db' is open only while the application runs"):
        PoolLifespan({"db": pool})["db"]
    pool.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("connect", ["require", "try", "lazy"])
async def test_the_pool_of_asyncpg_is_opened_and_closed(postgres: PostgresServer, connect: Any) -> None:
    pools = PoolLifespan({"db": lambda: asyncpg_adapter.create_pool(postgres.url, min_size=1)}, connect=connect)

    async def one(request: Any) -> JSONResponse:
        return JSONResponse(await request.state.db.fetchval("select 1"))

    async with running(Starlette(lifespan=pools, routes=[Route("/", one), Route("/ready", pools.ready)])) as get:
        assert (await get("/")).json() == 1
        assert (await get("/ready")).status_code == 200
        pool = pools["db"]
    assert pool.poolkit.closed
    assert pool.is_closing() or pool._closed


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_pool_of_asyncpg_that_was_never_opened_is_closed_without_an_error(postgres: PostgresServer) -> None:
    """Another pool is closed already, so that the start ends before this one is opened. That is the error to report."""
    made: list[Any] = []

    def create() -> Any:
        made.append(asyncpg_adapter.create_pool(postgres.url, min_size=1))
        return made[-1]

    closed = AsyncPool(AsyncFakeConnector())
    await closed.close()
    pools = PoolLifespan({"db": create, "other": closed})
    with pytest.raises(UsageError, match="the pool of 'other' is closed"):
        async with running(Starlette(lifespan=pools)):
            pytest.fail("the application started")
    assert made[0].poolkit.closed


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_start_fails_if_the_pool_of_asyncpg_cannot_be_opened() -> None:
    url = f"postgresql://app@127.0.0.1:{free_port()}/shop"
    pools = PoolLifespan({"db": lambda: asyncpg_adapter.create_pool(url, min_size=1)})
    with pytest.raises((ConnectFailed, OSError)):
        async with running(Starlette(lifespan=pools)):
            pytest.fail("the application started with a pool that is closed for good")


def test_objects_with_several_pools_are_refused() -> None:
    """docs/guides/frameworks.md names them."""
    session = requests.Session()
    session.mount("https://", PoolkitAdapter())
    for thing in (
        ShardedCluster({"a": Pool(FakeConnector())}),
        PoolkitPoolManager(),
        session,
        httpx.Client(mounts={"https://": PoolkitTransport()}),
    ):
        with pytest.raises(ConfigError, match="does not use a poolkit pool"):
            PoolLifespan({"it": thing})
