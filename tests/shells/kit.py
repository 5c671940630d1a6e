"""One scenario for threads, asyncio and trio: a pool, its connector without a server, and the scenario's helpers.

A scenario is a coroutine. On threads each word of it runs in a worker thread of its own, so that waits overlap
just as tasks do; what a scenario says of ``Pool`` it says of ``AsyncPool``.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from poolkit import AsyncLease, AsyncPool, Lease, Pool, PoolConfigWarning, PoolStats
from poolkit.testing import AsyncFakeConnector, FakeConnection, FakeConnector
from tests.support.waiting import PATIENCE, until_async

AnyLease = Lease[FakeConnection] | AsyncLease[FakeConnection]
AnyPool = Pool[FakeConnection] | AsyncPool[FakeConnection]

ASYNC = pytest.mark.parametrize("flavour", ["asyncio", "trio"], indirect=True)
"""For scenarios about tasks only (cancellation)."""
THREADS = pytest.mark.parametrize("flavour", ["threads"], indirect=True)
"""For scenarios about threads only."""

NO_DEADLINE = 3600.0
"""A timeout that never expires, for a caller that an event must serve. The test's own limit is shorter."""


class Rig:
    """A pool under test. At the end of its block it waits for the pool, checks the invariants and closes everything."""

    def __init__(self, flavour: str, connector: Any = None, *, features: dict[str, Any] | None = None, **kwargs: Any):
        self.threads = flavour == "threads"
        kind = FakeConnector if self.threads else AsyncFakeConnector
        self.connector: FakeConnector | AsyncFakeConnector = connector or kind(**(features or {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PoolConfigWarning)  # tests use unusual settings on purpose
            self.pool: Any = (Pool if self.threads else AsyncPool)(self.connector, **kwargs)
        self.limiter = anyio.CapacityLimiter(2000)

    async def __aenter__(self) -> Rig:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connector.free_all()
        if error is not None:
            return
        await self.until(lambda: not self._busy(), "the pool is quiet")
        self.pool.check_books()
        await self.close(timeout=PATIENCE)
        assert self.pool.closed
        stats: PoolStats = self.pool.stats()
        if not stats.leases:
            await self.until(lambda: self.connector.live == 0, "every connection is closed")
        self.pool.check_books()

    def _busy(self) -> bool:
        stats = self.pool.stats()
        return bool(stats.waiting or stats.checking or stats.resetting or stats.closing or self.connector.dialling)

    # -- the words of a scenario ------------------------------------------------------------------------------

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``function(...)`` as a caller of this pool would: in a thread of its own, or in this task."""
        if self.threads:
            answers: list[Any] = []  # without the GIL a thread keeps what it returns until its next call
            await anyio.to_thread.run_sync(lambda: answers.append(function(*args, **kwargs)), limiter=self.limiter)
            return answers.pop()
        result = function(*args, **kwargs)
        return await result if isinstance(result, Awaitable) else result

    async def lease(self, timeout: Any = None, **kwargs: Any) -> Any:
        """Return a lease. ``timeout=None`` means PATIENCE."""
        return await self.call(self.pool.lease, PATIENCE if timeout is None else timeout, **kwargs)

    async def give(self, lease: AnyLease, **kwargs: Any) -> None:
        """Close a lease."""
        await self.call(lease.close, **kwargs)

    async def acquire(self, timeout: Any = None) -> Any:
        return await self.call(self.pool.acquire, PATIENCE if timeout is None else timeout)

    async def release(self, connection: FakeConnection, **kwargs: Any) -> None:
        await self.call(self.pool.release, connection, **kwargs)

    async def close(self, **kwargs: Any) -> None:
        await self.call(self.pool.close, **kwargs)

    async def drain(self, *args: Any) -> Any:
        return await self.call(self.pool.drain, *args)

    async def warm_up(self, *args: Any, **kwargs: Any) -> None:
        await self.call(self.pool.warm_up, *args, **kwargs)

    async def fill(self, count: int) -> list[FakeConnection]:
        """Open ``count`` connections and return them. They are idle, the least recently used first."""
        leases = [await self.lease() for _ in range(count)]
        connections = [lease.connection for lease in leases]
        for lease in leases:
            await self.give(lease)
        await self.until(lambda: self.stats.idle == count, f"{count} are idle")
        return connections

    @property
    def stats(self) -> PoolStats:
        stats: PoolStats = self.pool.stats()
        parts = (stats.idle, stats.in_use, stats.connecting, stats.checking, stats.resetting, stats.closing)
        assert sum(parts) == stats.size
        return stats

    async def until(self, condition: Callable[[], object], what: str = "it happens") -> None:
        """Wait for something that must happen soon."""
        await until_async(condition, what, self.pool.stats)

    async def queued(self, count: int) -> None:
        """Wait until ``count`` callers wait."""
        await self.until(lambda: self.stats.waiting == count, f"{count} wait")

    async def tick(self) -> None:
        """Run the housekeeping now."""
        self.pool.run_due()
        await self.until(lambda: not self.stats.checking and not self.stats.closing, "housekeeping is over")


_ENDS = itertools.count(1)


class Outcome:
    """The result of one caller, which :func:`attempt` fills in."""

    def __init__(self) -> None:
        self.lease: Any = None
        self.error: BaseException | None = None
        self.at = 0  # position in the order in which callers ended

    @property
    def done(self) -> bool:
        return self.lease is not None or self.error is not None


async def attempt(rig: Rig, outcome: Outcome, timeout: Any = None) -> None:
    """Ask for a lease and record the result."""
    try:
        outcome.lease = await rig.lease(timeout)
    except Exception as error:
        outcome.error = error
    outcome.at = next(_ENDS)


def ask(group: anyio.abc.TaskGroup, rig: Rig, timeout: Any = None) -> Outcome:
    """Start another caller, which asks now."""
    outcome = Outcome()
    group.start_soon(attempt, rig, outcome, timeout)
    return outcome
