"""A pool's side of a budget that other pools share: the messages that it gets, and those that it passes on."""

from __future__ import annotations

from ._core import commands
from ._core.ledger import Account
from ._outbox import Outbox
from .config import PoolConfig
from .errors import ConfigError

__all__ = ("Sharing",)


class Sharing(Outbox):
    """What :class:`~poolkit.Budget` asks of a pool."""

    _config: PoolConfig
    _orphans: set[int]

    def _open_account(self) -> Account | None:
        """The pool's part of its budget, if it has one."""
        config = self._config
        if config.budget is None:
            return None
        account: Account = config.budget.open_account(self, config.min_size, config.budget_weight)
        return account

    def _change_account(self, config: PoolConfig) -> None:
        """Under the lock: other settings are about to take effect; ConfigError if the budget cannot have them."""
        if config.budget is not self._config.budget:
            raise ConfigError("budget: cannot be changed in a live pool; make another pool", "budget")
        if self._core.permits is not None:
            self._core.permits.change(config.min_size, config.budget_weight)

    def _with_budget(self, text: str) -> str:
        """The state of the pool in words, and that of its budget."""
        return text if self._core.permits is None else f"{text}; {self._core.permits.words()}"

    def _hear(self) -> None:
        """The shared budget has news: look at it soon. Called by any thread that holds no lock of the budget's."""
        self._gate.post(self._look_again)

    def _unused_since(self) -> float | None:
        """Since when the idle connection that would give way to another pool has been unused; a guess, no lock."""
        return self._core.unused_since()

    def _look_again(self) -> None:
        """Under the lock."""
        core = self._core
        if core.permits is not None:
            core.permits.hear()
            core.settle(self._clock())  # what is still needed is claimed again, before this pool gives way to others
            self._press(core.permits.relax())  # first: what is put back without the lock from here on is seen

    def _press(self, pressed: bool) -> None:
        """Under the lock: whether returned connections have to be looked at, for another pool may need them."""
        if self._core.capacity.sharing_needed != pressed:
            self._core.capacity.sharing_needed = pressed
            self._refresh()

    def _ease(self) -> None:
        """Under the lock."""
        if self._core.permits is not None:
            self._press(self._core.permits.relax())

    def _pass_on(self) -> None:
        permits = self._core.permits
        if permits is not None:
            permits.deliver()
            if self._core.capacity.sharing_needed and not permits.short:
                self._gate.post(self._ease)

    def _cut(self) -> int:
        """Close every connection now, leased ones too: the right to keep them is lost. The number of leases cut.

        Whoever used one of them sees it break; giving it back is no error. Thread-safe.
        """
        return self._gate.step(self._cut_now)

    def _cut_now(self) -> int:
        core, now = self._core, self._clock()
        self._orphans |= set(core.leased.copy())
        commands.clear(core, now)
        return commands.abort_leased(core, now)
