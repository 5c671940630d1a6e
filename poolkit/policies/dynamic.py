"""Weights that follow what the nodes do: they rise slowly on success and fall steeply on failure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_low

from .balance import Balancer, Candidate, N, Random, pick_weighted

__all__ = ("DynamicWeights",)


class DynamicWeights(Balancer):
    """A random node, by weights that every lease adjusts.

    Additive increase, multiplicative decrease (D. Chiu, R. Jain, 1989): a success adds ``rise`` to a node's share, a
    failure or timeout multiplies it by ``fall``. The share stays between ``floor`` and 1. It recovers within
    ``recovery`` seconds by itself, so that a node with a small share is tried again. The effective weight is the
    configured weight times the share.

    Overload protection: a node whose average duration exceeds ``slow`` times the median of the candidates gets
    proportionally less, before it fails.
    """

    def __init__(
        self,
        *,
        rise: float = 0.02,
        fall: float = 0.5,
        floor: float = 0.05,
        recovery: float = 30.0,
        slow: float = 1.5,
        decay: float = 5.0,
    ) -> None:
        self.rise = rise
        self.fall = fall
        self.floor = floor
        self.recovery = recovery
        self.slow = slow
        self.decay = decay

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """A candidate with a chance in proportion to its effective weight."""
        return pick_weighted(nodes, self.weights(nodes, now), random)

    def weights(self, nodes: Sequence[Candidate], now: float) -> list[float]:
        """The current effective weights."""
        known = [node.book["average"] for node in nodes if "average" in node.book]
        usual = median_low(known) if known else 0.0
        return [node.weight * self.share(node, now) * self._pace(node, usual) for node in nodes]

    def share(self, node: Candidate, now: float) -> float:
        """The node's share of its configured weight, ``floor`` to 1."""
        share = node.book.get("share", 1.0)
        return min(1.0, share + max(0.0, now - node.book.get("changed", now)) / self.recovery)

    def _pace(self, node: Candidate, usual: float) -> float:
        average = node.book.get("average", 0.0)
        if average <= self.slow * usual or not usual:
            return 1.0
        return max(self.floor, self.slow * usual / average)

    def done(self, node: Candidate, duration: float, failed: bool, now: float) -> None:
        """Raise or lower the node's share; record the duration of a success."""
        book = node.book
        share = self.share(node, now)
        book["share"] = max(self.floor, share * self.fall) if failed else min(1.0, share + self.rise)
        book["changed"] = now
        if not failed:  # not of a failure, which may be quick
            old = book.get("average", duration)
            keep = math.exp(-max(0.0, now - book.get("seen", now)) / self.decay) * 0.9
            book["average"] = old * keep + duration * (1 - keep)
            book["seen"] = now
