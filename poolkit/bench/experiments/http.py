"""*http*: GET from a server on loopback with httpx on its own transport, httpx on poolkit's, and aiohttp as the bar."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from poolkit.bench.load import by_tasks, by_threads, record
from poolkit.bench.turns import Run
from poolkit.testing.servers import Certificates, HTTPServer

__all__ = ("run",)

_OWN, _OURS, _BAR = "httpx", "httpx -> poolkit", "aiohttp"
_PATIENCE = 60.0


def run(bench: Run) -> None:
    """HTTP/1.1 by threads and by tasks, the two patterns of load, then HTTP/2."""
    repeat = bench.pick(1, 1, 3)
    bench.say("starting the HTTP server")
    with HTTPServer(fast=True) as server:
        for threads, limit in bench.pick([(2, 2)], [(16, 16)], [(1, 1), (8, 8), (64, 64), (64, 16)]):
            _by_threads(bench, server, threads, limit, repeat, "HTTP/1.1")
        cases = [(1, 1), (10, 10), (100, 100), (100, 10), (500, 500), (500, 50), (1000, 1000), (1000, 100)]
        for tasks, limit in bench.pick([(2, 1)], [(1, 1), (100, 100)], cases):
            _by_tasks(bench, server, tasks, limit, repeat, "HTTP/1.1")
        _fifty_workers(bench, server, bench.pick(2, 5, 20), repeat)
        _burst(bench, server, bench.pick(20, 100, 400), repeat)
    if bench.effort == 1:
        return
    with HTTPServer(tls=Certificates(), http2=True) as server:
        _by_threads(bench, server, bench.pick(2, 8, 8), 8, repeat, "HTTP/2")
        for tasks in bench.pick((2,), (50,), (1, 50)):
            _by_tasks(bench, server, tasks, tasks, repeat, "HTTP/2")


def _by_threads(bench: Run, server: HTTPServer, threads: int, limit: int, repeat: int, protocol: str) -> None:
    seconds = bench.pick(0.05, 0.5, 1.0)
    bench.say(f"{protocol}, {threads} threads on {limit} connections")
    for name in bench.turns((_OWN, _OURS), repeat):
        before = server.stats().accepted
        params: dict[str, Any] = {"protocol": protocol, "world": "threads", "callers": threads, "limit": limit}
        with _client(name, server, limit) as request:
            record(bench, name, by_threads(request, threads, seconds), **params)
        bench.add(name, "connections", "opened", server.stats().accepted - before, **params)


def _by_tasks(bench: Run, server: HTTPServer, tasks: int, limit: int, repeat: int, protocol: str) -> None:
    # httpx answers a few hundred requests a second there: it needs longer until a number stands
    seconds = bench.pick(0.05, 0.5, 0.9) if tasks <= 100 else bench.pick(0.05, 1.0, 1.6)
    bench.say(f"{protocol}, {tasks} tasks on {limit} connections")
    for name in bench.turns((_OWN, _OURS, _BAR) if protocol == "HTTP/1.1" else (_OWN, _OURS), repeat):
        before = server.stats().accepted
        params: dict[str, Any] = {"protocol": protocol, "world": "tasks", "callers": tasks, "limit": limit}

        async def turn(name: str = name, params: dict[str, Any] = params) -> None:
            async with _async_client(name, server, limit) as get:
                found = await by_tasks(lambda: get("/"), tasks, seconds, seconds / 2)
            record(bench, name, found, **params)

        asyncio.run(turn())
        bench.add(name, "connections", "opened", server.stats().accepted - before, **params)


def _fifty_workers(bench: Run, server: HTTPServer, each: int, repeat: int) -> None:
    """As many connections as workers are enough; more are waste."""
    bench.say("50 workers, answers after 0 to 20 ms")
    for name in bench.turns((_OWN, _OURS, _BAR), repeat):
        before = server.stats().accepted

        async def turn(name: str = name) -> float:
            async with _async_client(name, server, 100) as get:
                dice = random.Random(5)

                async def work() -> None:
                    for _ in range(each):
                        await get(f"/sleep?ms={dice.random() * 20:.2f}")

                begun = time.monotonic()
                await asyncio.gather(*(work() for _ in range(50)))
                return time.monotonic() - begun

        elapsed = asyncio.run(turn())
        bench.add(name, "connections", "opened", server.stats().accepted - before, workers=50)
        bench.add(name, "rate", "1/s", 50 * each / elapsed, workers=50)


def _burst(bench: Run, server: HTTPServer, requests: int, repeat: int) -> None:
    """All at once over ten connections that are open, 20 ms each; ideal is that none is ever idle."""
    bench.say(f"a burst of {requests} over 10 connections")
    ideal = requests / 10 * 0.02
    for name in bench.turns((_OWN, _OURS, _BAR), repeat):

        async def turn(name: str = name) -> float:
            async with _async_client(name, server, 10) as get:
                await asyncio.gather(*(get("/sleep?ms=20") for _ in range(10)))
                begun = time.monotonic()
                await asyncio.gather(*(get("/sleep?ms=20") for _ in range(requests)))
                return time.monotonic() - begun

        bench.add(name, "total", "x ideal", asyncio.run(turn()) / ideal, burst=requests)


@contextmanager
def _client(name: str, server: HTTPServer, limit: int) -> Iterator[Callable[[], object]]:
    """A request, synchronous."""
    import httpx

    from poolkit_adapters.httpx import PoolkitTransport

    kind: Any = httpx.HTTPTransport if name == _OWN else PoolkitTransport
    with httpx.Client(transport=kind(**_settings(server, limit)), timeout=_PATIENCE) as client:
        yield lambda: client.get(server.url + "/")


@asynccontextmanager
async def _async_client(name: str, server: HTTPServer, limit: int) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """A request for a path, asynchronous."""
    if name == _BAR:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit), timeout=timeout) as session:

            async def get(path: str) -> None:
                async with session.get(server.url + path) as response:
                    await response.read()

            yield get
        return
    import httpx

    from poolkit_adapters.httpx import AsyncPoolkitTransport

    kind: Any = httpx.AsyncHTTPTransport if name == _OWN else AsyncPoolkitTransport
    async with httpx.AsyncClient(transport=kind(**_settings(server, limit)), timeout=_PATIENCE) as client:
        yield lambda path: client.get(server.url + path)


def _settings(server: HTTPServer, limit: int) -> dict[str, Any]:
    import httpx

    limits = httpx.Limits(max_connections=limit, max_keepalive_connections=limit)
    context = server.client_context
    return {"limits": limits, **({"verify": context, "http2": True} if context else {})}
