"""Start of a pool, and its restart in a forked child or on another event loop."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from . import _registry
from ._core import commands
from ._core.machine import Core
from ._gate import Gate

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("Lock", "after_fork", "open_core", "restart")


def Lock() -> Any:  # noqa: N802  simulations replace it with a class
    """Return a new lock for a pool. Looked up at each call, because gevent may have replaced it since the import."""
    return threading.RLock()


def open_core(pool: PoolBase[Any]) -> None:
    """Give the pool an empty core, and a gate with a new lock. The other parts of the pool exist already."""
    pool._core = core = Core(pool._config, pool._features, name=pool.name, barging=pool._barging, random=pool._random)
    pool._gate = Gate(
        core,
        name=pool.name,
        clock=pool._clock,
        lock=Lock(),
        settle=core.settle,
        renew=pool._fast.renew,
        repair=pool._housekeeping.repair,
        perform=pool._housekeeping.perform,
        call_later=pool._driver.call_later,
        run_due=pool._housekeeping.run_due,
        note_alone=pool._housekeeping.note_alone,
    )
    pool._listeners.restart(core)
    core.meters.begin(pool._clock())
    pool._endpoint = core.endpoint
    pool._leased = core.leased
    pool._membership.open_account()
    pool._fast.restart()
    if core.permits is not None:
        core.permits.deliver()
        pool._gate.run_posted()


def restart(pool: PoolBase[Any]) -> None:
    """Continue with an empty core. Connections that are leased now are dropped when they are returned."""
    old, leased = pool._core, set(pool._leased.copy())
    pool._leased.clear()  # first, so that the finalizer of an old lease does not report it to the new core
    pool._monitor.restart()
    pool._register.restart(leased)
    open_core(pool)
    pool._gate.step(commands.inherit, pool._core, old)


def after_fork(pool: PoolBase[Any]) -> None:
    """Restart without connections in a forked child. The connections of the parent are not touched."""
    if not pool._driver.runtime_survives_fork:
        pool._runtime = None  # the parent's event loop does not run in this process
    _registry.let_go(pool.name, pool._core.slots.living(), pool._driver.operations.forget)
    restart(pool)
