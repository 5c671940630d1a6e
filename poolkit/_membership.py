"""A pool's membership in a budget that other pools share: what the pool asks of the budget, and the reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._core import commands
from .config import PoolConfig
from .errors import ConfigError

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("Membership",)


class Membership:
    """What :class:`~poolkit.Budget` knows of a pool."""

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
        """Get the pool's part of its budget, if it has one (again in a forked child)."""
        pool = self._pool
        config, gate = pool._config, pool._gate
        if config.budget is not None:
            gate.lock.acquire()  # other pools of the budget may have news for this one as soon as it has its part
            try:
                pool._core.join(config.budget.open_account(self, config.min_size, config.budget_weight))
            finally:
                gate.lock.release()

    def deliver(self) -> None:
        """Tell other pools the news. Called without a lock."""
        permits = self._pool._core.permits
        if permits is not None:
            permits.deliver()
            if self._pool._core.capacity.sharing_needed and not permits.short:
                self._pool._gate.post(self._ease)

    def change(self, config: PoolConfig) -> None:
        """Under the lock: other settings are about to take effect; ConfigError if the budget cannot have them."""
        if config.budget is not self._pool._config.budget:
            raise ConfigError("budget: cannot be changed in a live pool; make another pool", "budget")
        permits = self._pool._core.permits
        if permits is not None:
            permits.change(config.min_size, config.budget_weight)

    # -- called by the budget -----------------------------------------------------------------------------------------

    def on_news(self) -> None:
        """The budget has news: look at it soon. Called by any thread that holds no lock of the budget."""
        self._pool._driver.deliver(self._look_again)

    def unused_since(self) -> float | None:
        """Since when the idle connection that would give way to another pool has been unused; a guess, no lock."""
        return self._pool._core.unused_since()

    def cut(self) -> int:
        """Close every connection now, leased ones too: the right to keep them is lost. The number of leases cut.

        Whoever used one of them sees it break; giving it back is no error. Thread-safe.
        """
        pool = self._pool
        if not pool._driver.is_elsewhere():
            return pool._gate.step(self._cut_now)
        leased = len(pool._leased)
        pool._driver.deliver(self._cut_now)
        return leased

    def _look_again(self) -> None:
        """Under the lock."""
        core = self._pool._core
        if core.permits is not None:
            core.permits.hear()
            core.settle(self._pool._clock())  # claims what is still needed before this pool gives way to others
            self._ease()  # before the next look: what is put back without the lock from here on is seen

    def _ease(self) -> None:
        """Under the lock: whether returned connections have to be looked at, for another pool may need them."""
        core = self._pool._core
        if core.permits is not None:
            core.capacity.sharing_needed = core.permits.relax()
            core.stale = True

    def _cut_now(self) -> int:
        """Under the lock."""
        pool, now = self._pool, self._pool._clock()
        pool._register.revoked |= set(pool._core.leased.copy())
        commands.clear(pool._core, now)
        return commands.abort_leased(pool._core, now)
