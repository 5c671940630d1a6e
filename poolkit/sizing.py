"""Recommend a size for a pool, from given numbers or from the statistics of a pool."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ._numbers import bad, is_number, whole
from .errors import ConfigError
from .policies import queueing
from .policies.diagnose import OFTEN
from .stats import PoolStats

__all__ = ("Advice", "SizeEstimate", "advise", "estimate")

_SHARE = 0.99
_MOST = 10_000  # connections; a larger result means that the units were confused


@dataclass(frozen=True)
class SizeEstimate:
    """The result of :func:`estimate` for one process. Times are in seconds.

    ``load``: connections in use on average. ``size``: the recommended ``max_size``; ``min_size``: the recommended
    ``min_size``. ``wait``: pairs of size and mean wait around the recommendation. ``warnings``: problems found.
    """

    rate: float
    hold: float
    processes: int
    server_max: int | None
    load: float
    size: int
    min_size: int
    waiting: float
    mean_wait: float
    wait_99: float
    wait: tuple[tuple[int, float], ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        every = f" in each of {self.processes} processes" if self.processes > 1 else ""
        size = f"max_size={self.size}, min_size={self.min_size}{every}"
        there, over_all = (" there", " over all processes") if every else ("", "")
        use = (
            f"On average {self.load:.1f} connections are in use{there} "
            f"({self.rate:g} leases/s of {_time(self.hold)} each{over_all}: Little's law)."
        )
        wait = (
            f"With {self.size}, {self.waiting:.1%} of the callers wait; the mean is {_time(self.mean_wait)}, and 99 % "
            f"wait at most {_time(self.wait_99)} (M/M/c: independent callers, exponential leases)."
        )
        return "\n".join([size, use, wait, *(f"Warning: {text}" for text in self.warnings)])


def estimate(
    rate: float,
    hold: float,
    *,
    processes: int = 1,
    server_max: int | None = None,
    headroom: float = queueing.HEADROOM,
    max_wait: float | None = None,
) -> SizeEstimate:
    """Estimate the size of a pool for ``rate`` leases per second of ``hold`` seconds each, over all ``processes``.

    ``headroom``: factor on the average load. With the resulting size, 99 % of the callers wait no longer than
    ``max_wait`` seconds (default: the duration of a lease). ``server_max``: connections that the server allows in
    total. :mod:`poolkit.policies.queueing` describes the model and its assumptions. Raises ConfigError for invalid
    arguments.
    """
    _positive("rate", rate)
    _positive("hold", hold)
    _positive("headroom", headroom)
    whole("processes", processes, 1)
    if server_max is not None:
        whole("server_max", server_max, 1)
    if max_wait is not None:
        _positive("max_wait", max_wait)
    own = rate / processes
    if own * hold * headroom > _MOST:
        raise ConfigError(
            f"rate={rate:g} x hold={hold:g} s: {own * hold:g} connections in use in one process; "
            "check the units (rate per second, hold in seconds)",
            "rate",
        )
    bearable = hold if max_wait is None else max_wait
    size = max(queueing.sized(own, hold, headroom), queueing.size_for_wait(bearable, _SHARE, own, hold))
    offered = queueing.load(own, hold)
    warnings = []
    if server_max is not None and processes * size > server_max:
        fits = server_max // processes
        text = f"{processes} x {size} = {processes * size} connections exceed the server's limit of {server_max}"
        if fits > offered:
            text += (
                f"; with max_size={fits} they fit, and callers wait {_time(queueing.mean_wait(fits, own, hold))} on "
                "average"
            )
        elif not fits:
            text += (
                "; not even one connection for each process fits: use fewer processes, or put a proxy (PgBouncer) in "
                "front"
            )
        else:
            text += (
                f"; max_size={fits} would fit, but is not enough for the load: use fewer processes, hold connections "
                "for a shorter time, or put a proxy (PgBouncer) in front"
            )
        warnings.append(text)
    elif server_max is not None and processes * size > 0.9 * server_max:
        warnings.append(
            f"{processes} x {size} = {processes * size} of the server's {server_max} connections leave little room for "
            "administration and for deployments, when old and new processes run at the same time"
        )
    first = max(1, math.floor(offered) + 1)
    around = range(first, max(first + 10, min(2 * size, size + 40)) + 1)
    return SizeEstimate(
        rate=rate,
        hold=hold,
        processes=processes,
        server_max=server_max,
        load=offered,
        size=size,
        min_size=min(size, math.ceil(size * queueing.IDLE_SHARE)),
        waiting=queueing.erlang_c(size, offered),
        mean_wait=queueing.mean_wait(size, own, hold),
        wait_99=queueing.wait_quantile(_SHARE, size, own, hold),
        wait=tuple((number, queueing.mean_wait(number, own, hold)) for number in around),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class Advice:
    """The result of :meth:`poolkit.Pool.advice`: the current size, the estimate from the statistics, and the text.

    ``estimate`` is None if there were too few leases. ``seconds``: the period of the statistics.
    """

    max_size: int | None
    seconds: float
    estimate: SizeEstimate | None
    text: str

    def __str__(self) -> str:
        return self.text


def advise(stats: PoolStats) -> Advice:
    """Advice about the size of a pool from the busiest of its windows."""
    seen = [window for window in stats.windows.values() if window.acquires >= OFTEN and window.mean_use > 0]
    if not seen:
        return Advice(stats.max_size, 0.0, None, f"{stats.name}: too few leases for advice")
    busiest = max(seen, key=lambda window: window.mean_in_use)
    found = estimate(max(busiest.acquires_per_second, 1e-9), busiest.mean_use)
    span = f"in {busiest.seconds:.0f} s: {busiest.acquires_per_second:.1f} leases/s of {_time(busiest.mean_use)}, "
    span += f"{busiest.mean_in_use:.1f} in use on average, {busiest.timeouts} timed out"
    now = stats.max_size
    if now is None:
        words = f"there is no limit; max_size={found.size} would be enough"
    elif busiest.timeouts or busiest.mean_in_use > 0.8 * now or found.size > now:
        if found.size > now:
            words = f"max_size={now} is too small for this load: {found.size} would be enough, if the server allows it"
        else:
            words = (
                f"max_size={now} should be enough, but callers wait: some leases are longer, or the load comes in "
                "bursts; see windows[10] and diagnose()"
            )
    elif found.size * 2 <= now:
        words = f"max_size={now} is more than enough: {found.size} would suffice (unused capacity costs nothing)"
    else:
        words = f"max_size={now} fits"
    return Advice(now, busiest.seconds, found, f"{stats.name}: {words} ({span})")


def _time(seconds: float) -> str:
    if math.isinf(seconds):
        return "ever longer"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.2f} ms" if seconds >= 1e-5 or not seconds else f"{seconds * 1e6:.0f} us"


def _positive(name: str, value: Any) -> None:
    if not is_number(value) or not 0 < value < math.inf:
        raise bad(name, value, "a number above 0")
