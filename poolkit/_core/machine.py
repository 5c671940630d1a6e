"""The events in a pool's life, and settle(), which acts on them. The rules are in the package's docstring."""

from __future__ import annotations

from ..connector import Verdict
from ..errors import PoolBusy, PoolClosed, PoolSuspended
from ..events import CloseReason, EventKind
from ..policies.retire import NEVER
from .entry import CHECKING, CONNECTING, IN_USE, Entry
from .idle import Idle
from .lane import Lane
from .lease_record import Held
from .state import Phase
from .waiter import Waiter

__all__ = ("Core",)

_OPEN = Phase.OPEN


class Core(Idle):
    """The decisions of one pool. Not thread-safe: the shell holds its lock around every call."""

    # -- acquire ----------------------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter, now: float) -> None:
        """A caller asks. Its ``outcome`` is set at once if possible; else it waits in the queue."""
        if self.heard:
            self.tell(EventKind.ACQUIRE_STARTED, now)
        if self.phase is not _OPEN:
            waiter.outcome = PoolClosed(f"{self.name}: the pool is {self.phase.value}")
        elif self.suspended:
            if self.fail_fast:
                waiter.outcome = PoolSuspended(f"{self.name}: the pool is suspended")
            else:
                self.enqueue(waiter, now)
        elif waiter.lane.idle and waiter.lane.queue.served_before(waiter, now, self.barging):
            self.seek(waiter, now)
        else:
            self.enqueue(waiter, now)
        if self.most_waiting is not None and waiter.queued:
            self.newcomers.append(waiter)
        self.started = True

    def seek(self, waiter: Waiter, now: float, *, front: bool = False, barge: bool = True) -> None:
        """Serve ``waiter`` from the idle connections, or queue it (in ``front`` if it was served badly)."""
        if self.features.keyed:  # the lane may have been forgotten while this caller was busy with a check
            waiter.lane = self.add_lane(waiter.lane.key)
        if barge:
            waiter.outcome = self._take_idle(waiter, now)
            if waiter.lane.waiters:
                self.touched[waiter.lane] = None
        if waiter.outcome is None:
            self.enqueue(waiter, now, front=front)

    def _admit(self, waiter: Waiter) -> None:
        """Refuse the newcomer if too many wait; those for whom a connection is on its way do not count."""
        lane, bound = waiter.lane, self.most_waiting
        if bound is not None and len(lane.queue.beside(waiter)) - lane.connecting * lane.streams > bound:
            lane.queue.discard(waiter)
            self.touched[lane] = None
            waiter.outcome = PoolBusy(f"{self.name}: {bound} callers wait already (max_waiting={bound})")

    def enqueue(self, waiter: Waiter, now: float, *, front: bool = False) -> None:
        """The caller waits, from now on or again."""
        lane = waiter.lane
        if not lane.waiters:
            lane.queued_at = now
            if self.sweep_at > now + self.vigil:
                self.want_sweep(now + self.vigil)
            self.size.queued(now)
        if front:
            lane.queue.add_first(waiter)
        else:
            lane.queue.add(waiter)
        if not waiter.ticket:
            waiter.ticket = self.capacity.ticket()
            self.counts.waits += 1
        self.touched[lane] = None

    def look(self, waiter: Waiter, now: float) -> None:
        """The waiter woke up without an outcome: it may be served from the idle connections again."""
        waiter.nudged = False
        self.touched[waiter.lane] = None

    def abandon(self, waiter: Waiter, now: float, *, timed_out: bool = False) -> None:
        """The caller is gone (timed out, cancelled): what it was given passes to the next."""
        self.counts.timeouts += timed_out
        if timed_out and waiter.caller_class is not None:
            waiter.caller_class.timeouts += 1
        outcome, waiter.outcome = waiter.outcome, None
        waiter.gone = True
        if waiter.queued:
            waiter.lane.queue.discard(waiter)
            self.touched[waiter.lane] = None
        elif isinstance(outcome, Entry):
            if outcome.state is IN_USE:
                outcome.leases -= 1
                self.returned[outcome] = None
            elif outcome.state is CHECKING and waiter.busy:  # interrupted in mid-exchange
                self.begin_close(outcome, CloseReason.DISCARDED, now, abort=True)
            elif outcome.state is CHECKING:  # the check had not begun
                self._put_idle(outcome)
                self.touched[outcome.lane] = None
            elif outcome.state is CONNECTING:
                self.forget(outcome)

    def checked(
        self, entry: Entry, waiter: Waiter, error: BaseException | None, now: float, *, asked: bool = True
    ) -> None:
        """The check of ``entry`` on behalf of ``waiter`` ended, well if ``error`` is None.

        ``asked``: the server was; else there was only time for a look. It has its outcome, or waits in the queue
        again (in front); if it is gone, the next one is served.
        """
        self.counts.checks += asked
        waiter.outcome, waiter.busy = None, False
        if error is None and not asked and self.features.checks and entry.good_until == 0.0:
            self._put_idle(entry)  # one beside it was found dead: a look is not enough, and there is no time for more
            if not waiter.gone:
                self.enqueue(waiter, now, front=True)
                waiter.nudged = True  # when its time is up, the next one tries
            return
        if error is None:
            entry.checked_at = now
            self.freshen(entry, now)
            admitted = self.phase is Phase.OPEN and not self.suspended
            if not waiter.gone and admitted and self.unfit(entry, now) is None:
                self._lease(entry, waiter)
                self._list_spare(entry)
                waiter.outcome = entry
                self.touched[entry.lane] = None  # its other streams are for those who wait
                return
            self.returned[entry] = None
        else:
            self.failed_check(entry, error, now)
        if not waiter.gone:
            self.retry(waiter, now)

    def retry(self, waiter: Waiter, now: float) -> None:
        """What the waiter was given was no use: serve it again, ahead of the others."""
        waiter.outcome = None
        if self.phase is not _OPEN:
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

    def give_back(self, record: Held, now: float) -> None:
        """A lease ended and the connection is sound."""
        entry = record.slot
        entry.uses += 1
        entry.busy += now - record.since
        entry.last_used = now
        entry.good_until = now + self.window
        if self.heard:
            self.tell(EventKind.RELEASED, now, entry, duration=now - record.since)
        entry.leases -= 1
        self.returned[entry] = None

    def discard(
        self, record: Held, now: float, verdict: Verdict = Verdict.DISCARD, error: BaseException | None = None
    ) -> None:
        """A lease ended and the connection must not be used again. A lazy connect may have failed with ``error``."""
        entry = record.slot
        entry.uses += 1
        entry.busy += now - record.since
        entry.leases -= 1
        self.tell(EventKind.RELEASED, now, entry, duration=now - record.since)
        lane = entry.lane
        if entry.pending and error is not None:
            self.dial_failed(entry, error, verdict, entry.generation == lane.generation, now)
        elif verdict is Verdict.OVERLOADED:
            self.refused(record.since, now)
        if verdict is Verdict.SUSPECT:
            self.suspect(lane, now)
        elif verdict is Verdict.RETIRE:
            self.clear_lane(lane, now)
        if entry.leases:  # multiplexed: the last one out closes it
            entry.retire()
        else:
            self.begin_close(entry, CloseReason.DISCARDED if verdict is Verdict.DISCARD else CloseReason.ERROR, now,
                             abort=True)  # fmt: skip

    def dropped(self, record: Held, now: float) -> None:
        """A lease was dropped without being closed: the state of its connection is unknown."""
        entry = record.slot
        self.counts.leaks += 1
        self.tell(EventKind.LEASE_LEAKED, now, entry, duration=now - record.since)
        entry.leases -= 1
        if entry.leases:  # of a multiplexed one there are others
            entry.retire()
        else:
            self.begin_close(entry, CloseReason.LEAKED, now, abort=True)

    def set_capacity(self, entry: Entry, capacity: int, now: float) -> None:
        """The connection serves this many leases at once from now on; 0: those it has, and no new ones.

        For a lazy connect this is also the news that it succeeded.
        """
        self.established(entry, now)
        if capacity < 1:
            entry.retire()
            return
        entry.capacity = entry.lane.streams = capacity
        self.multiplexed = self.multiplexed or capacity > 1
        self.touched[entry.lane] = None
        if entry.state is IN_USE:
            self.returned[entry] = None

    def closed(self, entry: Entry, now: float) -> None:
        """The shell has closed the connection: its permit is free."""
        self.closing -= 1
        if entry.evicted_for is not None:
            entry.evicted_for.evictions -= 1
            self.touched[entry.evicted_for] = None
        self.forget(entry)
        for parker in self.watchers.copy():  # callers enter and leave without the lock
            parker.wake()  # never blocks

    def detach(self, entry: Entry, now: float) -> None:
        """The connection leaves the pool and lives on with its holder."""
        entry.lane.live -= 1
        entry.leases = 0
        self.forget(entry)

    def clear_lane(self, lane: Lane, now: float) -> None:
        """Retire the generation of one lane."""
        lane.generation += 1
        lane.connecting = 0  # those on their way are of the old generation and closed when they arrive
        lane.dialer.forget_failures()
        if not self.features.keyed:  # so that the ways without the lock need not compare generations
            for entry in self.entries.values():
                entry.expires = -NEVER
        self.tell(EventKind.POOL_CLEARED, now)
        for entry in self.take_all_idle(lane):
            self.begin_close(entry, CloseReason.STALE, now)
        self.touched[lane] = None

    # -- after each step ------------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Do what the state of the pool asks for. Called once after each step; the events themselves only note what
        has happened.

        The only place that hands connections to waiters, opens them, keeps ``min_size``, closes surplus ones and gives
        way to other pools. It looks at the state alone, so a call too many does nothing, and it is O(1) where nothing
        is to be done.
        """
        if self.keyed:
            self._settle_lanes(now)
        else:
            lane = self.lane
            returned = self.returned
            while returned:
                self.place(returned.popitem()[0], now)
            if lane.idle:
                if (
                    len(lane.idle) > self.size.max_idle
                    or len(self.entries) > self.size.limit
                    or self.phase is not _OPEN
                ):
                    self.close_surplus(now)
                if lane.waiters:
                    self.serve_idle(lane, now)
            # where callers queue, nearly every step finds that nothing may be opened
            if (len(self.entries) < self.size.limit or not lane.live) and (
                lane.waiters or lane.live + lane.connecting < self.size.minimum
            ):
                self._open_connections(lane, now)
        if self.most_waiting is not None and self.newcomers:
            self._refuse_newcomers()
        if self.permits is not None:
            self.share(now)

    def _open_connections(self, lane: Lane, now: float) -> None:
        """For those who wait, and then for ``min_size``."""
        while lane.waiters and self.dials_wanted(lane, now) and self.permit(lane):
            self.dial_for(lane, now)
            if lane.idle and lane.waiters:  # who was told of an idle one connects by itself: it is for the next
                self.serve_idle(lane, now)
        if lane.live + lane.connecting < self.size.minimum:
            self.keep_minimum(now)

    def _settle_lanes(self, now: float) -> None:
        """The same for many lanes: those of which something has changed are looked at, and then permits go to the lane
        with the oldest waiter, wherever one is free.
        """
        returned = self.returned
        while returned:
            entry = returned.popitem()[0]
            if entry.lane in self.queued:
                self.touched[entry.lane] = None
            self.place(entry, now)
        if len(self.idle_order) > self.size.max_idle or len(self.entries) > self.size.limit:
            self.close_surplus(now)
        while self.touched:
            self._look_at_lanes(now)
        if self.in_need.places or self.classes is not None:
            self._open_in_turn(now)
            self.use.note()

    def _open_in_turn(self, now: float) -> None:
        if self.use.widened():
            self.touched.update(self.queued)
        while True:
            while self.touched:
                self._look_at_lanes(now)
            lane = self.in_need.first()
            if lane is None:
                return
            if self.permit(lane):
                self.dial_for(lane, now)
                self.touched[lane] = None
                continue
            lane = self.uncovered.first() if len(self.entries) >= self.size.limit and self.idle_order else None
            if lane is None or not self.evict_for(lane, now):
                return
            self.touched[lane] = None

    def _look_at_lanes(self, now: float) -> None:
        """Serve the waiters of touched lanes from their idle connections, and note which lanes want a permit."""
        queued, lanes = self.queued, self.touched
        self.touched = {}
        if self.classes is not None and len(lanes) > 1:  # what one class may have goes to its oldest waiter
            lanes = dict.fromkeys(sorted(lanes, key=lambda one: one.oldest().ticket if one.waiters else 0))
        for lane in lanes:
            if not lane.waiters and lane not in queued:
                continue
            if lane.waiters and lane.idle:
                self.serve_idle(lane, now)
            wanted = self.dials_wanted(lane, now) if lane.waiters else 0
            if lane.waiters:
                queued[lane] = None
            else:
                queued.pop(lane, None)
                wanted = 0
            (self.in_need.add if wanted else self.in_need.discard)(lane)
            (self.uncovered.add if wanted > lane.evictions else self.uncovered.discard)(lane)

    def _refuse_newcomers(self) -> None:
        """Those for whom there is no place in the queue: decided when whoever can be served has been served."""
        while self.newcomers:
            waiter = self.newcomers.popleft()
            if waiter.queued:
                self._admit(waiter)
