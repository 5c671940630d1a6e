"""The state of a pool and its elementary moves; :mod:`.dialing` and :mod:`.machine` build on it."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum

from ..config import PoolConfig
from ..errors import PoolError
from ..events import CloseReason, Event, EventKind, FailReason
from ..policies.classes import Classes
from ..policies.meters import Meters
from ..policies.retire import NEVER
from .capacity import Capacity, OwnLimit, SharedLimit
from .class_use import ClassUse, NoClasses, Use, configured
from .dialer import Dialer
from .effects import Do, Effect
from .entry import CLOSED, CLOSING, IDLE, IN_USE, Entry, Purpose
from .lane import Lane
from .lease_record import Held
from .ledger import Account
from .size import size_of
from .waiter import Parker, Waiter
from .waiting import WaitingLanes

__all__ = ("LOOK_EVERY", "CoreState", "Counts", "Features", "Phase")

_tuple = tuple.__new__  # a NamedTuple's own is a Python function
_WAKE = Do.WAKE
LOOK_EVERY = 5.0  # seconds between two looks at idle connections for a peer that has hung up


class Phase(Enum):
    """Whether the pool admits callers."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True)
class Features:
    """What the connector can do and how the pool uses it."""

    connect_in_caller: bool = False
    checks: bool = False  # has check()
    peeks: bool = False  # has peek()
    keyed: bool = False  # many lanes, the key is given with each acquire
    elsewhere: bool = False  # callers can go to another pool: they hear of a failed connect at once

    @property
    def lazy(self) -> bool:
        """Whether a connection counts as live while its connect is going on."""
        return self.keyed and self.connect_in_caller


class Counts:
    """Running totals of what leaves no trace in the entries. Written under the lock."""

    __slots__ = (
        "busy", "checks", "closes", "connect_errors", "connects", "failed_checks", "leaks", "reclaimed", "timeouts",
        "uses", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connects = self.connect_errors = self.checks = self.failed_checks = 0
        self.timeouts = self.waits = self.leaks = 0
        self.reclaimed = 0  # entries that interrupted threads have left in nobody's hands
        self.uses = 0  # of connections that are gone; the others keep their own ledger
        self.busy = 0.0
        self.closes: dict[CloseReason, int] = dict.fromkeys(CloseReason, 0)


class CoreState:
    """What a pool consists of. Not thread-safe: the shell holds its lock around every call."""

    def __init__(
        self,
        config: PoolConfig,
        features: Features,
        *,
        name: str,
        barging: float,
        random: Callable[[], float],
        account: Account | None = None,
    ) -> None:
        self.name = name
        self.join(account)
        self.use: Use = NoClasses()  # of connections, by classes of callers
        self.multiplexed = False  # a connection has served several leases at once
        self.features = features
        self.keyed = features.keyed
        self.random = random
        self.entries: dict[int, Entry] = {}
        self.known: dict[int, int] = {}  # id of a connection to the number of the entry that came last with it
        self.leased: dict[int, Held] = {}  # by the id of the lease, or of the connection where there is none
        self.lanes: dict[Hashable, Lane] = {}
        self.last_failed: Lane | None = None  # whose connect failed last
        self._many_lanes = 256
        self.idle_order: OrderedDict[Entry, None] = OrderedDict()  # keyed pools: over all lanes, oldest first
        # what settle() has to look at; everything else it finds in the state itself
        self.returned: dict[Entry, None] = {}  # connections that are nobody's, or have a stream to spare
        self.touched: dict[Lane, None] = {}  # keyed pools: lanes of which something has changed
        self.newcomers: deque[Waiter] = deque()  # who may be refused, in a pool with max_waiting
        # keyed pools: lanes that would open a connection if they had a permit; those of them that need idle ones closed
        self.in_need, self.uncovered = WaitingLanes(), WaitingLanes()
        self.queued: dict[Lane, None] = {}  # keyed pools: lanes with waiters
        self.effects: deque[Effect] = deque()
        self.counts = Counts()
        self.meters = Meters()
        self.phase = Phase.OPEN
        self.suspended = False
        self.fail_fast = False
        self.started = False  # used once: from then on min_size is kept
        self.heard: frozenset[EventKind] = frozenset()  # the kinds of event that anybody listens to
        self.due = NEVER  # when tick() wants to be called: for a sweep, or for the lanes in timed
        self.sweep_at = NEVER
        self.stale = False  # something has changed on which the paths without the lock depend
        self.timed: set[Lane] = set()
        self.pinging = 0
        self.closing = 0
        self.vigil = 1.0  # seconds between two looks at everything while somebody waits
        self.unsure = 0  # such looks that are due in any case: a thread was interrupted
        self.moved: list[bool] = []  # what the paths without the lock rely on has changed since they got this list
        self.watchers: list[Parker] = []  # callers of close and drain, woken for each connection that is gone
        self._numbers = 0
        self.size = size_of(config, None, keyed=self.keyed, due=self.want)
        self.configure(config, barging)
        self.lane = self.add_lane(None)  # the only one, unless keyed

    def join(self, account: Account | None) -> None:
        """Share the limit of a budget from now on; before anything has been opened."""
        self.permits = account
        self.capacity: Capacity = OwnLimit() if account is None else SharedLimit(account)

    @property
    def limit(self) -> int:
        """Connections that may exist now."""
        return self.size.limit

    def configure(self, config: PoolConfig, barging: float) -> None:
        """Take over settings (new ones at any time; see commands.reconfigure for what follows from it)."""
        self.config = config
        self.barging = barging if config.barging_window is None else config.barging_window
        if config.classes is not None:
            self.barging = 0.0  # whose turn it is must not be undone by those who are quick
        self.size = size_of(config, self.size, keyed=self.features.keyed, due=self.want)
        self.most_waiting = config.max_waiting
        self.max_connecting = config.max_connecting or sys.maxsize
        self.lifo = config.order == "lifo"
        self.doubts = self.features.checks or self.features.peeks
        window = config.check_after_idle if self.doubts and config.check_after_idle is not None else NEVER
        self.window = min(window, config.idle_timeout or NEVER)
        self.use = configured(self.use, config, self.lanes.values(), self.entries.values(), self._class_use)
        self.classes = self.use.classes

    def _class_use(self, classes: Classes) -> ClassUse:
        return ClassUse(classes, lambda: self.size.limit, self._coming, by_caller=self.features.connect_in_caller)

    def _coming(self) -> int:
        """Connections that are neither idle nor being closed nor checked in the background."""
        idle = len(self.idle_order) if self.features.keyed else len(self.lane.idle)
        return len(self.entries) - idle - self.closing - self.pinging

    # -- elementary moves ---------------------------------------------------------------------------------------------

    def touch_all(self) -> None:
        """Something has changed that concerns every lane."""
        self.touched |= dict.fromkeys(self.lanes.values())

    def add_lane(self, key: Hashable) -> Lane:
        """The lane of ``key``, made if need be."""
        lane = self.lanes.get(key)
        if lane is None:
            if len(self.lanes) >= self._many_lanes:
                self._drop_unused_lanes()
            dialer = Dialer(
                self.name, self.config, by_caller=self.features.connect_in_caller, in_use=self.features.lazy
            )
            lane = self.lanes[key] = Lane(key, dialer, self.use.new_queue())
        return lane

    def _drop_unused_lanes(self) -> None:
        """Lanes are kept without a connection only for the failures their breakers have counted; not for ever."""
        for lane in [one for one in self.lanes.values() if one.unused and one is not self.lane]:
            del self.lanes[lane.key]
        self._many_lanes = max(256, 2 * len(self.lanes))

    def take_effects(self) -> list[Effect]:
        """The work that has come up since the last call."""
        effects, self.effects = self.effects, deque()
        return list(effects)

    def tell(
        self,
        kind: EventKind,
        now: float,
        entry: Entry | None = None,
        *,
        duration: float | None = None,
        reason: CloseReason | FailReason | None = None,
        error: BaseException | None = None,
        detail: str | None = None,
    ) -> None:
        """Queue an event, if anybody listens."""
        if self.heard and kind in self.heard:
            number = entry.id if entry is not None else None
            key = entry.lane.key if entry is not None else None
            event = Event(kind, self.name, now, number, duration, reason, error, detail, key)
            self.effects.append(Effect(Do.TELL, event=event))

    def want_tick(self, lane: Lane, at: float) -> None:
        """Ask for a tick not later than ``at``, in which ``lane`` may dial again."""
        self.timed.add(lane)
        self.due = min(self.due, at)

    def want_sweep(self, at: float) -> None:
        """Ask for a sweep over all connections not later than ``at``."""
        self.sweep_at = min(self.sweep_at, at)
        self.due = min(self.due, at)

    def want(self, at: float) -> None:
        """Ask for a tick not later than ``at``."""
        self.due = min(self.due, at)

    def unfit(self, entry: Entry, now: float) -> CloseReason | None:
        """Why the connection must not be handed out again, if so."""
        if entry.generation != entry.lane.generation:
            return CloseReason.STALE
        if now >= entry.expires:
            return CloseReason.EXPIRED
        timeout = self.config.idle_timeout
        if timeout is not None and now - entry.last_used >= timeout and entry.lane.live > self.size.minimum:
            return CloseReason.IDLE
        return None

    def freshen(self, entry: Entry, now: float) -> None:
        """There was a sign of life just now."""
        entry.good_until = now + self.window

    def take_all_idle(self, lane: Lane) -> list[Entry]:
        """Empty the lane's idle list; the entries are still IDLE and must go somewhere."""
        taken: list[Entry] = []
        spare: list[Entry] = []
        while True:
            try:
                entry = lane.idle.popleft()
            except IndexError:
                break
            if entry.state is IDLE:
                entry.listed = False
                taken.append(entry)
            elif entry.state is IN_USE and entry.generation == lane.generation:
                spare.append(entry)
            else:
                entry.listed = False
        lane.idle.extend(spare)  # multiplexed connections with a stream to spare are in use, not idle
        return taken

    def relist(self, lane: Lane, entries: list[Entry]) -> None:
        """Put back what :meth:`take_all_idle` took, in the same order, before what has come since."""
        for entry in reversed(entries):
            entry.listed = entry.capacity > 1
            if self.features.keyed and entry not in self.idle_order:
                self.idle_order[entry] = None
                self.idle_order.move_to_end(entry, last=False)
            lane.idle.appendleft(entry)

    def serve(self, waiter: Waiter, outcome: Entry | BaseException) -> None:
        """The one place where a queued waiter ends."""
        waiter.outcome = outcome  # first: whoever is in the queue with an outcome is known to be served (mend.py)
        self.effects.append(_tuple(Effect, (_WAKE, None, waiter, None)))
        waiter.lane.queue.discard(waiter)

    def nudge(self, waiter: Waiter) -> None:
        """There is an idle connection: the waiter may take it, if no newcomer does so before it has woken up."""
        if not waiter.nudged:
            waiter.nudged = True
            self.effects.append(Effect(Do.WAKE, None, waiter))

    def fail_waiters(self, lane: Lane, make: Callable[[], PoolError]) -> None:
        """End all waits of a lane with an error of their own."""
        while lane.waiters:
            self.serve(lane.oldest(), make())
        self.touched[lane] = None

    def dial(self, lane: Lane, purpose: Purpose, now: float) -> Entry:
        """Take a permit: the entry of a connection to be."""
        self._numbers += 1
        entry = Entry(lane, self._numbers, purpose, now)
        self.entries[entry.id] = entry
        lane.size += 1
        lane.connecting += 1
        lane.dialer.last_opened_at = now
        self.tell(EventKind.CONNECTION_CREATED, now, entry)
        return entry

    def begin_close(
        self, entry: Entry, reason: CloseReason, now: float, *, abort: bool = False, announced: bool = False
    ) -> None:
        """The connection goes; it keeps its permit until the shell says that it is closed."""
        self.linger(entry, announced=announced)
        self.idle_order.pop(entry, None)
        self.returned.pop(entry, None)
        entry.lane.live -= 1
        self.counts.closes[reason] += 1
        self.tell(EventKind.CONNECTION_CLOSED, now, entry, reason=reason, duration=now - entry.ready_at)
        self.effects.append(Effect(Do.ABORT if abort else Do.CLOSE, entry))

    def linger(self, entry: Entry, *, announced: bool = False) -> None:
        """Of no more use, but it keeps its permit until it is closed. ``announced``: a budget knows that it goes."""
        self._no_longer_connecting(entry)
        entry.move(CLOSING)
        self.closing += 1
        if not announced:
            self.capacity.leave()
        self.use.uncharge(entry)

    def _no_longer_connecting(self, entry: Entry) -> None:
        if entry.pending and entry.generation == entry.lane.generation:
            entry.lane.connecting -= 1
        entry.pending = False
        self.touched[entry.lane] = None

    def forget(self, entry: Entry) -> None:
        lane = entry.lane
        self._no_longer_connecting(entry)
        self.use.uncharge(entry)
        closing = entry.state is CLOSING
        entry.move(CLOSED)
        del self.entries[entry.id]
        if self.known.get(entry.key) == entry.id:
            del self.known[entry.key]
        lane.size -= 1
        self.capacity.give(announced=closing)
        self.counts.uses += entry.uses
        self.counts.busy += entry.busy
        disposable = self.features.keyed and lane.unused and not lane.dialer.remembers
        if disposable and self.lanes.get(lane.key) is lane:
            del self.lanes[lane.key]
