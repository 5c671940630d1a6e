"""The register of live pools, and the protection of a parent's connections in a forked child."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from ._core.slots import Slot
from ._log import logger
from .errors import describe, shown
from .policies.members import snapshot
from .runtimes.fork import Stage, after_fork

__all__ = ("keep_from_finalizer", "let_go", "live_pools", "pool_name", "register", "watch_pools")

_pools: weakref.WeakSet[Any] = weakref.WeakSet()
_pools_lock = threading.Lock()
_watchers: list[Callable[[Any], object]] = []
_numbers = itertools.count(1)

_kept_from_finalizers: list[object] = []
"""Connections of a parent process. They are never finalized in the child: the finalizer of a driver's object may send a
message on a socket that the parent still uses."""


def register(pool: Any) -> None:
    """Register a new pool and call the watchers. The register refers to it weakly."""
    with _pools_lock:
        _pools.add(pool)
        watchers = tuple(_watchers)
    for watcher in watchers:
        try:
            watcher(pool)
        except Exception:
            logger.exception("%r raised for a new pool, which is not watched", watcher)


def watch_pools(watcher: Callable[[Any], object]) -> Callable[[], None]:
    """Call ``watcher(pool)`` for every live pool, and for each new one when it is created. Returns a function that ends
    this.
    """
    with _pools_lock:
        _watchers.append(watcher)
        known = snapshot(_pools)
    for pool in known:
        if not pool.closed:
            watcher(pool)

    def end() -> None:
        with _pools_lock:
            if watcher in _watchers:
                _watchers.remove(watcher)

    return end


def pool_name(name: str | None) -> str:
    """Return the given name in its displayed form (one line, bounded, no control characters), or the next free name.

    It is converted here once, because every message, log record, event and metric of the pool contains it.
    """
    return f"pool-{next(_numbers)}" if name is None else shown(name)


def live_pools() -> list[Any]:
    """Return every pool of this process that is neither closed nor collected. Thread-safe."""
    with _pools_lock:
        known = snapshot(_pools)
    return [pool for pool in known if not pool.closed]


def keep_from_finalizer(connection: object) -> None:
    """Keep a connection of the parent process from being finalized in this one."""
    _kept_from_finalizers.append(connection)


def let_go(name: str, slots: Iterable[Slot], forget: Callable[[Any], object] | None) -> None:
    """In a forked child: forget the connections of a pool, which are the parent's, and keep them from finalizers."""
    for slot in list(slots):
        if slot.connection is not None:
            try:
                if forget is not None:
                    forget(slot.connection)
            except BaseException as error:  # noqa: BLE001 - other connections and pools still have to be handled
                logger.debug("%s: forget failed: %s", name, describe(error))
            keep_from_finalizer(slot.connection)


def _after_fork_in_child() -> None:
    global _pools_lock
    _pools_lock = threading.Lock()  # at the fork, another thread of the parent may have held it


after_fork(Stage.RUNTIME, _after_fork_in_child)
