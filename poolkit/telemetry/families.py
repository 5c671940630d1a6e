"""The metrics of a pool as one table, used by Prometheus, statsd and the documentation.

Names follow Prometheus' practice: base units, ``_total`` for counters (added by the exporter), one quantity for each
metric, never capacity and current value in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .._numbers import given, is_number
from ..errors import ConfigError, shown
from ..policies.meters import Histogram
from ..stats import ClassStats, PoolStats

__all__ = ("FAMILIES", "Family", "Labels", "Values", "merged", "of", "read", "require")

Labels = tuple[tuple[str, str], ...]
Values = dict[str, dict[Labels, Any]]
"""Family to labels to value: a number, or a Histogram."""


@dataclass(frozen=True)
class Family:
    """One metric: ``read`` gives its values of one pool, by its labels beside ``pool``."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    read: Callable[[PoolStats], dict[Labels, Any]]
    labels: tuple[str, ...] = ()


def _one(value: Callable[[PoolStats], Any]) -> Callable[[PoolStats], dict[Labels, Any]]:
    def values(stats: PoolStats) -> dict[Labels, Any]:
        found = value(stats)
        return {} if found is None else {(): found}

    return values


def _states(stats: PoolStats) -> dict[Labels, Any]:
    states = ("idle", "in_use", "connecting", "checking", "resetting", "closing")
    return {(("state", state),): getattr(stats, state) for state in states}


def _closes(stats: PoolStats) -> dict[Labels, Any]:
    return {(("reason", reason),): number for reason, number in stats.closes.items()}


def _of_classes(value: Callable[[ClassStats], Any]) -> Callable[[PoolStats], dict[Labels, Any]]:
    def values(stats: PoolStats) -> dict[Labels, Any]:
        return {(("class", shown(name)),): value(one) for name, one in stats.classes.items()}

    return values


FAMILIES: tuple[Family, ...] = (
    Family("poolkit_connections", "gauge", "Connections that exist, by state.", _states, ("state",)),
    Family("poolkit_connections_max", "gauge", "Connections that may exist (absent: no limit).",
           _one(lambda s: s.max_size)),
    Family("poolkit_connections_limit", "gauge",
           "Connections that may exist now: with autoscale at most poolkit_connections_max (absent: no limit).",
           _one(lambda s: s.limit)),
    Family("poolkit_connections_min", "gauge", "Connections kept open while unused.", _one(lambda s: s.min_size)),
    Family("poolkit_pending_requests", "gauge", "Callers in the queue.", _one(lambda s: s.waiting)),
    Family("poolkit_longest_lease_seconds", "gauge", "Age of the oldest current lease.",
           _one(lambda s: s.longest_held)),
    Family("poolkit_longest_wait_seconds", "gauge", "Longest time that a caller in the queue has waited.",
           _one(lambda s: s.longest_wait)),
    Family("poolkit_open_breakers", "gauge", "Endpoints whose circuit breaker is open.",
           _one(lambda s: s.open_breakers)),
    Family("poolkit_overloaded_queues", "gauge", "Queues whose newest callers come first, because many give up.",
           _one(lambda s: s.overloaded)),
    Family("poolkit_overloads", "counter", "Times that a queue became overloaded.", _one(lambda s: s.overloads)),
    Family("poolkit_acquires", "counter", "Leases begun.", _one(lambda s: s.acquires)),
    Family("poolkit_acquire_waits", "counter", "Acquires that had to wait in the queue.", _one(lambda s: s.waits)),
    Family("poolkit_acquire_timeouts", "counter", "Acquires that timed out.", _one(lambda s: s.timeouts)),
    Family("poolkit_connects", "counter", "Connects that worked.", _one(lambda s: s.connects)),
    Family("poolkit_connect_errors", "counter", "Connects that failed.", _one(lambda s: s.connect_errors)),
    Family("poolkit_checks", "counter", "Checks that asked the server.", _one(lambda s: s.checks)),
    Family("poolkit_check_failures", "counter", "Connections found dead while idle.",
           _one(lambda s: s.failed_checks)),
    Family("poolkit_connections_closed", "counter", "Connections closed, by reason.", _closes, ("reason",)),
    Family("poolkit_leaks", "counter", "Leases dropped, or held longer than leak_after.", _one(lambda s: s.leaks)),
    Family("poolkit_busy_seconds", "counter", "Total time that connections were on lease.",
           _one(lambda s: s.busy_seconds)),
    Family("poolkit_acquire_seconds", "histogram", "Time from the call of acquire until the caller has a connection.",
           _one(lambda s: s.wait)),
    Family("poolkit_connect_seconds", "histogram", "Time to open a connection.", _one(lambda s: s.connect)),
    Family("poolkit_use_seconds", "histogram", "Duration of leases (with use_histogram=True).",
           _one(lambda s: s.use if s.use.count else None)),
    Family("poolkit_class_connections", "gauge", "Connections in use, by class of callers.",
           _of_classes(lambda c: c.in_use), ("class",)),
    Family("poolkit_class_pending_requests", "gauge", "Callers in the queue, by class.",
           _of_classes(lambda c: c.waiting), ("class",)),
    Family("poolkit_class_acquires", "counter", "Leases begun, by class.",
           _of_classes(lambda c: c.acquires), ("class",)),
    Family("poolkit_class_acquire_waits", "counter", "Acquires that had to wait in the queue, by class.",
           _of_classes(lambda c: c.waits), ("class",)),
    Family("poolkit_class_acquire_timeouts", "counter", "Acquires that timed out, by class.",
           _of_classes(lambda c: c.timeouts), ("class",)),
)  # fmt: skip
"""Every metric. All have the label ``pool``."""


def read(pools: Iterable[Any]) -> Values:
    """Return the metrics of the pools now. Pools of one name are added up."""
    return merged(of(pool.stats()) for pool in pools)  # at once: pool by pool it is quadratic


def of(stats: PoolStats) -> Values:
    """Return the metrics of one pool."""
    return {
        family.name: {(("pool", stats.name), *labels): value for labels, value in family.read(stats).items()}
        for family in FAMILIES
    }


def merged(parts: Iterable[Values]) -> Values:
    """Return the sum of several pools or processes: connections, limits and counters add up."""
    total: Values = {}
    for part in parts:
        for name, values in part.items():
            family = total.setdefault(name, {})
            for labels, value in values.items():
                old = family.get(labels)
                if old is None:
                    family[labels] = value
                elif isinstance(value, Histogram):
                    counts = tuple(a + b for a, b in zip(old.counts, value.counts, strict=True))
                    family[labels] = Histogram(value.bounds, counts, old.sum + value.sum)
                elif name.startswith("poolkit_longest_"):
                    family[labels] = max(old, value)
                else:
                    family[labels] = old + value
    return total


def require(name: str, value: object, kinds: tuple[type, ...], low: float, high: float | None, right: str) -> None:
    """Raise ConfigError unless ``value`` is a number of these kinds from ``low`` to ``high``."""
    if not is_number(value) or not isinstance(value, kinds) or not low <= value <= (math.inf if high is None else high):
        raise ConfigError(f"{name}={given(value)}: must be {right}", name)
