"""The tiers of a cluster: where a node starts, how much it is used, when it moves. Sans-IO, like all of the core."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import partial

from ..policies.tiers import Standing, moves
from ._config import ClusterConfig
from ._events import NodeState
from ._parts import NodeEntry

__all__ = ("Tiers",)

LOOKS = 10
"""Evaluations within one ``tier_window``: enough samples for an average over the window."""


class Tiers:
    """The tiers of one cluster. ``looked_at``: the time of the last evaluation."""

    def __init__(self, config: ClusterConfig, now: float) -> None:
        self.config = config
        self.interval = config.tier_window / LOOKS
        self.looked_at = now

    @property
    def due(self) -> float:
        """The time of the next evaluation."""
        return self.looked_at + self.interval

    def name_of(self, entry: NodeEntry) -> str:
        """Return the name of a node's tier."""
        return self.config.tiers[entry.tier].name

    def fits(self, entry: NodeEntry, tier: int) -> float:
        """Return the number of leases that the node can have in that tier."""
        limit = self.config.tiers[tier].limit
        capacity = entry.pool_capacity()
        return capacity if limit is None else min(capacity, limit)

    def _fit_now(self, entry: NodeEntry) -> float:
        return self.fits(entry, entry.tier)

    def place(self, entries: Iterable[NodeEntry], new: list[NodeEntry], now: float) -> None:
        """Put each new node into the tier of its ``priority``, or into the next one that has room."""
        sizes = [tier.most for tier in self.config.tiers]
        count = Counter(entry.tier for entry in entries if entry not in new)
        for entry in new:
            tier = min(entry.node.priority, len(sizes) - 1)
            while (size := sizes[tier]) is not None and count[tier] >= size:
                tier += 1  # the last tier has no limit
            count[tier] += 1
            entry.tier, entry.moved_at = tier, now
            entry.capacity = partial(self._fit_now, entry)

    def look(self, entries: Iterable[NodeEntry], now: float) -> list[tuple[NodeEntry, str]]:
        """Update the average use of each node and move nodes. Returns each node that moved, with its previous tier."""
        spent = now - self.looked_at
        self.looked_at = now
        if spent <= 0:
            return []
        keep = math.exp(-spent / self.config.tier_window)
        by_name = {entry.name: entry for entry in entries}
        for entry in by_name.values():
            busy, entry.busy = entry.busy, 0.0
            # leases that ended in this time, or those still open: one lease may last for many evaluations
            load = max(busy / spent, float(entry.leases)) if entry.state is NodeState.USABLE else 0.0
            load = min(load, max(1.0, entry.pool_capacity()))
            entry.load = load if entry.load is None else keep * entry.load + (1 - keep) * load
        moved = []
        standings = [self._standing(entry, now) for entry in by_name.values()]
        sizes = [tier.most for tier in self.config.tiers]
        for name, tier in moves(standings, sizes, self.config.promote_above, self.config.demote_below):
            entry = by_name[name]
            moved.append((entry, self.name_of(entry)))
            entry.tier, entry.moved_at = tier, now
        return moved

    def use(self, entry: NodeEntry, tier: int) -> float:
        """Return the average number of leases as a share of the node's capacity in that tier (no limit: as of 1)."""
        load = entry.load or 0.0
        fits = self.fits(entry, tier)
        return min(1.0, load) if fits == math.inf else load / max(1.0, fits)

    def _standing(self, entry: NodeEntry, now: float) -> Standing:
        below = min(entry.tier + 1, len(self.config.tiers) - 1)
        settled = now - entry.moved_at >= self.config.tier_window
        well = entry.state is NodeState.USABLE
        use, further_down = self.use(entry, entry.tier), self.use(entry, below)
        return Standing(entry.name, entry.tier, use, further_down, settled=settled, well=well)
