"""Start of a pool, its restart in a forked child or on another event loop, and changes of its settings."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _registry
from ._access import Access, FastPath
from ._core import commands
from ._core.machine import Core
from ._gate import Gate
from ._housekeeping import Housekeeping
from ._listeners import Listeners
from ._membership import Membership
from ._misuse import Origin
from ._monitor import Monitor
from ._operations import Operations
from ._places import place_outside
from ._register import LeaseRegister
from .config import PoolConfig, PoolSettings
from .connector import require_connect
from .events import EventKind, Listener, kinds_of
from .runtimes.fork import Stage, restart_after_fork
from .settings import for_connector, merge, on_demand, reconfigured

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("Kind", "Lock", "after_fork", "begin", "change_settings", "open_core", "restart")


def _no_methods(pool: Any, access: Access) -> dict[str, Callable[..., Any]]:
    """Replace no method: the default."""
    return {}


class Kind(NamedTuple):
    """What makes a pool one for threads, or one for tasks."""

    driver: Callable[..., Any]
    slow_path: Callable[..., Any]
    methods: Callable[[Any, Access], dict[str, Callable[..., Any]]] = _no_methods
    """Returns functions that replace methods of a pool. See :class:`~poolkit._access.FastPath`."""
    barging: float = 0.0
    """Default of ``barging_window``, in seconds."""


def Lock() -> Any:  # noqa: N802  simulations replace it with a class
    """Return a new lock for a pool. Looked up at each call, because gevent may have replaced it since the import."""
    return threading.RLock()


def _settled(config: PoolConfig, operations: Operations[Any]) -> PoolConfig:
    """Return the config as it applies to a pool whose connector has these operations."""
    config = for_connector(config, operations.connector)
    return on_demand(config, keyed=operations.keyed) if operations.features.on_demand else config


def _uniform() -> Callable[[], float]:
    """The usual source of random numbers. Imported with the first pool, because it imports hashlib."""
    from random import random

    return random


def begin(
    pool: PoolBase[Any],
    connector: Any,
    config: PoolConfig | None,
    settings: PoolSettings,
    *,
    name: str | None,
    clock: Callable[[], float] | None,
    random: Callable[[], float] | None,
    listeners: Iterable[Listener],
    debug: bool,
    keyed: bool,
) -> None:
    """Check the arguments of a new pool, create its parts, in the order in which they need each other, and register it.
    Its runtime is set already. The arguments are those of :class:`~poolkit.Pool`.
    """
    require_connect(connector)
    kind = pool._kind
    pool.name = _registry.pool_name(name)
    operations: Operations[Any] = Operations(connector, pool.name, keyed=keyed)
    pool._config = _settled(merge(config, settings), operations)
    pool._config.warn(stacklevel=1, packages=tuple(getattr(connector, "packages", ())))
    pool._connector = connector
    pool._clock = clock or time.monotonic
    pool._random = random or _uniform()
    pool._debug = debug
    pool._driver = kind.driver(pool, operations)
    pool._membership = Membership(pool)
    pool._listeners = Listeners(pool.name, pool.remove_listener)
    for listener in listeners:
        pool._listeners.add(listener, kinds_of(listener))
    pool._monitor = Monitor(pool)
    pool._register = LeaseRegister(pool)
    pool._housekeeping = Housekeeping(pool)
    pool._slow = kind.slow_path(pool)
    pool._fast = FastPath(pool, partial(kind.methods, pool))
    place = place_outside(sys._getframe(1), pool._slow.packages, pool._runtime)
    pool._origin = Origin(pool.name, place, connector)
    open_core(pool)
    pool._origin.note()
    _registry.register(pool)
    restart_after_fork(Stage.POOLS, pool, after_fork)
    for event in (EventKind.POOL_CREATED, EventKind.POOL_READY):
        pool._gate.step(pool._core.tell, event, pool._clock())


def open_core(pool: PoolBase[Any]) -> None:
    """Give the pool an empty core, and a gate with a new lock. The other parts of the pool exist already."""
    features = pool._driver.operations.features
    pool._core = core = Core(pool._config, features, name=pool.name, barging=pool._kind.barging, random=pool._random)
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
    pool._origin.core = core
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


def change_settings(pool: PoolBase[Any], changes: Mapping[str, Any]) -> PoolConfig:
    """Apply changes of settings, and return all settings. Called under the lock, so that two concurrent changes are
    both applied.
    """
    core = pool._core
    config = _settled(reconfigured(pool._config, changes), pool._driver.operations)
    pool._membership.change(config)
    pool._config = config
    changed = ", ".join(f"{name}={value!r}" for name, value in changes.items())
    commands.reconfigure(core, config, pool._kind.barging, changed, pool._clock())
    return config
