"""The defects R1, R4, R6, R12, R15 and R16 of other pools, on SQLAlchemy's own pools and on ours, in one run.

    python bench/repro_sqlalchemy.py [R1 R4 ...]

Each line says what a user would notice. Needs the extras ``demo`` and ``bench`` (a PostgreSQL is started).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import sqlalchemy.pool as stock
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

SYNC: tuple[Any, ...] = (stock.QueuePool, PoolkitPool)
ASYNC: tuple[Any, ...] = (stock.AsyncAdaptedQueuePool, AsyncPoolkitPool)
PID = text("select pg_backend_pid()")


class Connection:
    def rollback(self) -> None: ...
    def close(self) -> None: ...


def say(what: str, pool: Any, result: str) -> None:
    print(f"{what:4} {pool.__name__:24} {result}", flush=True)


def r1(server: PostgresServer) -> None:
    """40 threads, 4 connections, 5 ms each, re-acquired at once, for 4 s."""
    for poolclass in SYNC:
        pool = poolclass(Connection, pool_size=4, max_overflow=0)
        counts, worst = [0] * 40, [0.0] * 40
        end = time.monotonic() + 4

        def work(number: int, pool: Any = pool, counts: Any = counts, worst: Any = worst, end: float = end) -> None:
            while (begun := time.monotonic()) < end:
                connection = pool.connect()
                worst[number] = max(worst[number], time.monotonic() - begun)
                time.sleep(0.005)
                connection.close()
                counts[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        say("R1", poolclass, f"acquires per thread {min(counts)} to {max(counts)}, worst wait {max(worst):.2f} s")


def r4(server: PostgresServer) -> None:
    """100 tasks, 10 connections, 20 ms each, re-acquired at once, for 4 s."""
    for poolclass in ASYNC:
        pool = poolclass(Connection, pool_size=10, max_overflow=0)
        counts, worst = [0] * 100, [0.0] * 100

        async def main(pool: Any = pool, counts: Any = counts, worst: Any = worst) -> None:
            end = time.monotonic() + 4

            async def work(number: int) -> None:
                while (begun := time.monotonic()) < end:
                    connection = await greenlet_spawn(pool.connect)
                    worst[number] = max(worst[number], time.monotonic() - begun)
                    await asyncio.sleep(0.02)
                    connection.close()
                    counts[number] += 1

            await asyncio.gather(*map(work, range(100)))

        asyncio.run(main())
        say("R4", poolclass, f"acquires per task {min(counts)} to {max(counts)}, worst wait {max(worst):.2f} s")


def r6(server: PostgresServer) -> None:
    """Thread A's connect fails after 0.4 s while B waits for the slot, for 5 s at most."""
    for poolclass in SYNC:

        def creator() -> Connection:
            if threading.current_thread().name == "A":
                time.sleep(0.4)
                raise RuntimeError("refused")
            return Connection()

        pool = poolclass(creator, pool_size=1, max_overflow=0, timeout=5)
        waited: list[float] = []

        def fail(pool: Any = pool) -> None:
            try:
                pool.connect()
            except RuntimeError:
                pass

        def wait(pool: Any = pool, waited: Any = waited) -> None:
            begun = time.monotonic()
            try:
                pool.connect().close()
            finally:
                waited.append(time.monotonic() - begun)

        a, b = threading.Thread(target=fail, name="A"), threading.Thread(target=wait)
        a.start()
        time.sleep(0.1)
        b.start()
        a.join()
        b.join()
        say("R6", poolclass, f"B waited {waited[0]:.2f} s for a slot that was free after 0.3 s")


def r12(server: PostgresServer) -> None:
    """Price of the ping, and errors after the server killed 5 idle backends."""
    for poolclass, settings in (
        (SYNC[0], {}),
        (SYNC[0], {"pool_pre_ping": True}),
        (SYNC[1], {}),
        (SYNC[1], {"pool_pre_ping": True}),
        (SYNC[1], {"pool_pre_ping": True, "check_after_idle": 0.2}),
    ):
        engine = create_engine(
            server.sqlalchemy_url("psycopg"), poolclass=poolclass, connect_args={"application_name": "r12"}, **settings
        )
        held = [engine.connect() for _ in range(5)]
        for connection in held:
            connection.execute(PID)
            connection.close()
        begun, count = time.monotonic(), 0
        while time.monotonic() - begun < 1:
            with engine.connect() as connection:
                connection.execute(text("select 1"))
            count += 1
        time.sleep(0.25)
        server.kill_backends("r12")
        errors = 0
        for _ in range(5):
            try:
                with engine.connect() as connection:
                    connection.execute(text("select 1"))
            except Exception:
                errors += 1
        engine.dispose()
        say("R12", poolclass, f"{settings or 'no ping'}: {count}/s, {errors} errors of 5 after the kill")


def r15(server: PostgresServer) -> None:
    """20 statements of 3 s, each cancelled after 50 ms by anyio; a pool of 2."""
    for driver in ("asyncpg", "psycopg_async"):
        for poolclass in ASYNC:

            async def main(poolclass: Any = poolclass, driver: str = driver) -> int:
                engine = create_async_engine(
                    server.sqlalchemy_url(driver), poolclass=poolclass, pool_size=2, max_overflow=0
                )
                peak, over = 0, threading.Event()

                def watch() -> None:
                    nonlocal peak
                    with server.connect() as admin:
                        while not over.is_set():
                            row = admin.execute(
                                "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
                            ).fetchone()
                            peak = max(peak, row[0] if row else 0)
                            time.sleep(0.01)

                watcher = threading.Thread(target=watch)
                watcher.start()
                for _ in range(20):
                    with anyio.move_on_after(0.05):
                        async with engine.connect() as connection:
                            await connection.execute(text("select pg_sleep(3)"))
                over.set()
                watcher.join()
                await engine.dispose()
                return peak

            say("R15", poolclass, f"{driver}: {asyncio.run(main())} statements at work on the server at once")
            time.sleep(3.2)  # until the leftovers are over


def r16(server: PostgresServer) -> None:
    """fork() with one idle connection; the child queries and disposes."""
    for poolclass in SYNC:
        engine = create_engine(server.sqlalchemy_url("psycopg"), poolclass=poolclass)
        with engine.connect() as connection:
            mine = connection.scalar(PID)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with engine.connect() as connection:
                os.write(write, b"1" if connection.scalar(PID) == mine else b"0")
            engine.dispose()
            os._exit(0)
        os.waitpid(child, 0)
        shared = os.read(read, 1) == b"1"
        try:
            with engine.connect() as connection:
                alive = str(connection.scalar(PID) == mine)
        except Exception as error:
            alive = f"no: {type(error).__name__}"
        engine.dispose()
        say("R16", poolclass, f"child used the parent's backend: {shared}; parent's connection lives on: {alive}")


def cycle(server: PostgresServer) -> None:
    """connect() + close() of a driver that does nothing, microseconds, best of 40 x 2000."""
    import timeit

    for poolclass in (*SYNC, *ASYNC):
        pool = poolclass(Connection)

        def pair(connect: Callable[[], Any] = pool.connect) -> None:
            connect().close()

        best = min(timeit.repeat(pair, number=2000, repeat=40)) / 2000
        say("cost", poolclass, f"{best * 1e6:.2f} us")


ALL: dict[str, Callable[[PostgresServer], None]] = {
    "R1": r1, "R4": r4, "R6": r6, "R12": r12, "R15": r15, "R16": r16, "cost": cycle,
}  # fmt: skip


def main() -> None:
    with PostgresServer(dbname="poolkit") as server:
        for name in sys.argv[1:] or ALL:
            ALL[name](server)


if __name__ == "__main__":
    main()
