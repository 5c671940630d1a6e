"""HTTP/1.1 requests on a reused connection: poolkit writes and parses them itself, as httpcore and h11 do."""

from __future__ import annotations

import gc
import logging
import secrets
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import anyio
import httpcore
import httpx
import pytest

from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpcore._http11_async import AsyncAnswer
from poolkit_adapters.httpcore._http11_sync import Answer, Direct
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.support.http11 import BROKEN, HELD, ODD, USUAL, by_shortcut, compare, opened, request, same

from .conftest import Script, answer, read_request

Scripted = Callable[[Script], str]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("name", [*USUAL, *ODD, *BROKEN])
def test_a_response_means_what_httpcore_makes_of_it(name: str) -> None:
    """In one piece, in two, and byte by byte; for GET and HEAD; with and without the end of the stream."""
    data = {**USUAL, **ODD, **BROKEN}[name]
    large = len(data) > 2500
    for cuts in ((), [len(data) // 2], range(0, len(data), 1000) if large else range(len(data))):
        for end in (False, True):
            for method in ("GET", "HEAD"):
                same(method, data, cuts, end)


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_responses_need_no_h11(name: str) -> None:
    outcome, by_h11 = by_shortcut("GET", [USUAL[name]], True)
    assert outcome[0] == "whole"
    assert not by_h11
    assert outcome[-1] == (name not in ("until the end", "no headers", "close", "close among others"))


@pytest.mark.parametrize("name", ODD)
def test_all_others_go_to_h11(name: str) -> None:
    outcome, by_h11 = by_shortcut("GET", [ODD[name]], True)
    assert by_h11 or outcome[0] == "error"


@pytest.mark.parametrize("seed", range(4))
def test_mutated_responses_mean_the_same_to_both(seed: int) -> None:
    """For a million of them run ``python -m tests.support.http11 1000000``."""
    assert 0 < compare(2500, seed) < 1250


REQUESTS: dict[str, tuple[str, list[tuple[bytes, bytes]], Any]] = {
    "plain": ("GET", [(b"Host", b"a"), (b"Accept", b"*/*"), (b"x-CASE", b"Y")], None),
    "host last": ("GET", [(b"Accept", b"*/*"), (b"hOST", b"a")], None),
    "host only": ("OPTIONS", [(b"Host", b"")], None),
    "empty value": ("GET", [(b"Host", b"a"), (b"X", b"")], None),
    "obs-text": ("GET", [(b"Host", b"a"), (b"X", b"\xe4 \x01")], None),
    "length": ("POST", [(b"Host", b"a"), (b"Content-Length", b"4")], b"body"),
    "length in parts": ("PUT", [(b"Host", b"a"), (b"Content-Length", b"4")], iter([b"bo", b"", b"dy"])),
    "chunked": ("POST", [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")], b"body"),
    "chunked and empty": ("POST", [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")], b""),
    "chunked in parts": ("POST", [(b"Host", b"a"), (b"Transfer-Encoding", b"chunked")], iter([b"bo", b"", b"dy" * 9])),
    "large": ("POST", [(b"Host", b"a"), (b"Content-Length", b"200000")], bytes(200_000)),
    "keep-alive": ("GET", [(b"Host", b"a"), (b"Connection", b"Keep-Alive")], None),
    "expect": ("PUT", [(b"Host", b"a"), (b"Expect", b"100-continue"), (b"Content-Length", b"1")], b"x"),
}
BAD_REQUESTS: dict[str, tuple[str, list[tuple[bytes, bytes]], Any]] = {
    "no host": ("GET", [(b"Accept", b"*/*")], None),
    "two hosts": ("GET", [(b"Host", b"a"), (b"Host", b"a")], None),
    "line break in a value": ("GET", [(b"Host", b"a"), (b"X", b"a\r\nY: b")], None),
    "line feed in a value": ("GET", [(b"Host", b"a\nY: b")], None),
    "NUL in a value": ("GET", [(b"Host", b"a"), (b"X", b"a\0")], None),
    "blank before a value": ("GET", [(b"Host", b"a"), (b"X", b" a")], None),
    "blank behind a value": ("GET", [(b"Host", b"a"), (b"X", b"a ")], None),
    "colon in a name": ("GET", [(b"Host", b"a"), (b"X: Y", b"a")], None),
    "line break in a name": ("GET", [(b"Host", b"a"), (b"X: y\r\nZ", b"a")], None),
    "blank in a method": ("GE T", [(b"Host", b"a")], None),
    "line break in a method": ("GET / HTTP/1.1\r\nX: y\r\n\r\nGET", [(b"Host", b"a")], None),
    "both lengths": ("POST", [(b"Host", b"a"), (b"Content-Length", b"2"), (b"Transfer-Encoding", b"chunked")], b"ok"),
    "two lengths": ("POST", [(b"Host", b"a"), (b"Content-Length", b"2"), (b"Content-Length", b"3")], b"ok"),
    "gzip": ("POST", [(b"Host", b"a"), (b"Transfer-Encoding", b"gzip")], b"ok"),
    "body too long": ("POST", [(b"Host", b"a"), (b"Content-Length", b"2")], b"okay"),
    "body too short": ("POST", [(b"Host", b"a"), (b"Content-Length", b"4")], b"ok"),
    "body without a length": ("POST", [(b"Host", b"a")], b"ok"),
    "close": ("GET", [(b"Host", b"a"), (b"Connection", b"close")], None),
    "upgrade": ("GET", [(b"Host", b"a"), (b"Upgrade", b"x"), (b"Connection", b"upgrade")], None),
    "connect": ("CONNECT", [(b"Host", b"a")], None),
}


def asked(method: str, headers: list[tuple[bytes, bytes]], content: Any) -> httpcore.Request:
    return httpcore.Request(method, "http://localhost/a?b", headers=headers, content=content)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_written_as_h11_writes_it(name: str) -> None:
    method, headers, content = REQUESTS[name]
    parts = None if isinstance(content, (bytes, type(None))) else list(content)
    connection, theirs = opened([OK], False)
    connection.handle_request(asked(method, headers, content if parts is None else iter(parts)))
    connection, ours = opened([OK], False)
    shortcut = Direct(connection._connection)
    sent = asked(method, headers, content if parts is None else iter(parts))
    prepared = shortcut.prepared(sent, HELD)
    assert prepared is not None
    shortcut.exchange(sent, prepared)
    assert b"".join(ours.written) == b"".join(theirs.written)


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_an_unusual_or_wrong_request_is_left_to_h11(name: str) -> None:
    connection, stream = opened([OK], False)
    assert Direct(connection._connection).prepared(asked(*BAD_REQUESTS[name]), HELD) is None
    assert stream.written == []


def test_a_request_is_written_the_same_after_any_other() -> None:
    """Also if the headers equal those of the request before, or differ slightly."""
    kinds = {**REQUESTS, **BAD_REQUESTS}
    kinds |= {f"{name}, one header more": (a, [*b, (b"X-More", b"1")], c) for name, (a, b, c) in kinds.items()}

    def sent(name: str) -> httpcore.Request:
        method, headers, content = kinds[name]
        return asked(method, headers, content if isinstance(content, (bytes, type(None))) else iter(list(content)))

    connection, _ = opened([OK], False)
    alone = {name: Direct(connection._connection).prepared(sent(name), HELD) for name in kinds}
    assert None in alone.values()
    shortcut = Direct(connection._connection)
    for first in kinds:
        for second in kinds:
            shortcut.prepared(sent(first), HELD)
            assert shortcut.prepared(sent(second), HELD) == alone[second], (first, second)
            assert shortcut.prepared(sent(second), HELD) == alone[second], (first, second)


def test_headers_that_were_changed_in_place_are_written_again() -> None:
    connection, _ = opened([OK], False)
    shortcut = Direct(connection._connection)
    sent = request("GET")
    value: Any = bytearray(b"1")
    sent.headers.append((b"X", value))
    for line in (b"X: 1\r\n", b"X: 2\r\n"):
        prepared = shortcut.prepared(sent, HELD)
        assert prepared is not None
        assert line in prepared[0]
        value[:] = b"2"
    sent.headers[-1] = (b"X", b"3")
    prepared = shortcut.prepared(sent, HELD)
    assert prepared is not None
    assert prepared[0] == b"GET / HTTP/1.1\r\nHost: localhost\r\nX: 3\r\n\r\n"
    sent.headers.append((b"X", b"a\r\nY: b"))
    assert shortcut.prepared(sent, HELD) is None
    assert shortcut.prepared(sent, HELD) is None


@pytest.mark.parametrize(("parts", "text"), [([b"abc"], "Too much"), ([b"a"], "Too little")])
def test_a_body_in_parts_of_another_length_is_h11s_error(parts: list[bytes], text: str) -> None:
    for own in (False, True):
        connection, _ = opened([OK], False)
        sent = asked("PUT", [(b"Host", b"a"), (b"Content-Length", b"2")], iter(parts))
        shortcut = Direct(connection._connection)
        with pytest.raises(Exception, match=text) as error:
            if own:
                shortcut.exchange(sent, shortcut.prepared(sent, HELD))  # type: ignore[arg-type]
            else:
                connection.handle_request(sent)
        assert error.type.__module__.startswith("h11")
        assert connection.is_closed()


def test_a_connection_in_use_takes_no_second_request() -> None:
    connection, _ = opened([OK], False)
    shortcut = Direct(connection._connection)
    prepared = shortcut.prepared(request("GET"), HELD)
    assert prepared is not None
    shortcut.exchange(request("GET"), prepared)
    with pytest.raises(httpcore.ConnectionNotAvailable):
        shortcut.exchange(request("GET"), prepared)


def talk(connection: socket.socket, *answers: bytes) -> None:
    for one in answers:
        if not read_request(connection):
            return
        connection.sendall(one)
    read_request(connection)


def test_threads_take_the_shortcut_from_the_first_request_on(scripted: Scripted) -> None:
    odd = b"HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\nok"
    usual = b"HTTP/1.1 201 Made\r\nx-CASE: 1\r\nX-Case: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    with PoolkitConnectionPool() as pool:
        url = scripted(lambda connection, _: talk(connection, OK, usual, odd, usual))
        kinds = []
        for _ in range(4):
            with pool.stream("GET", url) as response:
                kinds.append(type(response.stream))
                assert response.read() == b"ok"
                if response.status == 201:
                    assert response.headers[:2] == [(b"x-CASE", b"1"), (b"X-Case", b"2")]
                    extensions = dict(response.extensions)
                    assert extensions.pop("network_stream").get_extra_info("server_addr")
                    assert extensions == {"http_version": b"HTTP/1.1", "reason_phrase": b"Made"}
        assert [kind is Answer for kind in kinds] == [True, True, False, True]
        assert pool.odd_responses == 1
        assert len(pool.connections) == 1
        assert "Request Count: 4" in repr(pool.connections[0])
        assert pool.connections[0].is_idle()


@pytest.mark.anyio
async def test_tasks_too(scripted: Scripted) -> None:
    trailers = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"
    async with AsyncPoolkitConnectionPool() as pool:
        url = scripted(lambda connection, _: talk(connection, OK, OK, trailers, OK))
        kinds = []
        for _ in range(4):
            async with pool.stream("GET", url) as response:
                kinds.append(type(response.stream))
                assert await response.aread() == b"ok"
        assert [kind is AsyncAnswer for kind in kinds] == [True, True, True, True]
        assert pool.odd_responses == 1
        assert len(pool.connections) == 1
        assert pool.connections[0].is_idle()


def plain(url: str) -> httpcore.Request:
    return httpcore.Request("GET", url, headers=[(b"Host", b"localhost")])


def test_a_closed_response_keeps_nothing_of_its_request(scripted: Scripted) -> None:
    """httpx holds a response in a reference cycle, so its parts would wait for the garbage collector."""
    with PoolkitConnectionPool() as pool:
        sent = plain(scripted(lambda connection, _: talk(connection, OK)))
        response: Any = pool.handle_request(sent)
        assert isinstance(response.stream, Answer)
        assert list(response.stream) == [b"ok"]
        response.stream.close()
        kept = weakref.ref(sent)
        del sent
        assert kept() is None
        with pytest.raises(httpcore.ReadError, match="closed"):
            list(response.stream)


@pytest.mark.anyio
async def test_a_closed_response_of_a_task_keeps_nothing_either(scripted: Scripted) -> None:
    async with AsyncPoolkitConnectionPool() as pool:
        sent = plain(scripted(lambda connection, _: talk(connection, OK)))
        response: Any = await pool.handle_async_request(sent)
        assert isinstance(response.stream, AsyncAnswer)
        assert [part async for part in response.stream] == [b"ok"]
        await response.stream.aclose()
        kept = weakref.ref(sent)
        del sent
        assert kept() is None
        with pytest.raises(httpcore.ReadError, match="closed"):
            [part async for part in response.stream]


def texts_of(root: Any) -> set[bytes]:
    """Return all bytes that an object refers to, directly or through others."""
    found: set[bytes] = set()
    seen: set[int] = set()
    left = [root]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, (ModuleType, FunctionType, type)):
            continue
        seen.add(id(one))
        if isinstance(one, (bytes, bytearray)):
            found.add(bytes(one))
        left.extend(gc.get_referents(one))
    return found


def with_secrets(url: str, number: int, known: str) -> httpcore.Request:
    headers = [("Host", "localhost"), ("Authorization", f"Bearer {known}"), ("Cookie", f"id={known}; n={number}")]
    return httpcore.Request("GET", f"{url}?token={known}", headers=headers)


def test_an_idle_connection_keeps_no_secret_of_a_request(scripted: Scripted) -> None:
    url = scripted(lambda connection, _: talk(connection, OK, OK, OK))
    known = secrets.token_hex()
    with PoolkitConnectionPool() as pool:
        for number in range(3):
            response = pool.handle_request(with_secrets(url, number, known))
            assert response.read() == b"ok"
            response.close()
        del response
        assert len(pool.connections) == 1
        assert [text for text in texts_of(pool) if known.encode() in text] == []


@pytest.mark.anyio
async def test_an_idle_connection_of_tasks_keeps_no_secret_of_a_request(scripted: Scripted) -> None:
    url = scripted(lambda connection, _: talk(connection, OK, OK, OK))
    known = secrets.token_hex()
    async with AsyncPoolkitConnectionPool() as pool:
        for number in range(3):
            response = await pool.handle_async_request(with_secrets(url, number, known))
            assert await response.aread() == b"ok"
            await response.aclose()
        del response
        assert len(pool.connections) == 1
        assert [text for text in texts_of(pool._connector) if known.encode() in text] == []


ENCODED = {"ascii": b"a", "utf-8": b"\xc3\xbc", "iso-8859-1": b"\xfc"}


@pytest.mark.anyio
@pytest.mark.parametrize("theirs", ENCODED)
@pytest.mark.parametrize("ours", ENCODED)
@pytest.mark.parametrize("chosen", [None, "utf-8"])
async def test_headers_have_the_encoding_that_httpx_finds(
    scripted: Scripted, ours: str, theirs: str, chosen: str | None
) -> None:
    """The same with httpx's own transport and with poolkit's. An encoding that the user has set stays."""
    head = b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 3\r\n\r\n" % ENCODED[theirs]
    url = scripted(lambda connection, _: talk(connection, *3 * [head + "\xfc!".encode()]))
    found = []

    def sent() -> httpx.Request:
        request = httpx.Request("GET", url, headers=[(b"X", ENCODED[ours])])
        if chosen is not None:
            request.headers.encoding = chosen
        return request

    for kind in (httpx.HTTPTransport, PoolkitTransport):
        with kind() as transport:
            request = sent()
            response = transport.handle_request(request)
            response.read()
            found.append((request.headers.encoding, response.headers.encoding, response.headers["x"]))
    async with AsyncPoolkitTransport() as transport:
        request = sent()
        response = await transport.handle_async_request(request)
        await response.aread()
        found.append((request.headers.encoding, response.headers.encoding, response.headers["x"]))
    assert found == 3 * [(chosen or ours, theirs, "a" if theirs == "ascii" else "\xfc")]


def test_a_header_that_a_wrapping_transport_adds_later_may_be_of_another_encoding(scripted: Scripted) -> None:
    url = scripted(lambda connection, _: talk(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"))
    with PoolkitTransport() as transport:
        request = httpx.Request("GET", url)
        transport.handle_request(request).read()
    request.headers["x-name"] = "\xfc"
    assert request.headers["x-name"] == "\xfc"


def test_tls_takes_it_too(https_server: HTTPServer) -> None:
    with httpx.Client(transport=PoolkitTransport(verify=https_server.client_context)) as client:
        ports = {client.get(f"{https_server.url}/bytes?n=300000").headers["x-client-port"] for _ in range(3)}
        with client.stream("GET", https_server.url) as response:
            assert isinstance(response.stream._stream, Answer)  # type: ignore[attr-defined]
            assert response.json if response.read() else None
            ports.add(response.headers["x-client-port"])
        assert len(ports) == 1


@pytest.mark.parametrize("how", ["trace", "debug"])
def test_a_traced_or_logged_request_is_httpcores(
    http_server: HTTPServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: dict[type, list[str]] = {}
    for kind in (httpcore.ConnectionPool, PoolkitConnectionPool):
        seen: list[str] = []
        events[kind] = seen
        with kind() as pool:
            pool.request("GET", http_server.url)
            if how == "trace":
                trace = {"trace": lambda name, info, seen=seen: seen.append(name)}
                pool.request("GET", http_server.url, extensions=trace)
            else:
                caplog.clear()
                with caplog.at_level(logging.DEBUG, f"{httpcore.__name__}.http11"):
                    pool.request("GET", http_server.url)
                seen.extend(record.message.partition(" ")[0] for record in caplog.records)
    assert events[PoolkitConnectionPool] == events[httpcore.ConnectionPool]
    assert len(events[PoolkitConnectionPool]) >= 10


def test_an_answer_that_comes_before_the_body_is_sent_is_read(scripted: Scripted) -> None:
    """A server may refuse an upload and close."""

    def script(connection: socket.socket, number: int) -> None:
        talk(connection, OK)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    def body() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(50_000)

    with httpx.Client(transport=PoolkitTransport()) as client:
        url = scripted(script)
        client.get(url)
        response = client.post(url, content=body())
        assert (response.status_code, response.content) == (413, b"no")


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before", "in the head", "in the body", "in a chunk"])
async def test_a_cancelled_request_on_a_reused_connection_closes_it(scripted: Scripted, when: str) -> None:
    sent = {
        "before": b"",
        "in the head": b"HTTP/1.1 200 OK\r\nContent-",
        "in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nha",
        "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha",
    }[when]
    arrived, closed = threading.Event(), threading.Event()

    def script(connection: socket.socket, number: int) -> None:
        read_request(connection)
        answer(connection, b"%d" % number)
        if number:
            return
        read_request(connection)
        connection.sendall(sent)
        arrived.set()
        if not connection.recv(1):
            closed.set()

    transport = AsyncPoolkitTransport()
    async with httpx.AsyncClient(transport=transport, timeout=10) as client:
        url = scripted(script)
        assert (await client.get(url)).text == "0"
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, url)
            await anyio.to_thread.run_sync(arrived.wait, 10)
            await anyio.sleep(0.02)
            group.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(closed.wait, 10)
        assert (await client.get(url)).text == "1"
        transport.poolkit.check_books()
        assert transport.poolkit.stats().leases == 0


@pytest.mark.anyio
async def test_a_request_body_that_fails_closes_the_connection(http_server: HTTPServer) -> None:
    ended = False

    async def body() -> Any:
        nonlocal ended
        try:
            yield b"part"
            raise ValueError("mine")
        finally:
            ended = True

    transport = AsyncPoolkitTransport()
    async with httpx.AsyncClient(transport=transport) as client:
        before = (await client.get(http_server.url)).json()["client_port"]
        with pytest.raises(ValueError, match="mine"):
            await client.post(f"{http_server.url}/upload", content=body())
        assert ended
        assert (await client.get(http_server.url)).json()["client_port"] != before
        transport.poolkit.check_books()


@pytest.mark.anyio
async def test_errors_of_a_body_are_the_librarys(scripted: Scripted) -> None:
    def script(connection: socket.socket, number: int) -> None:
        talk(connection, OK, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nha")

    async with httpx.AsyncClient(transport=AsyncPoolkitTransport(), timeout=httpx.Timeout(10, read=0.1)) as client:
        url = scripted(script)
        await client.get(url)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(url)


def test_a_body_closed_by_another_thread_wakes_its_reader(scripted: Scripted) -> None:
    def script(connection: socket.socket, number: int) -> None:
        talk(connection, OK, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nha")

    with PoolkitConnectionPool() as pool:
        url = scripted(script)
        pool.request("GET", url)
        with pool.stream("GET", url) as response:
            parts = response.iter_stream()
            assert next(parts) == b"ha"
            threading.Timer(0.1, response.close).start()
            with pytest.raises(httpcore.ReadError):
                next(parts)
        pool.poolkit.check_books()


@pytest.mark.parametrize("reused", [False, True])
def test_a_response_with_two_lengths_is_the_last_on_its_connection(scripted: Scripted, reused: bool) -> None:
    two = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"

    def script(connection: socket.socket, number: int) -> None:
        talk(connection, *([OK] if reused else []), two) if not number else talk(connection, OK.replace(b"ok", b"2."))

    with PoolkitConnectionPool() as pool:
        url = scripted(script)
        for expected in ([b"ok"] if reused else []) + [b"ok", b"2."]:
            assert pool.request("POST", url).content == expected
