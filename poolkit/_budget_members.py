"""The pools of a budget, and the notifications that they get."""

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

    It refers to the pools weakly. When a pool is garbage-collected, its account is closed.
    """

    def __init__(self, budget: Budget, ledger: BudgetLedger, gate: Gate) -> None:
        self._budget = budget
        self._ledger = ledger
        self._gate = gate
        self._pools: dict[Account, weakref.ref[Any]] = {}
        self._messages = InOrder(self._tell, ledger.messages)

    def open(self, account: Account, pool: Any) -> None:
        """Open the account of a pool; a former account of the same pool is closed. Called under the lock."""
        for old, ref in list(self._pools.items()):
            if ref() is pool:
                self.forget(old)
        self.fit_in(account)
        self.enter(account, pool)
        self._ledger.open(account)

    def enter(self, account: Account, pool: Any) -> None:
        """Send the notifications for this account to ``pool``. The ledger has the account, or gets it now."""
        self._pools[account] = weakref.ref(pool, lambda _: self._collected(account))

    def forget(self, account: Account) -> None:
        """Close the account of a pool that no longer exists. Called under the lock."""
        self._pools.pop(account, None)
        self._ledger.close(account)

    def clear(self) -> None:
        """In a forked child: forget the parent's pools. At the fork, another thread may have held the lock of one, and
        a notification would wait for that lock for ever.
        """
        self._pools.clear()

    def pools(self, *, without: Account | None = None) -> list[Any]:
        """Return the living pools, except that of one account. Called under the lock."""
        return [pool for account, ref in self._pools.items() if account is not without and (pool := ref()) is not None]

    def name_of(self, account: Account) -> str:
        """Return the name of an account's pool."""
        ref = self._pools.get(account)
        pool = None if ref is None else ref()
        return "(gone)" if pool is None else str(pool.name)

    def fit_in(self, account: Account, minimum: int | None = None) -> None:
        """Raise ConfigError if the account may not reserve that many permits (None: its minimum)."""
        minimum = account.minimum if minimum is None else minimum
        others = [other.minimum for other in self._ledger.accounts if other is not account]
        must_fit(self._budget.name, [*others, minimum], self._budget.limit, f"min_size={minimum!r}", "min_size")

    def _collected(self, account: Account) -> None:
        """The pool and its connections were garbage-collected. Called by the garbage collector, in any thread."""
        if self._gate.held:  # this thread is in a step itself; it runs what is posted after the step
            self._gate.post(self.forget, account)
        else:
            self._gate.step(self.forget, account)
        self.deliver()

    # -- messages -------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Notify the pools. Called without any lock."""
        if not self._gate.held:
            self._messages.flush()

    def _tell(self, account: Account) -> None:
        try:
            pool = self._pools[account]()
        except KeyError:
            return  # the account was closed meanwhile
        if pool is not None:
            try:
                pool.on_news()
            except Exception:
                logger.exception(
                    "%s: pool %s could not be notified that permits are free or needed", self._budget.name, pool.name
                )


def must_fit(name: str, minimums: list[int], limit: int, said: str, setting: str) -> None:
    """Raise ConfigError unless the minimums fit into the limit and leave a permit for pools that reserve none."""
    total = sum(minimums)
    if total > limit or (total == limit and 0 in minimums):
        raise ConfigError(
            f"{said}: the min_size values of the pools of {name} add up to {total}, which must be "
            f"{'at most' if total > limit else 'less than'} its limit ({limit})"
            f"{'' if total > limit else ', or nothing is left for the pools that reserve none'}",
            setting,
        )
