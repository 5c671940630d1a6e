"""A response whose reader stops early: if its end has arrived, its connection serves the next request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import httpcore
import httpx
import pytest

from poolkit.testing.servers import Certificates
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool, _async, _sync
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport

from .conftest import read_request

LAST = b"data: [DONE]\n\n"
ENDS = {
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (len(LAST), LAST), b"0\r\n\r\n"),
    "trailers": (b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (len(LAST), LAST), b"0\r\nX-Sum: 1\r\n\r\n"),
    "length": (b"Content-Length: %d\r\n\r\n" % (len(LAST) + 1), LAST, b"\n"),
    "more": (b"Content-Length: %d\r\n\r\n" % (len(LAST) + 9000), LAST, b"x" * 9000),
}
"""The head, the last line, and what follows the last line."""
WORLDS = pytest.mark.parametrize("world", ["threads", "asyncio", "trio"])
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


class Server:
    """A server that answers up to a last line. ``end()`` sends what follows, and returns when it is sent."""

    def __init__(self, certificates: Certificates | None, head: bytes, last: bytes, rest: bytes) -> None:
        self._context = certificates.server_context() if certificates is not None else None
        self._parts = b"HTTP/1.1 200 OK\r\n" + head + last, rest
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._asked = threading.Semaphore(0)
        self._sent = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self.accepted = 0
        self.url = f"http{'s' if self._context else ''}://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._start(self._accept)

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._start(partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # on loopback, what is sent has arrived
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            while read_request(connection):
                connection.sendall(self._parts[0])
                if not self._asked.acquire(timeout=30):
                    return
                connection.sendall(self._parts[1])
                self._sent.release()
        except OSError:
            pass
        finally:
            connection.close()

    def end(self) -> None:
        self._asked.release()
        assert self._sent.acquire(timeout=30)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._asked.release(100)
        for thread in self._threads:
            thread.join(30)


@contextmanager
def serving(certificates: Certificates | None, kind: str) -> Iterator[Server]:
    server = Server(certificates, *ENDS[kind])
    try:
        yield server
    finally:
        server.close()


def ask(world: str, server: Server, times: int, before_close: Callable[[], None], **settings: Any) -> None:
    """Read the first line of several responses, one after the other, and close each of them there."""
    if world == "threads":
        with httpx.Client(transport=PoolkitTransport(**settings)) as client:
            for _ in range(times):
                with client.stream("GET", server.url) as response:
                    for line in response.iter_lines():
                        assert line == "data: [DONE]"
                        before_close()
                        break
        return

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncPoolkitTransport(**settings)) as client:
            for _ in range(times):
                async with client.stream("GET", server.url) as response:
                    async for line in response.aiter_lines():
                        assert line == "data: [DONE]"
                        before_close()  # blocks the event loop, so it cannot read what arrives meanwhile
                        break

    anyio.run(main, backend=world)


quiet = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's warnings about unfinished bodies


@quiet
@WORLDS
@TLS
@pytest.mark.parametrize("kind", ENDS)
def test_ten_streams_broken_off_at_their_last_line_use_one_connection(
    world: str, tls: bool, kind: str, certificates: Certificates
) -> None:
    with serving(certificates if tls else None, kind) as server:
        ask(world, server, 10, server.end, verify=certificates.client_context())
        assert server.accepted == 1


@quiet
@WORLDS
@TLS
def test_without_its_end_a_response_is_not_waited_for(world: str, tls: bool, certificates: Certificates) -> None:
    with serving(certificates if tls else None, "chunked") as server:
        ask(world, server, 3, lambda: None, verify=certificates.client_context())
        assert server.accepted == 3


@quiet
@WORLDS
def test_what_is_read_is_bounded(world: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENDS, "long", (b"Content-Length: 3000014\r\n\r\n", LAST, b"x" * 3_000_000))
    with serving(None, "long") as server:
        ask(world, server, 2, server._asked.release, verify=certificates.client_context())
        assert server.accepted == 2


@TLS
def test_a_socket_that_blocks_is_not_read_when_nothing_is_there(tls: bool, certificates: Certificates) -> None:
    """Without a timeout, the sockets of threads block."""
    transport = PoolkitTransport(verify=certificates.client_context())
    with serving(certificates if tls else None, "chunked") as server:
        with httpx.Client(transport=transport, timeout=None) as client:
            for end in (server.end, server.end, lambda: None):
                with client.stream("GET", server.url) as response:
                    lines = response.iter_lines()
                    assert next(lines) == "data: [DONE]"
                    end()
        assert server.accepted == 1


def test_a_reader_of_a_closed_response_gets_no_bytes_of_the_next_one() -> None:
    with serving(None, "chunked") as server, PoolkitConnectionPool() as pool:
        with pool.stream("GET", server.url) as first:
            reader = first.iter_stream()
            assert next(reader) == LAST
            server.end()
        with pool.stream("GET", server.url) as second:
            with pytest.raises(httpcore.ReadError, match="the response was closed"):
                next(reader)
            assert next(second.iter_stream()) == LAST
            server.end()
        assert server.accepted == 1


@quiet
@pytest.mark.anyio
async def test_a_response_closed_while_another_task_reads_it_is_not_read_by_two() -> None:
    with serving(None, "chunked") as server:
        async with AsyncPoolkitConnectionPool() as pool:
            async with pool.stream("GET", server.url) as response:
                reader = response.aiter_stream()
                assert await anext(reader) == LAST
                errors: list[BaseException] = []

                async def read_on() -> None:
                    try:
                        await anext(reader)
                    except Exception as error:
                        errors.append(error)

                async with anyio.create_task_group() as group:
                    group.start_soon(read_on)
                    await anyio.wait_all_tasks_blocked()
                    server.end()  # the end has arrived, but the other task reads it
                    await response.aclose()
                assert len(errors) == 1
            async with pool.stream("GET", server.url) as response:
                assert await anext(response.aiter_stream()) == LAST
            assert server.accepted == 2


def _interrupted(link: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_close_frees_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sync, "read_rest", _interrupted)
    with serving(None, "chunked") as server, PoolkitConnectionPool(max_connections=1) as pool:
        traced = {"trace": lambda event, info: None}  # goes through httpcore's layers
        response = pool.handle_request(httpcore.Request("GET", server.url, headers={"Host": "here"}, extensions=traced))
        with pytest.raises(KeyboardInterrupt):
            response.close()
        assert pool.poolkit.stats().leases == 0
        pool.poolkit.check_books()


@quiet
@pytest.mark.anyio
async def test_an_interrupted_close_frees_the_slot_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_async, "read_rest", _interrupted)

    async def trace(event: str, info: object) -> None:
        """Goes through httpcore's layers."""

    with serving(None, "chunked") as server:
        async with AsyncPoolkitConnectionPool(max_connections=1) as pool:
            response = await pool.handle_async_request(
                httpcore.Request("GET", server.url, headers={"Host": "here"}, extensions={"trace": trace})
            )
            with pytest.raises(KeyboardInterrupt):
                await response.aclose()
            assert pool.poolkit.stats().leases == 0
            pool.poolkit.check_books()
