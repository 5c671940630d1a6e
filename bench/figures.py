"""The arithmetic: medians with their spread, ratios within a run, percentiles, Jain's index."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ("Spread", "jain", "percentile", "ratios", "spread", "waits_of", "number")


@dataclass(frozen=True)
class Spread:
    """The median of the repetitions, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.median)} [{number(self.low)}, {number(self.high)}]"


def number(value: float) -> str:
    """Three significant digits, without an exponent where a reader does not expect one."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.2g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("spread: no values")
    return Spread(statistics.median(values), min(values), max(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """One by the other, repetition by repetition: what disturbed a repetition disturbed both.

    A repetition that only one of them has is left out. Nothing divided by nothing is 1; anything else divided by
    nothing is infinite.
    """
    found = []
    for value, other in zip(values, base, strict=False):
        found.append(value / other if other else 1.0 if not value else math.inf)
    return found


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The nearest-rank percentile of a sorted sequence; ``fraction`` from 0 to 1. 0 if it is empty."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def waits_of(waits: Sequence[float]) -> dict[str, float]:
    """p50, p99, p99.9 and the greatest of some waits, in the unit in which they came."""
    ordered = sorted(waits)
    names = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: percentile(ordered, fraction) for name, fraction in names.items()}


def jain(counts: Sequence[float]) -> float:
    """Jain's fairness index (R. Jain, D. Chiu, W. Hawe, DEC-TR-301, 1984).

    1 when all have the same, 1/n when one of n has everything. With nothing to share, 1.
    """
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else 1.0
