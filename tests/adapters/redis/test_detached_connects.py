"""Connects in threads and tasks of the pool: raced against returns, within the caller's deadline, each error told to
those whom it concerns. Sync and asyncio alike.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

import poolkit
from poolkit import BackoffConfig, ConfigError, Setting
from poolkit.policies.connects import growth
from poolkit.testing.servers import Certificates, RedisServer
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until, until_async

from .rogue import RogueRedis

pytestmark = pytest.mark.anyio
SOON = 0.3
"""The seconds that a caller waits while the connect may take ten minutes."""
LONG = 600.0
PLACE = contextvars.ContextVar("PLACE", default="nowhere")


_threads = ThreadPoolExecutor(64)  # more than callers, most of which wait for a connection of another


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run it in a thread, in a copy of the context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, context.run, function, *args)


class World:
    """A pool and its callers: in threads, or in tasks."""

    def __init__(self, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.driver: Any = redis.asyncio if asynchronous else redis
        self.never: Any = (redis.asyncio.retry.Retry if asynchronous else redis.retry.Retry)(NoBackoff(), 0)

    @asynccontextmanager
    async def pool(self, **arguments: Any) -> AsyncIterator[Any]:
        kind: Any = AsyncPoolkitConnectionPool if self.asynchronous else PoolkitConnectionPool
        pool = kind(**{"retry": self.never, **arguments})
        try:
            yield pool
            pool.poolkit.check_books()
        finally:
            await (pool.aclose() if self.asynchronous else in_thread(pool.close))

    async def get(self, pool: Any) -> Any:
        return await (pool.get_connection() if self.asynchronous else in_thread(pool.get_connection))

    async def give(self, pool: Any, connection: Any) -> None:
        if self.asynchronous:
            await pool.release(connection)
        else:
            pool.release(connection)

    async def ping(self, pool: Any) -> None:
        connection = await self.get(pool)
        if self.asynchronous:
            await connection.send_command("PING")
            answer = await connection.read_response()
        else:
            await in_thread(connection.send_command, "PING")
            answer = await in_thread(connection.read_response)
        assert answer in (b"PONG", "PONG")
        await self.give(pool, connection)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def world(request: pytest.FixtureRequest) -> World:
    return World(asynchronous=request.param)


@pytest.fixture
def proxy(redis_server: RedisServer, fault_proxy: Callable[..., FaultProxy]) -> FaultProxy:
    return fault_proxy(redis_server.host, redis_server.port)


def at(server: Any, **arguments: Any) -> dict[str, Any]:
    return {"host": server.host, "port": server.port, **arguments}


# -- a spike -----------------------------------------------------------------------------------------------------------


async def test_a_spike_of_50_callers_on_5_open_connections_opens_few(world: World, proxy: FaultProxy) -> None:
    """At most 2 in 50 ms, which are enough for the callers. On a busy machine they may take longer, and get more."""
    async with world.pool(**at(proxy, max_connections=30)) as pool:
        proxy.latency = 0.2  # connects are slow
        for connection in [await world.get(pool) for _ in range(5)]:
            await world.give(pool, connection)
        await until_async(lambda: pool.poolkit.stats().idle >= 5, "five are open", pool.poolkit.stats)
        before, proxy.latency, proxy.swallow = proxy.accepted, 0.0, True
        begun = time.monotonic()
        await asyncio.gather(*(world.ping(pool) for _ in range(50)))
        spent, opened = time.monotonic() - begun, proxy.accepted - before
        proxy.swallow = False
        assert opened <= 1 + sum(growth(0.05, opening) <= spent for opening in range(30)), f"{spent:.3f} s"


async def test_a_caller_takes_a_returned_connection_while_its_connect_goes_on(world: World, proxy: FaultProxy) -> None:
    async with world.pool(**at(proxy, max_connections=2)) as pool:
        held = await world.get(pool)
        proxy.mode = "hold"
        second = asyncio.ensure_future(world.get(pool))
        await until_async(lambda: proxy.accepted == 2, "the second connect", pool.poolkit.stats)
        await world.give(pool, held)
        assert await second is held
        proxy.mode = "pass"
        await until_async(lambda: pool.poolkit.stats().idle == 1, "the connect is kept", pool.poolkit.stats)
        await world.give(pool, held)


# -- one deadline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["TCP", "TLS", "HELLO", "AUTH", "CLIENT"])
async def test_the_caller_gets_its_error_at_its_deadline_and_the_connect_goes_on(
    world: World, phase: str, certificates: Certificates
) -> None:
    with RogueRedis() as rogue:
        given = at(rogue, max_connections=1, timeout=SOON, socket_connect_timeout=LONG, socket_timeout=LONG)
        if phase == "TLS":
            rogue.silent = True
            authority = certificates.authority.cert_pem.bytes().decode()
            given.update(connection_class=world.driver.SSLConnection, ssl_ca_data=authority)
        given.update(protocol=3) if phase == "HELLO" else given.update(protocol=2)
        if phase == "AUTH":
            given["password"] = "secret"
        rogue.silent = phase in ("TCP", "TLS")
        rogue.mute = {phase}
        async with world.pool(**given) as pool:
            for _ in range(2):  # the second one finds the only slot taken
                with pytest.raises(redis.ConnectionError) as caught:
                    await world.get(pool)
                assert isinstance(caught.value, poolkit.AcquireTimeout)
                assert not isinstance(caught.value, poolkit.ConnectTimeout)
            stats = pool.poolkit.stats()
            assert (stats.connecting, stats.size, stats.waiting, rogue.sessions) == (1, 1, 0, 1)
            rogue.reset()  # the connect ends, and its slot is free
            await until_async(lambda: pool.poolkit.stats().size == 0, "its place is free", pool.poolkit.stats)


async def test_a_connect_that_its_caller_did_not_await_serves_the_next(world: World, proxy: FaultProxy) -> None:
    proxy.mode = "hold"
    async with world.pool(**at(proxy, timeout=SOON, socket_connect_timeout=LONG, socket_timeout=LONG)) as pool:
        with pytest.raises(poolkit.AcquireTimeout):
            await world.get(pool)
        proxy.mode = "pass"
        pool.timeout = 30
        await world.ping(pool)
        assert proxy.accepted == 1


async def test_a_connect_that_hangs_ends_with_its_own_limit(world: World, proxy: FaultProxy) -> None:
    """The application's function has no limit of its own. In a task it is ended; in a thread it cannot be."""
    proxy.mode = "silent"
    async with world.pool(**at(proxy, timeout=SOON, socket_timeout=None, connect_timeout=0.2)) as pool:
        with pytest.raises(redis.RedisError):
            await world.get(pool)
        await until_async(lambda: pool.poolkit.stats().size == 0, "its place is free", pool.poolkit.stats)


async def test_a_function_of_the_application_that_hangs_ends_with_the_limit_of_the_connect(proxy: FaultProxy) -> None:
    async def never(connection: Any) -> None:
        await asyncio.Event().wait()

    tasks = World(asynchronous=True)
    given = at(proxy, timeout=SOON, socket_timeout=None, connect_timeout=0.2, redis_connect_func=never)
    async with tasks.pool(**given) as pool:
        with pytest.raises(redis.RedisError):
            await tasks.get(pool)
        await until_async(lambda: pool.poolkit.stats().size == 0, "its place is free", pool.poolkit.stats)
        await until_async(lambda: proxy.open == 0, "its session has ended", pool.poolkit.stats)


async def test_an_idle_connection_that_has_died_costs_no_second_deadline(world: World, proxy: FaultProxy) -> None:
    async with world.pool(**at(proxy, socket_connect_timeout=LONG, socket_timeout=LONG)) as pool:
        await world.ping(pool)
        proxy.cut()
        proxy.swallow = True
        await until_async(lambda: proxy.open == 0, "the idle one is closed", pool.poolkit.stats)
        pool.timeout = SOON
        with pytest.raises(poolkit.AcquireTimeout):
            await world.get(pool)
        proxy.cut()


# -- errors ------------------------------------------------------------------------------------------------------------


async def errors_of(world: World, pool: Any, callers: int) -> list[BaseException]:
    found = await asyncio.gather(*(world.get(pool) for _ in range(callers)), return_exceptions=True)
    assert all(isinstance(error, BaseException) for error in found)
    return found


async def test_each_caller_has_an_error_of_its_own(world: World, proxy: FaultProxy) -> None:
    proxy.mode = "refuse"
    async with world.pool(**at(proxy, max_connections=8, max_connecting=4)) as pool:
        errors = await errors_of(world, pool, 8)
        assert len({id(error) for error in errors}) == 8
        for error in errors:
            assert isinstance(error, redis.ConnectionError)
            assert isinstance(error, poolkit.ConnectFailed)
            assert isinstance(error.__cause__, redis.ConnectionError)
            assert str(proxy.port) in str(error)
        assert pool.poolkit.stats().connect_errors <= 8


async def test_each_caller_has_redis_pys_specific_error(world: World, redis_server: RedisServer) -> None:
    given = at(redis_server, username="nobody", password="wrong", max_connections=4)
    async with world.pool(**given) as pool:
        errors = await errors_of(world, pool, 6)
        assert len({id(error) for error in errors}) == 6
        for error in errors:
            assert isinstance(error, redis.AuthenticationError)
            assert isinstance(error, poolkit.ConnectFailed)
            assert "WRONGPASS" in str(error) or "invalid username" in str(error)


async def test_callers_during_a_backoff_share_the_next_try(world: World, proxy: FaultProxy) -> None:
    proxy.mode = "refuse"
    backoff = BackoffConfig(base=0.2, cap=0.2)
    async with world.pool(**at(proxy, max_connections=8, backoff=backoff)) as pool:
        await errors_of(world, pool, 1)
        before = pool.poolkit.stats().connect_errors
        await errors_of(world, pool, 8)
        assert pool.poolkit.stats().connect_errors <= before + 4  # one, and one for each that came too late for it
        proxy.mode = "pass"
        await world.ping(pool)


async def test_redis_pys_own_retries_are_made(world: World, proxy: FaultProxy) -> None:
    tries: list[str] = []

    def refuse() -> None:
        tries.append(PLACE.get())
        raise redis.ConnectionError("not yet")

    def sync(connection: Any) -> None:
        refuse()

    async def coroutine(connection: Any) -> None:
        refuse()

    kind: Any = type(world.never)
    function: Any = coroutine if world.asynchronous else sync
    async with world.pool(**at(proxy, redis_connect_func=function, retry=kind(NoBackoff(), 3))) as pool:
        PLACE.set("here")
        with pytest.raises(redis.ConnectionError, match="not yet"):
            await world.get(pool)
    assert set(tries) == {"here"}, "in the context of the caller"
    assert len(tries) in (1, 4), "redis-py before 6 repeats only the TCP connect"


# -- the limit ---------------------------------------------------------------------------------------------------------


# the server of this test, asyncio's, leaves sessions to the collector whose client was gone before it had accepted them
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_never_more_sessions_than_the_limit_under_cancels(world: World) -> None:
    with RogueRedis() as rogue:
        async with world.pool(**at(rogue, max_connections=3, protocol=3, socket_timeout=5)) as pool:
            for turn in range(60):
                tasks = [asyncio.ensure_future(world.get(pool)) for _ in range(6)]
                await asyncio.sleep(0.0005 * (turn % 8))
                for task in tasks if world.asynchronous else ():
                    task.cancel()
                if not world.asynchronous:
                    pool.poolkit.clear()  # threads cannot be cancelled: close what they open
                for task in asyncio.as_completed(tasks) if not world.asynchronous else ():
                    await world.give(pool, await task)
                for found in await asyncio.gather(*tasks, return_exceptions=True):
                    if world.asynchronous and not isinstance(found, BaseException):
                        await pool.release(found)
                if turn % 3 == 0:
                    pool.poolkit.clear()
                # the server needs a moment to see that its client has closed a connection
                await until_async(lambda: rogue.sockets <= 3, "no session is one too many")
            await until_async(lambda: pool.poolkit.stats().connecting == 0, "all have ended", pool.poolkit.stats)
        await until_async(lambda: rogue.sockets == 0, "the server has closed them", lambda: rogue.sockets)
    gc.collect()


async def test_20_half_open_connections_cost_one_error(world: World, proxy: FaultProxy) -> None:
    async with world.pool(**at(proxy, max_connections=20, socket_timeout=0.5, check_timeout=0.5)) as pool:
        client: Any = world.driver.Redis(connection_pool=pool)

        async def echo(text: str) -> Any:
            return await client.echo(text) if world.asynchronous else await in_thread(client.echo, text)

        for connection in [await world.get(pool) for _ in range(20)]:
            await world.give(pool, connection)
        proxy.freeze()
        failed = 0
        for turn in range(20):
            try:
                assert await echo(f"{turn}") == b"%d" % turn
            except redis.RedisError:
                failed += 1
        assert failed == 1


# -- commands for the whole pool while a connect is under way ----------------------------------------------------------


@pytest.mark.parametrize("command", ["disconnect", "reset"])
async def test_a_caller_is_served_although_the_pool_is_emptied(world: World, proxy: FaultProxy, command: str) -> None:
    async with world.pool(**at(proxy, max_connections=1, socket_timeout=30)) as pool:
        proxy.mode = "hold"
        caller = asyncio.ensure_future(world.get(pool))
        await until_async(lambda: proxy.accepted == 1, "the connect", pool.poolkit.stats)
        result = getattr(pool, command)()
        if asyncio.iscoroutine(result):
            await result
        proxy.mode = "pass"
        await world.give(pool, await caller)
        await world.ping(pool)
        await until_async(lambda: proxy.open <= 1, "one session", pool.poolkit.stats)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_connect_is_under_way(proxy: FaultProxy, redis_server: RedisServer) -> None:
    pool = PoolkitConnectionPool(**at(proxy, max_connections=1, socket_timeout=30))
    client = redis.Redis(connection_pool=pool)
    proxy.mode = "hold"
    caller = threading.Thread(target=client.ping)
    caller.start()
    until(lambda: proxy.accepted == 1)
    child = os.fork()
    if not child:
        try:
            pool.connection_kwargs["port"] = redis_server.port
            os._exit(0 if client.ping() else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    proxy.mode = "pass"
    caller.join()
    assert proxy.accepted == 1
    pool.close()


# -- in the caller -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "source"),
    [({"connect_in_caller": True}, "keyword"), ({"timeout": 0}, "required by timeout=0"), ({}, "default")],
)
async def test_who_connects(world: World, redis_server: RedisServer, given: dict[str, Any], source: str) -> None:
    where: list[Any] = []

    def sync(connection: Any) -> None:
        where.append(threading.current_thread())
        connection.on_connect()

    async def coroutine(connection: Any) -> None:
        where.append(asyncio.current_task())
        await connection.on_connect()

    function: Any = coroutine if world.asynchronous else sync
    async with world.pool(**at(redis_server, redis_connect_func=function, **given)) as pool:
        if world.asynchronous:
            me: Any = asyncio.current_task()
            await pool.release(await pool.get_connection())
        else:
            me = threading.current_thread()
            pool.release(pool.get_connection())
        assert where[0] is me if given else where[0] is not me
        assert pool.poolkit.describe()["connect_in_caller"] == Setting(bool(given), source)


async def test_the_timeout_of_a_live_pool_decides_whether_callers_connect(
    world: World, redis_server: RedisServer
) -> None:
    async with world.pool(**at(redis_server, timeout=5)) as pool:
        config = lambda: pool.poolkit.config.connect_in_caller  # noqa: E731
        assert not config()
        pool.timeout = 0
        assert config()
        held = [await world.get(pool), await world.get(pool)]
        pool.timeout = 5
        assert not config()
        for connection in held:
            await world.give(pool, connection)


def test_a_caller_that_does_not_wait_has_to_connect() -> None:
    for kind in (PoolkitConnectionPool, AsyncPoolkitConnectionPool):
        with pytest.raises(ConfigError, match="connect_in_caller=False: a caller that does not wait has to open"):
            kind(timeout=0, connect_in_caller=False)
