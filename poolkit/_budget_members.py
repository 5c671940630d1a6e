"""The pools of a budget, and the messages for them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from ._core.ledger import Account, BudgetLedger
from ._gate import Gate, InOrder
from ._log import logger
from .errors import ConfigError

if TYPE_CHECKING:
    from .budget import Budget

__all__ = ("BudgetMembers", "must_fit")


class BudgetMembers:
    """The pools of one budget, with the account of each.

    It holds the pools weakly: the account of a pool that is collected is closed.
    """

    def __init__(self, budget: Budget, ledger: BudgetLedger, gate: Gate) -> None:
        self._budget = budget
        self._ledger = ledger
        self._gate = gate
        self._pools: dict[Account, weakref.ref[Any]] = {}
        self._messages = InOrder(self._tell, ledger.messages)

    def open(self, account: Account, pool: Any) -> None:
        """Under the lock: the account of a pool, in the place of the one that the same pool had before."""
        for old, ref in list(self._pools.items()):
            if ref() is pool:
                self.forget(old)
        self.fit_in(account)
        self.enter(account, pool)
        self._ledger.open(account)

    def enter(self, account: Account, pool: Any) -> None:
        """The news for this account go to ``pool``; the ledger has the account, or gets it now."""
        self._pools[account] = weakref.ref(pool, lambda _: self._collected(account))

    def forget(self, account: Account) -> None:
        """Under the lock: the pool is gone."""
        self._pools.pop(account, None)
        self._ledger.close(account)

    def clear(self) -> None:
        """In a forked child: say nothing of the parent's pools, whose lock another thread may have held."""
        self._pools.clear()

    def pools(self, *, without: Account | None = None) -> list[Any]:
        """Under the lock: the pools that are not collected, except that of one account."""
        return [pool for account, ref in self._pools.items() if account is not without and (pool := ref()) is not None]

    def name_of(self, account: Account) -> str:
        """The name of the pool of an account."""
        ref = self._pools.get(account)
        pool = None if ref is None else ref()
        return "(gone)" if pool is None else str(pool.name)

    def fit_in(self, account: Account, minimum: int | None = None) -> None:
        """ConfigError if the account may not reserve so many permits (None: its minimum)."""
        minimum = account.minimum if minimum is None else minimum
        others = [other.minimum for other in self._ledger.accounts if other is not account]
        must_fit(self._budget.name, [*others, minimum], self._budget.limit, f"min_size={minimum!r}", "min_size")

    def _collected(self, account: Account) -> None:
        """The pool was collected, and its connections with it. Called by the garbage collector."""
        if self._gate.held:  # in the middle of this thread's own critical section: it looks into the inbox after it
            self._gate.post(self.forget, account)
        else:
            self._gate.step(self.forget, account)
        self.deliver()

    # -- messages -------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Tell the pools the news. Called without any lock."""
        if not self._gate.held:
            self._messages.flush()

    def _tell(self, account: Account) -> None:
        try:
            pool = self._pools[account]()
        except KeyError:
            return  # is gone
        if pool is not None:
            try:
                pool.on_news()
            except Exception:
                logger.exception("%s: a pool could not be told that permits are free or needed", self._budget.name)


def must_fit(name: str, minimums: list[int], limit: int, said: str, setting: str) -> None:
    """ConfigError unless the minimums fit in, and something is left for pools that have none."""
    total = sum(minimums)
    if total > limit or (total == limit and 0 in minimums):
        raise ConfigError(
            f"{said}: the min_size of the pools of {name} add up to {total}, which must be "
            f"{'at most' if total > limit else 'less than'} its limit ({limit})"
            f"{'' if total > limit else ', or nothing is left for the pools that reserve none'}",
            setting,
        )
