"""The idle connections of a lane: one is taken, checked where it is in doubt, put back, or one too many."""

from __future__ import annotations

from ..events import CloseReason
from .dialing import Dialing
from .entry import CHECKING, IDLE, IN_USE, Entry
from .lane import Lane
from .waiter import Waiter

__all__ = ("Idle",)


class Idle(Dialing):
    """From hand to hand by way of the idle list."""

    def _take_idle(self, waiter: Waiter, now: float) -> Entry | None:
        """An idle connection: in use, or being checked where it is in doubt. Unfit ones are closed on the way."""
        if self.classes is None:
            return self._pick(waiter, now, [])
        if not self.multiplexed and not self.admits(waiter):
            return None
        aside: list[Entry] = []
        found = self._pick(waiter, now, aside)
        for entry in reversed(aside):
            (waiter.lane.idle.append if self.lifo else waiter.lane.idle.appendleft)(entry)
        return found

    def _pick(self, waiter: Waiter, now: float, aside: list[Entry]) -> Entry | None:
        """See :meth:`_take_idle`. What the waiter's class may not have is left ``aside``."""
        idle = waiter.lane.idle
        while True:
            try:
                entry = idle.pop() if self.lifo else idle.popleft()
            except IndexError:
                return None
            if self.classes is not None and not self.may_have(waiter, entry):
                aside.append(entry)
                continue
            entry.listed = False
            if entry.state is IN_USE:  # multiplexed, with a stream to spare
                if entry.leases < entry.capacity and self.unfit(entry, now) is None:
                    self._lease(entry, waiter)
                    self._list_spare(entry)
                    return entry
                continue
            if entry.state is not IDLE:
                continue  # was closed where it stood
            self.idle_order.pop(entry, None)
            reason = self.unfit(entry, now)
            if reason is not None:
                self.begin_close(entry, reason, now)
            elif now >= entry.good_until and self.doubts:
                self.charge(entry, waiter)
                entry.move(CHECKING)
                return entry
            else:
                self._lease(entry, waiter)
                self._list_spare(entry)
                return entry

    def _lease(self, entry: Entry, waiter: Waiter) -> None:
        if waiter.caller_class is not None:
            self.charge(entry, waiter)
            waiter.caller_class.acquires += 1
        entry.leases += 1
        if entry.state is not IN_USE:
            entry.move(IN_USE)

    def _list_spare(self, entry: Entry) -> None:
        if entry.leases < entry.capacity and not entry.listed:
            entry.listed = True
            entry.lane.idle.append(entry)

    def _room_for_idle(self, lane: Lane, now: float) -> bool:
        """Whether one more connection may be idle; with many lanes the longest unused one makes room for it."""
        if not self.features.keyed:
            if self.max_idle >= self.limit or len(lane.idle) < self.max_idle:
                return True
            if not self.multiplexed:
                return False
            # multiplexed connections with a stream to spare stand there too, and are in use
            return sum(entry.state is IDLE for entry in lane.idle.copy()) < self.max_idle
        if len(self.idle_order) >= self.max_idle > 0:
            oldest = next(iter(self.idle_order))
            oldest.lane.idle.remove(oldest)
            oldest.listed = False
            self.begin_close(oldest, CloseReason.SURPLUS, now)
        return self.max_idle > 0

    def _put_idle(self, entry: Entry) -> None:
        self.uncharge(entry)
        entry.move(IDLE)
        if self.features.keyed:
            self.idle_order[entry] = None
        if not entry.listed:
            entry.listed = entry.capacity > 1
            entry.lane.idle.append(entry)

    def match(self, lane: Lane, now: float) -> None:
        """Serve waiters from idle connections."""
        while lane.waiters and not self.suspended:
            for waiter in self.in_turn(lane):
                entry = self._take_idle(waiter, now)
                if entry is not None:
                    self.serve(waiter, entry)
                    break
            else:
                return
        if self.pressed:  # what the last of them has left is for other pools
            self.give_way(now)
