"""*cycle*: what it costs to take a connection and give it back when nobody else wants one. CPU time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from bench import async_peers, peers
from bench.async_peers import ASYNC_PEERS, AsyncPeer
from bench.peers import PEERS, Peer, Sizes
from bench.turns import Run, quiet_gc

__all__ = ("run",)

_SIZES = Sizes(4)


def run(bench: Run) -> None:
    """Measure the pools for threads, those for tasks, and httpcore's on a network that answers at once."""
    number, repeat = bench.pick(20, 300, 2000), bench.pick(1, 3, 11)
    threads: dict[str, Callable[[Sizes], Peer]] = {
        **PEERS,
        "poolkit, a listener": partial(peers.engine, listeners=[_listen]),
        "poolkit, a cluster of 4": peers.cluster,
    }
    tasks: dict[str, Callable[[Sizes], Awaitable[AsyncPeer]]] = {
        **ASYNC_PEERS,
        "poolkit, a listener": partial(async_peers.engine, listeners=[_listen]),
        "poolkit, a cluster of 4": async_peers.cluster,
    }
    bench.say(f"{len(threads)} pools for threads, {repeat} times")
    for turn in bench.turns(list(threads), repeat):
        with turn as name:
            peer = threads[name](_SIZES)
            try:
                bench.add(name, "cpu", "us", _cycle(peer, number), world="threads")
            finally:
                peer.close()
    bench.say(f"{len(tasks)} pools for tasks, {repeat} times")
    for turn in bench.turns(list(tasks), repeat):
        with turn as name:
            cpu = asyncio.run(_async_cycle(partial(tasks[name], _SIZES), number))
            bench.add(name, "cpu", "us", cpu, world="tasks")
    _http(bench, max(1, number // 20), repeat)


def _listen(event: object) -> None:
    """A listener that does nothing."""


def _least(work: Callable[[], object], number: int) -> float:
    """Microseconds of CPU for one of ``number``: the least of five times, so that interrupts do not count."""
    best = float("inf")
    with quiet_gc():
        for _ in range(5):
            begun = time.process_time_ns()
            work()
            best = min(best, (time.process_time_ns() - begun) / number)
    return best / 1000


def _cycle(peer: Peer, number: int) -> float:
    get, put = peer.get, peer.put

    def work() -> None:
        for _ in range(number):
            put(get())

    work()
    return _least(work, number)


async def _async_cycle(make: Callable[[], Awaitable[AsyncPeer]], number: int) -> float:
    peer = await make()
    try:
        await peer.rounds(number)
        best = float("inf")
        with quiet_gc():
            for _ in range(5):
                begun = time.process_time_ns()
                await peer.rounds(number)
                best = min(best, (time.process_time_ns() - begun) / number)
        return best / 1000
    finally:
        await peer.close()


def _http(bench: Run, number: int, repeat: int) -> None:
    """A whole request on one idle connection: h11's work is in it, for both alike."""
    import httpcore

    from bench.answering import AnsweringBackend, AsyncAnsweringBackend
    from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool

    url = "http://localhost/"
    pools = {"httpcore": httpcore.ConnectionPool, "httpcore -> poolkit": PoolkitConnectionPool}
    bench.say(f"httpcore, {repeat} times")
    for turn in bench.turns(list(pools), repeat):
        with turn as name, pools[name](network_backend=AnsweringBackend()) as pool:

            def work(pool: httpcore.ConnectionPool = pool) -> None:
                for _ in range(number):
                    pool.request("GET", url)

            work()
            bench.add(name, "cpu", "us", _least(work, number), world="threads")

    async def cycle(kind: type[httpcore.AsyncConnectionPool]) -> float:
        best = float("inf")
        async with kind(network_backend=AsyncAnsweringBackend()) as pool:
            await pool.request("GET", url)
            with quiet_gc():
                for _ in range(5):
                    begun = time.process_time_ns()
                    for _ in range(number):
                        await pool.request("GET", url)
                    best = min(best, (time.process_time_ns() - begun) / number)
        return best / 1000

    async_pools = {"httpcore": httpcore.AsyncConnectionPool, "httpcore -> poolkit": AsyncPoolkitConnectionPool}
    for turn in bench.turns(list(async_pools), repeat):
        with turn as name:
            bench.add(name, "cpu", "us", asyncio.run(cycle(async_pools[name])), world="tasks")
