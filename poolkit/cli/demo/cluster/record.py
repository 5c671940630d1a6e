"""Requests served by each node, per second and between two events, and the cost of a kill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from poolkit.cluster import ClusterStats

__all__ = ("Book", "Cell", "Kill", "Phase", "Row", "in_flight")


@dataclass(frozen=True)
class Cell:
    """One node in one second."""

    served: int
    """Requests that ended."""
    leases: int
    """Requests in flight at its end."""
    state: str


@dataclass(frozen=True)
class Row:
    """All nodes in one second."""

    at: float
    """Seconds since the load began."""
    cells: dict[str, Cell]
    errors: int
    """Callers who got one in this second."""


@dataclass(frozen=True)
class Phase:
    """The time between two events."""

    title: str
    served: dict[str, int]
    errors: int

    @property
    def shares(self) -> dict[str, float]:
        """The part of the requests that each node served, 0 to 1."""
        whole = sum(self.served.values())
        return {name: number / whole if whole else 0.0 for name, number in self.served.items()}


@dataclass(frozen=True)
class Kill:
    """The cost of losing a node."""

    node: str
    in_flight: int
    """Requests in flight on it when it was killed."""
    lost: int
    """Requests that failed from then until the next event."""

    @property
    def kept(self) -> bool:
        """Whether only requests in flight on it were lost."""
        return self.lost <= self.in_flight


def in_flight(before: ClusterStats, after: ClusterStats, node: str) -> int:
    """Leases of a node that touched the time between two snapshots: those that ended in it and those that go on."""
    first = next(one for one in before.nodes if one.name == node)
    last = next(one for one in after.nodes if one.name == node)
    return last.leases + last.served - first.served


def _served(stats: ClusterStats) -> dict[str, int]:
    return {node.name: node.served for node in stats.nodes}


def _since(now: Mapping[str, int], then: Mapping[str, int]) -> dict[str, int]:
    return {name: number - then.get(name, 0) for name, number in now.items()}


@dataclass
class Book:
    """Everything about one cluster. Callers only append; one thread each makes phases and rows."""

    errors: list[str] = field(default_factory=list)
    """What the callers got, in order."""
    rows: list[Row] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    kill: Kill | None = None
    _row: tuple[dict[str, int], int] = field(default_factory=lambda: ({}, 0))
    _phase: tuple[str, dict[str, int], int] | None = None

    def second(self, at: float, stats: ClusterStats) -> Row:
        """Add a row for one more second."""
        served, errors = _served(stats), len(self.errors)
        then, errors_then = self._row
        self._row = served, errors
        since = _since(served, then)
        cells = {node.name: Cell(since[node.name], node.leases, node.state) for node in stats.nodes}
        row = Row(at, cells, errors - errors_then)
        self.rows.append(row)
        return row

    def phase(self, title: str | None, stats: ClusterStats) -> Phase | None:
        """Something happens: the phase so far ends and is returned, the next one begins (None: it was the last)."""
        served, errors = _served(stats), len(self.errors)
        ended = None
        if self._phase is not None:
            name, then, errors_then = self._phase
            ended = Phase(name, _since(served, then), errors - errors_then)
            self.phases.append(ended)
        self._phase = None if title is None else (title, served, errors)
        return ended

    def kinds(self) -> Counter[str]:
        """The number of errors by message."""
        return Counter(self.errors)
