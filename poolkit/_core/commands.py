"""Pool-wide commands: clear, suspend, resume, reconfigure, shut, reserve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import PoolConfig
from ..errors import PoolClosed, PoolSuspended
from ..events import CloseReason, EventKind
from ..policies.members import members
from ..policies.retire import expiry
from . import elastic
from .machine import Core
from .repair import audit
from .slots import CONNECTING, ESTABLISHED, IDLE, Held, Slot
from .state import Phase

__all__ = (
    "abort_leased", "clear", "discard_idle", "inherit", "lease_given_up", "reconfigure", "replaced", "reserve",
    "resume", "shut", "suspend",
)  # fmt: skip


def clear(core: Core, now: float) -> None:
    """Retire every connection of every endpoint: close idle ones now, leased ones when they are returned."""
    for endpoint in list(core.all_endpoints.values()):
        core.endpoints.clear(endpoint, now)


def discard_idle(
    core: Core, condition: Callable[[Any], bool] | None, unused_since: float, rest: bool, now: float
) -> int:
    """Close the idle connections for which ``condition`` holds (None: all), and return their number.

    ``unused_since``: only those that have not been used since then. ``rest``: do not keep ``min_size`` until the pool
    is used again.
    """
    if rest:
        core.started = False
        wanted = {
            endpoint: len(endpoint.requests) + endpoint.dialer.spoken_for(endpoint.connecting)
            for endpoint in core.all_endpoints.values()
        }
        for slot in core.slots.living():  # a connect that no caller waits for is closed when it has succeeded
            if slot.pending and slot.generation == slot.endpoint.generation:
                if slot.for_caller and wanted.get(slot.endpoint):
                    wanted[slot.endpoint] -= 1
                    continue
                slot.endpoint.connecting -= 1
                slot.generation -= 1
                core.touched[slot.endpoint] = None  # callers that counted on it need another connect
    closed = 0
    for endpoint in list(core.all_endpoints.values()):
        for slot in members(endpoint.idle):
            if slot.state is not IDLE or slot.last_used > unused_since:
                continue
            if condition is not None and not condition(slot.connection):
                continue
            if core.endpoints.idle.take_out(slot):  # otherwise another thread has just taken it
                core.slots.start_close(slot, CloseReason.DISCARDED, now)
                closed += 1
    return closed


def suspend(core: Core, fail_fast: bool, now: float) -> None:
    """Serve no callers: they wait, or fail at once, including those that wait already.

    They fail with ``fail_fast``, and in the pool of a cluster's node, because they can go to another node.
    """
    core.suspended = True
    core.fail_fast = fail_fast
    core.stale = True
    core.tell(EventKind.POOL_SUSPENDED, now)
    if fail_fast or core.features.elsewhere:
        for endpoint in list(core.all_endpoints.values()):
            core.service.fail(endpoint, lambda: PoolSuspended(f"{core.name}: the pool is suspended"))
    core.touch_all()


def resume(core: Core, now: float) -> None:
    """Serve callers again, oldest request first."""
    if core.suspended:
        core.suspended = core.fail_fast = False
        core.stale = True
        core.tell(EventKind.POOL_READY, now)
        core.size.look_by(now)
        core.want_sweep(now)  # while suspended, the pool opened no successors for expiring connections
        core.touch_all()


def reconfigure(core: Core, config: PoolConfig, barging: float, changed: str, now: float) -> None:
    """Apply new settings. Surplus connections are closed (leased ones when they are returned), and waiting requests are
    served at once if the new settings allow it.
    """
    old = core.config
    core.configure(config, barging)
    core.stale = True
    core.tell(EventKind.POOL_RECONFIGURED, now, detail=changed)
    if old.autoscale is None:
        elastic.expect(core, len(core.all_slots) - core.slots.closing, now)  # autoscale starts from the present size
    core.size.look_by(now)
    for slot in core.slots.living():
        if slot.generation != slot.endpoint.generation:
            continue
        if (old.max_lifetime, old.lifetime_jitter) != (config.max_lifetime, config.lifetime_jitter):
            slot.expires = expiry(slot.ready_at, config.max_lifetime, config.lifetime_jitter, core.random)
        if slot.state in ESTABLISHED and slot.fresh_until:  # 0: in doubt, and remains so
            good = slot.seen_at + core.window
            slot.fresh_until = min(good, slot.expires)
    for endpoint in list(core.all_endpoints.values()):
        endpoint.dialer.breaker.config = config.breaker
        endpoint.dialer.by_caller = config.connect_in_caller
    core.touch_all()
    core.want_sweep(now)


def inherit(core: Core, old: Core) -> None:
    """Restart the pool with this core (in a forked child, on another event loop): open, suspended or closed as before.

    Connections and callers are not taken over. The old core is emptied. Code that still refers to it (a bound method
    that a program has kept, a late finalizer) cannot get a connection from it.
    """
    core.phase, core.suspended, core.fail_fast = old.phase, old.suspended, old.fail_fast
    core.stale = True
    if core.phase is not Phase.OPEN:
        core.capacity.retire()
    for endpoint in old.all_endpoints.values():
        endpoint.idle.clear()


def shut(core: Core, phase: Phase, now: float) -> None:
    """Admit no more callers, fail all waiting requests and close idle connections. Leased connections are closed when
    they are returned.
    """
    if core.phase is Phase.CLOSED:
        return
    audit(core, now)  # no sweep follows that would
    core.phase = phase
    core.stale = True
    core.capacity.retire()
    core.overload.end_all()
    for endpoint in list(core.all_endpoints.values()):
        core.service.fail(endpoint, lambda: PoolClosed(f"{core.name}: the pool was closed while this caller waited"))
        core.service.close_idle(endpoint, CloseReason.POOL_CLOSED, now)
    if phase is Phase.CLOSED:
        core.tell(EventKind.POOL_CLOSED, now)


def lease_given_up(core: Core, record: Held, now: float) -> None:
    """The caller of a lease was cancelled during the lease, which is no error of the server. Called before the lease
    ends.
    """
    core.overload.gave_up_lease(record.slot.endpoint, record.slot.owner, now)


def replaced(core: Core, record: Held, began: float, now: float) -> None:
    """A lease has another connection in the place of its own, which its adapter has closed: count both."""
    slot = record.slot
    core.counts.closes[CloseReason.DISCARDED] += 1
    core.tell(
        EventKind.CONNECTION_CLOSED, now, slot, reason=CloseReason.DISCARDED, duration=max(0.0, began - slot.ready_at)
    )
    core.counts.connects += 1
    core.meters.connect.record(now - began)
    core.slots.all[slot.id].opened_at = slot.ready_at = now
    if slot.generation == slot.endpoint.generation:  # else expired: the fast path looks at nothing else
        slot.expires = expiry(now, core.config.max_lifetime, core.config.lifetime_jitter, core.random)
    core.tell(EventKind.CONNECTION_READY, now, slot, duration=now - began)


def abort_leased(core: Core, now: float) -> int:
    """Abort the connections that are still leased, and return their number."""
    victims = {record.slot.id: record.slot for record in core.leased.copy().values()}  # leases end without the lock
    core.leased.clear()
    for slot in victims.values():
        slot.leases = 0
        core.slots.start_close(slot, CloseReason.POOL_CLOSED, now, abort=True)
    return len(victims)


def reserve(core: Core, count: int, now: float) -> list[Slot]:
    """Take permits and return slots for connections to be opened until ``count`` exist, as far as the limit allows.

    Raises PoolSuspended while the pool is suspended, because it opens no connections then, or PoolClosed.
    """
    wanted = count - sum(e.state is CONNECTING or e.state in ESTABLISHED for e in core.slots.living())
    if wanted > 0 and not core.hands_out:
        raise core.service.refusal() or PoolSuspended(f"{core.name}: the pool is suspended")
    core.started = True
    elastic.expect(core, count, now)
    endpoint = core.endpoint
    reserved = [core.slots.open(endpoint, now) for _ in range(wanted) if core.opener.spare_permit()]
    core.touch_all()  # with autoscale, there may now be room for waiting callers, too
    return reserved
