"""Snapshots of a pool, computed from its state when somebody asks, and the words for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter

from ._core.dialing import describe
from ._core.entry import Entry, State
from ._core.lane import Lane
from ._core.machine import Core
from ._core.state import Phase

__all__ = ("Holder", "Parts", "PoolStats", "explain", "parts", "snapshot")

COUNTED = 1000  # that many in front of a caller are counted, not more: his timeout must not cost more for each of them


@dataclass(frozen=True)
class Holder:
    """One lease: which connection, for how many seconds, by which thread or task, taken where."""

    connection_id: int
    held: float
    holder: str
    place: str | None


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment. ``idle + in_use + connecting + checking + resetting + closing == size``.

    Counters run from the pool's creation. Times are in seconds. Exact under a quiet pool; while other threads
    acquire and release, a connection between two states may be counted in the one it comes from.
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

    @property
    def utilisation(self) -> float:
        """Share of ``max_size`` in use, 0 to 1 (of ``size`` where there is no limit)."""
        return self.in_use / (self.max_size or self.size or 1)


@dataclass(frozen=True)
class Parts:
    """What a snapshot is computed from: copied under the lock in microseconds, counted without it."""

    entries: list[Entry]
    lanes: list[Lane]
    uses: int
    busy: float


def parts(core: Core) -> Parts:
    """The caller holds the lock."""
    return Parts(list(core.entries.values()), list(core.lanes.values()), core.counts.uses, core.counts.busy)


def snapshot(core: Core, copied: Parts, now: float) -> PoolStats:
    """The numbers of now. Needs no lock: a large pool is not held up by those who look at it."""
    entries, uses, busy = copied.entries, copied.uses, copied.busy
    states = [entry.state for entry in entries]
    leases = 0
    for entry in entries:
        uses += entry.uses
        busy += entry.busy
        if entry.leases:
            leases += entry.leases
            if entry.leases == 1:
                busy += max(0.0, now - entry.leased_at)
    last = core.last_failed
    counts = core.counts
    return PoolStats(
        name=core.name,
        phase="suspended" if core.suspended and core.phase is Phase.OPEN else core.phase.value,
        size=len(entries) - states.count(State.CLOSED),  # closed since they were copied
        idle=states.count(State.IDLE),
        in_use=states.count(State.IN_USE),
        connecting=states.count(State.CONNECTING),
        checking=states.count(State.CHECKING),
        resetting=states.count(State.RESETTING),
        closing=states.count(State.CLOSING),
        leases=leases,
        waiting=sum([len(lane.waiters) for lane in copied.lanes]),
        lanes=len(copied.lanes),
        min_size=core.config.min_size,
        max_size=core.config.max_size,
        acquires=uses + leases,
        waits=counts.waits,
        timeouts=counts.timeouts,
        connects=counts.connects,
        connect_errors=counts.connect_errors,
        checks=counts.checks,
        failed_checks=counts.failed_checks,
        leaks=counts.leaks,
        busy_seconds=busy,
        closes={reason.value: number for reason, number in counts.closes.items()},
        last_connect_error=describe(last.last_error) if last else None,
    )


def holders(core: Core, now: float, name_of: Callable[[int], str], most: int = 1) -> list[Holder]:
    """Who holds connections longest, ``most`` of them, longest first. The caller holds the lock."""
    leased = {entry.id: entry for entry in core.leased.copy().values()}  # a multiplexed one has several leases
    return [
        Holder(entry.id, now - entry.leased_at, name_of(entry.holder), place_of(entry))
        for entry in nsmallest(most, leased.values(), key=attrgetter("leased_at"))
    ]


def place_of(entry: Entry) -> str | None:
    """Where the current lease was taken, as file:line, if that is recorded."""
    return None if entry.place is None else "{}:{}".format(*entry.place)


def explain(stats: PoolStats, held: list[Holder], *, ahead: int | None = None) -> str:
    """The state of a pool in plain words, as it stands in timeout errors."""
    limit = "no limit" if stats.max_size is None else stats.max_size
    numbers = [f"in use {stats.in_use}/{limit}", f"idle {stats.idle}", f"connecting {stats.connecting}"]
    numbers += [
        f"{name} {number}"
        for name, number in (("checking", stats.checking), ("resetting", stats.resetting), ("closing", stats.closing))
        if number
    ]
    if ahead is None:
        numbers.append(f"{stats.waiting} waiting")
    else:
        numbers.append(f"{ahead} ahead of you" if ahead < COUNTED else f"at least {ahead} ahead of you")
    text = ", ".join(numbers)
    if held:
        first = held[0]
        text += f"; longest held {first.held:.1f} s by {first.holder}"
        if first.place:
            text += f" at {first.place}"
    return text + f"; last connect error: {stats.last_connect_error or 'none'}"
