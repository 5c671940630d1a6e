"""Run handlers in a forked child, in a fixed order.

A child has none of its parent's threads, and its locks may be held by threads that do not exist there. Handlers of
``os.register_at_fork`` would run in the order in which modules happen to be imported, and stay for ever. Here
:class:`Stage` defines the order, and a handler for an object ends with the object.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

from .._log import logger

__all__ = ("Stage", "after_fork", "restart_after_fork")

T = TypeVar("T")


class Stage(IntEnum):
    """The order of the handlers in a child: a stage may rely on the stages before it."""

    RUNTIME = 0
    """Locks of modules, threads that work for others, and state that is only dropped."""
    POOLS = 1
    CLUSTERS = 2
    ADAPTERS = 3
    """What adapters keep beside their engines."""
    WATCHERS = 4
    """Exporters, alerts and dashboards, which read pools."""


_handlers: dict[Stage, list[Callable[[], object]]] = {stage: [] for stage in Stage}
_restarts: dict[Stage, weakref.WeakKeyDictionary[Any, Callable[[Any], object]]] = {
    stage: weakref.WeakKeyDictionary() for stage in Stage
}


def after_fork(stage: Stage, handler: Callable[[], object]) -> None:
    """Call ``handler()`` in each child of this process from now on. For modules: there is no way to undo it."""
    _handlers[stage].append(handler)


def restart_after_fork(stage: Stage, thing: T, restart: Callable[[T], object]) -> None:
    """Call ``restart(thing)`` in each child of this process, as long as ``thing`` exists. ``restart`` must not refer to
    it. Thread-safe.
    """
    _restarts[stage][thing] = restart


def _in_child() -> None:
    for stage in Stage:
        for handler in _handlers[stage]:
            _call(handler)
        restarts = _restarts[stage]
        for reference in restarts.keyrefs():
            thing = reference()
            if thing is not None:
                _call(restarts[thing], thing)


def _call(handler: Callable[..., object], *args: Any) -> None:
    try:
        handler(*args)
    except BaseException:  # the other handlers keep the child off the parent's connections
        logger.exception("poolkit: %r failed in the forked child", handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
