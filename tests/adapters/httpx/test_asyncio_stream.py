"""Plain TCP under asyncio, which the pool reads and writes itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpcore
import httpx
import pytest

from poolkit.testing.servers import Certificates, HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool
from poolkit_adapters.httpcore._asyncio_stream import MOST, AsyncioBackend, AsyncioStream
from poolkit_adapters.httpx import AsyncPoolkitTransport
from tests.support.proxies import HTTPProxy
from tests.support.waiting import until_async

from .conftest import Script, answer, read_request

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Trio uses httpcore's own streams, so these tests run on asyncio only."""
    return "asyncio"


def client_of(**limits: float | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AsyncPoolkitTransport(), timeout=httpx.Timeout(10, **limits))


async def test_the_stream_is_ours_and_tells_what_httpcores_does(http_server: HTTPServer) -> None:
    """This test detects a change in httpcore or anyio that disables the fast path."""
    async with client_of() as client:
        response = await client.get(http_server.url)
        stream = response.extensions["network_stream"]
        assert type(stream) is AsyncioStream
        assert stream.get_extra_info("server_addr") == (http_server.host, http_server.port)
        assert stream.get_extra_info("client_addr")[1] == response.json()["client_port"]
        assert stream.get_extra_info("socket").fileno() > 0
        assert not stream.get_extra_info("is_readable")


async def test_what_arrives_with_the_connect_is_not_lost(http_server: HTTPServer) -> None:
    """anyio reads for a moment before it pauses. Its stream then holds data, and stays in use."""

    class Early(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
            stream: Any = await httpcore.AnyIOBackend().connect_tcp(*args, **kwargs)
            stream._stream._protocol.data_received(b"early")
            return stream  # type: ignore[no-any-return]

    stream = await AsyncioBackend(Early()).connect_tcp(http_server.host, http_server.port)
    assert await stream.read(100, timeout=5) == b"early"
    await stream.aclose()


async def test_each_read_has_its_own_time(http_server: HTTPServer) -> None:
    """One timer serves many reads. Each limit applies, a shorter one after a longer one and the reverse."""
    async with client_of() as client:
        await client.get(http_server.url)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"{http_server.url}/sleep?ms=5000", timeout=httpx.Timeout(10, read=0.05))
        await client.get(http_server.url, timeout=httpx.Timeout(10, read=0.3))
        assert (await client.get(f"{http_server.url}/sleep?ms=600")).status_code == 200
        assert (await client.get(f"{http_server.url}/sleep?ms=600", timeout=None)).status_code == 200


async def test_an_unread_body_stays_at_the_server(http_server: HTTPServer) -> None:
    """Memory is limited to what the reader takes, and the whole body arrives in the end."""
    size = 12_000_000
    async with client_of() as client, client.stream("GET", f"{http_server.url}/bytes?n={size}") as response:
        wire = response.extensions["network_stream"]._wire
        while not wire.held:
            await asyncio.sleep(0.01)
        assert MOST < wire.size <= MOST + 256 * 1024
        assert sum([len(part) async for part in response.aiter_raw()]) == size


async def test_a_write_that_the_server_does_not_take_ends_in_time(scripted: Callable[[Script], str]) -> None:
    """The body is larger than all buffers, and the server does not read."""
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
    """Writes that never wait still let other tasks run."""
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
    """The connection is reset, not closed in an orderly way."""

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
    """Bytes after a response are read already, so a check of the socket does not show them."""
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
    """After CONNECT the caller has the stream. httpcore's backend does the handshake and gets the socket back."""
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


class Records:
    """A TLS server that controls where its records are split. Runs ``script(self, number)`` for each connection."""

    def __init__(self, certificates: Certificates, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = certificates.server_context().wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._until(self._tls.do_handshake)
        self.send(self._outgoing.read())

    def _until(self, work: Callable[[], Any]) -> Any:
        while True:
            try:
                return work()
            except ssl.SSLWantReadError:
                self.send(self._outgoing.read())
                data = self.socket.recv(65536)
                if not data:
                    raise OSError("the client has closed") from None
                self._incoming.write(data)

    def read(self) -> bytes:
        data: bytes = self._until(lambda: self._tls.read(65536))
        return data

    def sealed(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    def goodbye(self) -> None:
        """Close TLS, not the connection."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self.send(self._outgoing.read())

    def send(self, data: bytes) -> None:
        if data:
            self.socket.sendall(data)


HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def secure(certificates: Certificates, scripted: Callable[[Script], str], script: Any) -> tuple[httpx.AsyncClient, str]:
    """Yield a client and the URL of a TLS server."""
    url = scripted(lambda connection, number: script(Records(certificates, connection), number))
    transport = AsyncPoolkitTransport(verify=certificates.client_context())
    return httpx.AsyncClient(transport=transport, timeout=10), url.replace("http://", "https://")


async def test_tls_is_read_and_written_by_the_same_stream(https_server: HTTPServer) -> None:
    transport = AsyncPoolkitTransport(verify=https_server.client_context)
    async with httpx.AsyncClient(transport=transport, timeout=10) as client:
        response = await client.get(https_server.url)
        stream = response.extensions["network_stream"]
        assert type(stream) is AsyncioStream
        assert stream.secure()
        assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert stream.get_extra_info("server_addr") == (https_server.host, https_server.port)
        assert stream.get_extra_info("socket").fileno() > 0
        for size in (100_000, 1_000_000):
            response = await client.post(f"{https_server.url}/upload", content=bytes(size))
            assert response.json()["length"] == size
            assert len((await client.get(f"{https_server.url}/bytes?n={size}")).content) == size
        assert len(transport._pool.connections) == 1
        assert not stream.get_extra_info("is_readable")


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_records_may_arrive_in_pieces(
    certificates: Certificates, scripted: Callable[[Script], str], step: int
) -> None:
    def script(server: Records, number: int) -> None:
        while server.read():
            data = server.sealed(HELLO[:20]) + server.sealed(HELLO[20:])
            for at in range(0, len(data), step):
                server.send(data[at : at + step])

    client, url = secure(certificates, scripted, script)
    async with client:
        for _ in range(3):
            assert (await client.get(url)).content == b"hello"
        assert len(client._transport._pool.connections) == 1  # type: ignore[attr-defined]


async def test_half_a_record_behind_a_response_ends_the_connection(
    certificates: Certificates, scripted: Callable[[Script], str]
) -> None:
    """The event loop has read it and OpenSSL has not. The rest would be the start of the next response."""
    sent = threading.Event()

    def script(server: Records, number: int) -> None:
        server.read()
        server.send(server.sealed(HELLO))
        if not number:
            server.send(server.sealed(HELLO.replace(b"hello", b"stray"))[:-1])
            sent.set()
        server.read()

    client, url = secure(certificates, scripted, script)
    async with client:
        assert (await client.get(url)).content == b"hello"
        await asyncio.to_thread(sent.wait, 5)
        await asyncio.sleep(0.05)
        assert (await client.post(url)).content == b"hello"


@pytest.mark.parametrize("how", ["goodbye", "cut", "garbage"])
async def test_the_end_of_tls_within_a_response_is_an_error(
    certificates: Certificates, scripted: Callable[[Script], str], how: str
) -> None:
    def script(server: Records, number: int) -> None:
        server.read()
        server.send(server.sealed(HELLO[:-1]))
        if how == "goodbye":
            server.goodbye()
        elif how == "cut":
            server.socket.shutdown(socket.SHUT_WR)
        else:
            server.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        server.socket.recv(65536)

    client, url = secure(certificates, scripted, script)
    async with client:
        with pytest.raises(httpx.ReadError if how == "garbage" else httpx.RemoteProtocolError):
            await client.post(url)


async def test_a_secure_write_that_the_server_does_not_take_ends_in_time(
    certificates: Certificates, scripted: Callable[[Script], str]
) -> None:
    end = threading.Event()
    client, url = secure(certificates, scripted, lambda server, number: end.wait(10))

    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(100_000)

    async with client:
        with pytest.raises(httpx.WriteTimeout):
            await client.post(url, content=body(), timeout=httpx.Timeout(10, write=0.1))
    end.set()


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
LARGE = 20_000_000
"""Bytes that no buffers between a client and a server on this machine take."""


class Upgraded:
    """A server that switches to another protocol and reads nothing until ``go``. Then it reads, or resets."""

    def __init__(self, *, resets: bool) -> None:
        self.go = threading.Event()
        self.got = 0
        self._resets = resets

    def plain(self, connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(SWITCH)
        self._serve(connection, lambda: connection.recv(1 << 20))

    def secure(self, server: Records, number: int) -> None:
        server.read()
        server.send(server.sealed(SWITCH))
        self._serve(server.socket, server.read)

    def _serve(self, connection: socket.socket, read: Callable[[], bytes]) -> None:
        self.go.wait(30)
        if self._resets:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.close()
            return
        while self.got < LARGE + 20:
            self.got += len(read())


@contextlib.asynccontextmanager
async def upgraded(
    server: Upgraded, certificates: Certificates, scripted: Callable[[Script], str], tls: bool
) -> AsyncIterator[Any]:
    """The stream of a connection that has switched to another protocol."""
    if tls:
        client, url = secure(certificates, scripted, server.secure)
    else:
        client, url = client_of(), scripted(server.plain)
    try:
        async with client, client.stream("GET", url, headers={"Connection": "Upgrade", "Upgrade": "x"}) as response:
            yield response.extensions["network_stream"]
    finally:
        server.go.set()


async def writing(stream: Any) -> list[asyncio.Task[None]]:
    """Two tasks that write to the stream, and a large write before them. All are waiting."""
    inner = stream._stream  # httpcore's own stream hands out first what it has read already
    assert type(inner) is AsyncioStream
    tasks = []
    for size in (LARGE, 10, 10):
        tasks.append(asyncio.create_task(stream.write(b"x" * size)))
        while not inner._wire.full:
            await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_tasks_that_write_at_once_all_go_on(
    certificates: Certificates, scripted: Callable[[Script], str], tls: bool
) -> None:
    """A websocket: its keepalive writes while a message is being sent."""
    server = Upgraded(resets=False)
    async with upgraded(server, certificates, scripted, tls) as stream:
        tasks = await writing(stream)
        with pytest.raises(httpcore.WriteTimeout):  # each has its own time
            await stream.write(b"late", timeout=0.01)
        server.go.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        await until_async(lambda: server.got == LARGE + 20)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_tasks_that_write_at_once_all_learn_of_a_lost_connection(
    certificates: Certificates, scripted: Callable[[Script], str], tls: bool
) -> None:
    server = Upgraded(resets=True)
    async with upgraded(server, certificates, scripted, tls) as stream:
        tasks = await writing(stream)
        server.go.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    assert [type(result) for result in results] == [httpcore.WriteError] * 3


async def test_tls_can_begin_within_tls(certificates: Certificates, scripted: Callable[[Script], str]) -> None:
    """After the caller's own CONNECT over TLS, the caller starts TLS with the server behind it."""

    def script(server: Records, number: int) -> None:
        server.read()
        server.send(server.sealed(b"HTTP/1.1 200 OK\r\n\r\n"))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inner = certificates.server_context().wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                inner.do_handshake()
                break
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    server.send(server.sealed(outgoing.read()))
                incoming.write(server.read())
        inner.write(b"inner")
        server.send(server.sealed(outgoing.read()))
        server.read()

    context = certificates.client_context()
    url = scripted(lambda connection, number: script(Records(certificates, connection), number))
    async with AsyncPoolkitConnectionPool(ssl_context=context) as pool:
        target = httpcore.URL(scheme=b"https", host=b"127.0.0.1", port=int(url.rpartition(":")[2]), target=b"host:1")
        async with pool.stream("CONNECT", target) as response:
            stream = await response.extensions["network_stream"].start_tls(
                certificates.client_context(), server_hostname="127.0.0.1", timeout=5
            )
            assert await stream.read(100, timeout=5) == b"inner"
            await stream.aclose()
