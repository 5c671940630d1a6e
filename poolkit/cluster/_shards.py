"""Shards: pools or clusters, each of which holds a part of the keys."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from typing import Any, TypeVar

from ..policies.routing import Router
from ..runtimes.threads import ThreadRuntime
from ._scatter import Scattered, ShardRouting
from ._shell import DEFAULT, Default

__all__ = ("AsyncShardedCluster", "ShardedCluster")

R = TypeVar("R")

_THREADS = ThreadRuntime()

_GRACE = 0.05
"""Seconds to wait for cancelled tasks to return their connections. Usually all do, and none is in use afterwards."""

_late: set[Any] = set()
"""Cancelled tasks that have not ended. An event loop has only weak references to tasks, so they are kept here."""


class ShardedCluster(ShardRouting):
    """Shards for threads. Thread-safe.

    Args:
        shards: by name, a :class:`~poolkit.Pool` or a :class:`~poolkit.cluster.Cluster` (a primary and its replicas,
            for example), or another object that represents a shard (a client, an engine). An object without ``lease``
            is passed to scattered functions as it is. Answers come in the order of this dict; "jump" depends on it.
        router: "ring" (consistent hashing), "rendezvous", "jump", or a :class:`~poolkit.cluster.Router` (ranges, a
            table, a function). All its names must be shards.
        name: for messages.

    Raises :class:`~poolkit.ConfigError` for an invalid argument.
    """

    def __init__(self, shards: dict[str, Any], router: str | Router = "ring", *, name: str = "shards") -> None:
        super().__init__(shards, router, name)

    def lease(self, key: Any, timeout: float | Default | None = DEFAULT, **options: Any) -> Any:
        """Lease a connection of the shard of ``key``; ``options`` (``role``) are passed to the shard's ``lease``.

        Raises UsageError if the shard has no ``lease``.
        """
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
        """Call ``function(connection, keys)`` at once on each shard that has any of ``keys``; None: on every shard.

        Each call runs in its own thread and in a copy of the caller's context, with a connection of its shard and the
        keys that belong there (None if all shards are asked). One deadline applies to all: a shard that does not answer
        within ``timeout`` seconds, or until the end of a :class:`poolkit.deadline`, has failed. Its thread ends only
        when its statement ends, so set a statement timeout as well. Raises
        :class:`~poolkit.cluster.ScatterFailed` if a shard failed; with ``partial=True`` the errors are in ``errors`` of
        the result instead.
        """
        asked, timeout = self._asked(keys, timeout)
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
            _THREADS.spawn(copy_context().run, work, shard, part)
        while len(answers) + len(errors) < len(asked):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            parker.wait(left)
        with mutex:
            over = True
        return self._result(asked, answers, errors, timeout, partial)

    def close(self, timeout: float | None = 5.0) -> None:
        """Close every pool and cluster within ``timeout`` seconds."""
        for shard, left in self._ending(timeout):
            shard.close(left)

    def __enter__(self) -> ShardedCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncShardedCluster(ShardRouting):
    """Like :class:`ShardedCluster`, for asynchronous pools or clusters, on asyncio and trio."""

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
        """Call ``await function(connection, keys)`` on each shard, each in its own task.

        The tasks are cancelled after ``timeout`` seconds, at the end of a :class:`poolkit.deadline`, or when the caller
        is cancelled. On asyncio, a task whose
        driver keeps waiting for the server ends in the background; trio waits for it. Arguments and errors as
        :meth:`ShardedCluster.scatter`.
        """
        asked, timeout = self._asked(keys, timeout)
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
        """Close every pool and cluster within ``timeout`` seconds."""
        for shard, left in self._ending(timeout):
            await shard.close(left)

    async def __aenter__(self) -> AsyncShardedCluster:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def _all(jobs: list[tuple[Any, ...]], timeout: float | None) -> None:
    """Run the jobs concurrently; return when all have ended, or soon after the timeout or a cancellation."""
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
