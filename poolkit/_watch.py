"""What a pool says of itself: statistics, explanations, reports of leaks. Read by the shells' users, never waits."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import islice
from typing import Any

from . import _churn
from ._core.lease_record import Held
from ._core.state import Phase
from ._core.upkeep import leaks
from ._core.waiter import Waiter
from ._log import logger
from ._picture import COUNTED, diagnosed, explain, holders, place_of, symptoms
from ._sharing import Sharing
from .errors import AcquireTimeout, LeaseOverdue, PoolError, ServerUnavailable, shown
from .events import CloseReason, EventKind, FailReason
from .policies.diagnose import Diagnosis, Symptoms, diagnose
from .settings import Setting, described
from .sizing import Advice, advise
from .stats import (
    Holder,
    LaneStats,
    Parts,
    PoolDetails,
    PoolStats,
    Queued,
    lane_stats,
    parts,
    queued,
    snapshot,
    take_sample,
)

__all__ = ("Watch", "WaitObserver", "measured")

LARGE = 200  # connections and waiters: from there on timeouts share their picture of the pool
OLD = 0.1  # seconds that such a picture is told
BATCH = 256  # times that are kept aside before somebody takes the lock for them

WaitObserver = Callable[[Any, float, "BaseException | None"], object]
"""``observer(pool, seconds, error)``, in the thread or task of a caller whose acquire has ended and who had not found
an idle connection at once; never under the pool's lock. ``error``: why there is none. One that raises is dropped."""


Picture = tuple[PoolStats, list[Holder], Symptoms]


def measured(
    put: Callable[[Any], bool], clock: Callable[[], float], used: deque[float], flush: Callable[[], None]
) -> Callable[[Any], bool]:
    """``put``, with the time of each lease noted. Without the lock: appending to a deque is atomic."""
    note = used.append

    def measured_put(entry: Any) -> bool:
        seconds = clock() - entry.since  # first: after put() the entry is another's
        if not put(entry):
            return False
        note(seconds)
        if len(used) >= BATCH:
            flush()
        return True

    return measured_put


class Watch(Sharing):
    """The part of a pool that only looks."""

    _waited: deque[float]
    _used: deque[float]
    _observers: list[WaitObserver]
    _orphans: set[int]
    _made_at: tuple[str, int] | None
    _connector: Any
    _taken: tuple[float, Picture | None]

    def _name_of(self, holder: Hashable) -> str:
        raise NotImplementedError

    def _measure_anew(self) -> None:
        """With a new core: nothing is measured yet."""
        self._waited = deque()
        self._used = deque()
        self._taken = 0.0, None
        self._core.meters.begin(self._clock())

    # -- times ----------------------------------------------------------------------------------------------------

    def _note_times(self) -> None:
        """Under the lock: into the histograms with what was kept aside."""
        meters = self._core.meters
        for kept, meter in ((self._waited, meters.wait), (self._used, meters.use)):
            meter.record_all(kept)
        now = self._clock()
        if meters.samples.due(now):
            take_sample(self._core, parts(self._core), now)

    def _flush(self) -> None:
        self._gate.post(self._note_times)

    def _observed(self, seconds: float, error: BaseException | None) -> None:
        """An acquire that took the long way has ended, well or not."""
        for observer in self._observers:
            try:
                observer(self, seconds, error)
            except Exception:
                logger.exception("%s: wait observer %r failed and is dropped", self.name, observer)
                self.remove_wait_observer(observer)

    def add_wait_observer(self, observer: WaitObserver) -> None:
        """Call ``observer(pool, seconds, error)`` at the end of each acquire that found no idle connection at once.

        It runs in the thread or task of the caller (tracing finds its context there), outside the pool's lock, and
        must be quick. ``error`` is None, or why there is no connection. One that raises is logged and dropped.
        Acquires that are served without waiting cost nothing more.
        """
        self._observers = [*self._observers, observer]
        self._gate.step(self._refresh)

    def remove_wait_observer(self, observer: WaitObserver) -> None:
        """Undo :meth:`add_wait_observer`; not an error if it is not there."""
        self._observers = [one for one in self._observers if one != observer]
        self._gate.step(self._refresh)

    # -- numbers and words ----------------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """A frozen snapshot, computed from the pool's state now. Thread-safe; never waits for I/O."""
        self._gate.run_posted()
        core = self._core
        return snapshot(core, self._gate.step(self._copied), self._clock())

    def _copied(self) -> Parts:
        """Under the lock."""
        self._note_times()
        return parts(self._core)

    def lane_stats(self) -> list[LaneStats]:
        """A frozen snapshot of each lane (endpoint) of a keyed pool; of any other pool there is one."""
        return self._gate.step(lane_stats, self._core)

    def explain(self) -> str:
        """The state of the pool in plain words: what is in use, who waits, who holds longest, what failed last, and
        why callers wait, if any do (the rules are in ``docs/guides/explain.md``).
        """
        return f"{self.name}: {self._gate.step(self._explained)}"

    def _explained(self) -> str:
        """Under the lock."""
        stats, held, diagnosis = self._look(self._clock())
        return self._with_budget(explain(stats, held, diagnosis=diagnosis))

    def diagnose(self) -> Diagnosis | None:
        """Why callers wait, with the numbers that speak for it; None if nothing is wrong."""
        return self._gate.step(self._diagnosed)

    def advice(self) -> Advice:
        """Whether ``max_size`` fits what the pool has seen in its windows, in plain words and numbers."""
        return advise(self.stats())

    def _diagnosed(self) -> Diagnosis | None:
        """Under the lock."""
        return self._look(self._clock())[2]

    def _look(self, now: float, most: int = 3) -> tuple[PoolStats, list[Holder], Diagnosis | None]:
        """Under the lock: numbers, the ``most`` who hold longest, and the diagnosis."""
        stats = snapshot(self._core, self._copied(), now)
        return stats, self._held(now, most), diagnosed(self._core, stats, self._name_of, now)

    def _held(self, now: float, most: int = 3) -> list[Holder]:
        """Under the lock: the ``most`` who hold longest, by name."""
        return [replace(held, holder=self._name_of(holder)) for holder, held in holders(self._core, now, most)]

    def _picture(self, now: float) -> Picture:
        """Under the lock: what a timeout tells. Many at once, in a large pool or a long queue, are told the same for a
        moment.
        """
        taken_at, picture = self._taken
        if picture is None or not 0 <= now - taken_at < OLD or picture[0].size + picture[0].waiting <= LARGE:
            stats = snapshot(self._core, self._copied(), now)
            picture = stats, self._held(now), symptoms(self._core, stats, self._name_of, now)
            self._taken = now, picture
        return picture

    def announce(self, kind: EventKind, detail: str) -> None:
        """Tell the listeners something that was found out about this pool from outside (alerts)."""
        self._gate.step(lambda: self._core.tell(kind, self._clock(), detail=detail))

    def describe(self) -> dict[str, Setting]:
        """Each setting with the value in effect and where it came from.

        With ``autoscale`` also ``limit``, the connections that may exist now, and why it is so many.
        """
        found, size = described(self._config), self._core.size
        if size.reason:
            found["limit"] = Setting(size.limit, f"autoscale: {size.reason}")
        return found

    def details(self, most: int | None = 100) -> PoolDetails:
        """Statistics, diagnosis, endpoints, and the ``most`` (None: all) longest leases and waits, of one moment.
        Thread-safe; waits for no I/O. The lock is held as long as for :meth:`explain`.
        """
        self._gate.run_posted()
        stats, diagnosis, held, waiting, lanes = self._gate.step(self._detailed, most)
        name = self._name_of
        return PoolDetails(
            stats,
            diagnosis,
            tuple(replace(lease, holder=name(holder)) for holder, lease in held),
            tuple(replace(waiter, holder=name(holder)) for holder, waiter in waiting),
            tuple(lanes),
        )

    def _detailed(
        self, most: int | None
    ) -> tuple[
        PoolStats, Diagnosis | None, list[tuple[Hashable, Holder]], list[tuple[Hashable, Queued]], list[LaneStats]
    ]:
        """Under the lock: holders and waiters by their identities; their names are found out later."""
        core, now = self._core, self._clock()
        stats = snapshot(core, self._copied(), now)
        diagnosis = diagnosed(core, stats, self._name_of, now)
        held = holders(core, now, len(core.leased) if most is None else most)
        return stats, diagnosis, held, queued(core, now, most), lane_stats(core)

    def dump(self) -> str:
        """As :meth:`explain`, with every lease and every waiter on a line of its own."""
        seen = self.details(None)
        state = explain(seen.stats, list(seen.leases), diagnosis=seen.diagnosis)
        lines = [f"{self.name} ({type(self).__name__}, {seen.stats.phase}): {state}"]
        for lease in seen.leases:
            place = f" at {lease.place}" if lease.place else ""
            lines.append(f"  lease of connection {lease.connection_id}: {lease.held:.1f} s by {lease.holder}{place}")
        for waiter in seen.waiters:
            to = "" if waiter.key is None else f" for {shown(waiter.key)}"
            of = f" of class {shown(waiter.caller_class)!r}" if waiter.caller_class else ""
            lines.append(f"  waiting{to}{of}: {waiter.waited:.1f} s, {waiter.holder}, {waiter.ahead} ahead")
        return "\n".join(lines)

    # -- leases that last too long --------------------------------------------------------------------------------

    def _look_for_leaks(self) -> None:
        """Report leases held longer than ``leak_after``; with ``on_leak="reclaim"`` take them away."""
        config = self._config
        if config.leak_after is None:
            return
        reclaim = config.on_leak == "reclaim"
        for record, seconds in self._gate.step(self._overdue_leases, reclaim, self._clock()):
            logger.warning(
                "%s: lease held for %.1f s (leak_after=%g) by %s, taken at %s%s",
                self.name, seconds, config.leak_after, self._name_of(record.holder),
                place_of(record) or "an unknown place",
                "; taken away (on_leak='reclaim'): its connection is closed"
                if reclaim and not record.slot.leases else "",
            )  # fmt: skip

    def _overdue_leases(self, reclaim: bool, now: float) -> list[tuple[Held, float]]:
        """Under the lock."""
        core, found = self._core, []
        for record in leaks(core, now):
            found.append((record, now - record.since))
            entry = record.slot
            if reclaim and entry.capacity == 1:
                for key in [key for key, leased in core.leased.copy().items() if leased is record]:
                    if core.leased.pop(key, None) is None:
                        continue  # it came back in this very moment
                    self._orphans.add(key)  # what comes back under it later is let go of
                    entry.leases = 0
                    core.begin_close(entry, CloseReason.LEAKED, now, abort=True)
        return found

    def _overdue(self, record: Held, error: BaseException | None) -> LeaseOverdue | None:
        """What the holder of a lease that was reported hears on its return, with ``on_leak="raise"``."""
        if error is not None or self._config.on_leak != "raise":
            return None
        kind: type[LeaseOverdue] = getattr(self._connector, "overdue_error", LeaseOverdue)
        return kind(
            f"{self.name}: this lease was held for {self._clock() - record.since:.1f} s "
            f"(leak_after={self._config.leak_after:g}), taken at {place_of(record) or 'an unknown place'}; "
            "the connection is back in the pool"
        )

    def __del__(self) -> None:
        try:
            core, name, place = self._core, self.name, self._made_at
            open_ones = sum(entry.connection is not None for entry in list(core.entries.values()))
            expected = core.phase is not Phase.OPEN or not getattr(self._connector, "must_be_closed", True)
            if open_ones and not expected and not sys.is_finalizing():
                _churn.collected(name, place, open_ones)
        except AttributeError:  # it was never finished, or the interpreter is going down
            pass

    # -- the timeout ----------------------------------------------------------------------------------------------

    def _expire(self, waiter: Waiter, now: float) -> PoolError | None:
        """Under the lock: the caller's time is up; None if it was served in this very moment."""
        if waiter.outcome is not None:
            return None
        core, lane = self._core, waiter.lane
        ahead = 0
        if waiter.queued:
            before = islice(lane.queue.beside(waiter), COUNTED)
            ahead = next((n for n, other in enumerate(before) if other is waiter), COUNTED)
        stats, held, seen = self._picture(now)
        diagnosis = diagnose(seen, waiter.holder)
        down = not lane.live and lane.dialer.breaker.failures
        kind = ServerUnavailable if down else AcquireTimeout
        waited = now - waiter.since
        entitled = ""
        if core.classes is not None and waiter.caller_class is not None:
            unlimited = self._config.max_size is None
            entitled = core.classes.words(waiter.caller_class, core.limit, unlimited=unlimited)
        words = explain(stats, held, ahead=ahead, diagnosis=diagnosis, spent=_spent(waiter, waited), entitled=entitled)
        text = self._with_budget(words)
        error = kind(f"{self.name}: no connection in {waited:.2f} s ({text})")
        error.__cause__ = lane.dialer.last_error if lane.dialer.breaker.failures else None
        if entitled and waiter.caller_class is not None:
            error.caller_class = waiter.caller_class.name
        core.abandon(waiter, now, timed_out=True)
        core.tell(EventKind.ACQUIRE_FAILED, now, duration=waited, reason=FailReason.TIMEOUT, error=error)
        return error


def _spent(waiter: Waiter, waited: float) -> str:
    """What used up the time of a caller, the largest part first."""
    parts = {"the queue": waited - waiter.checking - waiter.connecting, "checks": waiter.checking,
             "its own connects": waiter.connecting}  # fmt: skip
    found = sorted(((seconds, name) for name, seconds in parts.items() if seconds >= 0.005), reverse=True)
    return ", ".join(f"{seconds:.2f} s in {name}" for seconds, name in found)
