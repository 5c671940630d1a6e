"""The tiers of a cluster: who begins where, how much each node is used, and who moves. Sans-IO, as all of the core."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import partial

from ..policies.tiers import Standing, moves
from ._config import ClusterConfig
from ._events import NodeState
from ._parts import Member

__all__ = ("Tiers",)

LOOKS = 10
"""Looks within ``tier_window``: often enough that an average over the window is one."""


class Tiers:
    """The tiers of one cluster. ``looked_at``: the time of the last look."""

    def __init__(self, config: ClusterConfig, now: float) -> None:
        self.config = config
        self.interval = config.tier_window / LOOKS
        self.looked_at = now

    @property
    def due(self) -> float:
        """When to look again."""
        return self.looked_at + self.interval

    def name_of(self, member: Member) -> str:
        """The tier of a node, by name."""
        return self.config.tiers[member.tier].name

    def fits(self, member: Member, tier: int) -> float:
        """Leases that fit on the node in that tier."""
        limit = self.config.tiers[tier].limit
        places = member.pool_places()
        return places if limit is None else min(places, limit)

    def _fit_now(self, member: Member) -> float:
        return self.fits(member, member.tier)

    def place(self, members: Iterable[Member], new: list[Member], now: float) -> None:
        """Each new node begins in the tier of its ``priority``, or in the next one that has room."""
        sizes = [tier.most for tier in self.config.tiers]
        count = Counter(member.tier for member in members if member not in new)
        for member in new:
            tier = min(member.node.priority, len(sizes) - 1)
            while (size := sizes[tier]) is not None and count[tier] >= size:
                tier += 1  # the last one takes any number
            count[tier] += 1
            member.tier, member.moved_at = tier, now
            member.places = partial(self._fit_now, member)

    def look(self, members: Iterable[Member], now: float) -> list[tuple[Member, str]]:
        """Take in how much each node was used since the last look; those that have moved, and from which tier."""
        spent = now - self.looked_at
        self.looked_at = now
        if spent <= 0:
            return []
        keep = math.exp(-spent / self.config.tier_window)
        by_name = {member.name: member for member in members}
        for member in by_name.values():
            busy, member.busy = member.busy, 0.0
            # what has ended in this time, or what goes on: a lease that outlasts many looks is no pause
            load = max(busy / spent, float(member.leases)) if member.state is NodeState.USABLE else 0.0
            load = min(load, max(1.0, member.pool_places()))
            member.load = load if member.load is None else keep * member.load + (1 - keep) * load
        moved = []
        standings = [self._standing(member, now) for member in by_name.values()]
        sizes = [tier.most for tier in self.config.tiers]
        for name, tier in moves(standings, sizes, self.config.promote_above, self.config.demote_below):
            member = by_name[name]
            moved.append((member, self.name_of(member)))
            member.tier, member.moved_at = tier, now
        return moved

    def use(self, member: Member, tier: int) -> float:
        """Its leases on average, as a share of those that fit there (of one, where there is no limit)."""
        load = member.load or 0.0
        fits = self.fits(member, tier)
        return min(1.0, load) if fits == math.inf else load / max(1.0, fits)

    def _standing(self, member: Member, now: float) -> Standing:
        below = min(member.tier + 1, len(self.config.tiers) - 1)
        settled = now - member.moved_at >= self.config.tier_window
        well = member.state is NodeState.USABLE
        use, further_down = self.use(member, member.tier), self.use(member, below)
        return Standing(member.name, member.tier, use, further_down, settled=settled, well=well)
