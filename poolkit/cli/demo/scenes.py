"""What goes wrong with a pool, one scene each: first with the driver's own pool, then with poolkit's.

Each scene says in one line what the callers saw. It runs on the demo's servers, or on a socket that misbehaves.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from poolkit.cli.demo.plan import POOLS
from poolkit.cli.demo.stacks import Sites
from poolkit.errors import describe, said

__all__ = ("SCENES", "Scene", "hang", "play")


@dataclass(frozen=True)
class Scene:
    """A question, and a function that answers it for one kind of pools ("own" or "poolkit")."""

    title: str
    answer: Callable[[str, Sites], str]


def play(sites: Sites, note: Callable[[str], None]) -> list[tuple[Scene, dict[str, str]]]:
    """Play all scenes; the answers by kind of pools."""
    found = []
    for scene in SCENES:
        note(f"scene: {scene.title}")
        found.append((scene, {pools: scene.answer(pools, sites) for pools in POOLS}))
    return found


# -- pools -------------------------------------------------------------------------------------------------------------


def _engine(pools: str, url: Any, size: int, **settings: Any) -> Any:
    from sqlalchemy import QueuePool, create_engine

    from poolkit_adapters.sqlalchemy import PoolkitPool

    kind = QueuePool if pools == "own" else PoolkitPool
    return create_engine(url, poolclass=kind, pool_size=size, max_overflow=settings.pop("max_overflow", 0), **settings)


def _redis_pool(pools: str, sites: Sites, size: int, timeout: float) -> Any:
    from redis import BlockingConnectionPool

    from poolkit_adapters.redis import PoolkitConnectionPool

    kind: Any = BlockingConnectionPool if pools == "own" else PoolkitConnectionPool
    return kind(host=sites.redis_host, port=sites.redis_port, max_connections=size, timeout=timeout)


def _together(work: Callable[[int], object], number: int) -> None:
    """Run ``work(0)`` to ``work(number - 1)`` at once, each in a thread, until all have ended."""
    ready = threading.Barrier(number)

    def begin(index: int) -> None:
        ready.wait(30)
        work(index)

    threads = [threading.Thread(target=begin, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- scenes ------------------------------------------------------------------------------------------------------------


def _starvation(pools: str, sites: Sites) -> str:
    """More callers than connections: how often is each of them served?"""
    pool = _redis_pool(pools, sites, 2, 30)
    served, end = [0] * 16, time.monotonic() + 1.0

    def work(index: int) -> None:
        while time.monotonic() < end:
            connection = pool.get_connection()
            time.sleep(0.002)
            pool.release(connection)
            served[index] += 1

    try:
        _together(work, len(served))
    finally:
        pool.disconnect()
    return f"the least served of 16 callers got {min(served)} turns, the most served {max(served)}"


def _spike(pools: str, sites: Sites) -> str:
    """50 callers at once on 5 open connections, where a connect takes 150 ms."""
    from sqlalchemy import event, text

    engine = _engine(pools, sites.database_url, 5, max_overflow=15)
    opened = [0]

    def connect(*_: Any) -> None:
        opened[0] += 1
        time.sleep(0.15)

    waits: list[float] = []

    def work(_index: int) -> None:
        begun = time.monotonic()
        with engine.connect() as connection:
            waits.append(time.monotonic() - begun)
            connection.execute(text("select pg_sleep(0.002)"))

    try:
        event.listen(engine, "do_connect", connect)
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(engine.connect())
        opened[0] = 0
        _together(work, 50)
    finally:
        engine.dispose()
    return f"connections opened: {opened[0]}, the longest wait was {max(waits) * 1000:.0f} ms"


def hang(pools: str, sites: Sites, patience: float = 2.5) -> str:
    """A server accepts and never answers; the caller has said that it waits for one second."""
    with _black_hole() as port:
        engine = _engine(
            pools, f"postgresql+psycopg://app@127.0.0.1:{port}/shop", 2, pool_timeout=1, connect_args=_NO_LIMIT
        )
        told: list[str] = []
        begun = time.monotonic()

        def ask() -> None:
            try:
                engine.connect()
            except Exception as error:  # noqa: BLE001 - it is the answer
                told.append(f"{type(error).__name__} after {time.monotonic() - begun:.1f} s")

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(patience)
        answer = told[0] if told else f"still waiting after {patience:g} s"
    thread.join(10)  # the hole is closed
    engine.dispose()
    return answer


_NO_LIMIT = {"connect_timeout": 60}


@contextlib.contextmanager
def _black_hole() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):  # the end of the scene
                while True:
                    taken.append(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    for one in taken:
        one.close()


def _wrong_reply(pools: str, sites: Sites) -> str:
    """A server sends one reply too many; the next caller asks for something else."""
    import httpx

    from poolkit_adapters.httpx import PoolkitTransport

    with _chatterbox() as port:
        transport = httpx.HTTPTransport() if pools == "own" else PoolkitTransport()
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
            client.get("/mine")
            try:
                answer = client.get("/yours").text
            except httpx.HTTPError as error:
                return f"the request for /yours failed: {describe(error)}"
    return f"the request for /yours got {answer}"


@contextlib.contextmanager
def _chatterbox() -> Iterator[int]:
    """The port of an HTTP server that answers the first request of a connection twice."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(peer: socket.socket) -> None:
            with peer, contextlib.suppress(OSError):
                first = True
                while request := peer.recv(65536):
                    body = request.split(b" ", 2)[1]
                    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
                    peer.sendall(reply * (2 if first else 1))
                    first = False

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def _leak(pools: str, sites: Sites) -> str:
    """Somebody has not given its connection back; what does the next caller learn?"""
    pool = _redis_pool(pools, sites, 1, 0.2)
    kept: list[Any] = []
    done = threading.Event()

    def forget() -> None:
        kept.append(pool.get_connection())
        done.wait(30)
        pool.release(kept[0])

    holder = threading.Thread(target=forget, name="nightly-report", daemon=True)
    holder.start()
    try:
        while not kept:
            time.sleep(0.01)
        pool.get_connection()
    except Exception as error:  # noqa: BLE001 - it is the answer
        return said(error, 400)
    finally:
        done.set()
        holder.join()
        pool.disconnect()
    return "a second connection of one"


def _overload(pools: str, sites: Sites) -> str:
    """Twice as many callers as can be served within their deadline."""
    import asyncio

    from sqlalchemy import AsyncAdaptedQueuePool, text
    from sqlalchemy.ext.asyncio import create_async_engine

    from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

    kind: Any = AsyncAdaptedQueuePool if pools == "own" else AsyncPoolkitPool
    answered = [0, 0]

    async def request(engine: Any) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select pg_sleep(0.01)"))

    async def client(engine: Any, end: float) -> None:
        while time.monotonic() < end:
            try:
                await asyncio.wait_for(request(engine), 0.12)
                answered[0] += 1
            except asyncio.TimeoutError:
                answered[1] += 1

    async def load() -> None:
        engine = create_async_engine(sites.database_url, poolclass=kind, pool_size=6, max_overflow=0)
        try:
            end = time.monotonic() + 1.5
            await asyncio.gather(*(client(engine, end) for _ in range(90)))
        finally:
            await engine.dispose()

    asyncio.run(load())
    return f"{answered[0]} requests answered in time, {answered[1]} given up"


SCENES = (
    Scene("starvation: 16 callers, 2 connections, for a second", _starvation),
    Scene("a spike: 50 callers, 5 open connections, a connect takes 150 ms", _spike),
    Scene("a hang: the server accepts and never answers, pool_timeout=1", hang),
    Scene("a wrong reply: the server answers /mine twice, the next request asks for /yours", _wrong_reply),
    Scene("a leak: one caller keeps the only connection", _leak),
    Scene("overload: 90 callers with a deadline of 120 ms on 6 connections, queries of 10 ms", _overload),
)
