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

from ._core.ledger import Account, BudgetLedger
from ._gate import Gate, InOrder, NoWork
from ._log import logger
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
        self._members: dict[Account, weakref.ref[Any]] = {}
        self._begin(self._total)

    def _begin(self, limit: int) -> None:
        self._pid = os.getpid()
        # messages go out when the calling pool has released its own lock, so the gate has no effects to carry out
        self._gate = Gate(NoWork(), name=self.name, clock=time.monotonic, lock=threading.RLock())
        self._ledger = BudgetLedger(limit, self._gate, self._fit_in)
        self._ledger.deliver = self._deliver
        self._ledger.words = lambda: f"budget {self.explain()}"
        self._messages = InOrder(self._tell, self._ledger.messages)
        self._members.clear()

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
        self._deliver()

    def _resize(self, limit: int) -> None:
        self._fit([account.minimum for account in self._ledger.accounts], limit, f"limit={limit!r}", "limit")
        self._total = limit
        self._ledger.resize(limit)

    def stats(self) -> BudgetStats:
        """A frozen snapshot. Thread-safe."""
        return self._gate.step(self._snapshot)

    def _snapshot(self) -> BudgetStats:
        ledger = self._ledger
        parts = tuple(
            BudgetShare(_name_of(self._members.get(a)), a.held, a.leaving, a.need, a.share, a.minimum, a.weight)
            for a in ledger.accounts
        )
        return BudgetStats(self.name, ledger.limit, ledger.held, parts)

    def explain(self) -> str:
        """The state of the budget in plain words. Thread-safe."""
        return f"{self.name}: {_words(self.stats())}"

    # -- for pools ------------------------------------------------------------------------------------------------

    def open_account(self, pool: Any, minimum: int, weight: float) -> Account:
        """For pools: a part of this budget, in the place of the one that the same pool had before."""
        if self._pid != os.getpid():
            self._begin(self._total)  # a forked child: the parent's connections are the parent's
        peek = weakref.WeakMethod(pool.unused_since)

        def oldest_spare() -> float | None:
            method = peek()
            try:
                return None if method is None else method()
            except (RuntimeError, IndexError):  # the pool is at work just now: it looks by itself
                return None

        account = Account(self._ledger, minimum, weight, oldest_spare)
        self._gate.step(self._open, account, pool)
        return account

    def _open(self, account: Account, pool: Any) -> None:
        for old, ref in list(self._members.items()):
            if ref() is pool:
                self._forget(old)
        self._fit_in(account)
        self._members[account] = weakref.ref(pool, lambda _: self._collected(account))
        self._ledger.open(account)

    def _fit_in(self, account: Account, minimum: int | None = None) -> None:
        minimum = account.minimum if minimum is None else minimum
        others = [other.minimum for other in self._ledger.accounts if other is not account]
        self._fit([*others, minimum], self._total, f"min_size={minimum!r}", "min_size")

    def _fit(self, minimums: list[int], limit: int, said: str, setting: str) -> None:
        """ConfigError unless the minimums fit in, and something is left for pools that have none."""
        total = sum(minimums)
        if total > limit or (total == limit and 0 in minimums):
            raise ConfigError(
                f"{said}: the min_size of the pools of {self.name} add up to {total}, which must be "
                f"{'at most' if total > limit else 'less than'} its limit ({limit})"
                f"{'' if total > limit else ', or nothing is left for the pools that reserve none'}",
                setting,
            )

    def _collected(self, account: Account) -> None:
        """The pool was collected, and its connections with it. Called by the garbage collector."""
        self._do(self._forget, account)
        self._deliver()

    def _forget(self, account: Account) -> None:
        self._members.pop(account, None)
        self._ledger.close(account)

    # -- lock and messages ----------------------------------------------------------------------------------------

    def _do(self, step: Callable[..., object], *args: Any) -> None:
        """Run ``step(*args)`` under the lock. A finalizer in the middle of this thread's own critical section leaves it
        to the thread's next look into the inbox.
        """
        if self._gate.held:
            self._gate.post(step, *args)
        else:
            self._gate.step(step, *args)

    def _deliver(self) -> None:
        """Tell the pools the news. Called without any lock."""
        if not self._gate.held:
            self._messages.flush()

    def _tell(self, account: Account) -> None:
        try:
            pool = self._members[account]()
        except KeyError:
            return  # is gone
        if pool is not None:
            try:
                pool.on_news()
            except Exception:
                logger.exception("%s: a pool could not be told", self.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.explain()}>"


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: must be a whole number, 1 or more", name)
    return value


def _name_of(ref: weakref.ref[Any] | None) -> str:
    pool = None if ref is None else ref()
    return "(gone)" if pool is None else str(pool.name)


def _words(stats: BudgetStats) -> str:
    parts = [
        f"{part.pool} {part.held}" + (f" and waits for {part.claimed}" if part.claimed else "") for part in stats.pools
    ]
    return f"{stats.held} of {stats.limit} taken ({', '.join(parts) or 'no pools'})"
