"""A pool's membership in a budget: the pool's calls of the budget, and the budget's calls of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._core import commands
from .config import PoolConfig
from .errors import ConfigError

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("Membership",)


class Membership:
    """A pool, as its :class:`~poolkit.Budget` sees it."""

    def __init__(self, pool: PoolBase[Any]) -> None:
        self._pool = pool

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self._pool.name

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._pool.closed

    # -- called by the pool -------------------------------------------------------------------------------------------

    def open_account(self) -> None:
        """Open the pool's account in its budget, if it has a budget. Called again in a forked child."""
        pool = self._pool
        config, gate = pool._config, pool._gate
        if config.budget is not None:
            gate.lock.acquire()  # other pools of the budget may notify this one as soon as it has its account
            try:
                pool._core.join(config.budget.open_account(self, config.min_size, config.budget_weight))
            finally:
                gate.lock.release()

    def deliver(self) -> None:
        """Notify other pools of the budget. Called without a lock."""
        permits = self._pool._core.permits
        if permits is not None:
            permits.deliver()
            if self._pool._core.capacity.sharing_needed and not permits.short:
                self._pool._gate.post(self._ease)

    def change(self, config: PoolConfig) -> None:
        """Apply new settings to the account; ConfigError if they do not fit the budget. Called under the lock."""
        if config.budget is not self._pool._config.budget:
            raise ConfigError("budget: cannot be changed in a live pool; create another pool", "budget")
        permits = self._pool._core.permits
        if permits is not None:
            permits.change(config.min_size, config.budget_weight)

    # -- called by the budget -----------------------------------------------------------------------------------------

    def on_news(self) -> None:
        """Have the pool look at its account soon. Called by any thread that does not hold the budget's lock."""
        self._pool._driver.deliver(self._look_again)

    def unused_since(self) -> float | None:
        """Return since when the idle connection has been unused that would be closed for another pool.

        Takes no lock, so the answer may be out of date.
        """
        return self._pool._core.unused_since()

    def cut(self) -> int:
        """Close every connection now, leased ones too, because the pool has lost its permits. Return the number of
        leases that were cut.

        A caller that uses such a connection gets the driver's error; returning the connection raises none. Thread-safe.
        """
        pool = self._pool
        if not pool._driver.is_elsewhere():
            return pool._gate.step(self._cut_now)
        leased = len(pool._leased)
        pool._driver.deliver(self._cut_now)
        return leased

    def _look_again(self) -> None:
        """Take a free permit, or close connections for other pools. Called under the lock."""
        core = self._pool._core
        if core.permits is not None:
            core.permits.hear()
            core.settle(self._pool._clock())  # claims what is still needed, then closes connections for other pools
            self._ease()  # before the next settle(), which sees connections put back without the lock from here on

    def _ease(self) -> None:
        """Update whether each returned connection may have to be closed for another pool. Called under the lock."""
        core = self._pool._core
        if core.permits is not None:
            core.capacity.sharing_needed = core.permits.relax()
            core.stale = True

    def _cut_now(self) -> int:
        """Abort every connection, and return the number of leases that were cut. Called under the lock."""
        pool, now = self._pool, self._pool._clock()
        pool._register.revoked |= set(pool._core.leased.copy())
        commands.clear(pool._core, now)
        return commands.abort_leased(pool._core, now)
