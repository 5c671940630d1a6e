"""Leases that did not end normally: dropped without being closed, held too long, or revoked by the pool."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from ._core.effects import Do, Effect
from ._core.maintenance import leaks
from ._core.slots import Held
from ._core.state import Phase
from ._log import logger
from ._places import place_of
from .errors import LeaseOverdue, NotLeased
from .events import CloseReason

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("LeaseRegister",)


class LeaseRegister:
    """Recovers connections whose leases have not ended by a return."""

    def __init__(self, pool: PoolBase[Any]) -> None:
        self._pool = pool
        self.shared = bool(pool._driver.operations.shared)
        """Whether a connection may have several leases."""
        self.restart(set())

    def restart(self, revoked: set[int]) -> None:
        """Start again with a new core. The present leases are ``revoked``; their return does nothing."""
        self.revoked = revoked
        """The keys of leases that the pool has ended itself."""
        self.reports: deque[tuple[str, tuple[str, int]]] = deque()

    # -- invalid returns ----------------------------------------------------------------------------------------

    def refuse(self, key: int) -> None:
        """Raise NotLeased for the return of a connection that is not leased, unless the pool has revoked the lease."""
        pool = self._pool
        if pool._core.phase is not Phase.OPEN or key in self.revoked:
            self.revoked.discard(key)
            return  # aborted when the pool was closed, or inherited from the parent process
        raise NotLeased(
            f"{pool.name}: release() of a connection that is not leased from this pool: "
            "it belongs to another pool, was released already, or belongs to a Lease (close that one)"
        )

    def not_leased(self) -> NotLeased:
        """Return the error for the use of a closed lease."""
        return NotLeased(f"{self._pool.name}: the lease is closed")

    def detach(self, key: int) -> None:
        """Take a connection out of the pool. Its holder owns it, and its permit is free."""
        pool = self._pool
        record = pool._leased.pop(key, None)
        if record is None:
            self.refuse(key)
        else:
            pool._gate.step(pool._core.detach, record.slot)

    def set_capacity(self, record: Held, leases: int) -> None:
        """Set how many leases the connection serves at once."""
        pool = self._pool
        if leases > 1 and not self.shared:  # first: the paths without the lock are only for exclusive connections
            self.shared = True
            pool._gate.step(pool._fast.outdate)
        pool._gate.step(pool._core.set_capacity, record.slot, leases, pool._clock())

    def holds(self, caller: Hashable) -> bool:
        """Return whether a thread or task holds a lease. Takes no lock."""
        return any(record.holder == caller for record in self._pool._leased.copy().values())

    # -- leases that were dropped -------------------------------------------------------------------------------

    def dropped_bare(self, key: int) -> None:
        """As :meth:`dropped`, for a connection that was leased without a :class:`~poolkit.Lease`."""
        record = self._pool._leased.get(key)
        if record is not None:
            self.dropped(key, record)

    def dropped(self, key: int, record: Held) -> None:
        """A lease was dropped without being closed. Called by a finalizer, so it takes no lock and does no I/O: the
        next thread that takes the lock closes the connection.
        """
        pool = self._pool
        if pool._leased.pop(key, None) is None:  # at once, because the next lease may have the same id
            self.revoked.discard(key)  # for the same reason
            return  # aborted when the pool was closed, or inherited from the parent process
        pool._gate.inbox.append((self._take_back, (record,)))
        pool._driver.wake()  # no other thread may use the pool for long, while a caller waits for this connection

    def _take_back(self, record: Held) -> None:
        """Close the connection of a dropped lease, because its state is unknown. Called under the lock."""
        pool = self._pool
        pool._core.dropped(record, pool._clock())
        text = (
            f"{pool.name}: a lease was dropped without close(), taken by {pool._driver.name_of(record.holder)} at "
            f"{place_of(record) or 'an unknown place (debug=True records it)'}; its connection is closed"
        )
        self.reports.append((text, record.place or (__file__, 0)))
        pool._core.effects.append(Effect(Do.REPORT))

    def report(self) -> None:
        """Warn about each dropped lease. Called without a lock."""
        while self.reports:
            try:
                report = self.reports.popleft()
            except IndexError:
                break  # another thread has taken the last one
            self.warn(*report)

    def warn(self, text: str, place: tuple[str, int]) -> None:
        """Warn about a dropped lease, at the place where it was taken."""
        try:
            warnings.warn_explicit(text, ResourceWarning, *place)
        except ResourceWarning:  # a filter turns it into an error, which no caller would catch
            logger.error("%s", text)

    # -- leases held too long -----------------------------------------------------------------------------------

    def look_for_leaks(self) -> None:
        """Report leases held longer than ``leak_after``; with ``on_leak="reclaim"`` revoke them."""
        pool, config = self._pool, self._pool._config
        if config.leak_after is not None:
            reclaim = config.on_leak == "reclaim"
            for record, seconds in pool._gate.step(self._overdue_leases, reclaim, pool._clock()):
                pool._monitor.report_overdue(record, seconds, taken_away=reclaim and not record.slot.leases)

    def _overdue_leases(self, reclaim: bool, now: float) -> list[tuple[Held, float]]:
        """Return the overdue leases, and how long each has been held. With ``reclaim``, revoke those of exclusive
        connections. Called under the lock.
        """
        core, found = self._pool._core, []
        for record in leaks(core, now):
            found.append((record, now - record.since))
            slot = record.slot
            if reclaim and slot.capacity == 1:
                for key in [key for key, leased in core.leased.copy().items() if leased is record]:
                    if core.leased.pop(key, None) is None:
                        continue  # it has just been returned
                    self.revoked.add(key)  # a later return under this key does nothing
                    slot.leases = 0
                    core.slots.start_close(slot, CloseReason.LEAKED, now, abort=True)
        return found

    def overdue(self, record: Held, error: BaseException | None) -> LeaseOverdue | None:
        """Return the error for the holder of a reported lease, with ``on_leak="raise"`` and no error of its own."""
        if error is not None or self._pool._config.on_leak != "raise":
            return None
        return self._pool._monitor.overdue_error(record)
