"""Shards: pools or clusters of which each holds its part of the keys."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from ..policies.routing import Router
from ..runtimes.threads import ThreadRuntime
from ._scatter import Scattered, ShardRouting
from ._shell import DEFAULT, Default

__all__ = ("AsyncShardedCluster", "ShardedCluster")

R = TypeVar("R")

_THREADS = ThreadRuntime()

_GRACE = 0.05
"""Seconds in which cancelled tasks give their connections back, usually: then the caller finds nothing in use."""

_late: set[Any] = set()
"""Tasks that were cancelled and have not ended: an event loop alone does not keep them from being collected."""


class ShardedCluster(ShardRouting):
    """Shards for threads. ``shards``: a :class:`~poolkit.Pool` or :class:`~poolkit.cluster.Cluster` (a primary and its
    replicas, say) for each name; or anything else that stands for a shard (a client, an engine), which then has no
    ``lease`` and is passed to scattered functions as it is.

    ``router``: "ring" (consistent hashing), "rendezvous", "jump", or a :class:`~poolkit.cluster.Router` (ranges, a
    table, a function). Its names must be shards. The order of ``shards`` is the order of answers, and matters to
    "jump". Thread-safe. Raises :class:`~poolkit.ConfigError` for what cannot be meant.
    """

    def __init__(self, shards: dict[str, Any], router: str | Router = "ring", *, name: str = "shards") -> None:
        super().__init__(shards, router, name)

    def lease(self, key: Any, timeout: float | Default | None = DEFAULT, **options: Any) -> Any:
        """A lease on the shard of ``key``; ``options`` (``role``) go to the shard's own ``lease``."""
        shard = self._leasing(key)
        return shard.lease(**options) if isinstance(timeout, Default) else shard.lease(timeout, **options)

    def scatter(
        self,
        function: Callable[[Any, Any], R],
        keys: Iterable[Any] | None = None,
        *,
        timeout: float | None = 30.0,
        partial: bool = False,
        **options: Any,
    ) -> Scattered[R]:
        """``function(connection, keys)`` on each shard that has any of ``keys``, all at once; None: on every shard.

        Each call gets a connection of its shard and those keys that belong there (None if all shards are asked), in a
        thread of its own. One deadline for all: after ``timeout`` seconds the shards that have not answered count as
        failed (their threads end when their statements do, so give those a limit, too). Raises
        :class:`~poolkit.cluster.ScatterFailed` if any failed; with ``partial=True`` they stand in ``errors``.
        """
        asked = self._asked(keys)
        answers: dict[str, R] = {}
        errors: dict[str, BaseException] = {}
        deadline = None if timeout is None else time.monotonic() + timeout
        parker = _THREADS.parker()
        mutex = threading.Lock()
        over = False

        def work(shard: str, part: Any) -> None:
            answer: Any = None
            error: BaseException | None = None
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if hasattr(self.shards[shard], "lease"):
                    with self.shards[shard].lease(left, **options) as connection:
                        answer = function(connection, part)
                else:
                    answer = function(self.shards[shard], part)
            except BaseException as failure:  # noqa: BLE001  handed to the caller
                error = failure
            with mutex:
                if not over:
                    if error is None:
                        answers[shard] = answer
                    else:
                        errors[shard] = error
            parker.wake()

        for shard, part in asked.items():
            _THREADS.spawn(work, shard, part)
        while len(answers) + len(errors) < len(asked):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            parker.wait(left)
        with mutex:
            over = True
        return self._result(asked, answers, errors, timeout, partial)

    def close(self, timeout: float | None = 5.0) -> None:
        """Close every pool and cluster."""
        for shard in self.shards.values():
            if hasattr(shard, "lease"):
                shard.close(timeout)

    def __enter__(self) -> ShardedCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncShardedCluster(ShardRouting):
    """As :class:`ShardedCluster`, over asynchronous pools or clusters, on asyncio and trio."""

    def __init__(self, shards: dict[str, Any], router: str | Router = "ring", *, name: str = "shards") -> None:
        super().__init__(shards, router, name)

    def lease(self, key: Any, timeout: float | Default | None = DEFAULT, **options: Any) -> Any:
        """``async with sharded.lease(key) as connection``. See :meth:`ShardedCluster.lease`."""
        shard = self._leasing(key)
        return shard.lease(**options) if isinstance(timeout, Default) else shard.lease(timeout, **options)

    async def scatter(
        self,
        function: Callable[[Any, Any], Awaitable[R]],
        keys: Iterable[Any] | None = None,
        *,
        timeout: float | None = 30.0,
        partial: bool = False,
        **options: Any,
    ) -> Scattered[R]:
        """``await function(connection, keys)`` on each shard, in tasks of their own, which are cancelled when the
        ``timeout`` is over or the caller is cancelled. On asyncio a task that does not end at once, because its driver
        waits for the server even so, ends in the background (trio has no such tasks). See
        :meth:`ShardedCluster.scatter`.
        """
        asked = self._asked(keys)
        answers: dict[str, R] = {}
        errors: dict[str, BaseException] = {}

        async def work(shard: str, part: Any) -> None:
            try:
                if hasattr(self.shards[shard], "lease"):
                    async with self.shards[shard].lease(timeout, **options) as connection:
                        answers[shard] = await function(connection, part)
                else:
                    answers[shard] = await function(self.shards[shard], part)
            except Exception as error:  # noqa: BLE001  handed to the caller
                errors[shard] = error

        await _all([(work, shard, part) for shard, part in asked.items()], timeout)
        return self._result(asked, answers, errors, timeout, partial)

    async def close(self, timeout: float | None = 5.0) -> None:
        """Close every pool and cluster."""
        for shard in self.shards.values():
            if hasattr(shard, "lease"):
                await shard.close(timeout)

    async def __aenter__(self) -> AsyncShardedCluster:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def _all(jobs: list[tuple[Any, ...]], timeout: float | None) -> None:
    """Run the jobs at once; return when all have ended, or soon after time is up or this is cancelled."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        import trio

        with trio.move_on_after(float("inf") if timeout is None else timeout):
            async with trio.open_nursery() as nursery:
                for function, *args in jobs:
                    nursery.start_soon(function, *args)
        return
    tasks = [asyncio.ensure_future(function(*args)) for function, *args in jobs]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
    finally:
        for task in tasks:
            if task.cancel():
                _late.add(task)
                task.add_done_callback(_late.discard)
        if _late.intersection(tasks):
            await asyncio.wait(tasks, timeout=_GRACE)
