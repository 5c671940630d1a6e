"""The numbers of threads, tasks, timers, descriptors and pools do not grow."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, exc, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import BackoffConfig, Pool
from poolkit.testing.servers import free_port
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

pytestmark = pytest.mark.timeout(240)

KEPT: dict[str, Any] = {
    "pool_size": 2, "max_overflow": 0, "idle_timeout": 60, "max_lifetime": 600, "keepalive": 30, "check_timeout": 1,
    "backoff": BackoffConfig(base=0.001, cap=0.001),  # a connect after a failed one waits
}  # fmt: skip


SLACK = 8
"""What background threads and tasks may hold during a count. A leak would exceed it in hundreds of rounds."""


def counts() -> dict[str, int]:
    gc.collect()
    found = {
        "threads": threading.active_count(),
        "pools": sum(issubclass(type(one), Pool) for one in gc.get_objects()),
    }
    if sys.platform == "linux":
        found["descriptors"] = len(os.listdir("/proc/self/fd"))
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        return found
    found["tasks"] = len(asyncio.all_tasks())
    found["timers"] = sum(not timer.cancelled() for timer in loop._scheduled)
    return found


def assert_flat(round_: Callable[[], object], times: int) -> None:
    for _ in range(10):
        round_()
    before = counts()
    for _ in range(times):
        round_()
    after = counts()
    # poolkit's background threads are shared by all pools, kept for a while, and no more than were busy at once
    after["threads"] = sum(not thread.name.startswith("poolkit-") for thread in threading.enumerate())
    assert all(after[name] <= before[name] + SLACK for name in before), f"{before} became {after}"
    assert sum(thread.name.startswith("poolkit-") for thread in threading.enumerate()) < 20


async def assert_flat_async(round_: Callable[[], Any], times: int) -> None:
    for _ in range(10):
        await round_()
    before = counts()
    for _ in range(times):
        await round_()
    for _ in range(5):
        await asyncio.sleep(0)
    after = counts()
    # timers of pools that were disposed of: those that fall due are the runtime's, one for each pool at most
    flat = [name for name in before if name != "timers"]
    assert all(after[name] <= before[name] + SLACK for name in flat), f"{before} became {after}"


def test_an_engine_that_is_disposed_of_1000_times(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", poolclass=PoolkitPool, **KEPT)

    def round_() -> None:
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        engine.dispose()

    assert_flat(round_, 1000)


def test_an_async_engine_that_is_disposed_of_300_times(tmp_path: Path) -> None:
    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}", poolclass=AsyncPoolkitPool, **KEPT)

        async def round_() -> None:
            async with engine.connect() as connection:
                await connection.execute(text("select 1"))
            await engine.dispose()

        await assert_flat_async(round_, 300)

    asyncio.run(main())


def test_connects_that_fail() -> None:
    engine = create_engine(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none", poolclass=PoolkitPool, **KEPT)

    def round_() -> None:
        with pytest.raises(exc.OperationalError):
            engine.connect()

    assert_flat(round_, 200)
    engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_an_async_engine_s_connects_that_fail(driver: str) -> None:
    async def main() -> None:
        engine = create_async_engine(
            f"postgresql+{driver}://nobody@127.0.0.1:{free_port()}/none", poolclass=AsyncPoolkitPool, **KEPT
        )

        async def round_() -> None:
            with pytest.raises((exc.OperationalError, OSError)):
                async with engine.connect():
                    pass

        await assert_flat_async(round_, 200)
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_an_async_engine_s_connects_that_are_cancelled(driver: str) -> None:
    async def main() -> None:
        engine = create_async_engine(
            f"postgresql+{driver}://nobody@127.0.0.1:{free_port()}/none", poolclass=AsyncPoolkitPool, **KEPT
        )

        async def use() -> None:
            async with engine.connect():
                pass

        async def round_() -> None:
            task = asyncio.get_running_loop().create_task(use())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await engine.dispose()

        await assert_flat_async(round_, 100)

    asyncio.run(main())
