"""Limits of connections, their use by several origins, and how long requests wait."""

from __future__ import annotations

import random
import socket
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpcore
import httpx
import pytest

import poolkit
from poolkit.testing.servers import HTTPServer
from poolkit_adapters import _attempts
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpcore._names import ON_ADDRESSES
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.faults.proxy import FaultProxy
from tests.support.resolver import ANSWERS, Resolver
from tests.support.waiting import until

from .conftest import Script, answer, read_request


def test_07_waiting_for_a_connection_and_opening_one_are_two_times(
    http_server: HTTPServer, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    silent = fault_proxy(http_server.host, http_server.port)
    silent.mode = "silent"
    transport = PoolkitTransport(limits=httpx.Limits(max_connections=1))
    with httpx.Client(transport=transport, timeout=httpx.Timeout(5, pool=0.05)) as client:
        with client.stream("GET", f"{http_server.url}/stream?chunks=3"):
            with pytest.raises(httpx.PoolTimeout, match="in use 1/1") as caught:
                client.get(http_server.url)
            assert isinstance(caught.value, poolkit.AcquireTimeout)
            assert caught.value.request.url == http_server.url
        with pytest.raises(httpx.ConnectTimeout) as late:
            client.get(f"https://127.0.0.1:{silent.port}/", timeout=httpx.Timeout(5, connect=0.05))
        assert isinstance(late.value, poolkit.ConnectTimeout)
        assert not isinstance(late.value, poolkit.AcquireTimeout)


@pytest.mark.anyio
async def test_07_for_tasks(http_server: HTTPServer, fault_proxy: Callable[[str, int], FaultProxy]) -> None:
    silent = fault_proxy(http_server.host, http_server.port)
    silent.mode = "silent"
    transport = AsyncPoolkitTransport(limits=httpx.Limits(max_connections=1))
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(5, pool=0.05)) as client:
        async with client.stream("GET", f"{http_server.url}/stream?chunks=3"):
            with pytest.raises(httpx.PoolTimeout, match="in use 1/1") as caught:
                await client.get(http_server.url)
            assert isinstance(caught.value, poolkit.AcquireTimeout)
        with pytest.raises(httpx.ConnectTimeout):
            await client.get(f"https://127.0.0.1:{silent.port}/", timeout=httpx.Timeout(5, connect=0.05))


def test_08_a_pool_timeout_of_0_never_waits(http_server: HTTPServer) -> None:
    extensions = {"timeout": {"pool": 0}}
    with PoolkitConnectionPool(max_connections=1) as pool:
        assert pool.request("GET", http_server.url, extensions=extensions).status == 200
        with pool.stream("GET", http_server.url, extensions=extensions), pytest.raises(httpcore.PoolTimeout):
            pool.request("GET", http_server.url, extensions=extensions)


def test_22_max_waiting(http_server: HTTPServer) -> None:
    with httpx.Client(transport=PoolkitTransport(max_size=1, max_waiting=0)) as client:
        with client.stream("GET", http_server.url), pytest.raises(httpx.PoolTimeout) as caught:
            client.get(http_server.url)
        assert isinstance(caught.value, poolkit.PoolBusy)


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [50, 100])
async def test_30_r8_fifty_workers_open_fifty_connections(other_http_server: HTTPServer, limit: int) -> None:
    server = other_http_server
    before = server.stats().accepted
    limits = httpx.Limits(max_connections=limit, max_keepalive_connections=20)

    async def work() -> None:
        for _ in range(20):
            await client.get(f"{server.url}/sleep?ms={random.random() * 20:.2f}")

    async with httpx.AsyncClient(transport=AsyncPoolkitTransport(limits=limits), timeout=20) as client:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(work)
    assert server.stats().accepted - before == 50


@pytest.mark.anyio
async def test_30_r9_a_burst_keeps_all_connections_busy(other_http_server: HTTPServer) -> None:
    async with AsyncPoolkitConnectionPool(max_connections=10) as pool:
        turns = 0

        async def one() -> None:
            nonlocal turns
            await pool.request("GET", f"{other_http_server.url}/sleep?ms=20")
            turns += 1

        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(one)
        assert turns == 200
        assert len(pool.connections) == 10
        assert pool.poolkit.stats().connects == 10


@pytest.mark.anyio
async def test_30_connections_are_opened_side_by_side(other_http_server: HTTPServer) -> None:
    async with AsyncPoolkitConnectionPool(max_connections=50) as pool, anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(pool.request, "GET", f"{other_http_server.url}/sleep?ms=200")
        with anyio.fail_after(5):
            while pool.poolkit.stats().in_use < 50:
                await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_19_r5_turns_are_even(other_http_server: HTTPServer) -> None:
    turns = [0] * 40

    async def work(number: int) -> None:
        while max(turns) < 12:
            await pool.request("GET", f"{other_http_server.url}/sleep?ms=5")
            turns[number] += 1

    async with AsyncPoolkitConnectionPool(max_connections=4) as pool, anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(work, number)
    assert min(turns) >= 10


def test_19_turns_are_even_among_threads(scripted: Callable[[Script], str]) -> None:
    """Threads that have their answer and ask again are served after those that have waited."""
    served: list[bytes] = []

    def script(connection: socket.socket, _number: int) -> None:
        while request := read_request(connection):
            served.append(request.split()[1])
            answer(connection, b"")

    url = scripted(script)

    def work(number: int) -> None:
        for _ in range(5):
            pool.request("GET", f"{url}/{number}")

    with PoolkitConnectionPool(max_connections=1) as pool, ThreadPoolExecutor(16) as threads:
        with pool.stream("GET", f"{url}/held"):
            for number in range(16):
                threads.submit(work, number)
                until(lambda: pool.poolkit.stats().waiting == number + 1)  # noqa: B023
    assert served[:17] == [b"/held", *(b"/%d" % number for number in range(16))]
    assert len(served) == 1 + 16 * 5


def test_an_idle_connection_of_another_origin_gives_way(http_server: HTTPServer, other_http_server: HTTPServer) -> None:
    with PoolkitConnectionPool(max_connections=1) as pool:
        for _ in range(2):
            for server in (http_server, other_http_server):
                assert pool.request("GET", server.url, extensions={"timeout": {"pool": 5}}).status == 200
                assert len(pool.connections) == 1
        pool.poolkit.check_books()


@pytest.mark.anyio
async def test_the_longest_idle_connection_gives_way_first(
    http_server: HTTPServer, other_http_server: HTTPServer
) -> None:
    one, two, three = http_server.url, other_http_server.url, other_http_server.url.replace("127.0.0.1", "localhost")
    async with AsyncPoolkitConnectionPool(max_connections=2) as pool:
        for url in (one, two, one, three):
            await pool.request("GET", url, extensions={"timeout": {"pool": 5}})
        left = sorted(connection.info().split("'")[1] for connection in pool.connections)
        assert left == sorted([one, three])
        pool.poolkit.check_books()


def test_kept_alive_over_all_origins_the_last_used_stay(http_server: HTTPServer, other_http_server: HTTPServer) -> None:
    one, two = http_server.url, other_http_server.url
    with PoolkitConnectionPool(max_connections=10, max_keepalive_connections=1) as pool:
        pool.request("GET", one)
        port = dict(pool.request("GET", two).headers)[b"x-client-port"]
        assert len(pool.connections) == 1
        assert dict(pool.request("GET", two).headers)[b"x-client-port"] == port


@pytest.mark.parametrize("options", [{"keepalive_expiry": 0}, {"max_keepalive_connections": 0}])
def test_nothing_is_kept(http_server: HTTPServer, options: dict[str, int]) -> None:
    with PoolkitConnectionPool(**options) as pool:
        ports = {dict(pool.request("GET", http_server.url).headers)[b"x-client-port"] for _ in range(3)}
        assert len(ports) == 3
        assert pool.connections == []


@pytest.mark.anyio
async def test_26_idle_connections_expire_without_a_request(http_server: HTTPServer) -> None:
    async with AsyncPoolkitConnectionPool(keepalive_expiry=0.1) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(pool.request, "GET", http_server.url)
        with anyio.fail_after(5):
            while pool.poolkit.stats().size:
                await anyio.sleep(0.02)
        assert pool.connections == []


def test_23_the_limit_changes_while_requests_wait(http_server: HTTPServer) -> None:
    with PoolkitConnectionPool(max_connections=1) as pool, ThreadPoolExecutor(1) as threads:
        with pool.stream("GET", http_server.url):
            waiting = threads.submit(pool.request, "GET", http_server.url)
            while not pool.poolkit.stats().waiting:
                time.sleep(0.002)
            pool.poolkit.reconfigure(max_size=2)
            assert waiting.result(5).status == 200


def test_breaker_for_each_origin(http_server: HTTPServer) -> None:
    from poolkit.testing.servers import free_port

    dead = f"http://127.0.0.1:{free_port()}/"
    transport = PoolkitTransport(breaker=poolkit.BreakerConfig(failure_threshold=2, reset_timeout=60))
    with httpx.Client(transport=transport) as client:
        for _ in range(2):
            with pytest.raises(httpx.ConnectError) as failed:
                client.get(dead)
            assert isinstance(failed.value, poolkit.ConnectFailed)
            assert not isinstance(failed.value, poolkit.CircuitOpen)
        with pytest.raises(httpx.ConnectError) as caught:
            client.get(dead)
        assert isinstance(caught.value, poolkit.CircuitOpen)
        assert caught.value.retry_after > 50
        assert client.get(http_server.url).status_code == 200
        assert transport.poolkit.stats().connect_errors == 2


@pytest.mark.parametrize("read", [None, 5.0])
@pytest.mark.parametrize("retries", [0, 2])
def test_each_address_of_a_name_has_the_limit_of_the_connect(
    retries: int, read: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``socket.create_connection()``. The pool gives the connect up only when the last one has had it."""
    limit, resolver = 2.0, Resolver(monkeypatch)
    resolver.addresses = [f"127.0.0.{number}" for number in range(1, 11)]
    monkeypatch.setattr(_attempts, "time", types.SimpleNamespace(monotonic=float))  # the connects take no time
    bounds: list[float] = []

    class Dropping(httpcore.NetworkBackend):
        def connect_tcp(self, *args: Any, **kwargs: Any) -> Any:
            bounds.append(pool._connector.connect_bound(threading.get_ident(), limit))
            raise httpcore.ConnectTimeout("no answer")

        def sleep(self, seconds: float) -> None:
            """Take no time."""

    pool: Any = PoolkitConnectionPool(retries=retries)
    pool._network_backend._backend = Dropping()
    with pool, pytest.raises(httpcore.ConnectTimeout):
        pool.request("GET", f"http://{ANSWERS}/", extensions={"timeout": {"connect": limit, "read": read}})
    assert len(bounds) == 10 * (retries + 1)
    assert min(bounds) > 10 * limit * (retries + 1)
    assert ON_ADDRESSES.get() is None
