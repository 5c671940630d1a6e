"""Histograms of times and sliding windows over running totals. Time is an argument.

A window is the difference of two samples of the same running totals, so no buckets have to be cleared as time passes,
and events between two samples cost nothing. Samples are taken when statistics are read (by a caller, a scrape, or
housekeeping); a window states how many seconds it really covers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass
from operator import attrgetter, sub
from typing import Any, NamedTuple, TypeVar

__all__ = ("BOUNDS", "WINDOWS", "Histogram", "Meter", "Meters", "Sample", "Samples", "WindowStats", "frozen")

F = TypeVar("F")

BOUNDS: tuple[float, ...] = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds: those of redis-py's connection metrics, so that both can be drawn on one page."""

WINDOWS: tuple[int, ...] = (10, 60, 300)
"""Lengths of the windows in seconds: now, a minute, and long enough for a trend."""

_PARTS = 10  # samples in a window


@dataclass(frozen=True)
class Histogram:
    """The number of times in each range. ``counts`` has one more element than ``bounds``: the times above the last
    bound.

    A time equal to a bound belongs to it (Prometheus' "le").
    """

    bounds: tuple[float, ...] = BOUNDS
    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    sum: float = 0.0

    @property
    def count(self) -> int:
        """The number of recorded times."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 if there are no times."""
        return self.sum / self.count if self.sum else 0.0

    def quantile(self, share: float) -> float:
        """The time in seconds that ``share`` (0 to 1) of the times do not exceed. An estimate, as Prometheus'
        ``histogram_quantile``: linear within a range, and the last bound above it. 0 if there are no times.
        """
        count = self.count
        if not count:
            return 0.0
        rank, seen = share * count, 0
        for index, number in enumerate(self.counts):
            if number and seen + number >= rank:
                if index == len(self.bounds):
                    break
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * max(0.0, rank - seen) / number
            seen += number
        return self.bounds[-1]

    def with_zeros(self, total: int) -> Histogram:
        """The same histogram, with times of 0 s added until it holds ``total`` times."""
        zeros = total - self.count
        if zeros <= 0:
            return self
        counts = self.counts[0] + zeros, *self.counts[1:]
        return frozen(Histogram, bounds=self.bounds, counts=counts, sum=self.sum)

    def since(self, earlier: Histogram) -> Histogram:
        """The times added since ``earlier``, an older state of the same histogram."""
        if self is earlier or self.counts == earlier.counts:
            return _EMPTY
        counts = tuple(map(max, map(sub, self.counts, earlier.counts), _EMPTY.counts))
        return frozen(Histogram, bounds=self.bounds, counts=counts, sum=max(0.0, self.sum - earlier.sum))


_EMPTY = Histogram()


class Meter:
    """A histogram that grows."""

    __slots__ = ("_counts", "_state", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0
        self._state: Histogram | None = _EMPTY  # the current histogram; None: created on request

    def record(self, seconds: float) -> None:
        """Record a time. A negative one, from a clock that was set back, counts as 0."""
        self.record_all(deque((seconds,)))

    def record_all(self, times: deque[float]) -> None:
        """Remove each time from ``times`` and record it. Other threads may append meanwhile."""
        if not times:
            return
        counts, take = self._counts, times.popleft
        self._state = None
        while times:
            seconds = take()
            if seconds > 0:
                counts[bisect_left(BOUNDS, seconds)] += 1
                self._sum += seconds
            else:
                counts[0] += 1

    def state(self) -> Histogram:
        """The histogram as it is now: the same object until a time is recorded."""
        state = self._state
        if state is None:
            state = self._state = Histogram(BOUNDS, tuple(self._counts), self._sum)
        return state


class Sample(NamedTuple):
    """The running totals of a pool at one moment. ``wait`` leaves out acquires that did not wait."""

    at: float
    acquires: int = 0
    waits: int = 0
    timeouts: int = 0
    connects: int = 0
    connect_errors: int = 0
    leaks: int = 0
    busy: float = 0.0
    wait: Histogram = Histogram()
    connect: Histogram = Histogram()
    use: Histogram = Histogram()


def frozen(kind: type[F], **values: Any) -> F:
    """``kind(**values)`` for a frozen dataclass, in a third of the time. ``values`` must have every field.

    The generated ``__init__`` sets each field with ``object.__setattr__``, which is most of the cost of a snapshot.
    """
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made


@dataclass(frozen=True)
class WindowStats:
    """The events of the last ``seconds``: as many as requested, or as many as the samples cover.

    ``wait``: of every acquire that was served; ``use`` only with ``use_histogram=True``, else empty.
    ``busy_seconds``: time on lease of all connections together.
    """

    seconds: float
    acquires: int
    waits: int
    timeouts: int
    connects: int
    connect_errors: int
    leaks: int
    busy_seconds: float
    wait: Histogram
    connect: Histogram
    use: Histogram

    @property
    def acquires_per_second(self) -> float:
        """Leases that began in each second, on average."""
        return self.acquires / self.seconds if self.seconds > 0 else 0.0

    @property
    def connects_per_second(self) -> float:
        """Connections opened in each second, on average."""
        return self.connects / self.seconds if self.seconds > 0 else 0.0

    @property
    def mean_in_use(self) -> float:
        """Connections on lease, on average."""
        return self.busy_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def mean_use(self) -> float:
        """Mean seconds of a lease: time on lease divided by leases begun. Exact while both change slowly."""
        return self.busy_seconds / self.acquires if self.acquires else 0.0

    @property
    def connect_failure_rate(self) -> float:
        """Share of the connects that failed, 0 to 1."""
        return self.connect_errors / (self.connects + self.connect_errors or 1)


_AT = attrgetter("at")


class Samples:
    """The past samples that the windows need: about ten for each window, however often statistics are read.

    Needs no lock: appending to a deque and copying it are atomic, and a sample too many does no harm.
    """

    __slots__ = ("_rings",)

    def __init__(self, first: Sample) -> None:
        self._rings = {window: deque([first], maxlen=_PARTS + 2) for window in WINDOWS}

    def due(self, now: float) -> bool:
        """Whether the shortest window needs another sample."""
        return now - self._rings[WINDOWS[0]][-1].at >= WINDOWS[0] / _PARTS

    def add(self, sample: Sample) -> None:
        """Add a sample to each window whose last sample is old enough."""
        for window, ring in self._rings.items():
            if sample.at - ring[-1].at >= window / _PARTS:
                ring.append(sample)

    def windows(self, now: Sample) -> dict[int, WindowStats]:
        """Each window up to ``now``."""
        found: dict[int, WindowStats] = {}
        last: tuple[Sample, WindowStats] | None = None
        for window in self._rings:
            start = self.start(window, now.at)
            if last is None or last[0] is not start:  # a young pool's windows are all the same
                last = start, _between(start, now)
            found[window] = last[1]
        return found

    def window(self, window: int, now: Sample) -> WindowStats:
        """One of the windows up to ``now``."""
        return _between(self.start(window, now.at), now)

    def start(self, window: int, now: float) -> Sample:
        """The first sample of the window: the youngest one that is old enough, else the oldest."""
        ring = self._rings[window]  # no walk: it never gets shorter, and a sample that another thread adds does no harm
        return ring[max(0, bisect_right(ring, now - window, key=_AT) - 1)]


def _between(start: Sample, end: Sample) -> WindowStats:
    acquires = max(0, end.acquires - start.acquires)
    return frozen(
        WindowStats,
        seconds=max(0.0, end.at - start.at),
        acquires=acquires,
        waits=end.waits - start.waits,
        timeouts=end.timeouts - start.timeouts,
        connects=end.connects - start.connects,
        connect_errors=end.connect_errors - start.connect_errors,
        leaks=end.leaks - start.leaks,
        busy_seconds=max(0.0, end.busy - start.busy),
        wait=end.wait.since(start.wait).with_zeros(acquires) if acquires else _EMPTY,
        connect=end.connect.since(start.connect),
        use=end.use.since(start.use),
    )


class Meters:
    """The measurements of one pool: three histograms and the samples of the past."""

    __slots__ = ("connect", "samples", "use", "wait")

    def __init__(self) -> None:
        self.wait = Meter()
        self.connect = Meter()
        self.use = Meter()
        self.begin(0.0)

    def begin(self, now: float) -> None:
        """Start the windows now."""
        self.samples = Samples(Sample(now))
