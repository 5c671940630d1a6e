"""Strategies that choose the node for the next caller.

A balancer chooses one of the candidates (usable nodes with free capacity) and is informed how each lease ended. It
keeps its notes about a node in the node's ``book``, so that they disappear together with the node.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, TypeVar

__all__ = (
    "Balancer",
    "Candidate",
    "LeastInUse",
    "PeakEwma",
    "RandomChoice",
    "RoundRobin",
    "SmoothWeighted",
    "WeightedRandom",
    "pick_weighted",
)

Random = Callable[[], float]


class Candidate(Protocol):
    """What a balancer may see of a node."""

    @property
    def name(self) -> str:
        """Unique in the cluster."""

    @property
    def weight(self) -> float:
        """Above 0; twice the weight, twice the share."""

    @property
    def leases(self) -> int:
        """Leases on it now."""

    @property
    def book(self) -> dict[str, float]:
        """The balancer's own notes about this node."""


N = TypeVar("N", bound=Candidate)


class Balancer:
    """A strategy. For your own, subclass it and implement ``choose``.

    Called under the cluster's lock: it must be fast and must not block.
    """

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """Choose one of ``nodes`` (at least one, in the order of the cluster). ``random()`` is in [0, 1)."""
        raise NotImplementedError

    def done(self, node: Candidate, duration: float, failed: bool, now: float) -> None:
        """A lease of ``node`` ended after ``duration`` seconds; ``failed``: with an error that the node caused."""


class RoundRobin(Balancer):
    """One node after the other, regardless of their weights."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """The candidate that was chosen the longest time ago."""
        self._turn += 1
        chosen = min(nodes, key=lambda node: node.book.get("turn", 0.0))
        chosen.book["turn"] = self._turn
        return chosen


class RandomChoice(Balancer):
    """A random node, all with the same probability."""

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """A candidate at random."""
        return nodes[int(random() * len(nodes))]


def pick_weighted(nodes: Sequence[N], weights: Sequence[float], random: Random) -> N:
    """Choose a node with a probability in proportion to its weight: a random point in the cumulative intervals.

    Weights 1, 1, 2, 2, 5, 5 make 16 slots.
    """
    edges = list(accumulate(weights))
    return nodes[min(bisect_right(edges, random() * edges[-1]), len(nodes) - 1)]


class WeightedRandom(Balancer):
    """At random, in proportion to the weights."""

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """See :func:`pick_weighted`."""
        return pick_weighted(nodes, [node.weight for node in nodes], random)


class SmoothWeighted(Balancer):
    """In proportion to the weights, interleaved as evenly as possible.

    At each choice, every candidate's credit grows by its weight, and the candidate with the most credit pays the sum of
    all weights (nginx, "smooth weighted round-robin", 2012): weights 5, 1, 1 give a a b a c a a.
    """

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """The candidate with the most credit."""
        for node in nodes:
            node.book["credit"] = node.book.get("credit", 0.0) + node.weight
        chosen = max(nodes, key=lambda node: node.book["credit"])
        chosen.book["credit"] -= sum(node.weight for node in nodes)
        return chosen


class LeastInUse(Balancer):
    """The node with the fewest leases relative to its weight; among equal ones a random node."""

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """The candidate with the fewest leases for its weight."""
        loads = [(node.leases + 1) / node.weight for node in nodes]
        least = min(loads)
        best = [node for node, load in zip(nodes, loads, strict=True) if load == least]
        return best[int(random() * len(best))]


class PeakEwma(Balancer):
    """The better one of two random candidates, by latency and leases.

    Two choices: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001. Load: Finagle's
    "peak EWMA": an average of the durations that follows a rise at once and falls with time constant ``decay``
    (seconds). It is multiplied by the leases that the node would have. After one slow lease a node gets fewer.
    """

    PENALTY = 1e6  # a node with leases of which none has ended comes after all others (Finagle's rule)

    def __init__(self, decay: float = 10.0) -> None:
        self.decay = decay

    def choose(self, nodes: Sequence[N], now: float, random: Random) -> N:
        """The less loaded one of two random candidates."""
        if len(nodes) == 1:
            return nodes[0]
        first = int(random() * len(nodes))
        second = int(random() * (len(nodes) - 1))
        second += second >= first
        one, other = nodes[first], nodes[second]
        return one if self.load(one, now) <= self.load(other, now) else other

    def load(self, node: Candidate, now: float) -> float:
        """The load of the node with one more lease."""
        book, leases = node.book, node.leases
        cost = book.get("cost", 0.0)
        if not cost:
            return (self.PENALTY + leases) / node.weight if leases else 0.0
        age = now - book["seen"]
        if age > 0:  # else another caller, which read the clock later, was faster
            cost *= math.exp(-age / self.decay)
        return cost * (leases + 1) / node.weight

    def done(self, node: Candidate, duration: float, failed: bool, now: float) -> None:
        """Record the duration; a peak counts at once."""
        book = node.book
        cost = book.get("cost", 0.0)
        if duration < cost:
            age = now - book["seen"]
            keep = math.exp(-age / self.decay) if age > 0 else 1.0
            faded = cost * keep
            if duration < faded:
                duration = faded + duration * (1 - keep)
        book["cost"] = duration
        book["seen"] = now
