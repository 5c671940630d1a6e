"""``python -m tests.processes.exit_program CASE [URL]``: ends with its pools open, leases out, work under way.

With POOLKIT_SKIP=1 it does everything but that (imports, the server), to compare. It prints how long the
interpreter took from the last line of the program to its very end, as far as Python sees it; the rest the parent times.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from poolkit import AsyncPool, Pool
from poolkit.testing import AsyncFakeConnector, FakeConnector
from tests.processes.subjects import SYNC, make

kept: list[Any] = []
"""Until the very end of the interpreter."""


def threads() -> None:
    """Leases, a connect and a check under way, waiters, housekeeping due all the time."""
    pool = Pool(FakeConnector(), max_size=6, min_size=2, idle_timeout=0.02, keepalive=0.01, max_lifetime=0.05)
    leases = [pool.lease() for _ in range(4)]
    leases.pop().close()
    hanging = Pool(FakeConnector(connect=20), max_size=1)
    waiter = threading.Thread(target=hanging.acquire, daemon=True)
    waiter.start()
    kept.extend([pool, hanging, leases, pool.acquire()])


def dropped() -> None:
    """Nobody keeps anything: finalizers run while the interpreter goes down."""
    pool = Pool(FakeConnector(), max_size=3)
    pool.release(pool.acquire())
    circle: list[Any] = [pool, pool.acquire()]
    circle.append(circle)


def closing() -> None:
    """The program's atexit handler uses and closes the pool."""
    import atexit

    pool = Pool(FakeConnector(), max_size=3, min_size=1)
    pool.release(pool.acquire())

    def last() -> None:
        pool.release(pool.acquire())
        pool.close()

    atexit.register(last)


async def _tasks() -> None:
    pool = AsyncPool(AsyncFakeConnector(), max_size=6, min_size=2, idle_timeout=0.02, keepalive=0.01)
    held = [await pool.acquire() for _ in range(3)]
    await pool.release(held.pop())
    kept.extend([pool, held])


def on_asyncio() -> None:
    asyncio.run(_tasks())


def on_trio() -> None:
    import trio

    trio.run(_tasks)


def adapter(name: str) -> Callable[[], None]:
    def work() -> None:
        subject = make(name, sys.argv[2])
        subject.use()
        kept.extend([subject, subject.hold()])
        subject.use()

    return work


async def _redis() -> None:
    from poolkit_adapters.redis import AsyncPoolkitConnectionPool

    pool = AsyncPoolkitConnectionPool.from_url(sys.argv[2], max_connections=3)
    first, second = await pool.get_connection(), await pool.get_connection()
    await pool.release(first)
    kept.extend([pool, second])


async def _httpx() -> None:
    import httpx

    from poolkit_adapters.httpx import AsyncPoolkitTransport

    transport = AsyncPoolkitTransport()
    client = httpx.AsyncClient(transport=transport, base_url=sys.argv[2], trust_env=False)
    await client.get("/")
    kept.extend([client, transport])


async def _psycopg() -> None:
    from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool

    pool: Any = AsyncPoolkitConnectionPool(sys.argv[2], min_size=1, max_size=3, open=False)
    await pool.open(wait=True)
    async with pool.connection() as connection:
        await connection.execute("select 1")
    kept.extend([pool, await pool.getconn()])


async def _sqlalchemy() -> None:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

    url = sys.argv[2].replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(url, poolclass=AsyncPoolkitPool)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
    kept.append(engine)


CASES: dict[str, tuple[Callable[[], None], str]] = {
    "threads": (threads, ""),
    "dropped": (dropped, ""),
    "closing": (closing, ""),
    "asyncio": (on_asyncio, ""),
    "trio": (on_trio, ""),
    **{name: (adapter(name), server) for name, (_, server) in SYNC.items()},
    "redis-async": (lambda: asyncio.run(_redis()), "redis"),
    "httpx-async": (lambda: asyncio.run(_httpx()), "http"),
    "psycopg-async": (lambda: asyncio.run(_psycopg()), "postgres"),
    "sqlalchemy-async": (lambda: asyncio.run(_sqlalchemy()), "postgres"),
}


def main() -> None:
    case = CASES[sys.argv[1]][0]
    case()
    if os.environ.get("POOLKIT_SKIP"):
        os._exit(0)  # the same work, without the end of the interpreter
    sys.stdout.write("last line\n")


if __name__ == "__main__":
    main()
