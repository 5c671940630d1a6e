"""When a queue is overloaded, and which callers are too old to be served then. Pure arithmetic, each step O(1).

A queue in order of arrival serves the caller that has waited longest. Under a lasting overload that caller is about to
give up. If it gives up in the middle of its lease, the pool and the server have worked for nothing. A queue is
*overloaded* if two conditions hold. Callers had to wait without a break for a while (the criterion of CoDel: K. Nichols
and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012; RFC 8289). And more than a given share of its recent
callers has given up. Then the newest callers come first (adaptive LIFO: B. Maurer, "Fail at Scale", ACM Queue 13(8),
2015).

The second condition is not in these sources. Without it, patient callers in a standing queue would starve: of 60
clients that never give up, 53 would never be served.

Strictly newest first would also pass over callers that still have time. So the pool serves the oldest *young* caller. A
caller is young while it has time left for a lease before callers usually begin to give up (the 5 % quantile).
"""

from __future__ import annotations

import math

__all__ = ("PATIENT_TURN", "Evidence", "Trial")

MEMORY = 300.0
"""Number of callers: the weight of a give-up falls to 1/e while this many others leave the queue."""
CHANCE = 3.0
"""Standard deviations above the share. Three give-ups of ten callers may be chance; fifteen of a hundred are not."""
AT_HEAD = 2.0
"""Weight of a give-up that happens less than one lease before the caller's turn. The pool cannot see a give-up in the
lease that follows, unless an adapter reports it. As many callers give up then as in the time before."""
LAST = 3.0
"""This number divided by the share: callers in a row without a give-up that end an overload."""
STANDING = 5.0
"""Minimum length of a standing queue, in mean leases: the queue behind one long batch of leases is shorter."""
FORGET = 10.0
"""Intervals without a give-up after which the earlier evidence is dropped when the queue stands again."""
QUANTILE, PACE = 0.05, 0.05
"""The quantile of the ages at which callers give up, and the share by which one age moves its estimate (stochastic
approximation: H. Robbins and S. Monro, 1951)."""
LEASES = 1.3
"""Time that a caller must have left when it is served, in mean leases: some leases are longer than the mean."""
CUT, BETTER = 0.1, 1.05
"""If more than the share CUT of the young callers give up in their lease, their leases are too long in any order. Then
the pool measures whether older callers are the better choice: they must complete BETTER times as many leases a
second."""
PERIOD, TRIAL, CHECK = 6.0, 4, 8
"""PERIOD: mean leases for which one choice is kept. TRIAL: periods in which both choices alternate at first. CHECK:
from then on, one of so many periods goes to the other choice."""
PATIENT = 1.2
"""Factor on the longest recent age of a give-up: a caller that has waited longer counts as patient."""
PATIENT_TURN = 4
"""One of so many leases goes to the oldest caller, if it is patient. So a patient caller moves up at least one place
with every fourth lease. Serving the oldest caller of any age would serve callers about to leave, and complete 7 % fewer
leases."""


class Trial:
    """Measures in turns which choice serves more callers a second: 0, only the young, or 1, older ones too."""

    __slots__ = ("_answers", "_cut", "_periods", "_seconds", "_until", "choice")

    def __init__(self) -> None:
        self.choice = 0
        self._answers = [0.0, 0.0]
        self._cut = [0.0, 0.0]
        self._seconds = [0.0, 0.0]
        self._periods = 0
        self._until = -math.inf

    def note(self, served: int, cut: int, seconds: float) -> None:
        """Record how many callers were served in this time, and how many gave up in their lease."""
        choice, keep = self.choice, math.exp(-served / MEMORY)
        self._answers[choice] = self._answers[choice] * keep + served - cut
        self._cut[choice] = self._cut[choice] * keep + cut
        self._seconds[choice] = self._seconds[choice] * keep + seconds

    def _rate(self, choice: int) -> float:
        return self._answers[choice] / self._seconds[choice] if self._seconds[choice] else 0.0

    def choose(self, now: float, hold: float) -> None:
        """Make the next choice, when it is time for one."""
        if now < self._until:
            return
        self._until = now + PERIOD * hold
        if self._cut[0] <= CUT * (self._answers[0] + self._cut[0]):
            self.choice = 0  # young callers have time for their leases: keep the choice
            return
        self._periods += 1
        best = int(self._rate(1) > BETTER * self._rate(0))
        other = self._periods % CHECK == 0
        self.choice = self._periods % 2 if self._periods <= TRIAL else 1 - best if other else best


class Evidence:
    """The evidence about give-ups in one queue. All times are in seconds of one clock.

    ``ended``: callers that have left the queue, served or not. ``lost``: those of them that gave up, while waiting or
    in the middle of their lease. Both counts fade. ``low`` and ``top``: the ages at which the first and the last
    callers give up.
    """

    __slots__ = (
        "_at", "_cut", "_gone", "_left", "_left_at_last", "_unserved", "ended", "last", "lost", "low", "seconds",
        "stood_at", "top", "trial",
    )  # fmt: skip

    def __init__(self, left: int, now: float) -> None:
        self._restart(left, now)

    def _restart(self, left: int, now: float) -> None:
        self._at = self.last = self.stood_at = now
        self._left = self._left_at_last = left
        self.ended = self.lost = self._unserved = self.seconds = 0.0
        self.low = self.top = 0.0
        self._cut = self._gone = 0  # since the last look: callers that gave up in their lease, and while they waited
        self.trial: Trial | None = None  # while the queue is overloaded

    def note(self, left: int, queued_at: float, now: float) -> None:
        """Bring the counts up to date. ``left``: callers that have left the queue since it was made; ``queued_at``:
        since when it has not been empty.
        """
        gone = max(0, left - self._left)
        keep = math.exp(-gone / MEMORY)
        self.ended = self.ended * keep + gone
        self.lost *= keep
        self._unserved *= keep
        spent = max(0.0, now - max(self._at, queued_at))
        self.seconds = self.seconds * keep + spent
        if self.trial is not None:
            self.trial.note(max(0, gone - self._gone), self._cut, spent)
        self._left, self._at = left, now
        self._cut = self._gone = 0

    def gave_up(
        self, age: float | None, left: int, queued_at: float, now: float, interval: float, *, at_head: bool = False
    ) -> None:
        """Record that a caller gave up ``age`` seconds after it asked (None: in the middle of its lease). ``at_head``:
        its turn would have come within one lease.
        """
        gap = queued_at - self.last
        if gap > FORGET * interval:
            self._restart(left - 1, queued_at)
        elif gap > interval:
            self.stood_at = queued_at  # a shorter break is part of the overload: many gave up at once
        if age is None:
            self._cut += 1
        else:
            self._gone += 1
        self.note(left, queued_at, now)
        self.lost += AT_HEAD if at_head else 1.0
        self.last, self._left_at_last = now, left
        if age is None:
            return
        self._unserved += 1
        self.top = max(age, 0.999 * self.top)
        if age < self.low:
            self.low *= 1 - PACE * (1 - QUANTILE)
        elif self.low:
            self.low *= 1 + PACE * QUANTILE
        else:
            self.low = age

    def hold(self, servers: int) -> float:
        """Mean seconds of a lease, where ``servers`` leases run at once; infinite where none do."""
        served = self.ended - self._unserved
        return servers * self.seconds / served if served > 0 and servers else math.inf

    def begins(self, now: float, servers: int, *, interval: float, share: float) -> bool:
        """Whether an overload begins: the queue stands, and more than ``share`` of its callers gave up."""
        expected = share * self.ended
        return (
            self.lost > expected + CHANCE * math.sqrt(expected + AT_HEAD**2)
            and now - self.stood_at > max(interval, STANDING * self.hold(servers))
        )  # fmt: skip

    def ends(self, now: float, queued_at: float, servers: int, *, interval: float, share: float) -> bool:
        """Whether the overload is over: few callers give up, none of the last ones has, or none has since the queue was
        empty. ``queued_at``: infinite while the queue is empty.
        """
        if self.lost < 0.5 * share * self.ended or self._left - self._left_at_last > LAST / share:
            return True
        hold = self.hold(servers)
        quiet = max(interval, STANDING * hold) if hold < math.inf else interval
        return queued_at > self.last and now - self.last > quiet

    def young(self, servers: int) -> float:
        """Maximum wait in seconds after which a caller still has time for a lease; 0: only the newest has."""
        if self.trial is not None and self.trial.choice:
            return self.low
        return max(0.0, self.low - LEASES * self.hold(servers))

    @property
    def patient(self) -> float:
        """Seconds after which a waiting caller counts as patient."""
        return PATIENT * self.top
