"""Connections that the server has closed, and servers that restart or go away."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

import anyio
import httpcore
import httpx
import pytest

from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport

from .conftest import Script, answer, read_request

Scripted = Callable[[Script], str]


def test_16_idle_connections_closed_by_the_server_are_not_handed_out(http_server: HTTPServer) -> None:
    transport = PoolkitTransport(check_after_idle=0)
    with httpx.Client(transport=transport) as client:
        client.get(http_server.url)
        http_server.close_connections()
        sockets = [connection for connection in transport._pool.connections if not connection.has_expired()]
        while sockets:  # until it has arrived
            time.sleep(0.002)
            sockets = [connection for connection in transport._pool.connections if not connection.has_expired()]
        response = client.post(f"{http_server.url}/upload", content=b"not to be sent twice")
        assert response.json()["length"] == 20
        assert transport.poolkit.stats().failed_checks == 1


@pytest.mark.anyio
@pytest.mark.parametrize("secure", [False, True])
async def test_16_five_callers_after_the_server_has_cut_all(
    http_server: HTTPServer, https_server: HTTPServer, secure: bool
) -> None:
    server = https_server if secure else http_server
    transport = AsyncPoolkitTransport(verify=https_server.client_context)
    async with httpx.AsyncClient(transport=transport, timeout=10) as client:
        for _ in range(2):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(client.get, f"{server.url}/sleep?ms=50")
            server.close_connections()
            await anyio.sleep(0.1)
        transport.poolkit.check_books()


@pytest.mark.parametrize("check", [None, 1.0])
def test_a_get_on_a_reused_connection_that_dies_is_sent_again(scripted: Scripted, check: float | None) -> None:
    seen: list[tuple[int, bytes]] = []

    def script(connection: socket.socket, number: int) -> None:
        while request := read_request(connection):
            seen.append((number, request.split()[1]))
            if request.startswith(b"GET /second") and number == 0:
                return  # reads the request and closes, like a server whose idle time is over
            answer(connection, b"%d" % number)

    with httpx.Client(transport=PoolkitTransport(check_after_idle=check)) as client:
        url = scripted(script)
        assert client.get(f"{url}/first").text == "0"
        assert client.get(f"{url}/second").text == "1"
    assert seen == [(0, b"/first"), (0, b"/second"), (1, b"/second")]


@pytest.mark.anyio
async def test_the_same_for_tasks_and_with_a_body(scripted: Scripted) -> None:
    def script(connection: socket.socket, number: int) -> None:
        while request := connection.recv(65536):
            if request.startswith(b"PUT") and number == 0:
                return
            answer(connection, b"%d" % number)

    async with httpx.AsyncClient(transport=AsyncPoolkitTransport()) as client:
        url = scripted(script)
        assert (await client.get(url)).text == "0"
        assert (await client.put(url, content=b"body")).text == "1"


def test_a_post_is_not_sent_twice(scripted: Scripted) -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket, number: int) -> None:
        while request := connection.recv(65536):
            requests.append(request.split()[0])
            if request.startswith(b"POST"):
                return
            answer(connection, b"ok")

    with httpx.Client(transport=PoolkitTransport()) as client:
        url = scripted(script)
        client.get(url)
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(url)
    assert requests == [b"GET", b"POST"]


def test_a_body_that_was_read_from_a_generator_is_not_sent_twice(scripted: Scripted) -> None:
    def script(connection: socket.socket, number: int) -> None:
        while request := connection.recv(65536):
            if request.startswith(b"PUT"):
                return
            answer(connection, b"ok")

    with httpx.Client(transport=PoolkitTransport()) as client:
        url = scripted(script)
        client.get(url)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.put(url, content=iter([b"a", b"b"]))


def test_the_loss_of_a_new_connection_is_an_error_for_its_caller(scripted: Scripted) -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket, number: int) -> None:
        requests.append(read_request(connection))

    with httpx.Client(transport=PoolkitTransport()) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(scripted(script))
    assert len(requests) == 1


def test_bytes_after_the_answer_end_the_connection(scripted: Scripted) -> None:
    def script(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            answer(connection, b"%d" % number)
            if number == 0:
                time.sleep(0.05)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")

    with httpx.Client(transport=PoolkitTransport(check_after_idle=0.1)) as client:
        url = scripted(script)
        assert client.get(url).text == "0"
        time.sleep(0.2)
        assert client.get(url).text == "1"


def test_17_a_server_that_is_back_is_used_again() -> None:
    with HTTPServer(fast=True) as server, PoolkitConnectionPool() as pool:
        pool.request("GET", server.url)
        server.kill()
        for _ in range(3):
            with pytest.raises((httpcore.ConnectError, httpcore.ReadError, httpcore.RemoteProtocolError)):
                pool.request("GET", server.url)
        server.start()
        assert pool.request("GET", server.url).status == 200
        pool.poolkit.check_books()


def test_24_clear_retires_all_connections(http_server: HTTPServer) -> None:
    with PoolkitConnectionPool() as pool:
        before = dict(pool.request("GET", http_server.url).headers)[b"x-client-port"]
        with pool.stream("GET", http_server.url) as response:
            pool.poolkit.clear()
            response.read()
        assert pool.connections == []
        assert dict(pool.request("GET", http_server.url).headers)[b"x-client-port"] != before


def test_11_fork(http_server: HTTPServer) -> None:
    def port(response: httpcore.Response) -> bytes:
        return dict(response.headers)[b"x-client-port"]

    with PoolkitConnectionPool() as pool:
        mine = port(pool.request("GET", http_server.url))
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writer, port(pool.request("GET", http_server.url)))
                pool.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        childs = os.read(reader, 100)
        os.close(reader)
        os.close(writer)
        assert childs.isdigit()
        assert childs != mine
        assert port(pool.request("GET", http_server.url)) == mine


@pytest.mark.slow
@pytest.mark.anyio
async def test_26_a_close_by_the_peer_is_noticed_without_a_request(http_server: HTTPServer) -> None:
    async with AsyncPoolkitConnectionPool() as pool:
        await pool.request("GET", http_server.url)
        http_server.close_connections()
        with anyio.fail_after(15):  # the housekeeping checks every five seconds
            while pool.connections:
                await anyio.sleep(0.1)
