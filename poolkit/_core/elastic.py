"""The input of the policy for elastic size (``autoscale``), and the consequences when the size changes."""

from __future__ import annotations

from ..events import EventKind
from ..policies.autoscale import View
from .machine import Core
from .slots import CLOSED, CLOSING, IN_USE

__all__ = ("expect", "tick", "view")


def tick(core: Core, now: float, least: float) -> None:
    """Adapt the size to the load, if that is due. ``least``: least seconds between two calls of the policy."""
    before = core.size.limit

    def waiting() -> bool:
        return any(endpoint.requests for endpoint in core.all_endpoints.values())

    if core.size.tick(now, least, waiting, lambda: view(core, now)):
        _resized(core, before, now)
        core.touch_all()  # idle connections above the limit are closed now, leased ones when they are returned


def expect(core: Core, count: int, now: float) -> None:
    """Make room for ``count`` connections that the shell opens or has opened (warm_up, new settings)."""
    before = core.size.limit
    if core.size.expect(count, now):
        _resized(core, before, now)


def _resized(core: Core, before: int, now: float) -> None:
    core.stale = True
    if core.size.limit != before:
        core.tell(EventKind.POOL_RESIZED, now, detail=f"{before} -> {core.size.limit}: {core.size.reason}")


def view(core: Core, now: float) -> View:
    """Return what the policy looks at. O(connections)."""
    busy: float | None = core.counts.busy + sum(max(0.0, now - one.since) for one in core.leased.copy().values())
    in_use = size = 0
    for slot in core.slots.living():
        size += slot.state is not CLOSING and slot.state is not CLOSED
        in_use += slot.state is IN_USE
        if slot.capacity > 1:
            busy = None  # its leases overlap, so their seconds are no measure of busy connections
        elif busy is not None:
            busy += slot.busy
    waiting, since, queued, failing = 0, now, False, False
    for endpoint in list(core.all_endpoints.values()):
        failing = failing or endpoint.dialer.rounds > 0
        if endpoint.requests and not core.suspended:
            queued = True
            callers = endpoint.queue.gaining(core.size.largest)
            unserved = callers - endpoint.connecting * endpoint.streams
            trouble = endpoint.dialer.rounds > 0 and (endpoint.connecting or now < endpoint.dialer.retry_at)
            if unserved > 0 and not trouble:  # otherwise they wait for the server: a larger pool would not help
                waiting += unserved
                since = min(since, endpoint.oldest().since)
    down = failing and not any(endpoint.live for endpoint in core.all_endpoints.values())
    return View(in_use, size, busy, waiting, now - since, queued, down)
