"""*spike*: 50 callers at once on a pool that has 5 connections open; opening one more takes long.

A pool that opens a connection for each of them is served last. And the other way round: callers who keep what they get
must not wait for connections to be opened one behind the other.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from bench.figures import percentile
from bench.peers import PEERS, Peer, Sizes
from bench.turns import Effort, Run, together

__all__ = ("run", "short")

_PEERS = (
    "poolkit", "psycopg_pool", "SQLAlchemy QueuePool", "redis-py BlockingConnectionPool", "queue.LifoQueue",
    "SQLAlchemy -> poolkit", "redis-py -> poolkit",
)  # fmt: skip


def run(bench: Run) -> None:
    """Short queries at two sizes, then callers who keep their connection."""
    connect = bench.pick(0.02, 0.15, 0.15)
    repeat = bench.pick(1, 1, 7)
    for most in bench.pick((20,), (20,), (20, 50)):
        bench.say(f"50 callers, at most {most} connections, {repeat} times")
        for turn in bench.turns(_PEERS, repeat):
            with turn as name:
                short(bench, name, most, connect)
    keepers = ["poolkit", "SQLAlchemy QueuePool"]
    if bench.effort > Effort.QUICK:  # they open one behind the other: seconds
        for turn in bench.turns(("DBUtils",), 1):
            with turn as name:
                short(bench, name, 20, connect)
        keepers.insert(1, "psycopg_pool")
    bench.say(f"20 callers who keep their connection, {repeat} times")
    for turn in bench.turns(keepers, bench.pick(1, 1, 3)):
        with turn as name:
            _long(bench, name, connect)


def short(bench: Run, name: str, most: int, connect: float) -> None:
    """50 callers of one pool who give back what they get."""
    peer = PEERS[name](Sizes(most, 5, connect))
    waits: list[float] = []
    served = threading.Lock()
    opened_at_end = [0]
    try:
        _settle(peer)
        before = peer.opened()

        def work(_index: int) -> None:
            begun = time.monotonic()
            connection = peer.get()
            waits.append(time.monotonic() - begun)
            time.sleep(0.002)
            peer.put(connection)
            with served:
                opened_at_end[0] = peer.opened() - before

        begun = time.monotonic()
        together(work, 50)
        total = time.monotonic() - begun
        bench.add(name, "opened", "connections", opened_at_end[0], most=most)
        bench.add(name, "total", "ms", total * 1000, most=most)
        bench.add(name, "wait p99", "ms", percentile(sorted(waits), 0.99) * 1000, most=most)
        _settle(peer)
    finally:
        peer.close()


def _settle(peer: Peer) -> None:
    """Wait until no connect is running, because one that ends later would count for the next turn."""
    seen = -1
    while seen != peer.opened():
        seen = peer.opened()
        time.sleep(0.02)


def _long(bench: Run, name: str, connect: float) -> None:
    peer = PEERS[name](Sizes(20, 5, connect))
    held: list[Any] = []
    try:
        begun = time.monotonic()
        together(lambda _index: held.append(peer.get()), 20)
        bench.add(name, "all served", "connect times", (time.monotonic() - begun) / connect, holders=20)
        for connection in held:
            peer.put(connection)
    finally:
        peer.close()
