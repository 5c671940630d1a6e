"""A timeout of urllib3 that also limits the wait for a connection."""

from __future__ import annotations

import math
from typing import Any

import urllib3

from poolkit.config import seconds

__all__ = ("Timeout",)

_NOT_GIVEN: Any = urllib3.Timeout.DEFAULT_TIMEOUT


class Timeout(urllib3.Timeout):  # type: ignore[misc]
    """``urllib3.Timeout`` with ``pool``: the seconds that a request waits for a connection.

    Works wherever urllib3 or requests take a timeout. ``pool=None``: no limit. If ``pool`` is not given,
    ``acquire_timeout`` applies.
    The wait is not part of ``total``, ``connect`` or ``read``. Raises :class:`poolkit.ConfigError` for a wrong value.
    """

    def __init__(
        self, total: Any = None, connect: Any = _NOT_GIVEN, read: Any = _NOT_GIVEN, *, pool: Any = _NOT_GIVEN
    ) -> None:
        super().__init__(total=total, connect=connect, read=read)
        if pool is not _NOT_GIVEN:
            seconds("pool", pool, most=math.inf, none="no limit")
        self.pool = pool

    def clone(self) -> Timeout:
        """Return a copy whose clock has not started."""
        plain = super().clone()
        return Timeout(total=plain.total, connect=plain._connect, read=plain._read, pool=self.pool)

    def wait(self, default: Any) -> Any:
        """Return how many seconds a request waits for a connection (None: no limit)."""
        return default if self.pool is _NOT_GIVEN else self.pool
