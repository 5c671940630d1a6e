"""After an interruption: make the numbers true again, and take back what nobody holds any more.

An asynchronous exception (KeyboardInterrupt, a soft time limit) may end any step between any two bytecodes. The
ground truth survives that: each entry's state, the idle lists, who is leased, who is queued with which outcome. All
other numbers follow from it (:func:`mend`). What the interrupted thread had in its hands, half-way between two
places, is found by :func:`audit`: whoever is still going to do something with an entry has a reference to it, on
its stack, in a waiter's outcome, a job, an effect or a call that waits in the inbox. An entry that the register
alone knows is therefore in nobody's hands, and no late step can come for it.
"""

from __future__ import annotations

import sys
from typing import Any

from ..events import CloseReason
from ..policies.retire import NEVER
from .effects import Do, Effect
from .entry import CHECKING, CLOSED, CLOSING, CONNECTING, ESTABLISHED, Entry
from .machine import Core
from .state import Phase

__all__ = ("audit", "mend", "unheld")


# Reference counts are exact under the GIL of CPython only: elsewhere nothing is taken back on their word.
_EXACT = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()


def _counted(register: dict[int, Any]) -> list[tuple[Any, int]]:
    return [(entry, sys.getrefcount(entry)) for entry in list(register.values())]


_ALONE = _counted({0: object()})[0][1] if _EXACT else 0  # what the count is for an object that the register alone knows


def unheld(core: Core) -> list[Entry]:
    """The entries to which nothing refers but the register of permits."""
    if not _EXACT:
        return []
    return [entry for entry, count in _counted(core.entries) if count <= _ALONE]


def audit(core: Core, now: float) -> int:
    """Free the permits of entries that are in nobody's hands; the number of them.

    Their threads were interrupted on the way from one place to the next: the state of the connections is unknown,
    so they are aborted. Then whoever waits is served; the call that should have done it may have been lost.
    """
    lost = unheld(core)
    for entry in lost:
        core.counts.reclaimed += 1
        if entry.state is CLOSING and entry.connection is None:
            core.closed(entry, now)
        elif entry.state is CLOSING:
            core.effects.append(Effect(Do.ABORT, entry))
        elif entry.state is CONNECTING and entry.connection is None:
            core.slots.remove(entry)
        else:
            entry.leases = 0
            core.slots.start_close(entry, CloseReason.LEAKED, now, abort=True)
    if lost:
        _recount(core)
    return len(lost)


def mend(core: Core, now: float) -> None:
    """A step was interrupted: finish what is half done, count anew, and look over everything soon."""
    for entry in list(core.entries.values()):
        if entry.state is CLOSED:  # on its way out
            del core.entries[entry.id]
    _recount(core)
    for lane in list(core.lanes.values()):
        for waiter in list(lane.waiters):
            if waiter.outcome is not None:  # served, but not yet out of the queue
                lane.queue.discard(waiter)
                core.effects.append(Effect(Do.WAKE, waiter=waiter))
            waiter.nudged = False
        if lane.waiters:
            core.timed.add(lane)
    core.use.recount(core.entries.values())
    for lane in core.lanes.values():
        lane.queue.rebuild()
    core.endpoints.reorder()
    if core.phase is Phase.OPEN:
        core.moved.append(True)  # connections that are just being put back are looked at
        core.unsure = 3
        core.want_sweep(now)
        core.size.look_by(now)


def _recount(core: Core) -> None:
    """The numbers that follow from the entries."""
    entries = list(core.entries.values())
    core.slots.known = {entry.key: entry.id for entry in entries if entry.key}
    core.slots.closing = sum(entry.state is CLOSING for entry in entries)
    core.capacity.correct(len(entries), core.slots.closing)
    core.slots.pinging = min(core.slots.pinging, sum(entry.state is CHECKING for entry in entries))
    for lane in core.lanes.values():
        lane.size = lane.live = lane.connecting = lane.evictions = 0
    for entry in entries:
        lane = entry.lane
        if entry.state is CLOSING:
            entry.pending = False
            if entry.evicted_for is not None:
                entry.evicted_for.evictions += 1
        lane.size += 1
        lane.live += entry.state in ESTABLISHED or (entry.state is CONNECTING and entry in core.returned)
        lane.connecting += entry.pending and entry.generation == lane.generation


def next_look(core: Core, now: float) -> float:
    """When to look again: while somebody waits, and for a while after an interruption."""
    if core.unsure > 0:
        core.unsure -= 1
    elif not any(lane.waiters for lane in core.lanes.values()):
        return NEVER
    return now + core.vigil
