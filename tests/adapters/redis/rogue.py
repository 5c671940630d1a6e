"""A server that speaks Redis's protocol and misbehaves on command: plain, under TLS or on a unix socket.

It runs an event loop in a thread of its own, so sync and async tests use it alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import struct
from pathlib import Path

from tests.support.loops import LoopThread, stop_listening

__all__ = ("STOLEN", "RogueRedis", "bulk", "readable")

STOLEN = b"a reply to another caller"


def bulk(text: bytes) -> bytes:
    """Return ``text`` as the server sends it."""
    return b"$%d\r\n%s\r\n" % (len(text), text)


def readable(fd: int, seconds: float = 5.0) -> None:
    """Wait until the kernel has something to be read for this descriptor: data, FIN or RST."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(seconds * 1000), "nothing has arrived"


class RogueRedis:
    """A server that knows HELLO, AUTH, CLIENT, SELECT, PING and ECHO. ``path``: listen there and not at a port.

    Attributes to set at any time: ``after_echo`` (bytes that follow the reply to the next ECHO in the same packet),
    ``mute`` (names of commands that are never answered), ``silent`` (new connections are accepted and never answered,
    not even the start of TLS), ``most`` (most sessions that were open at once).
    """

    host = "127.0.0.1"

    def __init__(self, tls: ssl.SSLContext | None = None, path: Path | None = None) -> None:
        self.port = 0
        self.path = path
        self.after_echo = b""
        self.mute: set[str] = set()
        self.heard: list[str] = []
        self.silent = False
        self.most = 0
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None
        self._loop = LoopThread("rogue-redis")

    # For tests.

    def __enter__(self) -> RogueRedis:
        self._ending = False
        self._loop.start()
        self._loop.run(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.run(self._close())
        self._loop.stop()

    @property
    def sessions(self) -> int:
        """The number of connections that are open now, according to the kernel."""
        return self._loop.call(lambda: len(self._alive()))

    @property
    def sockets(self) -> int:
        """The number of connections of which this server has a socket, including those that the client has closed."""
        return self._loop.call(lambda: len(self._tasks))

    def send(self, data: bytes) -> None:
        """Send unrequested data to all connections."""

        async def send() -> None:
            for writer in self._open:
                writer.write(data)
                await writer.drain()

        self._loop.run(send())

    def fin(self) -> None:
        """Close all connections in an orderly way. Under TLS they are closed when the client has answered."""
        self._loop.call(self._close_all)

    def reset(self) -> None:
        """Reset all connections (RST)."""

        def end(writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                # lingering for zero seconds: close() sends RST instead of FIN
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        async def end_all() -> None:
            for writer in list(self._open):
                end(writer)
            while self._open:
                await asyncio.sleep(0.001)

        self._loop.run(end_all())

    # Implementation.

    def _close_all(self) -> None:
        for writer in self._open:
            writer.close()

    async def _listen(self) -> None:
        if self.path is not None:
            self._server = await asyncio.start_unix_server(self._accept, str(self.path), ssl=self._tls)
        else:
            self._server = await asyncio.start_server(self._accept, self.host, 0, ssl=self._tls, backlog=128)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        await stop_listening(self._server)
        self._ending = True
        await asyncio.sleep(0.01)  # accepted connections get their writers in the next iterations of the loop
        for writer in list(self._open):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports close their sockets in the next iterations of the loop

    def _alive(self) -> list[asyncio.StreamWriter]:
        """Return those that the peer has not closed. The kernel knows it before this loop does."""
        poll = select.poll()
        writers = {writer.get_extra_info("socket").fileno(): writer for writer in self._open}
        writers.pop(-1, None)
        for fd in writers:
            poll.register(fd, select.POLLRDHUP)
        ended = {fd for fd, _ in poll.poll(0)}
        return [writer for fd, writer in writers.items() if fd not in ended]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ending:  # on a busy machine it gets its writer only now
            writer.transport.abort()
            return
        self._open.add(writer)
        self.most = max(self.most, len(self._alive()))
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while self.silent and await reader.read(65536):
                pass
            while not self.silent:
                count = int((await reader.readuntil(b"\r\n"))[1:])
                words = []
                for _ in range(count):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                reply = self._reply(words)
                if reply:
                    writer.write(reply)
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
            self._open.discard(writer)

    def _reply(self, words: list[bytes]) -> bytes:
        name = words[0].decode().upper()
        self.heard.append(name)
        if name in self.mute:
            return b""
        if name == "HELLO":
            return b"%1\r\n" + bulk(b"proto") + b":3\r\n"
        if name == "PING":
            return b"+PONG\r\n"
        if name == "ECHO":
            more, self.after_echo = self.after_echo, b""
            return bulk(words[1]) + more
        if name == "CLIENT" and words[1].upper() == b"MAINT_NOTIFICATIONS":
            return b"-ERR unknown subcommand\r\n"
        return b"+OK\r\n"
