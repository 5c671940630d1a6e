"""What is known of a connect in another thread: whether it has a session at the server, and how to end that session."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from poolkit.policies.connects import default_bound

__all__ = ("Attempt", "Attempts", "GivenUp")


class GivenUp(Exception):
    """The pool has given up this connect. Raised in the thread of the connect, and caught there.

    Not a subclass of a network error, because drivers would try again.
    """


class Attempt:
    """One connect in a thread. That thread reports the progress; another one may give the connect up. Thread-safe.

    It begins without a session. While the driver opens one, no other thread can tell whether the session exists.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._given_up = False
        self._known = True  # whether a session exists, and how to end it
        self._end: Callable[[], object] | None = None
        self._bound: float | None = None

    def extend(self, seconds: float) -> None:
        """Limit the rest of the connect to ``seconds``, in place of its current limit."""
        self._bound = time.monotonic() - self._begun + seconds

    def bound(self, timeout: float | None) -> float | None:
        """Return the time limit of the whole connect in seconds."""
        return default_bound(timeout) if self._bound is None else self._bound

    def opening(self, end: Callable[[], object] | None = None) -> None:
        """The driver is about to open a session, in place of an earlier one. Raises :class:`GivenUp`.

        ``end()`` interrupts the driver from another thread, without waiting. None: the driver cannot be interrupted.
        """
        with self._lock:
            if self._given_up:
                raise GivenUp("the pool has given up this connect")
            self._known, self._end = False, end

    def opened(self, end: Callable[[], object]) -> None:
        """The driver has opened a session. ``end()`` ends it from another thread, without waiting.

        Do not call this if nothing can end the session: its slot is then taken until the connect has returned.
        """
        with self._lock:
            self._known, self._end = True, end
            if self._given_up:
                end()

    def give_up(self) -> bool:
        """End the connect. Return whether it has no session now and will not open one."""
        with self._lock:
            self._given_up = True
            if self._end is not None:
                self._end()
            return self._known


class Attempts:
    """The connects of one connector that are in progress, by thread."""

    def __init__(self) -> None:
        self._by_thread: dict[int, Attempt] = {}

    @contextmanager
    def under_way(self) -> Iterator[Attempt]:
        """Register the connect of the calling thread for the duration of this block."""
        me = threading.get_ident()
        attempt = self._by_thread[me] = Attempt()
        try:
            yield attempt
        finally:
            self._by_thread.pop(me, None)

    def here(self) -> Attempt | None:
        """Return the connect of the calling thread."""
        return self._by_thread.get(threading.get_ident())

    def bound(self, thread: int, timeout: float | None) -> float | None:
        """See ``BoundedConnects.connect_bound``."""
        attempt = self._by_thread.get(thread)
        return default_bound(timeout) if attempt is None else attempt.bound(timeout)

    def give_up(self, thread: int) -> bool:
        """See ``BoundedConnects.give_up``."""
        attempt = self._by_thread.get(thread)
        return attempt is not None and attempt.give_up()
