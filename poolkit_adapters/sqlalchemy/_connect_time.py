"""The time limit of a connect: passed to the driver if possible, and enforced where the driver does not do so."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import event

from poolkit import PoolConfig

from .._handshake import Restore, limit_answers
from .._hang_up import Connecting
from .._libpq import attempts_of, share
from .._time_limits import seconds_of, whole_connect

__all__ = ("Attempt", "limit_connects", "no_time_limit")

_ARGUMENTS: dict[str, tuple[str, Callable[[float], float]]] = {
    # libpq and MySQL Connector use whole seconds
    "psycopg": ("connect_timeout", math.ceil),
    "psycopg_async": ("connect_timeout", math.ceil),
    "psycopg2": ("connect_timeout", math.ceil),
    "asyncpg": ("timeout", float),
    "pg8000": ("timeout", float),
    "pymysql": ("connect_timeout", float),
    "aiomysql": ("connect_timeout", float),
    "asyncmy": ("connect_timeout", float),
    "mysqldb": ("connect_timeout", math.ceil),
    "mysqlconnector": ("connection_timeout", math.ceil),
}
"""Known connect timeout arguments of drivers, and a function that converts seconds to their unit."""
_LIBPQ = ("psycopg", "psycopg_async", "psycopg2")
"""Drivers that have the time for each address of a connect."""


class Attempt:
    """One connect: its time limit and its start."""

    def __init__(self, config: PoolConfig, most: float | None = None) -> None:
        self.most = most
        """Seconds that the caller has left, if it connects itself (None: no limit)."""
        self.seconds = self._bounded(whole_connect(config))
        """Limit of the whole connect in seconds, including "connect" events (None: no limit)."""
        self._begun = time.monotonic()
        self._most_for_events: float | None = None
        self._restore: Restore | None = None
        self.connecting: Connecting | None = None
        """The driver's part of it, in threads."""

    def _bounded(self, limit: float | None) -> float | None:
        return self.most if limit is None or (self.most is not None and self.most < limit) else limit

    def left(self) -> float | None:
        """Return the remaining seconds, at least 0 (None: no limit)."""
        return None if self.seconds is None else max(0.0, self._begun + self.seconds - time.monotonic())

    def begin(self, driver: str, keywords: dict[str, Any], own: float | None, whole: float | None = None) -> None:
        """Prepare ``keywords`` for the driver's connect. ``own``: the limit in them, in seconds, if any. ``whole``: the
        seconds for all addresses of the host, if it has several.
        """
        if own is not None:
            self.seconds = self._bounded(own)
        self._most_for_events = self.seconds
        if whole is not None:
            self.seconds = self._bounded(whole)
        if self.seconds is not None:
            self._restore = limit_answers(driver, keywords, self.seconds)

    def opened(self, connection: Any) -> None:
        """Restore the limits of ``connection``, which the driver has just opened. "connect" events follow, which do not
        get the time of addresses that were not tried.
        """
        if self.seconds is not None and self._most_for_events is not None:
            self.seconds = min(self.seconds, time.monotonic() - self._begun + self._most_for_events)
        restore, self._restore = self._restore, None
        if restore is not None:
            restore(connection)


def no_time_limit(dialect: Any, creator: Any) -> str:
    """Return why the driver cannot be given a connect timeout, or "" if it can."""
    driver = getattr(dialect, "driver", "?")
    if driver in _ARGUMENTS and getattr(creator, "__module__", "") == "sqlalchemy.engine.create":
        return ""
    who = "your own creator=" if driver in _ARGUMENTS else f"the driver {driver!r}"
    return f"{who} opens the connections; set the timeout there (connect_args=...)"


def limit_connects(dialect: Any, config: PoolConfig) -> None:
    """Limit each connect to ``connect_timeout`` through the driver's own argument. ``connect_args`` override it.

    Call it after ``look_up_first``: the addresses of a name share the time.
    """
    driver = getattr(dialect, "driver", "")
    if driver in _ARGUMENTS:
        event.listen(dialect, "do_connect", _listener(driver, config.connect_timeout))


@lru_cache
def _listener(driver: str, limit: float | None) -> Callable[..., None]:
    """Return the same function for the same limit, so that a recreated pool does not listen twice."""
    argument, unit = _ARGUMENTS[driver]

    def set_limit(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        own = seconds_of(keywords.get(argument))
        whole: float | None = None
        attempt = getattr(record, "attempt", None)
        mine = attempt if isinstance(attempt, Attempt) else None  # else it is a record of another pool, or what a
        each, time_of_all = unit, limit  # caller of _creator has given
        if driver in _LIBPQ:
            each = partial(share, keywords)
            if (attempts := attempts_of(keywords)) > 1:
                if time_of_all is None and mine is not None and "PGCONNECT_TIMEOUT" not in os.environ:
                    time_of_all = mine.seconds  # the driver's own limit would be one for each address
                if own is not None:
                    whole = attempts * max(2, math.ceil(own))
                elif time_of_all is not None:
                    whole = max(time_of_all, attempts * each(time_of_all))
        if mine is not None:
            mine.begin(driver, keywords, own, whole)
            record.begun(mine)
            if mine.most is not None and mine.most == mine.seconds:
                keywords[argument] = each(mine.most)
        if time_of_all is not None:
            keywords.setdefault(argument, each(time_of_all))

    return set_limit
