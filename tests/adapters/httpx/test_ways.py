"""Connections over proxies, TLS and unix sockets, and connections that leave HTTP."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import httpcore
import httpx
import pytest

from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.support.proxies import HTTPProxy, SOCKSProxy
from tests.support.waiting import PATIENCE

from .conftest import Script, answer, read_request

ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a write to a deaf peer may succeed")


@pytest.mark.parametrize("kind", [HTTPProxy, SOCKSProxy])
@pytest.mark.parametrize("secure", [False, True])
def test_a_proxy_in_threads(
    http_server: HTTPServer, https_server: HTTPServer, kind: Callable[[], HTTPProxy], secure: bool
) -> None:
    server = https_server if secure else http_server
    with kind() as proxy:
        transport = PoolkitTransport(verify=https_server.client_context, http2=True, proxy=proxy.url)
        with httpx.Client(transport=transport) as client:
            ports = {client.get(server.url).json()["client_port"] for _ in range(3)}
            transport.poolkit.check_books()
        assert len(ports) == 1
        assert proxy.accepted == 1


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [HTTPProxy, SOCKSProxy])
@pytest.mark.parametrize("secure", [False, True])
async def test_a_proxy(
    http_server: HTTPServer, https_server: HTTPServer, kind: Callable[[], HTTPProxy], secure: bool
) -> None:
    server = https_server if secure else http_server
    with kind() as proxy:
        transport = AsyncPoolkitTransport(verify=https_server.client_context, http2=True, proxy=proxy.url)
        async with httpx.AsyncClient(transport=transport) as client:
            ports = {(await client.get(server.url)).json()["client_port"] for _ in range(3)}
            transport.poolkit.check_books()
        assert len(ports) == 1
        assert proxy.accepted == 1


def test_a_socks_proxy_with_a_password(http_server: HTTPServer) -> None:
    with SOCKSProxy("user", "pass") as proxy:
        url = proxy.url.replace("://", "://user:pass@")
        with httpx.Client(transport=PoolkitTransport(proxy=url)) as client:
            assert client.get(http_server.url).status_code == 200


@pytest.mark.anyio
async def test_a_tunnel_that_fails_leaves_nothing(scripted: Callable[[Script], str]) -> None:
    hung_up = threading.Event()

    def script(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        if not connection.recv(1):
            hung_up.set()

    transport = AsyncPoolkitTransport(proxy=scripted(script), limits=httpx.Limits(max_connections=1))
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(2):
            with pytest.raises(httpx.ProxyError, match="407"):
                await client.get("https://example.org/")
        assert transport.poolkit.stats().size == 0
    assert hung_up.wait(5)


def test_httpcores_own_proxy_argument(http_server: HTTPServer) -> None:
    with HTTPProxy() as proxy, PoolkitConnectionPool(proxy=httpcore.Proxy(proxy.url)) as pool:
        assert pool.request("GET", http_server.url).status == 200
        assert proxy.accepted == 1


@pytest.mark.anyio
async def test_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            for number in range(2):
                with listener.accept()[0] as connection:
                    while read_request(connection):
                        answer(connection, b"%d" % number)

        thread = threading.Thread(target=serve)
        thread.start()
        with httpx.Client(transport=PoolkitTransport(uds=path)) as client:
            assert [client.get("http://localhost/").text for _ in range(3)] == ["0"] * 3
        async with httpx.AsyncClient(transport=AsyncPoolkitTransport(uds=path)) as other:
            assert [(await other.get("http://localhost/")).text for _ in range(3)] == ["1"] * 3
        thread.join(10)


@contextlib.contextmanager
def refusing_uploads(path: str) -> Iterator[threading.Event]:
    """A server on a Unix socket. It answers a POST at once with 413, and reads nothing more on that connection.

    The event is set when it has done so.
    """
    refused = threading.Event()
    with contextlib.ExitStack() as held, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE)

        def serve() -> None:
            for _ in range(2):
                connection = held.enter_context(listener.accept()[0])
                connection.settimeout(PATIENCE)
                while asked := connection.recv(65536):
                    if asked.startswith(b"POST"):
                        connection.shutdown(socket.SHUT_RD)
                        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
                        refused.set()
                        break
                    answer(connection, b"ok")

        thread = threading.Thread(target=serve)
        thread.start()
        yield refused
        thread.join(PATIENCE)
        assert not thread.is_alive()


IN_TIME = {"timeout": {"read": PATIENCE, "write": PATIENCE}}


@ONLY_LINUX
def test_a_connection_on_which_a_request_was_cut_off_carries_no_other(tmp_path: Path) -> None:
    """The server would take the next request for the rest of the upload, or nobody would read it."""
    url, path = "http://localhost/", str(tmp_path / "http.sock")

    def body() -> Iterator[bytes]:
        yield b"a part"
        refused.wait(PATIENCE)
        yield b"another part"

    with refusing_uploads(path) as refused, PoolkitConnectionPool(uds=path) as pool:
        assert pool.request("GET", url).status == 200
        assert pool.request("POST", url, content=body()).status == 413
        assert pool.request("GET", url, extensions=IN_TIME).status == 200


@ONLY_LINUX
@pytest.mark.anyio
async def test_a_connection_on_which_a_request_of_a_task_was_cut_off_carries_no_other(tmp_path: Path) -> None:
    url, path = "http://localhost/", str(tmp_path / "http.sock")

    async def body() -> AsyncIterator[bytes]:
        yield b"a part"
        await anyio.to_thread.run_sync(refused.wait, PATIENCE)
        yield b"another part"

    with refusing_uploads(path) as refused:
        async with AsyncPoolkitConnectionPool(uds=path) as pool:
            assert (await pool.request("GET", url)).status == 200
            assert (await pool.request("POST", url, content=body())).status == 413
            assert (await pool.request("GET", url, extensions=IN_TIME)).status == 200


def test_local_address_and_socket_options(http_server: HTTPServer) -> None:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    with PoolkitConnectionPool(local_address="127.0.0.1", socket_options=options) as pool:
        with pool.stream("GET", http_server.url) as response:
            sock = response.extensions["network_stream"].get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"


def echo_server(connection: socket.socket, number: int) -> None:
    read_request(connection)
    connection.sendall(UPGRADE)
    while data := connection.recv(100):
        connection.sendall(data)


def test_an_upgrade_takes_the_connection_away(scripted: Callable[[Script], str], http_server: HTTPServer) -> None:
    headers = {"connection": "upgrade", "upgrade": "echo", "host": "localhost"}
    with PoolkitConnectionPool(max_connections=1) as pool:
        with pool.stream("GET", scripted(echo_server), headers=headers) as response:
            assert response.status == 101
            stream = response.extensions["network_stream"]
            stream.write(b"hello")
            assert stream.read(100) == b"hello"
            # its slot in the pool is free
            assert pool.request("GET", http_server.url, extensions={"timeout": {"pool": 1}}).status == 200
            stream.write(b"again")
            assert stream.read(100) == b"again"
        with pytest.raises(httpcore.WriteError):
            stream.write(b"after the response is closed")
        pool.poolkit.check_books()


@pytest.mark.anyio
async def test_an_upgrade_takes_the_connection_away_from_tasks(
    scripted: Callable[[Script], str], http_server: HTTPServer
) -> None:
    headers = {"connection": "upgrade", "upgrade": "echo", "host": "localhost"}
    async with AsyncPoolkitConnectionPool(max_connections=1) as pool:
        async with pool.stream("GET", scripted(echo_server), headers=headers) as response:
            stream = response.extensions["network_stream"]
            await stream.write(b"hello")
            assert await stream.read(100) == b"hello"
            extensions = {"timeout": {"pool": 1}}
            assert (await pool.request("GET", http_server.url, extensions=extensions)).status == 200
        pool.poolkit.check_books()
