"""*overload*: callers with deadlines, and more of them than the connections can serve. How many are answered in time?

Each caller asks again as soon as it was answered or has given up. A task that gives up in the middle of its lease takes
the connection along, and another one has to be opened; a thread goes on and is late.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from bench.dummies import Connection
from bench.figures import jain
from bench.result import Param
from bench.turns import Run, together
from poolkit import AcquireTimeout, AsyncConnector, AsyncPool, Connector, Pool, deadline
from poolkit.testing.servers import RedisServer

__all__ = ("CLIENTS", "UNFAIR", "WORLDS", "run")

CLIENTS = (12, 24, 36, 60)
WORLDS = ("tasks", "threads", "redis, tasks", "redis, threads")
UNFAIR = {
    "tasks": ("newest first", "asyncio.LifoQueue"),
    "threads": ("queue.LifoQueue",),
    "redis, tasks": ("redis-py BlockingConnectionPool",),
    "redis, threads": ("redis-py BlockingConnectionPool",),
}
"""The pools that do not serve in order of arrival, by world."""

_SIZE = 6
_HOLD = 0.02
_CONNECT = 0.005
_DEADLINE = 0.1
"""Seconds on average; each call has one between half of it and one and a half."""
_PAUSE = 0.01


def run(bench: Run) -> None:
    """On a machine that does nothing else, and with all its cores kept busy by others."""
    seconds, repeat = bench.pick(0.2, 0.7, 5.0), bench.pick(1, 1, 5)
    clients = bench.pick((12,), (60,), CLIENTS)
    # a Redis looks at the timeouts of commands so many times a second, unless it has something else to do
    with RedisServer(settings={"hz": "500"}) as server:
        for busy in bench.pick((0,), (0, 1), (0, 1)):
            with _others(busy * (os.cpu_count() or 1), bench.pick(60.0, 120.0, 1200.0)):
                for world in WORLDS:
                    for number in clients:
                        bench.say(f"{world}, {number} callers{', all cores busy' if busy else ''}")
                        for turn in bench.turns(list(_SUBJECTS[world]), repeat):
                            with turn as name:
                                found = _SUBJECTS[world][name](server, number, seconds)
                                _add(bench, name, found, {"world": world, "callers": number, "busy": busy})


@contextmanager
def _others(processes: int, seconds: float) -> Iterator[None]:
    """Other processes that keep as many cores busy; they end by themselves, too."""
    script = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@dataclass
class _Found:
    """What one turn has brought: answers in time and calls, by client."""

    in_time: list[int]
    calls: list[int]
    seconds: float


def _add(bench: Run, name: str, found: _Found, params: dict[str, Param]) -> None:
    total = sum(found.in_time)
    bench.add(name, "rate", "1/s", total / found.seconds, **params)
    bench.add(name, "answered", "share of calls", total / max(1, sum(found.calls)), **params)
    bench.add(name, "jain", "", jain(found.in_time), **params)


# -- tasks --------------------------------------------------------------------------------------------------------


async def _by_tasks(call: Callable[[], Awaitable[object]], clients: int, seconds: float) -> _Found:
    found = _Found([0] * clients, [0] * clients, seconds)
    begin = time.monotonic() + seconds / 5
    end = begin + seconds

    async def client(index: int) -> None:
        chance = random.Random(index)
        while (now := time.monotonic()) < end:
            found.calls[index] += now >= begin
            try:
                await asyncio.wait_for(call(), _DEADLINE * chance.uniform(0.5, 1.5))
                found.in_time[index] += now >= begin
            except asyncio.TimeoutError:
                pass
            await asyncio.sleep(_PAUSE)

    await asyncio.gather(*(client(index) for index in range(clients)))
    return found


class _AsyncServer(AsyncConnector[Connection]):
    async def connect(self, timeout: float | None) -> Connection:
        await asyncio.sleep(_CONNECT)
        return Connection()


def _engine_by_tasks(server: RedisServer, clients: int, seconds: float, **settings: Any) -> _Found:
    async def main() -> _Found:
        pool = AsyncPool(_AsyncServer(), max_size=_SIZE, **settings)

        async def call() -> None:
            async with pool.lease():
                await asyncio.sleep(_HOLD)

        try:
            return await _by_tasks(call, clients, seconds)
        finally:
            await pool.close()

    return asyncio.run(main())


def _queue_by_tasks(server: RedisServer, clients: int, seconds: float) -> _Found:
    """A queue of connections; a caller that gives up leaves None, and the next one opens another."""

    async def main() -> _Found:
        slots: asyncio.LifoQueue[Connection | None] = asyncio.LifoQueue()
        for _ in range(_SIZE):
            slots.put_nowait(None)

        async def call() -> None:
            connection = await slots.get()
            kept = None
            try:
                if connection is None:
                    await asyncio.sleep(_CONNECT)
                await asyncio.sleep(_HOLD)
                kept = connection or Connection()
            finally:
                slots.put_nowait(kept)

        return await _by_tasks(call, clients, seconds)

    return asyncio.run(main())


def _newest_by_tasks(server: RedisServer, clients: int, seconds: float) -> _Found:
    """The most unfair pool: the newest caller is next."""

    async def main() -> _Found:
        idle: list[Connection | None] = [None] * _SIZE
        waiting: list[asyncio.Future[Connection | None]] = []

        def put(connection: Connection | None) -> None:
            while waiting:
                future = waiting.pop()
                if not future.done():
                    future.set_result(connection)
                    return
            idle.append(connection)

        async def get() -> Connection | None:
            if idle:
                return idle.pop()
            future: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            waiting.append(future)
            try:
                return await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    put(future.result())
                raise

        async def call() -> None:
            connection = await get()
            kept = None
            try:
                if connection is None:
                    await asyncio.sleep(_CONNECT)
                await asyncio.sleep(_HOLD)
                kept = connection or Connection()
            finally:
                put(kept)

        return await _by_tasks(call, clients, seconds)

    return asyncio.run(main())


def _redis_by_tasks(kind: str) -> Callable[[RedisServer, int, float], _Found]:
    def measure(server: RedisServer, clients: int, seconds: float) -> _Found:
        import redis.asyncio

        from poolkit_adapters.redis import AsyncPoolkitConnectionPool

        own = redis.asyncio.BlockingConnectionPool
        pool_class: Any = own if kind == "own" else AsyncPoolkitConnectionPool

        async def main() -> _Found:
            settings = {"overload": None} if kind == "in order" else {}
            pool = pool_class.from_url(server.url, max_connections=_SIZE, timeout=10, **settings)
            client = redis.asyncio.Redis(connection_pool=pool)
            try:
                return await _by_tasks(lambda: client.blpop(["nothing"], timeout=_HOLD), clients, seconds)
            finally:
                await pool.disconnect()

        return asyncio.run(main())

    return measure


# -- threads ------------------------------------------------------------------------------------------------------


def _by_threads(call: Callable[[float], bool], clients: int, seconds: float) -> _Found:
    """``call(seconds)``: False if no connection came within that time."""
    found = _Found([0] * clients, [0] * clients, seconds)
    begin = time.monotonic() + seconds / 5
    end = begin + seconds

    def client(index: int) -> None:
        chance = random.Random(index)
        while (now := time.monotonic()) < end:
            counted = now >= begin
            found.calls[index] += counted
            patience = _DEADLINE * chance.uniform(0.5, 1.5)
            if call(patience):
                found.in_time[index] += counted and time.monotonic() - now <= patience
            time.sleep(_PAUSE)

    together(client, clients)
    return found


class _Server(Connector[Connection]):
    def connect(self, timeout: float | None) -> Connection:
        time.sleep(_CONNECT)
        return Connection()


def _engine_by_threads(server: RedisServer, clients: int, seconds: float, **settings: Any) -> _Found:
    with Pool(_Server(), max_size=_SIZE, **settings) as pool:

        def call(patience: float) -> bool:
            try:
                lease = pool.lease(patience)
            except AcquireTimeout:
                return False
            with lease:
                time.sleep(_HOLD)
            return True

        return _by_threads(call, clients, seconds)


def _queue_by_threads(server: RedisServer, clients: int, seconds: float) -> _Found:
    slots: queue.LifoQueue[Connection] = queue.LifoQueue()
    for _ in range(_SIZE):
        slots.put(Connection())

    def call(patience: float) -> bool:
        try:
            connection = slots.get(timeout=patience)
        except queue.Empty:
            return False
        time.sleep(_HOLD)
        slots.put(connection)
        return True

    return _by_threads(call, clients, seconds)


def _redis_by_threads(kind: str) -> Callable[[RedisServer, int, float], _Found]:
    """A client of redis-py has one deadline for all its calls: the mean of those of the others. poolkit can be told."""

    def measure(server: RedisServer, clients: int, seconds: float) -> _Found:
        import redis

        from poolkit_adapters.redis import PoolkitConnectionPool

        pool_class: Any = redis.BlockingConnectionPool if kind == "own" else PoolkitConnectionPool
        settings = {"overload": None} if kind == "in order" else {}
        pool = pool_class.from_url(server.url, max_connections=_SIZE, timeout=_DEADLINE, **settings)
        client = redis.Redis(connection_pool=pool)

        def call(patience: float) -> bool:
            try:
                with nullcontext() if kind == "own" else deadline(patience):
                    client.blpop(["nothing"], timeout=_HOLD)
            except redis.ConnectionError:
                return False
            return True

        try:
            return _by_threads(call, clients, seconds)
        finally:
            pool.disconnect()

    return measure


_Subject = Callable[[RedisServer, int, float], _Found]
_SUBJECTS: dict[str, dict[str, _Subject]] = {
    "tasks": {
        "poolkit": _engine_by_tasks,
        "poolkit, always in order": lambda *given: _engine_by_tasks(*given, overload=None),
        "newest first": _newest_by_tasks,
        "asyncio.LifoQueue": _queue_by_tasks,
    },
    "threads": {
        "poolkit": _engine_by_threads,
        "poolkit, always in order": lambda *given: _engine_by_threads(*given, overload=None),
        "queue.LifoQueue": _queue_by_threads,
    },
    "redis, tasks": {
        "poolkit": _redis_by_tasks("poolkit"),
        "poolkit, always in order": _redis_by_tasks("in order"),
        "redis-py BlockingConnectionPool": _redis_by_tasks("own"),
    },
    "redis, threads": {
        "poolkit": _redis_by_threads("poolkit"),
        "poolkit, always in order": _redis_by_threads("in order"),
        "redis-py BlockingConnectionPool": _redis_by_threads("own"),
    },
}
