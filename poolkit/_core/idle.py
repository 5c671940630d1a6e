"""The idle connections of a lane: one is taken, checked where it is in doubt, put back, or one too many."""

from __future__ import annotations

from ..events import CloseReason
from .dialing import Dialing
from .entry import CHECKING, IDLE, IN_USE, Entry
from .lane import Lane
from .state import Phase
from .waiter import Waiter

__all__ = ("Idle",)

_OPEN = Phase.OPEN


class Idle(Dialing):
    """From hand to hand by way of the idle list."""

    def _take_idle(self, waiter: Waiter, now: float) -> Entry | None:
        """An idle connection: in use, or being checked where it is in doubt. Unfit ones are closed on the way."""
        queue = waiter.lane.queue
        if not self.multiplexed and not queue.admits(waiter):
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
            if not waiter.lane.queue.may_have(waiter, entry):
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
                self.use.charge(entry, waiter)
                entry.move(CHECKING)
                return entry
            else:
                self._lease(entry, waiter)
                self._list_spare(entry)
                return entry

    def _lease(self, entry: Entry, waiter: Waiter) -> None:
        self.use.charge_lease(entry, waiter)
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
            if self.size.max_idle >= self.size.limit or len(lane.idle) < self.size.max_idle:
                return True
            if not self.multiplexed:
                return False
            # multiplexed connections with a stream to spare stand there too, and are in use
            return sum(entry.state is IDLE for entry in lane.idle.copy()) < self.size.max_idle
        if len(self.idle_order) >= self.size.max_idle > 0:
            oldest = next(iter(self.idle_order))
            oldest.lane.idle.remove(oldest)
            oldest.listed = False
            self.begin_close(oldest, CloseReason.SURPLUS, now)
        return self.size.max_idle > 0

    def _put_idle(self, entry: Entry) -> None:
        self.use.uncharge(entry)
        entry.move(IDLE)
        if self.features.keyed:
            self.idle_order[entry] = None
        if not entry.listed:
            entry.listed = entry.capacity > 1
            entry.lane.idle.append(entry)

    def serve_idle(self, lane: Lane, now: float) -> None:
        """Serve waiters from the idle connections."""
        while lane.idle and lane.waiters and not self.suspended:
            for waiter in lane.queue.first_of_each():
                if waiter.nudged:
                    continue  # told of an idle connection, which is for this waiter or for a newcomer who is faster
                entry = self._take_idle(waiter, now)
                if entry is not None:
                    self.serve(waiter, entry)
                    break
            else:
                return

    def place(self, entry: Entry, now: float) -> None:
        """A connection is free, or has a stream to spare: it goes to the oldest waiter, else to the idle ones."""
        lane = entry.lane
        if entry.owner is not None and not entry.leases:
            self.use.uncharge(entry)
        if (
            now >= entry.expires
            or entry.generation != lane.generation
            or (len(self.entries) > self.size.limit and len(self.entries) - self.closing > self.size.limit)
            or self.phase is not _OPEN
        ):
            if not entry.leases:
                self.begin_close(entry, self._end_of(entry, now), now)
            return
        if self.capacity.sharing_needed and not entry.leases and self.capacity.must_yield(lane.queue.first()):
            self.begin_close(entry, CloseReason.SURPLUS, now, announced=True)
            return
        while entry.leases < entry.capacity and not self.suspended:
            waiter = lane.queue.first_for(entry)
            if waiter is None:
                break
            # not one in doubt at once (check_after_idle=0): from hand to hand it needs no check, from idle it does
            if now - waiter.since < self.barging and entry.capacity == 1 and now < entry.good_until:
                self._put_idle(entry)
                self.nudge(waiter)
                return
            if waiter.caller_class is not None:
                self.use.charge_lease(entry, waiter)
            entry.leases += 1
            if entry.state is not IN_USE:
                entry.move(IN_USE)
            self.serve(waiter, entry)
            if entry.capacity == 1:
                return  # hands off: the waiter may have seen it, used it and put it back without the lock by now
        if entry.leases:
            self._list_spare(entry)
        elif not self._room_for_idle(lane, now):
            self.begin_close(entry, CloseReason.SURPLUS, now)
        else:
            self._put_idle(entry)

    def _end_of(self, entry: Entry, now: float) -> CloseReason:
        """Why a connection that was given back is closed."""
        if self.phase is not _OPEN:
            return CloseReason.POOL_CLOSED
        if len(self.entries) - self.closing > self.size.limit:
            return CloseReason.SURPLUS
        return self.unfit(entry, now) or CloseReason.SURPLUS

    def close_surplus(self, now: float) -> None:
        """Close idle connections that are too many, the longest unused first."""
        reason = CloseReason.SURPLUS if self.phase is Phase.OPEN else CloseReason.POOL_CLOSED
        while self._too_many_idle():  # counted anew each time: callers take and put back without the lock meanwhile
            entry = self._pop_longest_unused()
            if entry is None:
                return
            self.begin_close(entry, reason, now)

    def _too_many_idle(self) -> bool:
        if self.phase is not _OPEN or len(self.entries) - self.closing > self.size.limit:
            return True
        if self.features.keyed:
            return len(self.idle_order) > self.size.max_idle
        idle = self.lane.idle
        if self.lane.waiters:  # they are told of them, and take them
            return False
        if len(idle) <= self.size.max_idle or not self.multiplexed:
            return len(idle) > self.size.max_idle
        return sum(entry.state is IDLE for entry in idle.copy()) > self.size.max_idle

    def _pop_longest_unused(self) -> Entry | None:
        """Remove the longest unused connection from the idle ones; None if another thread was faster."""
        if self.features.keyed:
            entry = next((entry for entry in self.idle_order if not entry.lane.waiters), None)
        elif self.multiplexed:
            entry = next((entry for entry in self.lane.idle.copy() if entry.state is IDLE), None)
        else:
            try:
                return self.lane.idle.popleft()
            except IndexError:
                return None
        if entry is not None:
            entry.lane.idle.remove(entry)
            entry.listed = False
        return entry
