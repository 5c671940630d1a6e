"""Requests that are cancelled or dropped: the capacity is unchanged, and no half-read connection is used again."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import anyio
import httpcore
import httpx
import pytest

from poolkit.testing.servers import Certificates, HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.support.waiting import leak_warning


async def at_rest(transport: AsyncPoolkitTransport) -> None:
    """Wait for the closes in the background, and check the invariants."""
    with anyio.fail_after(10):
        while transport.poolkit.stats().closing or transport.poolkit.stats().in_use:
            await anyio.sleep(0.005)
    transport.poolkit.check_books()


@pytest.mark.parametrize("ticks", range(8))
def test_r7_cancelled_at_each_tick_of_the_way(http_server: HTTPServer, ticks: int) -> None:
    async def main() -> None:
        async with AsyncPoolkitConnectionPool(max_connections=2) as pool:
            for _ in range(3):
                tasks = [asyncio.create_task(pool.request("GET", http_server.url)) for _ in range(4)]
                for _ in range(ticks):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            extensions = {"timeout": {"pool": 5.0}}
            await asyncio.gather(*(pool.request("GET", http_server.url, extensions=extensions) for _ in range(2)))
            pool.poolkit.check_books()

    asyncio.run(main())


@pytest.mark.anyio
@pytest.mark.parametrize("secure", [False, True])
async def test_01_cancel_storm(
    http_server: HTTPServer, https_server: HTTPServer, certificates: Certificates, secure: bool
) -> None:
    server = https_server if secure else http_server
    transport = AsyncPoolkitTransport(
        verify=certificates.client_context(), http2=secure, limits=httpx.Limits(max_connections=2)
    )

    async def one(number: int) -> None:
        with anyio.move_on_after(random.random() * 0.03):
            key = f"{number}"
            answer = await client.get(f"{server.url}/echo?key={key}")
            assert answer.json()["key"] == key

    async with httpx.AsyncClient(transport=transport, timeout=10) as client:
        for round_ in range(8):
            async with anyio.create_task_group() as group:
                for number in range(30):
                    group.start_soon(one, round_ * 100 + number)
        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(client.get, f"{server.url}/echo?key={number}")
        await at_rest(transport)
        assert transport.poolkit.stats().size <= 2


def test_01_cancelled_twice(http_server: HTTPServer) -> None:
    """asyncio's own cancel, which anyio's shields do not stop, again and again during the close of the stream."""

    async def main() -> None:
        transport = AsyncPoolkitTransport(limits=httpx.Limits(max_connections=1))
        async with httpx.AsyncClient(transport=transport, timeout=10) as client:

            async def read() -> None:
                async with client.stream("GET", f"{http_server.url}/stream?chunks=100&ms=5") as response:
                    async for _ in response.aiter_bytes():
                        pass

            for pause in range(6):
                task = asyncio.create_task(read())
                await asyncio.sleep(0.02)
                while not task.done():
                    task.cancel()
                    for _ in range(pause):
                        await asyncio.sleep(0)
                    await asyncio.sleep(0)
                await asyncio.gather(task, return_exceptions=True)
                assert (await client.get(http_server.url)).status_code == 200
            await at_rest(transport)

    asyncio.run(main())


@pytest.mark.anyio
async def test_04_clean_up_in_a_cancelled_scope(http_server: HTTPServer) -> None:
    transport = AsyncPoolkitTransport(limits=httpx.Limits(max_connections=1))
    async with httpx.AsyncClient(transport=transport, timeout=10) as client:
        for _ in range(5):
            with anyio.move_on_after(0.03):
                async with client.stream("GET", f"{http_server.url}/stream?chunks=100&ms=5") as response:
                    async for _ in response.aiter_bytes():
                        pass
            assert (await client.get(http_server.url)).status_code == 200
        await at_rest(transport)


@pytest.mark.anyio
async def test_an_unread_body_ends_the_connection(http_server: HTTPServer) -> None:
    transport = AsyncPoolkitTransport()
    async with httpx.AsyncClient(transport=transport) as client:
        async with client.stream("GET", f"{http_server.url}/stream?chunks=3&ms=100") as response:
            first = response.headers["x-client-port"]
        answer = await client.get(f"{http_server.url}/echo?key=1")
        assert answer.json()["key"] == "1"
        assert answer.headers["x-client-port"] != first
        await at_rest(transport)


def test_an_unread_body_ends_the_connection_in_threads(http_server: HTTPServer) -> None:
    with httpx.Client(transport=PoolkitTransport()) as client:
        with client.stream("GET", f"{http_server.url}/stream?chunks=3&ms=100") as response:
            first = response.headers["x-client-port"]
        answer = client.get(f"{http_server.url}/echo?key=1")
        assert answer.json()["key"] == "1"
        assert answer.headers["x-client-port"] != first


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, ValueError])
def test_05_any_error_in_mid_body_ends_the_connection(http_server: HTTPServer, error: type[BaseException]) -> None:
    with PoolkitConnectionPool(max_connections=1) as pool:
        with pytest.raises(error):
            with pool.stream("GET", f"{http_server.url}/stream?chunks=3"):
                raise error
        assert pool.request("GET", f"{http_server.url}/echo?key=1").content.startswith(b'{"key": "1"')
        pool.poolkit.check_books()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_05_any_error_in_a_trace_callback_frees_the_slot(http_server: HTTPServer, error: type[BaseException]) -> None:
    wanted = ""

    def trace(event: str, info: dict[str, Any]) -> None:
        if event == wanted:
            raise error

    with PoolkitConnectionPool(max_connections=1) as pool:
        for event in (
            "connection.connect_tcp.started",
            "connection.connect_tcp.complete",
            "http11.send_request_headers.started",
            "http11.receive_response_headers.complete",
            "http11.receive_response_body.started",
            "http11.response_closed.started",
        ):
            wanted = event
            with pytest.raises(error):
                pool.request("GET", http_server.url, extensions={"trace": trace, "timeout": {"pool": 5}})
        assert pool.request("GET", http_server.url, extensions={"timeout": {"pool": 5}}).status == 200
        pool.poolkit.check_books()


def test_13_a_dropped_response_frees_its_slot(http_server: HTTPServer) -> None:
    with PoolkitConnectionPool(max_connections=1) as pool:
        request = httpcore.Request("GET", f"{http_server.url}/stream?chunks=3", headers={"host": "localhost"})
        response = pool.handle_request(request)
        with leak_warning("dropped"):
            del response
            gc.collect()
            assert pool.request("GET", http_server.url, extensions={"timeout": {"pool": 5}}).status == 200
        pool.poolkit.check_books()


@pytest.mark.anyio
async def test_cancelled_in_the_handshake_leaves_no_socket(fault_proxy: Any, https_server: HTTPServer) -> None:
    proxy = fault_proxy(https_server.host, https_server.port)
    proxy.mode = "mute"
    transport = AsyncPoolkitTransport(verify=https_server.client_context, limits=httpx.Limits(max_connections=1))
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(10, connect=1)) as client:
        for _ in range(3):
            with anyio.move_on_after(0.1):
                await client.get(f"https://127.0.0.1:{proxy.port}/")
        while transport.poolkit.stats().connecting:  # it goes on without its caller, until its own limit
            await anyio.sleep(0.01)
        proxy.mode = "pass"
        assert (await client.get(f"https://127.0.0.1:{proxy.port}/")).status_code == 200
        await at_rest(transport)
    gc.collect()  # an unclosed transport would complain here
