"""Snapshots of a pool, computed from its state on request."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from ._core.endpoints import Endpoint
from ._core.machine import Core
from ._core.queue import Request
from ._core.slots import Held, Slot, State
from ._core.state import Phase
from .errors import describe
from .events import CloseReason
from .policies.diagnose import Diagnosis
from .policies.meters import WINDOWS, Histogram, Sample, WindowStats, frozen

__all__ = (
    "ClassStats", "Histogram", "Holder", "LaneStats", "Parts", "PoolBrief", "PoolDetails", "PoolStats", "Queued",
    "WindowStats", "class_stats", "in_brief", "lane_stats", "numbers", "parts", "queued", "snapshot", "take_sample",
)  # fmt: skip


@dataclass(frozen=True)
class Holder:
    """One lease: its connection, its age in seconds, the thread or task that holds it, and where it was taken."""

    connection_id: int
    held: float
    holder: str
    place: str | None


@dataclass(frozen=True)
class ClassStats:
    """One class of callers at one moment; counters start at the pool's creation.

    ``in_use``: connections that its callers use, check or open themselves (a multiplexed connection counts for the
    class that took it first). ``most``: connections it may have when no other class wants any; None: no limit.
    ``acquires``: leases begun.
    """

    name: str
    in_use: int
    waiting: int
    most: int | None
    reserved: int
    weight: float
    limit: int | None
    acquires: int
    waits: int
    timeouts: int


def class_stats(core: Core, endpoints: list[Endpoint]) -> dict[str, ClassStats]:
    """Each class by name. Call it with or without the lock."""
    classes = core.classes
    if classes is None:
        return {}
    unlimited = core.config.max_size is None
    return {
        one.name: ClassStats(
            name=one.name,
            in_use=one.held,
            waiting=sum([endpoint.queue.count(one) for endpoint in endpoints]),
            most=one.limit if unlimited else classes.most(one, core.limit),
            reserved=one.reserved,
            weight=one.weight,
            limit=one.limit,
            acquires=one.acquires,
            waits=one.waits,
            timeouts=one.timeouts,
        )
        for one in list(classes.known.values())
    }


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment. ``idle + in_use + connecting + checking + resetting + closing == size``.

    ``limit``: how many connections may exist now: ``max_size``, or less with ``autoscale``, where ``limit_reason`` says
    why. ``overloads``: how often a queue became overloaded; ``overloaded``: how many are now; ``overload_reason``: why.
    Counters start at the pool's creation. Times are in seconds. The numbers are exact while the pool is not in
    use. While other threads acquire and release, a connection that changes its state may be counted in its previous
    state.
    """

    name: str
    phase: str
    size: int
    idle: int
    in_use: int
    connecting: int
    checking: int
    resetting: int
    closing: int
    leases: int
    waiting: int
    lanes: int
    min_size: int
    max_size: int | None
    acquires: int
    waits: int
    timeouts: int
    connects: int
    connect_errors: int
    checks: int
    failed_checks: int
    leaks: int
    busy_seconds: float
    closes: dict[str, int]
    last_connect_error: str | None
    max_idle: int | None = None
    open_breakers: int = 0
    longest_held: float = 0.0
    longest_wait: float = 0.0
    wait: Histogram = field(default_factory=Histogram)
    connect: Histogram = field(default_factory=Histogram)
    use: Histogram = field(default_factory=Histogram)
    windows: dict[int, WindowStats] = field(default_factory=dict)
    classes: dict[str, ClassStats] = field(default_factory=dict)
    limit: int | None = None
    limit_reason: str = ""
    overloads: int = 0
    overloaded: int = 0
    overload_reason: str = ""

    @property
    def utilisation(self) -> float:
        """Share of ``max_size`` in use, 0 to 1 (of ``size`` if there is no limit)."""
        return self.in_use / (self.max_size or self.size or 1)


@dataclass(frozen=True)
class LaneStats:
    """One endpoint of a keyed pool at one moment (any other pool has exactly one, with the key None).

    ``breaker``: "closed", "open" or "half-open"; ``failures``: connects that failed in a row.
    """

    key: Hashable
    size: int
    idle: int
    in_use: int
    connecting: int
    leases: int
    waiting: int
    failures: int
    breaker: str
    last_connect_error: str | None


@dataclass(frozen=True)
class Queued:
    """One waiting caller.

    ``waited``: seconds; ``holder``: its thread or task; ``ahead``: callers in front of it; ``key``: that of its
    endpoint (None unless the pool is keyed). ``caller_class``: the name of its class (None unless the pool has
    classes).
    """

    waited: float
    holder: str
    ahead: int
    key: Hashable
    caller_class: str | None = None


@dataclass(frozen=True)
class PoolDetails:
    """All details of a pool at one moment. Leases and waiting callers are limited to the requested number, longest
    first.
    """

    stats: PoolStats
    diagnosis: Diagnosis | None
    leases: tuple[Holder, ...]
    waiters: tuple[Queued, ...]
    lanes: tuple[LaneStats, ...]


class PoolBrief(NamedTuple):
    """What a list of many pools shows of one of them, at one moment. It costs a fraction of :class:`PoolDetails`.

    ``numbers``: fields of :class:`PoolStats` by name, without histograms, windows and classes. ``recent``: the last ten
    seconds; ``timeouts``: of the last minute; ``broken``: endpoints whose breaker is not closed.
    """

    numbers: dict[str, Any]
    recent: WindowStats
    timeouts: int
    diagnosis: Diagnosis | None
    leases: list[Holder]
    waiters: list[Queued]
    broken: list[LaneStats]


def in_brief(seen: PoolDetails, endpoints: list[LaneStats]) -> PoolBrief:
    """The same out of all details, with these endpoints."""
    stats = seen.stats
    return PoolBrief(
        vars(stats), stats.windows[WINDOWS[0]], stats.windows[WINDOWS[1]].timeouts, seen.diagnosis,
        list(seen.leases), list(seen.waiters), endpoints,
    )  # fmt: skip


def lane_stats(core: Core) -> list[LaneStats]:
    """Each endpoint. The caller holds the lock."""
    found = []
    slots, endpoints = core.slots.living(), list(core.all_endpoints.values())
    by_endpoint: dict[int, list[Slot]] = {}
    if len(endpoints) == 1:
        by_endpoint[id(endpoints[0])] = slots
    else:
        for slot in slots:
            by_endpoint.setdefault(id(slot.endpoint), []).append(slot)
    for endpoint in endpoints:
        mine = by_endpoint.get(id(endpoint), [])
        states = [slot.state for slot in mine]
        found.append(frozen(
            LaneStats,
            key=endpoint.key,
            size=len(mine),
            idle=states.count(State.IDLE),
            in_use=states.count(State.IN_USE),
            connecting=endpoint.connecting,
            leases=sum([slot.leases for slot in mine]),
            waiting=len(endpoint.requests),
            failures=endpoint.dialer.breaker.failures,
            breaker=endpoint.dialer.breaker.state.value,
            last_connect_error=describe(endpoint.dialer.last_error) if endpoint.dialer.last_error else None,
        ))  # fmt: skip
    return found


class Parts(NamedTuple):
    """The data of a snapshot: copied under the lock within microseconds, evaluated without it."""

    slots: list[Slot]
    endpoints: list[Endpoint]
    uses: int
    busy: float
    waits: int
    overloaded: tuple[str, ...]  # each overloaded queue in words
    leased: list[Held]
    oldest: float | None  # when the caller that has waited longest joined its queue
    wait: Histogram
    connect: Histogram
    use: Histogram


def parts(core: Core) -> Parts:
    """The caller holds the lock."""
    endpoints, meters, waits, oldest = list(core.all_endpoints.values()), core.meters, core.counts.waits, None
    for endpoint in endpoints:
        waits += endpoint.queue.waits
        if endpoint.requests:
            since = endpoint.oldest().since
            oldest = since if oldest is None else min(oldest, since)
    return Parts(
        core.slots.living(), endpoints, core.counts.uses, core.counts.busy, waits, core.overload.words,
        list(core.leased.copy().values()), oldest, meters.wait.state(), meters.connect.state(), meters.use.state(),
    )  # fmt: skip


def take_sample(core: Core, copied: Parts, now: float) -> Sample:
    """The running totals; they are kept as a sample for the windows if the last sample is old enough. Needs no lock."""
    slots, counts, samples = copied.slots, core.counts, core.meters.samples
    uses = copied.uses + sum([slot.uses + slot.leases for slot in slots])
    busy = copied.busy + sum([slot.busy for slot in slots])
    if copied.leased:
        busy += max(0.0, sum([now - record.since for record in copied.leased]))
    if len(core.all_slots) > len(slots):  # slots are gone, and not reclaimed yet: see repair.audit()
        uses, busy = max(uses, counts.reported[0]), max(busy, counts.reported[1])
    counts.reported = uses, busy
    taken = Sample(
        now, uses, copied.waits, counts.timeouts, counts.connects, counts.connect_errors, counts.leaks, busy,
        copied.wait, copied.connect, copied.use,
    )  # fmt: skip
    if samples.due(now):
        samples.add(taken)
    return taken


# Enum's own "value" is computed by Python code, for each pool in each snapshot
_REASONS = {reason: reason.value for reason in CloseReason}
_PHASES = {phase: phase.value for phase in Phase}


def numbers(core: Core, copied: Parts, now: float) -> tuple[dict[str, Any], Sample]:
    """The fields of :class:`PoolStats` that need no histogram and no window, and the running totals. Needs no lock."""
    slots, endpoints = copied.slots, copied.endpoints
    states = [slot.state for slot in slots]
    if True in [slot.pending for slot in slots]:  # some drivers connect in the first use
        states = [State.CONNECTING if slot.pending and slot.state is State.IN_USE else slot.state for slot in slots]
    number = states.count
    totals = take_sample(core, copied, now)
    last, counts, config = core.last_failed, core.counts, core.config
    waiting = open_breakers = 0
    for endpoint in endpoints:
        waiting += len(endpoint.requests)
        open_breakers += endpoint.dialer.breaker.is_open(now)
    return {
        "name": core.name,
        "phase": _PHASES[core.phase] if not core.suspended or core.phase is not Phase.OPEN else "suspended",
        "size": len(slots) - number(State.CLOSED),  # closed since the copy was made
        "idle": number(State.IDLE),
        "in_use": number(State.IN_USE),
        "connecting": number(State.CONNECTING),
        "checking": number(State.CHECKING),
        "resetting": number(State.RESETTING),
        "closing": number(State.CLOSING),
        "leases": sum([slot.leases for slot in slots]),
        "waiting": waiting,
        "lanes": len(endpoints),
        "min_size": config.min_size,
        "max_size": config.max_size,
        "acquires": totals.acquires,
        "waits": totals.waits,
        "timeouts": counts.timeouts,
        "connects": counts.connects,
        "connect_errors": counts.connect_errors,
        "checks": counts.checks,
        "failed_checks": counts.failed_checks,
        "leaks": counts.leaks,
        "busy_seconds": totals.busy,
        "last_connect_error": describe(last.dialer.last_error) if last else None,
        "max_idle": config.max_size if config.max_idle is None else config.max_idle,
        "open_breakers": open_breakers,
        "longest_held": max(0.0, now - min([record.since for record in copied.leased], default=now)),
        "longest_wait": 0.0 if copied.oldest is None else max(0.0, now - copied.oldest),
        "limit": None if core.limit == sys.maxsize else core.limit,
        "limit_reason": core.size.reason,
        "overloads": counts.overloads,
        "overloaded": len(copied.overloaded),
        "overload_reason": "; ".join(copied.overloaded),
    }, totals


def snapshot(core: Core, copied: Parts, now: float) -> PoolStats:
    """The current numbers. Needs no lock, so that reading a large pool does not delay its callers."""
    found, totals = numbers(core, copied, now)
    found["closes"] = {_REASONS[reason]: number for reason, number in core.counts.closes.items()}
    found["wait"] = totals.wait.with_zeros(totals.acquires)
    found["connect"] = totals.connect
    found["use"] = totals.use
    found["windows"] = core.meters.samples.windows(totals)
    found["classes"] = class_stats(core, copied.endpoints)
    made = object.__new__(PoolStats)
    made.__dict__.update(found)  # see frozen()
    return made


def queued(core: Core, now: float, most: int | None) -> list[tuple[Hashable, Queued]]:
    """The first ``most`` waiting callers, longest first, each with its identity; the name is resolved later without the
    lock, because that may take long. The caller holds the lock.
    """
    found = [
        (request.holder, Queued(now - request.since, "", ahead, endpoint.key, _class_of(core, request)))
        for endpoint in core.all_endpoints.values()
        for ahead, request in enumerate(islice(endpoint.requests, most))
    ]
    found.sort(key=lambda one: -one[1].waited)
    return found[:most]


def _class_of(core: Core, request: Request) -> str | None:
    return request.caller_class.name if request.caller_class and core.classes else None
