"""Which caller gets which connection: a caller takes an idle one, a returned one goes to a waiting caller."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import copy_context

from ..errors import PoolClosed, PoolError, PoolSuspended
from ..events import CloseReason
from ..policies.members import members
from .context import Context
from .effects import Do, Effect
from .endpoints import Endpoint, IdleSlots
from .queue import Request
from .slots import CHECKING, IDLE, IN_USE, Slot, Slots
from .state import Phase

__all__ = ("Service",)

_OPEN = Phase.OPEN
_tuple = tuple.__new__  # faster than NamedTuple.__new__, which is a Python function
_WAKE = Do.WAKE


class Service:
    """Assigns connections to callers, directly or from the idle connections."""

    __slots__ = ("_core", "_counts", "_entries", "_idle", "_slots")

    def __init__(self, core: Context, slots: Slots, idle: IdleSlots) -> None:
        self._core = core
        self._slots = slots
        self._counts = slots.counts
        self._entries = slots.all
        self._idle = idle

    # -- callers ------------------------------------------------------------------------------------------------------

    def refusal(self) -> PoolError | None:
        """Return a new error if callers are refused now, otherwise None."""
        core = self._core
        if core.phase is not _OPEN:
            return PoolClosed(f"{core.name}: the pool is {core.phase.value}")
        if core.suspended and (core.fail_fast or core.features.elsewhere):
            return PoolSuspended(f"{core.name}: the pool is suspended")
        return None

    def enqueue(self, request: Request, now: float) -> None:
        """Put the caller in the queue, for the first time or again."""
        core = self._core
        endpoint = request.endpoint
        if not endpoint.requests:
            endpoint.queue.queued_at = now
            if core.sweep_at > now + core.recheck_interval:
                core.want_sweep(now + core.recheck_interval)
            if core.size.max_wait is not None:
                core.size.queued(now)
        request.context = copy_context()
        endpoint.queue.add(request)
        if not request.ticket:
            request.ticket = core.capacity.ticket()
            endpoint.queue.waits += 1
        core.touched[endpoint] = None

    def _enqueue_first(self, request: Request, now: float) -> None:
        """Put a caller whose connection proved unusable in the queue again, before the others."""
        self.enqueue(request, now)
        request.endpoint.queue.move_first(request)

    def serve(self, request: Request, outcome: Slot | BaseException) -> None:
        """End a queued request. No other code does that."""
        request.outcome = outcome  # before the removal: repair() counts a queued request with an outcome as served
        self._core.effects.append(_tuple(Effect, (_WAKE, None, request)))
        request.endpoint.queue.remove(request)

    def fail(
        self, endpoint: Endpoint, make: Callable[[], PoolError], requests: Iterable[Request] | None = None
    ) -> None:
        """Fail the requests of an endpoint (all, or ``requests``), each with a new error."""
        for request in list(endpoint.requests if requests is None else requests):
            self.serve(request, make())
        self._core.touched[endpoint] = None

    # -- a caller takes a connection ----------------------------------------------------------------------------------

    def take_for(self, request: Request, now: float) -> Slot | None:
        """Return a connection for the caller, in use, or to be checked first if it is in doubt. Close those that must
        not be used again.

        With ``order="lifo"``, connections in use that have a stream to spare come before idle ones.
        """
        lifo = self._core.lifo
        found = self._spare_for(request, now) if lifo and request.endpoint.spare else None
        if found is None and request.endpoint.queue.admits(request):
            found = self._idle_for(request, now)
        if found is None and not lifo and request.endpoint.spare:
            found = self._spare_for(request, now)
        return found

    def _idle_for(self, request: Request, now: float) -> Slot | None:
        core, slots, endpoint = self._core, self._slots, request.endpoint
        while (slot := self._idle.take(endpoint, lifo=core.lifo)) is not None:
            if slot.state is not IDLE:
                continue  # it was closed while it was in the list
            reason = slots.retire_reason(slot, now)
            if reason is not None:
                slots.start_close(slot, reason, now)
            elif now >= slot.fresh_until and core.can_check:
                core.use.charge(slot, request)
                slot.move(CHECKING)
                return slot
            else:
                self.begin_lease(slot, request)
                return slot
        return None

    def _spare_for(self, request: Request, now: float) -> Slot | None:
        """Return a connection in use that can serve a further lease for the caller, or None."""
        spare = request.endpoint.spare
        for slot in list(reversed(spare) if self._core.lifo else spare):
            if slot.leases >= slot.capacity or self._slots.retire_reason(slot, now) is not None:
                del spare[slot]
            elif request.endpoint.queue.may_have(request, slot):
                del spare[slot]
                self.begin_lease(slot, request)
                return slot
        return None

    def begin_lease(self, slot: Slot, request: Request) -> None:
        """Begin a lease of the connection. If it has streams to spare, other callers can have them."""
        self._core.use.charge_lease(slot, request)
        slot.leases += 1
        if slot.state is not IN_USE:
            slot.move(IN_USE)
        if slot.leases < slot.capacity:
            slot.endpoint.spare[slot] = None

    def serve_waiting(self, endpoint: Endpoint, now: float) -> None:
        """Serve requests from idle connections, and from those in use with a stream to spare."""
        while (endpoint.idle or endpoint.spare) and endpoint.requests and not self._core.suspended:
            for request in endpoint.queue.first_of_each():
                if request.rechecking:
                    continue  # woken for an idle connection, which this request or a faster newcomer takes
                slot = self.take_for(request, now)
                if slot is not None:
                    self.serve(request, slot)
                    break
            else:
                return

    # -- a connection goes to a caller --------------------------------------------------------------------------------

    def place(self, slot: Slot, now: float) -> None:
        """Assign a connection that is free, or has a stream to spare, to the oldest request; otherwise make it idle.

        A connection of an older generation has ``expires`` in the past, so it is closed here without a comparison of
        generations.
        """
        core = self._core
        endpoint = slot.endpoint
        if slot.owner is not None and not slot.leases:
            core.use.uncharge(slot)
        if (
            now >= slot.expires
            or (len(self._entries) > core.size.limit and self._slots.over_limit())
            or core.phase is not _OPEN
        ):
            if not slot.leases:
                self._slots.start_close(slot, self._end_of(slot, now), now)
            return
        if core.finishes and not slot.leases and core.capacity.must_yield(endpoint.queue):
            self._slots.start_close(slot, CloseReason.SURPLUS, now, announced=True)
            return
        while slot.leases < slot.capacity and not core.suspended:
            request = endpoint.queue.first_for(slot)
            if request is None:
                break
            # with check_after_idle=0 it would be in doubt as an idle connection; handed over, it needs no check
            if (
                core.barging
                and endpoint.queue.served_before(request, now, core.barging)
                and slot.capacity == 1
                and now < slot.fresh_until
            ):
                self.put_idle(slot)
                self._wake_to_recheck(request)
                return
            if request.caller_class is not None:
                core.use.charge_lease(slot, request)
            slot.leases += 1
            if slot.state is not IN_USE:
                slot.move(IN_USE)
            self.serve(request, slot)
            if slot.capacity == 1:
                return  # do not touch it again: the caller may already have used it and put it back without the lock
        if slot.leases:
            if slot.leases < slot.capacity:
                endpoint.spare[slot] = None
        elif self._idle.full(core.size):
            self._slots.start_close(slot, CloseReason.SURPLUS, now)
        else:
            oldest = self._idle.make_room(core.size)
            if oldest is not None:
                self._slots.start_close(oldest, CloseReason.SURPLUS, now)
            self.put_idle(slot)

    def put_idle(self, slot: Slot) -> None:
        """Make the connection idle."""
        self._core.use.uncharge(slot)
        slot.endpoint.spare.pop(slot, None)
        slot.move(IDLE)
        self._idle.put(slot)

    def _wake_to_recheck(self, request: Request) -> None:
        """Wake the request for an idle connection. It takes the connection unless a newcomer is faster."""
        if not request.rechecking:
            request.rechecking = True
            self._core.effects.append(Effect(Do.WAKE, None, request))

    def _end_of(self, slot: Slot, now: float) -> CloseReason:
        """Return why a returned connection is closed."""
        if self._core.phase is not _OPEN:
            return CloseReason.POOL_CLOSED
        if self._slots.over_limit():
            return CloseReason.SURPLUS
        return self._slots.retire_reason(slot, now) or CloseReason.SURPLUS

    def close_surplus(self, now: float) -> None:
        """Close surplus idle connections, the longest unused first."""
        core, slots = self._core, self._slots
        reason = CloseReason.SURPLUS if core.phase is _OPEN else CloseReason.POOL_CLOSED
        # counted again each time: meanwhile callers take and return connections without the lock
        while core.phase is not _OPEN or slots.over_limit() or self._idle.too_many(core.size):
            slot = self._idle.take_surplus()
            if slot is None:
                return
            slots.start_close(slot, reason, now)

    # -- checks -------------------------------------------------------------------------------------------------------

    def checked(
        self, slot: Slot, request: Request, error: BaseException | None, now: float, *, asked: bool = True
    ) -> None:
        """The check of ``slot`` on behalf of ``request`` ended; it passed if ``error`` is None.

        ``asked``: the server was asked; otherwise there was only time to look at the socket. The request gets its
        outcome, or enters the queue again in front. If the request is gone, the next one is served.
        """
        core, slots = self._core, self._slots
        slots.counts.checks += asked
        request.outcome, request.busy = None, False
        if error is None and not asked and core.features.checks and slot.fresh_until == 0.0:
            # in doubt because another one was found dead: a look is not enough, and there was no time for a check
            self.put_idle(slot)
            if not request.gone:
                self._enqueue_first(request, now)
                request.rechecking = True  # after its timeout, the next request tries
            return
        if error is None:
            slot.checked_at = now
            slots.mark_alive(slot, now)
            if not request.gone and core.hands_out and slots.retire_reason(slot, now) is None:
                self.begin_lease(slot, request)
                request.outcome = slot
                core.touched[slot.endpoint] = None  # its other streams can serve waiting requests
                return
            core.returned[slot] = None
        else:
            self.failed_check(slot, error, now)
        if not request.gone:
            self.retry(request, now)

    def retry(self, request: Request, now: float) -> None:
        """The connection that the request was assigned is unusable: serve it again, before the others."""
        core = self._core
        request.outcome = self.refusal()
        if request.outcome is not None:
            return
        # the endpoint may have been forgotten during a check
        request.endpoint = endpoint = core.add_endpoint(request.endpoint.key)
        if core.hands_out:
            request.outcome = self.take_for(request, now)
            if endpoint.requests:
                core.touched[endpoint] = None
        if request.outcome is None:
            self._enqueue_first(request, now)

    # -- unusable connections -----------------------------------------------------------------------------------------

    def failed_check(self, slot: Slot, error: BaseException, now: float) -> None:
        """An idle connection was found dead: close it, and have the other idle ones checked before use."""
        self._slots.counts.failed_checks += 1
        # after a timeout, drop the others unchecked: each check may take as long (check_timeout)
        self.distrust_idle(slot.endpoint, now, drop=isinstance(error, TimeoutError))
        self._slots.start_close(slot, CloseReason.ERROR, now, abort=True)

    def distrust_idle(self, endpoint: Endpoint, now: float, *, drop: bool = False) -> None:
        """A connection was found dead: have the idle ones checked before use, or drop them if that is impossible."""
        endpoint.last_failed_check = now
        if drop or not self._core.can_check:
            self.close_idle(endpoint, CloseReason.ERROR, now, abort=True)
            return
        for slot in members(endpoint.idle):
            slot.fresh_until = 0.0
        self._core.want_sweep(now)  # the sweep checks them in the background, so that callers need not wait for it

    def close_idle(self, endpoint: Endpoint, reason: CloseReason, now: float, *, abort: bool = False) -> None:
        """Close all idle connections of an endpoint."""
        for slot in self._idle.take_all(endpoint):
            self._slots.start_close(slot, reason, now, abort=abort)
