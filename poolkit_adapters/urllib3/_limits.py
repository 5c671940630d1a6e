"""How long a request may take to open its connection."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import urllib3

from poolkit import PoolConfig, deadline
from poolkit.settings import DEFAULT, layer_of

from .._time_limits import shortest
from ._link import Link

__all__ = ("limit_connect", "limited", "time_left")

_DEFAULT: Any = urllib3.Timeout.DEFAULT_TIMEOUT


def limit_connect(timeout: Any, config: PoolConfig) -> None:
    """Set the pool's connect timeout for a request that has none. ``timeout``: the request's own copy."""
    limit = config.connect_timeout
    if limit is not None and isinstance(timeout, urllib3.Timeout) and timeout.connect_timeout in (None, _DEFAULT):
        timeout._connect = limit


def time_left(link: Link, config: PoolConfig) -> float | None:
    """Return the seconds that ``acquire_timeout`` leaves for opening the connection, 0 or less if none.

    None: no limit. The default of ``acquire_timeout`` is none, because a request may have a longer connect timeout of
    its own. Nor does ``acquire_timeout`` apply to a request with a limit of its own for the wait.
    """
    most, source = layer_of(config).get("acquire_timeout", (None, DEFAULT))
    if most is None or link.asked is None or not source.written:
        return None
    return float(link.asked + most - time.monotonic())


@contextlib.contextmanager
def limited(conn: Any, link: Link | None, config: PoolConfig) -> Iterator[None]:
    """Let urllib3's ``conn`` open in the block, within ``acquire_timeout`` and the caller's ``poolkit.deadline``.

    What is sent on it afterwards has the request's own limit again. ``link``: None if it is not the pool's.
    """
    left = shortest(deadline.left(), None if link is None else time_left(link, config))
    if left is None:
        yield
        return
    own = urllib3.Timeout.resolve_default_timeout(conn.timeout)
    conn.timeout = shortest(own, max(left, 0.001))  # a socket with a timeout of 0 does not block
    yield
    conn.timeout = own
