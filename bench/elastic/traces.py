"""Traces of load: when callers arrive, and for how long each needs a connection."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded.csv")

Caller = tuple[float, float]
"""The time of arrival and for how long the connection is held, in seconds."""


@dataclass(frozen=True)
class Trace:
    """A load. ``outages``: (start, end) in which the server is down; ``sessions``: how many it admits at once."""

    name: str
    text: str
    seconds: float
    make: Callable[[], Iterator[Caller]]
    outages: tuple[tuple[float, float], ...] = ()
    sessions: Callable[[float], float] = lambda now: math.inf

    @property
    def callers(self) -> Iterator[Caller]:
        """The callers of the trace, the same in each run."""
        return self.make()


def poisson(seconds: float, rate: Callable[[float], float], hold: float, seed: int = 7) -> Iterator[Caller]:
    """Independent callers, ``rate(now)`` per second, with leases of exponential length."""
    chance = random.Random(seed)
    now = 0.0
    while True:
        now += chance.expovariate(rate(now))
        if now >= seconds:
            return
        yield now, chance.expovariate(1 / hold)


def _step(now: float) -> float:
    return 400 if 100 <= now < 200 else 40


def _spikes(now: float) -> float:
    return 400 if now % 300 >= 290 else 20


_DAY = 6 * 3600


def _wave(now: float) -> float:
    return 10.5 - 9.5 * math.cos(2 * math.pi * now / _DAY)


def _steady(now: float) -> float:
    return 300


def _modest(now: float) -> float:
    return 160


def _scarce(now: float) -> float:
    return 12 if now < 120 else 60


def recorded() -> Iterator[Caller]:
    """The trace of a real service (see record.py)."""
    with RECORDED.open(newline="") as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        for milliseconds, microseconds in rows:
            yield int(milliseconds) / 1e3, int(microseconds) / 1e6


TRACES = (
    Trace("step", "2 connections are in use on average, 20 from 100 s to 200 s, 2 again", 600,
          lambda: poisson(600, _step, 0.05)),
    Trace("spike", "1 in use, 20 for the last 10 s of each 5 minutes", 1200, lambda: poisson(1200, _spikes, 0.05)),
    Trace("wave", "a day in six hours: 1 in use at night, 20 at noon", _DAY, lambda: poisson(_DAY, _wave, 1.0)),
    Trace("outage", "15 in use; the server is gone from 60 s to 90 s", 180, lambda: poisson(180, _steady, 0.05),
          outages=((60, 90),)),
    Trace("overload", "8 in use; the server admits 12 sessions for 2 minutes, then as many as are wanted", 240,
          lambda: poisson(240, _modest, 0.05), sessions=_scarce),
    Trace("recorded", "a real service: 5 users, 40 from 60 s to 80 s, 12 until 180 s, a job at 150 s", 240, recorded),
)  # fmt: skip
