"""The record of all requests and faults, and the numbers computed from it."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

from poolkit.cli.demo.plan import Plan
from poolkit.errors import raw_text, shown

__all__ = ("Fault", "Record", "Round", "Sample", "Window", "label", "percentile")

_SERVERS = {"sqlalchemy": "PostgreSQL", "psycopg": "PostgreSQL", "redis": "Redis", "httpx": "HTTP", "httpcore": "HTTP"}

UNFINISHED = "no answer at the end"


@dataclass(frozen=True)
class Sample:
    """One request. Seconds from the round's start, or from a fault."""

    due: float
    end: float
    error: str | None
    """Name of the server and type of the error; None for a success."""

    @property
    def seconds(self) -> float:
        """How long the caller waited, from when the request was due: a late start counts as waiting."""
        return self.end - self.due


@dataclass
class Fault:
    """A fault, in seconds from the start of the round."""

    title: str
    begin: float


@dataclass(frozen=True)
class Window:
    """The requests that ended after one fault and before the next; their times run from the fault."""

    title: str
    samples: list[Sample]

    @property
    def errors(self) -> Counter[str]:
        """Number of failed requests by label."""
        return Counter(sample.error for sample in self.samples if sample.error)

    @property
    def slowest(self) -> float:
        """Seconds that the slowest request took."""
        return max((sample.seconds for sample in self.samples), default=0.0)

    @property
    def last_error(self) -> float | None:
        """Seconds from the fault to the last error; None without errors."""
        return max((sample.end for sample in self.samples if sample.error), default=None)


@dataclass
class Round:
    """One turn of one kind of pools. Written by the callers' threads (list.append only) while the display reads."""

    plan: Plan
    started: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)
    """The text of the first error of each kind."""

    def now(self) -> float:
        """Seconds since the round's start; 0.0 before it."""
        return time.monotonic() - self.started if self.started else 0.0

    def add(self, due: float, error: BaseException | None) -> None:
        """One request has ended now. Thread-safe."""
        kind = None if error is None else label(error)
        if kind is not None:
            self.examples.setdefault(kind, _first_line(error))
        self.samples.append(Sample(due, self.now(), kind))

    def add_unfinished(self, due: float) -> None:
        """One request got neither answer nor error until the end of the round."""
        self.samples.append(Sample(due, self.now(), UNFINISHED))

    def windows(self) -> list[Window]:
        """The requests by the last thing that had been broken when they ended."""
        marks = [Fault("before", 0.0), *self.faults]
        ends = [fault.begin for fault in self.faults] + [math.inf]
        return [
            Window(
                mark.title,
                [
                    Sample(sample.due - mark.begin, sample.end - mark.begin, sample.error)
                    for sample in list(self.samples)
                    if mark.begin <= sample.end < end
                ],
            )
            for mark, end in zip(marks, ends, strict=True)
        ]


@dataclass
class Record:
    """All rounds of one kind of pools in one mode."""

    mode: str
    pools: str
    plan: Plan
    rounds: list[Round] = field(default_factory=list)
    states: list[tuple[str, str]] = field(default_factory=list)
    """Name and state of the pools, from the last look."""
    opened: Counter[str] = field(default_factory=Counter)
    """Connections opened by name of the server, as the servers counted them."""

    @property
    def samples(self) -> list[Sample]:
        """The requests of all rounds."""
        return [sample for each in list(self.rounds) for sample in list(each.samples)]

    @property
    def errors(self) -> Counter[str]:
        """Number of failed requests by label."""
        return Counter(sample.error for sample in self.samples if sample.error)

    @property
    def examples(self) -> dict[str, str]:
        """The text of the first error of each kind."""
        return {kind: text for each in reversed(self.rounds) for kind, text in each.examples.copy().items()}

    @property
    def progress(self) -> float:
        """Share of the timetable that is over, 0 to 1."""
        over = sum(min(each.now(), self.plan.seconds) for each in list(self.rounds))
        return over / (self.plan.seconds * self.plan.rounds)

    def latency(self, share: float, last: int | None = None) -> float:
        """Seconds within which this share of the requests (of the ``last`` ones) ended, failed ones included."""
        return percentile([sample.seconds for sample in self.samples[-last if last else 0 :]], share)

    def windows(self) -> list[Window]:
        """The effects of each fault on the callers, over all rounds."""
        merged: dict[str, Window] = {}
        for window in (window for each in list(self.rounds) for window in each.windows()):
            merged.setdefault(window.title, Window(window.title, [])).samples.extend(window.samples)
        return list(merged.values())


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def label(error: BaseException) -> str:
    """The server an error is about and its type: ``Redis ConnectionError``."""
    for base in type(error).__mro__:
        server = _SERVERS.get(base.__module__.split(".")[0])
        if server:
            return f"{server} {type(error).__name__}"
    return type(error).__name__


def _first_line(error: BaseException | None) -> str:
    lines = raw_text(error).strip().splitlines()
    return shown(lines[0]) if lines else ""
