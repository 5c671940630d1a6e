"""Limits for what a thread waits for at a connection: whoever is not done in time finds the socket shut down."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from poolkit.runtimes import ThreadRuntime

from ._errors import release_locals
from ._hang_up import hang_up

__all__ = ("Watch", "limit_role_question", "rollback_limit")

_THREADS = ThreadRuntime()


def rollback_limit(check_timeout: float | None, server: str) -> float | None:
    """Seconds for a rollback; None: no limit. ``server``: as in the schemes of SQLAlchemy's URLs.

    PostgreSQL has nothing to undo, a check takes as long there. The other servers undo the work of the transaction,
    which takes about as long as it took to do it.
    """
    return check_timeout if check_timeout is None or server == "postgresql" else check_timeout * 10


class Watch:
    """Ends operations that take too long, from the housekeeping thread.

    To begin and to end an operation costs an entry of a dictionary each. There is one timer at most, which is set when
    an operation begins that would be overdue before it fires.
    """

    def __init__(self) -> None:
        self._begin_anew()
        _watches.add(self)

    def _begin_anew(self) -> None:
        self._running: dict[int, tuple[float, Any]] = {}  # by the id of the connection: its deadline, and itself
        self._wakes = math.inf
        self._lock = threading.Lock()  # while it is held the socket of an overdue operation is still its connection's

    def begin(self, driver: Any, seconds: float) -> None:
        """An operation on the connection ``driver`` begins, which must be over in ``seconds``."""
        deadline = time.monotonic() + seconds
        self._running[id(driver)] = deadline, driver
        if deadline < self._wakes:
            self._set_timer(deadline)

    def end(self, driver: Any) -> bool:
        """The operation is over; whether its connection was hung up."""
        if self._running.pop(id(driver), None) is not None:
            return False
        with self._lock:  # until it has been hung up: after that the descriptor may become another's
            return True

    @contextlib.contextmanager
    def limit(self, driver: Any, seconds: float | None, what: str) -> Iterator[None]:
        """A block in which ``driver`` is hung up after ``seconds`` (None: no limit). Raises TimeoutError then, with the
        driver's error as its cause; ``what`` the server was asked for is for the message.
        """
        if seconds is None:
            yield
            return
        self.begin(driver, seconds)
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  raised below, unless the end of time is its reason
            failure = error
        finally:
            late = self.end(driver)
        try:
            if late:
                if failure is not None:
                    release_locals(failure)  # pg8000's frames keep the socket open
                raise TimeoutError(f"no answer to the {what} in {seconds:g} s") from failure
            if failure is not None:
                raise failure
        finally:
            del failure  # no cycle of error, traceback and this frame: a socket may hang on it

    def _set_timer(self, deadline: float) -> None:
        with self._lock:
            if deadline < self._wakes:
                self._wakes = deadline
                _THREADS.schedule(self, max(0.0, deadline - time.monotonic()))

    def run_due(self) -> None:
        """Time is up for some, or will be."""
        self._wakes = math.inf
        now, following = time.monotonic(), math.inf
        for key, (deadline, driver) in self._running.copy().items():
            if deadline > now:
                following = min(following, deadline)
                continue
            with self._lock:
                if self._running.pop(key, None) is not None:
                    hang_up(driver)
        if following < self._wakes:
            self._set_timer(following)


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()
_roles = Watch()


def limit_role_question(driver: Any, seconds: float) -> AbstractContextManager[None]:
    """A block that asks a cluster's node for its role; see :meth:`Watch.limit`."""
    return _roles.limit(driver, seconds, "question for the role")


def _after_fork_in_child() -> None:
    """The operations are those of the parent's threads: to shut down their sockets would end the parent's sessions."""
    for watch in list(_watches):
        watch._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
