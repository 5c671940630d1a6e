"""The pool's record of one connection, and the table of what may happen to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..policies.retire import NEVER

if TYPE_CHECKING:
    from ..policies.classes import CallerClass
    from .endpoint import Endpoint

__all__ = ("ESTABLISHED", "TRANSITIONS", "Slot", "Purpose", "State")


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
