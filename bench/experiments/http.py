"""*http*: GET from a server on loopback with httpx on its own transport, httpx on poolkit's, and aiohttp as the bar;
urllib3 and requests on their own pools and on poolkit's.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from typing import Any

from bench.http_clients import (
    ALONE,
    BAR,
    OURS,
    OURS_2,
    OWN,
    OWN_2,
    PEERS,
    REQUESTS,
    URLLIB3,
    Turn,
    async_client,
    blocking_client,
    client,
    load_apart,
)
from bench.load import by_threads, record
from bench.turns import Effort, Run
from poolkit.testing.servers import Certificates, HTTPServer

__all__ = ("SECOND", "STEADY", "TRANSPORTS", "run")

STEADY = (10, 100, 500, 1000)
"""Tasks, each with a connection, whose rates are compared with each other."""


TRANSPORTS = [(tasks, size) for size in (100, 100_000) for tasks in (1, 20, 100, 1000)]
"""Tasks, each with a connection, and bytes of the body, for httpx on the transports of others and on poolkit's."""

SECOND = (1, 50, 300)
"""Tasks with httpx2, its own pool and ours, both with its default limits."""


def run(bench: Run) -> None:
    """HTTP/1.1 by threads and by tasks, the two patterns of load, then HTTP/2."""
    repeat = bench.pick(1, 1, 3)
    bench.say("starting the HTTP server")
    with HTTPServer(fast=True) as server:
        for threads, limit in bench.pick([(2, 2)], [(16, 16)], [(1, 1), (8, 8), (64, 64), (64, 16)]):
            _by_threads(bench, server, threads, limit, bench.pick(1, 1, 7), "HTTP/1.1")
            if importlib.util.find_spec("requests"):
                _blocking(bench, server, threads, limit, bench.pick(1, 1, 7))
        cases = [(1, 1), (10, 10), (100, 100), (100, 10), (500, 500), (500, 50), (1000, 1000), (1000, 100)]
        for tasks, limit in bench.pick([(2, 1)], [(1, 1), (100, 100)], cases):
            _by_tasks(bench, server, tasks, limit, repeat, "HTTP/1.1")
        if bench.effort != Effort.QUICK:
            _steadiness(bench, server, bench.pick((2,), STEADY, STEADY), bench.pick(1, 1, 5))
        if importlib.util.find_spec("httpx2"):  # needs Python 3.11
            _second_library(bench, server, bench.pick((2,), SECOND, SECOND), bench.pick(1, 1, 7))
        _transports(bench, server, bench.pick(1, 1, 5))
        _fifty_workers(bench, server, bench.pick(2, 3, 20), repeat)
        _burst(bench, server, bench.pick(20, 100, 400), bench.pick(1, 1, 7))
    if bench.effort == Effort.QUICK:
        return
    with HTTPServer(tls=Certificates(), fast=True) as server:
        _transports(bench, server, bench.pick(1, 1, 5))
    with HTTPServer(tls=Certificates(), http2=True) as server:
        _by_threads(bench, server, bench.pick(2, 8, 8), 8, repeat, "HTTP/2")
        for tasks in bench.pick((2,), (50,), (1, 50)):
            _by_tasks(bench, server, tasks, tasks, repeat, "HTTP/2")


def _blocking(bench: Run, server: HTTPServer, threads: int, limit: int, repeat: int) -> None:
    """urllib3 and requests, with pools that block."""
    seconds = bench.pick(0.05, 0.5, 0.5)
    params: dict[str, Any] = {"protocol": "HTTP/1.1", "world": "threads", "callers": threads, "limit": limit}
    for pair in (URLLIB3, REQUESTS):
        bench.say(f"{pair[0]}, {threads} threads on {limit} connections")
        for turn in bench.turns(pair, repeat):
            with turn as name, blocking_client(_turn(name, server, limit)) as request:
                record(bench, name, by_threads(request, threads, seconds), **params)


def _by_threads(bench: Run, server: HTTPServer, threads: int, limit: int, repeat: int, protocol: str) -> None:
    seconds = bench.pick(0.05, 0.5, 0.5)
    bench.say(f"{protocol}, {threads} threads on {limit} connections")
    for turn in bench.turns((OWN, OURS), repeat):
        with turn as name:
            before = server.stats().accepted
            params: dict[str, Any] = {"protocol": protocol, "world": "threads", "callers": threads, "limit": limit}
            with client(_turn(name, server, limit)) as request:
                record(bench, name, by_threads(request, threads, seconds), **params)
            bench.add(name, "connections", "opened", server.stats().accepted - before, **params)


def _by_tasks(bench: Run, server: HTTPServer, tasks: int, limit: int, repeat: int, protocol: str) -> None:
    # httpx answers a few hundred requests a second there: it needs longer until a number stands
    seconds = bench.pick(0.05, 0.3, 0.9) if tasks <= 100 else bench.pick(0.05, 1.0, 1.6)
    bench.say(f"{protocol}, {tasks} tasks on {limit} connections")
    for turn in bench.turns((OWN, OURS, BAR) if protocol == "HTTP/1.1" else (OWN, OURS), repeat):
        with turn as name:
            before = server.stats().accepted
            params: dict[str, Any] = {"protocol": protocol, "world": "tasks", "callers": tasks, "limit": limit}
            record(bench, name, load_apart(_turn(name, server, limit, tasks=tasks, seconds=seconds)), **params)
            bench.add(name, "connections", "opened", server.stats().accepted - before, **params)


def _steadiness(bench: Run, server: HTTPServer, sizes: tuple[int, ...], repeat: int) -> None:
    """The rates with few and with many tasks, in turns: minutes apart they would be those of the machine."""
    bench.say(f"HTTP/1.1, {', '.join(map(str, sizes))} tasks in turns")
    subjects = [(name, tasks) for tasks in sizes for name in (OURS, BAR)]
    for turn in bench.turns(subjects, repeat, lambda subject: f"{subject[0]}, {subject[1]} tasks"):
        with turn as (name, tasks):
            found = load_apart(_turn(name, server, tasks, tasks=tasks, seconds=bench.pick(0.05, 1.0, 1.0)))
            bench.add(name, "rate", "1/s", found.rate, steady=tasks)


def _second_library(bench: Run, server: HTTPServer, sizes: tuple[int, ...], repeat: int) -> None:
    """httpx2 by tasks."""
    for tasks in sizes:
        bench.say(f"HTTP/1.1, httpx2, {tasks} tasks with its default limits")
        for turn in bench.turns((OWN_2, OURS_2), repeat):
            with turn as name:
                found = load_apart(_turn(name, server, 0, tasks=tasks, seconds=bench.pick(0.05, 0.5, 1.0)))
                record(bench, name, found, default_limits=tasks)


def _transports(bench: Run, server: HTTPServer, repeat: int) -> None:
    """CPU time per GET of httpx, on poolkit's transport, on those of others, and on one that answers by itself."""
    if not (importlib.util.find_spec("httpx_aiohttp") and importlib.util.find_spec("pyreqwest")):
        bench.say("not measured: httpx-aiohttp and pyreqwest, which are not installed")
        return
    tls = "TLS" if server.certificates else "plain"
    for tasks, size in bench.pick([(2, 100)], [(20, 100)], TRANSPORTS):
        bench.say(f"HTTP/1.1, {tls}, {tasks} tasks, bodies of {size} bytes, transports for httpx")
        # half as long passes before: until each task has its connection, the handshakes are most of the work
        seconds = bench.pick(0.05, 0.5, 0.9 if tasks < 100 else 2.0 if tasks < 1000 else 5.0)
        for turn in bench.turns((OURS, *PEERS, ALONE), repeat):
            with turn as name:
                load = _turn(name, server, tasks, tasks=tasks, seconds=seconds, path=f"/bytes?n={size}", http2=False)
                bench.add(name, "cpu", "us", load_apart(load).cpu * 1e6, way=tls, tasks=tasks, size=size)


def _fifty_workers(bench: Run, server: HTTPServer, each: int, repeat: int) -> None:
    """As many connections as workers are enough; more are waste."""
    bench.say("50 workers, answers after 0 to 20 ms")
    for turn in bench.turns((OWN, OURS, BAR), repeat):
        with turn as name:
            before = server.stats().accepted

            async def work_of(name: str = name) -> float:
                async with async_client(_turn(name, server, 100)) as get:
                    dice = random.Random(5)

                    async def work() -> None:
                        for _ in range(each):
                            await get(f"/sleep?ms={dice.random() * 20:.2f}")

                    begun = time.monotonic()
                    await asyncio.gather(*(work() for _ in range(50)))
                    return time.monotonic() - begun

            elapsed = asyncio.run(work_of())
            bench.add(name, "connections", "opened", server.stats().accepted - before, workers=50)
            bench.add(name, "rate", "1/s", 50 * each / elapsed, workers=50)


def _burst(bench: Run, server: HTTPServer, requests: int, repeat: int) -> None:
    """All at once over ten connections that are open, 20 ms each; ideal is that none is ever idle."""
    bench.say(f"a burst of {requests} over 10 connections")
    ideal = requests / 10 * 0.02
    for turn in bench.turns((OWN, OURS, BAR), repeat):
        with turn as name:

            async def burst(name: str = name) -> float:
                async with async_client(_turn(name, server, 10)) as get:
                    await asyncio.gather(*(get("/sleep?ms=20") for _ in range(10)))
                    begun = time.monotonic()
                    await asyncio.gather(*(get("/sleep?ms=20") for _ in range(requests)))
                    return time.monotonic() - begun

            bench.add(name, "total", "x ideal", asyncio.run(burst()) / ideal, burst=requests)


def _turn(name: str, server: HTTPServer, limit: int, **load: Any) -> Turn:
    return Turn(name, server.url, limit, server.ca_path if server.certificates else "", **load)
