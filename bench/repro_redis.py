"""R2, R3, R13, R14 and the cost of a checkout, on redis-py's own pools and on poolkit's, side by side.

``python bench/repro_redis.py`` starts a Redis of its own and takes about half a minute.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

from poolkit.testing.servers import RedisServer
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool

SYNC: dict[str, Any] = {"redis-py": redis.BlockingConnectionPool, "poolkit": PoolkitConnectionPool}
ASYNC: dict[str, Any] = {"redis-py": redis.asyncio.BlockingConnectionPool, "poolkit": AsyncPoolkitConnectionPool}
SECONDS = 4.0


def fair_threads(make: Callable[..., Any], threads: int = 40, size: int = 4, hold: float = 0.005) -> str:
    """R2: each thread takes, holds, returns and takes again at once."""
    pool = make(max_connections=size, timeout=60)
    counts, worst, stop = [0] * threads, [0.0] * threads, time.monotonic() + SECONDS

    def work(index: int) -> None:
        while (asked := time.monotonic()) < stop:
            connection = pool.get_connection()
            worst[index] = max(worst[index], time.monotonic() - asked)
            time.sleep(hold)
            pool.release(connection)
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    pool.disconnect()
    return f"acquires per thread min {min(counts)} max {max(counts)}, worst wait {max(worst):.2f} s"


async def fair_tasks(make: Callable[..., Any], tasks: int = 100, size: int = 10, hold: float = 0.02) -> str:
    """R3: the same with tasks."""
    pool = make(max_connections=size, timeout=60)
    counts, worst, stop = [0] * tasks, [0.0] * tasks, time.monotonic() + SECONDS

    async def work(index: int) -> None:
        while (asked := time.monotonic()) < stop:
            connection = await pool.get_connection()
            worst[index] = max(worst[index], time.monotonic() - asked)
            await asyncio.sleep(hold)
            await pool.release(connection)
            counts[index] += 1

    await asyncio.gather(*(work(index) for index in range(tasks)))
    await pool.aclose()
    return f"acquires per task min {min(counts)} max {max(counts)}, worst wait {max(worst):.2f} s"


async def cancel_storm(make: Callable[..., Any], rounds: int = 150, tasks: int = 20) -> str:
    """R14: half of the tasks are cancelled at random moments; R13: is the cancellation delivered?

    Without ``socket_timeout``: with it redis-py writes under ``asyncio.wait_for``, which loses some by itself
    before Python 3.12.
    """
    pool = make(max_connections=5, timeout=60, socket_timeout=None)
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.mset({f"k{number}": f"v{number}" for number in range(100)})
    wrong = lost = cancelled = 0
    dice = random.Random(7)

    async def get(number: int) -> None:
        nonlocal wrong
        wrong += await client.get(f"k{number}") != b"v%d" % number

    for _ in range(rounds):
        running = [asyncio.create_task(get(dice.randrange(100))) for _ in range(tasks)]
        await asyncio.sleep(dice.random() * 0.004)
        chosen = [task for task in dice.sample(running, tasks // 2) if task.cancel()]
        await asyncio.gather(*running, return_exceptions=True)
        cancelled += len(chosen)
        lost += sum(not task.cancelled() for task in chosen)
    await pool.disconnect()
    return f"{cancelled} cancellations, {lost} lost, {wrong} wrong answers"


def dirty(make: Callable[..., Any]) -> str:
    """A connection comes back with an unread reply; the settings are redis-py's defaults (RESP3)."""
    pool = make(max_connections=1, protocol=3)
    client = redis.Redis(connection_pool=pool)
    client.mset({"secret": "another user's", "mine": "my own"})
    connection = pool.get_connection()
    connection.send_command("GET", "secret")
    time.sleep(0.05)
    pool.release(connection)
    answer = client.get("mine")
    pool.disconnect()
    return f"GET mine -> {answer!r}"


def fork(make: Callable[..., Any]) -> str:
    """R16: who uses whose connection after a fork."""
    pool = make(max_connections=2)
    client = redis.Redis(connection_pool=pool)
    parent = client.client_id()
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writing, b"its own" if client.client_id() != parent else b"the parent's")
        pool.disconnect()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    kept = client.client_id() == parent
    pool.disconnect()
    return f"the child used {answer}, the parent {'kept' if kept else 'lost'} its connection"


def cost(server: RedisServer, rounds: int = 20) -> None:
    """Microseconds of get_connection() + release(), and of a GET: the pools take turns, the best round counts."""
    best: dict[str, list[float]] = {name: [1.0, 1.0] for name in SYNC}
    pools = {name: pool.from_url(server.url, max_connections=4) for name, pool in SYNC.items()}
    clients = {name: redis.Redis(connection_pool=pool) for name, pool in pools.items()}
    for _ in range(rounds):
        for name, pool in pools.items():
            start = time.perf_counter()
            for _ in range(1000):
                pool.release(pool.get_connection())
            middle = time.perf_counter()
            for _ in range(300):
                clients[name].get("key")
            end = time.perf_counter()
            best[name] = [min(best[name][0], (middle - start) / 1000), min(best[name][1], (end - middle) / 300)]
    _show_cost("threads", best)
    for pool in pools.values():
        pool.disconnect()


async def async_cost(server: RedisServer, rounds: int = 20) -> None:
    """The same, asyncio."""
    best: dict[str, list[float]] = {name: [1.0, 1.0] for name in ASYNC}
    pools = {name: pool.from_url(server.url, max_connections=4) for name, pool in ASYNC.items()}
    clients = {name: redis.asyncio.Redis(connection_pool=pool) for name, pool in pools.items()}
    for _ in range(rounds):
        for name, pool in pools.items():
            start = time.perf_counter()
            for _ in range(500):
                await pool.release(await pool.get_connection())
            middle = time.perf_counter()
            for _ in range(200):
                await clients[name].get("key")
            end = time.perf_counter()
            best[name] = [min(best[name][0], (middle - start) / 500), min(best[name][1], (end - middle) / 200)]
    _show_cost("asyncio", best)
    for pool in pools.values():
        await pool.aclose()


def _show_cost(world: str, best: dict[str, list[float]]) -> None:
    for name, (pair, get) in best.items():
        print(f"    cost, {world}  {name:9} get+release {pair * 1e6:.1f} us, GET {get * 1e6:.1f} us", flush=True)


def main() -> None:
    with RedisServer() as server:
        for title, measure in (
            ("R2  40 threads, 4 connections, 5 ms", fair_threads),
            ("R16 fork", fork),
            ("    unread reply (defaults)", dirty),
        ):
            for name, pool in SYNC.items():
                print(f"{title}  {name:9} {measure(_of(pool, server))}", flush=True)
        for title, run in (
            ("R3  100 tasks, 10 connections, 20 ms", fair_tasks),
            ("R13 R14 cancel storm", cancel_storm),
        ):
            for name, pool in ASYNC.items():
                print(f"{title}  {name:9} {asyncio.run(run(_of(pool, server)))}", flush=True)
        cost(server)
        asyncio.run(async_cost(server))


def _of(pool: Any, server: RedisServer) -> Callable[..., Any]:
    def make(**kwargs: Any) -> Any:
        return pool.from_url(server.url, **kwargs)

    return make


if __name__ == "__main__":
    main()
