"""Elastic size: show the policy how the pool stands, and carry out what it decides. For pools with ``autoscale``."""

from __future__ import annotations

from ..events import EventKind
from ..policies.autoscale import Autoscaler, View
from .entry import CLOSED, CLOSING, IN_USE
from .machine import Core

__all__ = ("expect", "look", "view")


def look(core: Core, now: float, least: float) -> None:
    """Let the policy look, and say when it wants to again. ``least``: seconds between two looks at so large a pool."""
    scaler = core.scaler
    if scaler is None:
        return
    rest = scaler.idle_until(now)
    if rest is not None and not any(lane.waiters for lane in core.lanes.values()):
        core.want_look(rest)  # whoever has asked for a look has been served: the usual case
        return
    if now < core.looked_at + least:
        core.want_look(core.looked_at + least)
        return
    core.looked_at = now
    seen = view(core, now)
    if scaler.look(now, seen):
        _apply(core, scaler, now)
    core.want_look(scaler.next_look(now, seen, least))


def expect(core: Core, size: int, now: float) -> None:
    """Make room for ``size`` connections that somebody else is going to open, or has opened."""
    scaler = core.scaler
    if scaler is not None and size > scaler.limit:
        before = core.limit
        scaler.expect(now, size)
        _take(core, scaler, before, now)
        core.want_look(now)


def view(core: Core, now: float) -> View:
    """The pool in numbers. O(connections)."""
    busy: float | None = core.counts.busy + sum(max(0.0, now - one.since) for one in core.leased.copy().values())
    in_use = size = 0
    for entry in list(core.entries.values()):
        size += entry.state is not CLOSING and entry.state is not CLOSED
        in_use += entry.state is IN_USE
        if entry.capacity > 1:
            busy = None  # seconds of leases, of which there may be many at once
        elif busy is not None:
            busy += entry.busy
    waiting, since, queued, failing = 0, now, False, False
    for lane in list(core.lanes.values()):
        failing = failing or lane.dialer.rounds > 0
        if lane.waiters and not core.suspended:
            queued = True
            callers = lane.queue.gaining(core.scaler.high if core.scaler is not None else core.limit)
            unserved = callers - lane.connecting * lane.streams
            trouble = lane.dialer.rounds > 0 and (lane.connecting or now < lane.dialer.retry_at)
            if unserved > 0 and not trouble:  # else it is the server that they wait for, not a place
                waiting += unserved
                since = min(since, lane.oldest().since)
    down = failing and not any(lane.live for lane in core.lanes.values())
    return View(in_use, size, busy, waiting, now - since, queued, down)


def _apply(core: Core, scaler: Autoscaler, now: float) -> None:
    """Take over limit and floor: idle connections above them go now, leased ones when they come back."""
    _take(core, scaler, core.limit, now)
    core.touch_all()


def _take(core: Core, scaler: Autoscaler, before: int, now: float) -> None:
    core.take_size()
    core.resized = True
    if core.limit != before:
        core.tell(EventKind.POOL_RESIZED, now, detail=f"{before} -> {core.limit}: {scaler.reason}")
