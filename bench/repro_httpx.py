"""R5, R7 to R10 of the evidence page on httpx's own pool and on poolkit's, in one run.

    python bench/repro_httpx.py [--httpx2] [R5 R7 R8 R9 R10 load]

With ``--httpx2``: on the pools of httpx2 and httpcore2.

Prints one line for each figure and pool. The server is this package's fast one, in a process of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import statistics
import sys
import time
from typing import Any

from poolkit.testing.servers import HTTPServer

SECOND = "2" if "--httpx2" in sys.argv else ""
httpcore: Any = importlib.import_module(f"httpcore{SECOND}")
httpx: Any = importlib.import_module(f"httpx{SECOND}")
adapters: Any = [importlib.import_module(f"poolkit_adapters.{library.__name__}") for library in (httpcore, httpx)]
POOLS = {httpcore.__name__: httpcore.AsyncConnectionPool, "poolkit": adapters[0].AsyncPoolkitConnectionPool}
TRANSPORTS = {httpx.__name__: httpx.AsyncHTTPTransport, "poolkit": adapters[1].AsyncPoolkitTransport}


def say(test: str, who: str, text: str) -> None:
    print(f"{test:5} {who:9} {text}", flush=True)


async def r5(url: str) -> None:
    """100 workers, 10 connections, 20 ms: who gets how many turns in 4 s."""

    async def work(pool: Any, end: float) -> list[float]:
        waits = []
        while (began := time.monotonic()) < end:
            await pool.request("GET", f"{url}/sleep?ms=20")
            waits.append(time.monotonic() - began)
        return waits

    for who, kind in POOLS.items():
        async with kind(max_connections=10) as pool:
            waits = await asyncio.gather(*(work(pool, time.monotonic() + 4) for _ in range(100)))
        turns = [len(mine) for mine in waits]
        say("R5", who, f"turns min {min(turns)} max {max(turns)}, worst {max(map(max, waits)):.2f} s")


async def r7(url: str) -> None:
    """3 rounds of 4 requests cancelled after one tick of the loop, 2 connections; then two requests."""
    for who, kind in POOLS.items():
        async with kind(max_connections=2) as pool:
            for _ in range(3):
                tasks = [asyncio.create_task(pool.request("GET", url)) for _ in range(4)]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            try:
                extensions = {"timeout": {"pool": 1.0}}
                await asyncio.gather(*(pool.request("GET", url, extensions=extensions) for _ in range(2)))
                say("R7", who, f"served; {pool!r}")
            except httpcore.PoolTimeout:
                say("R7", who, f"PoolTimeout; {pool!r}")


async def r8(server: HTTPServer) -> None:
    """50 workers x 20 requests of 0 to 20 ms, 20 kept alive: connections opened."""
    for who, kind in TRANSPORTS.items():
        counts = []
        for limit in (50, 100, 50, 100):
            before = server.stats().accepted
            limits = httpx.Limits(max_connections=limit, max_keepalive_connections=20)
            async with httpx.AsyncClient(transport=kind(limits=limits)) as client:

                async def work() -> None:
                    for _ in range(20):
                        await client.get(f"{server.url}/sleep?ms={random.random() * 20:.2f}")

                await asyncio.gather(*(work() for _ in range(50)))
            counts.append(server.stats().accepted - before)
        say("R8", who, f"connections for 1000 requests: {counts}")


async def r9(url: str) -> None:
    """A burst of 400 over 10 connections of 20 ms; ideal 0.80 s."""
    for who, kind in POOLS.items():
        times = []
        for _ in range(3):
            async with kind(max_connections=10) as pool:
                began = time.monotonic()
                await asyncio.gather(*(pool.request("GET", f"{url}/sleep?ms=20") for _ in range(400)))
                times.append(time.monotonic() - began)
        say("R9", who, f"{min(times):.2f} to {max(times):.2f} s")


async def r10(url: str) -> None:
    """CPU time of the loop for each request while 100, 300, 1000 tasks share 100 connections of 20 ms."""
    for who, kind in POOLS.items():
        costs = []
        for tasks in (100, 300, 1000):
            async with kind(max_connections=100) as pool:
                await asyncio.gather(*(pool.request("GET", f"{url}/sleep?ms=20") for _ in range(100)))
                began = time.process_time()
                await asyncio.gather(*(pool.request("GET", f"{url}/sleep?ms=20") for _ in range(tasks)))
                costs.append((time.process_time() - began) / tasks * 1000)
        say("R10", who, "ms of CPU a request with 100/300/1000: " + " / ".join(f"{cost:.2f}" for cost in costs))


async def load(url: str) -> None:
    """Requests a second at 1 to 1000 tasks with httpx's limit of 100."""

    async def work(client: Any, end: float) -> int:
        count = 0
        while time.monotonic() < end:
            await client.get(url)
            count += 1
        return count

    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(3):
        for tasks in (1, 10, 100, 500, 1000):
            for who, kind in TRANSPORTS.items():
                async with httpx.AsyncClient(transport=kind(), timeout=None) as client:
                    await client.get(url)
                    began = time.monotonic()
                    counts = await asyncio.gather(*(work(client, began + 1.5) for _ in range(tasks)))
                    rates.setdefault((who, tasks), []).append(sum(counts) / (time.monotonic() - began))
    for (who, tasks), found in sorted(rates.items(), key=lambda item: item[0][1]):
        say("load", who, f"{tasks:5} tasks: {statistics.median(found):7.0f} requests/s")


async def main(wanted: list[str]) -> None:
    with HTTPServer(fast=True) as server:
        for name in wanted or ["R5", "R7", "R8", "R9", "R10", "load"]:
            test = globals()[name.lower()]
            await test(server if name == "R8" else server.url)


if __name__ == "__main__":
    asyncio.run(main([name for name in sys.argv[1:] if name != "--httpx2"]))
