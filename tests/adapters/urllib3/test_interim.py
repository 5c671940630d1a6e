"""Informational responses come before the final one, and no other request gets the final one."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3

from poolkit_adapters.requests import PoolkitAdapter
from poolkit_adapters.urllib3 import PoolkitPoolManager
from poolkit_adapters.urllib3._pool import PoolkitHTTPConnectionPool
from tests.support.loops import LoopServer

ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset discards what has arrived")
EARLY = b"Link: </s.css>; rel=preload\r\n"


class Hinting(LoopServer):
    """Answers ``GET /TEXT`` with ``/TEXT``. Before the answers to ``GET /early...`` it sends ``hints``.

    ``ends``: how it ends the connection after the hints. ``odd``: what it answers to ``GET /odd``.
    """

    def __init__(self, hints: bytes = b"", ends: str = "", odd: bytes = b"") -> None:
        super().__init__("hinting")
        self.hints, self.ends, self.odd = hints, ends, odd
        self.asked: list[bytes] = []

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            self.asked.append(path)
            if path.startswith(b"/early"):
                writer.write(self.hints)
                await writer.drain()
                if self.ends:
                    if self.ends == "reset":
                        linger = struct.pack("ii", 1, 0)
                        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.close()
                    return
                await asyncio.sleep(0.02)  # the final response comes in a packet of its own
            plain = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path)
            writer.write(self.odd if path == b"/odd" else plain)
            await writer.drain()

    def url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}/{path}"


@pytest.fixture(params=["urllib3", "requests"])
def get(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A function that sends a GET and returns the status and the body."""
    if request.param == "urllib3":
        with PoolkitPoolManager(retries=False) as manager:

            def send(url: str) -> tuple[int, bytes]:
                response = manager.request("GET", url)
                return response.status, response.data

            yield send
    else:
        with requests.Session() as session:
            session.mount("http://", PoolkitAdapter())

            def send(url: str) -> tuple[int, bytes]:
                response = session.get(url)
                return response.status_code, response.content

            yield send


def hints(*codes: int) -> bytes:
    return b"".join(b"HTTP/1.1 %d Wait\r\n%s\r\n" % (code, EARLY) for code in codes)


@pytest.mark.parametrize("codes", [(100,), (102,), (103,), (103, 103), (100, 102, 103, 100), (103,) * 100])
def test_a_request_gets_the_final_response_and_the_next_one_its_own(get: Any, codes: tuple[int, ...]) -> None:
    """http.client takes 102 and 103 for the final response. The connection is used again."""
    with Hinting(hints(*codes)) as server:
        assert get(server.url("early-alice")) == (200, b"/early-alice")
        assert get(server.url("bob")) == (200, b"/bob")
        assert server.accepted == 1


@pytest.mark.parametrize(
    "sent",
    [hints(*(103,) * 101), b"HTTP/1.1 103 Wait\r\n" + b"X: " + b"x" * 70_000 + b"\r\n\r\n"],
    ids=["many", "long"],
)
def test_informational_responses_without_end_fail_the_request(get: Any, sent: bytes) -> None:
    """Their number and their bytes are limited. The connection is closed."""
    with Hinting(sent) as server:
        with pytest.raises((urllib3.exceptions.HTTPError, requests.RequestException)):
            get(server.url("early-alice"))
        assert get(server.url("bob")) == (200, b"/bob")
        assert server.accepted == 2


@pytest.mark.parametrize("ends", ["closed", pytest.param("reset", marks=ONLY_LINUX)])
@pytest.mark.parametrize(
    "sent",
    [hints(103), hints(103)[:-2], hints(103, 100) + b"HTTP/1.1 200 OK\r\nContent-Le"],
    ids=["between", "interim", "final"],
)
def test_a_request_whose_response_has_begun_is_not_sent_again(get: Any, sent: bytes, ends: str) -> None:
    """The server has processed it. Without any part of a response, the request would be sent again."""
    with Hinting(sent, ends) as server:
        assert get(server.url("bob")) == (200, b"/bob")
        try:
            get(server.url("early-alice"))
        except (urllib3.exceptions.ProtocolError, requests.ConnectionError):
            pass
        else:
            assert ends == "closed"
            assert sent.endswith(b"Le")  # http.client takes the head for complete
        assert get(server.url("bob")) == (200, b"/bob")
        assert server.asked == [b"/bob", b"/early-alice", b"/bob"]


def test_botocore_gets_the_final_response_too() -> None:
    """Its connections choose the class of the response again before each request."""
    session = pytest.importorskip("botocore.httpsession")
    requests_of_aws = pytest.importorskip("botocore.awsrequest")
    with Hinting(hints(103)) as server, PoolkitPoolManager() as manager:
        client = session.URLLib3Session()
        manager.pool_classes_by_scheme = client._manager.pool_classes_by_scheme
        client._manager = manager
        for path in ("early-alice", "bob", "early-carol", "dave"):
            response = client.send(requests_of_aws.AWSRequest("GET", server.url(path)).prepare())
            assert (response.status_code, response.content) == (200, f"/{path}".encode())
        assert server.accepted == 1


class OwnResponse(http.client.HTTPResponse):
    """A response class of the application, which the pool leaves alone."""


class OwnConnection(urllib3.connection.HTTPConnection):
    response_class = OwnResponse


class OwnPool(PoolkitHTTPConnectionPool):
    ConnectionCls = OwnConnection


@pytest.mark.parametrize("code", [102, 103])
def test_a_connection_whose_last_response_was_informational_is_closed(code: int) -> None:
    """A response class of the application may return one, as http.client does. Its final response is still to come."""
    with Hinting(hints(code)) as server, OwnPool(server.host, server.port) as pool:
        assert pool.request("GET", "/early-alice").status == code
        response = pool.request("GET", "/bob")
        assert (response.status, response.data) == (200, b"/bob")
        assert server.accepted == 2


CHUNKS = b"4\r\n/odd\r\n0\r\n\r\n"
SIZE = b"Content-Length: %d\r\n" % len(CHUNKS)


@pytest.mark.parametrize(
    "odd",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
        b"HTTP/1.1 200 OK\r\n" + SIZE + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n" + SIZE + b"\r\n" + CHUNKS,
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    ],
    ids=["two lengths", "two codings", "two headers", "HTTP/1.0"],
)
def test_a_connection_whose_response_has_a_length_in_doubt_is_closed(get: Any, odd: bytes) -> None:
    """RFC 9112, 6.1 and 6.3: its head may be an attack. What follows it must not answer the next request."""
    with Hinting(odd=odd) as server:
        status, body = get(server.url("odd"))
        assert status == 200
        assert body in (b"/odd", CHUNKS)  # urllib3 takes two codings for chunks only in a stream, as requests does
        assert get(server.url("bob")) == (200, b"/bob")
        assert server.accepted == 2


def test_a_connection_whose_response_has_chunks_is_used_again(get: Any) -> None:
    with Hinting(odd=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + CHUNKS) as server:
        for _ in range(2):
            assert get(server.url("odd")) == (200, b"/odd")
        assert server.accepted == 1
