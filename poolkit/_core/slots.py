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
    "Slot",
    "SlotRef",
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


class Slot:
    """One connection: its state, its age, and its uses and busy seconds, which its holder writes."""

    __slots__ = (  # noqa: RUF023  grouped by who writes them
        "__weakref__",
        # constant
        "endpoint", "for_caller", "id", "requested_at",
        # written under the lock
        "capacity", "checked_at", "connection", "evicted_for", "expires", "generation", "key", "owner", "pending",
        "ready_at", "replaced", "rotating",
        # written by the thread that has taken it from the idle ones or leases it (ONE-OWNER), otherwise under the lock
        "busy", "dirty", "fresh_until", "last_used", "leases", "state", "uses",
        # of its lease, if it has only one (see LeaseRecord)
        "holder", "place", "reported", "since",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, number: int, now: float, *, for_caller: bool = False) -> None:
        self.endpoint = endpoint
        self.id = number
        self.requested_at = now
        self.for_caller = for_caller  # opened because a caller waits

        self.generation = endpoint.generation
        self.connection: Any = None
        self.key = 0  # id(connection): its key in the register of leases while it is leased without a Lease object
        self.capacity = 1
        self.pending = True  # its connect is in progress (with lazy drivers also while it is in use)
        self.ready_at = now
        self.checked_at = now  # the last check that passed
        self.expires = NEVER  # when its lifetime ends; in the past if its generation is retired
        self.owner: CallerClass | None = None  # the class that it is charged to: that of its first lease
        self.replaced: Slot | None = None  # the connection that this one is to replace
        self.rotating = False  # its successor is being opened
        self.evicted_for: Endpoint | None = None  # it is closed for a request of this other endpoint

        self.state = CONNECTING
        self.leases = 0
        self.uses = 0
        self.busy = 0.0
        self.last_used = now
        self.fresh_until = 0.0  # until then it may be leased without a check
        self.dirty: bool | BaseException | None = None  # what needs_reset() said at the end of a lease

        self.since = now
        self.holder: Hashable = 0
        self.place: tuple[str, int] | None = None
        self.reported = False

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


class SlotRef(ref[Slot]):
    """An entry of the register: a weak reference to a slot, and what ends the slot's connection without it.

    When the last reference to the slot is gone, the interpreter calls a method of a deque with this object. That is one
    call in C. A finalizer in Python could be interrupted. The interpreter swallows the exception. Test runners and
    error trackers keep its traceback, and so the slot: its permit would never be free again.
    """

    __slots__ = ("closing", "connection", "endpoint", "number", "opened_at")

    def __init__(self, slot: Slot, gone: Callable[[SlotRef], object]) -> None:
        super().__init__(slot, gone)  # type: ignore[call-arg]
        self.number = slot.id
        self.endpoint = slot.endpoint
        self.opened_at = slot.ready_at
        self.connection = slot.connection
        self.closing = slot.state is CLOSING

    def new_slot(self) -> Slot:
        """Return a new slot for the connection of one that is gone."""
        slot = Slot(self.endpoint, self.number, self.opened_at)
        slot.retire()
        if self.connection is not None:
            slot.connection = self.connection
            slot.key = id(self.connection)
            slot.state = CLOSING if self.closing else IN_USE
            slot.pending = False
        return slot


_held: Callable[[ref[Slot]], Slot | None] = ref.__call__


class Slots:
    """The register of all connections, each from the decision to open it until it is closed.

    ``len(all)`` is the number of permits taken; a separate counter could drift. ``unused`` is called when the last
    connection of an endpoint is gone and no request waits there.

    REFERENCE-IS-CLAIM: this register refers to the slots weakly. Code that is going to act on a slot has a strong
    reference to it: in an idle list, a lease, a request, an effect, a job or on the stack of a thread. So a step that
    takes a slot claims it at once, and an interrupted thread drops its claim. See :class:`SlotRef`.
    """

    __slots__ = (
        "_core",
        "_idle",
        "_lost",
        "_number",
        "_unused",
        "all",
        "closing",
        "collect_at",
        "collections",
        "counts",
        "known",
        "pinging",
        "strays",
    )

    def __init__(self, core: Context, idle: IdleSlots, unused: Callable[[Endpoint], object]) -> None:
        self._core = core
        self._idle = idle
        self._unused = unused
        self._number = 0
        self._lost: deque[SlotRef] = deque()  # of slots that are gone: the interpreter appends, in any thread
        self.all: dict[int, SlotRef] = {}  # by number
        self.known: dict[int, int] = {}  # id of a connection to the number of the last slot that got it
        self.counts = Counts()
        self.closing = 0
        self.pinging = 0  # connections that are checked in the background
        self.strays: dict[int, tuple[int, float]] = {}  # see repair.search(): by number, uses and since when
        self.collect_at = -NEVER  # no collection before this
        self.collections = 0  # that were close to each other

    def living(self) -> list[Slot]:
        """Return the slots that still exist, oldest first. Thread-safe, also without the lock."""
        return list(filter(None, map(_held, self.all.copy().values())))  # runs in C: sweeps call it often

    def take_lost(self) -> list[Slot]:
        """Return slots for the connections whose slots no code refers to any more."""
        found = []
        while self._lost:
            lost = self._lost[0]
            if self.all.get(lost.number) is lost:
                found.append(self._register(lost.new_slot()))
            self._lost.popleft()  # last: if this is interrupted, the next sweep sees this reference, or the new one
        return found

    def _register(self, slot: Slot) -> Slot:
        self.all[slot.id] = SlotRef(slot, self._lost.append)
        return slot

    def coming(self) -> int:
        """Return the number of connections that are neither idle, closing nor checked in the background."""
        return len(self.all) - len(self._idle) - self.closing - self.pinging

    def over_limit(self) -> bool:
        """Whether more connections exist than the limit allows, not counting those that are closing."""
        return len(self.all) - self.closing > self._core.size.limit

    def has(self, slot: Slot) -> bool:
        """Return whether the slot is registered here. That of a former core is not, even if its number is."""
        registered = self.all.get(slot.id)
        return registered is not None and registered() is slot

    def twin_of(self, connection: object) -> Slot | None:
        """Return the slot that already has this connection object, or None."""
        known = self.all.get(self.known.get(id(connection), 0))
        twin = known() if known is not None else None
        return twin if twin is not None and twin.connection is connection else None

    def open(self, endpoint: Endpoint, now: float, *, for_caller: bool = False) -> Slot:
        """Create the slot of a connection to be opened, ``for_caller`` because one waits. Its permit has been taken."""
        self._number += 1
        slot = self._register(Slot(endpoint, self._number, now, for_caller=for_caller))
        endpoint.size += 1
        endpoint.connecting += 1
        endpoint.dialer.last_opened_at = now
        self._core.tell(EventKind.CONNECTION_CREATED, now, slot)
        return slot

    def connected(self, slot: Slot, connection: object, now: float) -> None:
        """Store the connection of a slot, which is open since ``now``."""
        registered = self.all[slot.id]
        registered.connection = slot.connection = connection
        registered.opened_at = slot.ready_at = now
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
        self.all[slot.id].closing = True
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
        """The shell has closed the connection: its permit is free."""
        self.closing -= 1
        if slot.evicted_for is not None:
            slot.evicted_for.evictions -= 1
            self._core.touched[slot.evicted_for] = None
        self.remove(slot)
