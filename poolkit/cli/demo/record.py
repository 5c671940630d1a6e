"""What happened in one run: every request, every fault, and the numbers that follow from them."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

from poolkit.cli.demo.plan import Plan

__all__ = ("Fault", "Record", "Sample", "Window", "label", "percentile")

_SERVERS = {"sqlalchemy": "PostgreSQL", "psycopg": "PostgreSQL", "redis": "Redis", "httpx": "HTTP", "httpcore": "HTTP"}

UNFINISHED = "no answer at the end"


@dataclass(frozen=True)
class Sample:
    """One request. Seconds from the run's start."""

    due: float
    end: float
    error: str | None
    """Name of the server and type of the error, None when all went well."""

    @property
    def seconds(self) -> float:
        """How long the caller waited, from when the request was due: a late start counts as waiting."""
        return self.end - self.due


@dataclass
class Fault:
    """Something that was broken on purpose. Seconds from the run's start."""

    title: str
    begin: float
    end: float = 0.0


@dataclass(frozen=True)
class Window:
    """The requests that ended between one fault and the next."""

    fault: Fault
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
        return max((sample.end - self.fault.begin for sample in self.samples if sample.error), default=None)


@dataclass
class Record:
    """One run. Written by the callers' threads (list.append only), read by the display at the same time."""

    mode: str
    pools: str
    plan: Plan
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)
    """The text of the first error of each kind."""
    states: list[tuple[str, str]] = field(default_factory=list)
    """Name and state of the pools, from the last look."""
    opened: dict[str, int] = field(default_factory=dict)
    """Connections opened by name of the server, as the servers counted them."""
    started: float = 0.0

    def now(self) -> float:
        """Seconds since the run's start."""
        return time.monotonic() - self.started

    def add(self, due: float, error: BaseException | None) -> None:
        """One request has ended now. Thread-safe."""
        kind = None if error is None else label(error)
        if kind is not None:
            self.examples.setdefault(kind, _first_line(error))
        self.samples.append(Sample(due, self.now(), kind))

    def add_unfinished(self, due: float) -> None:
        """One request got neither answer nor error until the end of the run."""
        self.samples.append(Sample(due, self.now(), UNFINISHED))

    @property
    def errors(self) -> Counter[str]:
        """Number of failed requests by label."""
        return Counter(sample.error for sample in list(self.samples) if sample.error)

    def latency(self, share: float, last: int | None = None) -> float:
        """Seconds within which this share of the requests (of the ``last`` ones) ended, failed ones included."""
        samples = list(self.samples)[-last if last else 0 :]
        return percentile([sample.seconds for sample in samples], share)

    def windows(self) -> list[Window]:
        """What the callers noticed, by the last thing that had been broken when a request ended."""
        marks = [Fault("before", 0.0), *self.faults]
        ends = [fault.begin for fault in self.faults] + [math.inf]
        samples = list(self.samples)
        return [
            Window(mark, [sample for sample in samples if mark.begin <= sample.end < end])
            for mark, end in zip(marks, ends, strict=True)
        ]


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
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
