"""The roles of the nodes: when they are looked up, and what is known. Sans-IO, like all of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..policies.retire import NEVER
from ._events import ClusterEventKind, NodeState
from ._parts import RECHECK_INTERVAL, Do, Effect, NodeEntry, has_role

if TYPE_CHECKING:
    from ._core import ClusterCore

__all__ = ("Roles",)

USABLE = NodeState.USABLE

SEARCH = (0.02, 0.1)
"""Seconds between two lookups of a role that no node has while a request waits for it: the first pause, which doubles
each time, and the longest. A cluster is not notified when a primary is elected, and callers wait for it."""


class Roles:
    """Looks up the roles of the nodes of a cluster that has a ``role_of``."""

    def __init__(self, core: ClusterCore) -> None:
        self._core = core
        self.search_pause = 0.0  # seconds to the next lookup of a role that no node has; 0: there was none yet
        self.search_at = -NEVER  # when that lookup may start

    def ask(self, now: float, *, older_than: float = 0.0, unknown_only: bool = False) -> None:
        """Look up the roles of usable nodes: of all, of those not asked for ``older_than`` seconds, or the unknown."""
        core = self._core
        for entry in core.entries.values():
            if entry.state is not USABLE or entry.asking:
                continue
            if unknown_only and entry.known_role is not None:
                continue
            if now - entry.checked_at < (older_than or (RECHECK_INTERVAL / 10 if unknown_only else 0.0)):
                core.tick_at(entry.checked_at + core.config.role_interval)
                continue
            entry.asking = True
            entry.checked_at = now
            core.effects.append(Effect(Do.ROLE, entry))

    def search(self, now: float, role: str | None = None) -> None:
        """Look up all roles at short intervals while requests (or a new one, for ``role``) need a role no node has."""
        core = self._core
        wanted = {*core.requests.queues, role}
        usable = [entry for entry in core.entries.values() if entry.state is USABLE]
        if all(any(has_role(entry, each) for entry in usable) for each in wanted):
            return
        if not core.config.wait_for_node and (role is None or any(entry.asking for entry in usable)):
            return  # requests fail once all nodes have answered: another lookup would only keep them waiting
        if now >= self.search_at:
            self.ask(now)
            first, longest = SEARCH
            self.search_pause = min(max(first, 2 * self.search_pause), longest)
            # random, so that the processes of a fleet do not all ask at once
            self.search_at = now + self.search_pause * (1 + core.random()) / 2
        core.tick_at(self.search_at)

    def answered(self, entry: NodeEntry, now: float) -> None:
        """Record the end of a lookup of the node's role. The next one is due after ``role_interval``."""
        entry.asking = False
        entry.checked_at = now
        self._core.tick_at(now + self._core.config.role_interval)

    def note(self, entry: NodeEntry, role: str | None, now: float) -> None:
        """Record the node's present role; None: unknown."""
        if role != entry.known_role:
            before, entry.known_role = entry.known_role, role
            self.search_pause, self.search_at = 0.0, -NEVER  # roles are changing: start again with short pauses
            detail = f"{before or 'unknown'} to {role or 'unknown'}"
            self._core.emit(ClusterEventKind.ROLE_CHANGED, now, entry, detail=detail)
