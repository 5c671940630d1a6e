"""Which short paths a pool has now: one value, computed from the state whenever that changes."""

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
    make_classed_put,
    make_classed_take,
    make_keyed_put,
    make_keyed_take,
    make_put,
    make_take,
    make_telling_put,
    make_telling_take,
    measured,
    traced,
    unreported,
)
from .events import OF_EACH_LEASE, EventKind

__all__ = ("Access", "Facts", "FastPath", "access_of")


class Facts(NamedTuple):
    """On what it depends how callers get connections without asking the core. Other facts make other functions.

    FACTS-CURRENT: whatever changes one of them sets ``core.stale``, and the gate has them computed anew after the step.
    """

    admits: bool
    """The core need not be asked: the pool is open and not suspended, and another thread does what is due."""
    told: tuple[frozenset[EventKind], Any]
    """Of the events of each lease those that somebody wants, and who delivers them."""
    exclusive: bool
    """One endpoint, and one lease for each connection."""
    classes: Any
    tracing: bool
    """Who takes a lease, and where, is noted."""
    watched: bool
    """Observers or listeners are told of leases that took the slow path."""
    surplus: bool
    """Connections above a smaller limit are closed when they come back."""
    sharing_needed: bool
    """Another pool needs connections: returned ones are looked at."""
    histogram: bool
    caller: Any
    numbers: tuple[Any, ...]

    @staticmethod
    def of(pool: Any) -> Facts:
        """The facts of a pool. Called under its lock."""
        core, config = pool._core, pool._config
        told = core.wanted_events & OF_EACH_LEASE
        return Facts(
            admits=core.phase is Phase.OPEN and not core.suspended and not pool._gate.alone,
            told=(told, pool._listeners.deliver if told else None),
            exclusive=not core.features.keyed and not pool._shared,
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
    """How callers get connections and give them back without asking the core. Each declines where it must."""

    take: Callable[..., Slot | None]
    take_at: Callable[..., Slot | None]
    """The same for an endpoint of a keyed pool."""
    put: Callable[[Any], bool]
    plain: bool
    """Nobody but the two ends of a lease is to be considered: no lock, no classes, nothing to note."""


def access_of(pool: Any, facts: Facts) -> Access:
    """What the facts of the pool allow. Called under its lock."""
    core, clock = pool._core, pool._clock
    told, one_by_one = facts.told[0], facts.exclusive and facts.classes is None
    starts_alone = EventKind.ACQUIRE_STARTED in told and EventKind.ACQUIRED not in told
    if not facts.admits or (told and (starts_alone or not one_by_one)):
        return Access(decline_take, decline_take, decline_put, plain=False)
    gate = (core, pool._gate.lock, clock, pool._gate.inbox, pool._gate.run_posted, pool._gate.recover)
    take_at = decline_take
    if not facts.exclusive:
        take = take_at = make_keyed_take(*gate, pool._caller, pool._slow.class_of_caller)
        put = make_keyed_put(*gate)
    elif core.classes is not None:
        take = take_at = make_classed_take(*gate, pool._caller, pool._slow.class_of_caller)
        put = make_classed_put(*gate)
    else:
        take = make_take(core, clock, pool._caller, pool._fast.undo_take)
        put = make_put(core, clock, pool._fast.missed)
        if told - {EventKind.RELEASED}:
            take = make_telling_take(core, clock, pool._caller, pool._fast.undo_take, pool._listeners)
        if EventKind.RELEASED in told:
            put = make_telling_put(core, pool._gate.lock._is_owned, clock, pool._fast.missed, pool._listeners)
    if facts.tracing:
        take, take_at, put = traced(take, pool._slow.trace), traced(take_at, pool._slow.trace), unreported(put)
    operations = pool._driver.operations
    resets, dirty = operations.reset is not None, operations.needs_reset
    if facts.surplus or facts.sharing_needed or (resets and dirty is None):
        put = decline_put
    else:
        put = clean(put, dirty) if resets else put
        put = measured(put, clock, pool._monitor.used, pool._monitor.flush) if facts.histogram else put
    return Access(take, take_at, put, plain=one_by_one and not facts.tracing and not told)


class FastPath:
    """Acquire and release without asking the core: functions that are made anew when the facts have changed.

    ``methods``: makes those that stand for methods of the pool itself, by name.
    """

    def __init__(self, pool: Any, methods: Callable[[Access], dict[str, Callable[..., Any]]]) -> None:
        self._pool = pool
        self._methods = methods
        self._facts: Facts | None = None

    def renew(self) -> None:
        """Under the lock, after a step that has changed something."""
        pool, core, slow = self._pool, self._pool._core, self._pool._slow
        facts = Facts.of(pool)
        core.stale = facts.surplus  # it ends as connections are closed: look again after the next step
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
        core.settle(pool._clock())  # what the old functions have put back meanwhile is looked at

    def outdate(self) -> None:
        """Under the lock: something has changed on which the functions depend."""
        self._pool._core.stale = True

    def restart(self) -> None:
        """Under the lock: make the functions anew, whatever the facts are."""
        self._facts = None
        self.renew()

    def check(self) -> None:
        """AssertionError unless the functions are those that the facts allow."""
        assert self._facts == Facts.of(self._pool), "the fast path is not the one that the pool's state allows"

    def undo_take(self, slot: Slot) -> None:
        """A take was rash: put the connection where it was; the slow path decides about it."""
        self._pool._gate.post(self._put_back, slot)

    def _put_back(self, slot: Slot) -> None:
        idle = self._pool._endpoint.idle
        if self._pool._core.lifo:
            idle.append(slot)
        else:
            idle.appendleft(slot)

    def missed(self, endpoint: Endpoint, now: float) -> None:
        """A connection was put back while the pool changed, or somebody queued."""
        self._pool._gate.post(_nothing)  # the look that follows each step makes good what was missed


def _nothing() -> None:
    """A step after which the gate looks at the state."""
