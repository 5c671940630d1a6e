"""Requests that are cancelled while they connect leave no open socket, and sockets never exceed the limit."""

from __future__ import annotations

import asyncio
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import trio

from poolkit.testing.servers import Certificates
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool
from poolkit_adapters.httpcore._asyncio_stream import AsyncioBackend
from poolkit_adapters.httpx import AsyncPoolkitTransport
from tests.support.collector import without_collector

LIMIT = 3
WAYS = ("http", "https", "http-proxy", "https-proxy", "https-tls-proxy", "https-socks", "https-h2")


class Sockets:
    """The client's sockets by their state."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[socket.socket]] = []
        self.most = 0

    def connecting(self, sock: socket.socket) -> None:
        self._made.append(weakref.ref(sock))
        self.most = max(self.most, self.open())

    def open(self) -> int:
        """Return the sockets that are neither closed nor collected."""
        sockets = (made() for made in self._made)
        return sum(one is not None and one.fileno() >= 0 for one in sockets)


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sockets]:
    """Record the sockets that connect in this block, with the garbage collector off."""
    seen = Sockets()
    connect = socket.socket.connect

    def watched(sock: socket.socket, address: Any) -> None:
        seen.connecting(sock)
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    with without_collector():
        yield seen


@pytest.fixture
def mute() -> Iterator[int]:
    """Return the port of a server that accepts and sends nothing."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    accepted: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                accepted.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    listener.close()
    for one in accepted:
        one.close()


def target(way: str, port: int, certificates: Certificates) -> tuple[AsyncPoolkitTransport, str]:
    scheme, _, between = way.partition("-")
    context = certificates.client_context()
    proxies = {"proxy": "http", "tls-proxy": "https", "socks": "socks5"}
    options: dict[str, Any] = {"verify": context, "limits": httpx.Limits(max_connections=LIMIT)}
    if between in proxies:
        secured = context if between == "tls-proxy" else None
        options["proxy"] = httpx.Proxy(f"{proxies[between]}://127.0.0.1:{port}", ssl_context=secured)
    return AsyncPoolkitTransport(http2=between == "h2", **options), f"{scheme}://127.0.0.1:{port}/"


@pytest.mark.parametrize("way", WAYS)
def test_cancelled_at_any_moment_under_asyncio(
    certificates: Certificates, mute: int, sockets: Sockets, way: str
) -> None:
    errors: list[BaseException | httpx.Response] = []  # these keep the frames of the connects alive

    async def main() -> None:
        transport, url = target(way, mute, certificates)
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            for ticks in range(24):
                tasks = [asyncio.create_task(client.get(url)) for _ in range(2 * LIMIT)]
                for _ in range(ticks):
                    await asyncio.sleep(0)
                pending = set(tasks)
                # anyio may lose a cancellation at the moment of success (Python 3.10, or anyio before 4.16)
                while pending:
                    for task in pending:
                        task.cancel()
                    _, pending = await asyncio.wait(pending, timeout=0.3)
                errors.extend(await asyncio.gather(*tasks, return_exceptions=True))
            while sockets.open():  # closed in the next iterations of the loop
                await asyncio.sleep(0.001)
            transport.poolkit.check_books()

    asyncio.run(asyncio.wait_for(main(), 25))
    assert sockets.most <= LIMIT
    assert all(isinstance(error, asyncio.CancelledError) for error in errors)


OLD_ANYIO = """
async def connect_tcp(connect, port):
    connected_stream = await connect("127.0.0.1", port)
    raise CancelledError
"""
"""Does what a connect did before anyio 4.16 if it was cancelled at the moment of its success."""


def test_a_stream_that_an_older_anyio_forgets_is_closed(mute: int, sockets: Sockets) -> None:
    """The adapter finds it in the frames of the error, even if the error is referenced."""
    names: dict[str, Any] = {"__name__": "anyio.older", "CancelledError": asyncio.CancelledError}
    exec(OLD_ANYIO, names)

    class Older(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
            await names["connect_tcp"](anyio.connect_tcp, mute)
            raise AssertionError

        connect_unix_socket = connect_tcp

    async def main() -> None:
        backend = AsyncioBackend(Older())
        for connect in (backend.connect_tcp, backend.connect_unix_socket):
            with pytest.raises(asyncio.CancelledError) as caught:
                await connect()
            await asyncio.sleep(0)
            assert sockets.open() == 0, caught

    asyncio.run(main())
    assert sockets.most == 1


@pytest.mark.parametrize("way", WAYS)
def test_cancelled_at_any_moment_under_trio(certificates: Certificates, mute: int, sockets: Sockets, way: str) -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        transport, url = target(way, mute, certificates)

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                try:
                    await client.get(url)
                except trio.Cancelled as error:
                    errors.append(error)
                    raise

        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            for ticks in range(24):
                scopes = [trio.CancelScope() for _ in range(2 * LIMIT)]
                async with trio.open_nursery() as nursery:
                    for scope in scopes:
                        nursery.start_soon(ask, scope)
                    for _ in range(ticks):
                        await trio.lowlevel.checkpoint()
                    for scope in scopes:
                        scope.cancel()
            with trio.fail_after(20):
                while sockets.open():
                    await trio.sleep(0.001)
            transport.poolkit.check_books()

    trio.run(main)
    assert sockets.most <= LIMIT
    assert errors


def test_a_connection_of_the_users_own_is_closed_too(mute: int, sockets: Sockets) -> None:
    """``create_connection()`` may be overridden. Then httpcore's events do not show the stream."""

    class Own(AsyncPoolkitConnectionPool):
        stream: httpcore.AsyncNetworkStream

        def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
            return httpcore.AsyncHTTP11Connection(origin, self.stream)

    errors: list[BaseException] = []

    async def main() -> None:
        async with Own() as pool:
            pool.stream = await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", mute)
            task = asyncio.create_task(pool.request("GET", f"http://127.0.0.1:{mute}/"))
            await asyncio.sleep(0.01)
            assert sockets.open() == 1
            task.cancel()
            errors.extend(await asyncio.gather(task, return_exceptions=True))  # type: ignore[arg-type]
            while sockets.open():
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert isinstance(errors[0], asyncio.CancelledError)
