"""An event loop in a thread of its own, for servers and clients that sync and async tests use alike."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar, TypeVar

from tests.support.waiting import PATIENCE

__all__ = ("LoopServer", "LoopThread", "running", "stop_listening")

T = TypeVar("T")


class LoopThread:
    """Runs from :meth:`start` to :meth:`stop`. :meth:`run` and :meth:`call` are for other threads."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread and its loop."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the loop, with the connections of clients that left too early."""
        self.run(_abort_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    @property
    def stopped(self) -> bool:
        """Return whether :meth:`stop` was called."""
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def call(self, work: Callable[[], T]) -> T:
        """Call a function there and wait for its result."""

        async def call() -> T:
            return work()

        return self.run(call())


async def stop_listening(server: asyncio.AbstractServer) -> None:
    """Close a server when each connection that it has accepted has its transport.

    A server that is closed in between fails to make the transport, and leaves its socket to the garbage collector.
    """
    loop = asyncio.get_running_loop()
    for sock in getattr(server, "sockets", ()):
        loop.remove_reader(sock.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()


async def _abort_all() -> None:
    """Close the transports of this loop that are still open, which would cause warnings in a later test."""
    for _ in range(3):  # accepted connections get their transports in the next iterations of the loop
        await asyncio.sleep(0.001)
    transports = getattr(asyncio.get_running_loop(), "_transports", {})  # of a selector event loop
    for transport in list(transports.values()):
        try:
            transport.abort()
        except AttributeError:
            pass  # asyncio has closed it when its last data was written, and does not see that here
    await asyncio.sleep(0.001)


class LoopServer:
    """A TCP server on loopback, in a thread of its own. Subclasses serve a connection in :meth:`_talk`.

    ``accepted`` counts the connections, ``open`` those that are served now. Port 0 is replaced at the start.
    """

    ends: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)
    """Errors that may end a connection."""

    def __init__(self, name: str, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.accepted = self.open = 0
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []  # a task that is cancelled before it begins closes nothing
        self._loop = LoopThread(name)

    def __enter__(self: S) -> S:
        self._loop.start()
        self._loop.run(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.run(self._close())
        self._loop.stop()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, self.port, ssl=self._context, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        await stop_listening(self._server)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            await self._talk(reader, writer)
        except self.ends:
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


S = TypeVar("S", bound=LoopServer)


@contextlib.contextmanager
def running() -> Iterator[Callable[[Any], Any]]:
    """Run an event loop in a thread of its own. Yields a function that runs a coroutine in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
