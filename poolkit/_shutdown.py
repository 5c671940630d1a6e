"""``drain()`` and ``close()`` of a pool, in threads or in tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._core import commands
from ._core.machine import Core
from ._core.state import Phase
from ._slow_path import deadline_of
from .policies.retire import NEVER

if TYPE_CHECKING:
    from ._async import AsyncPool
    from ._pool_base import PoolBase
    from ._threads import Pool

__all__ = ("shut_in_tasks", "shut_in_threads")


def shut_in_threads(pool: Pool[Any], phase: Phase, timeout: float | None) -> bool:
    """Drain or close a pool. Returns whether every lease ended without being aborted."""
    deadline = deadline_of(timeout, pool._config, pool._clock())
    pool._gate.step(commands.shut, pool._core, phase, pool._clock())
    pool._driver.call_later(NEVER)  # cancels the timer: no more timed work
    core = pool._core
    parker = pool._runtime.parker()
    core.watchers.append(parker)
    try:
        while True:
            left = deadline - pool._clock()
            if left <= 0 or not _unfinished(core, phase):
                break
            parker.wait(None if deadline == NEVER else left)
    finally:
        core.watchers.remove(parker)
    return _finish(pool, core, phase)


async def shut_in_tasks(pool: AsyncPool[Any], phase: Phase, timeout: float | None) -> bool:
    """As :func:`shut_in_threads`; waits only in the event loop of the pool."""
    from ._binding import bind_loop  # imported here, because it imports asyncio, which a pool of threads does not need

    deadline = deadline_of(timeout, pool._config, pool._clock())
    runtime = pool._runtime
    if runtime is not None and runtime.alive():
        runtime = bind_loop(pool)
    pool._gate.step(commands.shut, pool._core, phase, pool._clock())
    core = pool._core
    if runtime is not None and runtime.here():
        pool._driver.call_later(NEVER)  # cancels the timer: no more timed work
        parker = runtime.parker()
        core.watchers.append(parker)
        try:
            while True:
                left = deadline - pool._clock()
                if left <= 0 or not _unfinished(core, phase):
                    break
                await parker.wait(None if deadline == NEVER else left)
        finally:
            core.watchers.remove(parker)
    return _finish(pool, core, phase)


def _unfinished(core: Core, phase: Phase) -> bool:
    """Whether there are connections to wait for: all of them when draining, those being closed when closing."""
    return bool(core.all_slots if phase is Phase.DRAINING else core.closing)


def _finish(pool: PoolBase[Any], core: Core, phase: Phase) -> bool:
    """After draining, abort the connections that are still leased. Returns whether there were none."""
    if phase is Phase.CLOSED:
        return True
    aborted = pool._gate.step(commands.abort_leased, core, pool._clock())
    pool._gate.step(commands.shut, core, Phase.CLOSED, pool._clock())
    return not aborted
