"""What is due now: retire, rotate, look, keep alive, refill, report leaks."""

from __future__ import annotations

from ..events import EventKind
from ..policies.retire import NEVER, rotation_lead
from .effects import Do, Effect
from .entry import CHECKING, IDLE, IN_USE, Entry, Purpose
from .lane import Lane
from .machine import Core
from .state import LOOK_EVERY, Phase

__all__ = ("leaks", "pinged", "tick")

SHORTEST = 0.05  # seconds: sweeps cost O(connections), so they are not made for each connection by itself


def tick(core: Core, now: float) -> None:
    """Do what is due. Afterwards ``core.due`` is the time of the next call."""
    core.due = NEVER
    if core.phase is not Phase.OPEN:
        return
    for lane in list(core.lanes.values()):
        core.pump(lane, now)
        _sweep(core, lane, now)
    core.refill(now)
    config = core.config
    if core.entries:
        for span in (config.idle_timeout, config.keepalive, LOOK_EVERY if core.features.peeks else None):
            if span is not None:
                core.want_tick(now + span)
        if config.leak_after is not None:
            core.want_tick(now + config.leak_after / 4)


def _sweep(core: Core, lane: Lane, now: float) -> None:
    """Take every idle connection in hand once; those that stay keep their order."""
    lead = rotation_lead(core.config.max_lifetime)
    if core.config.max_lifetime is not None:
        for entry in list(core.entries.values()):
            if entry.state in (IDLE, IN_USE) and entry.lane is lane and now >= entry.expires - lead:
                _rotate(core, entry, now)
    next_due = NEVER
    stay = []
    for entry in core.take_all_idle(lane):
        reason = core.unfit(entry, now)
        if reason is not None:
            core.begin_close(entry, reason, now)
            continue
        if _wants_ping(core, entry, now):
            entry.move(CHECKING)
            core.idle_order.pop(entry, None)
            core.effects.append(Effect(Do.PING, entry))
            continue
        next_due = min(next_due, _next_due(core, entry, now, lead))
        stay.append(entry)
    core.relist(lane, stay)
    if next_due < NEVER:
        core.want_tick(max(now + SHORTEST, next_due))
    core.match(lane, now)  # somebody may have queued while the list was empty


def _next_due(core: Core, entry: Entry, now: float, lead: float) -> float:
    rotation = entry.expires - lead
    due = rotation if rotation > now else entry.expires
    if core.config.idle_timeout is not None and core.config.idle_timeout + entry.last_used > now:
        due = min(due, entry.last_used + core.config.idle_timeout)
    if core.config.keepalive is not None and core.features.checks:
        due = min(due, entry.checked_at + core.config.keepalive)
    return due


def _wants_ping(core: Core, entry: Entry, now: float) -> bool:
    if not core.doubts:
        return False
    keepalive = core.config.keepalive
    if keepalive is not None and now - entry.checked_at >= keepalive:
        return True
    if entry.good_until == 0.0:  # in doubt since another one was found dead
        return True
    return core.features.peeks and now - entry.last_used >= LOOK_EVERY


def _rotate(core: Core, entry: Entry, now: float) -> None:
    """Open the successor before the connection's end, if it will be missed and a permit is free."""
    config, lane = core.config, entry.lane
    missed = lane.live <= config.min_size or now - entry.last_used < 0.1 * (config.max_lifetime or NEVER)
    if entry.rotating or not missed or core.features.keyed:
        return
    if len(core.entries) < core.limit and core.may_dial(lane, now):
        entry.rotating = True
        successor = core.dial(lane, Purpose.ROTATE, now)
        successor.replaced = entry
        core.effects.append(Effect(Do.CONNECT, successor))


def pinged(core: Core, entry: Entry, error: BaseException | None, asked: bool, now: float) -> None:
    """The look at (``asked``: the check of) an idle connection ended."""
    core.counts.checks += asked
    if error is not None:
        core.failed_check(entry, error, now)
        core.freed(entry.lane, now)
        return
    if asked:
        entry.checked_at = now
        core.freshen(entry, now)
    elif entry.good_until == 0.0 and not core.features.checks:
        core.freshen(entry, now)
    if entry.lane.waiters or core.unfit(entry, now) is not None or core.phase is not Phase.OPEN:
        core.offer(entry, now)
    else:  # at the cold end: a look is no use
        entry.move(IDLE)
        core.relist(entry.lane, [entry])
        if entry.lane.waiters:  # queued without having seen it
            core.match(entry.lane, now)


def leaks(core: Core, now: float) -> list[Entry]:
    """Leases held longer than ``leak_after`` that were not reported yet."""
    limit = core.config.leak_after
    if limit is None:
        return []
    found = []
    for entry in list(core.leased.values()):
        if entry.state is IN_USE and now - entry.leased_at >= limit and not entry.reported:
            entry.reported = True
            core.counts.leaks += 1
            core.tell(EventKind.LEASE_LEAKED, now, entry, duration=now - entry.leased_at)
            found.append(entry)
    return found
