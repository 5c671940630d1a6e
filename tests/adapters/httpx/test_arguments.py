"""Every argument of the replaced classes, poolkit's settings, and errors for wrong values when a pool is created."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import subprocess
import sys
from typing import Any

import httpcore
import httpx
import pytest

import poolkit
from poolkit.testing.servers import HTTPServer
from poolkit_adapters import httpcore as core
from poolkit_adapters import httpx as transports
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport

PAIRS = [
    (PoolkitConnectionPool, httpcore.ConnectionPool),
    (AsyncPoolkitConnectionPool, httpcore.AsyncConnectionPool),
    (PoolkitTransport, httpx.HTTPTransport),
    (AsyncPoolkitTransport, httpx.AsyncHTTPTransport),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_same_arguments_in_the_same_order_with_the_same_defaults(ours: type, theirs: type) -> None:
    def arguments(kind: type) -> list[tuple[str, object]]:
        parameters = inspect.signature(kind).parameters.values()
        return [(one.name, one.default) for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]

    if tuple(map(int, httpx.__version__.split(".")[:2])) >= (0, 28):
        assert arguments(ours) == arguments(theirs)
    else:  # earlier versions had another order; callers pass them by name
        assert dict(arguments(ours)) == dict(arguments(theirs))
    assert issubclass(ours, theirs)


def test_sync_and_async_are_twins() -> None:
    def public(kind: type) -> dict[str, object]:
        found = {}
        for name, value in vars(kind).items():
            if not name.startswith("_"):
                name = {"handle_async_request": "handle_request", "aclose": "close"}.get(name, name)
                found[name] = list(inspect.signature(value).parameters) if callable(value) else type(value)
        return found

    assert public(AsyncPoolkitConnectionPool) == public(PoolkitConnectionPool)
    assert public(AsyncPoolkitTransport) == public(PoolkitTransport)
    for ours, other in ((PoolkitConnectionPool, AsyncPoolkitConnectionPool), (PoolkitTransport, AsyncPoolkitTransport)):
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(other).parameters)


def settings(pool: Any) -> dict[str, object]:
    config = pool.poolkit.config
    names = ("max_size", "max_idle", "idle_timeout", "acquire_timeout", "connect_timeout")
    return {name: getattr(config, name) for name in names}


def test_what_the_arguments_become() -> None:
    nothing = {"acquire_timeout": None, "connect_timeout": None}
    assert settings(PoolkitConnectionPool()) == {"max_size": 10, "max_idle": None, "idle_timeout": None, **nothing}
    assert settings(PoolkitTransport()) == {"max_size": 100, "max_idle": 20, "idle_timeout": 5.0, **nothing}
    pool = PoolkitConnectionPool(max_connections=5, max_keepalive_connections=50, keepalive_expiry=3)
    assert settings(pool) == {"max_size": 5, "max_idle": 5, "idle_timeout": 3, **nothing}
    unlimited = PoolkitTransport(limits=httpx.Limits())
    assert settings(unlimited) == {"max_size": None, "max_idle": None, "idle_timeout": 5.0, **nothing}


def test_poolkits_settings_beside_them() -> None:
    config = poolkit.PoolConfig(max_lifetime=60, idle_timeout=30)
    pool = PoolkitConnectionPool(config=config, max_size=3, name="api")
    found = pool.poolkit.config
    assert (found.max_lifetime, found.idle_timeout, found.max_size, found.max_connecting) == (60, 30, 3, None)
    assert pool.poolkit.name == "api"
    assert PoolkitTransport(max_size=7).poolkit.config.max_idle == 7


@pytest.mark.parametrize("kind", [PoolkitConnectionPool, AsyncPoolkitConnectionPool])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_connections": 0}, "max_connections=0: must be a whole number, 1 or more"),
        ({"max_connections": "5"}, "max_connections='5'"),
        ({"max_keepalive_connections": -1}, "max_keepalive_connections=-1"),
        ({"keepalive_expiry": -1}, "keepalive_expiry=-1"),
        ({"max_connections": 5, "max_size": 6}, "max_connections=5 and max_size=6"),
        ({"min_size": 2}, "min_size=2: has no effect for HTTP"),
        ({"start": "eager"}, "start='eager': has no effect for HTTP"),
        ({"keepalive": 5}, "keepalive=5: has no effect for HTTP"),
        ({"config": poolkit.PoolConfig(min_size=1)}, "min_size=1: has no effect for HTTP"),
        ({"config": {"max_size": 3}}, "must be a PoolConfig"),
        ({"max_sise": 3}, "did you mean 'max_size'?"),
    ],
)
def test_bad_input(kind: type, options: dict[str, object], says: str) -> None:
    with pytest.raises(poolkit.ConfigError) as caught:
        kind(**options)
    assert says in str(caught.value)


def test_bad_proxy() -> None:
    with pytest.raises((poolkit.ConfigError, ValueError)):
        PoolkitTransport(proxy="ftp://localhost")


def test_unsupported_protocol() -> None:
    with PoolkitConnectionPool() as pool, pytest.raises(httpcore.UnsupportedProtocol, match="ftp"):
        pool.request("GET", "ftp://localhost/")


def test_as_httpcores_pool_it_works_on_after_close(http_server: HTTPServer) -> None:
    pool = PoolkitConnectionPool()
    for _ in range(2):
        assert pool.request("GET", http_server.url).status == 200
        pool.close()
        pool.close()
        assert pool.connections == []
        assert repr(pool) == ("<PoolkitConnectionPool [Requests: 0 active, 0 queued | Connections: 0 active, 0 idle]>")


def test_25_close_ends_waits_and_cuts_what_is_in_use(http_server: HTTPServer) -> None:
    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(max_connections=1)
        request = httpcore.Request("GET", f"{http_server.url}/stream?chunks=100&ms=20", headers={"host": "localhost"})
        response = await pool.handle_async_request(request)
        waiting = asyncio.create_task(pool.request("GET", http_server.url))
        while not pool.poolkit.stats().waiting:
            await asyncio.sleep(0.001)
        await pool.aclose()
        with pytest.raises(httpcore.NetworkError) as caught:
            await waiting
        assert isinstance(caught.value, poolkit.PoolClosed)
        with pytest.raises(httpcore.ReadError):
            await response.aread()
        await response.aclose()
        assert pool.connections == []

    asyncio.run(main())


def test_12_a_second_loop_gets_connections_of_its_own(http_server: HTTPServer) -> None:
    client = httpx.AsyncClient(transport=AsyncPoolkitTransport())

    async def ask() -> int:
        return (await client.get(http_server.url)).json()["client_port"]  # type: ignore[no-any-return]

    ports = []
    for _ in range(2):
        with asyncio.Runner() if sys.version_info >= (3, 11) else _Runner() as runner:
            ports.append(runner.run(ask()))
            runner.run(client._transport.poolkit.drain(1))  # type: ignore[attr-defined]
            client._transport._pool._reopening.take()  # type: ignore[attr-defined]
    assert ports[0] != ports[1]


class _Runner:
    def __enter__(self) -> _Runner:
        self.loop = asyncio.new_event_loop()
        return self

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def __exit__(self, *exc: object) -> None:
        self.loop.close()


@pytest.mark.parametrize("secure", [False, True])
def test_trace_callbacks_get_the_same_events_as_with_httpcore(
    http_server: HTTPServer, https_server: HTTPServer, secure: bool
) -> None:
    server = https_server if secure else http_server
    heard: dict[type, list[list[str]]] = {}
    for kind in (httpcore.ConnectionPool, PoolkitConnectionPool):
        with kind(http2=True, ssl_context=https_server.client_context) as pool:
            heard[kind] = []
            for _ in range(2):
                events: list[str] = []
                trace = {"trace": lambda event, info, to=events: to.append(event)}
                assert pool.request("GET", server.url, extensions=trace).status == 200
                heard[kind].append([event for event in events if "remote_settings" not in event])
    assert heard[PoolkitConnectionPool] == heard[httpcore.ConnectionPool]


def test_a_trace_callback_of_the_wrong_kind(http_server: HTTPServer) -> None:
    async def main() -> None:
        async with AsyncPoolkitConnectionPool() as pool:
            with pytest.raises(TypeError, match="asynchronous"):
                await pool.request("GET", http_server.url, extensions={"trace": lambda event, info: None})

    asyncio.run(main())


def test_retries(http_server: HTTPServer) -> None:
    tries: list[str] = []

    def trace(event: str, info: object) -> None:
        tries.append(event)

    with PoolkitConnectionPool(retries=1) as pool, pytest.raises(httpcore.ConnectError):
        pool.request("GET", "http://127.0.0.1:1/", extensions={"trace": trace})
    assert tries.count("connection.connect_tcp.failed") == 2


def test_the_pools_own_limit_for_connecting(http_server: HTTPServer, fault_proxy: Any) -> None:
    silent = fault_proxy(http_server.host, http_server.port)
    silent.mode = "silent"
    with PoolkitConnectionPool(connect_timeout=0.05) as pool, pytest.raises(httpcore.ConnectTimeout):
        pool.request("GET", f"https://127.0.0.1:{silent.port}/")


@pytest.mark.parametrize("module", [core, transports])
def test_errors_are_both_and_travel(module: Any) -> None:
    for name in ("AcquireTimeout", "ServerUnavailable", "PoolBusy", "PoolSuspended", "PoolClosed", "CircuitOpen"):
        error = getattr(module, name)("why")
        assert isinstance(error, getattr(poolkit, name))
        assert isinstance(error, (httpcore.PoolTimeout, httpcore.NetworkError, httpx.TransportError))
        assert str(pickle.loads(pickle.dumps(error))) == str(error) == "why"


def test_suspended(http_server: HTTPServer) -> None:
    transport = PoolkitTransport()
    with httpx.Client(transport=transport) as client:
        transport.poolkit.suspend(fail_fast=True)
        with pytest.raises(httpx.PoolTimeout) as caught:
            client.get(http_server.url)
        assert isinstance(caught.value, poolkit.PoolSuspended)
        transport.poolkit.resume()
        assert client.get(http_server.url).status_code == 200


def test_15_exit_with_an_open_pool_is_quick_and_quiet(http_server: HTTPServer) -> None:
    code = (
        f"import {httpx.__name__} as httpx\nfrom poolkit_adapters.{httpx.__name__} import PoolkitTransport\n"
        f"client = httpx.Client(transport=PoolkitTransport())\nprint(client.get({http_server.url!r}).status_code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert (result.stdout, result.stderr) == ("200\n", "")
