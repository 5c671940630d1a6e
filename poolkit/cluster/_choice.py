"""Which node serves a request. Sans-IO, like all of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..policies.hashing import rendezvous_order
from ..policies.retire import NEVER
from ._events import NodeState
from ._parts import NodeEntry, NodeRequest, has_role

if TYPE_CHECKING:
    from ._core import ClusterCore

__all__ = ("Choice",)

USABLE = NodeState.USABLE


class Choice:
    """Chooses a node with free capacity: by role, failures, tier and zone, then by key or by the balancer.

    Each flag says that nodes differ and have to be compared. In a cluster of equal, working nodes none is set.
    """

    def __init__(self, core: ClusterCore) -> None:
        self._core = core
        self.grouped = bool(core.config.zone)  # nodes differ in tier or zone
        self.failing = False  # a node may have failed too often without being ejected (max_ejected_share)
        self.pausing = True  # a node's pool may be suspended
        self.starting = False  # a node may still be in slow start

    def inherit(self, old: Choice) -> None:
        """Take over the flags of a former core, whose nodes this core has."""
        self.grouped, self.failing, self.starting = old.grouped, old.failing, old.starting

    def choose(self, request: NodeRequest, now: float) -> NodeEntry | None:
        """Return the node for a request; None if no usable node that it accepts has free capacity."""
        core, role, tried = self._core, request.role, request.tried
        free = [
            m for m in core.entries.values()
            if m.state is USABLE and (m.leases < m.min_capacity or m.leases < m.capacity())
        ]  # fmt: skip
        if role is not None or tried:
            free = [m for m in free if m not in tried and has_role(m, role)]
        if self.pausing:
            self.pausing = any(m.suspended() for m in core.entries.values())
            free = [m for m in free if not m.suspended()]
        if not free:
            return None
        if (self.grouped or self.failing or role is not None) and len(free) > 1:
            free = self._group(free, request, now)
        if self.starting and len(free) > 1:
            free = self._ready(free, now)
        if len(free) == 1:
            return free[0]
        if request.key is not None:
            order = rendezvous_order(request.key, [entry.name for entry in free])
            return core.entries[order[0]]
        return core.balancer.choose(free, now, core.random)

    def _group(self, free: list[NodeEntry], request: NodeRequest, now: float) -> list[NodeEntry]:
        """Return the entries of the group that serves now. Groups are ordered by role, failures, tier and zone."""
        core = self._core
        wanted = request.role.removeprefix("prefer-") if request.role else None
        limit, zone = core.config.eject_after or NEVER, core.config.zone
        if self.failing:
            self.failing = any(entry.failures >= limit for entry in core.entries.values())
        if wanted is None and not self.grouped and not self.failing:
            return free

        def rank(entry: NodeEntry) -> tuple[bool, bool, int, bool]:
            node = entry.node
            elsewhere = bool(zone) and node.zone != zone
            return (
                wanted is not None and entry.known_role != wanted,
                entry.failures >= limit,
                entry.tier,
                elsewhere,
            )

        groups: dict[tuple[bool, bool, int, bool], list[NodeEntry]] = {}
        for entry in free:
            groups.setdefault(rank(entry), []).append(entry)
        order = sorted(groups)
        for place, key in enumerate(order[:-1]):
            # a group that has lost too many of its nodes passes a share of its requests to the next group
            everybody = [m for m in core.entries.values() if request.accepts(m) and (m.tier, bool(zone) and
                         m.node.zone != zone) == key[2:]]  # fmt: skip
            serving = sum(m.state is USABLE and not m.suspended() for m in everybody)
            well = serving / (len(everybody) * core.config.spill_below)
            if key[:2] != order[place + 1][:2] or well >= 1 or core.random() < well:
                return groups[key]
        return groups[order[-1]]

    def _ready(self, free: list[NodeEntry], now: float) -> list[NodeEntry]:
        """Leave out nodes in slow start at random, with a probability that falls as the start proceeds."""
        core = self._core
        ready: list[NodeEntry] = []
        for entry in free:
            if entry.slow:
                ramp = (now - entry.since) / core.config.slow_start
                if ramp >= 1:
                    entry.slow = False
                elif core.random() >= max(ramp, 0.05):
                    continue
            ready.append(entry)
        self.starting = any(entry.slow for entry in core.entries.values())
        return ready or free
