"""Limits how long a thread or a task waits for a connection: after the limit the socket is shut down."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from poolkit import PoolConfig
from poolkit.config import sources_of
from poolkit.runtimes import ThreadRuntime
from poolkit.runtimes.fork import Stage, after_fork
from poolkit.settings import DEFAULT

from ._errors import release_locals
from ._hang_up import Connecting, hang_up

__all__ = (
    "Watch", "caller_limit", "limit_role_question", "loop_watch", "parts", "rest_of", "rollback_limit", "seconds_of",
    "shortest", "whole_connect",
)  # fmt: skip

T = TypeVar("T")

_THREADS = ThreadRuntime()
_SELDOM = 5.0
"""The longest time between two attempts to end a connect that continues, in seconds."""


UNSAID = 130.0
"""Seconds for a connect without any limit: psycopg's default, the longest of the drivers' defaults (asyncpg: 60;
PyMySQL and asyncmy: 10, for TCP only; aiomysql and pg8000: none)."""


def whole_connect(config: PoolConfig) -> float | None:
    """Return the limit of a whole connect in seconds; None: the application has set no limit."""
    unsaid = config.connect_timeout is None and not sources_of(config).get("connect_timeout", DEFAULT).written
    return UNSAID if unsaid else config.connect_timeout


def seconds_of(value: Any) -> float | None:
    """Return the seconds that the application gave to the driver (in a URL: a string), or None for no limit."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if seconds > 0 else None


def rest_of(timeout: float | None, longest: float, begun: float, what: str) -> float | None:
    """Return the seconds that a connect leaves for what follows it (None: no limit), at most ``timeout``.

    ``longest``: the most seconds of the driver's part, which may be longer, because libpq has at least 2 s for each
    address. Raises TimeoutError if nothing is left for ``what``. A limit of 0 would blame the server for it.
    """
    if timeout is None:
        return None
    spent = time.monotonic() - begun
    left = min(timeout, max(timeout, longest) - spent)
    if left <= 0.0:
        raise TimeoutError(f"the connect took {spent:.3g} s, all of its time: none is left for the {what}")
    return left


def shortest(*limits: float | None) -> float | None:
    """Return the least of several limits in seconds. None is no limit."""
    return min((limit for limit in limits if limit is not None), default=None)


def parts(items: Sequence[T], timeout: float | None) -> Iterator[tuple[T, float | None]]:
    """Yield what is tried in turn, each with an equal part of the time that is left then (None: no limit).

    So one address that does not answer leaves time for the next one.
    """
    until = None if timeout is None else time.monotonic() + timeout
    for number, item in enumerate(items):
        left = None if until is None else max(0.0, until - time.monotonic())
        yield item, None if left is None else left / (len(items) - number)


def rollback_limit(check_timeout: float | None, server: str) -> float | None:
    """Return the limit of a rollback in seconds, or None for no limit. ``server``: as in schemes of SQLAlchemy's URLs.

    PostgreSQL has nothing to undo, so a rollback takes no longer than a check. Other servers undo the work of the
    transaction, which takes about as long as the work did.
    """
    return check_timeout if check_timeout is None or server == "postgresql" else check_timeout * 10


def caller_limit(config: PoolConfig, timeout: float | None) -> float | None:
    """Return the seconds that are left to a caller that connects itself, or None if that is not what limits it.

    ``timeout``: what the engine gives to a connect, which is the shorter one of ``connect_timeout`` and the caller's
    time. A limit of the driver's own replaces the former and not the latter.
    """
    limit = config.connect_timeout
    late = timeout is not None and (limit is None or timeout < limit)
    return timeout if config.connect_in_caller and late else None


class Watch:
    """Ends operations that take too long. Thread-safe.

    The start and the end of an operation cost one dictionary operation each. There is at most one timer. It is set
    when an operation starts whose deadline is earlier than the timer.

    ``schedule(watch, delay)`` arranges that ``watch.run_due()`` is called in ``delay`` seconds: by default in the
    housekeeping thread. Connections of an event loop need a watch of that loop (:func:`loop_watch`).
    """

    def __init__(self, schedule: Callable[[Watch, float], object] = _THREADS.schedule) -> None:
        self._schedule = schedule
        self._restart()
        _watches.add(self)

    def _restart(self) -> None:
        self._running: dict[int, tuple[float, Any]] = {}  # id of the connection -> (deadline, connection)
        self._wakes = math.inf
        # held during a hang-up, so that the descriptor cannot pass to another socket meanwhile
        self._lock = threading.Lock()

    def begin(self, driver: Any, seconds: float) -> None:
        """Start an operation on the connection ``driver`` that must end within ``seconds``."""
        deadline = time.monotonic() + seconds
        if isinstance(driver, Connecting):
            driver.over = False
        self._running[id(driver)] = deadline, driver
        if deadline < self._wakes:
            self._set_timer(deadline)

    def end(self, driver: Any) -> bool:
        """End the operation, and return whether its connection was hung up."""
        hung_up = self._running.pop(id(driver), None) is None
        if hung_up:
            with self._lock:  # wait for the hang-up: afterwards another socket may get the descriptor
                pass
        return driver.ended() if isinstance(driver, Connecting) else hung_up

    @contextlib.contextmanager
    def limit(self, driver: Any, seconds: float | None, what: str) -> Iterator[None]:
        """Shut down the socket of ``driver`` if this block takes longer than ``seconds`` (None: no limit).

        Raises TimeoutError then, with the driver's error as its cause. ``what`` names the request in the message.
        """
        if seconds is None:
            yield
            return
        self.begin(driver, seconds)
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  re-raised below, unless the limit caused it
            failure = error
        finally:
            late = self.end(driver)
        try:
            if late:
                if failure is not None:
                    release_locals(failure)  # pg8000's frames keep the socket open
                raise TimeoutError(f"no reply to the {what} within {seconds:g} s") from failure
            if failure is not None:
                raise failure
        finally:
            del failure  # no cycle of error, traceback and this frame: a socket may hang on it

    def _set_timer(self, deadline: float) -> None:
        with self._lock:
            if deadline < self._wakes:
                self._wakes = deadline
                self._schedule(self, max(0.0, deadline - time.monotonic()))

    def cut(self, driver: Any) -> None:
        """Shut down the socket of ``driver`` now, if its operation goes on."""
        again = self._cut(id(driver), driver, time.monotonic())
        if again < self._wakes:
            self._set_timer(again)

    def _cut(self, key: int, driver: Any, now: float) -> float:
        """Shut down the socket of ``driver``. Return the time at which to do it again (math.inf: never)."""
        with self._lock:
            if self._running.pop(key, None) is None:
                return math.inf
            hang_up(driver)
            if not isinstance(driver, Connecting) or driver.over:
                return math.inf
            # it may continue with the next address, until it has tried all; or hang where no socket is concerned
            again = now + driver.pause
            driver.pause = min(2 * driver.pause, _SELDOM)
            self._running[key] = again, driver
            return again

    def run_due(self) -> None:
        """Shut down the sockets of overdue connections, and set the timer for the next deadline."""
        self._wakes = math.inf
        now, following = time.monotonic(), math.inf
        for key, (deadline, driver) in self._running.copy().items():
            if deadline > now:
                following = min(following, deadline)
                continue
            following = min(following, self._cut(key, driver, now))
        if following < self._wakes:
            self._set_timer(following)


def loop_watch(loop: asyncio.AbstractEventLoop) -> Watch:
    """Return a watch for connections of ``loop``. Its timer runs in that loop; call it there only."""

    def schedule(watch: Watch, delay: float) -> None:
        loop.call_later(delay, watch.run_due)

    return Watch(schedule)


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()
_roles = Watch()


def limit_role_question(driver: Any, seconds: float) -> AbstractContextManager[None]:
    """Limit a block that asks a cluster's node for its role; see :meth:`Watch.limit`."""
    return _roles.limit(driver, seconds, "question for the role")


def _after_fork_in_child() -> None:
    """Forget the operations of the parent's threads: shutting down their sockets would end the parent's sessions."""
    for watch in list(_watches):
        watch._restart()


after_fork(Stage.ADAPTERS, _after_fork_in_child)
