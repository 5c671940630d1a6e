"""Who gets which connection: callers look for one, a free one looks for a caller."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import PoolBusy, PoolClosed, PoolError, PoolSuspended
from ..events import CloseReason
from .context import Context
from .effects import Do, Effect
from .entry import CHECKING, IDLE, IN_USE, Entry
from .idle import IdleSlots
from .lane import Lane
from .slots import Slots
from .state import Phase
from .waiter import Waiter

__all__ = ("Service",)

_OPEN = Phase.OPEN
_tuple = tuple.__new__  # a NamedTuple's own is a Python function
_WAKE = Do.WAKE


class Service:
    """From hand to hand, directly or by way of the idle connections."""

    __slots__ = ("_core", "_counts", "_entries", "_idle", "_slots")

    def __init__(self, core: Context, slots: Slots, idle: IdleSlots) -> None:
        self._core = core
        self._slots = slots
        self._counts = slots.counts
        self._entries = slots.entries
        self._idle = idle

    # -- callers ------------------------------------------------------------------------------------------------------

    def refusal(self) -> PoolError | None:
        """Why a caller is refused now, if so: a new error each time."""
        core = self._core
        if core.phase is not _OPEN:
            return PoolClosed(f"{core.name}: the pool is {core.phase.value}")
        if core.suspended and core.fail_fast:
            return PoolSuspended(f"{core.name}: the pool is suspended")
        return None

    def enqueue(self, waiter: Waiter, now: float) -> None:
        """The caller waits, from now on or again."""
        core = self._core
        endpoint = waiter.lane
        if not endpoint.waiters:
            endpoint.queued_at = now
            if core.sweep_at > now + core.vigil:
                core.want_sweep(now + core.vigil)
            if core.size.max_wait is not None:
                core.size.queued(now)
        endpoint.queue.add(waiter)
        if not waiter.ticket:
            waiter.ticket = core.capacity.ticket()
            self._counts.waits += 1
        core.touched[endpoint] = None

    def _enqueue_first(self, waiter: Waiter, now: float) -> None:
        """A caller that was served badly waits again, before the others."""
        self.enqueue(waiter, now)
        waiter.lane.queue.move_first(waiter)

    def refuse_newcomers(self) -> None:
        """Refuse newcomers beyond ``max_waiting``; those for whom a connection is on its way do not count. Decided when
        whoever can be served has been served.
        """
        core = self._core
        most = core.most_waiting
        while core.newcomers:
            waiter = core.newcomers.popleft()
            endpoint = waiter.lane
            if most is None or not waiter.queued:
                continue
            if len(endpoint.queue.beside(waiter)) - endpoint.connecting * endpoint.streams > most:
                endpoint.queue.discard(waiter)
                core.touched[endpoint] = None
                waiter.outcome = PoolBusy(f"{core.name}: {most} callers wait already (max_waiting={most})")

    def serve(self, waiter: Waiter, outcome: Entry | BaseException) -> None:
        """The one place where a queued waiter ends."""
        waiter.outcome = outcome  # first: whoever is in the queue with an outcome is known to be served (mend.py)
        self._core.effects.append(_tuple(Effect, (_WAKE, None, waiter, None)))
        waiter.lane.queue.remove(waiter)

    def fail(self, endpoint: Lane, make: Callable[[], PoolError]) -> None:
        """End all waits of an endpoint with an error of their own."""
        while endpoint.waiters:
            self.serve(endpoint.oldest(), make())
        self._core.touched[endpoint] = None

    # -- a caller looks for a connection ------------------------------------------------------------------------------

    def take_for(self, waiter: Waiter, now: float) -> Entry | None:
        """A connection for the caller: in use, or being checked where it is in doubt. Unfit ones are closed on the way.

        The last used one comes first with ``order="lifo"``: one in use, which has a stream to spare, before idle ones.
        """
        lifo = self._core.lifo
        found = self._spare_for(waiter, now) if lifo and waiter.lane.spare else None
        if found is None and waiter.lane.queue.admits(waiter):
            found = self._idle_for(waiter, now)
        if found is None and not lifo and waiter.lane.spare:
            found = self._spare_for(waiter, now)
        return found

    def _idle_for(self, waiter: Waiter, now: float) -> Entry | None:
        core, slots, endpoint = self._core, self._slots, waiter.lane
        while (entry := self._idle.take(endpoint, lifo=core.lifo)) is not None:
            if entry.state is not IDLE:
                continue  # was closed where it stood
            reason = slots.retire_reason(entry, now)
            if reason is not None:
                slots.start_close(entry, reason, now)
            elif now >= entry.good_until and core.can_check:
                core.use.charge(entry, waiter)
                entry.move(CHECKING)
                return entry
            else:
                self.begin_lease(entry, waiter)
                return entry
        return None

    def _spare_for(self, waiter: Waiter, now: float) -> Entry | None:
        """A further lease of a connection in use."""
        spare = waiter.lane.spare
        for entry in list(reversed(spare) if self._core.lifo else spare):
            if entry.leases >= entry.capacity or self._slots.retire_reason(entry, now) is not None:
                del spare[entry]
            elif waiter.lane.queue.may_have(waiter, entry):
                del spare[entry]
                self.begin_lease(entry, waiter)
                return entry
        return None

    def begin_lease(self, entry: Entry, waiter: Waiter) -> None:
        """A lease of the connection begins. Its other streams, if it has any, are for other callers."""
        self._core.use.charge_lease(entry, waiter)
        entry.leases += 1
        if entry.state is not IN_USE:
            entry.move(IN_USE)
        if entry.leases < entry.capacity:
            entry.lane.spare[entry] = None

    def serve_waiting(self, endpoint: Lane, now: float) -> None:
        """Serve waiters from the connections that are there."""
        while (endpoint.idle or endpoint.spare) and endpoint.waiters and not self._core.suspended:
            for waiter in endpoint.queue.first_of_each():
                if waiter.nudged:
                    continue  # told of an idle connection, which is for this waiter or for a newcomer who is faster
                entry = self.take_for(waiter, now)
                if entry is not None:
                    self.serve(waiter, entry)
                    break
            else:
                return

    # -- a connection looks for a caller ------------------------------------------------------------------------------

    def place(self, entry: Entry, now: float) -> None:
        """A connection is free, or has a stream to spare: it goes to the oldest waiter, else to the idle ones.

        One of an older generation has ``expires`` in the past: whoever finds that out has seen to it.
        """
        core = self._core
        endpoint = entry.lane
        if entry.owner is not None and not entry.leases:
            core.use.uncharge(entry)
        if (
            now >= entry.expires
            or (len(self._entries) > core.size.limit and self._slots.over_limit())
            or core.phase is not _OPEN
        ):
            if not entry.leases:
                self._slots.start_close(entry, self._end_of(entry, now), now)
            return
        if core.finishes and not entry.leases and core.capacity.must_yield(endpoint.queue):
            self._slots.start_close(entry, CloseReason.SURPLUS, now, announced=True)
            return
        while entry.leases < entry.capacity and not core.suspended:
            waiter = endpoint.queue.first_for(entry)
            if waiter is None:
                break
            # not one in doubt at once (check_after_idle=0): from hand to hand it needs no check, from idle it does
            if core.barging and now - waiter.since < core.barging and entry.capacity == 1 and now < entry.good_until:
                self.put_idle(entry)
                self._wake_to_recheck(waiter)
                return
            if waiter.caller_class is not None:
                core.use.charge_lease(entry, waiter)
            entry.leases += 1
            if entry.state is not IN_USE:
                entry.move(IN_USE)
            self.serve(waiter, entry)
            if entry.capacity == 1:
                return  # hands off: the waiter may have seen it, used it and put it back without the lock by now
        if entry.leases:
            if entry.leases < entry.capacity:
                endpoint.spare[entry] = None
        elif self._idle.full(core.size):
            self._slots.start_close(entry, CloseReason.SURPLUS, now)
        else:
            oldest = self._idle.make_room(core.size)
            if oldest is not None:
                self._slots.start_close(oldest, CloseReason.SURPLUS, now)
            self.put_idle(entry)

    def put_idle(self, entry: Entry) -> None:
        """Nobody uses the connection."""
        self._core.use.uncharge(entry)
        entry.lane.spare.pop(entry, None)
        entry.move(IDLE)
        self._idle.put(entry)

    def _wake_to_recheck(self, waiter: Waiter) -> None:
        """There is an idle connection: the waiter may take it, if no newcomer does so before it has woken up."""
        if not waiter.nudged:
            waiter.nudged = True
            self._core.effects.append(Effect(Do.WAKE, None, waiter))

    def _end_of(self, entry: Entry, now: float) -> CloseReason:
        """Why a connection that was given back is closed."""
        if self._core.phase is not _OPEN:
            return CloseReason.POOL_CLOSED
        if self._slots.over_limit():
            return CloseReason.SURPLUS
        return self._slots.retire_reason(entry, now) or CloseReason.SURPLUS

    def close_surplus(self, now: float) -> None:
        """Close idle connections that are too many, the longest unused first."""
        core, slots = self._core, self._slots
        reason = CloseReason.SURPLUS if core.phase is _OPEN else CloseReason.POOL_CLOSED
        # counted anew each time: callers take and put back without the lock meanwhile
        while core.phase is not _OPEN or slots.over_limit() or self._idle.too_many(core.size):
            entry = self._idle.take_surplus()
            if entry is None:
                return
            slots.start_close(entry, reason, now)

    # -- checks -------------------------------------------------------------------------------------------------------

    def checked(self, entry: Entry, waiter: Waiter, error: BaseException | None, now: float, *, asked: bool) -> None:
        """See :meth:`.machine.Core.checked`."""
        core, slots = self._core, self._slots
        slots.counts.checks += asked
        waiter.outcome, waiter.busy = None, False
        if error is None and not asked and core.features.checks and entry.good_until == 0.0:
            self.put_idle(entry)  # one beside it was found dead: a look is not enough, and there is no time for more
            if not waiter.gone:
                self._enqueue_first(waiter, now)
                waiter.nudged = True  # when its time is up, the next one tries
            return
        if error is None:
            entry.checked_at = now
            slots.mark_alive(entry, now)
            if not waiter.gone and core.hands_out and slots.retire_reason(entry, now) is None:
                self.begin_lease(entry, waiter)
                waiter.outcome = entry
                core.touched[entry.lane] = None  # its other streams are for those who wait
                return
            core.returned[entry] = None
        else:
            self.failed_check(entry, error, now)
        if not waiter.gone:
            self.retry(waiter, now)

    def retry(self, waiter: Waiter, now: float) -> None:
        """What the waiter was given was no use: serve it again, ahead of the others."""
        core = self._core
        waiter.outcome = self.refusal()
        if waiter.outcome is not None:
            return
        waiter.lane = endpoint = core.add_lane(waiter.lane.key)  # it may have been forgotten during a check
        if core.hands_out:
            waiter.outcome = self.take_for(waiter, now)
            if endpoint.waiters:
                core.touched[endpoint] = None
        if waiter.outcome is None:
            self._enqueue_first(waiter, now)

    # -- connections that are of no use -------------------------------------------------------------------------------

    def failed_check(self, entry: Entry, error: BaseException, now: float) -> None:
        """An idle connection turned out dead: close it, and doubt those idle beside it."""
        self._slots.counts.failed_checks += 1
        # silence may last for check_timeout on each of them: do not try the others one after the other
        self.distrust_idle(entry.lane, now, drop=isinstance(error, TimeoutError))
        self._slots.start_close(entry, CloseReason.ERROR, now, abort=True)

    def distrust_idle(self, endpoint: Lane, now: float, *, drop: bool = False) -> None:
        """A connection was found dead: the idle ones are checked before use, or dropped if they cannot be."""
        endpoint.last_failed_check = now
        if drop or not self._core.can_check:
            self.close_idle(endpoint, CloseReason.ERROR, now, abort=True)
            return
        for entry in endpoint.idle.copy():
            entry.good_until = 0.0
        self._core.want_sweep(now)  # do not leave it to the callers to find them out

    def close_idle(self, endpoint: Lane, reason: CloseReason, now: float, *, abort: bool = False) -> None:
        """Close all idle connections of an endpoint."""
        for entry in self._idle.take_all(endpoint):
            self._slots.start_close(entry, reason, now, abort=abort)
