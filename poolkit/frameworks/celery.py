"""Celery: pools of worker processes are opened when a process begins to work, and drained when it ends.

Pools made at module level need nothing to survive the fork of a prefork worker: each child begins with an empty pool.
What is left is the two ends of a child::

    from poolkit.frameworks.celery import install

    install(warm_up=True, drain_timeout=5)

Needs ``pip install 'poolkit[celery]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .._lifecycle import live_pools
from .._log import logger
from .._threads import Pool
from ..errors import MissingExtra, UsageError, describe
from ..fleet import FleetBudget
from ._pools import check_seconds, drain_all

try:
    from celery import signals
except ImportError as error:
    raise MissingExtra("poolkit.frameworks.celery needs Celery: pip install 'poolkit[celery]'") from error

__all__ = ("install",)


def install(
    *, pools: Callable[[], Iterable[Any]] = live_pools, warm_up: bool = False, drain_timeout: float = 5.0
) -> Callable[[], None]:
    """Look after the pools of every worker process; to be called where the Celery application is made.

    ``pools``: which ones (a function that gives them; default: all of the process that are for threads).
    ``warm_up``: open ``min_size`` connections of each when a process begins (prefork and solo pools; a failure is
    logged: tasks will try again). ``drain_timeout``: seconds that leases get to end when a process ends, all pools
    together; then the sessions are closed in order, which the server would otherwise only notice, and permits of a
    fleet's budget are given back, which would otherwise be missing until their lease ends. A process that ends because
    it has done its ``worker_max_tasks_per_child`` is one of them; one that is killed (a hard time limit) is not.

    Returns a function that undoes it. Raises ConfigError for a
    ``drain_timeout`` that is no time.
    """
    check_seconds("drain_timeout", drain_timeout)

    def mine() -> list[Pool[Any]]:
        return [pool for pool in pools() if isinstance(pool, Pool)]

    def begin(**_: Any) -> None:
        for pool in mine():
            try:
                pool.warm_up(timeout=pool.config.connect_timeout)
            except Exception as error:  # noqa: BLE001 - tasks will say more, and the process must come up
                logger.warning("%s: cannot connect yet in this worker process: %s", pool.name, describe(error))

    def end(**_: Any) -> None:
        ending = mine()
        for name, ended in drain_all([(pool.name, pool) for pool in ending], drain_timeout).items():
            if not ended:
                logger.warning("%s: leases did not end within %g s and were cut", name, drain_timeout)
        for budget in {pool.config.budget for pool in ending if isinstance(pool.config.budget, FleetBudget)}:
            try:
                budget.close(timeout=1)
            except UsageError as error:
                logger.warning("%s: its permits come back when their lease ends: %s", budget.name, error)

    # strong references: nobody else keeps these functions
    if warm_up:
        signals.worker_process_init.connect(begin, weak=False)
    signals.worker_process_shutdown.connect(end, weak=False)
    signals.worker_shutdown.connect(end, weak=False)

    def undo() -> None:
        signals.worker_process_init.disconnect(begin)
        signals.worker_process_shutdown.disconnect(end)
        signals.worker_shutdown.disconnect(end)

    return undo
