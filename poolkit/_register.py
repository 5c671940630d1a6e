"""Leases that did not end as they should: dropped without being closed, held for too long, or revoked by the pool."""

from __future__ import annotations

import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from ._core.effects import Do, Effect
from ._core.maintenance import leaks
from ._core.slots import Held
from ._core.state import Phase
from ._explain import place_of
from ._log import logger
from .errors import LeaseOverdue, NotLeased
from .events import CloseReason

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("LeaseRegister",)


class LeaseRegister:
    """Takes connections back whose leases have ended otherwise than by a return."""

    def __init__(self, pool: PoolBase[Any]) -> None:
        self._pool = pool
        self.restart(set())

    def restart(self, revoked: set[int]) -> None:
        """With a new core: what is on lease now is ``revoked``, and let go of when it comes back."""
        self.revoked = revoked
        """The keys of leases that the pool has ended itself."""
        self.reports: deque[tuple[str, tuple[str, int]]] = deque()

    # -- returns that are none ----------------------------------------------------------------------------------------

    def refuse(self, key: int) -> None:
        """What comes back is not on lease: an error, unless the pool took the lease away itself."""
        pool = self._pool
        if pool._core.phase is not Phase.OPEN or key in self.revoked:
            self.revoked.discard(key)
            return  # cut when the pool was closed, or inherited from the parent process
        raise NotLeased(
            f"{pool.name}: release of a connection that is not on lease from this pool: "
            "it is foreign, was released already, or belongs to a Lease (close that)"
        )

    def not_leased(self) -> NotLeased:
        """The error for the use of a lease that is closed."""
        return NotLeased(f"{self._pool.name}: the lease is closed")

    def detach(self, key: int) -> None:
        """Take a connection out of the pool: it is its holder's, its place is free."""
        pool = self._pool
        record = pool._leased.pop(key, None)
        if record is None:
            self.refuse(key)
        else:
            pool._gate.step(pool._core.detach, record.slot, pool._clock())

    def set_capacity(self, record: Held, leases: int) -> None:
        """The connection serves this many leases at once from now on."""
        pool = self._pool
        if leases > 1 and not pool._shared:  # first: from now on only the core may hand out
            pool._shared = True
            pool._gate.step(pool._fast.outdate)
        pool._gate.step(pool._core.set_capacity, record.slot, leases, pool._clock())

    # -- leases that were dropped -------------------------------------------------------------------------------------

    def dropped(self, key: int, record: Held) -> None:
        """Called by a finalizer: takes no lock, does no I/O; the next one at the lock does the work."""
        pool = self._pool
        if pool._leased.pop(key, None) is None:  # at once: the next lease may get this one's id
            self.revoked.discard(key)  # the same
            return  # cut when the pool was closed, or inherited from the parent process
        pool._gate.inbox.append((self._take_back, (record,)))
        pool._driver.wake()  # nobody else may come by for long, and a caller may wait for just this connection

    def _take_back(self, record: Held) -> None:
        """Under the lock: the lease is gone, the state of its connection unknown."""
        pool = self._pool
        pool._core.dropped(record, pool._clock())
        text = (
            f"{pool.name}: a lease was dropped without close(), taken by {pool._name_of(record.holder)} at "
            f"{place_of(record) or 'an unknown place (debug=True notes it)'}; its connection is closed"
        )
        self.reports.append((text, record.place or (__file__, 0)))
        pool._core.effects.append(Effect(Do.REPORT))

    def report(self) -> None:
        """Warn about the leases that were dropped. Called without a lock."""
        while self.reports:
            try:
                report = self.reports.popleft()
            except IndexError:
                break  # another thread was faster
            self.warn(*report)

    def warn(self, text: str, place: tuple[str, int]) -> None:
        """Warn about a dropped lease, at the place where it was taken."""
        try:
            warnings.warn_explicit(text, ResourceWarning, *place)
        except ResourceWarning:  # turned into an error: as for all finalizers, nobody is there to catch it
            logger.error("%s", text)

    # -- leases that last too long ------------------------------------------------------------------------------------

    def look_for_leaks(self) -> None:
        """Report leases held longer than ``leak_after``; with ``on_leak="reclaim"`` take them away."""
        pool, config = self._pool, self._pool._config
        if config.leak_after is not None:
            reclaim = config.on_leak == "reclaim"
            for record, seconds in pool._gate.step(self._overdue_leases, reclaim, pool._clock()):
                pool._monitor.report_overdue(record, seconds, taken_away=reclaim and not record.slot.leases)

    def _overdue_leases(self, reclaim: bool, now: float) -> list[tuple[Held, float]]:
        """Under the lock."""
        core, found = self._pool._core, []
        for record in leaks(core, now):
            found.append((record, now - record.since))
            slot = record.slot
            if reclaim and slot.capacity == 1:
                for key in [key for key, leased in core.leased.copy().items() if leased is record]:
                    if core.leased.pop(key, None) is None:
                        continue  # it came back in this very moment
                    self.revoked.add(key)  # what comes back under it later is let go of
                    slot.leases = 0
                    core.slots.start_close(slot, CloseReason.LEAKED, now, abort=True)
        return found

    def overdue(self, record: Held, error: BaseException | None) -> LeaseOverdue | None:
        """What the holder of a lease that was reported hears on its return, with ``on_leak="raise"``."""
        if error is not None or self._pool._config.on_leak != "raise":
            return None
        return self._pool._monitor.overdue_error(record)
