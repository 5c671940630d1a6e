"""Plain TCP under asyncio, which the pool reads and writes by itself."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpcore
import httpx
import pytest

from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool
from poolkit_adapters.httpcore._asyncio_stream import MOST, AsyncioBackend, AsyncioStream
from poolkit_adapters.httpx import AsyncPoolkitTransport
from tests.support.proxies import HTTPProxy

from .conftest import Script, answer, read_request

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """On trio httpcore's own streams are used."""
    return "asyncio"


def client_of(**limits: float | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AsyncPoolkitTransport(), timeout=httpx.Timeout(10, **limits))


async def test_the_stream_is_ours_and_tells_what_httpcores_does(http_server: HTTPServer) -> None:
    """A change in httpcore or anyio that ends the fast path is noticed here."""
    async with client_of() as client:
        response = await client.get(http_server.url)
        stream = response.extensions["network_stream"]
        assert type(stream) is AsyncioStream
        assert stream.get_extra_info("server_addr") == (http_server.host, http_server.port)
        assert stream.get_extra_info("client_addr")[1] == response.json()["client_port"]
        assert stream.get_extra_info("socket").fileno() > 0
        assert not stream.get_extra_info("is_readable")


async def test_what_arrives_with_the_connect_is_not_lost(http_server: HTTPServer) -> None:
    """anyio reads for a moment before it pauses: what came then is with its stream, which stays in use."""

    class Early(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
            stream: Any = await httpcore.AnyIOBackend().connect_tcp(*args, **kwargs)
            stream._stream._protocol.data_received(b"early")
            return stream  # type: ignore[no-any-return]

    stream = await AsyncioBackend(Early()).connect_tcp(http_server.host, http_server.port)
    assert await stream.read(100, timeout=5) == b"early"
    await stream.aclose()


async def test_each_read_has_its_own_time(http_server: HTTPServer) -> None:
    """One timer serves many reads: a shorter time after a longer one counts, and a longer one after a shorter one."""
    async with client_of() as client:
        await client.get(http_server.url)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"{http_server.url}/sleep?ms=5000", timeout=httpx.Timeout(10, read=0.05))
        await client.get(http_server.url, timeout=httpx.Timeout(10, read=0.3))
        assert (await client.get(f"{http_server.url}/sleep?ms=600")).status_code == 200
        assert (await client.get(f"{http_server.url}/sleep?ms=600", timeout=None)).status_code == 200


async def test_an_unread_body_stays_at_the_server(http_server: HTTPServer) -> None:
    """Memory is bounded by what is taken; all of it arrives in the end."""
    size = 12_000_000
    async with client_of() as client, client.stream("GET", f"{http_server.url}/bytes?n={size}") as response:
        wire = response.extensions["network_stream"]._wire
        while not wire.held:
            await asyncio.sleep(0.01)
        assert MOST < wire.size <= MOST + 256 * 1024
        assert sum([len(part) async for part in response.aiter_raw()]) == size


async def test_a_write_that_the_server_does_not_take_ends_in_time(scripted: Callable[[Script], str]) -> None:
    """A body larger than all buffers, and a server that does not read."""
    end = threading.Event()

    def deaf(connection: socket.socket, _number: int) -> None:
        end.wait(10)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(100_000)

    async with client_of(write=0.1) as client:
        with pytest.raises(httpx.WriteTimeout):
            await client.post(scripted(deaf), content=body())
    end.set()


async def test_an_upload_gives_others_their_turn(http_server: HTTPServer) -> None:
    """Writes that never have to wait do not keep the event loop."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(50_000)

    async with client_of() as client:
        task = asyncio.create_task(others())
        response = await client.post(f"{http_server.url}/upload", content=body())
        task.cancel()
    assert response.status_code == 200
    assert turns > 30


async def test_a_connection_cut_in_the_middle_of_an_answer_is_an_error(scripted: Callable[[Script], str]) -> None:
    """With a reset, not an orderly end."""

    def cut(connection: socket.socket, _number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()

    async with client_of() as client:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.post(scripted(cut))


@pytest.mark.parametrize("pause", [0, 0.05])
async def test_unrequested_data_is_no_response_to_the_next_request(
    scripted: Callable[[Script], str], pause: float
) -> None:
    """Bytes that follow a response have been read already, so a check of the socket does not show them."""
    said = threading.Event()

    def chatty(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number:
            answer(connection, b"right")
            return
        with_stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b"first"
        stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b"stray"
        connection.sendall(with_stray if pause else with_stray + stray)
        if pause:
            time.sleep(pause)
            connection.sendall(stray)
        said.set()
        read_request(connection)

    async with client_of() as client:
        url = scripted(chatty)
        assert (await client.get(url)).content == b"first"
        await asyncio.to_thread(said.wait, 5)
        await asyncio.sleep(0.05)
        assert (await client.post(url)).content == b"right"


async def test_tls_can_begin_on_a_connection_that_was_read_from(https_server: HTTPServer) -> None:
    """After CONNECT the caller has the stream; httpcore's backend does the handshake, so it gets the socket back."""
    context = https_server.client_context
    assert context is not None
    with HTTPProxy() as proxy:
        async with AsyncPoolkitConnectionPool() as pool:
            target = f"{https_server.host}:{https_server.port}".encode()
            url = httpcore.URL(scheme=b"http", host=proxy.host.encode(), port=proxy.port, target=target)
            async with pool.stream("CONNECT", url) as response:
                plain = response.extensions["network_stream"]
                secure = await plain.start_tls(context, server_hostname="127.0.0.1", timeout=5)
                await secure.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", timeout=5)
                assert (await secure.read(1000, timeout=5)).startswith(b"HTTP/1.1 200")
                await secure.aclose()
