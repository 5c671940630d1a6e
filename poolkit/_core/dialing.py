"""When a connection is opened, and what follows when that worked or failed."""

from __future__ import annotations

from ..connector import Verdict
from ..errors import ConnectTimeout, describe
from ..events import CloseReason, EventKind
from ..policies.retire import NEVER, expiry, rotation_lead
from .dialer import Open, Refuse
from .effects import Do, Effect
from .entry import IDLE, IN_USE, Entry, Purpose
from .lane import Lane
from .state import LOOK_EVERY, CoreState, Phase

__all__ = ("Dialing",)


class Dialing(CoreState):
    """Permits, connects, backoff and breaker."""

    def dials_wanted(self, lane: Lane, now: float) -> int:
        """Connects that the waiters of ``lane`` need and that pace, backoff and breaker allow now. Permits apart."""
        if self.suspended or self.phase is not Phase.OPEN:
            return 0
        dialer = lane.dialer
        # idle ones that the oldest was told of: it looks at them first
        told = len(lane.idle) if lane.oldest().nudged else 0
        extra = dialer.spoken_for(lane.connecting) - told
        needed = lane.queue.needed(lane.connecting, lane.streams, extra=extra)
        if needed <= 0:
            if lane.streams == 1 or not lane.connecting or told:
                return 0
            overdue = dialer.late_at()
            if now < overdue:  # the connect on its way has a stream for each of them, if it comes to anything
                self.want_tick(lane, overdue)
                return 0
            needed = lane.queue.needed(lane.connecting, lane.streams, extra=extra, beside=1)
            if needed <= 0:
                return 0
        return needed if self.may_open(lane, now, lane.queued_at) else 0

    def dial_for(self, lane: Lane, now: float) -> None:
        """Open a connection for those who wait. The permit is there."""
        waiter = lane.queue.first()
        entry = self.dial(lane, Purpose.DEMAND, now)
        if self.features.connect_in_caller and waiter is not None:
            self.use.charge(entry, waiter)
            self.serve(waiter, entry)
        else:
            self.effects.append(Effect(Do.CONNECT, entry))

    def may_open(self, lane: Lane, now: float, queued_at: float = -NEVER) -> bool:
        """Whether pace, breaker, backoff and ``max_connecting`` let a connect start now.

        Callers who have nothing else to hope for hear at once of an open breaker or a fatal error.
        """
        answer = lane.dialer.may_open(
            now, lane.connecting, lane.live, elsewhere=self.features.elsewhere, queued_at=queued_at
        )
        if isinstance(answer, Open):
            return lane.connecting < self.max_connecting
        if answer.until < NEVER:
            self.want_tick(lane, answer.until)
        if isinstance(answer, Refuse):
            self.fail_waiters(lane, lambda: lane.dialer.error(now))
        return False

    def permit(self, lane: Lane) -> bool:
        """Whether a connection may be opened for the first waiter of ``lane`` for whom no connect is going on. If the
        shared budget has no permit, it is claimed.
        """
        if len(self.entries) >= self.size.limit:
            return False
        behind = 0 if self.features.keyed else lane.connecting * lane.streams
        # in a keyed pool one for each lane in need
        need = len(self.in_need) if self.features.keyed else max(1, lane.queue.needed(lane.connecting, lane.streams))
        return self.capacity.take(lane.queue.claimant(behind), min(need, self.size.limit - len(self.entries)))

    def evict_for(self, lane: Lane, now: float) -> bool:
        """Keyed pools: close the longest unused idle connection of another lane; False if there is none."""
        victim = next((entry for entry in self.idle_order if entry.lane is not lane), None)
        if victim is None:
            return False
        lane.evictions += 1
        victim.evicted_for = lane
        self.idle_order.pop(victim)
        victim.lane.idle.remove(victim)
        victim.listed = False
        self.begin_close(victim, CloseReason.SURPLUS, now)
        return True

    def spare_permit(self) -> bool:
        """A permit for a connection that nobody waits for, if there is one to spare."""
        return len(self.entries) < self.size.limit and self.capacity.take_spare()

    def longest_unused(self) -> Entry | None:
        """The idle connection that gives way if another pool of the budget needs its permit."""
        if self.features.keyed:
            return next((e for e in self.idle_order if not e.lane.queue.wanting), None)
        if self.lane.live <= self.config.min_size or self.lane.queue.wanting:
            return None
        return next((entry for entry in self.lane.idle.copy() if entry.state is IDLE), None)

    def unused_since(self) -> float | None:
        """Since when that connection has been unused. Called without the lock: a guess, from copies alone."""
        if not self.features.keyed:
            spare = self.longest_unused()
            return None if spare is None else spare.last_used
        lanes = [lane for lane in list(self.lanes.values()) if lane.idle and not lane.queue.wanting]
        firsts = [next((e for e in lane.idle.copy() if e.state is IDLE), None) for lane in lanes]
        return min([first.last_used for first in firsts if first is not None], default=None)

    def share(self, now: float) -> None:
        """In a pool with a budget: claim no more than is needed, give way to others, have them told what is new."""

        def evict(entry: Entry) -> bool:
            try:
                entry.lane.idle.remove(entry)
            except ValueError:  # taken a moment ago, without the lock
                return False
            entry.listed = False
            self.idle_order.pop(entry, None)
            self.begin_close(entry, CloseReason.SURPLUS, now, announced=True)
            return True

        if self.capacity.yield_to_others(self.longest_unused, evict):
            self.effects.append(Effect(Do.SHARE))

    def established(self, entry: Entry, now: float) -> None:
        """The connection stands: the server is well."""
        if not entry.pending:
            return
        entry.pending = False
        lane = entry.lane
        self.touched[lane] = None
        spent = now - entry.requested_at
        current = entry.generation == lane.generation
        lane.connecting -= current
        if lane.dialer.succeeded(spent, current=current):
            self.tell(EventKind.BREAKER_CLOSED, now)
        self.counts.connects += 1
        self.meters.connect.record(spent)
        self.tell(EventKind.CONNECTION_READY, now, entry, duration=spent)

    def twin_of(self, connection: object) -> Entry | None:
        """The entry that has this very connection already, if there is one."""
        twin = self.entries.get(self.known.get(id(connection), 0))
        return twin if twin is not None and twin.connection is connection else None

    def connected(
        self,
        entry: Entry,
        connection: object,
        capacity: int,
        now: float,
        *,
        keep: bool = False,
        lazy: bool = False,
    ) -> bool:
        """A connect succeeded (``lazy``: begins with the first use; set_capacity tells when it has succeeded).

        ``keep``: its caller takes it itself; the answer says whether it may.
        """
        lane, config = entry.lane, self.config
        entry.connection = connection
        entry.key = id(connection)
        self.known[entry.key] = entry.id  # no reference: mend.audit() counts those
        entry.capacity = max(1, capacity)
        self.multiplexed = self.multiplexed or capacity > 1
        if not lazy:
            lane.streams = entry.capacity
        entry.ready_at = entry.last_used = entry.checked_at = now
        entry.expires = expiry(now, config.max_lifetime, config.lifetime_jitter, self.random)
        self.freshen(entry, now)
        lane.live += 1
        if not lazy:
            self.established(entry, now)
        self.want_sweep(min(
            entry.expires - rotation_lead(config.max_lifetime), now + (config.idle_timeout or NEVER),
            now + (config.keepalive or NEVER), now + (LOOK_EVERY if self.features.peeks else NEVER),
            now + (config.leak_after or NEVER),
        ))  # fmt: skip
        old, entry.replaced = entry.replaced, None
        admitted = self.phase is Phase.OPEN and not self.suspended
        kept = keep and admitted and entry.generation == lane.generation
        if kept:
            entry.leases = 1
            entry.move(IN_USE)
            if entry.owner is not None:
                entry.owner.acquires += 1
        self.returned[entry] = None
        if old is not None:
            self._replace(old, now)
        return kept

    def _replace(self, old: Entry, now: float) -> None:
        """The successor is here: the old connection goes now if idle, else when it comes back."""
        old.expires = old.good_until = now
        if old.state is IDLE:
            try:
                old.lane.idle.remove(old)
            except ValueError:
                return  # taken a moment ago
            self.idle_order.pop(old, None)
            self.begin_close(old, CloseReason.EXPIRED, now)

    def connect_failed(
        self, entry: Entry, error: BaseException, verdict: Verdict, now: float, lingers: bool = False
    ) -> None:
        """A connect failed; the permit goes to the next, the news to whom it concerns.

        ``lingers``: something of it is left at the server, and it keeps its permit until :meth:`closed` is called.
        """
        lane = entry.lane
        current = entry.generation == lane.generation
        if lingers:
            self.linger(entry)
        else:
            self.forget(entry)
        self.dial_failed(entry, error, verdict, current, now)
        hopeless = lane.dialer.hopeless(lane.live, elsewhere=self.features.elsewhere)
        if current and hopeless and not self.features.connect_in_caller:
            self.fail_waiters(lane, lane.dialer.connect_error)

    def dial_failed(self, entry: Entry, error: BaseException, verdict: Verdict, current: bool, now: float) -> None:
        """Take note of a connect that failed: counts, backoff, breaker. ``current``: of the lane's generation."""
        lane = entry.lane
        dialer = lane.dialer
        self.counts.connect_errors += 1
        if isinstance(error, TimeoutError) and not isinstance(error, ConnectTimeout):
            late = ConnectTimeout(
                f"{self.name}: no connection within connect_timeout={self.config.connect_timeout!r}: {describe(error)}"
            )
            late.__cause__ = error
            error = late
        if verdict is Verdict.OVERLOADED:
            self.refused(entry.requested_at, now)
        together = entry.requested_at < dialer.last_error_at  # begun together with one that failed before it
        self.tell(EventKind.CONNECT_FAILED, now, entry, duration=now - entry.requested_at, error=error)
        # a connect in its caller ends with it (cancelled, interrupted): that says nothing about the server
        about_server = isinstance(error, Exception) or not self.features.connect_in_caller
        if about_server:
            dialer.note(error, now)
            self.last_failed = lane
        if current and about_server:
            fatal = verdict is Verdict.FATAL
            if dialer.failed(self.config, self.random, now, fatal=fatal, together=together):
                self.tell(EventKind.BREAKER_OPENED, now, error=error)
            if lane.waiters or entry.purpose is not Purpose.DEMAND:
                self.want_tick(lane, dialer.retry_at)
        if entry.replaced is not None:  # the old one is still there: another attempt before its end
            entry.replaced.rotating = False
            self.want_sweep(max(now, dialer.retry_at))

    def refused(self, begun: float, now: float) -> None:
        """The server bears no more than it has: a pool with autoscale makes itself smaller."""
        self.size.refused(begun, now, lambda: sum(lane.live for lane in self.lanes.values()))

    def keep_minimum(self, now: float) -> None:
        """Keep ``min_size`` connections (in a pool with autoscale: its floor), once the pool is in use."""
        lane = self.lane
        if not self.started or self.suspended or self.phase is not Phase.OPEN or self.features.keyed:
            return
        while lane.live + lane.connecting < self.size.minimum and len(self.entries) < self.size.limit:
            if not self.may_open(lane, now):
                return
            # only min_size is reserved, and may be claimed
            if not self.capacity.take_minimum(max(0, self.config.min_size - lane.live - lane.connecting)):
                return
            self.effects.append(Effect(Do.CONNECT, self.dial(lane, Purpose.FILL, now)))
