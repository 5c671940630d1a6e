"""*scale*: what one operation costs as the pool, the queue and the number of endpoints grow; memory; threads."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Callable

from bench.peers import PEERS, Sizes
from bench.turns import Run, quiet_gc
from poolkit import AsyncConnector, AsyncPool, Connector, Pool

__all__ = ("run",)


class _Server(Connector[object]):
    def connect(self, timeout: float | None) -> object:
        return object()


class _AsyncServer(AsyncConnector[object]):
    async def connect(self, timeout: float | None) -> object:
        return object()


def run(bench: Run) -> None:
    """Connections, endpoints, waiters, then memory and threads."""
    repeat = bench.pick(1, 1, 5)
    number = bench.pick(20, 500, 1000)
    for what, sizes, measure in (
        ("connections", bench.pick((10,), (10, 10_000), (10, 100, 1000, 10_000)), _connections),
        ("lanes", bench.pick((10,), (10, 10_000), (1, 10, 100, 1000, 10_000)), _lanes),
        ("waiters", bench.pick((10,), (10, 10_000), (10, 100, 1000, 10_000, 100_000)), _waiters),
    ):
        bench.say(f"{what}: {', '.join(map(str, sizes))}")
        turns = 2 if repeat > 2 and what == "waiters" else repeat
        for turn in bench.turns(sizes, turns, lambda size: f"poolkit, {size}"):
            with turn as size:
                bench.add("poolkit", "operation", "us", measure(size, number) / 1000, **{what: size})
    _memory(bench)
    bench.say("threads")
    for pool in bench.turns(("poolkit", "psycopg_pool"), 1):
        with pool as name:
            bench.add(name, "threads of 100 pools", "threads", _threads_of_pools(name, bench.pick(3, 20, 100)))


def _memory(bench: Run) -> None:
    """Of an idle entry, and of a task that waits for a connection or for a future."""
    bench.say("memory of idle entries")
    for turn in bench.turns(("poolkit",), 1):
        with turn as name:
            bench.add(name, "memory of an idle entry", "bytes", _memory_of_entries(bench.pick(10, 2000, 10_000)))
    bench.say("memory of waiting tasks")
    for turn in bench.turns(("poolkit", "a future"), 1):
        with turn as name:
            size = bench.pick(10, 200, 1000)
            memory = asyncio.run(_memory_of_waiters(size, pool=name == "poolkit"))
            bench.add(name, "memory of a waiting task", "bytes", memory)


def _best(work: Callable[[], None], number: int) -> float:
    best = float("inf")
    with quiet_gc():
        for _ in range(7):
            begun = time.process_time_ns()
            work()
            best = min(best, (time.process_time_ns() - begun) / number)
    return best


def _filled(size: int) -> Pool[object]:
    pool = Pool(_Server(), max_size=size, max_connecting=None)
    for connection in [pool.acquire() for _ in range(size)]:
        pool.release(connection)
    return pool


def _connections(size: int, number: int) -> float:
    """Nanoseconds of acquire and release beside so many idle connections."""
    with _filled(size) as pool:

        def work() -> None:
            for _ in range(number):
                pool.release(pool.acquire())

        return _best(work, number)


def _lanes(size: int, number: int) -> float:
    """Nanoseconds of a lease of one of ten endpoints, of so many that have an idle connection each."""
    with Pool(_Server(), max_size=size, max_connecting=None, keyed=True) as pool:
        for lease in [pool.lease(key=key) for key in range(size)]:
            lease.close()
        # The same few are asked for at every size, so that the processor's cache is not what is measured.
        keys = [size * index // 10 for index in range(10)]

        def work() -> None:
            for index in range(number):
                pool.lease(key=keys[index % 10]).close()

        return _best(work, number)


def _waiters(size: int, number: int) -> float:
    """Nanoseconds from one caller to the next, each of whom queues again behind so many."""
    return asyncio.run(_hand_over(size, number))


async def _hand_over(size: int, number: int) -> float:
    pool = AsyncPool(_AsyncServer(), max_size=1, acquire_timeout=None)
    served = 0
    done = asyncio.Event()

    async def caller() -> None:
        nonlocal served
        while not done.is_set():
            async with pool.lease():
                served += 1
                if served >= number:
                    done.set()

    first = await pool.acquire()
    tasks = [asyncio.create_task(caller()) for _ in range(size)]
    for _ in range(3):  # rounds of the loop until all have queued
        await asyncio.sleep(0)
    if pool.stats().waiting != size:
        raise RuntimeError(f"{pool.stats().waiting} of {size} callers wait")
    with quiet_gc():
        begun = time.process_time_ns()
        await pool.release(first)
        await done.wait()
        spent = (time.process_time_ns() - begun) / number
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await pool.close()
    return spent


def _traced(make: Callable[[], object]) -> int:
    """Bytes that are still allocated while the result of ``make`` lives."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = make()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del kept
    return grown


def _memory_of_entries(size: int) -> float:
    """Bytes of one idle connection, without the connection itself."""
    connections = _traced(lambda: [object() for _ in range(size)])
    pools: list[Pool[object]] = []
    grown = _traced(lambda: pools.append(_filled(size)))
    pools[0].close()
    return (grown - connections) / size


async def _memory_of_waiters(size: int, *, pool: bool) -> float:
    """Bytes of one task that waits for a connection, or for a bare future."""
    subject = AsyncPool(_AsyncServer(), max_size=1)
    held = await subject.acquire()
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        await (subject.acquire() if pool else loop.create_future())

    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.create_task(wait()) for _ in range(size)]
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await subject.release(held)
    await subject.close()
    return grown / size


def _threads_of_pools(name: str, count: int) -> float:
    """Threads that so many pools with a connection each keep, beyond what was there before."""
    before = threading.active_count()
    peers = [PEERS[name](Sizes(1, 1)) for _ in range(count)]
    for peer in peers:
        peer.put(peer.get())
    grown = threading.active_count() - before
    for peer in peers:
        peer.close()
    return grown
