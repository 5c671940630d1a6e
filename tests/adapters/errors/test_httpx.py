"""Each error of the httpx and httpcore adapters happens, on a real server, and is poolkit's and the driver's."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpcore
import httpx
import pytest

import poolkit
from poolkit import BreakerConfig
from poolkit.testing.servers import HTTPServer
from poolkit_adapters import httpcore as core
from poolkit_adapters import httpx as adapter
from poolkit_adapters._errors import Row
from poolkit_adapters.httpcore._errors import ERRORS as CORE_ERRORS
from poolkit_adapters.httpx._cluster import CLUSTER_ERRORS, NoServerAvailable
from poolkit_adapters.httpx._errors import ERRORS
from tests.adapters.errors.walk import Scenarios, check, do, other_loop
from tests.support.waiting import until, until_async

NOBODY = "http://127.0.0.1:1/"


class Twin:
    """A client of httpx or of httpcore, for threads or for tasks."""

    def __init__(self, server: HTTPServer, *, driver: str, asynchronous: bool) -> None:
        self.server = server
        self.asynchronous = asynchronous
        self.driver = driver
        self.adapter: Any = adapter if driver == "httpx" else core
        names = {
            ("httpx", False): adapter.PoolkitTransport, ("httpx", True): adapter.AsyncPoolkitTransport,
            ("httpcore", False): core.PoolkitConnectionPool, ("httpcore", True): core.AsyncPoolkitConnectionPool,
        }  # fmt: skip
        self.kind: Any = names[driver, asynchronous]

    @contextlib.asynccontextmanager
    async def pool(self, **settings: Any) -> AsyncIterator[Any]:
        pool = self.kind(**{"name": "orders", "max_size": 1, **settings})
        try:
            yield pool
        finally:
            await do(pool.aclose() if self.asynchronous else pool.close())

    async def send(self, transport: Any, url: str, /, **timeouts: float) -> Any:
        """Return the response, still open."""
        method = "handle_async_request" if self.asynchronous else "handle_request"
        kind: Any = httpx.Request if self.driver == "httpx" else httpcore.Request
        request = kind("GET", url, headers={"Host": "127.0.0.1"}, extensions={"timeout": timeouts})
        return await do(getattr(transport, method)(request))

    async def end(self, response: Any) -> None:
        """Close a response."""
        if self.driver == "httpx":
            await do(response.aclose() if self.asynchronous else response.close())
        else:
            await do(response.stream.aclose() if self.asynchronous else response.stream.close())


BOTH = {"httpx": Scenarios[Twin](CLUSTER_ERRORS), "httpcore": Scenarios[Twin](CORE_ERRORS)}


def happens(name: str, *words: str, base: Any = None, only: str = "") -> Any:
    """The scenario of this row, under both drivers."""

    def mark(scenario: Any) -> Any:
        for places, scenarios in (((adapter, httpx, poolkit), BOTH["httpx"]), ((core, poolkit), BOTH["httpcore"])):
            there = places[0] is adapter and name == "RequestRefused"
            word = "RemoteProtocolError" if there else name
            kind = next(getattr(place, word) for place in places if hasattr(place, word))
            scenarios.happens(kind, *words, base=base, only=only)(scenario)
        return scenario

    return mark


@happens("AcquireTimeout", "orders", "in use 1/1")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        response = await twin.send(pool, f"{twin.server.url}/stream?chunks=3")
        try:
            await twin.send(pool, twin.server.url, pool=0.01)
        finally:
            await twin.end(response)


@happens("ServerUnavailable", "orders", "last connect error")
async def _(twin: Twin) -> None:
    async with twin.pool(breaker=BreakerConfig(failure_threshold=9)) as pool:  # which stores it
        with pytest.raises((httpx.ConnectError, httpcore.ConnectError)):
            await twin.send(pool, NOBODY)
        response = await twin.send(pool, f"{twin.server.url}/stream?chunks=3")  # has the only connection
        try:
            await twin.send(pool, NOBODY, pool=0.01)
        finally:
            await twin.end(response)


@happens("PoolBusy", "orders", "max_waiting=0")
async def _(twin: Twin) -> None:
    async with twin.pool(max_waiting=0) as pool:
        response = await twin.send(pool, f"{twin.server.url}/stream?chunks=3")
        try:
            await twin.send(pool, twin.server.url)
        finally:
            await twin.end(response)


@happens("PoolSuspended", "orders", "suspended")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        pool.poolkit.suspend(fail_fast=True)
        await twin.send(pool, twin.server.url)


@happens("PoolClosed", "orders", "closed")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        await do(pool.poolkit.close())
        await twin.send(pool, twin.server.url)


@happens("ConnectFailed", "refused")
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        try:
            await twin.send(pool, NOBODY)
        except (httpx.ConnectError, httpcore.ConnectError) as error:
            if not twin.asynchronous:
                raise
            # anyio and trio say "All connection attempts failed"; the errors of the attempts are the causes
            error.args = (f"{error.args[0]} (refused)",)
            raise


@happens("ConnectTimeout")
async def _(twin: Twin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with twin.pool() as pool:
            await twin.send(pool, f"https://127.0.0.1:{silent.getsockname()[1]}/", connect=0.01)


@happens("CircuitOpen", "orders", "circuit open")
async def _(twin: Twin) -> None:
    async with twin.pool(breaker=BreakerConfig(failure_threshold=1)) as pool:
        with pytest.raises((httpx.ConnectError, httpcore.ConnectError)):
            await twin.send(pool, NOBODY)
        await twin.send(pool, NOBODY)


@happens("RequestRefused", "before it processed the request", base=poolkit.ConnectFailed)
async def _(twin: Twin) -> None:
    from poolkit_adapters.httpcore._errors import error_for_caller

    # the server's part in it takes a hundred refusals: see tests/adapters/httpx/test_replays.py
    table = ERRORS if twin.driver == "httpx" else CORE_ERRORS
    async with twin.pool() as pool:

        def refuse(*_: Any, **__: Any) -> Any:
            raise error_for_caller(httpcore.ConnectionNotAvailable(), False, table)

        inner = pool._pool if twin.driver == "httpx" else pool
        inner.answer = refuse
        await twin.send(pool, twin.server.url)


@happens("LeaseOverdue", "orders", "leak_after=0.01")
async def _(twin: Twin) -> None:
    async with twin.pool(leak_after=0.01, on_leak="raise") as pool:
        response = await twin.send(pool, f"{twin.server.url}/stream?chunks=3")
        if not twin.asynchronous:
            until(lambda: pool.poolkit.stats().leaks)
            for _ in response.stream:
                pass
        else:
            await until_async(lambda: pool.poolkit.stats().leaks)
            async for _ in response.stream:
                pass
        await twin.end(response)


@happens("WrongLoop", "orders", only="async")
async def _(twin: Twin) -> None:
    pool = twin.kind(name="orders")
    with other_loop() as elsewhere:
        elsewhere(twin.end(elsewhere(twin.send(pool, twin.server.url))))
        try:
            await twin.send(pool, twin.server.url)
        finally:
            elsewhere(pool.aclose())


@happens("UsageError", "event loop", base=poolkit.UsageError, only="async")
async def _(twin: Twin) -> None:
    pool = twin.kind(name="orders")

    def without_a_loop() -> None:
        twin.send(pool, twin.server.url).send(None)  # type: ignore[attr-defined]

    await anyio.to_thread.run_sync(without_a_loop)


@happens("UnsupportedProtocol", "protocol", base=poolkit.UsageError)
async def _(twin: Twin) -> None:
    async with twin.pool() as pool:
        await twin.send(pool, "ftp://127.0.0.1/")


@happens("ConfigError", "max_size=-1")
async def _(twin: Twin) -> None:
    twin.kind(max_size=-1)


@BOTH["httpx"].happens(NoServerAvailable)
async def _(twin: Twin) -> None:
    kind: Any = adapter.AsyncPoolkitClusterTransport if twin.asynchronous else adapter.PoolkitClusterTransport
    transport = kind(["127.0.0.1:1"], wait_for_node=0.05, eject_after=1, max_ejected_share=1.0, name="orders")
    try:
        for _ in range(3):
            try:
                await twin.send(transport, "http://orders/")
            except NoServerAvailable:
                raise
            except httpx.ConnectError:
                pass
    finally:
        await do(transport.aclose() if twin.asynchronous else transport.close())


def walk(driver: str) -> Any:
    return BOTH[driver].walk()


async def walked(row: Row, scenario: Any, words: Any, twin: Twin) -> None:
    with pytest.raises(row.bases[-1]) as caught:
        await scenario(twin)
    check(caught.value, row, *words)


def run(row: Row, scenario: Any, words: Any, only: str, driver: str, way: str, server: HTTPServer) -> None:
    asynchronous = way != "sync"
    if only == ("sync" if asynchronous else "async"):
        pytest.skip(f"can only happen {only}")
    if way == "trio" and row.bases[0] is poolkit.WrongLoop:
        pytest.skip("happens from asyncio to asyncio")
    twin = Twin(server, driver=driver, asynchronous=asynchronous)
    anyio.run(walked, row, scenario, words, twin, backend="trio" if way == "trio" else "asyncio")


@pytest.mark.parametrize("way", ["sync", "asyncio", "trio"])
@walk("httpx")
def test_it_happens_and_is_both(
    row: Row, scenario: Any, words: Any, only: str, way: str, http_server: HTTPServer
) -> None:
    run(row, scenario, words, only, "httpx", way, http_server)


@pytest.mark.parametrize("way", ["sync", "asyncio", "trio"])
@walk("httpcore")
def test_it_happens_and_is_both_under_httpcore(
    row: Row, scenario: Any, words: Any, only: str, way: str, http_server: HTTPServer
) -> None:
    run(row, scenario, words, only, "httpcore", way, http_server)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_special_error_of_a_connect_keeps_its_class(asynchronous: bool, https_server: HTTPServer) -> None:
    """A proxy refuses, a certificate is not trusted, a host does not exist, or a backend raises."""
    proxy = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        connection, _ = proxy.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=refuse)
    thread.start()

    async def main() -> None:
        async def failed(url: str, **settings: Any) -> Any:
            kind: Any = adapter.AsyncPoolkitTransport if asynchronous else adapter.PoolkitTransport
            client: Any = (httpx.AsyncClient if asynchronous else httpx.Client)(transport=kind(**settings))
            with pytest.raises(httpx.TransportError) as caught:
                await do(client.get(url))
            await do(client.aclose() if asynchronous else client.close())
            assert isinstance(caught.value, poolkit.ConnectFailed)
            assert str(caught.value.request.url) == url
            again = pickle.loads(pickle.dumps(caught.value))
            assert type(again) is type(caught.value)
            return caught.value

        refused = await failed("https://127.0.0.1:1/", proxy=f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert isinstance(refused, httpx.ProxyError)
        assert not isinstance(refused, httpx.NetworkError)
        assert type(refused).__qualname__ == "ProxyError"
        assert isinstance(refused.__cause__, httpcore.ProxyError) or refused.__cause__ is not None
        tls = await failed(f"{https_server.url}/")
        assert isinstance(tls, adapter.ConnectFailed)
        assert "certificate" in str(tls).lower()
        assert isinstance(await failed("http://nobody.invalid/"), adapter.ConnectFailed)

    try:
        anyio.run(main)
    finally:
        thread.join()
        proxy.close()


class Backend(httpcore.NetworkBackend):
    """A backend of the application, with a fault."""

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        raise ValueError("of the backend's own")


def test_an_error_of_a_backend_of_ones_own_is_of_its_class_and_poolkits() -> None:
    with core.PoolkitConnectionPool(network_backend=Backend()) as pool:
        with pytest.raises(ValueError, match="of the backend's own") as caught:
            pool.request("GET", "http://127.0.0.1:1/")
        assert isinstance(caught.value, poolkit.ConnectFailed)
        assert type(caught.value).__qualname__ == "ValueError"


def test_an_error_of_an_open_connection_is_httpxs_alone(http_server: HTTPServer) -> None:
    with httpx.Client(transport=adapter.PoolkitTransport(), timeout=httpx.Timeout(60, read=0.05)) as client:
        with pytest.raises(httpx.ReadTimeout) as caught:
            client.get(f"{http_server.url}/sleep?ms=1000")
        assert not isinstance(caught.value, poolkit.PoolError)


@pytest.mark.parametrize("way", ["sync", "asyncio", "trio"])
def test_a_response_whose_connection_is_cut_ends_in_an_error_of_httpx(way: str, http_server: HTTPServer) -> None:
    twin = Twin(http_server, driver="httpx", asynchronous=way != "sync")

    async def main() -> None:
        async with twin.pool() as pool:
            response = await twin.send(pool, f"{http_server.url}/stream?chunks=100000")
            with pytest.raises(httpx.TransportError) as caught:
                if twin.asynchronous:
                    async for _ in response.aiter_raw():
                        await pool.poolkit.drain(0)
                else:
                    for _ in response.iter_raw():
                        pool.poolkit.drain(0)
            assert not isinstance(caught.value, httpx.TimeoutException)

    anyio.run(main, backend="trio" if way == "trio" else "asyncio")
