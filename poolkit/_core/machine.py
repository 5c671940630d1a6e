"""Who gets which connection: acquire, offer, give back. The rules are in the package's docstring."""

from __future__ import annotations

from ..connector import Verdict
from ..errors import PoolBusy, PoolClosed, PoolSuspended
from ..events import CloseReason, EventKind
from ..policies.retire import NEVER
from ..policies.sizing import pace
from .effects import Do, Effect
from .entry import CHECKING, CONNECTING, IN_USE, Entry
from .idle import Idle
from .lane import Lane
from .state import Phase
from .waiter import Waiter

__all__ = ("Core",)


class Core(Idle):
    """The decisions of one pool. Not thread-safe: the shell holds its lock around every call."""

    # -- acquire ----------------------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter, now: float) -> None:
        """A caller asks. His ``outcome`` is set at once where possible; else he stands in the queue."""
        if self.heard:
            self.tell(EventKind.ACQUIRE_STARTED, now)
        lane = waiter.lane
        if (
            lane.live
            and not lane.idle
            and len(self.entries) >= self.limit
            and self.started
            and not self.features.keyed
            and self.config.max_waiting is None
            and self.plain
        ):  # what the rest comes to in the usual case where callers queue: nothing is idle, and nothing may be opened
            self._enqueue(waiter, now)
            if lane.idle:  # put back without the lock since we looked: rule of __init__.py
                self.match(lane, now)
            return
        self.classify(waiter)
        if self.phase is not Phase.OPEN:
            waiter.outcome = PoolClosed(f"{self.name}: the pool is {self.phase.value}")
        elif self.suspended:
            if self.fail_fast:
                waiter.outcome = PoolSuspended(f"{self.name}: the pool is suspended")
            else:
                self._enqueue(waiter, now)
                self._admit(waiter)
        else:
            if lane.waiters and now - lane.oldest().since >= self.barging:
                self.match(lane, now)  # those who came before have waited long enough: nobody overtakes them
            self.seek(waiter, now, barge=self.overtakes(waiter, now))
        if not self.started:
            self.started = True
            self.refill(now)

    def seek(self, waiter: Waiter, now: float, *, front: bool = False, barge: bool = True) -> None:
        """Serve ``waiter`` from the idle connections, or queue him (in ``front`` if he was served badly)."""
        if self.features.keyed:  # the lane may have been forgotten while this caller was busy with a check
            waiter.lane = self.add_lane(waiter.lane.key)
        lane = waiter.lane
        if barge:
            waiter.outcome = entry = self._take_idle(waiter, now)
            if entry is not None and entry.listed and lane.waiters:
                self.match(lane, now)  # who may have no connection of his own may share this one
        if waiter.outcome is None:
            self._enqueue(waiter, now, front=front)
            self.pump(lane, now)
            if waiter.queued and lane.idle:  # put back without the lock since we looked: rule of __init__.py
                self.match(lane, now)
            if waiter.queued and not front:
                self._admit(waiter)

    def _admit(self, waiter: Waiter) -> None:
        """Refuse the newcomer if too many wait; those for whom a connection is on its way do not count."""
        lane, bound = waiter.lane, self.config.max_waiting
        if bound is not None and len(self.ahead_of(waiter)) - lane.connecting * lane.streams > bound:
            waiter.queued = False
            lane.leave(waiter)
            waiter.outcome = PoolBusy(f"{self.name}: {bound} callers wait already (max_waiting={bound})")

    def _enqueue(self, waiter: Waiter, now: float, *, front: bool = False) -> None:
        lane = waiter.lane
        if self.classes is not None:
            self.classify(waiter)
        if not lane.waiters:
            lane.pace_until = now + pace(lane.connect_time)
            self.want_sweep(now + self.vigil)
            if self.scaler is not None:
                self.want_look(now + self.scaler.config.max_wait)
        if not waiter.ticket:
            self._tickets += 1
            waiter.ticket = self._tickets if self.permits is None else self.permits.ticket()
            self.counts.waits += 1
            if waiter.caller_class is not None:
                waiter.caller_class.waits += 1
        lane.join(waiter, front=front)
        waiter.queued = True

    def look(self, waiter: Waiter, now: float) -> None:
        """The waiter woke up without an outcome: serve the queue from what is idle."""
        waiter.nudged = False
        self.match(waiter.lane, now)
        self.pump(waiter.lane, now)

    def abandon(self, waiter: Waiter, now: float, *, timed_out: bool = False) -> None:
        """The caller is gone (timed out, cancelled): what he was given passes to the next."""
        self.counts.timeouts += timed_out
        if timed_out and waiter.caller_class is not None:
            waiter.caller_class.timeouts += 1
        outcome, waiter.outcome = waiter.outcome, None
        waiter.gone = True
        if waiter.queued:
            waiter.queued = False
            waiter.lane.leave(waiter)
            self.pass_nudge(waiter)
            if self.permits is not None:
                self.want_less(waiter.lane)
                if self.pressed:
                    self.give_way(now)
        elif isinstance(outcome, Entry):
            if outcome.state is IN_USE:
                outcome.leases -= 1
                self.offer(outcome, now)
            elif outcome.state is CHECKING and waiter.busy:  # interrupted in mid-exchange
                self.begin_close(outcome, CloseReason.DISCARDED, now, abort=True)
            elif outcome.state is CHECKING:  # he had not begun
                self._put_idle(outcome)
                self.match(waiter.lane, now)
                if self.classes is not None:
                    self.freed(waiter.lane, now)
            elif outcome.state is CONNECTING:
                self.forget(outcome)
                self.freed(outcome.lane, now)

    def checked(
        self, entry: Entry, waiter: Waiter, error: BaseException | None, now: float, *, asked: bool = True
    ) -> None:
        """The check of ``entry`` on behalf of ``waiter`` ended, well if ``error`` is None.

        ``asked``: the server was; else there was only time for a look. He has his outcome, or stands in the queue
        again (in front); if he is gone the next one profits.
        """
        self.counts.checks += asked
        waiter.outcome, waiter.busy = None, False
        if error is None and not asked and self.features.checks and entry.good_until == 0.0:
            self._put_idle(entry)  # one beside it was found dead: a look is not enough, and he has no time for more
            if not waiter.gone:
                self._enqueue(waiter, now, front=True)
                waiter.nudged = True  # when his time is up, the next one tries
            return
        if error is None:
            entry.checked_at = now
            self.freshen(entry, now)
            admitted = self.phase is Phase.OPEN and not self.suspended
            if not waiter.gone and admitted and self.unfit(entry, now) is None:
                self._lease(entry, waiter)
                self._list_spare(entry)
                waiter.outcome = entry
                if entry.listed and entry.lane.waiters:
                    self.match(entry.lane, now)  # its other streams are theirs
                return
            self.offer(entry, now)
        else:
            self.failed_check(entry, error, now)
        if not waiter.gone:
            self.retry(waiter, now)

    def retry(self, waiter: Waiter, now: float) -> None:
        """What the waiter was given was no use: serve him again, ahead of the others."""
        waiter.outcome = None
        if self.phase is not Phase.OPEN:
            waiter.outcome = PoolClosed(f"{self.name}: the pool is {self.phase.value}")
        elif self.suspended and self.fail_fast:
            waiter.outcome = PoolSuspended(f"{self.name}: the pool is suspended")
        else:
            self.seek(waiter, now, front=True, barge=not self.suspended)

    def failed_check(self, entry: Entry, error: BaseException, now: float) -> None:
        """An idle connection turned out dead: close it, and doubt those idle beside it."""
        self.counts.failed_checks += 1
        # silence may last for check_timeout on each of them: do not try the others one after the other
        self.suspect(entry.lane, now, drop=isinstance(error, TimeoutError))
        self.begin_close(entry, CloseReason.ERROR, now, abort=True)

    def suspect(self, lane: Lane, now: float, *, drop: bool = False) -> None:
        """A connection was found dead: the idle ones are checked before use, or dropped if they cannot be."""
        lane.last_failed_check = now
        if drop or not self.doubts:
            for entry in self.take_all_idle(lane):
                self.begin_close(entry, CloseReason.ERROR, now, abort=True)
            return
        for entry in lane.idle.copy():
            entry.good_until = 0.0
        self.want_sweep(now)  # do not leave it to the callers to find them out

    # -- release ----------------------------------------------------------------------------------------------

    def give_back(self, entry: Entry, now: float) -> None:
        """A lease ended and the connection is sound."""
        lane = entry.lane
        entry.last_used = now
        self.freshen(entry, now)
        if self.heard:
            self.tell(EventKind.RELEASED, now, entry, duration=now - entry.leased_at)
        if (
            lane.waiters
            and self.plain
            and entry.capacity == entry.leases == 1
            and entry.generation == lane.generation
            and now < entry.expires
            and len(self.entries) - self.closing <= self.limit
        ):  # what offer() comes to in the usual case where callers queue: from hand to hand
            waiter = lane.oldest()
            if now - waiter.since >= self.barging:
                if entry.state is not IN_USE:
                    entry.move(IN_USE)
                self.serve(waiter, entry)
                return
        entry.leases -= 1
        self.offer(entry, now)

    def discard(
        self, entry: Entry, now: float, verdict: Verdict = Verdict.DISCARD, error: BaseException | None = None
    ) -> None:
        """A lease ended and the connection must not be used again. A lazy connect may have failed with ``error``."""
        entry.leases -= 1
        self.tell(EventKind.RELEASED, now, entry, duration=now - entry.leased_at)
        lane = entry.lane
        if entry.pending and error is not None:
            self.dial_failed(entry, error, verdict, entry.generation == lane.generation, now)
        elif verdict is Verdict.OVERLOADED:
            self.refused(entry.leased_at, now)
        if verdict is Verdict.SUSPECT:
            self.suspect(lane, now)
        elif verdict is Verdict.RETIRE:
            self.clear_lane(lane, now)
        if entry.leases:  # multiplexed: the last one out closes it
            entry.retire()
        else:
            self.begin_close(entry, CloseReason.DISCARDED if verdict is Verdict.DISCARD else CloseReason.ERROR, now,
                             abort=True)  # fmt: skip
        self.pump(lane, now)

    def dropped(self, entry: Entry, now: float) -> None:
        """A lease was dropped without being closed: the state of its connection is unknown."""
        self.counts.leaks += 1
        self.tell(EventKind.LEASE_LEAKED, now, entry, duration=now - entry.leased_at)
        entry.leases -= 1
        if entry.leases:  # of a multiplexed one there are others
            entry.retire()
        else:
            self.begin_close(entry, CloseReason.LEAKED, now, abort=True)

    def offer(self, entry: Entry, now: float) -> None:
        """A connection is free, or has a stream to spare: to the oldest waiter, else to the idle ones."""
        lane = entry.lane
        eased = not entry.leases and self.uncharge(entry)
        if self.phase is not Phase.OPEN:
            reason: CloseReason | None = CloseReason.POOL_CLOSED
        elif len(self.entries) - self.closing > self.limit:
            reason = CloseReason.SURPLUS
        else:
            reason = self.unfit(entry, now)
            if reason is None and self.pressed and not entry.leases and self._yields(entry):
                reason = CloseReason.SURPLUS
        if reason is not None:
            if not entry.leases:
                self.begin_close(entry, reason, now)
            if eased:
                self.freed(lane, now)
            return
        while lane.waiters and entry.leases < entry.capacity and not self.suspended:
            waiter = self.next_for(lane, entry)
            if waiter is None:
                break
            # not one in doubt at once (check_after_idle=0): from hand to hand it needs no check, from idle it does
            if now - waiter.since < self.barging and entry.capacity == 1 and now < entry.good_until:
                self._put_idle(entry)
                self.nudge(waiter)
                return
            self._lease(entry, waiter)
            self.serve(waiter, entry)
            if self.pressed:
                self.give_way(now)
            if entry.capacity == 1:
                if eased:
                    self.freed(lane, now)
                return  # hands off: the waiter may have seen it, used it and put it back without the lock by now
        if entry.leases:
            self._list_spare(entry)
        elif not self._room_for_idle(lane, now):
            self.begin_close(entry, CloseReason.SURPLUS, now)
        else:
            self._put_idle(entry)
            if len(lane.idle) > self.max_idle and not self.features.keyed:
                self.settle(lane, now)  # put back without the lock since we looked
            if self.needy and not eased:
                self.freed(lane, now)
            if self.pressed:
                self.give_way(now)
        if eased:
            self.freed(lane, now)

    def _yields(self, entry: Entry) -> bool:
        """Whether the returned connection gives way to another pool of the budget, before any waiter gets it."""
        permits, lane = self.permits, entry.lane
        assert permits is not None
        if not permits.short:
            self.effects.append(Effect(Do.SHARE))  # nobody wants anything any more: the shell eases the way
            return False
        first = self.next_waiter(lane)
        if first is not None and permits.yields(first.ticket):
            entry.leaving = True
            self.pass_on()
        return entry.leaving

    def set_capacity(self, entry: Entry, capacity: int, now: float) -> None:
        """The connection serves this many leases at once from now on; 0: those it has, and no new ones.

        For a lazy connect this is also the news that it succeeded.
        """
        self.established(entry, now)
        if capacity < 1:
            entry.retire()
            self.pump(entry.lane, now)
            return
        entry.capacity = entry.lane.streams = capacity
        self.multiplexed = self.multiplexed or capacity > 1
        if entry.state is IN_USE:
            self.offer(entry, now)
        self.pump(entry.lane, now)

    def settle(self, lane: Lane, now: float) -> None:
        """A connection was put back without the lock while the pool changed: make good what that missed."""
        if self.phase is not Phase.OPEN:
            for entry in self.take_all_idle(lane):
                self.begin_close(entry, CloseReason.POOL_CLOSED, now)
            return
        if self.features.keyed or self.multiplexed:
            self._close_surplus(lane, now)
        else:  # one by one, and counted anew each time: callers take and put back without the lock meanwhile
            while lane.idle and (len(lane.idle) > self.max_idle or len(self.entries) - self.closing > self.limit):
                try:
                    entry = lane.idle.popleft()
                except IndexError:  # taken a moment ago
                    break
                self.begin_close(entry, CloseReason.SURPLUS, now)
        self.match(lane, now)
        self.pump(lane, now)

    def _close_surplus(self, lane: Lane, now: float) -> None:
        """Close the longest unused connections that are too many, where only the core hands out."""
        over = len(self.entries) - self.closing - self.limit
        kept = len(self.idle_order) if self.features.keyed else len(lane.idle)
        if over > 0 or kept > self.max_idle:
            idle = self.take_all_idle(lane)
            surplus = max(0, over, (kept if self.features.keyed else len(idle)) - self.max_idle)
            for entry in idle[:surplus]:
                self.begin_close(entry, CloseReason.SURPLUS, now)
            self.relist(lane, idle[surplus:])

    def closed(self, entry: Entry, now: float) -> None:
        """The shell has closed the connection: its permit is free."""
        self.closing -= 1
        if entry.evicted_for is not None:
            entry.evicted_for.evictions -= 1
        self.forget(entry)
        for parker in self.watchers.copy():  # callers enter and leave without the lock
            parker.wake()  # never blocks
        self.freed(entry.lane, now)

    def detach(self, entry: Entry, now: float) -> None:
        """The connection leaves the pool and lives on with its holder."""
        entry.lane.live -= 1
        entry.leases = 0
        self.forget(entry)
        self.freed(entry.lane, now)

    def clear_lane(self, lane: Lane, now: float) -> None:
        """Retire the generation of one lane."""
        lane.generation += 1
        lane.connecting = 0  # those on their way are of the old generation and closed when they arrive
        lane.retry_at, lane.rounds, lane.fatal = 0.0, 0, False
        lane.breaker.succeeded()
        if not self.features.keyed:  # so that the ways without the lock need not compare generations
            for entry in self.entries.values():
                entry.expires = -NEVER
        self.tell(EventKind.POOL_CLEARED, now)
        for entry in self.take_all_idle(lane):
            self.begin_close(entry, CloseReason.STALE, now)
        self.pump(lane, now)
