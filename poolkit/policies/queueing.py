"""How many connections a load needs, and how long its callers wait. Pure arithmetic.

*Little's law* (J. D. C. Little, "A Proof for the Queuing Formula L = lambda W", Operations Research 9(3), 1961): on
average ``rate * hold`` connections are in use, whatever the distributions.

*Waiting* follows the M/M/c queue: callers arrive independently (Poisson), leases have exponential lengths, and ``size``
connections serve one queue in order of arrival. The probability of having to wait is Erlang's C formula (A. K. Erlang,
1917; formulas as in L. Kleinrock, "Queueing Systems", vol. 1, 1975, section 3.4). With leases of constant length
callers wait about half as long (C. D. Crommelin, 1932), with bursts and long tails longer. So the result is an estimate
to within a factor of about two. It assumes that leases do not get longer when more of them run at once. A busy server
breaks that assumption.
"""

from __future__ import annotations

import math

__all__ = ("HEADROOM", "IDLE_SHARE", "erlang_c", "load", "mean_wait", "size_for_wait", "sized", "wait_quantile")

HEADROOM = 1.2
"""Factor on the average load: leaves a fifth for uneven load."""
IDLE_SHARE = 0.3
"""Share of the size to keep open while unused: about what becomes idle in a pause of a few seconds."""


def load(rate: float, hold: float) -> float:
    """Connections in use on average: Little's law. ``rate`` per second, ``hold`` in seconds."""
    return rate * hold


def sized(rate: float, hold: float, headroom: float = HEADROOM) -> int:
    """The size for an average load with ``headroom``, at least 1."""
    return max(1, math.ceil(load(rate, hold) * headroom - 1e-9))


def erlang_c(size: int, offered: float) -> float:
    """The probability that a caller has to wait, with ``offered`` connections in use on average; 1 for an overload."""
    if offered >= size:
        return 1.0
    blocked = 1.0  # Erlang's B formula by recursion over the size, which does not overflow
    for count in range(1, size + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / size * (1 - blocked))


def mean_wait(size: int, rate: float, hold: float) -> float:
    """Seconds that a caller waits on average; infinite for an overload."""
    offered = load(rate, hold)
    if not offered:
        return 0.0
    return erlang_c(size, offered) * hold / (size - offered) if offered < size else math.inf


def wait_quantile(share: float, size: int, rate: float, hold: float) -> float:
    """The wait in seconds that ``share`` (0 to 1) of all callers do not exceed; infinite for an overload."""
    offered = load(rate, hold)
    if offered >= size:
        return math.inf
    waits = erlang_c(size, offered)
    if waits <= 1 - share:
        return 0.0
    return hold / (size - offered) * math.log(waits / (1 - share))


def size_for_wait(wait: float, share: float, rate: float, hold: float) -> int:
    """The smallest size with which ``share`` of all callers wait at most ``wait`` seconds."""
    size = max(1, math.floor(load(rate, hold)) + 1)
    while wait_quantile(share, size, rate, hold) > wait:
        size += 1
    return size
