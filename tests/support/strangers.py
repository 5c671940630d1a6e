"""An HTTP/1.1 server that misbehaves on demand, and conversations in which each answer must carry its request's number.

``POST /HOW/NUMBER`` is answered by ``NUMBER``; what else the server does on that connection is ``HOW``. The late ones
happen when :meth:`Misbehaving.go` is called for the number, so that a client knows when to expect them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import shutil
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from poolkit.testing.servers import Certificates
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport

__all__ = ("HOW", "LATE", "RUNNERS", "SPOILT", "WAYS", "Misbehaving", "StrangersReply", "Talk", "conversation", "run")

LATE = ("late", "late-408", "late-body", "half-head", "one-byte", "fin", "rst", "fin-notify", "half-record")
"""After the answer was read: a second answer, 408 and the end, a body that no answer announced, parts of an answer,
the end of the stream, a reset, TLS's own end without the stream's, half a TLS record."""
SPOILT = ("twice", "head", "204", "304", *LATE)
"""With the answer, in one packet: a second answer, a body after the answer to HEAD, after 204 and after 304."""
HOW = ("well", "tls-record", *SPOILT)
"""Those that do no harm: nothing, and a record of TLS that carries no data (the server asks for a certificate)."""
TLS_ONLY = ("fin-notify", "half-record", "tls-record")

WAYS = (
    "http", "https", "http-unix", "https-unix", "http-proxy", "https-proxy", "http-socks", "https-socks",
    "https-tls-proxy",
)  # fmt: skip
"""The scheme, and what is between: a proxy (forwards http, tunnels https), SOCKS, a proxy that speaks TLS itself."""

_STRANGER = b"HTTP/1.1 200 OK\r\nX-Number: stranger\r\nContent-Length: 8\r\n\r\nstranger"
_numbers = itertools.count()


class _Plain:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.secure: ssl.SSLObject | None = None

    def recv(self) -> bytes:
        return self.sock.recv(65536)

    def sendall(self, data: bytes) -> None:
        self.sock.sendall(data)


class _Secure:
    """TLS over any channel, TLS included."""

    def __init__(self, below: _Plain | _Secure, context: ssl.SSLContext) -> None:
        self.below = below
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.secure = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.step(self.secure.do_handshake)

    def step(self, work: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                result = work(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                data = self.below.recv()
                self.incoming.write(data) if data else self.incoming.write_eof()
            else:
                self.flush()
                return result

    def flush(self) -> None:
        if data := self.outgoing.read():
            self.below.sendall(data)

    def recv(self) -> bytes:
        return self.step(self.secure.read, 65536)  # type: ignore[no-any-return]

    def sendall(self, data: bytes) -> None:
        self.step(self.secure.write, data)

    def record(self, data: bytes) -> bytes:
        """What would be sent for ``data``."""
        self.secure.write(data)
        return self.outgoing.read()

    def notify(self) -> None:
        """Say that nothing will follow, and leave the stream open."""
        with contextlib.suppress(ssl.SSLError):
            self.secure.unwrap()
        self.flush()

    def ask(self) -> None:
        """Send a record without data in it."""
        self.secure.verify_client_post_handshake()
        self.secure.do_handshake()
        self.flush()


class Misbehaving:
    """The server; also the proxy before it, if ``way`` has one, so that nothing is delayed on its way."""

    def __init__(self, certificates: Certificates, way: str, version: str = "1.1") -> None:
        self.way = way
        self.version = version
        self.secure = way.startswith("https")
        self._tls = certificates.server_context()
        certificates.authority.configure_trust(self._tls)
        self._tls.verify_mode, self._tls.post_handshake_auth = ssl.CERT_OPTIONAL, True
        self.client_tls = certificates.client_context()
        self.client_tls.post_handshake_auth = True
        self._told: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self.accepted = 0

    def __enter__(self) -> Misbehaving:
        if self.way.endswith("unix"):
            self._path = str(Path(tempfile.mkdtemp()) / "http")  # the path of a socket must be short
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self._path)
            self._listener.listen(100)
        else:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for told in list(self._told.values()):
            told.set()
        for thread in self._threads:
            thread.join(10)
        if self.way.endswith("unix"):
            shutil.rmtree(Path(self._path).parent)

    @property
    def address(self) -> str:
        if self.way.endswith(("unix", "proxy", "socks")):
            return "127.0.0.1"  # nobody resolves it
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def url(self, how: str, number: str) -> str:
        return f"{self.way.partition('-')[0]}://{self.address}/{how}/{number}"

    def options(self) -> dict[str, Any]:
        """What a transport needs to get here."""
        options: dict[str, Any] = {"verify": self.client_tls}
        if self.way.endswith("unix"):
            options["uds"] = self._path
        elif "-" in self.way:
            port = self._listener.getsockname()[1]
            scheme = {"proxy": "http", "socks": "socks5", "tls-proxy": "https"}[self.way.partition("-")[2]]
            secured = self.client_tls if scheme == "https" else None
            options["proxy"] = httpx.Proxy(f"{scheme}://127.0.0.1:{port}", ssl_context=secured)
        return options

    def go(self, number: str) -> None:
        """The answer to ``number`` has been read."""
        self._event(number).set()

    def _event(self, number: str) -> threading.Event:
        return self._told.setdefault(number, threading.Event())

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.add(sock)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(threading.Thread(target=self._serve, args=(sock, self.accepted), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket, connection: int) -> None:
        with sock, contextlib.suppress(OSError, EOFError):
            channel: _Plain | _Secure = _Plain(sock)
            if self.way.endswith("tls-proxy"):
                channel = _Secure(channel, self._tls)
            if self.way.endswith("socks"):
                channel.recv()
                channel.sendall(b"\x05\x00")
                channel.recv()
                channel.sendall(b"\x05\x00\x00\x01" + bytes(6))
            elif self.way.endswith("proxy") and self.secure:
                _request(channel)
                channel.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if self.secure:
                channel = _Secure(channel, self._tls)
            while True:
                method, target = _request(channel)
                _, how, number = urlsplit(target).path.split("/")
                if not self._answer(sock, channel, method, how, number, connection):
                    break
        self._open.discard(sock)

    def _head(self, status: str, length: int, number: str, connection: int) -> bytes:
        kept = "Connection: keep-alive\r\n" if self.version == "1.0" else ""
        return (
            f"HTTP/{self.version} {status}\r\nX-Number: {number}\r\nX-Connection: {connection}\r\n"
            f"{kept}Content-Length: {length}\r\n\r\n"
        ).encode()

    def _answer(
        self, sock: socket.socket, channel: _Plain | _Secure, method: str, how: str, number: str, connection: int
    ) -> bool:
        """Whether the connection goes on."""
        body = b"" if method == "HEAD" else number.encode()
        good = self._head("200 OK", len(number), number, connection) + body
        if how in ("204", "304"):
            channel.sendall(self._head(f"{how} X", len(_STRANGER), number, connection) + _STRANGER)
            return True
        channel.sendall(good + (_STRANGER if how in ("twice", "head") else b""))
        if how not in LATE and how != "tls-record":
            return True
        told = self._event(number)
        told.wait(10)
        del self._told[number]
        return self._late(sock, channel, how)

    def _late(self, sock: socket.socket, channel: _Plain | _Secure, how: str) -> bool:
        if how == "rst":
            if sock.family == socket.AF_UNIX:
                return False
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if how == "fin":
            sock.shutdown(socket.SHUT_WR)
        elif how == "late-408":
            channel.sendall(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return False
        elif isinstance(channel, _Secure) and how == "fin-notify":
            channel.notify()
        elif isinstance(channel, _Secure) and how == "half-record":
            channel.below.sendall(channel.record(_STRANGER)[:30])
        elif isinstance(channel, _Secure) and how == "tls-record":
            channel.ask()
        else:
            stray = {"late": _STRANGER, "late-body": b"body", "half-head": _STRANGER[:30], "one-byte": b"H"}[how]
            channel.sendall(stray)
        return True


def _request(channel: _Plain | _Secure) -> tuple[str, str]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = channel.recv()
        if not part:
            raise EOFError
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            left = int(line.partition(b":")[2]) - len(body)
            while left > 0:
                left -= len(channel.recv()) or 10**9
    method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
    return method, target


class StrangersReply(AssertionError):
    """A request got the answer to another one."""


class Talk:
    """A client of some kind: ``send`` a request, and let the event loop have a ``turn``."""

    def __init__(
        self, send: Callable[[str, str], Awaitable[httpx.Response]], turn: Callable[[], Awaitable[None]]
    ) -> None:
        self.send = send
        self.turn = turn


def number() -> str:
    """A new one."""
    return str(next(_numbers))


async def conversation(talk: Talk, server: Misbehaving, how: str, turns: int = 0, more: int = 2) -> list[str]:
    """A request that is answered in the way ``how``, then ``more``; the answers' connections, in order.

    Raises StrangersReply for an answer that is another request's. ``turns`` of the event loop are between, after the
    bytes have arrived: none, and it has not read them.
    """
    connections = []
    first = number()
    response = await talk.send("HEAD" if how == "head" else "POST", server.url(how, first))
    connections.append(_checked(response, first, {"204": 204, "304": 304}.get(how, 200)))
    server.go(first)
    if how in LATE or how == "tls-record":
        _arrived(response)
    for _ in range(turns):
        await talk.turn()
    for _ in range(more):
        one = number()
        response = await talk.send("POST", server.url("well", one))
        connections.append(_checked(response, one, 200))
    return connections


def _checked(response: httpx.Response, number: str, status: int) -> str:
    found = (response.headers.get("x-number"), response.status_code, response.text or number)
    if found != (number, status, number):
        raise StrangersReply(f"asked {number}, got {found}")
    return str(response.headers["x-connection"])


def _arrived(response: httpx.Response) -> None:
    """Wait until something is to be read from the connection; the event loop, if there is one, stands meanwhile."""
    descriptor = response.extensions["network_stream"].get_extra_info("socket").fileno()
    if descriptor >= 0:  # not closed already
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(10_000), "the server has not said anything"


def _threads(
    main: Callable[[Talk], Coroutine[Any, Any, Any]], transport: httpx.BaseTransport, timeout: Any = 10
) -> Any:
    async def send(method: str, url: str) -> httpx.Response:
        return client.request(method, url)

    async def turn() -> None:
        pass

    with httpx.Client(transport=transport, timeout=timeout) as client:
        coroutine = main(Talk(send, turn))
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
    raise AssertionError("a client for threads waits in its calls")


def _tasks(
    start: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any], turn: Callable[[], Awaitable[None]]
) -> Callable[..., Any]:
    def run(
        main: Callable[[Talk], Coroutine[Any, Any, Any]], transport: httpx.AsyncBaseTransport, timeout: Any = 10
    ) -> Any:
        async def whole() -> Any:
            async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
                return await main(Talk(client.request, turn))

        return start(whole)

    return run


async def _asyncio_turn() -> None:
    await asyncio.sleep(0)


async def _trio_turn() -> None:
    import trio

    await trio.lowlevel.checkpoint()


def _uvloop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _trio(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    import trio

    return trio.run(main)


RUNNERS: dict[str, Callable[..., Any]] = {
    "threads": _threads,
    "asyncio": _tasks(lambda main: asyncio.run(main()), _asyncio_turn),
    "uvloop": _tasks(_uvloop, _asyncio_turn),
    "trio": _tasks(_trio, _trio_turn),
}


def run(runner: str, server: Misbehaving, main: Callable[[Talk], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """Run ``main`` with a client of poolkit's that can reach the server."""
    kind = PoolkitTransport if runner == "threads" else AsyncPoolkitTransport
    return RUNNERS[runner](main, kind(**{**server.options(), **settings}))
