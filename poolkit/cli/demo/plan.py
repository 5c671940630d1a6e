"""The plan of a round: number of callers, rate, duration, and the times of the faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

__all__ = ("FULL", "QUICK", "MODES", "POOLS", "ROWS", "TITLES", "Plan")

ROWS = 500
"""Products in the shop's table."""

MODES = ("sync", "async")
POOLS = ("own", "poolkit")
TITLES = {"own": "drivers' own", "poolkit": "poolkit"}


@dataclass(frozen=True)
class Plan:
    """The load, the same in every round: the schedule of each caller is fixed before it starts."""

    seconds: float
    """Length of the timetable of one round."""
    callers: int
    """Threads or tasks at work at the same time: more than there are connections, so that some wait."""
    pause: float
    """Seconds between two requests of one caller, on average."""
    rounds: int = 1
    """The number of rounds of each kind of pools in each mode."""
    pool_size: int = 5
    """Connections that each of the three pools may open."""
    query_seconds: float = 0.02
    """Seconds that PostgreSQL works on a request, so that connections are held and callers wait."""
    service_ms: int = 8
    """Milliseconds that the HTTP service takes to answer."""
    down: float = 0.3
    """Seconds that Redis is down."""
    timeout: float = 5.0
    """Seconds that a caller waits for a connection, or for an answer."""
    scenes: bool = True
    """Whether the scenes are played after the rounds."""
    grace: float = 2.0
    """Seconds after the timetable's end in which late requests may still end."""

    @property
    def kill_at(self) -> float:
        """Seconds from the start at which all PostgreSQL backends are killed."""
        return 0.4 * self.seconds

    @property
    def restart_at(self) -> float:
        """Seconds from the start at which Redis is restarted."""
        return 0.65 * self.seconds

    def turns(self) -> list[tuple[str, str]]:
        """Mode and pools of each round. The order alternates, so that neither gets the quieter machine."""
        found = []
        for number, mode in enumerate(MODES):
            for turn in range(self.rounds):
                found += [(mode, pools) for pools in POOLS[:: -1 if (number + turn) % 2 else 1]]
        return found

    def due_times(self, caller: int) -> Iterator[float]:
        """Seconds from the start at which this caller's requests are due, the same in every run."""
        chance = Random(caller)
        due = chance.uniform(0, self.pause)
        while due < self.seconds:
            yield due
            due += self.pause * chance.uniform(0.5, 1.5)


FULL = Plan(seconds=3.5, callers=24, pause=0.18, rounds=2)
QUICK = Plan(seconds=1.8, callers=16, pause=0.12, down=0.15, grace=1.0, scenes=False)
