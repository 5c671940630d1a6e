"""Decide which nodes move to another tier: busy nodes move up, idle ones down. Numbers in, moves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ("Standing", "moves")


@dataclass(frozen=True)
class Standing:
    """A node in its tier (0: the first). ``use``: its leases as a share of its capacity in this tier. ``below``: as a
    share of its capacity in the next tier down. ``settled``: it has been in its tier long enough to move. ``well``: it
    is usable; other nodes never move up.
    """

    name: str
    tier: int
    use: float
    below: float
    settled: bool = True
    well: bool = True


def moves(
    standings: Iterable[Standing], sizes: Sequence[int | None], promote_above: float, demote_below: float
) -> list[tuple[str, int]]:
    """Names and their new tiers; ``sizes``: the most nodes of each tier (None: any number).

    Between two adjacent tiers at most one node moves up and one down, so that a change in the load never moves many
    nodes at once. The last tiers are compared first:

    - The most used node at or above ``promote_above`` moves up. The least used node at or below ``demote_below`` moves
      down. If there are both, they change places, even if the tiers are full.
    - Otherwise the target tier must have room, and the first tier keeps at least one node.
    - A node does not move down if its use there would be above the middle between the two thresholds. Otherwise it
      could move up again soon, because tiers have different limits.
    """
    nodes = list(standings)
    count = Counter(node.tier for node in nodes)
    middle = (promote_above + demote_below) / 2
    found: dict[str, int] = {}

    def room(tier: int) -> bool:
        size = sizes[tier]
        return size is None or count[tier] < size

    for low in range(len(sizes) - 1, 0, -1):
        high = low - 1
        free = [node for node in nodes if node.settled and node.name not in found]
        used = [node for node in free if node.tier == low and node.well and node.use >= promote_above]
        unused = [node for node in free if node.tier == high and node.use <= demote_below and node.below <= middle]
        up = max(used, key=lambda node: node.use, default=None)
        down = min(unused, key=lambda node: node.use, default=None)
        if up is None and (not room(low) or (high == 0 and count[0] == 1)):
            down = None
        if down is None and not room(high):
            up = None
        for node, tier in ((up, high), (down, low)):
            if node is not None:
                found[node.name] = tier
                count[node.tier] -= 1
                count[tier] += 1
    return list(found.items())
