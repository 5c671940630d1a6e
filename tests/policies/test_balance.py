"""The balancing strategies, by their statistics: chi-square against what they promise, with fixed seeds."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from poolkit.policies.balance import (
    Balancer,
    LeastInUse,
    PeakEwma,
    RandomChoice,
    RoundRobin,
    SmoothWeighted,
    WeightedRandom,
    pick_weighted,
)
from poolkit.policies.dynamic import DynamicWeights


@dataclass
class FakeNode:
    name: str
    weight: float = 1.0
    leases: int = 0
    book: dict[str, float] = field(default_factory=dict)


def nodes(*weights: float) -> list[FakeNode]:
    return [FakeNode(f"n{number}", weight) for number, weight in enumerate(weights)]


def critical(degrees: int) -> float:
    """Chi-square that is exceeded once in a thousand (Wilson and Hilferty's approximation, 1931)."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + 3.0902 * math.sqrt(part)) ** 3)


def deviates(counts: Counter[str], among: list[FakeNode], shares: list[float]) -> bool:
    total = sum(counts.values())
    wanted = [total * share / sum(shares) for share in shares]
    square = sum((counts[node.name] - want) ** 2 / want for node, want in zip(among, wanted, strict=True))
    return square > critical(len(among) - 1)


def draws(balancer: Balancer, among: list[FakeNode], times: int = 20_000, seed: int = 1) -> Counter[str]:
    source = random.Random(seed)
    return Counter(balancer.choose(among, 0.0, source.random).name for _ in range(times))


def test_round_robin_takes_one_after_the_other() -> None:
    """And a node that comes back is not given what it has missed."""
    among, balancer = nodes(1, 1, 1), RoundRobin()
    names = [balancer.choose(among, 0.0, random.random).name for _ in range(6)]
    assert names == ["n0", "n1", "n2"] * 2
    for _ in range(10):
        balancer.choose(among[:2], 0.0, random.random)
    again = [balancer.choose(among, 0.0, random.random).name for _ in range(4)]
    assert again.count("n2") <= 2


def test_random_gives_all_the_same_chance() -> None:
    """Whatever their weights."""
    among = nodes(1, 9, 3, 2)
    assert not deviates(draws(RandomChoice(), among), among, [1, 1, 1, 1])


def test_weights_1_1_2_2_5_5_are_sixteen_slots() -> None:
    """The shares of random weighted choice, and that the test would notice others."""
    among = nodes(1, 1, 2, 2, 5, 5)
    counts = draws(WeightedRandom(), among)
    assert not deviates(counts, among, [1, 1, 2, 2, 5, 5])
    assert deviates(counts, among, [1, 1, 2, 2, 5, 6])
    exact = Counter(
        pick_weighted(among, [n.weight for n in among], lambda at=at: (at + 0.5) / 16).name for at in range(16)
    )
    assert [exact[node.name] for node in among] == [1, 1, 2, 2, 5, 5]


def test_smooth_weighting_interleaves_and_is_exact() -> None:
    """nginx's example, and the exact shares over whole rounds."""
    among, balancer = nodes(5, 1, 1), SmoothWeighted()
    assert "".join(balancer.choose(among, 0.0, random.random).name[1] for _ in range(7)) == "0010200"
    among = nodes(1, 1, 2, 2, 5, 5)
    counts = draws(SmoothWeighted(), among, times=160)
    assert [counts[node.name] for node in among] == [10, 10, 20, 20, 50, 50]


def test_least_in_use_heeds_weights_and_breaks_ties_at_random() -> None:
    """A node of weight 2 may have twice the leases."""
    among = nodes(1, 2)
    among[0].leases, among[1].leases = 1, 2
    assert draws(LeastInUse(), among, 50)["n1"] == 50
    among[1].leases = 4
    assert draws(LeastInUse(), among, 50)["n0"] == 50
    equal = nodes(1, 1, 1)
    assert not deviates(draws(LeastInUse(), equal), equal, [1, 1, 1])


def test_two_choices_avoid_a_slow_node_and_come_back_to_it() -> None:
    """One slow lease is enough to be avoided; the memory of it fades."""
    among, balancer = nodes(1, 1, 1, 1), PeakEwma(decay=10.0)
    for node in among:
        balancer.done(node, 0.01, False, 0.0)
    balancer.done(among[0], 1.0, False, 0.0)
    source = random.Random(3)
    counts = Counter(balancer.choose(among, 0.1, source.random).name for _ in range(1000))
    assert counts["n0"] == 0
    balancer.done(among[0], 0.01, False, 100.0)
    for node in among[1:]:
        balancer.done(node, 0.01, False, 100.0)
    counts = Counter(balancer.choose(among, 100.0, source.random).name for _ in range(1000))
    assert counts["n0"] > 0


def test_a_peak_of_latency_is_remembered_at_once_and_forgotten_with_time() -> None:
    """After one time constant 1/e of it is left beside the newer, quicker lease; an early clock forgets nothing."""
    (node,), balancer = nodes(1), PeakEwma(decay=10.0)
    balancer.done(node, 1.0, False, 0.0)
    assert balancer.load(node, 0.0) == 1.0
    balancer.done(node, 0.1, False, 10.0)
    kept = math.exp(-1)
    assert balancer.load(node, 10.0) == pytest.approx(kept + 0.1 * (1 - kept))
    assert balancer.load(node, 9.0) == balancer.load(node, 10.0)
    node.leases = 2
    assert balancer.load(node, 20.0) == pytest.approx(3 * kept * (kept + 0.1 * (1 - kept)))
    balancer.done(node, 5.0, False, 20.0)
    assert balancer.load(node, 20.0) == 15.0


def test_two_choices_halve_the_greatest_load() -> None:
    """Mitzenmacher: with as many leases as nodes the fullest of 200 has 2 to 3, not 5 to 6 as at random."""

    def fullest(balancer: Balancer) -> int:
        among, source = nodes(*[1] * 200), random.Random(7)
        for node in among:
            balancer.done(node, 0.01, False, 0.0)
        for _ in range(200):
            balancer.choose(among, 0.0, source.random).leases += 1
        return max(node.leases for node in among)

    assert fullest(PeakEwma()) <= 3 < fullest(RandomChoice())


def test_dynamic_weights_fall_steeply_and_rise_slowly_within_bounds() -> None:
    """Halved by each failure, a little more with each success, never below the floor nor above 1."""
    (node,), balancer = nodes(4), DynamicWeights(floor=0.05, rise=0.02, recovery=1e9)
    balancer.done(node, 0.01, True, 0.0)
    assert balancer.weights([node], 0.0) == pytest.approx([2.0])
    balancer.done(node, 0.01, False, 0.0)
    assert balancer.share(node, 0.0) == pytest.approx(0.52)
    for _ in range(20):
        balancer.done(node, 0.01, True, 0.0)
    assert balancer.share(node, 0.0) == 0.05
    for _ in range(100):
        balancer.done(node, 0.01, False, 0.0)
    assert balancer.share(node, 0.0) == 1.0


def test_dynamic_weights_recover_by_themselves() -> None:
    """A node that gets nearly nothing is tried again after a while."""
    (node,), balancer = nodes(1), DynamicWeights(recovery=30.0)
    for _ in range(20):
        balancer.done(node, 0.01, True, 0.0)
    assert balancer.share(node, 15.0) == pytest.approx(0.55)
    assert balancer.share(node, 100.0) == 1.0


def test_a_node_that_slows_down_gets_less_before_it_fails() -> None:
    """Overload protection: ten times the median duration, a share in proportion; chi-square on the draws."""
    among, balancer = nodes(1, 1, 1, 1), DynamicWeights(slow=1.5)
    for moment in range(200):
        for node in among:
            balancer.done(node, 0.1 if node is among[0] else 0.01, False, moment / 10)
    assert balancer.weights(among, 20.0)[0] == pytest.approx(0.15, rel=0.01)
    source = random.Random(5)
    counts = Counter(balancer.choose(among, 20.0, source.random).name for _ in range(20_000))
    assert not deviates(counts, among, [0.15, 1, 1, 1])
