"""One connection limit for several pools of a process.

The decisions are in ``_core/ledger.py``. This module adds the lock, and the notifications between pools.

LOCK-ORDER: a pool asks its budget while it holds its own lock. The budget takes no other lock while it holds its own,
and no thread waits for a pool's lock while it holds another's. Pools are notified after all locks are released, through
the inbox of each pool. Otherwise two pools that notify each other would deadlock.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._budget_members import BudgetMembers, must_fit
from ._core.ledger import Account, BudgetLedger
from ._gate import Gate, NoWork
from ._numbers import whole
from .errors import shown

__all__ = ("Budget", "BudgetShare", "BudgetStats")


@dataclass(frozen=True)
class BudgetShare:
    """One pool's part of a budget.

    ``held``: permits that it has. ``closing``: those of them whose connection is being closed. ``claimed``: permits
    that it waits for. ``share``: permits that it is entitled to when the pools want more than the limit. ``reserved``:
    its ``min_size``. ``weight``: its ``budget_weight``.
    """

    pool: str
    held: int
    closing: int
    claimed: int
    share: int
    reserved: int
    weight: float


@dataclass(frozen=True)
class BudgetStats:
    """A snapshot of a budget: ``held`` of ``limit`` permits are taken; ``pools`` has the part of each pool."""

    name: str
    limit: int
    held: int
    pools: tuple[BudgetShare, ...]


class Budget:
    """At most ``limit`` connections over several pools of this process, including those being closed.

    Give it to each pool: ``Pool(connector, budget=budget, min_size=2, budget_weight=3)``. Pools for threads and tasks
    may share it, through every adapter. Each pool's ``min_size`` is reserved for it. Its share is ``min_size`` and a
    part of the rest, by ``budget_weight``. Free permits go in order of arrival: first to pools below their share, then
    to the others. If no permit is free, the longest unused idle connection of any pool is closed. If none is idle, a
    pool above its share closes a returned connection for a pool below its share.

    Thread-safe. A forked child starts with the whole limit and no connection. Raises :class:`~poolkit.ConfigError` for
    a limit that is not a whole number above 0. A new pool raises it if the ``min_size`` of all pools add up to more
    than the limit.
    """

    def __init__(self, limit: int, *, name: str = "budget") -> None:
        self.name = shown(name)
        whole("limit", limit, 1)
        self._total = limit
        self._begin(self._total)

    def _begin(self, limit: int) -> None:
        """Start without pools and with a new lock; called again in a forked child."""
        self._pid = os.getpid()
        # pools are notified after the calling pool has released its own lock, so the gate has no effects to perform
        self._gate = Gate(NoWork(), name=self.name, clock=time.monotonic, lock=threading.RLock())
        self._ledger = BudgetLedger(limit, self._gate)
        self._members = BudgetMembers(self, self._ledger, self._gate)
        self._ledger.fits = self._members.fit_in
        self._ledger.deliver = self._members.deliver
        self._ledger.words = lambda: f"budget {self.explain()}"

    @property
    def limit(self) -> int:
        """The most connections that may exist at once over all pools."""
        return self._total

    def resize(self, limit: int) -> None:
        """Change the limit at once. Surplus connections are closed now if they are idle, else when they are returned.

        Thread-safe. Raises ConfigError if the pools' ``min_size`` add up to more.
        """
        whole("limit", limit, 1)
        self._gate.step(self._resize, limit)
        self._members.deliver()

    def _resize(self, limit: int) -> None:
        minimums = [account.minimum for account in self._ledger.accounts]
        must_fit(self.name, minimums, limit, f"limit={limit!r}", "limit")
        self._total = limit
        self._ledger.resize(limit)

    def stats(self) -> BudgetStats:
        """Return a frozen snapshot. Thread-safe."""
        return self._gate.step(self._snapshot)

    def _snapshot(self) -> BudgetStats:
        ledger = self._ledger
        parts = tuple(
            BudgetShare(self._members.name_of(a), a.held, a.leaving, a.need, a.share, a.minimum, a.weight)
            for a in ledger.accounts
        )
        return BudgetStats(self.name, ledger.limit, ledger.held, parts)

    def explain(self) -> str:
        """Return the state of the budget as a sentence. Thread-safe."""
        return f"{self.name}: {_words(self.stats())}"

    # -- for pools ------------------------------------------------------------------------------------------------

    def open_account(self, pool: Any, minimum: int, weight: float) -> Account:
        """Open the account of a pool; a former account of the same pool is closed. Only pools call this."""
        if self._pid != os.getpid():  # in a forked child: the accounts count connections that belong to the parent
            self._members.clear()
            self._begin(self._total)
        account = Account(self._ledger, minimum, weight, _oldest_spare_of(pool))
        self._gate.step(self._members.open, account, pool)
        return account

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.explain()}>"


def _oldest_spare_of(pool: Any) -> Callable[[], float | None]:
    """Return a function that tells since when the pool's longest unused idle connection is unused; None without one."""
    peek = weakref.WeakMethod(pool.unused_since)

    def oldest_spare() -> float | None:
        method = peek()
        try:
            return None if method is None else method()
        except (RuntimeError, IndexError):  # another thread changes the pool at this moment
            return None

    return oldest_spare


def _words(stats: BudgetStats) -> str:
    parts = [
        f"{part.pool} {part.held}" + (f" and waits for {part.claimed}" if part.claimed else "") for part in stats.pools
    ]
    return f"{stats.held} of {stats.limit} taken ({', '.join(parts) or 'no pools'})"
