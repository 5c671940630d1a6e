"""The event loop of an AsyncPool: the pool is bound to the first loop that uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._begin import restart
from .errors import WrongLoop
from .runtimes.base import AsyncRuntime
from .runtimes.current import current_runtime, in_loop

if TYPE_CHECKING:
    from ._async import AsyncPool

__all__ = ("bind_if_eager", "bind_loop", "unbind_if_unused")


def bind_if_eager(pool: AsyncPool[Any]) -> None:
    """Bind a new pool with ``start="eager"`` to the caller's event loop, if there is one, and so open ``min_size``."""
    if pool._config.start != "eager" or pool._driver.operations.opens_later:
        return
    if pool._runtime is None:
        if in_loop():
            pool._made_in = bind_loop(pool)
    elif pool._runtime.here():
        pool._housekeeping.start_if_eager()


def bind_loop(pool: AsyncPool[Any]) -> AsyncRuntime:
    """Return the caller's event loop, and bind the pool to it unless the pool is bound to an open one. Raises WrongLoop
    if that is another one. An open one that does not run and has only created the pool does not count.
    """
    runtime: AsyncRuntime | None = pool._runtime
    if runtime is not None and runtime.here():
        pool._made_in = None
        return runtime
    new = current_runtime(bool(getattr(pool._driver.operations.connector, "any_loop", False)))
    if runtime is not None and not runtime.running() and unbind_if_unused(pool):
        runtime = None
    if runtime is None:
        pool._runtime, pool._caller = new, new.caller
        pool._gate.step(pool._fast.outdate)
        pool._housekeeping.start_if_eager()
        return new
    if runtime.alive():
        raise WrongLoop(
            f"{pool.name}: this AsyncPool belongs to another {runtime.library} event loop, which has not been closed; "
            "create one pool for each event loop"
        )
    _abort_all(pool)
    pool._runtime, pool._caller, pool._made_in = new, new.caller, None
    restart(pool)
    return new


def unbind_if_unused(pool: AsyncPool[Any]) -> bool:
    """If only its creation has bound the pool to its event loop, undo that: close its connections and forget it.
    Return whether it did.
    """
    if pool._made_in is None or pool._made_in is not pool._runtime:
        return False
    stats = pool.stats()
    if stats.acquires or stats.waiting or stats.timeouts:
        return False
    _abort_all(pool)
    pool._made_in = pool._runtime = None
    restart(pool)
    return True


def _abort_all(pool: AsyncPool[Any]) -> None:
    """Abort the connections of the pool: they belong to a loop that has ended."""
    for slot in pool._core.slots.living():
        if slot.connection is not None:
            pool._driver.operations.abort(slot.connection)
