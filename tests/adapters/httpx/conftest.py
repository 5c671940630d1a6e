"""Servers for the tests of this driver only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from poolkit.testing.servers import Certificates, HTTPServer

from .h2server import H2Server

Script = Callable[[socket.socket, int], None]


@pytest.fixture
def h2_server(certificates: Certificates) -> Iterator[Callable[[int], H2Server]]:
    """Create HTTP/2 servers that the test controls: ``h2_server(streams)``."""
    servers: list[H2Server] = []

    def make(streams: int) -> H2Server:
        servers.append(H2Server(certificates, streams).__enter__())
        return servers[-1]

    yield make
    for server in servers:
        server.__exit__()


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], str]]:
    """Create servers that run ``script(connection, number)`` in a thread for each connection; return their URLs."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def make(script: Script) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def one(connection: socket.socket, number: int) -> None:
            with connection:
                try:
                    connection.settimeout(10)
                    script(connection, number)
                except OSError:
                    pass

        def accept() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=one, args=(connection, number), daemon=True))
                threads[-1].start()
                number += 1

        threads.append(threading.Thread(target=accept, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield make
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


@pytest.fixture(scope="session")
def _other_http_server() -> Iterator[HTTPServer]:
    with HTTPServer(fast=True) as server:
        yield server


@pytest.fixture
def other_http_server(_other_http_server: HTTPServer) -> HTTPServer:
    """A second origin."""
    return _other_http_server.start()


def read_request(connection: socket.socket) -> bytes:
    """Read one request without a body. Returns b"" if the client has closed."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    return data


def answer(connection: socket.socket, body: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
