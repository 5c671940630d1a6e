"""How long a connect may take: told to the driver where it can be told, and kept to where the driver does not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from sqlalchemy import event

from poolkit import PoolConfig
from poolkit.config import sources_of
from poolkit.settings import DEFAULT

from .._handshake import Restore, limit_answers

__all__ = ("Attempt", "limit_connects", "no_time_limit")

_ARGUMENTS: dict[str, tuple[str, Callable[[float], float]]] = {
    # libpq counts in whole seconds, and so does MySQL Connector
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
"""The drivers whose own argument for the time to connect is known, and its unit."""

UNSAID = 130.0
"""Seconds for a connect where nobody gave a limit: psycopg's default, the longest of these drivers' defaults (asyncpg:
60; PyMySQL and asyncmy: 10, for TCP alone; aiomysql and pg8000: none)."""


class Attempt:
    """One connect: what it may take, and since when."""

    def __init__(self, config: PoolConfig) -> None:
        written = sources_of(config).get("connect_timeout", DEFAULT).written
        limit = config.connect_timeout
        self.seconds: float | None = UNSAID if limit is None and not written else limit
        """For the whole of it, "connect" events included; None: no limit."""
        self._begun = time.monotonic()
        self._restore: Restore | None = None

    def left(self) -> float | None:
        """Seconds that are left, not below 0; None: no limit."""
        return None if self.seconds is None else max(0.0, self._begun + self.seconds - time.monotonic())

    def begin(self, driver: str, keywords: dict[str, Any], own: float | None) -> None:
        """The driver is about to be called with ``keywords``, which allow ``own`` seconds, if anything."""
        if own is not None:
            self.seconds = own
        if self.seconds is not None:
            self._restore = limit_answers(driver, keywords, self.seconds)

    def opened(self, connection: Any) -> None:
        """The driver has opened ``connection``; "connect" events follow."""
        restore, self._restore = self._restore, None
        if restore is not None:
            restore(connection)


def no_time_limit(dialect: Any, creator: Any) -> str:
    """Why the driver cannot be told how long a connect may take; "" if it can."""
    driver = getattr(dialect, "driver", "?")
    if driver in _ARGUMENTS and getattr(creator, "__module__", "") == "sqlalchemy.engine.create":
        return ""
    who = "your own creator=" if driver in _ARGUMENTS else f"the driver {driver!r}"
    return f"{who} opens the connections; set the time there (connect_args=...)"


def limit_connects(dialect: Any, config: PoolConfig) -> None:
    """Let ``connect_timeout`` bound each connect, through the driver's own argument. ``connect_args`` win."""
    driver = getattr(dialect, "driver", "")
    if driver in _ARGUMENTS:
        event.listen(dialect, "do_connect", _listener(driver, config.connect_timeout))


@lru_cache
def _listener(driver: str, limit: float | None) -> Callable[..., None]:
    """The same function for the same limit, so that a recreated pool does not listen twice."""
    argument, unit = _ARGUMENTS[driver]

    def set_limit(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        own = _seconds(keywords.get(argument))
        attempt = getattr(record, "attempt", None)
        if isinstance(attempt, Attempt):  # else a record of another pool's, or what a caller of _creator has given
            attempt.begin(driver, keywords, own)
        if limit is not None:
            keywords.setdefault(argument, unit(limit))

    return set_limit


def _seconds(value: Any) -> float | None:
    """A time limit as the application gave it to the driver (in a URL: a text); None: there is none."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if seconds > 0 else None
