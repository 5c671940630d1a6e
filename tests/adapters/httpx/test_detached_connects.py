"""Connects in threads and tasks of the pool: raced against returns, within the limits of the requests that wait, each
error told to those whom it concerns. In threads, on asyncio and on trio.
"""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpcore
import pytest

import poolkit
from poolkit.testing.servers import Certificates, HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until_async

from .h2server import H2Server

pytestmark = pytest.mark.anyio
SOON = 0.3
"""The seconds that a request waits while the connect may take an hour."""
LONG = 3600.0
PLACE = contextvars.ContextVar("PLACE", default="nowhere")
Result = dict[str, Any]


class World:
    """A pool and its callers: in threads, or in tasks."""

    def __init__(self, kind: str) -> None:
        self.threads = kind == "threads"
        self._most = anyio.CapacityLimiter(100)

    @asynccontextmanager
    async def pool(self, **options: Any) -> AsyncIterator[Any]:
        made = (PoolkitConnectionPool if self.threads else AsyncPoolkitConnectionPool)(**options)
        try:
            yield made
            made.poolkit.check_books()
        finally:
            await (self._in_thread(made.close) if self.threads else made.aclose())

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(contextvars.copy_context().run, work, limiter=self._most)

    async def get(self, pool: Any, url: str, trace: list[str] | None = None, /, **timeouts: float | None) -> int:
        """Send a request and return its status."""
        extensions: dict[str, Any] = {"timeout": {"read": PATIENCE, "write": PATIENCE, **timeouts}}
        if self.threads:
            if trace is not None:
                extensions["trace"] = lambda event, info: trace.append(event)
            return (await self._in_thread(lambda: pool.request("GET", url, extensions=extensions))).status  # type: ignore[no-any-return]
        if trace is not None:

            async def note(event: str, info: dict[str, Any]) -> None:
                trace.append(event)

            extensions["trace"] = note
        return (await pool.request("GET", url, extensions=extensions)).status  # type: ignore[no-any-return]

    async def caller(self, result: Result, pool: Any, url: str, /, **options: Any) -> None:
        """A request in a task or thread of its own, and its result."""
        try:
            result["status"] = await self.get(pool, url, **options)
        except Exception as error:
            result["error"] = error

    @asynccontextmanager
    async def held(self, pool: Any, url: str) -> AsyncIterator[None]:
        """Return a response whose reader has not finished."""
        if self.threads:
            context = pool.stream("GET", url)
            response = await self._in_thread(context.__enter__)
            yield
            await self._in_thread(response.read)
            await self._in_thread(lambda: context.__exit__(None, None, None))
        else:
            async with pool.stream("GET", url) as response:
                yield
                await response.aread()


@pytest.fixture(params=["threads", "tasks"])
def world(request: pytest.FixtureRequest, anyio_backend: str) -> World:
    if request.param == "threads" and anyio_backend != "asyncio":
        pytest.skip("threads are the same under each event loop")
    return World(request.param)


@pytest.fixture
def plain(http_server: HTTPServer, fault_proxy: Callable[..., FaultProxy]) -> FaultProxy:
    return fault_proxy(http_server.host, http_server.port)


@pytest.fixture
def secure(https_server: HTTPServer, fault_proxy: Callable[..., FaultProxy]) -> FaultProxy:
    """A proxy before a TLS server. In mode ``hold`` it accepts connections, and their handshake hangs."""
    return fault_proxy(https_server.host, https_server.port)


def at(proxy: FaultProxy, scheme: str = "https") -> str:
    return f"{scheme}://{proxy.host}:{proxy.port}/"


# -- a spike -----------------------------------------------------------------------------------------------------------


async def test_a_spike_of_50_callers_on_5_open_connections_opens_at_most_3(
    world: World, secure: FaultProxy, certificates: Certificates
) -> None:
    async with world.pool(ssl_context=certificates.client_context(), max_connections=30) as pool:
        for _ in range(5):  # a busy machine may take longer than the pauses before further connects
            pool.poolkit.clear()
            secure.latency = 0.03  # connects are slow
            await _at_once(world, pool, at(secure), 5)
            await until_async(lambda: pool.poolkit.stats().idle >= 5, "five are open", pool.poolkit.stats)
            before, secure.latency, secure.swallow = secure.accepted, 0.0, True
            results = await _at_once(world, pool, at(secure), 50)
            opened = secure.accepted - before
            secure.swallow = False
            assert [result for result in results if result != {"status": 200}] == []
            if opened <= 3:
                pool.poolkit.clear()
                return
        raise AssertionError(f"{opened} connects")


async def _at_once(world: World, pool: Any, url: str, number: int, /, **options: Any) -> list[Result]:
    results: list[Result] = [{} for _ in range(number)]
    async with anyio.create_task_group() as group:
        for result in results:
            group.start_soon(lambda result=result: world.caller(result, pool, url, **options))
    return results


async def test_a_caller_takes_a_returned_connection_while_its_connect_goes_on(
    world: World, secure: FaultProxy, certificates: Certificates
) -> None:
    async with world.pool(ssl_context=certificates.client_context(), max_connections=2) as pool:
        result: Result = {}
        async with anyio.create_task_group() as group:
            async with world.held(pool, at(secure)):
                secure.swallow = True
                group.start_soon(lambda: world.caller(result, pool, at(secure), connect=5.0))
                await until_async(lambda: secure.swallowed, "the second connect", pool.poolkit.stats)
        assert result == {"status": 200}


# -- limits of time ----------------------------------------------------------------------------------------------------


async def test_acquire_timeout_limits_the_wait_and_the_connect_together(
    world: World, secure: FaultProxy, certificates: Certificates
) -> None:
    """The caller gets its error in time. The connect goes on, and its connection serves the next caller."""
    context = certificates.client_context()
    async with world.pool(ssl_context=context, max_connections=1, acquire_timeout=SOON) as pool:
        secure.mode = "hold"
        with pytest.raises(httpcore.PoolTimeout) as caught:
            await world.get(pool, at(secure), connect=LONG, pool=LONG)
        assert isinstance(caught.value, poolkit.AcquireTimeout)
        secure.mode = "pass"
        pool.poolkit.reconfigure(acquire_timeout=PATIENCE)
        await until_async(lambda: pool.poolkit.stats().idle == 1, "the connect is kept", pool.poolkit.stats)
        assert await world.get(pool, at(secure)) == 200
        assert secure.accepted == 1


async def test_the_limits_of_a_request_for_the_wait_and_the_connect_count_one_after_the_other(
    world: World, secure: FaultProxy, certificates: Certificates
) -> None:
    """As with httpcore, a connect may take longer than the wait for a connection."""
    async with world.pool(ssl_context=certificates.client_context(), max_connections=1) as pool:
        secure.mode = "hold"
        result: Result = {}
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: world.caller(result, pool, at(secure), connect=LONG, pool=0.05))
            await until_async(lambda: secure.accepted == 1, "the connect", pool.poolkit.stats)
            await anyio.sleep(0.2)
            with pytest.raises(httpcore.PoolTimeout):  # this one has no connect of its own
                await world.get(pool, at(secure), connect=LONG, pool=0.05)
            assert result == {}
            secure.mode = "pass"
        assert result == {"status": 200}


@pytest.mark.parametrize("through", ["request", "pool"])
async def test_a_connect_that_takes_too_long_is_a_connect_timeout(
    world: World, secure: FaultProxy, certificates: Certificates, through: str
) -> None:
    options = {"connect_timeout": SOON} if through == "pool" else {}
    timeouts: dict[str, float] = {"connect": SOON} if through == "request" else {}
    async with world.pool(ssl_context=certificates.client_context(), **options) as pool:
        secure.mode = "hold"
        with pytest.raises(httpcore.ConnectTimeout) as caught:
            await world.get(pool, at(secure), pool=SOON, **timeouts)
        assert isinstance(caught.value, poolkit.ConnectTimeout)
        secure.mode = "pass"
        assert await world.get(pool, at(secure)) == 200


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_each_caller_gets_the_error_of_a_failed_connect_and_an_instance_of_its_own(
    world: World, plain: FaultProxy
) -> None:
    plain.mode = "refuse"
    async with world.pool(max_connecting=1) as pool:
        results = await _at_once(world, pool, at(plain, "http"), 6)
        errors = [result["error"] for result in results]
        assert len({id(error) for error in errors}) == 6
        for error in errors:
            assert isinstance(error, httpcore.ConnectError)
            assert isinstance(error, poolkit.ConnectFailed)
            assert isinstance(error.__cause__, OSError)
        plain.mode = "pass"
        assert await world.get(pool, at(plain, "http")) == 200


async def test_a_server_that_closes_each_new_connection_is_an_error_and_is_not_asked_for_ever(
    world: World, scripted: Callable[..., str]
) -> None:
    url = scripted(lambda connection, number: None)
    async with world.pool() as pool:
        with pytest.raises((httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)):
            await world.get(pool, url)


# -- whose connect it is -----------------------------------------------------------------------------------------------


async def test_a_connect_runs_in_the_context_of_the_request_and_tells_its_trace(world: World, secure: FaultProxy,
    certificates: Certificates) -> None:  # fmt: skip
    seen: list[str] = []

    class Traced(list[str]):
        def append(self, event: str) -> None:
            seen.append(PLACE.get())
            super().append(event)

    trace = Traced()
    PLACE.set("here")
    async with world.pool(ssl_context=certificates.client_context()) as pool:
        assert await world.get(pool, at(secure), trace) == 200
        assert trace[:5] == [
            "connection.connect_tcp.started", "connection.connect_tcp.complete", "connection.start_tls.started",
            "connection.start_tls.complete", "http11.send_request_headers.started",
        ]  # fmt: skip
        assert set(seen) == {"here"}
        again: list[str] = []
        assert await world.get(pool, at(secure), again) == 200
        assert again == trace[4:]


async def test_a_connect_whose_caller_is_cancelled_serves_the_next_one(
    world: World, secure: FaultProxy, certificates: Certificates
) -> None:
    if world.threads:
        pytest.skip("a thread cannot be cancelled")
    async with world.pool(ssl_context=certificates.client_context(), max_connections=1) as pool:
        secure.mode = "hold"
        for _ in range(3):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: world.get(pool, at(secure), connect=LONG))
                await until_async(lambda: secure.accepted == 1, "the connect", pool.poolkit.stats)
                group.cancel_scope.cancel()
        secure.mode = "pass"
        assert await world.get(pool, at(secure)) == 200
        assert secure.accepted == 1


async def test_a_connect_without_a_limit_ends_when_no_caller_waits_for_it(
    world: World, secure: FaultProxy, certificates: Certificates
) -> None:
    if world.threads:
        pytest.skip("a thread cannot be cancelled")
    async with world.pool(ssl_context=certificates.client_context(), max_connections=1) as pool:
        secure.mode = "hold"
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: world.get(pool, at(secure)))
            await until_async(lambda: secure.accepted == 1, "the connect", pool.poolkit.stats)
            group.cancel_scope.cancel()
        await until_async(lambda: not pool.poolkit.stats().size, "its place is free", pool.poolkit.stats)


# -- HTTP/2 ------------------------------------------------------------------------------------------------------------


async def test_requests_that_wait_for_one_connect_share_the_http2_connection(
    world: World, certificates: Certificates, h2_server: Callable[[int], H2Server],
    fault_proxy: Callable[..., FaultProxy],
) -> None:  # fmt: skip
    server = h2_server(100)
    proxy = fault_proxy("127.0.0.1", httpcore.URL(server.url).port)
    async with world.pool(ssl_context=certificates.client_context(), http2=True) as pool:
        results = await _at_once(world, pool, at(proxy), 20)
        assert [result for result in results if result != {"status": 200}] == []
        assert proxy.accepted <= 2  # a second one only if the first one is late


async def test_a_cancelled_first_request_leaves_the_http2_connection_to_others(
    world: World, secure: FaultProxy, certificates: Certificates
) -> None:
    if world.threads:
        pytest.skip("a thread cannot be cancelled")
    async with world.pool(ssl_context=certificates.client_context(), http2=True) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: world.get(pool, at(secure) + "sleep?ms=600000"))
            await until_async(lambda: pool.poolkit.stats().leases == 1, "the request", pool.poolkit.stats)
            group.cancel_scope.cancel()
        assert await world.get(pool, at(secure)) == 200
        assert pool.poolkit.stats().connect_errors == 0
