"""The listeners of a pool or a cluster, which are called for each event, in order, outside of any lock."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Set
from typing import Any, Generic, TypeVar

from ._gate import InOrder, TryLock
from ._log import logger

__all__ = ("Listeners",)

E = TypeVar("E")


class Listeners(Generic[E]):
    """Calls listeners for events. A listener that raises is logged and removed.

    Args:
        name: of the pool or cluster, for the log.
        remove: removes a listener that has raised; called without a lock.
    """

    __slots__ = ("_core", "_name", "_queue", "_remove", "current", "pending")

    def __init__(self, name: str, remove: Callable[[Callable[[E], object]], object]) -> None:
        self._name = name
        self._remove = remove
        self._core: Any = None
        self.pending: deque[E] = deque()  # the events that flush() delivers
        self._queue: InOrder[E] = InOrder(self._call, self.pending)
        # replaced, not changed: it is read without a lock
        self.current: tuple[tuple[Callable[[E], object], Set[Any] | None], ...] = ()

    def add(self, listener: Callable[[E], object], kinds: Set[Any] | None = None) -> None:
        """Add a listener for these kinds of event; None: for all. Called under the lock."""
        self.current = (*self.current, (listener, kinds))
        self._changed()

    def remove(self, listener: Callable[[E], object]) -> None:
        """Remove a listener once; do nothing if it is not registered. Called under the lock."""
        known = [one for one, _ in self.current]
        if listener in known:
            at = known.index(listener)
            self.current = self.current[:at] + self.current[at + 1 :]
            self._changed()

    def _changed(self) -> None:
        if self._core is not None:
            self._core.wanted_events = self.kinds
            self._core.stale = True

    @property
    def kinds(self) -> frozenset[Any]:
        """The kinds of event that have a listener."""
        return frozenset[Any]().union(*(kinds for _, kinds in self.current if kinds is not None))

    @property
    def turn(self) -> TryLock:
        """The lock of the thread that delivers the pending events."""
        return self._queue.turn

    @property
    def deliver(self) -> Callable[[E], object]:
        """The function that delivers an event whose kind has a listener: the listener itself if it is the only one."""
        return self.current[0][0] if len(self.current) == 1 else self._call

    def flush(self) -> None:
        """Call the listeners for all pending events, unless another thread does so. Called without a lock."""
        self._queue.flush()

    def end_turn(self, turn: object, event: E | None, listener: Callable[[E], object]) -> bool:
        """End the turn of a thread that called ``listener`` directly, last for ``event``. Used in an ``except`` block.

        Returns True if the thread was interrupted. Otherwise the listener has raised, and is removed.
        """
        self._queue.end_turn(turn, self._queue.begun if listener == self._call else event)
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            self._drop(listener, error)
            self.flush()
            return False
        return True

    def restart(self, core: Any = None) -> None:
        """Drop the pending events, and have ``core`` (if one is given) queue its events in ``pending``.

        Called with each new core. In a forked child, the pending events belong to the parent.
        """
        self.pending = deque()
        self._queue = InOrder(self._call, self.pending)
        self._core = core
        if core is not None:
            core.events, core.wanted_events = self.pending, self.kinds

    def _call(self, event: Any) -> None:
        queue = self._queue
        for listener, kinds in self.current:
            try:
                if kinds is None or event.kind in kinds:
                    queue.begun = event
                    listener(event)
            except Exception as error:  # noqa: BLE001  logged
                self._drop(listener, error)

    def _drop(self, listener: Callable[[E], object], error: Exception) -> None:
        logger.error("%s: listener %r raised and is removed", self._name, listener, exc_info=error)
        self._remove(listener)
