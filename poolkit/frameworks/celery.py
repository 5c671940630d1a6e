"""Celery: open the pools of a worker process when it starts, and drain them when it ends.

A pool created at module level works after the fork of a prefork worker: each child starts with an empty pool. This
module adds the start and the end of a child::

    from poolkit.frameworks.celery import install

    install(warm_up=True, drain_timeout=5)

Needs ``pip install 'poolkit[celery]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .._log import logger
from .._numbers import seconds
from .._registry import live_pools
from .._threads import Pool
from ..errors import MissingExtra, UsageError, describe
from ..fleet import FleetBudget
from ._pools import drain_all

try:
    from celery import signals
except ImportError as error:
    raise MissingExtra("poolkit.frameworks.celery needs Celery: pip install 'poolkit[celery]'") from error

__all__ = ("install",)


def install(
    *, pools: Callable[[], Iterable[Any]] = live_pools, warm_up: bool = False, drain_timeout: float = 5.0
) -> Callable[[], None]:
    """Open and drain the pools of every worker process. Call it where the Celery application is created.

    When a process ends, also after ``worker_max_tasks_per_child`` tasks, its pools are drained. Their sessions are
    closed properly, so the server does not have to detect dead ones. The permits of a fleet budget are returned, which
    would otherwise be missing until their lease ends. A process that is killed (by a hard time limit) does none of
    this.

    Args:
        pools: a function that returns the pools; default: all pools of the process that are for threads.
        warm_up: open ``min_size`` connections of each pool when a process starts (with Celery's prefork and solo
            pools). A failure is logged; tasks will try again.
        drain_timeout: seconds that leases get to end when a process ends, for all pools together.

    Returns a function that undoes it. Raises ConfigError for an invalid ``drain_timeout``.
    """
    seconds("drain_timeout", drain_timeout)

    def mine() -> list[Pool[Any]]:
        return [pool for pool in pools() if isinstance(pool, Pool)]

    def begin(**_: Any) -> None:
        for pool in mine():
            try:
                pool.warm_up(timeout=pool.config.connect_timeout)
            except Exception as error:  # noqa: BLE001 - the process must start; its tasks will report the error
                logger.warning("%s: cannot connect yet in this worker process: %s", pool.name, describe(error))

    def end(**_: Any) -> None:
        ending = mine()
        for name, ended in drain_all([(pool.name, pool) for pool in ending], drain_timeout).items():
            if not ended:
                logger.warning("%s: leases did not end within %g s and were aborted", name, drain_timeout)
        for budget in {pool.config.budget for pool in ending if isinstance(pool.config.budget, FleetBudget)}:
            try:
                budget.close(timeout=1)
            except UsageError as error:
                logger.warning(
                    "%s: could not return the permits; they are free when their lease ends: %s", budget.name, error
                )

    # strong references: nothing else keeps these functions alive
    if warm_up:
        signals.worker_process_init.connect(begin, weak=False)
    signals.worker_process_shutdown.connect(end, weak=False)
    signals.worker_shutdown.connect(end, weak=False)

    def undo() -> None:
        signals.worker_process_init.disconnect(begin)
        signals.worker_process_shutdown.disconnect(end)
        signals.worker_shutdown.disconnect(end)

    return undo
