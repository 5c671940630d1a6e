"""Recovery after an interruption: correct the numbers, and reclaim slots that no code refers to.

An asynchronous exception (KeyboardInterrupt, a soft time limit) may end a step between any two bytecodes. The primary
facts survive: the state of each slot, the idle lists, the leases, and the queued requests with their outcomes.
:func:`repair` computes all other numbers from them.

:func:`audit` reclaims the slots that the interrupted thread was moving from one place to another. Code that is still
going to act on a slot refers to it: from a stack, a request's outcome, a job, an effect or a call in the inbox. The
register refers to it weakly. So no later step can act on a slot without references, and the interpreter reports it
(:class:`.slots.SlotRef`). This works with and without the GIL.
"""

from __future__ import annotations

from ..events import CloseReason
from ..policies.members import members
from ..policies.retire import NEVER
from .effects import Do, Effect
from .machine import Core
from .slots import CHECKING, CLOSED, CLOSING, CONNECTING, ESTABLISHED, IDLE, IN_USE, Slot
from .state import Phase

__all__ = ("audit", "next_look", "repair", "search")

QUIET = 60.0  # seconds: the longest pause between collections, and how long none is wanted until pauses are short again


def audit(core: Core, now: float) -> int:
    """Free the permits of slots that no code refers to, and return their number.

    Their threads were interrupted while they moved them. The state of the connections is unknown, so they are aborted.
    """
    lost = core.slots.take_lost()
    if lost:
        _recount(core)  # an earlier repair did not count them
    for slot in lost:
        core.counts.reclaimed += 1
        if slot.state is CONNECTING:
            core.slots.remove(slot)
        elif slot.state is CLOSING:
            core.effects.append(Effect(Do.ABORT, slot))
        else:
            core.slots.start_close(slot, CloseReason.LEAKED, now, abort=True)
    if lost:
        _keep_totals(core, now)
        core.use.recount(core.slots.living())
        _recount(core)
    return len(lost)


def search(core: Core, now: float) -> None:
    """Have garbage collected if callers wait, and a connection stays away that is neither idle nor on lease.

    Such a slot is on the stack of a thread that takes or returns it, or nothing will act on it. A stored traceback of
    an interrupted caller keeps it, or a cycle with that traceback. In a free-threaded build it may also wait for the
    thread that has made it, which sleeps. The shell clears the frames of our functions that have ended, and has garbage
    collected; this frees all three. It is slow, so the pauses between collections double, up to ``QUIET`` seconds. They
    are short again when none was wanted for so long.
    """
    slots, endpoints = core.slots, core.all_endpoints.copy().values()
    before, slots.strays = slots.strays, {}
    if not any(endpoint.requests for endpoint in endpoints):
        return
    near = {record.slot for record in core.leased.copy().values()}
    near.update(core.returned, *(members(endpoint.idle) for endpoint in endpoints))
    for slot in slots.living():
        if _settled(slot) and slot not in near:
            uses, since = before.get(slot.id, (slot.uses, now))
            slots.strays[slot.id] = slot.uses, since if uses == slot.uses else now
    since = min((since for _, since in slots.strays.values()), default=NEVER)
    if now < max(since + core.recheck_interval, slots.collect_at):
        return
    if now >= slots.collect_at + QUIET:
        slots.collections = 0
    slots.collect_at = now + min(core.recheck_interval * 2 ** min(slots.collections, 10), QUIET)
    slots.collections += 1
    core.effects.append(Effect(Do.COLLECT))


def _settled(slot: Slot) -> bool:
    """Whether no thread of the pool is connecting, checking, resetting or closing it."""
    return slot.state in (IDLE, IN_USE) and not slot.pending


def _keep_totals(core: Core, now: float) -> None:
    """The slots that are gone took their own uses and seconds along. Keep the totals from falling below what was
    reported: to a monitoring system that would be a restart.
    """
    slots, leased, counts = core.slots.living(), core.leased.copy().values(), core.counts
    uses, busy = counts.reported
    counts.uses = max(counts.uses, uses - sum(slot.uses + slot.leases for slot in slots))
    elapsed = sum(max(0.0, now - record.since) for record in leased)
    counts.busy = max(counts.busy, busy - elapsed - sum(slot.busy for slot in slots))


def repair(core: Core, now: float) -> None:
    """After an interrupted step: complete what it began, recount, and schedule a sweep."""
    for slot in core.slots.living():
        if slot.state is CLOSED:  # the step had not removed it yet
            del core.all_slots[slot.id]
    _recount(core)
    for endpoint in list(core.all_endpoints.values()):
        for request in list(endpoint.requests):
            if request.outcome is not None:  # served, but not removed from the queue yet
                endpoint.queue.discard(request)
                core.effects.append(Effect(Do.WAKE, request=request))
            request.rechecking = False
        if endpoint.requests:
            core.timed.add(endpoint)
    core.use.recount(core.slots.living())
    for endpoint in core.all_endpoints.values():
        endpoint.queue.rebuild()
    core.endpoints.reorder()
    if core.phase is Phase.OPEN:
        core.moved.append(True)  # threads that put connections back without the lock now look for requests
        core.rechecks_left = 3
        core.want_sweep(now)
        core.size.look_by(now)


def _recount(core: Core) -> None:
    """Compute the numbers that follow from the slots."""
    slots = core.slots.living()
    core.slots.known = {slot.key: slot.id for slot in slots if slot.key}
    core.slots.closing = sum(slot.state is CLOSING for slot in slots)
    core.capacity.correct(len(core.all_slots), core.slots.closing)
    core.slots.pinging = min(core.slots.pinging, sum(slot.state is CHECKING for slot in slots))
    for endpoint in core.all_endpoints.values():
        endpoint.size = endpoint.live = endpoint.connecting = endpoint.evictions = 0
    for slot in slots:
        endpoint = slot.endpoint
        if slot.state is CLOSING:
            slot.pending = False
            if slot.evicted_for is not None:
                slot.evicted_for.evictions += 1
        endpoint.size += 1
        endpoint.live += slot.state in ESTABLISHED or (slot.state is CONNECTING and slot in core.returned)
        endpoint.connecting += slot.pending and slot.generation == endpoint.generation


def next_look(core: Core, now: float) -> float:
    """Return when the next sweep is due: soon while callers wait, and for a while after an interruption."""
    if core.rechecks_left > 0:
        core.rechecks_left -= 1
    elif not any(endpoint.requests for endpoint in core.all_endpoints.values()):
        return NEVER
    return now + core.recheck_interval
