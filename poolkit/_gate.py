"""The one way to the core: decide under the lock, act after it; and the events that are told on the way."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ._core.effects import Do, Effect
from ._core.entry import Entry
from ._core.machine import Core
from ._core.mend import mend
from ._log import logger
from .events import Event, EventKind, Listener, kinds_of
from .policies.retire import NEVER

__all__ = ("Gate",)

T = TypeVar("T")


class OwnedLock(Protocol):
    """What is needed of ``threading.RLock``: after an interruption it alone knows whether this thread holds it."""

    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...
    def _is_owned(self) -> bool: ...


class Turn:
    """A lock that is only ever tried. Who asks names himself, so that he can undo what he does not know he did."""

    def __init__(self) -> None:
        self._holder: dict[int, object] = {}

    def take(self, who: object) -> bool:
        """Whether it is ``who``'s turn now."""
        return self._holder.setdefault(0, who) is who

    def leave(self, who: object) -> None:
        """The turn of ``who`` is over, if he had it."""
        if self._holder.get(0) is who:
            del self._holder[0]


class Gate:
    """Lock, inbox and outbox around a core.

    Who must not wait for the lock (a release in a finalizer, possibly in the middle of this very thread's own
    critical section) puts his call into the inbox instead; whoever holds the lock empties it on the way out.

    Each way in stands in one ``try`` from end to end (no ``with``: the bytecodes around its exit are not covered),
    so that an asynchronous exception anywhere ends in :meth:`_mend`.
    """

    name: str
    _core: Core
    _lock: OwnedLock  # guards the core; never held during I/O or a callback
    _inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]]
    _events: deque[Event]
    _telling: Turn
    _listeners: list[tuple[Listener, frozenset[EventKind]]]
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
        effects: deque[Effect] | None = None
        try:
            self._lock.acquire()
            result = step(*args)
            core = self._core
            effects = core.effects
            if effects:
                core.effects = deque()
            else:
                effects = None
            self._lock.release()
            if effects:
                self._perform(effects)
            if core.due < self._scheduled:
                self._schedule()
            if self._inbox:
                self._drain()
        except BaseException:
            self._mend(effects)
            raise
        return result

    def _submit(self, step: Callable[..., object], *args: Any) -> None:
        """As :meth:`_decide` without an answer and without ever waiting: whoever holds the lock does it."""
        self._inbox.append((step, args))
        self._drain()

    def _drain(self) -> None:
        if self._lock._is_owned():
            return  # a finalizer in the middle of this thread's own critical section
        effects: deque[Effect] | None = None
        try:
            # try-lock, then look again: if it fails, its holder comes by here after letting go and sees our call
            while self._inbox and self._lock.acquire(False):
                core = self._core
                while self._inbox:
                    step, args = self._inbox.popleft()
                    step(*args)
                effects = core.effects
                if effects:
                    core.effects = deque()
                else:
                    effects = None
                self._lock.release()
                if effects:
                    self._perform(effects)
                if core.due < self._scheduled:
                    self._schedule()
                while self._reports:
                    try:
                        report = self._reports.popleft()
                    except IndexError:
                        break  # another thread was faster
                    self._report(*report)
        except BaseException:
            self._mend(effects)
            raise

    def _mend(self, effects: deque[Effect] | None) -> None:
        """A step, or what follows it, was left by an exception: leave nothing half done. ``effects`` are left over."""
        core = self._core
        todo: deque[Effect] = deque()
        if effects is not None and effects is not core.effects:
            todo = effects
        if self._lock._is_owned():
            try:
                mend(core, self._clock())
                self._refresh()
                more, core.effects = core.effects, deque()
                todo.extend(more)
            finally:
                self._lock.release()
        while todo:
            try:
                self._perform(todo)
            except Exception:
                logger.exception("%s: background work failed", self.name)
        self._scheduled = NEVER  # the order may not have arrived
        if core.due < NEVER:
            self._schedule()
        self._drain()

    def _report(self, text: str, place: tuple[str, int]) -> None:
        """Warn about a dropped lease, at the place where it was taken."""
        try:
            warnings.warn_explicit(text, ResourceWarning, *place)
        except ResourceWarning:  # turned into an error: as for all finalizers, nobody is there to catch it
            logger.error("%s", text)

    def _schedule(self) -> None:
        raise NotImplementedError

    def _perform(self, effects: deque[Effect]) -> None:
        """Carry out and remove one after the other: who is interrupted loses at most the one in hand."""
        while effects:
            do, entry, waiter, event = effects[0]
            if do is Do.WAKE:
                assert waiter is not None
                assert waiter.parker is not None
                try:
                    waiter.parker.wake()  # twice is harmless, never is not
                except Exception:
                    effects.popleft()
                    raise
                effects.popleft()
                continue
            effects.popleft()
            if do is Do.SHARE:
                self._pass_on()
            elif do is Do.TELL:
                assert event is not None
                self._events.append(event)
            elif do is Do.ABORT:
                assert entry is not None
                self._abort(entry)
            else:
                assert entry is not None
                self._begin_job(do, entry)
        if self._events:
            self._tell()

    def _pass_on(self) -> None:
        raise NotImplementedError

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

        A listener that raises is logged once and dropped. One that has an attribute ``kinds`` is called for these
        kinds only. While anybody listens to what every lease tells (:data:`poolkit.events.OF_EACH_LEASE`), acquire
        and release take the lock and make events: they are many times slower, though still some microseconds.

        Raises :class:`~poolkit.ConfigError` if ``kinds`` is no collection of :class:`~poolkit.EventKind`.
        """
        self._decide(self._listen, listener, kinds_of(listener))

    def remove_listener(self, listener: Listener) -> None:
        """Undo :meth:`add_listener`; not an error if it was dropped already."""
        self._decide(self._listen, listener, None)

    def _listen(self, listener: Listener, kinds: frozenset[EventKind] | None) -> None:
        """Under the lock: add, or (None) remove."""
        known = [one for one, _ in self._listeners]
        if kinds is not None:
            self._listeners.append((listener, kinds))
        elif listener in known:
            del self._listeners[known.index(listener)]
        self._core.heard = self._heard()
        self._refresh()

    def _heard(self) -> frozenset[EventKind]:
        """What anybody listens to."""
        return frozenset[EventKind]().union(*(kinds for _, kinds in self._listeners))

    def _tell(self) -> None:
        turn, me = self._telling, object()
        try:
            while self._events and turn.take(me):  # one thread at a time keeps the order
                while self._events:
                    event = self._events.popleft()
                    for listener, kinds in tuple(self._listeners):
                        try:
                            if event.kind in kinds:
                                listener(event)
                        except Exception:
                            logger.exception("%s: listener %r failed and is dropped", self.name, listener)
                            self.remove_listener(listener)
                turn.leave(me)
        except BaseException:
            turn.leave(me)
            raise
