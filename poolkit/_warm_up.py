"""``warm_up()``: open connections before they are needed, in threads or in tasks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ._core import commands
from ._deadline import current
from ._driver import refuse_closed
from ._numbers import is_whole
from ._slow_path import DEFAULT, deadline_of
from .errors import ConfigError, ConnectFailed, describe
from .policies.retire import NEVER

if TYPE_CHECKING:
    from ._async import AsyncPool
    from ._core.slots import Slot
    from ._pool_base import PoolBase
    from ._threads import Pool

__all__ = ("warm_up_in_tasks", "warm_up_in_threads")


def warm_up_in_threads(pool: Pool[Any], count: int | None, timeout: float | None) -> None:
    """See :meth:`poolkit.Pool.warm_up`."""
    count = _wanted(pool, count)
    slots = pool._gate.step(commands.reserve, pool._core, count, pool._clock())
    if not slots:
        return
    pending, errors = list(reversed(slots)), list[BaseException]()
    left = set(slots)  # whose connects have not ended
    parker = pool._runtime.parker()

    def work() -> None:
        goes_on = True
        while goes_on:
            try:
                slot = pending.pop()
            except IndexError:
                return
            goes_on = end(slot, pool._driver.connect_job(slot, on_give_up=give_up))

    def give_up(slot: Slot, error: BaseException | None) -> None:
        if end(slot, error):
            pool._runtime.spawn(work)  # in place of the thread that hangs

    def end(slot: Slot, error: BaseException | None) -> bool:
        """The connect has ended; False if that is known, because it was given up."""
        with counter:
            if slot not in left:
                return False
            left.remove(slot)
            if error is not None:
                errors.append(error)
        parker.wake()
        return True

    counter = threading.Lock()
    for _ in range(min(len(slots), pool._core.max_connecting)):
        pool._runtime.spawn(work)
    driver = pool._driver
    limit = driver.connect_limit()
    bounded = driver.operations.bound(threading.get_ident(), limit) is not None or limit is not None
    deadline = _deadline(pool, timeout, bounded=bounded)
    while left and (rest := deadline - pool._clock()) > 0:
        parker.wait(None if deadline == NEVER else rest)
    if errors or left:
        raise _failure(pool, len(slots), errors, len(left))


async def warm_up_in_tasks(pool: AsyncPool[Any], count: int | None, timeout: float | None) -> None:
    """See :meth:`poolkit.AsyncPool.warm_up`."""
    from ._binding import bind_loop  # imported here, because it imports asyncio, which a pool of threads does not need

    count = _wanted(pool, count)
    runtime = bind_loop(pool)
    slots = pool._gate.step(commands.reserve, pool._core, count, pool._clock())
    if not slots:
        return
    pending, errors = list(reversed(slots)), list[BaseException]()
    left = len(slots)
    parker = runtime.parker()

    async def work() -> None:
        nonlocal left
        while pending:
            error: BaseException | None = None
            try:
                error = await pool._driver.connect_job(pending.pop())
            except BaseException as interrupted:
                error = interrupted
                raise
            finally:
                left -= 1
                if error is not None:
                    errors.append(error)
                parker.wake()

    for _ in range(min(len(slots), pool._core.max_connecting)):
        runtime.spawn(work)
    deadline = _deadline(pool, timeout, bounded=pool._config.connect_timeout is not None)
    while left and (rest := deadline - pool._clock()) > 0:
        await parker.wait(None if deadline == NEVER else rest)
    if errors or left:
        raise _failure(pool, len(slots), errors, left)


def _wanted(pool: PoolBase[Any], count: Any) -> int:
    """Return the ``count`` of ``warm_up(count)``, ``min_size`` for None. Raises ConfigError, or PoolClosed."""
    if count is None:
        count = pool._config.min_size
    if not is_whole(count):
        raise ConfigError(f"warm_up({count!r}): must be a number of connections, 0 or more", "count")
    refuse_closed(pool)
    return count


def _deadline(pool: PoolBase[Any], timeout: float | None, *, bounded: bool) -> float:
    """Return when the caller of ``warm_up()`` must go on. ``bounded``: each connect ends in a time of its own.

    Where it does not, nobody would end the wait. The caller then waits as long as for a connection.
    """
    now, block = pool._clock(), current()
    end = deadline_of(DEFAULT if timeout is None and not bounded else timeout, pool._config, now)
    return end if block is None else min(end, now + block.left())


def _failure(pool: PoolBase[Any], count: int, errors: list[BaseException], late: int) -> ConnectFailed:
    """Return the error for ``count`` connects of which some have failed with ``errors`` and ``late`` ones have not
    finished.
    """
    parts = [f"{len(errors)} of {count} connects failed"] if errors else []
    if late:
        parts.append(f"{late} of {count} did not finish in time")
    words = "; ".join([", ".join(parts), *dict.fromkeys(describe(error) for error in errors)])
    error = ConnectFailed(f"{pool.name}: warm_up: {words}")
    error.errors = tuple(errors)
    error.__cause__ = errors[0] if errors else None
    return error
