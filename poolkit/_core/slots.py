"""The connections of a pool: the record of each with its state machine, the record of each lease, and the register of
all connections.
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

    __hash__ = object.__hash__  # faster than Enum.__hash__, a Python function; move() looks up TRANSITIONS

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
"""The legal transitions. CONNECTING to CLOSED is a failed connect that left nothing at the server; IN_USE to CLOSED is
a detach. All other ends go through CLOSING, in which the connection still holds its permit. The documentation's diagram
is generated from this table."""

ESTABLISHED = frozenset({IDLE, CHECKING, IN_USE, RESETTING})
"""The states of a connection that can be used, now or after it is returned."""


class Purpose(Enum):
    """Why a connection is opened."""

    DEMAND = "demand"
    FILL = "fill"
    ROTATE = "rotate"


class Slot:
    """One connection: its state, its age, and its uses and busy seconds, which its holder writes."""

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
        self.dirty: bool | BaseException | None = None  # what needs_reset() said at the end of a lease
        self.key = 0  # id(connection): its key in the register of leases while it is leased without a Lease object
        self.requested_at = now
        self.ready_at = now
        self.expires = NEVER  # when its lifetime ends; in the past if its generation is retired
        self.fresh_until = 0.0  # until then it may be leased without a check
        self.last_used = now
        self.checked_at = now  # the last check that passed
        # of its lease, if it has only one (see LeaseRecord)
        self.since = now
        self.leases = 0
        self.capacity = 1
        self.owner: CallerClass | None = None  # the class that it is charged to: that of its first lease
        self.uses = 0
        self.busy = 0.0
        self.holder: Hashable = 0
        self.place: tuple[str, int] | None = None
        self.reported = False
        self.replaced: Slot | None = None  # the connection that this one is to replace
        self.rotating = False  # its successor is being opened
        self.pending = True  # its connect is in progress (with lazy drivers also while it is in use)
        self.evicted_for: Endpoint | None = None  # it is closed for a request of this other endpoint
        self.lost: deque[Slot] | None = None  # it reports itself here when no code refers to it

    @property
    def slot(self) -> Slot:
        """The slot itself: for a connection with one lease, it serves as the LeaseRecord."""
        return self

    def retire(self) -> None:
        """Have the connection closed when it is returned. The paths without the lock read ``expires`` alone, and never
        write it.
        """
        self.generation = -1
        self.expires = -NEVER

    def move(self, state: State) -> None:
        """Change state along an edge of the table."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"bug: connection {self.id} cannot go from {self.state.value} to {state.value}")
        self.state = state

    @property
    def seen_at(self) -> float:
        """The time of the last use or check that succeeded."""
        return max(self.checked_at, self.last_used)

    @property
    def opening(self) -> bool:
        """Whether its connect is in progress. Some drivers connect at the first use, with the slot in use already."""
        return self.state is State.CONNECTING or (self.pending and self.state is IN_USE)

    def __del__(self) -> None:
        """Report a slot whose last reference is gone before its connection was closed.

        It takes no lock: a finalizer may run in any thread, between any two bytecodes.
        """
        try:
            if self.state is not CLOSED and self.lost is not None:
                self.lost.append(self)
        except AttributeError:  # __init__ was interrupted
            pass

    def __repr__(self) -> str:
        return f"<Slot {self.id} {self.state.value}>"


class LeaseRecord:
    """One of several leases of one connection. The thread or task that begins the lease writes it.

    The only lease of a connection needs no such object: a :class:`~.slots.Slot` has the same fields. That saves an
    allocation for each lease.
    """

    __slots__ = ("holder", "place", "reported", "since", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.since = 0.0  # by the pool's clock, seconds
        self.holder: Hashable = 0  # identity of the thread or task; a reference would keep a dropped lease alive
        self.place: tuple[str, int] | None = None  # file and line of the caller, if recorded
        self.reported = False  # reported as held longer than leak_after

    @property
    def connection(self) -> Any:
        """The driver's object."""
        return self.slot.connection

    @property
    def capacity(self) -> int:
        """How many leases the connection serves at once."""
        return self.slot.capacity


Held = Union["Slot", LeaseRecord]
"""The record of a lease, as the register of leases holds it."""


_held: Callable[[ref[Slot]], Slot | None] = ref.__call__


class Slots:
    """The register of all connections, each from the decision to open it until it is closed.

    ``len(all)`` is the number of permits taken; a separate counter could drift. ``unused`` is called when the last
    connection of an endpoint is gone and no request waits there.

    REFERENCE-IS-CLAIM: this register refers to the slots weakly. Code that is going to act on a slot has a strong
    reference to it: in an idle list, a lease, a request, an effect, a job or on the stack of a thread. So a step that
    takes a slot claims it at once, and an interrupted thread drops its claim. See :meth:`take_lost`.
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
        self.unreported: set[int] = set()  # numbers of slots that were gone without a report in the last sweep
        self.all: dict[int, ref[Slot]] = {}  # by number
        self.known: dict[int, int] = {}  # id of a connection to the number of the last slot that got it
        self.counts = Counts()
        self.closing = 0
        self.pinging = 0  # connections that are checked in the background

    def living(self) -> list[Slot]:
        """Return the slots that still exist, oldest first. Thread-safe, also without the lock."""
        return list(filter(None, map(_held, self.all.copy().values())))  # runs in C: sweeps call it often

    def take_lost(self) -> tuple[list[Slot], int]:
        """Return the slots that no code refers to, and how many others are gone without a report.

        A slot is gone without a report if its finalizer was interrupted, or if it was lost a second time. Its permit is
        freed in the second sweep that misses it: the garbage collector clears the reference to a slot some time before
        the finalizer reports it.
        """
        found = []
        while self._lost:
            slot = self._lost.popleft()
            if slot.id in self.all:
                self.all[slot.id] = ref(slot)  # for a slot in a cycle, the collector has cleared the former reference
                found.append(slot)
        dead = {number for number, one in self.all.copy().items() if one() is None}
        gone = dead & self.unreported
        for number in gone:
            del self.all[number]
        self.unreported = dead - gone
        return found, len(gone)

    def let_go(self) -> None:
        """Stop these slots from reporting themselves: the pool restarts with other ones."""
        for slot in self.living():
            slot.lost = None
        self._lost.clear()

    def coming(self) -> int:
        """Return the number of connections that are neither idle, closing nor checked in the background."""
        return len(self.all) - len(self._idle) - self.closing - self.pinging

    def over_limit(self) -> bool:
        """Whether more connections exist than the limit allows, not counting those that are closing."""
        return len(self.all) - self.closing > self._core.size.limit

    def twin_of(self, connection: object) -> Slot | None:
        """Return the slot that already has this connection object, or None."""
        known = self.all.get(self.known.get(id(connection), 0))
        twin = known() if known is not None else None
        return twin if twin is not None and twin.connection is connection else None

    def open(self, endpoint: Endpoint, purpose: Purpose, now: float) -> Slot:
        """Create the slot of a connection to be opened. Its permit has been taken."""
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
        """Store the connection of a slot."""
        slot.connection = connection
        slot.key = id(connection)
        self.known[slot.key] = slot.id  # the number: a reference would be a claim

    def retire_reason(self, slot: Slot, now: float) -> CloseReason | None:
        """Return why the connection must not be leased again, or None."""
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
        """Record that the connection was alive just now, so that it needs no check for a while."""
        slot.fresh_until = now + self._core.window

    def start_close(
        self, slot: Slot, reason: CloseReason, now: float, *, abort: bool = False, announced: bool = False
    ) -> None:
        """Start to close the connection. It keeps its permit until the shell reports that it is closed.

        ``announced``: the budget already counts it as leaving.
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
        """Take the connection out of use. It keeps its permit until it is closed."""
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
        """Remove a connection that is closed or detached, and free its permit."""
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
        for parker in core.watchers.copy():  # callers add and remove themselves without the lock
            parker.wake()  # never blocks

    def closed(self, slot: Slot) -> None:
        """The shell has closed the connection."""
        self.closing -= 1
        if slot.evicted_for is not None:
            slot.evicted_for.evictions -= 1
            self._core.touched[slot.evicted_for] = None
        self.remove(slot)
