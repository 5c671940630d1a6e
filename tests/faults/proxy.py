"""A TCP proxy on loopback with faults on command: those of a network, a firewall or a dying server.

It runs an event loop in a thread of its own, so sync and async tests use it alike. Every property may be
changed while connections are open; the change holds for the next bytes of old connections too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from functools import partial
from typing import Literal

from poolkit.testing.servers import free_port
from tests.support.loops import LoopThread, stop_listening

__all__ = ("FaultProxy", "Mode")

Mode = Literal["pass", "silent", "hold", "mute", "refuse"]
"""pass: relay.  silent: accept and take bytes, pass nothing on in either direction (half-open peer, dropped
by a firewall; a new connection is accepted and never answered).  hold: as silent, but what was taken is passed on
when the mode changes, as by a peer that wakes up after minutes.  mute: requests reach the server, answers do
not reach the client.  refuse: nobody listens on the port; open connections go on."""


class _Link:
    """One client connection and, once opened, its connection to the target."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.target: asyncio.StreamWriter | None = None
        peer = client.get_extra_info("peername")  # None: the client had left before it was accepted
        self.port: int = 0 if peer is None else peer[1]
        self.gone: Literal["", "silent", "reset"] = ""  # how a peer that has left treats packets

    def end(self, *, reset: bool) -> None:
        for writer in (self.client, self.target):
            if writer is None:
                continue
            if reset:
                with contextlib.suppress(OSError):
                    # Lingering for zero seconds: close() sends RST instead of FIN.
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


class FaultProxy:
    """Listens on ``host:port`` and relays to ``target``.

    Attributes to set at any time: ``latency`` (seconds added to each direction), ``bandwidth`` (bytes per
    second in each direction, None is unlimited), ``reply_limit`` (bytes of answers that still pass on each
    connection from now on, then it is mute; None is unlimited), ``trickle`` (seconds before each single byte of an
    answer; None: whole pieces; ``trickled`` counts them), ``swallow`` (new connections are accepted and never
    answered, as when a firewall drops cancel requests; open ones go on; ``swallowed`` counts them), ``mode``,
    ``target``.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.port = 0
        self.latency = 0.0
        self.bandwidth: float | None = None
        self.trickle: float | None = None
        self.trickled = 0
        self.swallow = False
        self.swallowed = 0
        self.accepted = 0
        self.max_open = 0
        self._mode: Mode = "pass"
        self._reply_limit: int | None = None
        self._replied: dict[_Link, int] = {}
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None
        self._loop = LoopThread("fault-proxy")

    # For tests.

    def start(self) -> FaultProxy:
        """Listen. From then on ``port`` is known and does not change."""
        self.port = free_port()
        self._loop.start()
        self._loop.run(self._listen())
        return self

    def stop(self) -> None:
        """Close all connections and end the thread."""
        if self._loop.stopped:
            return
        self._loop.run(self._close())
        self._loop.stop()

    @property
    def open(self) -> int:
        """Client connections open now."""
        return len(self._links)

    @property
    def ports(self) -> list[int]:
        """Local ports of the clients connected now."""
        return sorted(link.port for link in self._links)

    @property
    def mode(self) -> Mode:
        """What happens to bytes and new connections, see :data:`Mode`."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        if mode == "refuse" and before != "refuse":
            self._loop.run(self._unlisten())
        elif before == "refuse" and mode != "refuse":
            self._loop.run(self._listen())

    @property
    def reply_limit(self) -> int | None:
        """Bytes of answers that still pass on each connection, counted from when it was set."""
        return self._reply_limit

    @reply_limit.setter
    def reply_limit(self, limit: int | None) -> None:
        def change() -> None:
            self._replied.clear()
            self._reply_limit = limit

        self._loop.call(change)

    def cut(self) -> int:
        """Close all connections in an orderly way (FIN) and return how many. New ones are accepted."""
        return self._end_all(reset=False)

    def reset(self) -> int:
        """Reset all connections (RST) and return how many. New ones are accepted."""
        return self._end_all(reset=True)

    def freeze(self) -> int:
        """Relay no further data on the connections open now, but do not close them. Return how many. New ones work."""
        return self._end_all(gone="silent")

    def thaw(self) -> int:
        """Reset (RST) the connections that :meth:`freeze` has left, and return how many."""

        def end() -> int:
            frozen = [link for link in self._links if link.gone == "silent"]
            for link in frozen:
                link.end(reset=True)
            return len(frozen)

        return self._loop.call(end)

    def forget(self) -> int:
        """Answer the client's next packet on each connection open now with RST. Return how many. New ones work."""
        return self._end_all(gone="reset")

    # Implementation.

    def _end_all(self, *, reset: bool = False, gone: Literal["", "silent", "reset"] = "") -> int:
        async def end() -> int:
            links = list(self._links)
            for link in links:
                link.gone = gone
                if not gone:
                    link.end(reset=reset)
            # close() acts in the next iteration of the loop; the caller may examine its socket right after this call
            await asyncio.sleep(0.005)
            return len(links)

        return self._loop.run(end())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port, backlog=512)

    async def _unlisten(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await stop_listening(server)

    async def _close(self) -> None:
        await self._unlisten()
        for link in list(self._links):
            link.end(reset=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        self.accepted += 1
        self.max_open = max(self.max_open, len(self._links))
        task = asyncio.create_task(self._serve(link, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, link))

    def _served(self, link: _Link, task: asyncio.Task[None]) -> None:
        """End the connection, also if the task was cancelled before it began."""
        self._tasks.discard(task)
        self._links.discard(link)
        link.end(reset=False)

    async def _serve(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ways: list[asyncio.Task[None]] = []
        try:
            if self.swallow:
                self.swallowed += 1
                while await reader.read(65536):
                    pass
                return
            while self._mode == "silent":
                await asyncio.sleep(0.01)
            target_reader, link.target = await asyncio.open_connection(*self.target)
            ways = [
                asyncio.create_task(self._copy(link, reader, link.target, replies=False)),
                asyncio.create_task(self._copy(link, target_reader, writer, replies=True)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the target is down: close the client's connection
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            link.end(reset=False)
            self._links.discard(link)
            self._replied.pop(link, None)

    async def _copy(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        while data := await reader.read(65536):
            if link.gone:
                if link.gone == "reset" and not replies:
                    link.end(reset=True)
                continue
            while self._mode == "hold":
                await asyncio.sleep(0.01)
            if self._mode == "silent" or (self._mode == "mute" and replies):
                continue
            if replies and self._reply_limit is not None:
                before = self._replied.get(link, 0)
                self._replied[link] = before + len(data)
                data = data[: max(0, self._reply_limit - before)]
            if self.latency:
                await asyncio.sleep(self.latency)
            for start in range(0, len(data), 1024 if self.bandwidth else 65536):
                piece = data[start : start + (1024 if self.bandwidth else 65536)]
                if self.bandwidth:
                    await asyncio.sleep(len(piece) / self.bandwidth)
                while replies and self.trickle is not None and piece:
                    await asyncio.sleep(self.trickle)
                    self.trickled += 1
                    writer.write(piece[:1])
                    await writer.drain()
                    piece = piece[1:]
                writer.write(piece)
                await writer.drain()
