"""The fast path of a pool: chosen from the facts of its state, and renewed when they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ._core.endpoints import Endpoint
from ._core.slots import Slot
from ._core.state import Phase
from ._fast import (
    clean,
    decline_put,
    decline_take,
    delivered,
    make_classed_put,
    make_classed_take,
    make_keyed_put,
    make_keyed_take,
    make_note,
    make_put,
    make_take,
    make_telling_put,
    make_telling_take,
    measured,
    told,
    traced,
    unreported,
)
from .events import OF_EACH_LEASE, EventKind

__all__ = ("Access", "Facts", "FastPath", "access_of")


class Facts(NamedTuple):
    """The facts that decide which functions callers use to get connections without asking the core.

    FACTS-CURRENT: a step that changes one of them sets ``core.stale``, and the gate computes them again after the step.
    """

    admits: bool
    """The core need not be asked: the pool is open and not suspended, and a background thread does timed work."""
    told: tuple[frozenset[EventKind], Any]
    """The kinds of events of each lease that have a listener, and the function that delivers them."""
    exclusive: bool
    """One endpoint, and one lease for each connection."""
    classes: Any
    tracing: bool
    """The holder of each lease is recorded, and the place where it was taken."""
    watched: bool
    """Observers or listeners are called for leases that took the slow path."""
    surplus: bool
    """More connections exist than a reduced limit allows; they are closed when they are returned."""
    sharing_needed: bool
    """Another pool of the budget needs permits: each returned connection may have to be closed."""
    histogram: bool
    caller: Any
    numbers: tuple[Any, ...]

    @staticmethod
    def of(pool: Any) -> Facts:
        """Return the facts of a pool. Called under its lock."""
        core, config = pool._core, pool._config
        told = core.wanted_events & OF_EACH_LEASE
        return Facts(
            admits=core.phase is Phase.OPEN and not core.suspended and not pool._gate.alone,
            told=(told, pool._listeners.deliver if told else None),
            exclusive=not core.features.keyed and not pool._register.shared,
            classes=core.classes,
            tracing=pool._debug or config.leak_after is not None,
            watched=EventKind.ACQUIRED in core.wanted_events or bool(pool._monitor.observers),
            surplus=len(core.all_slots) - core.closing > core.size.limit,
            sharing_needed=core.capacity.sharing_needed,
            histogram=config.use_histogram,
            caller=pool._caller,
            numbers=(core.size.limit, core.size.max_idle, core.window, core.lifo),
        )


class Access(NamedTuple):
    """The functions with which callers take and return connections without asking the core. Each may decline; the
    caller then uses the slow path.
    """

    take: Callable[..., Slot | None]
    take_at: Callable[..., Slot | None]
    """The same for an endpoint of a keyed pool."""
    put: Callable[[Any], bool]
    plain: bool
    """The functions need no lock, no classes, and record nothing, so acquire() and release() may contain copies."""


def access_of(pool: Any, facts: Facts) -> Access:
    """Return the functions that the facts of the pool allow. Called under its lock."""
    core, clock, listeners = pool._core, pool._clock, pool._listeners
    wanted, one_by_one = facts.told[0], facts.exclusive and facts.classes is None
    begins, ends = EventKind.ACQUIRED in wanted, EventKind.RELEASED in wanted
    if not facts.admits or (EventKind.ACQUIRE_STARTED in wanted and not begins):
        return Access(decline_take, decline_take, decline_put, plain=False)
    take_at = decline_take
    if one_by_one:
        take = make_take(core, clock, pool._caller, pool._fast.undo_take)
        put = make_put(core, clock, pool._fast.missed)
        if begins:
            take = make_telling_take(core, clock, pool._caller, pool._fast.undo_take, listeners)
        if ends:
            put = make_telling_put(core, pool._gate.lock._is_owned, clock, pool._fast.missed, listeners)
    else:
        gate = (core, pool._gate.lock, clock, pool._gate.inbox, pool._gate.run_posted, pool._gate.recover)
        make = (make_classed_take, make_classed_put) if facts.exclusive else (make_keyed_take, make_keyed_put)
        take = make[0](*gate, pool._caller, pool._slow.class_of_caller)
        put = make[1](*gate, make_note(core, listeners) if ends else None)
        take = take_at = told(take, core, listeners) if begins else take
        put = delivered(put, listeners) if ends else put
    if facts.tracing:
        take, take_at, put = traced(take, pool._slow.trace), traced(take_at, pool._slow.trace), unreported(put)
    operations = pool._driver.operations
    resets, dirty = operations.reset is not None, operations.needs_reset
    if facts.surplus or facts.sharing_needed or (resets and dirty is None):
        put = decline_put
    else:
        put = clean(put, dirty) if resets else put
        put = measured(put, clock, pool._monitor.used, pool._monitor.flush) if facts.histogram else put
    return Access(take, take_at, put, plain=one_by_one and not facts.tracing and not wanted)


class FastPath:
    """Acquire and release without asking the core, by functions that are created again when the facts change.

    ``methods``: creates the functions that replace methods of the pool, by name.
    """

    def __init__(self, pool: Any, methods: Callable[[Access], dict[str, Callable[..., Any]]]) -> None:
        self._pool = pool
        self._methods = methods
        self._facts: Facts | None = None

    def renew(self) -> None:
        """Create the functions again if the facts have changed. Called under the lock, when ``core.stale`` is set."""
        pool, core, slow = self._pool, self._pool._core, self._pool._slow
        facts = Facts.of(pool)
        core.stale = facts.surplus  # surplus connections are closed step by step: check again after the next one
        if facts == self._facts and not core.moved:
            return
        core.moved.append(True)
        core.moved = []
        slow.waited = pool._monitor.waited
        slow.tracing = facts.tracing
        slow.watched = facts.tracing or facts.watched
        slow.plain_end = pool._driver.operations.reset is None and not facts.histogram
        access = access_of(pool, facts)
        pool._take, pool._take_at, pool._put = access.take, access.take_at, access.put
        mine = pool.__dict__
        for name in ("acquire", "release", "lease"):
            mine.pop(name, None)
        mine.update(self._methods(access))
        self._facts = facts
        core.settle(pool._clock())  # the former functions may have put connections back meanwhile

    def outdate(self) -> None:
        """Have the functions renewed after this step. Called under the lock, when a fact has changed."""
        self._pool._core.stale = True

    def restart(self) -> None:
        """Create the functions again, even if the facts are the same. Called under the lock."""
        self._facts = None
        self.renew()

    def check(self) -> None:
        """Raise AssertionError unless the functions are those that the facts allow."""
        assert self._facts == Facts.of(self._pool), "the fast path is not the one that the pool's state allows"

    def undo_take(self, slot: Slot) -> None:
        """Put a connection back that may not be leased without a check. The slow path decides about it."""
        self._pool._gate.post(self._put_back, slot)

    def _put_back(self, slot: Slot) -> None:
        idle = self._pool._endpoint.idle
        if self._pool._core.lifo:
            idle.append(slot)
        else:
            idle.appendleft(slot)

    def missed(self, endpoint: Endpoint, now: float) -> None:
        """A connection was put back while the pool changed or a caller entered the queue."""
        self._pool._gate.post(_nothing)  # settle(), which follows each step, assigns the connection


def _nothing() -> None:
    """An empty step: the gate calls settle() after it."""
