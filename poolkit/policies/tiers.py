"""Decide which nodes move to another tier: up if they are used much, down if not. Numbers in, moves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ("Standing", "moves")


@dataclass(frozen=True)
class Standing:
    """A node in its tier (0: the first). ``use``: its leases as a share of those that fit on it there; ``below``: as a
    share of those that would fit one tier further down. ``settled``: it has been there long enough to be judged.
    ``well``: it serves; one that does not never moves up.
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

    From the last tier up, between each two neighbours at most one node moves up and one down, so that a change in the
    load never turns everything over at once:

    - Up goes the most used one of those at or above ``promote_above``, down the least used one of those at or below
      ``demote_below``. If there are both, they change places, however full the tiers are.
    - Else there must be room where it goes, and the first tier keeps one node.
    - No node goes down to where its use would be near ``promote_above`` (above the middle of the two lines): tiers of
      different limits would pass it to and fro.
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
