"""The state of the nodes: ejection, probes, roles and membership. The lower half of the cluster's core."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import remembered
from ..policies.retire import NEVER
from ._config import ClusterConfig
from ._events import ClusterEvent, ClusterEventKind, NodeState
from ._node import Node
from ._parts import Do, Effect, NodeEntry, failure_streaks, has_role
from ._queue import RequestQueue
from ._tiers import Tiers

__all__ = ("RECHECK_INTERVAL", "Health")

USABLE, PROBING, EJECTED, DRAINING = NodeState.USABLE, NodeState.PROBING, NodeState.EJECTED, NodeState.DRAINING

Made = tuple[Any, Callable[[], float], int]
"""A pool, a function that gives its current capacity, and the capacity that it always has."""

_COUNTED = "_poolkit_failure_streak"
"""The attribute of an error that was already counted as a failure of a node: the number of the streak."""

SEARCH = (0.02, 0.1)
"""Seconds between two lookups of a role that no node has while a request waits for it: the first pause, which doubles
each time, and the longest. A cluster is not notified when a primary is elected, and callers wait for it."""

RECHECK_INTERVAL = 1.0
"""Seconds between two checks of the queue while requests wait: a pool may have been enlarged without notice."""


class Health:
    """The nodes, their state, and the requests that wait for them."""

    def __init__(self, name: str, config: ClusterConfig, random: Callable[[], float], *, asks_roles: bool) -> None:
        self.name = name
        self.config = config
        self.random = random
        self.asks_roles = asks_roles
        self.balancer = config.balancer()
        self.entries: dict[str, NodeEntry] = {}
        self.draining: list[NodeEntry] = []  # removed, but their leases have not ended
        self.effects: deque[Effect] = deque()
        self.closed = self.stale = False
        self.tiers = False  # whether several groups of nodes are tried in order
        self.tiering: Tiers | None = None  # set where nodes move between tiers
        self.grouped = bool(config.zone)  # whether nodes differ in tier or zone
        self.failing = False  # whether a node may have failed too often without being ejected (max_ejected_share)
        self.starting = False  # whether a node may still be in slow start
        self.due = self.find_at = NEVER  # when tick() wants to be called; when the discovery is due
        self.search_pause = 0.0  # seconds to the next lookup of a role that no node has; 0: there was none yet
        self.search_at = -NEVER  # when that lookup may start
        self.timeouts = 0
        self._tickets = 0
        self.requests = RequestQueue(self)

    # -- ejection ---------------------------------------------------------------------------------------------------

    def _count_failure(self, entry: NodeEntry, error: BaseException, now: float) -> None:
        cause = error.__cause__ or error
        entry.last_error = remembered(cause)
        if entry.state is not USABLE or cause.__dict__.get(_COUNTED) == entry.failure_streak:
            return  # one failed connect that several callers received counts once
        entry.failures += 1  # before the mark: if interrupted, count it twice rather than never
        # a mark on the error: a reference to the error would keep its frames alive
        cause.__dict__[_COUNTED] = entry.failure_streak
        self._eject_if_due(entry, error, now)

    def _eject_if_due(self, entry: NodeEntry, error: BaseException | None, now: float) -> None:
        """Eject the node if it has failed too often and ``max_ejected_share`` allows it."""
        limit = self.config.eject_after
        if limit is not None and entry.failures >= limit and entry.state is USABLE:
            ejected = sum(one.state in (EJECTED, PROBING) for one in self.entries.values())
            if ejected + 1 <= self.config.max_ejected_share * len(self.entries):
                self._eject(entry, error, now)
            else:
                self.failing = True

    def _eject(self, entry: NodeEntry, error: BaseException | None, now: float) -> None:
        if entry.state is USABLE:
            self.effects.append(Effect(Do.DROP, entry))
        entry.state = EJECTED
        entry.ejections += 1
        stay = min(self.config.eject_max, self.config.eject_for * entry.ejections)
        entry.until = now + stay
        self.tick_at(entry.until)
        self.emit(ClusterEventKind.NODE_EJECTED, now, entry, error, f"for {stay:g} s")
        if self.asks_roles and entry.known_role == "primary":
            self._ask_roles(now)
        self.requests.settle(now)

    # -- probes, roles, time ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do the work that is due at ``now``: probes, role lookups, tiers, the queue."""
        self.due = self.find_at
        for entry in self.entries.values():
            if entry.state is EJECTED:
                if now >= entry.until:
                    self.probe(entry)
                else:
                    self.tick_at(entry.until)
        if self.asks_roles and self.entries:
            self._search_role(now)
            self._ask_roles(now, older_than=self.config.role_interval)
        if self.tiering is not None:
            if now >= self.tiering.due:
                self._look_at_tiers(now)
            self.tick_at(self.tiering.due)
        if self.requests.queues:
            self.requests.settle(now)
        if self.requests.queues:
            self.tick_at(now + RECHECK_INTERVAL)

    def _look_at_tiers(self, now: float) -> None:
        assert self.tiering is not None
        moved = self.tiering.look(self.entries.values(), now)
        for entry, before in moved:
            self.emit(ClusterEventKind.NODE_MOVED, now, entry, detail=f"{before} to {self.tiering.name_of(entry)}")
        if moved:
            self.requests.settle(now)  # a node that moved up may have more capacity

    def probe(self, entry: NodeEntry) -> None:
        """Start a probe of the node."""
        self.effects.append(Effect(Do.PROBE, entry))  # before the state: PROBING without a probe would never end
        entry.state = PROBING
        entry.asking = self.asks_roles

    def probed(self, entry: NodeEntry, error: BaseException | None, role: str | None, now: float) -> None:
        """A probe has ended; it succeeded if ``error`` is None."""
        entry.asking = False
        if entry.state is not PROBING:
            return  # removed meanwhile
        if error is not None:
            entry.last_error = remembered(error)
            self.emit(ClusterEventKind.PROBE_FAILED, now, entry, error)
            self._eject(entry, error, now)
            return
        self.starting = self.starting or self.config.slow_start > 0
        entry.state, entry.since, entry.slow = USABLE, now, self.config.slow_start > 0
        entry.failures, entry.failure_streak = 0, next(failure_streaks)
        self.emit(ClusterEventKind.NODE_USABLE, now, entry)
        if self.asks_roles:
            entry.checked_at = now
            self._role(entry, role, now)
            self.tick_at(now + self.config.role_interval)
        self.requests.settle(now)

    def _ask_roles(self, now: float, *, older_than: float = 0.0, unknown_only: bool = False) -> None:
        for entry in self.entries.values():
            if entry.state is not USABLE or entry.asking:
                continue
            if unknown_only and entry.known_role is not None:
                continue
            if now - entry.checked_at < (older_than or (RECHECK_INTERVAL / 10 if unknown_only else 0.0)):
                self.tick_at(entry.checked_at + self.config.role_interval)
                continue
            entry.asking = True
            entry.checked_at = now
            self.effects.append(Effect(Do.ROLE, entry))

    def _search_role(self, now: float, role: str | None = None) -> None:
        """Look up all roles at short intervals while requests (or a new one, for ``role``) need a role no node has."""
        wanted = {*self.requests.queues, role}
        usable = [entry for entry in self.entries.values() if entry.state is USABLE]
        if all(any(has_role(entry, each) for entry in usable) for each in wanted):
            return
        if not self.config.wait_for_node and (role is None or any(entry.asking for entry in usable)):
            return  # requests fail once all nodes have answered: another lookup would only keep them waiting
        if now >= self.search_at:
            self._ask_roles(now)
            first, longest = SEARCH
            self.search_pause = min(max(first, 2 * self.search_pause), longest)
            # random, so that the processes of a fleet do not all ask at once
            self.search_at = now + self.search_pause * (1 + self.random()) / 2
        self.tick_at(self.search_at)

    def role_found(self, entry: NodeEntry, error: BaseException | None, role: str | None, now: float) -> None:
        """A lookup of the node's role has ended."""
        entry.asking = False
        entry.checked_at = now
        self.tick_at(now + self.config.role_interval)
        if error is not None:
            self._count_failure(entry, error, now)
        elif entry.state is USABLE:
            self._role(entry, role, now)
        self.requests.settle(now)
        self._search_role(now)

    def _role(self, entry: NodeEntry, role: str | None, now: float) -> None:
        if role != entry.known_role:
            before, entry.known_role = entry.known_role, role
            self.search_pause, self.search_at = 0.0, -NEVER  # roles are changing: start again with short pauses
            self.emit(ClusterEventKind.ROLE_CHANGED, now, entry, detail=f"{before or 'unknown'} to {role or 'unknown'}")

    def tick_at(self, at: float) -> None:
        """Ask for a tick not later than ``at``."""
        self.due = min(self.due, at)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def update(self, nodes: Iterable[Node], made: Mapping[str, Made], now: float) -> None:
        """Replace the nodes. Nodes that stay keep their connections. ``made`` has the pool and the capacity of each
        node that is new or has another endpoint.
        """
        wanted = {node.name: node for node in nodes}
        first = not self.entries
        entries: dict[str, NodeEntry] = {}
        new: list[NodeEntry] = []
        for name, node in wanted.items():
            old = self.entries.get(name)
            if name not in made and old is not None:
                entries[name] = old
                if old.node != node:
                    if old.node.role != node.role:
                        old.known_role = node.role
                    old.node, old.weight = node, node.weight
                    if not self.config.tiers:
                        old.tier = node.priority
                    self.emit(ClusterEventKind.NODE_CHANGED, now, old, detail=f"weight {node.weight:g}")
                continue
            pool, capacity, min_capacity = made[name]
            entry = entries[name] = NodeEntry(node, pool, capacity, now, USABLE, min_capacity)
            new.append(entry)
            self.emit(ClusterEventKind.NODE_ADDED, now, entry)
            if not first:
                self.probe(entry)
        gone = [old for name, old in self.entries.items() if entries.get(name) is not old]
        self.entries = entries
        self.tiers = len({node.priority for node in wanted.values()}) > 1
        if self.config.tiers:
            self.tiers = True
            self.tiering = self.tiering or Tiers(self.config, now)
            self.tiering.place(entries.values(), new, now)
            self.tick_at(self.tiering.due)
        self.grouped = self.tiers or bool(self.config.zone)
        for old in gone:
            old.state = DRAINING
            self.draining.append(old)
            self.emit(ClusterEventKind.NODE_REMOVED, now, old)
            self.effects.append(Effect(Do.DRAIN, old))
        self.requests.settle(now)

    def drained(self, entry: NodeEntry) -> None:
        """A removed node is drained: forget it."""
        if entry in self.draining:
            self.draining.remove(entry)

    def emit(
        self,
        kind: ClusterEventKind,
        now: float,
        entry: NodeEntry | None = None,
        error: BaseException | None = None,
        detail: str = "",
    ) -> None:
        """Queue an event for the listeners."""
        event = ClusterEvent(kind, self.name, now, entry.name if entry else "", error, detail)
        self.effects.append(Effect(Do.EMIT, event=event))
