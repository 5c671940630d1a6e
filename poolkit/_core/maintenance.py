"""Timed work: retire, rotate, peek at and ping idle connections, and report leaks."""

from __future__ import annotations

from ..events import EventKind
from ..policies.retire import NEVER, rotation_lead
from . import elastic
from .effects import Do, Effect
from .endpoints import Endpoint
from .machine import Core
from .repair import audit, next_look, repair, search
from .slots import CHECKING, IDLE, IN_USE, Held, Slot
from .state import LOOK_EVERY, Phase

__all__ = ("leaks", "pause", "pinged", "tick", "tick_safely")

SHORTEST = 0.05  # seconds between two sweeps: a sweep takes O(connections), so one serves all that are due by then
SHARE = 50.0  # the pause between two sweeps, in multiples of the time that a sweep takes
EACH = 2e-6  # seconds, measured: the time that a sweep takes for one connection or endpoint


def tick(core: Core, now: float) -> None:
    """Do the work that is due. Afterwards ``core.due`` is the time of the next call."""
    core.due = NEVER
    if core.phase is not Phase.OPEN:
        return
    timed, core.timed = core.timed, set()
    core.touched.update(dict.fromkeys(timed))
    if now >= core.sweep_at:
        core.sweep_at = NEVER
        audit(core, now)
        search(core, now)
        _rotate(core, now)
        for endpoint in list(core.all_endpoints.values()):
            _sweep(core, endpoint, now)
        core.touch_all()
        _plan_sweep(core, now)
    else:
        core.want_sweep(core.sweep_at)
    core.overload.tick(now)
    elastic.tick(core, now, SHARE * EACH * len(core.all_slots))


def tick_safely(core: Core, now: float) -> Exception | None:
    """Call :func:`tick` and ``settle()`` for the shell. Return the error if one is raised, which is a bug.

    After an error the core is repaired, and the next tick is due after a pause: housekeeping continues without a busy
    loop. The shell logs the error after it has released the lock.
    """
    try:
        tick(core, now)
        core.settle(now)
    except Exception as error:  # noqa: BLE001  whatever it is
        repair(core, now)
        core.stale = True
        core.sweep_at = core.due = now + core.recheck_interval
        return error
    return None


def pause(core: Core) -> float:
    """Return the least seconds between two sweeps, so that they take a small share of a processor at any size."""
    return max(SHORTEST, SHARE * EACH * (len(core.all_slots) + len(core.all_endpoints)))


def _plan_sweep(core: Core, now: float) -> None:
    """Schedule the next sweep before an idle connection can be due. Connections in use now may be idle soon."""
    again = next_look(core, now)
    if again < NEVER:
        core.want_sweep(again)
    if core.all_slots:
        config = core.config
        spans = (config.idle_timeout, config.keepalive, LOOK_EVERY if core.features.peeks else None)
        for span in (*spans, config.leak_after and config.leak_after / 4):
            if span is not None:
                core.want_sweep(now + span)


def _sweep(core: Core, endpoint: Endpoint, now: float) -> None:
    """Look at every idle connection once: close it, ping it or keep it. Those that are kept keep their order."""
    lead = rotation_lead(core.config.max_lifetime)
    next_due = NEVER
    stay = []
    idle = core.endpoints.idle.take_all(endpoint)
    # at most half of them at once, so that the others can serve callers meanwhile
    pings = min((len(idle) + 1) // 2, core.max_connecting - core.slots.pinging)
    for slot in idle:
        reason = core.slots.retire_reason(slot, now)
        if reason is not None:
            core.slots.start_close(slot, reason, now)
            continue
        wanted = _wants_ping(core, slot, now)
        if wanted and pings <= 0:
            next_due = now
        elif wanted:
            pings -= 1
            core.slots.pinging += 1
            slot.move(CHECKING)
            core.endpoints.idle.remove(slot)
            core.effects.append(Effect(Do.PING, slot))
            continue
        next_due = min(next_due, _next_due(core, slot, now, lead))
        stay.append(slot)
    core.endpoints.idle.put_back(endpoint, stay)
    if next_due < NEVER:
        core.want_sweep(max(now + pause(core), next_due))


def _next_due(core: Core, slot: Slot, now: float, lead: float) -> float:
    rotation = slot.expires - lead
    due = rotation if rotation > now else slot.expires
    if core.config.idle_timeout is not None and core.config.idle_timeout + slot.last_used > now:
        due = min(due, slot.last_used + core.config.idle_timeout)
    if core.config.keepalive is not None and core.features.checks:
        due = min(due, slot.seen_at + core.config.keepalive)
    return due


def _wants_ping(core: Core, slot: Slot, now: float) -> bool:
    if not core.can_check:
        return False
    keepalive = core.config.keepalive
    if keepalive is not None and now - slot.seen_at >= keepalive:
        return True
    if slot.fresh_until == 0.0:  # in doubt, because another one was found dead
        return True
    return core.features.peeks and now - slot.last_used >= LOOK_EVERY


def _rotate(core: Core, now: float) -> None:
    """Open successors for connections that are about to expire and are needed, as far as permits are free."""
    config = core.config
    if config.max_lifetime is None or core.features.on_demand or core.suspended:
        return
    lead = rotation_lead(config.max_lifetime)
    for slot in core.slots.living():
        endpoint = slot.endpoint
        if slot.rotating or slot.generation != endpoint.generation or slot.state not in (IDLE, IN_USE):
            continue
        if now < slot.expires - lead:
            continue
        missed = (
            slot.state is IN_USE
            or endpoint.live <= core.size.minimum
            or now - slot.last_used < 0.1 * config.max_lifetime
        )
        if missed and core.opener.may_open(endpoint, now) and core.opener.spare_permit():
            slot.rotating = True
            successor = core.slots.open(endpoint, now)
            successor.replaced = slot
            core.effects.append(Effect(Do.CONNECT, successor))


def pinged(core: Core, slot: Slot, error: BaseException | None, asked: bool, now: float) -> None:
    """A ping of an idle connection ended. ``asked``: the server was asked; otherwise only the socket was examined."""
    core.slots.pinging -= 1
    core.counts.checks += asked
    if error is not None:
        core.service.failed_check(slot, error, now)
        return
    if asked:
        slot.checked_at = now
        core.slots.mark_alive(slot, now)
    elif slot.fresh_until == 0.0 and not core.features.checks:
        core.slots.mark_alive(slot, now)
    if slot.endpoint.requests or core.slots.retire_reason(slot, now) is not None or core.phase is not Phase.OPEN:
        core.returned[slot] = None
    else:  # as the longest unused one: a ping does not count as use
        slot.move(IDLE)
        core.endpoints.idle.put_back(slot.endpoint, [slot])


def leaks(core: Core, now: float) -> list[Held]:
    """Return the leases held longer than ``leak_after`` that have not been reported yet."""
    limit = core.config.leak_after
    if limit is None:
        return []
    found = []
    for record in core.leased.copy().values():  # leases end without the lock
        if record.slot.state is IN_USE and now - record.since >= limit and not record.reported:
            record.reported = True
            core.counts.leaks += 1
            core.tell(EventKind.LEASE_LEAKED, now, record.slot, duration=now - record.since)
            found.append(record)
    return found
