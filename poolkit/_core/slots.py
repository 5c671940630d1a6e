"""The connections of a pool: the record of each, with the table of what may happen to it; the record of each lease; and
the register of all connections, where each begins and ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import TYPE_CHECKING, Any, Union
from weakref import ref

from ..events import CloseReason, EventKind
from ..policies.retire import NEVER
from .effects import Do, Effect
from .state import Counts

if TYPE_CHECKING:
    from ..policies.classes import CallerClass
    from .context import Context
    from .endpoints import Endpoint, IdleSlots

__all__ = (
    "ESTABLISHED",
    "TRANSITIONS",
    "Held",
    "LeaseRecord",
    "Purpose",
    "Slot",
    "Slots",
    "State",
)


class State(Enum):
    """Where a connection is in its life."""

    __hash__ = object.__hash__  # Enum's own is a Python function, and each move looks into TRANSITIONS

    CONNECTING = "connecting"
    IDLE = "idle"
    CHECKING = "checking"
    IN_USE = "in use"
    RESETTING = "resetting"
    CLOSING = "closing"
    CLOSED = "closed"


CONNECTING, IDLE, CHECKING, IN_USE = State.CONNECTING, State.IDLE, State.CHECKING, State.IN_USE
RESETTING, CLOSING, CLOSED = State.RESETTING, State.CLOSING, State.CLOSED

TRANSITIONS: dict[State, frozenset[State]] = {
    CONNECTING: frozenset({IDLE, IN_USE, CLOSING, CLOSED}),
    IDLE: frozenset({IN_USE, CHECKING, CLOSING}),
    CHECKING: frozenset({IN_USE, IDLE, CLOSING}),
    IN_USE: frozenset({IDLE, RESETTING, CLOSING, CLOSED}),
    RESETTING: frozenset({IN_USE, IDLE, CLOSING}),
    CLOSING: frozenset({CLOSED}),
    CLOSED: frozenset(),
}
"""The legal moves. CONNECTING to CLOSED is a connect that failed and left nothing at the server, IN_USE to CLOSED a
detach; all other ends go through CLOSING, in which the connection still holds its permit. The documentation's diagram
is drawn from this."""

ESTABLISHED = frozenset({IDLE, CHECKING, IN_USE, RESETTING})
"""The states of a connection that can be, or can come back to be, of use."""


class Purpose(Enum):
    """Why a connection is opened."""

    DEMAND = "demand"
    FILL = "fill"
    ROTATE = "rotate"


class Slot:
    """One connection: its state, its age and its own ledger (written by whoever holds it)."""

    __slots__ = (
        "__weakref__",
        "busy",
        "capacity",
        "checked_at",
        "connection",
        "dirty",
        "endpoint",
        "evicted_for",
        "expires",
        "fresh_until",
        "generation",
        "holder",
        "id",
        "key",
        "last_used",
        "leases",
        "lost",
        "owner",
        "pending",
        "place",
        "purpose",
        "ready_at",
        "replaced",
        "reported",
        "requested_at",
        "rotating",
        "since",
        "state",
        "uses",
    )

    def __init__(self, endpoint: Endpoint, number: int, purpose: Purpose, now: float) -> None:
        self.endpoint = endpoint
        self.id = number
        self.purpose = purpose
        self.state = CONNECTING
        self.generation = endpoint.generation
        self.connection: Any = None
        self.dirty: bool | BaseException | None = None  # what needs_reset() said at the end of a lease, if it was asked
        self.key = 0  # id(connection), under which it stands in the register while it is on lease without a Lease
        self.requested_at = now
        self.ready_at = now
        self.expires = NEVER  # the end of its life; in the past when its generation is over
        self.fresh_until = 0.0  # until then it may be handed out without a second look
        self.last_used = now
        self.checked_at = now  # the last check that went well
        # of its lease, if there is one alone (see LeaseRecord)
        self.since = now
        self.leases = 0
        self.capacity = 1
        self.owner: CallerClass | None = None  # of those who use it, the class that came first
        self.uses = 0
        self.busy = 0.0
        self.holder: Hashable = 0
        self.place: tuple[str, int] | None = None
        self.reported = False
        self.replaced: Slot | None = None  # the one whose place this connection is to take
        self.rotating = False  # its successor is on the way
        self.pending = True  # its connect is going on (with lazy drivers also when it is in use already)
        self.evicted_for: Endpoint | None = None  # it gives way to a request of another endpoint
        self.lost: deque[Slot] | None = None  # where it reports itself when nobody holds it any more

    @property
    def slot(self) -> Slot:
        """The connection of the lease that is written down here: as of a LeaseRecord."""
        return self

    def retire(self) -> None:
        """It is not to be handed out again. The ways without the lock look at ``expires`` alone, and never write it."""
        self.generation = -1
        self.expires = -NEVER

    def move(self, state: State) -> None:
        """Change state along an edge of the table."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"bug: connection {self.id} cannot go from {self.state.value} to {state.value}")
        self.state = state

    @property
    def seen_at(self) -> float:
        """The last sign of life."""
        return max(self.checked_at, self.last_used)

    @property
    def opening(self) -> bool:
        """Whether its connect is going on: some drivers connect in the first use, when it is in use already."""
        return self.state is State.CONNECTING or (self.pending and self.state is IN_USE)

    def __del__(self) -> None:
        """Report a slot that was let go of before its connection was closed. Runs in any thread, in the middle of
        anything: it takes no lock.
        """
        try:
            if self.state is not CLOSED and self.lost is not None:
                self.lost.append(self)
        except AttributeError:  # interrupted while it was made
            pass

    def __repr__(self) -> str:
        return f"<Slot {self.id} {self.state.value}>"


class LeaseRecord:
    """One of several leases of one connection. Written by the thread or task that begins the lease.

    The only lease of a connection needs no record beside it: a :class:`~.slots.Slot` has the same fields, which
    costs nothing where connections go from hand to hand.
    """

    __slots__ = ("holder", "place", "reported", "since", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.since = 0.0  # by the pool's clock, seconds
        self.holder: Hashable = 0  # identity of the thread or task: no reference, that would keep a dropped lease alive
        self.place: tuple[str, int] | None = None  # file and line, if that is noted
        self.reported = False  # as held longer than leak_after

    @property
    def connection(self) -> Any:
        """The driver's object."""
        return self.slot.connection

    @property
    def capacity(self) -> int:
        """How many leases the connection serves."""
        return self.slot.capacity


Held = Union["Slot", LeaseRecord]
"""What the register of leases holds."""


_held: Callable[[ref[Slot]], Slot | None] = ref.__call__


class Slots:
    """All connections, from the decision to open one until it is closed.

    ``len(all)`` is the number of permits taken: there is no counter that could drift. ``unused`` is called when the
    last connection of an endpoint is gone and nobody waits there.

    REFERENCE-IS-CLAIM: this register holds the slots weakly. Whoever is going to do something with one holds it: a list
    of idle ones, a lease, a request, an effect, a job, the stack of a thread. The step that takes a slot therefore
    claims it at once, and a thread that is interrupted lets go of it. See :meth:`take_lost`.
    """

    __slots__ = (
        "_core",
        "_idle",
        "_lost",
        "_number",
        "_unused",
        "all",
        "closing",
        "counts",
        "known",
        "pinging",
        "unreported",
    )

    def __init__(self, core: Context, idle: IdleSlots, unused: Callable[[Endpoint], object]) -> None:
        self._core = core
        self._idle = idle
        self._unused = unused
        self._number = 0
        self._lost: deque[Slot] = deque()  # finalizers append to it, in any thread and at any time
        self.unreported: set[int] = set()  # numbers of slots that were gone without a report at the last look
        self.all: dict[int, ref[Slot]] = {}  # by number
        self.known: dict[int, int] = {}  # id of a connection to the number of the slot that came last with it
        self.counts = Counts()
        self.closing = 0
        self.pinging = 0  # connections that are checked in the background

    def living(self) -> list[Slot]:
        """The slots, oldest first. Thread-safe, also without the lock. Not those of which nothing is left."""
        return list(filter(None, map(_held, self.all.copy().values())))  # in C: sweeps and the dashboard do it often

    def take_lost(self) -> tuple[list[Slot], int]:
        """Return the slots that nobody holds any more, each reported once, and how many more are gone without a report.

        Of the latter the finalizer was interrupted, or the slot was lost a second time. Their permits are free now: at
        the second look, because the collector clears the reference to a slot some time before its finalizer reports it.
        """
        found = []
        while self._lost:
            slot = self._lost.popleft()
            if slot.id in self.all:
                self.all[slot.id] = ref(slot)  # the collector has cleared the former one, if the slot was in a cycle
                found.append(slot)
        dead = {number for number, one in self.all.copy().items() if one() is None}
        gone = dead & self.unreported
        for number in gone:
            del self.all[number]
        self.unreported = dead - gone
        return found, len(gone)

    def let_go(self) -> None:
        """The pool begins anew with other slots: these may go without a report."""
        for slot in self.living():
            slot.lost = None
        self._lost.clear()

    def coming(self) -> int:
        """Connections that are neither idle nor being closed nor checked in the background."""
        return len(self.all) - len(self._idle) - self.closing - self.pinging

    def over_limit(self) -> bool:
        """Whether more connections exist than may, those being closed apart."""
        return len(self.all) - self.closing > self._core.size.limit

    def twin_of(self, connection: object) -> Slot | None:
        """The slot that has this very connection already, if there is one."""
        known = self.all.get(self.known.get(id(connection), 0))
        twin = known() if known is not None else None
        return twin if twin is not None and twin.connection is connection else None

    def open(self, endpoint: Endpoint, purpose: Purpose, now: float) -> Slot:
        """The slot of a connection to be. The permit for it has been taken."""
        self._number += 1
        slot = Slot(endpoint, self._number, purpose, now)
        slot.lost = self._lost
        self.all[slot.id] = ref(slot)
        endpoint.size += 1
        endpoint.connecting += 1
        endpoint.dialer.last_opened_at = now
        self._core.tell(EventKind.CONNECTION_CREATED, now, slot)
        return slot

    def connected(self, slot: Slot, connection: object) -> None:
        """The slot has its connection."""
        slot.connection = connection
        slot.key = id(connection)
        self.known[slot.key] = slot.id  # no reference: that would be a claim

    def retire_reason(self, slot: Slot, now: float) -> CloseReason | None:
        """Why the connection must not be handed out again, if so."""
        core = self._core
        if slot.generation != slot.endpoint.generation:
            return CloseReason.STALE
        if now >= slot.expires:
            return CloseReason.EXPIRED
        timeout = core.config.idle_timeout
        if timeout is not None and now - slot.last_used >= timeout and slot.endpoint.live > core.size.minimum:
            return CloseReason.IDLE
        return None

    def mark_alive(self, slot: Slot, now: float) -> None:
        """There was a sign of life just now."""
        slot.fresh_until = now + self._core.window

    def start_close(
        self, slot: Slot, reason: CloseReason, now: float, *, abort: bool = False, announced: bool = False
    ) -> None:
        """The connection goes; it keeps its permit until the shell says that it is closed.

        ``announced``: the budget knows that it goes.
        """
        core = self._core
        self.linger(slot, announced=announced)
        self._idle.remove(slot)
        core.returned.pop(slot, None)
        slot.endpoint.live -= 1
        self.counts.closes[reason] += 1
        core.tell(EventKind.CONNECTION_CLOSED, now, slot, reason=reason, duration=now - slot.ready_at)
        core.effects.append(Effect(Do.ABORT if abort else Do.CLOSE, slot))

    def linger(self, slot: Slot, *, announced: bool = False) -> None:
        """Of no more use, but it keeps its permit until it is closed."""
        core = self._core
        self._no_longer_connecting(slot)
        slot.move(CLOSING)
        self.closing += 1
        if not announced:
            core.capacity.leave()
        core.use.uncharge(slot)
        slot.endpoint.spare.pop(slot, None)

    def _no_longer_connecting(self, slot: Slot) -> None:
        if slot.pending and slot.generation == slot.endpoint.generation:
            slot.endpoint.connecting -= 1
        slot.pending = False
        self._core.touched[slot.endpoint] = None

    def remove(self, slot: Slot) -> None:
        """The connection is closed, or has left the pool: its permit is free."""
        core, endpoint = self._core, slot.endpoint
        self._no_longer_connecting(slot)
        core.use.uncharge(slot)
        endpoint.spare.pop(slot, None)
        closing = slot.state is CLOSING
        slot.move(CLOSED)
        del self.all[slot.id]
        if self.known.get(slot.key) == slot.id:
            del self.known[slot.key]
        endpoint.size -= 1
        core.capacity.give(announced=closing)
        self.counts.uses += slot.uses
        self.counts.busy += slot.busy
        if endpoint.unused:
            self._unused(endpoint)
        for parker in core.watchers.copy():  # callers enter and leave without the lock
            parker.wake()  # never blocks

    def closed(self, slot: Slot) -> None:
        """The shell has closed the connection."""
        self.closing -= 1
        if slot.evicted_for is not None:
            slot.evicted_for.evictions -= 1
            self._core.touched[slot.evicted_for] = None
        self.remove(slot)
