"""One limit for several pools of a process: a lock around the decisions of ``_core/ledger.py``, and the messages.

LOCK-ORDER: a pool asks its budget while it holds its own lock; the budget asks nobody while it holds its lock, and no
thread waits for a pool's lock while it holds another's. What other pools have to know goes out as messages after all
locks are released, through the inbox of each.
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
from .errors import ConfigError, shown

__all__ = ("Budget", "BudgetShare", "BudgetStats")


@dataclass(frozen=True)
class BudgetShare:
    """One pool's part: ``held`` permits, ``closing`` of them about to come back, ``claimed`` ones it waits for; its
    ``share`` is what it can count on when all pools want more than there is, ``reserved`` its ``min_size``.
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
    """A budget at one moment; ``held`` of ``limit`` permits are taken, each pool's part in ``pools``."""

    name: str
    limit: int
    held: int
    pools: tuple[BudgetShare, ...]


class Budget:
    """At most ``limit`` connections over several pools of this process, closing ones included.

    ``Pool(connector, budget=budget, min_size=2, budget_weight=3)``; threads and tasks alike, mixed, through every
    adapter. Each pool's ``min_size`` is reserved for it. What is free goes to whoever came first, over all pools that
    have less than their share, then over the others. When nothing is free, the longest unused idle connection of any
    pool gives way; where none is idle, a pool that holds more than its share lets one go at its return to a pool that
    has less than its own. Shares: ``min_size``, and the rest by ``budget_weight``. Thread-safe. A forked child begins
    with the whole limit and no connection.

    Raises :class:`~poolkit.ConfigError` for a limit that is not a whole number above 0, and (when a pool is made) if
    the pools' ``min_size`` add up to more than the limit.
    """

    def __init__(self, limit: int, *, name: str = "budget") -> None:
        self.name = shown(name)
        self._total = _whole("limit", limit)
        self._begin(self._total)

    def _begin(self, limit: int) -> None:
        """Without any pools, with a lock of its own (again in a forked child)."""
        self._pid = os.getpid()
        # messages go out when the calling pool has released its own lock, so the gate has no effects to carry out
        self._gate = Gate(NoWork(), name=self.name, clock=time.monotonic, lock=threading.RLock())
        self._ledger = BudgetLedger(limit, self._gate)
        self._members = BudgetMembers(self, self._ledger, self._gate)
        self._ledger.fits = self._members.fit_in
        self._ledger.deliver = self._members.deliver
        self._ledger.words = lambda: f"budget {self.explain()}"

    @property
    def limit(self) -> int:
        """Connections that exist at once over all pools."""
        return self._total

    def resize(self, limit: int) -> None:
        """Another limit, at once: what is above it is closed when idle, else when it comes back. Thread-safe.

        Raises ConfigError if the pools' ``min_size`` add up to more.
        """
        limit = _whole("limit", limit)
        self._gate.step(self._resize, limit)
        self._members.deliver()

    def _resize(self, limit: int) -> None:
        minimums = [account.minimum for account in self._ledger.accounts]
        must_fit(self.name, minimums, limit, f"limit={limit!r}", "limit")
        self._total = limit
        self._ledger.resize(limit)

    def stats(self) -> BudgetStats:
        """A frozen snapshot. Thread-safe."""
        return self._gate.step(self._snapshot)

    def _snapshot(self) -> BudgetStats:
        ledger = self._ledger
        parts = tuple(
            BudgetShare(self._members.name_of(a), a.held, a.leaving, a.need, a.share, a.minimum, a.weight)
            for a in ledger.accounts
        )
        return BudgetStats(self.name, ledger.limit, ledger.held, parts)

    def explain(self) -> str:
        """The state of the budget in plain words. Thread-safe."""
        return f"{self.name}: {_words(self.stats())}"

    # -- for pools ------------------------------------------------------------------------------------------------

    def open_account(self, pool: Any, minimum: int, weight: float) -> Account:
        """For pools: a part of this budget, in the place of the one that the same pool had before."""
        if self._pid != os.getpid():  # a forked child: the parent's connections are the parent's
            self._members.clear()
            self._begin(self._total)
        account = Account(self._ledger, minimum, weight, _oldest_spare_of(pool))
        self._gate.step(self._members.open, account, pool)
        return account

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.explain()}>"


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: must be a whole number, 1 or more", name)
    return value


def _oldest_spare_of(pool: Any) -> Callable[[], float | None]:
    """Returns since when the pool's connection is unused that would give way first; None without one."""
    peek = weakref.WeakMethod(pool.unused_since)

    def oldest_spare() -> float | None:
        method = peek()
        try:
            return None if method is None else method()
        except (RuntimeError, IndexError):  # the pool is at work just now: it looks by itself
            return None

    return oldest_spare


def _words(stats: BudgetStats) -> str:
    parts = [
        f"{part.pool} {part.held}" + (f" and waits for {part.claimed}" if part.claimed else "") for part in stats.pools
    ]
    return f"{stats.held} of {stats.limit} taken ({', '.join(parts) or 'no pools'})"
