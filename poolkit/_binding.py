"""The event loop of an AsyncPool: the pool is bound to the first loop that uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._begin import restart
from .errors import WrongLoop
from .runtimes.base import AsyncRuntime
from .runtimes.current import current_runtime, in_loop

if TYPE_CHECKING:
    from ._async import AsyncPool

__all__ = ("bind_if_eager", "bind_loop")


def bind_if_eager(pool: AsyncPool[Any]) -> None:
    """Bind a new pool with ``start="eager"`` to the caller's event loop, if there is one, and so open ``min_size``."""
    if pool._config.start != "eager" or pool._driver.operations.opens_later:
        return
    if pool._runtime is None:
        if in_loop():
            bind_loop(pool)
    elif pool._runtime.here():
        pool._housekeeping.start_if_eager()


def bind_loop(pool: AsyncPool[Any]) -> AsyncRuntime:
    """Return the caller's event loop, and bind the pool to it unless the pool is bound to an open one. Raises WrongLoop
    if that is another one.
    """
    runtime: AsyncRuntime | None = pool._runtime
    if runtime is not None and runtime.here():
        return runtime
    new = current_runtime(bool(getattr(pool._driver.operations.connector, "any_loop", False)))
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
    for slot in pool._core.slots.living():  # their connections belong to the closed loop
        if slot.connection is not None:
            pool._driver.operations.abort(slot.connection)
    pool._runtime, pool._caller = new, new.caller
    restart(pool)
    return new
