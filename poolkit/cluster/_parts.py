"""The records of a cluster: a member, a caller, a piece of work. Sans-IO, as all of the core."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Set
from enum import Enum
from itertools import count
from typing import Any, NamedTuple

from .._core.waiter import Parker
from ..policies.retire import NEVER
from ._events import ClusterEvent, NodeState
from ._node import Node

__all__ = ("Caller", "Do", "Effect", "Member", "has_role", "spells")

spells = count(1)
"""No two spells of failures of any node have one number."""


class Do(Enum):
    """The kinds of work for the shell."""

    WAKE = "wake"
    DROP = "drop"  # the node was ejected: close its idle connections, send its waiters away
    PROBE = "probe"  # open connections, find out the role; then probed()
    ROLE = "role"  # find out the role; then role_found()
    DRAIN = "drain"  # the node was removed
    TELL = "tell"


class Effect(NamedTuple):
    """One piece of work."""

    do: Do
    member: Member | None = None
    caller: Caller | None = None
    event: ClusterEvent | None = None


class Member:
    """A node in this cluster: its pool, and what is known of it. Is what the balancer sees as a Candidate."""

    __slots__ = ("asking", "book", "busy", "checked_at", "ejections", "failures", "known_role", "last_error",
                 "leases", "least", "load", "moved_at", "name", "node", "places", "pool", "pool_places",
                 "seats", "served", "since", "slow", "spell", "state", "tier", "until", "weight")  # fmt: skip

    def __init__(
        self, node: Node, pool: Any, places: Callable[[], float], since: float, state: NodeState, least: int = 0
    ) -> None:
        self.node = node
        self.name = node.name
        self.weight = node.weight
        self.pool = pool
        self.places = self.pool_places = places
        self.tier = node.priority  # the lower ones are tried first
        self.moved_at = since
        self.busy = 0.0  # seconds of leases that have ended since the last look at the tiers
        self.load: float | None = None  # leases on average, where there are tiers
        self.least = least  # so many places there are whatever places() says: it need not be asked
        self.seats: set[int] = set()  # the tickets of those who have a place: the ground truth
        self.leases = 0  # how many they are
        self.served = 0
        self.book: dict[str, float] = {}
        self.state = state
        self.since = since  # usable since
        self.slow = False  # begins slowly
        self.until = 0.0  # ejected until
        self.failures = 0  # in a row
        self.ejections = 0  # in a row
        self.last_error: BaseException | None = None
        self.spell = next(spells)  # of failures in a row
        self.known_role = node.role
        self.asking = False  # its role is being found out
        self.checked_at = -NEVER

    @property
    def free(self) -> bool:
        """Whether one more lease fits."""
        return self.leases < self.places()

    def seat(self, ticket: int) -> None:
        """Somebody has a place from here on."""
        self.seats.add(ticket)
        self.leases = len(self.seats)

    def unseat(self, ticket: int) -> bool:
        """His place is free again; False if he had none."""
        seats = self.seats
        if ticket not in seats:
            return False
        seats.discard(ticket)
        self.leases = len(seats)
        return True

    def __repr__(self) -> str:
        return f"<Member {self.name} {self.state.value} {self.leases}>"


NOWHERE: frozenset[Member] = frozenset()


class Caller:
    """Somebody who wants a place on a node: one outcome, a member (with the place taken) or an error."""

    __slots__ = ("key", "outcome", "parker", "queued", "role", "since", "ticket", "tried")

    def __init__(self, role: str | None, key: Hashable, since: float) -> None:
        self.role = role
        self.key = key
        self.since = since
        self.ticket = 0  # his number, in order of arrival; what he has a place under
        self.tried: Set[Member] = NOWHERE  # where he could not connect
        self.outcome: Member | BaseException | None = None
        self.queued = False
        self.parker: Parker | None = None

    def accepts(self, member: Member) -> bool:
        """Whether he may be served there (if it is usable)."""
        return member not in self.tried and has_role(member, self.role)


def has_role(member: Member, role: str | None) -> bool:
    """Whether the member fits a wanted role; "prefer-X" and None take any."""
    return role is None or member.known_role == role or role.startswith("prefer-")
