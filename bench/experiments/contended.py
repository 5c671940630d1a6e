"""*contended*: more callers than connections. How many are served, how long they wait, who gets how much.

Each caller takes a connection, keeps it for the hold, gives it back and takes again at once: the hardest case for
fairness, because who has just given back is the one who is awake.
"""

from __future__ import annotations

import asyncio
import time

from bench.async_peers import ASYNC_PEERS, AsyncPeer
from bench.figures import jain, waits_of
from bench.peers import PEERS, Peer, Sizes
from bench.result import Param
from bench.turns import Run, together

__all__ = ("FLOOR", "MAIN", "UNFAIR", "run")

MAIN = (64, 8)
"""Callers and connections of the case for which there are targets."""
FLOOR = "queue.LifoQueue"
UNFAIR = ("SQLAlchemy QueuePool", "redis-py BlockingConnectionPool", "DBUtils")
"""The drivers' pools that do not serve in order of arrival."""

_THREADS = (
    "poolkit", FLOOR, "lock, deque and hand-over", "psycopg_pool", *UNFAIR,
    "SQLAlchemy -> poolkit", "redis-py -> poolkit",
)  # fmt: skip
_TASKS = (
    "poolkit", "asyncio.LifoQueue", "psycopg_pool", "asyncpg", "SQLAlchemy AsyncAdaptedQueuePool",
    "redis-py BlockingConnectionPool", "SQLAlchemy -> poolkit", "redis-py -> poolkit",
)  # fmt: skip
_HOLDS = (0.0, 0.00005, 0.001, 0.005)
_Cases = list[tuple[tuple[int, int], tuple[float, ...], int]]
_OTHERS = ((2, 1), (16, 16), (256, 64))
"""Few for one, one for each, many for many; with holds of 0 and 1 ms."""


def run(bench: Run) -> None:
    """Threads, then tasks."""
    seconds = bench.pick(0.02, 0.12, 0.7)
    smoke: _Cases = [((4, 2), (0.001,), 1)]
    quick: _Cases = [(MAIN, (0.0, 0.001), 1)]
    full: _Cases = [(MAIN, _HOLDS, 5), *((other, (0.0, 0.001), 2) for other in _OTHERS)]
    for size, holds, repeat in bench.pick(smoke, quick, full):
        for hold in holds:
            callers, connections = size
            # a hold of 5 ms needs longer until each has had some turns
            time_left = seconds * bench.pick(1, 1, 2.5 if hold >= 0.005 else 0.5 if size != MAIN else 1)
            params: dict[str, Param] = {"callers": callers, "connections": connections, "hold_ms": hold * 1000}
            bench.say(f"{callers} callers, {connections} connections, hold {hold * 1000:g} ms")
            for turn in bench.turns(_THREADS, repeat):
                with turn as name:
                    peer = PEERS[name](Sizes(connections, connections))
                    try:
                        turns = _threads(peer, callers, hold, time_left)
                    finally:
                        peer.close()
                    _add(bench, name, turns, {"world": "threads", **params})
            if hold in (0.0, 0.001):
                for turn in bench.turns(_TASKS, max(1, repeat // 2)):
                    with turn as name:
                        turns = asyncio.run(_tasks(name, callers, connections, hold, time_left / 2))
                        _add(bench, name, turns, {"world": "tasks", **params})


def _add(bench: Run, name: str, turns: tuple[list[list[float]], float], params: dict[str, Param]) -> None:
    """Add what the callers' waits and the seconds of the turn say."""
    waits, elapsed = turns
    counts = [len(mine) for mine in waits]
    total = sum(counts)
    found = waits_of([wait for mine in waits for wait in mine])
    # Everybody is always either waiting or holding, so an equal share means to come by every callers/rate seconds.
    share = len(counts) * elapsed / max(1, total)
    bench.add(name, "rate", "1/s", total / elapsed, **params)
    bench.add_all(name, "ms", {f"wait {key}": value * 1000 for key, value in found.items()}, **params)
    bench.add(name, "worst wait", "x fair share", found["max"] / share, **params)
    bench.add(name, "jain", "", jain(counts), **params)
    bench.add(name, "least", "acquires", min(counts), **params)
    bench.add(name, "most", "acquires", max(counts), **params)
    bench.add(name, "most/least", "x", max(counts) / max(1, min(counts)), **params)


def _threads(peer: Peer, callers: int, hold: float, seconds: float) -> tuple[list[list[float]], float]:
    """Return each caller's waits in seconds, and how long it went on."""
    waits: list[list[float]] = [[] for _ in range(callers)]
    get, put, clock, sleep = peer.get, peer.put, time.monotonic, time.sleep
    end = 0.0

    def work(index: int) -> None:
        nonlocal end
        if not end:  # the first to run after all have been started
            end = clock() + seconds
        note = waits[index].append
        while (begun := clock()) < end:
            connection = get()
            note(clock() - begun)
            if hold:
                sleep(hold)
            put(connection)

    together(work, callers)
    return waits, clock() - (end - seconds)


async def _tasks(
    name: str, callers: int, connections: int, hold: float, seconds: float
) -> tuple[list[list[float]], float]:
    peer: AsyncPeer = await ASYNC_PEERS[name](Sizes(connections, connections))
    waits: list[list[float]] = [[] for _ in range(callers)]
    get, put, clock = peer.get, peer.put, time.monotonic
    begun_all = clock()
    end = begun_all + seconds

    async def work(index: int) -> None:
        note = waits[index].append
        while (begun := clock()) < end:
            connection = await get()
            note(clock() - begun)
            await asyncio.sleep(hold)  # of 0: one round of the loop, in which the others have their turn
            await put(connection)

    try:
        await asyncio.gather(*(work(index) for index in range(callers)))
        return waits, clock() - begun_all
    finally:
        await peer.close()
