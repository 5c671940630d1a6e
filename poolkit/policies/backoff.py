"""When to connect again after failed connects."""

from __future__ import annotations

from collections.abc import Callable

from ..config import BackoffConfig

__all__ = ("full_jitter",)


def full_jitter(config: BackoffConfig, failures: int, random: Callable[[], float]) -> float:
    """Seconds to wait after ``failures`` failed connects in a row (1 or more).

    "Full jitter" (M. Brooker, AWS Architecture Blog, 2015): uniform between 0 and the exponential bound, so
    that the processes that lost a server together do not come back to it together.
    """
    # 2**60 is beyond any cap; the bound keeps the power from overflowing after days of failures
    bound = min(config.cap, config.base * 2.0 ** min(failures - 1, 60))
    return bound * random()
