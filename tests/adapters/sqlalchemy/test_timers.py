"""The runtime of an asynchronous engine's pool has one timer in its loop, however often the pool asks."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from poolkit_adapters.sqlalchemy._greenlets import GreenletRuntime


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def run_due(self) -> None:
        self.calls += 1


def timers(loop: Any) -> int:
    """Return the timers that will run."""
    return sum(not handle.cancelled() for handle in loop._scheduled)


def test_however_often_a_pool_asks_there_is_one_timer() -> None:
    async def main() -> None:
        loop, runtime, pool = asyncio.get_running_loop(), GreenletRuntime(), Counting()
        for number in range(1000):
            runtime.schedule(pool, 600.0 + number)
        assert timers(loop) == 1
        runtime.schedule(pool, 0.01)
        assert timers(loop) == 1
        while not pool.calls:
            await asyncio.sleep(0.01)
        assert pool.calls == 1
        assert timers(loop) == 0
        runtime.schedule(pool, 600.0)
        runtime.schedule(pool, float("inf"))
        assert timers(loop) == 0, "left after close()"

    asyncio.run(main())


def test_from_another_thread_as_well() -> None:
    async def main() -> None:
        loop, runtime, pool = asyncio.get_running_loop(), GreenletRuntime(), Counting()
        runtime.schedule(pool, 700.0)
        await asyncio.to_thread(lambda: [runtime.schedule(pool, 600.0) for _ in range(100)])
        await asyncio.sleep(0)
        assert timers(loop) == 1

    asyncio.run(main())


def test_a_pool_that_is_forgotten_leaves_no_timer() -> None:
    async def main() -> None:
        loop, runtime, pool = asyncio.get_running_loop(), GreenletRuntime(), Counting()
        runtime.schedule(pool, 600.0)
        del pool
        gc.collect()
        await asyncio.sleep(0)
        assert timers(loop) == 0

    asyncio.run(main())
