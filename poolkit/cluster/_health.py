"""Who is ejected, who comes back, who has what role, which nodes there are. The lower half of the core."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import remembered
from ..policies.retire import NEVER
from ._config import ClusterConfig
from ._events import ClusterEvent, ClusterEventKind, NodeState
from ._node import Node
from ._parts import Caller, Do, Effect, Member, has_role, spells
from ._tiers import Tiers

__all__ = ("VIGIL", "Health")

USABLE, PROBING, EJECTED, DRAINING = NodeState.USABLE, NodeState.PROBING, NodeState.EJECTED, NodeState.DRAINING

Made = tuple[Any, Callable[[], float], int]
"""A pool, how many places it has now, and how many it always has."""

_BLAMED = "_poolkit_spell"
"""The attribute of an error that a node has been blamed for."""

SEARCH = (0.02, 0.1)
"""Seconds between two questions for a role that nobody has while a caller waits for it: the first pause, which doubles
each time, and the longest. A primary is elected at a moment that nobody tells us, and its callers wait for that."""

VIGIL = 1.0
"""Seconds between two looks at the queue while somebody waits: a pool may have been enlarged without our knowledge."""


class Health:
    """The nodes and what is known of them."""

    def __init__(self, name: str, config: ClusterConfig, random: Callable[[], float], *, asks_roles: bool) -> None:
        self.name = name
        self.config = config
        self.random = random
        self.asks_roles = asks_roles
        self.balancer = config.balancer()
        self.members: dict[str, Member] = {}
        self.leaving: list[Member] = []  # removed, with leases
        self.queues: dict[str | None, OrderedDict[Caller, None]] = {}
        self.effects: deque[Effect] = deque()
        self.closed = False
        self.tiers = False  # whether there are several groups that are tried in order
        self.tiering: Tiers | None = None  # of nodes that move
        self.grouped = bool(config.zone)  # whether nodes differ in tier or zone
        self.failing = False  # whether a node may have failed too often without being ejected
        self.starting = False  # whether a node may still begin slowly
        self.due = NEVER
        self.search_pause = 0.0  # until the next question for a role that nobody has; 0: none was asked yet
        self.search_at = -NEVER  # when that may be asked
        self.timeouts = 0
        self._tickets = 0

    def settle(self, now: float) -> None:
        """Something has changed about the nodes (see ClusterCore.settle)."""
        raise NotImplementedError

    # -- ejection ---------------------------------------------------------------------------------------------------

    def _blame(self, member: Member, error: BaseException, now: float) -> None:
        cause = error.__cause__ or error
        member.last_error = remembered(cause)
        if member.state is not USABLE or cause.__dict__.get(_BLAMED) == member.spell:
            return  # several callers heard of one failure
        member.failures += 1  # first: one that is cut short had better count twice than never
        cause.__dict__[_BLAMED] = member.spell  # not kept to be compared: it would keep its caller's frames alive
        self._weigh(member, error, now)

    def _weigh(self, member: Member, error: BaseException | None, now: float) -> None:
        """Eject it if it has failed too often, unless too many are out already."""
        limit = self.config.eject_after
        if limit is not None and member.failures >= limit and member.state is USABLE:
            ejected = sum(one.state in (EJECTED, PROBING) for one in self.members.values())
            if ejected + 1 <= self.config.max_ejected_share * len(self.members):
                self._eject(member, error, now)
            else:
                self.failing = True

    def _eject(self, member: Member, error: BaseException | None, now: float) -> None:
        if member.state is USABLE:
            self.effects.append(Effect(Do.DROP, member))
        member.state = EJECTED
        member.ejections += 1
        stay = min(self.config.eject_max, self.config.eject_for * member.ejections)
        member.until = now + stay
        self._want(member.until)
        self.tell(ClusterEventKind.NODE_EJECTED, now, member, error, f"for {stay:g} s")
        if self.asks_roles and member.known_role == "primary":
            self._ask_roles(now)
        self.settle(now)

    # -- probes, roles, time ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """What is due by now."""
        self.due = NEVER
        for member in self.members.values():
            if member.state is EJECTED:
                if now >= member.until:
                    self.probe(member)
                else:
                    self._want(member.until)
        if self.asks_roles and self.members:
            self._search(now)
            self._ask_roles(now, older_than=self.config.role_interval)
        if self.tiering is not None:
            if now >= self.tiering.due:
                self._look_at_tiers(now)
            self._want(self.tiering.due)
        if self.queues:
            self.settle(now)
        if self.queues:
            self._want(now + VIGIL)

    def _look_at_tiers(self, now: float) -> None:
        assert self.tiering is not None
        moved = self.tiering.look(self.members.values(), now)
        for member, before in moved:
            self.tell(ClusterEventKind.NODE_MOVED, now, member, detail=f"{before} to {self.tiering.name_of(member)}")
        if moved:
            self.settle(now)  # who has moved up may have more places

    def probe(self, member: Member) -> None:
        """Try whether the node can serve."""
        self.effects.append(Effect(Do.PROBE, member))  # first: nobody ends the state of one whom nobody probes
        member.state = PROBING
        member.asking = self.asks_roles

    def probed(self, member: Member, error: BaseException | None, role: str | None, now: float) -> None:
        """A probe has ended, well if ``error`` is None."""
        member.asking = False
        if member.state is not PROBING:
            return  # removed meanwhile
        if error is not None:
            member.last_error = remembered(error)
            self.tell(ClusterEventKind.PROBE_FAILED, now, member, error)
            self._eject(member, error, now)
            return
        self.starting = self.starting or self.config.slow_start > 0
        member.state, member.since, member.slow = USABLE, now, self.config.slow_start > 0
        member.failures, member.spell = 0, next(spells)
        self.tell(ClusterEventKind.NODE_USABLE, now, member)
        if self.asks_roles:
            member.checked_at = now
            self._role(member, role, now)
            self._want(now + self.config.role_interval)
        self.settle(now)

    def _ask_roles(self, now: float, *, older_than: float = 0.0, unknown_only: bool = False) -> None:
        for member in self.members.values():
            if member.state is not USABLE or member.asking:
                continue
            if unknown_only and member.known_role is not None:
                continue
            if now - member.checked_at < (older_than or (VIGIL / 10 if unknown_only else 0.0)):
                self._want(member.checked_at + self.config.role_interval)
                continue
            member.asking = True
            member.checked_at = now
            self.effects.append(Effect(Do.ROLE, member))

    def _search(self, now: float, role: str | None = None) -> None:
        """Ask all nodes soon and often while callers wait for a role that nobody has (or one comes, for ``role``)."""
        wanted = {*self.queues, role}
        usable = [member for member in self.members.values() if member.state is USABLE]
        if all(any(has_role(member, each) for member in usable) for each in wanted):
            return
        if not self.config.wait_for_node and (role is None or any(member.asking for member in usable)):
            return  # callers fail once all nodes have answered: to ask those again who have would keep them waiting
        if now >= self.search_at:
            self._ask_roles(now)
            first, longest = SEARCH
            self.search_pause = min(max(first, 2 * self.search_pause), longest)
            # not all processes at once
            self.search_at = now + self.search_pause * (1 + self.random()) / 2
        self._want(self.search_at)

    def role_found(self, member: Member, error: BaseException | None, role: str | None, now: float) -> None:
        """The node's role was asked for."""
        member.asking = False
        member.checked_at = now
        self._want(now + self.config.role_interval)
        if error is not None:
            self._blame(member, error, now)
        elif member.state is USABLE:
            self._role(member, role, now)
        self.settle(now)
        self._search(now)

    def _role(self, member: Member, role: str | None, now: float) -> None:
        if role != member.known_role:
            before, member.known_role = member.known_role, role
            self.search_pause, self.search_at = 0.0, -NEVER  # roles are moving: begin anew with short pauses
            self.tell(
                ClusterEventKind.ROLE_CHANGED, now, member, detail=f"{before or 'unknown'} to {role or 'unknown'}"
            )

    def _want(self, at: float) -> None:
        self.due = min(self.due, at)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def update(self, nodes: Iterable[Node], made: Mapping[str, Made], now: float) -> None:
        """The nodes from now on. Those that stay keep their connections; ``made`` holds what stands behind each one
        that is new or has another endpoint now.
        """
        wanted = {node.name: node for node in nodes}
        first = not self.members
        members: dict[str, Member] = {}
        new: list[Member] = []
        for name, node in wanted.items():
            old = self.members.get(name)
            if name not in made and old is not None:
                members[name] = old
                if old.node != node:
                    if old.node.role != node.role:
                        old.known_role = node.role
                    old.node, old.weight = node, node.weight
                    if not self.config.tiers:
                        old.tier = node.priority
                    self.tell(ClusterEventKind.NODE_CHANGED, now, old, detail=f"weight {node.weight:g}")
                continue
            pool, places, least = made[name]
            member = members[name] = Member(node, pool, places, now, USABLE, least)
            new.append(member)
            self.tell(ClusterEventKind.NODE_ADDED, now, member)
            if not first:
                self.probe(member)
        gone = [old for name, old in self.members.items() if members.get(name) is not old]
        self.members = members
        self.tiers = len({node.priority for node in wanted.values()}) > 1
        if self.config.tiers:
            self.tiers = True
            self.tiering = self.tiering or Tiers(self.config, now)
            self.tiering.place(members.values(), new, now)
            self._want(self.tiering.due)
        self.grouped = self.tiers or bool(self.config.zone)
        for old in gone:
            old.state = DRAINING
            self.leaving.append(old)
            self.tell(ClusterEventKind.NODE_REMOVED, now, old)
            self.effects.append(Effect(Do.DRAIN, old))
        self.settle(now)

    def drained(self, member: Member) -> None:
        """A removed node has ended."""
        if member in self.leaving:
            self.leaving.remove(member)

    def tell(
        self,
        kind: ClusterEventKind,
        now: float,
        member: Member | None = None,
        error: BaseException | None = None,
        detail: str = "",
    ) -> None:
        """Queue an event."""
        event = ClusterEvent(kind, self.name, now, member.name if member else "", error, detail)
        self.effects.append(Effect(Do.TELL, event=event))
