"""The experiments: each takes the pools in turn, again and again, and gives what it measured for each."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .peers import PEERS, Peer, Sizes

__all__ = ("EXPERIMENTS", "Table")


@dataclass
class Table:
    """Rows of a measurement: pool, then a number for each column."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)


def _in_turn(names: Sequence[str], sizes: Sizes, repeat: int) -> Iterator[tuple[str, Peer]]:
    """Each pool once, then each again: what disturbs the machine falls on all of them."""
    for _ in range(repeat):
        for name in names:
            peer = PEERS[name](sizes)
            try:
                yield name, peer
            finally:
                peer.close()


def cycle(quick: bool) -> Table:
    """Uncontended get and put, CPU time."""
    number, repeat = (2000, 5) if quick else (5000, 15)
    taken: dict[str, list[float]] = {}
    for name, peer in _in_turn(list(PEERS), Sizes(4), repeat):
        get, put = peer.get, peer.put
        for _ in range(200):
            put(get())
        gc.disable()
        best = float("inf")
        for _ in range(5):
            begun = time.process_time_ns()
            for _ in range(number):
                put(get())
            best = min(best, (time.process_time_ns() - begun) / number)
        gc.enable()
        taken.setdefault(name, []).append(best)
    table = Table("cycle: ns of CPU for one get and put, and x the floor", ("ns", "x floor", "min", "max"))
    floor = taken["floor"]
    for name, values in taken.items():
        ratios = [value / base for value, base in zip(values, floor, strict=True)]
        table.rows.append((name, (statistics.median(values), statistics.median(ratios), min(ratios), max(ratios))))
    return table


def contended(quick: bool) -> Table:
    """Threads that want more connections than there are: throughput and fairness."""
    seconds, repeat = (0.5, 1) if quick else (2.0, 3)
    table = Table(
        "contended: 64 threads, 8 connections",
        ("hold ms", "per s", "Jain", "max/min", "p99 ms", "worst ms"),
    )
    names = ["poolkit", "lifo", "psycopg_pool", "sqlalchemy", "sqlalchemy+poolkit", "redis", "redis+poolkit"]
    for hold in (0.0, 0.001) if quick else (0.0, 0.00005, 0.001, 0.005):
        found: dict[str, list[tuple[float, ...]]] = {}
        for name, peer in _in_turn(names, Sizes(8, 8), repeat):
            found.setdefault(name, []).append(_contend(peer, 64, hold, seconds))
        for name, runs in found.items():
            medians = tuple(statistics.median(column) for column in zip(*runs, strict=True))
            table.rows.append((name, (hold * 1000, *medians)))
    return table


def _contend(peer: Peer, threads: int, hold: float, seconds: float) -> tuple[float, ...]:
    counts = [0] * threads
    waits: list[list[float]] = [[] for _ in range(threads)]
    end = time.monotonic() + seconds
    get, put = peer.get, peer.put

    def work(number: int) -> None:
        mine = waits[number]
        while (begun := time.monotonic()) < end:
            connection = get()
            mine.append(time.monotonic() - begun)
            if hold:
                time.sleep(hold)
            counts[number] += 1
            put(connection)

    _run(work, threads)
    every = sorted(wait for mine in waits for wait in mine)
    total = sum(counts)
    jain = total**2 / (threads * sum(count**2 for count in counts))
    spread = max(counts) / max(1, min(counts))
    return total / seconds, jain, spread, every[int(len(every) * 0.99)] * 1000, every[-1] * 1000


def _run(work: Callable[[int], None], threads: int) -> None:
    started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def spike(quick: bool) -> Table:
    """50 callers at once on 5 open connections of at most 20; opening one takes 150 ms, using it 2 ms."""
    repeat = 2 if quick else 5
    table = Table("spike: 50 callers, 2 ms each, connect 150 ms, 5 open, 20 at most", ("opened", "total ms", "p99 ms"))
    found: dict[str, list[tuple[float, ...]]] = {}
    names = ["poolkit", "lifo", "psycopg_pool", "sqlalchemy", "sqlalchemy+poolkit", "redis", "redis+poolkit"]
    for name, peer in _in_turn(names, Sizes(20, 5, 0.15), repeat):
        before = peer.opened()
        waits: list[float] = []

        def work(number: int, peer: Peer = peer, waits: list[float] = waits) -> None:
            begun = time.monotonic()
            connection = peer.get()
            waits.append(time.monotonic() - begun)
            time.sleep(0.002)
            peer.put(connection)

        begun = time.monotonic()
        _run(work, 50)
        total = time.monotonic() - begun
        opened = peer.opened() - before
        found.setdefault(name, []).append((opened, total * 1000, sorted(waits)[int(len(waits) * 0.99)] * 1000))
    for name, runs in found.items():
        table.rows.append((name, tuple(statistics.median(column) for column in zip(*runs, strict=True))))
    return table


def long_holders(quick: bool) -> Table:
    """20 callers who keep what they get, on 5 open connections of at most 20: in connect times of 100 ms."""
    table = Table("long holders: 20 callers keep their connection, connect 100 ms", ("all served, connect times",))
    found: dict[str, list[float]] = {}
    for name, peer in _in_turn(["poolkit", "psycopg_pool", "sqlalchemy"], Sizes(20, 5, 0.1), 1 if quick else 3):
        held: list[Any] = []
        begun = time.monotonic()
        _run(lambda number, peer=peer, held=held: held.append(peer.get()), 20)  # type: ignore[misc]
        found.setdefault(name, []).append((time.monotonic() - begun) / 0.1)
        for connection in held:
            peer.put(connection)
    for name, values in found.items():
        table.rows.append((name, (statistics.median(values),)))
    return table


def scale(quick: bool) -> Table:
    """Cost of an operation of the core as the pool, the queue and the lanes grow."""
    from poolkit import Connector, Pool

    class Server(Connector[object]):
        def connect(self, timeout: float | None) -> object:
            return object()

    table = Table("scale: us for one acquire and release beside so many idle connections", ("us", "x smallest"))
    first = None
    for size in (10, 1000) if quick else (10, 100, 1000, 10_000):
        pool = Pool(Server(), max_size=size, max_connecting=size)
        for connection in [pool.acquire() for _ in range(size)]:
            pool.release(connection)
        best = float("inf")
        for _ in range(20):
            begun = time.process_time_ns()
            for _ in range(500):
                pool.release(pool.acquire())
            best = min(best, (time.process_time_ns() - begun) / 500)
        pool.close()
        first = first or best
        table.rows.append((f"{size} connections", (best / 1000, best / first)))
    return table


def start(quick: bool) -> Table:
    """What `import poolkit` takes, beside an interpreter that imports nothing and one that imports asyncio."""
    table = Table("start: ms of a whole process", ("ms", "minus empty"))
    programs = {"nothing": "pass", "poolkit": "import poolkit", "asyncio": "import asyncio"}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(5 if quick else 15):
        for name, program in programs.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            taken[name].append((time.perf_counter() - begun) * 1000)
    empty = statistics.median(taken["nothing"])
    for name, values in taken.items():
        median = statistics.median(values)
        table.rows.append((name, (median, median - empty)))
    return table


EXPERIMENTS: dict[str, Callable[[bool], Table]] = {
    "cycle": cycle,
    "contended": contended,
    "spike": spike,
    "long-holders": long_holders,
    "scale": scale,
    "start": start,
}
