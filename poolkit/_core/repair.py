"""After an interruption: make the numbers true again, and take back what nobody holds any more.

An asynchronous exception (KeyboardInterrupt, a soft time limit) may end any step between any two bytecodes. The
ground truth survives that: each slot's state, the idle lists, who is leased, who is queued with which outcome. All
other numbers follow from it (:func:`repair`). What the interrupted thread had in its hands, half-way between two
places, is taken back by :func:`audit`: whoever is still going to do something with a slot holds it, on its stack, in a
request's outcome, a job, an effect or a call that waits in the inbox. The register holds it weakly. A slot that nobody
holds is finalized, and reports itself: no late step can come for it. No reference is counted, so it is the same with
and without the GIL; on a free-threaded build the interpreter may notice later that the last reference is gone.
"""

from __future__ import annotations

from ..events import CloseReason
from ..policies.retire import NEVER
from .effects import Do, Effect
from .machine import Core
from .slots import CHECKING, CLOSED, CLOSING, CONNECTING, ESTABLISHED
from .state import Phase

__all__ = ("audit", "repair")


def audit(core: Core, now: float) -> int:
    """Free the permits of slots that are in nobody's hands; the number of them.

    Their threads were interrupted on the way from one place to the next: the state of the connections is unknown,
    so they are aborted. Then whoever waits is served; the call that should have done it may have been lost.
    """
    lost, gone = core.slots.take_lost()
    for slot in lost:
        core.counts.reclaimed += 1
        if slot.state is CLOSING and slot.connection is None:
            core.closed(slot, now)
        elif slot.state is CLOSING:
            core.effects.append(Effect(Do.ABORT, slot))
        elif slot.state is CONNECTING and slot.connection is None:
            core.slots.remove(slot)
        else:
            slot.leases = 0
            core.slots.start_close(slot, CloseReason.LEAKED, now, abort=True)
    core.counts.reclaimed += gone
    if gone:
        core.use.recount(core.slots.living())
    if core.slots.unreported:
        core.want_sweep(now + core.recheck_interval)
    if lost or gone:
        _recount(core)
    return len(lost) + gone


def repair(core: Core, now: float) -> None:
    """A step was interrupted: finish what is half done, count anew, and look over everything soon."""
    for slot in core.slots.living():
        if slot.state is CLOSED:  # on its way out
            del core.all_slots[slot.id]
    _recount(core)
    for endpoint in list(core.all_endpoints.values()):
        for request in list(endpoint.requests):
            if request.outcome is not None:  # served, but not yet out of the queue
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
        core.moved.append(True)  # connections that are just being put back are looked at
        core.rechecks_left = 3
        core.want_sweep(now)
        core.size.look_by(now)


def _recount(core: Core) -> None:
    """The numbers that follow from the slots."""
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
    """When to look again: while somebody waits, and for a while after an interruption."""
    if core.rechecks_left > 0:
        core.rechecks_left -= 1
    elif not any(endpoint.requests for endpoint in core.all_endpoints.values()):
        return NEVER
    return now + core.recheck_interval
