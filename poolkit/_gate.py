"""The one way to the core: decide under the lock, act after it; and the events that are told on the way."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

from ._core.effects import Do, Effect
from ._core.entry import Entry
from ._core.machine import Core
from .events import Event, Listener

__all__ = ("Gate",)

T = TypeVar("T")

logger = logging.getLogger("poolkit")


class Gate:
    """Lock, inbox and outbox around a core.

    Who must not wait for the lock (a release in a finalizer, possibly in the middle of this very thread's own
    critical section) puts his call into the inbox instead; whoever holds the lock empties it on the way out.
    """

    name: str
    _core: Core
    _lock: Lock  # guards the core; never held during I/O or a callback
    _inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]]
    _events: deque[Event]
    _telling: Lock
    _listeners: list[Listener]
    _scheduled: float
    _reports: deque[tuple[str, tuple[str, int]]]
    _clock: Callable[[], float]
    _abort_method: Any
    _close_method: Any

    def _refresh(self) -> None:
        raise NotImplementedError

    # -- the way to the core --------------------------------------------------------------------------------------

    def _decide(self, step: Callable[..., T], *args: Any) -> T:
        """``step(*args)`` under the lock; then carry out what it asks for."""
        with self._lock:
            result = step(*args)
            core = self._core
            effects = core.take_effects() if core.effects else None
        if effects:
            self._perform(effects)
        if core.due < self._scheduled:
            self._schedule()
        if self._inbox:
            self._drain()
        return result

    def _submit(self, step: Callable[..., object], *args: Any) -> None:
        """As :meth:`_decide` without an answer and without ever waiting: whoever holds the lock does it."""
        self._inbox.append((step, args))
        self._drain()

    def _drain(self) -> None:
        # try-lock, then look again: if it fails, its holder comes by here after letting go and sees our call
        while self._inbox and self._lock.acquire(False):
            try:
                while self._inbox:
                    step, args = self._inbox.popleft()
                    step(*args)
                effects = self._core.take_effects()
            finally:
                self._lock.release()
            self._perform(effects)
            if self._core.due < self._scheduled:
                self._schedule()
            while self._reports:
                self._report(*self._reports.popleft())

    def _report(self, text: str, place: tuple[str, int]) -> None:
        """Warn about a dropped lease, at the place where it was taken."""
        try:
            warnings.warn_explicit(text, ResourceWarning, *place)
        except ResourceWarning:  # turned into an error: as for all finalizers, nobody is there to catch it
            logger.error("%s", text)

    def _schedule(self) -> None:
        raise NotImplementedError

    def _perform(self, effects: list[Effect]) -> None:
        todo = iter(effects)
        try:
            for do, entry, waiter, event in todo:
                if do is Do.WAKE:
                    assert waiter is not None
                    assert waiter.parker is not None
                    waiter.parker.wake()
                elif do is Do.TELL:
                    assert event is not None
                    self._events.append(event)
                elif do is Do.ABORT:
                    assert entry is not None
                    self._abort(entry)
                else:
                    assert entry is not None
                    self._begin_job(do, entry)
        except BaseException:
            self._perform(list(todo))  # what interrupts one piece of work must not lose the others
            raise
        if self._events:
            self._tell()

    def _begin_job(self, do: Do, entry: Entry) -> None:
        raise NotImplementedError

    def _abort(self, entry: Entry) -> None:
        if self._abort_method is None and self._close_method is not None:
            self._begin_job(Do.CLOSE, entry)
            return
        try:
            if self._abort_method is not None:
                self._abort_method(entry.connection)
        except Exception:
            logger.debug("%s: abort of connection %d failed", self.name, entry.id, exc_info=True)
        finally:
            self._gone(entry)

    def _gone(self, entry: Entry) -> None:
        """The connection is closed."""
        entry.connection = None
        self._submit(self._core.closed, entry, self._clock())

    # -- events ---------------------------------------------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(event)`` for each event from now on, in order, outside the pool's lock.

        A listener that raises is logged once and dropped. While anybody listens, acquire and release take the
        lock (they are a little slower).
        """
        with self._lock:
            self._listeners.append(listener)
            self._core.listening = True
            self._refresh()

    def remove_listener(self, listener: Listener) -> None:
        """Undo :meth:`add_listener`; not an error if it was dropped already."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            self._core.listening = bool(self._listeners)
            self._refresh()

    def _tell(self) -> None:
        while self._events and self._telling.acquire(False):  # one thread at a time keeps the order
            try:
                while self._events:
                    event = self._events.popleft()
                    for listener in tuple(self._listeners):
                        try:
                            listener(event)
                        except Exception:
                            logger.exception("%s: listener %r failed and is dropped", self.name, listener)
                            self.remove_listener(listener)
            finally:
                self._telling.release()
