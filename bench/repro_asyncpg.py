"""Reported faults of asyncpg's pool, on its own pool and on poolkit's, side by side.

``python bench/repro_asyncpg.py`` starts a PostgreSQL of its own and takes about half a minute.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import asyncpg

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.asyncpg import create_pool

POOLS: dict[str, Callable[..., Any]] = {"asyncpg": asyncpg.create_pool, "poolkit": create_pool}
PATIENCE = 3.0


async def identity(make: Callable[..., Any]) -> str:
    """The next user runs under the role of the last one, and sees its temporary tables (RESET ALL leaves both)."""
    async with make(min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.execute("set role pg_monitor")
        role = await pool.fetchval("select current_user::text")
    async with make(min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.execute("create temp table secrets as select 42 as number")
        seen = await pool.fetchval("select to_regclass('pg_temp.secrets') is not null")
    return f"next user is {role}, sees the temporary table: {seen}"


async def forgotten(make: Callable[..., Any]) -> str:
    """A connection that is never released (#290, #299): the next caller, and close()."""
    pool = await make(min_size=1, max_size=1)
    connection: Any = await pool.acquire()
    await connection.fetchval("select 1")
    del connection
    gc.collect()
    try:
        await asyncio.wait_for(pool.fetchval("select 1"), PATIENCE)
        served = "is served"
    except asyncio.TimeoutError:
        served = f"waits for more than {PATIENCE:g} s"
    try:
        await asyncio.wait_for(pool.close(), PATIENCE)
        return f"the next caller {served}; close() ends"
    except asyncio.TimeoutError:
        return f"the next caller {served}; close() does not end"


async def silent_cancel(make: Callable[..., Any], server: PostgresServer) -> str:
    """A cancelled statement while cancel requests get no answer (#431): release() hangs."""
    from tests.faults.proxy import FaultProxy

    proxy = FaultProxy("127.0.0.1", server.port).start()
    dsn = server.url.replace(f":{server.port}", f":{proxy.port}")
    pool = await make(dsn=dsn, min_size=1, max_size=1)
    try:
        connection = await pool.acquire()
        task = asyncio.ensure_future(connection.fetchval("select pg_sleep(600)"))
        await asyncio.sleep(0.2)
        proxy.swallow = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        begun = time.monotonic()
        try:
            await asyncio.wait_for(asyncio.shield(pool.release(connection)), PATIENCE)
        except asyncio.TimeoutError:
            spent = time.monotonic() - begun
            return (
                f"release() hangs (more than {PATIENCE:g} s)"
                if spent >= PATIENCE
                else f"release() ends in {spent:.1f} s"
            )
        return f"release() ends in {time.monotonic() - begun:.1f} s"
    finally:
        proxy.swallow = False
        pool.terminate()
        await asyncio.sleep(0.1)
        proxy.stop()


async def endless_wait(make: Callable[..., Any]) -> str:
    """A full pool and callers without a timeout (hushh-research#5871): how many wait, and until when."""
    limits = {"max_waiting": 5, "acquire_timeout": 1.0} if make.__name__ == "poolkit" else {}
    pool = await make(min_size=1, max_size=1, **limits)
    connection = await pool.acquire()
    tasks = [asyncio.ensure_future(pool.acquire().__aenter__()) for _ in range(20)]
    await asyncio.sleep(0.1)
    waiting = sum(not task.done() for task in tasks)
    await asyncio.wait(tasks, timeout=PATIENCE)
    still = sum(not task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await pool.release(connection)
    pool.terminate()
    return f"{waiting} of 20 wait, {still} of them after {PATIENCE:g} s"


async def cost(make: Callable[..., Any]) -> str:
    """Acquire and release, without a statement and with a read."""
    async with make(min_size=1, max_size=1) as pool:
        found = []
        for text in (None, "select 1"):
            best = float("inf")
            for _ in range(3):
                begun = time.process_time()
                for _ in range(500):
                    async with pool.acquire() as connection:
                        if text:
                            await connection.fetchval(text)
                best = min(best, time.process_time() - begun)
            found.append(best / 500 * 1e6)
    return f"{found[0]:.0f} us without a statement, {found[1]:.0f} us with SELECT 1 (CPU of the client)"


def main() -> None:
    """Run everything on both pools and print one line for each."""
    warnings.simplefilter("ignore", ResourceWarning)
    with PostgresServer() as server:
        for scenario in (identity, forgotten, silent_cancel, endless_wait, cost):
            print(f"{scenario.__name__}: {(scenario.__doc__ or '').strip()}")
            for name, pool in POOLS.items():

                def make(_pool: Callable[..., Any] = pool, **arguments: Any) -> Any:
                    return _pool(arguments.pop("dsn", server.url), **arguments)

                make.__name__ = name
                more = (server,) if scenario is silent_cancel else ()
                print(f"  {name:<8} {asyncio.run(scenario(make, *more))}", flush=True)
    os._exit(0)  # a hanging release() would keep its loop


if __name__ == "__main__":
    main()
