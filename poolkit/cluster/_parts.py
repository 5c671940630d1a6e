"""The records of a cluster: a node's entry, a request for a lease, an effect. Sans-IO, like all of the core."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Set
from enum import Enum
from itertools import count
from typing import Any, NamedTuple

from .._core.queue import Parker
from ..policies.retire import NEVER
from ._events import ClusterEvent, NodeState
from ._node import Node

__all__ = ("RECHECK_INTERVAL", "Do", "Effect", "Made", "NodeEntry", "NodeRequest", "failure_streaks", "has_role")

RECHECK_INTERVAL = 1.0
"""Seconds between two checks of the queue while requests wait: a pool may have been enlarged without notice."""


def _no() -> bool:
    return False


class Made(NamedTuple):
    """The pool of a node, and functions that give its present state."""

    pool: Any
    capacity: Callable[[], float]
    min_capacity: int = 0
    """Guaranteed capacity: below it, ``capacity`` need not be called."""
    suspended: Callable[[], bool] = _no
    """Whether the pool serves no callers for now."""
    refuses: Callable[[], bool] = _no
    """Whether callers are not to wait until that is over."""


failure_streaks = count(1)
"""Numbers the failure streaks of all nodes, so that no two have the same number."""


class Do(Enum):
    """The kinds of actions for the shell."""

    WAKE = "wake"
    DROP = "drop"  # the node was ejected: close its idle connections, send its waiters to other nodes
    PROBE = "probe"  # open connections and look up the role; then call probed()
    ROLE = "role"  # look up the role; then call role_found()
    DRAIN = "drain"  # the node was removed: drain its pool
    EMIT = "emit"  # pass an event to the listeners


class Effect(NamedTuple):
    """One action for the shell."""

    do: Do
    entry: NodeEntry | None = None
    request: NodeRequest | None = None
    event: ClusterEvent | None = None


class NodeEntry:
    """A node of this cluster with its pool and its state. Balancers see it as a Candidate."""

    __slots__ = ("asking", "book", "busy", "capacity", "checked_at", "ejections", "failure_streak", "failures",
                 "known_role", "last_error", "leases", "load", "min_capacity", "moved_at", "name", "node", "paused",
                 "pool", "pool_capacity", "refuses", "served", "since", "slow", "state", "suspended", "tickets", "tier",
                 "until", "weight")  # fmt: skip

    def __init__(self, node: Node, made: Made, since: float, state: NodeState) -> None:
        self.node = node
        self.name = node.name
        self.weight = node.weight
        self.pool = made.pool
        self.capacity = self.pool_capacity = made.capacity
        self.suspended, self.refuses = made.suspended, made.refuses
        self.tier = node.priority  # lower tiers are tried first
        self.moved_at = since
        self.busy = 0.0  # seconds of leases that ended since the tiers were last evaluated
        self.load: float | None = None  # average number of leases; None without tiers
        self.min_capacity = made.min_capacity  # guaranteed capacity: below it, capacity() need not be called
        self.tickets: set[int] = set()  # the requests and leases on this node; `leases` is derived from it
        self.leases = 0  # len(tickets)
        self.served = 0
        self.book: dict[str, float] = {}
        self.state = state
        self.since = since  # when it became usable
        self.slow = False  # in slow start
        self.paused = False  # its probe starts when its pool is resumed
        self.until = 0.0  # when the ejection ends
        self.failures = 0  # in a row
        self.ejections = 0  # in a row
        self.last_error: BaseException | None = None
        self.failure_streak = next(failure_streaks)  # the number of the current series of failures
        self.known_role = node.role
        self.asking = False  # a lookup of its role is running
        self.checked_at = -NEVER

    @property
    def free(self) -> bool:
        """Whether the node has capacity for one more lease."""
        return not self.suspended() and self.leases < self.capacity()

    def assign(self, ticket: int) -> None:
        """Reserve capacity for the ticket."""
        self.tickets.add(ticket)
        self.leases = len(self.tickets)

    def unassign(self, ticket: int) -> bool:
        """Free the capacity that the ticket holds; False if it holds none."""
        tickets = self.tickets
        if ticket not in tickets:
            return False
        tickets.discard(ticket)
        self.leases = len(tickets)
        return True

    def __repr__(self) -> str:
        return f"<NodeEntry {self.name} {self.state.value} {self.leases}>"


NO_ENTRIES: frozenset[NodeEntry] = frozenset()


class NodeRequest:
    """A caller's request for a lease. Its outcome is a NodeEntry (whose capacity is then reserved) or an error."""

    __slots__ = ("key", "outcome", "parker", "queued", "role", "since", "ticket", "tried")

    def __init__(self, role: str | None, key: Hashable, since: float) -> None:
        self.role = role
        self.key = key
        self.since = since
        self.ticket = 0  # number in order of arrival; identifies the capacity it holds on a node
        self.tried: Set[NodeEntry] = NO_ENTRIES  # nodes on which no lease could be opened
        self.outcome: NodeEntry | BaseException | None = None
        self.queued = False
        self.parker: Parker | None = None

    def accepts(self, entry: NodeEntry) -> bool:
        """Return whether the node may serve the request once it is usable."""
        return entry not in self.tried and has_role(entry, self.role)


def has_role(entry: NodeEntry, role: str | None) -> bool:
    """Return whether the node has the wanted role; "prefer-X" and None accept any."""
    return role is None or entry.known_role == role or role.startswith("prefer-")
