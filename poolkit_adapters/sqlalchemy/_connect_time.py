"""The time limit of a connect: passed to the driver if possible, and enforced where the driver does not do so."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import event

from poolkit import PoolConfig

from .._handshake import Restore, limit_answers
from .._hang_up import Connecting
from .._libpq import attempts_of, for_all_attempts, share, whole_seconds
from .._options import replaces_limit_of_driver
from .._time_limits import seconds_of, whole_connect
from ._creator import is_of_engine, keywords_of

__all__ = ("Attempt", "limit_connects", "no_time_limit", "own_limit")

_ARGUMENTS: dict[str, tuple[str, Callable[[float], float]]] = {
    "psycopg": ("connect_timeout", whole_seconds),
    "psycopg_async": ("connect_timeout", whole_seconds),
    "psycopg2": ("connect_timeout", whole_seconds),
    "asyncpg": ("timeout", float),
    "pg8000": ("timeout", float),
    "pymysql": ("connect_timeout", float),
    "aiomysql": ("connect_timeout", float),
    "asyncmy": ("connect_timeout", float),
    "mysqldb": ("connect_timeout", math.ceil),  # whole seconds
    "mysqlconnector": ("connection_timeout", math.ceil),  # whole seconds
}
"""Known connect timeout arguments of drivers, and a function that converts seconds to their unit."""
_LIBPQ = ("psycopg", "psycopg_async", "psycopg2")
"""Drivers that have the time for each address of a connect."""


class Attempt:
    """One connect: its time limit and its start."""

    def __init__(self, config: PoolConfig, most: float | None = None) -> None:
        self.limit = config.connect_timeout
        """The pool's limit of a connect."""
        self.replaces = replaces_limit_of_driver(config)
        """Whether it replaces one in the URL or ``connect_args``, because it was given after them."""
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
    if driver in _ARGUMENTS and is_of_engine(creator):
        return ""
    who = "your own creator=" if driver in _ARGUMENTS else f"the driver {driver!r}"
    return f"{who} opens the connections; set the timeout there (connect_args=...)"


def own_limit(dialect: Any, creator: Any) -> tuple[float | None, str] | None:
    """Return the seconds of the connect timeout in the URL or ``connect_args``, and the source. None: there is none.

    Call it if :func:`no_time_limit` is "".
    """
    argument, _ = _ARGUMENTS[dialect.driver]
    keywords = keywords_of(creator)
    own = seconds_of(keywords.get(argument))
    if own is None:
        return None
    limit = for_all_attempts(keywords, own) if dialect.driver in _LIBPQ else own
    return limit, f"{argument} in connect_args or the URL"


def limit_connects(dialect: Any, *, own: bool) -> None:
    """Limit each connect to ``connect_timeout`` through the driver's own argument. ``connect_args`` override it.

    ``own``: whether they, or the URL, have that argument. A ``connect_timeout`` that was given later replaces it.
    Call it after ``look_up_first``: the addresses of a name share the time.
    """
    driver = getattr(dialect, "driver", "")
    if driver in _ARGUMENTS:
        event.listen(dialect, "do_connect", _listener(driver, own))


@lru_cache
def _listener(driver: str, given: bool) -> Callable[..., None]:
    """Return the same function for the same driver, so that a recreated pool does not listen twice."""
    argument, unit = _ARGUMENTS[driver]

    def set_limit(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        attempt = getattr(record, "attempt", None)
        if not isinstance(attempt, Attempt):
            return  # a record of another pool, or what a caller of _creator has given
        if given and attempt.replaces:
            keywords.pop(argument, None)
        own = seconds_of(keywords.get(argument))
        seconds, convert, whole = attempt.limit, unit, None
        if driver in _LIBPQ:
            convert = partial(share, keywords)
            seconds, whole = _over_addresses(keywords, own, attempt)
        attempt.begin(driver, keywords, own, whole)
        record.begun(attempt)
        if attempt.most is not None and attempt.most == attempt.seconds:
            keywords[argument] = convert(attempt.most)
        if seconds is not None:
            keywords.setdefault(argument, convert(seconds))

    return set_limit


def _over_addresses(
    keywords: Mapping[str, Any], own: float | None, attempt: Attempt
) -> tuple[float | None, float | None]:
    """Return the seconds that all addresses of libpq's connect share, and those of the whole connect.

    ``own``: the application's limit for each address, if any. The pool's is one for all of them. The second result is
    None if there is one address, or no limit.
    """
    attempts, limit = attempts_of(keywords), attempt.limit
    if attempts == 1:
        return limit, None
    if limit is None and "PGCONNECT_TIMEOUT" not in os.environ:
        limit = attempt.seconds  # without it, the driver would have its default limit for each address
    if own is not None:
        return limit, attempts * whole_seconds(own)
    return limit, None if limit is None else max(limit, attempts * share(keywords, limit))
