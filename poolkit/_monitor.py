"""Statistics, explanations and leak reports of a pool, and the text of timeout errors.

This module only reads the state; it changes nothing.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from ._core.endpoints import Endpoint
from ._core.machine import Core
from ._core.queue import Request
from ._core.slots import Held as OnLease
from ._core.slots import State
from ._log import logger
from ._places import place_of
from .errors import AcquireTimeout, LeaseOverdue, PoolError, ServerUnavailable, describe, shown, shown_key
from .policies.connects import BreakerState
from .policies.diagnose import OFTEN, Diagnosis, Held, Symptoms, diagnose
from .policies.meters import WINDOWS, frozen
from .runtimes.holders import ENDED, hashable
from .runtimes.threads import ThreadRuntime
from .settings import Setting, described
from .sizing import Advice, advise
from .stats import (
    ClassStats,
    Holder,
    LaneStats,
    Parts,
    PoolBrief,
    PoolDetails,
    PoolStats,
    Queued,
    in_brief,
    lane_stats,
    numbers,
    parts,
    queued,
    snapshot,
    take_sample,
)

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("Monitor", "WaitObserver", "explain")

N = TypeVar("N", Holder, Queued)

LARGE = 200  # connections and requests, above which concurrent timeouts share one snapshot of the pool
OLD = 0.1  # seconds for which such a snapshot is used
COUNTED = 1000  # the most callers that are counted ahead of one that timed out, to bound the cost of the message

_SINCE, _REPORTED = attrgetter("since"), attrgetter("reported")

WaitObserver = Callable[[Any, float, "BaseException | None"], object]
"""``observer(pool, seconds, error)``, called at the end of each acquire that found no idle connection at once: in the
caller's thread or task, outside the pool's lock. ``error``: why there is no connection, or None. An observer that
raises is removed."""


Picture = tuple[PoolStats, list[Holder], Symptoms]


class Monitor:
    """Reads the state of one pool. Its methods are thread-safe, and none waits for I/O."""

    def __init__(self, pool: PoolBase[Any]) -> None:
        self._pool = pool
        self.observers: list[WaitObserver] = []
        self.restart()

    def restart(self) -> None:
        """Start again with a new core, without measurements."""
        self.waited: deque[float] = deque()  # seconds that callers have waited, not in the histogram yet
        self.used: deque[float] = deque()  # seconds that leases have lasted, not in the histogram yet
        self._taken: tuple[float, Picture | None] = 0.0, None

    # -- times ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Record the collected times in the histograms, unless another thread holds the lock: then it does so."""
        self._pool._gate.post(self._note_times)

    def _note_times(self) -> None:
        """Record the collected times, and a sample if one is due. Called under the lock."""
        core, now = self._pool._core, self._pool._clock()
        self._record_times()
        if core.meters.samples.due(now):
            take_sample(core, parts(core), now)

    def _record_times(self) -> None:
        """Record the collected times in the histograms. Called under the lock."""
        meters = self._pool._core.meters
        if self.waited:
            meters.wait.record_all(self.waited)
        if self.used:
            meters.use.record_all(self.used)

    def add(self, observer: WaitObserver) -> None:
        """Add an observer. Called under the lock."""
        self.observers = [*self.observers, observer]  # replaced, not changed: it is read without the lock
        self._pool._core.stale = True

    def remove(self, observer: WaitObserver) -> None:
        """Remove an observer; do nothing if it is not registered. Called under the lock."""
        self.observers = [one for one in self.observers if one != observer]
        self._pool._core.stale = True

    def observed(self, seconds: float, error: BaseException | None) -> None:
        """Call the observers: an acquire that took the slow path has ended, with or without an error."""
        for observer in self.observers:
            try:
                observer(self._pool, seconds, error)
            except Exception:
                logger.exception("%s: wait observer %r raised and is removed", self._pool.name, observer)
                self._pool.remove_wait_observer(observer)

    # -- numbers and text -----------------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """See :meth:`poolkit.Pool.stats`."""
        pool = self._pool
        pool._gate.run_posted()
        core = pool._core
        return snapshot(core, pool._gate.step(self._copied), pool._clock())

    def _copied(self) -> Parts:
        """Copy the state of the core, with the collected times recorded. Called under the lock."""
        self._record_times()
        return parts(self._pool._core)

    def explain(self) -> str:
        """See :meth:`poolkit.Pool.explain`."""
        return f"{self._pool.name}: {self._pool._gate.step(self._explained)}"

    def _explained(self) -> str:
        """Return the text of :meth:`explain`, without the pool's name. Called under the lock."""
        stats, held, diagnosis = self._look(self._pool._clock())
        return _with_budget(self._pool._core, explain(stats, held, diagnosis=diagnosis))

    def diagnose(self) -> Diagnosis | None:
        """See :meth:`poolkit.Pool.diagnose`."""
        return self._pool._gate.step(lambda: self._look(self._pool._clock())[2])

    def advice(self) -> Advice:
        """See :meth:`poolkit.Pool.advice`."""
        return advise(self.stats())

    def _look(self, now: float, most: int = 3) -> tuple[PoolStats, list[Holder], Diagnosis | None]:
        """Return the statistics, the ``most`` longest leases, and the diagnosis. Called under the lock."""
        core = self._pool._core
        stats = snapshot(core, self._copied(), now)
        return stats, self._held(now, most), _diagnosed(core, stats, self._pool._driver.name_of, now)

    def _held(self, now: float, most: int = 3) -> list[Holder]:
        """Return the ``most`` longest leases, with the names of their holders. Called under the lock."""
        pool = self._pool
        return [_named(held, pool._driver.name_of(holder)) for holder, held in _holders(pool._core, now, most)]

    def _shared_state(self, now: float) -> Picture:
        """Return the state that a timeout error describes. In a large pool or a long queue, timeouts within ``OLD``
        seconds share one snapshot, which bounds the cost of many at once. Called under the lock.
        """
        taken_at, picture = self._taken
        if picture is None or not 0 <= now - taken_at < OLD or picture[0].size + picture[0].waiting <= LARGE:
            core = self._pool._core
            stats = snapshot(core, self._copied(), now)
            picture = stats, self._held(now), _symptoms(core, stats, self._pool._driver.name_of, now)
            self._taken = now, picture
        return picture

    def describe(self) -> dict[str, Setting]:
        """See :meth:`poolkit.Pool.describe`."""
        found, size = described(self._pool._config), self._pool._core.size
        if size.reason:
            found["limit"] = Setting(size.limit, f"autoscale: {size.reason}")
        return found

    def details(self, most: int | None = 100) -> PoolDetails:
        """See :meth:`poolkit.Pool.details`."""
        pool = self._pool
        pool._gate.run_posted()
        stats, diagnosis, held, waiting, endpoints = pool._gate.step(self._detailed, most)
        name = pool._driver.name_of
        return PoolDetails(
            stats,
            diagnosis,
            tuple([_named(lease, name(holder)) for holder, lease in held]),
            tuple([_named(request, name(holder)) for holder, request in waiting]),
            tuple(endpoints),
        )

    def _detailed(
        self, most: int | None
    ) -> tuple[
        PoolStats, Diagnosis | None, list[tuple[Hashable, Holder]], list[tuple[Hashable, Queued]], list[LaneStats]
    ]:
        """Return holders and requests by their identities; their names are looked up later. Called under the lock."""
        core, now = self._pool._core, self._pool._clock()
        stats = snapshot(core, self._copied(), now)
        diagnosis = _diagnosed(core, stats, self._pool._driver.name_of, now)
        held = _holders(core, now, len(core.leased) if most is None else most)
        return stats, diagnosis, held, queued(core, now, most), lane_stats(core)

    def brief(self, most: int) -> PoolBrief:
        """Return what a list of many pools shows of this one, with the ``most`` longest leases and waits; of a pool
        without waiting callers or problems the longest lease is enough.
        """
        pool = self._pool
        pool._gate.run_posted()
        core, now, name = pool._core, pool._clock(), pool._driver.name_of

        def quiet() -> tuple[Parts, list[tuple[Hashable, Holder]]] | None:
            """Copy the state of a pool without waiting callers or problems; None for others. Called under the lock."""
            return (self._copied(), _holders(core, now)) if _nothing_wrong(core) else None

        found = pool._gate.step(quiet)
        if found is None:
            seen = self.details(most)
            return in_brief(seen, [one for one in seen.lanes if one.breaker != BreakerState.CLOSED.value])
        copied, held = found
        values, totals = numbers(core, copied, now)
        samples = core.meters.samples
        timeouts = totals.timeouts and totals.timeouts - samples.start(WINDOWS[1], now).timeouts
        leases = [_named(lease, name(holder)) for holder, lease in held]
        return PoolBrief(values, samples.window(WINDOWS[0], totals), timeouts, None, leases, [], [])

    def dump(self) -> str:
        """See :meth:`poolkit.Pool.dump`."""
        seen = self.details(None)
        state = explain(seen.stats, list(seen.leases), diagnosis=seen.diagnosis)
        lines = [f"{self._pool.name} ({type(self._pool).__name__}, {seen.stats.phase}): {state}"]
        for lease in seen.leases:
            place = f" at {lease.place}" if lease.place else ""
            lines.append(f"  lease of connection {lease.connection_id}: {lease.held:.1f} s by {lease.holder}{place}")
        for request in seen.waiters:
            to = "" if request.key is None else f" for {shown_key(request.key)}"
            of = f" of class {shown(request.caller_class)!r}" if request.caller_class else ""
            lines.append(f"  waiting{to}{of}: {request.waited:.1f} s, {request.holder}, {request.ahead} ahead")
        return "\n".join(lines)

    # -- leases held too long -------------------------------------------------------------------------------------

    def report_overdue(self, record: OnLease, seconds: float, *, taken_away: bool) -> None:
        """Log a lease that is held longer than ``leak_after``."""
        pool = self._pool
        logger.warning(
            "%s: lease held for %.1f s (leak_after=%g) by %s, taken at %s%s",
            pool.name, seconds, pool._config.leak_after, pool._driver.name_of(record.holder),
            place_of(record) or "an unknown place",
            "; taken away (on_leak='reclaim'): its connection is closed" if taken_away else "",
        )  # fmt: skip

    def overdue_error(self, record: OnLease) -> LeaseOverdue:
        """Return the error for the holder of a reported lease when it returns it (``on_leak="raise"``)."""
        pool = self._pool
        kind: type[LeaseOverdue] = getattr(pool._connector, "overdue_error", LeaseOverdue)
        return kind(
            f"{pool.name}: this lease was held for {pool._clock() - record.since:.1f} s "
            f"(leak_after={pool._config.leak_after:g}), taken at {place_of(record) or 'an unknown place'}; "
            "the connection is back in the pool"
        )

    # -- the timeout ----------------------------------------------------------------------------------------------

    def timeout_error(self, request: Request, now: float) -> PoolError:
        """Return the error for a caller that has timed out, with the state of the pool. Called under the lock."""
        pool, core, endpoint = self._pool, self._pool._core, request.endpoint
        ahead = 0
        if request.queued:
            before = islice(endpoint.queue.beside(request), COUNTED)
            ahead = next((n for n, other in enumerate(before) if other is request), COUNTED)
        stats, held, seen = self._shared_state(now)
        diagnosis = diagnose(seen, request.holder)
        down = not endpoint.live and endpoint.dialer.breaker.failures
        kind = ServerUnavailable if down else AcquireTimeout
        waited = now - request.since
        entitled = ""
        if core.classes is not None and request.caller_class is not None:
            unlimited = pool._config.max_size is None
            entitled = core.classes.words(request.caller_class, core.size.limit, unlimited=unlimited)
        words = explain(stats, held, ahead=ahead, diagnosis=diagnosis, spent=_spent(request, waited), entitled=entitled)
        text = _with_budget(core, words)
        error = kind(f"{pool.name}: no connection in {waited:.2f} s ({text}){_blocked_loop(pool._runtime)}")
        error.__cause__ = endpoint.dialer.last_error if endpoint.dialer.breaker.failures else None
        if entitled and request.caller_class is not None:
            error.caller_class = request.caller_class.name
        return error


def _named(one: N, holder: str) -> N:
    """Return a copy of a lease or a request, with the name of its holder."""
    named = object.__new__(type(one))
    named.__dict__.update(one.__dict__, holder=holder)
    return named


def _with_budget(core: Core, text: str) -> str:
    """Return ``text``, the state of a pool, with the state of its budget added. Called under the lock."""
    return text if core.permits is None else f"{text}; {core.permits.words()}"


def _blocked_loop(runtime: Any) -> str:
    """Return the addition to a timeout error if the wait has blocked the event loop of the calling thread."""
    asyncio = sys.modules.get("asyncio") if type(runtime) is ThreadRuntime else None
    if asyncio is None or asyncio._get_running_loop() is None:
        return ""
    return "; this thread runs an event loop, which the wait has blocked"


def _spent(request: Request, waited: float) -> str:
    """Return how a caller's time was spent, the largest part first."""
    parts = {"the queue": waited - request.checking - request.connecting, "checks": request.checking,
             "its own connects": request.connecting}  # fmt: skip
    found = sorted(((seconds, name) for name, seconds in parts.items() if seconds >= 0.005), reverse=True)
    return ", ".join(f"{seconds:.2f} s in {name}" for seconds, name in found)


# -- what is read from the core, under the lock -----------------------------------------------------------------------


def _holders(core: Core, now: float, most: int = 1) -> list[tuple[Hashable, Holder]]:
    """Return the ``most`` leases that have lasted longest, longest first, each with the identity of its holder. The
    holders' names are looked up later. The caller holds the lock.
    """
    # they are nearly sorted by their start, so sorted() is faster than heapq.nsmallest, which is written in Python
    return [
        (
            record.holder,
            frozen(
                Holder,
                connection_id=record.slot.id,
                held=now - record.since,
                holder="",
                place=place_of(record),
            ),
        )
        for record in sorted(core.leased.copy().values(), key=_SINCE)[:most]
    ]


def _symptoms(core: Core, stats: PoolStats, name_of: Callable[[Hashable], str], now: float) -> Symptoms:
    """Return the input of the rules in :mod:`poolkit.policies.diagnose`. The caller holds the lock."""
    leased = [record for record in core.leased.copy().values() if not record.slot.opening]
    endpoints = list(core.all_endpoints.values())
    slots = core.slots.living()
    returns = core.counts.uses + sum(slot.uses for slot in slots)
    returned = core.counts.busy + sum(slot.busy for slot in slots)
    last = max((slot.last_used for slot in slots if slot.uses), default=None)
    recent = stats.windows[WINDOWS[1]]
    failing = max(endpoints, key=lambda endpoint: endpoint.dialer.breaker.failures)
    connects = [slot.requested_at for slot in slots if slot.opening]
    return Symptoms(
        limit=core.limit,
        live=sum(endpoint.live for endpoint in endpoints)
        - sum(slot.state is State.IN_USE and slot.pending for slot in slots),
        waiting=stats.waiting,
        suspended=stats.phase == "suspended",  # not if it is closed: resume() would have no effect
        failures=failing.dialer.breaker.failures,
        breaker_open=any(endpoint.dialer.breaker.is_open(now) for endpoint in endpoints),
        last_error=describe(failing.dialer.last_error),
        connecting_for=now - min(connects, default=now),
        held=sorted((_held(record, name_of(record.holder), now) for record in leased),
                    key=attrgetter("seconds"), reverse=True),
        taken=len({record.slot.id for record in leased}),
        waiters=frozenset(hashable(request.holder) for endpoint in endpoints for request in endpoint.requests),
        returns=returns,
        usual_use=returned / returns if returns >= OFTEN else None,
        recent_use=recent.mean_use if recent.acquires >= OFTEN else None,
        returned_ago=None if last is None else now - last,
        acquires_per_second=recent.acquires_per_second,
        barred=_barred(core, endpoints),
    )  # fmt: skip


def _diagnosed(core: Core, stats: PoolStats, name_of: Callable[[Hashable], str], now: float) -> Diagnosis | None:
    """Return the diagnosis for an observer, which does not wait itself. The caller holds the lock.

    In most pools no rule can apply most of the time. Then no name of a holder is looked up.
    """
    return None if _nothing_wrong(core) else diagnose(_symptoms(core, stats, name_of, now))


def _nothing_wrong(core: Core) -> bool:
    """Whether no rule of the diagnosis can apply. The caller holds the lock."""
    leased = core.leased.copy()
    if core.suspended or len(leased) >= core.limit or any(map(_REPORTED, leased.values())):
        return False
    return not any(one.requests or one.dialer.breaker.failures for one in list(core.all_endpoints.values()))


def _barred(core: Core, endpoints: list[Endpoint]) -> str:
    """Return the classes that wait although capacity is free, because they are at their own limit."""
    classes = core.classes
    if classes is None or len(core.all_slots) - sum(len(endpoint.idle) for endpoint in endpoints) >= core.limit:
        return ""
    barred = dict.fromkeys(one for endpoint in endpoints for one in endpoint.queue.barred(core.limit))
    return ", ".join(classes.words(one, core.limit, unlimited=core.config.max_size is None) for one in barred)


def _held(record: OnLease, name: str, now: float) -> Held:
    ended = name.endswith(ENDED)
    return Held(now - record.since, hashable(record.holder), name, place_of(record), ended, record.reported)


# -- the text ---------------------------------------------------------------------------------------------------------


def _class_words(one: ClassStats) -> str:
    waiting = f", {one.waiting} waiting" if one.waiting else ""
    return f"class {shown(one.name)!r} {one.in_use}{'' if one.most is None else f'/{one.most}'}{waiting}"


def explain(
    stats: PoolStats,
    held: list[Holder],
    *,
    ahead: int | None = None,
    diagnosis: Diagnosis | None = None,
    spent: str = "",
    entitled: str = "",
) -> str:
    """Return the state of a pool as text, for ``explain()`` and timeout errors.

    Timeout errors add how many callers are ``ahead``, how the time was ``spent``, and what the caller's class is
    ``entitled`` to.
    """
    limit = "no limit" if stats.limit is None else stats.limit
    numbers = [f"in use {stats.in_use}/{limit}", f"idle {stats.idle}", f"connecting {stats.connecting}"]
    numbers += [
        f"{name} {number}"
        for name, number in (("checking", stats.checking), ("resetting", stats.resetting), ("closing", stats.closing))
        if number
    ]
    if stats.phase in ("draining", "closed"):
        numbers.insert(0, stats.phase)
    if ahead is None:
        numbers.append(f"{stats.waiting} waiting")
    else:
        numbers.append(f"{ahead} ahead of you" if ahead < COUNTED else f"at least {ahead} ahead of you")
    text = ", ".join(numbers)
    if entitled:
        text += f"; {entitled}"
    elif stats.classes:
        text += "; " + ", ".join(_class_words(one) for one in stats.classes.values())
    if stats.overloaded:
        text += f"; overloaded: {shown(stats.overload_reason)}, so the newest are served first"
    if held:
        first = held[0]
        text += f"; longest held {first.held:.1f} s by {first.holder}"
        if first.place:
            text += f" at {first.place}"
    if stats.limit_reason:
        bounds = f"{stats.min_size} to {'any number' if stats.max_size is None else stats.max_size}"
        text += f"; elastic size {limit} of {bounds}: {stats.limit_reason}"
    text += f"; last connect error: {stats.last_connect_error or 'none'}"
    if spent:
        text += f"; time spent: {spent}"
    return text if diagnosis is None else f"{text}; diagnosis: {diagnosis}"
