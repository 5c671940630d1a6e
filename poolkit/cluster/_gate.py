"""The one way to a cluster's core: its lock, the inbox of finalizers, the effects that are carried out after it.

As ``poolkit._gate`` is for a pool: decide under the lock, act after it, and whatever an exception between any two
bytecodes leaves half done is made good before it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import Any, TypeVar

from .._gate import Turn
from .._log import logger
from ..policies.retire import NEVER
from ._core import ClusterCore, Do, Effect, Member
from ._events import ClusterEvent, ClusterListener

__all__ = ("ClusterGate",)

T = TypeVar("T")


class ClusterGate:
    """Lock, inbox, effects and listeners around a core."""

    name: str
    _clock: Callable[[], float]
    _listeners: list[ClusterListener]
    _find_at: float
    """When discovery is due, by the clock."""

    def _open_gate(self, core: ClusterCore) -> None:
        self._lock: Any = RLock()
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._stumbled: object = None  # what stood first in the inbox when a step was left by an exception
        self._core = core
        self._events: deque[ClusterEvent] = deque()
        self._telling = Turn()
        self._scheduled = NEVER

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
            if core.due < self._scheduled or self._find_at < self._scheduled:
                self._schedule()
            if self._inbox:
                self._drain()
        except BaseException:
            self._mend(effects)
            raise
        return result

    def _submit(self, step: Callable[..., object], *args: Any) -> None:
        """As :meth:`_decide` without an answer and without waiting: finalizers may call it in the midst of anything."""
        self._inbox.append((step, args))
        self._drain()

    def _drain(self) -> None:
        if self._lock._is_owned():
            return  # a finalizer in the middle of this thread's own critical section
        effects: deque[Effect] | None = None
        inbox = self._inbox
        try:
            # try-lock, then look again: if it fails, its holder comes by here after letting go and sees our call
            while inbox and self._lock.acquire(False):
                core = self._core
                while inbox:
                    step, args = inbox[0]
                    step(*args)
                    inbox.popleft()  # last: one that is cut short is done once more
                effects = core.effects
                if effects:
                    core.effects = deque()
                else:
                    effects = None
                self._lock.release()
                if effects:
                    self._perform(effects)
                if core.due < self._scheduled or self._find_at < self._scheduled:
                    self._schedule()
        except BaseException:
            if self._lock._is_owned() and inbox:
                if inbox[0] is self._stumbled:
                    inbox.popleft()  # it fails each time: a Balancer of somebody's own, for instance
                else:
                    self._stumbled = inbox[0]
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
                core.mend(self._clock())
                more, core.effects = core.effects, deque()
                todo.extend(more)
            finally:
                self._lock.release()
        self._perform(todo)
        self._scheduled = NEVER  # the order may not have arrived
        if min(core.due, self._find_at) < NEVER:
            self._schedule()
        self._drain()

    def _perform(self, effects: deque[Effect]) -> None:
        while effects:
            do, member, caller, event = effects[0]
            if do is Do.WAKE:
                assert caller is not None
                if caller.parker is not None:  # else he has not gone to sleep yet, and will look at his outcome first
                    caller.parker.wake()
            elif do is Do.TELL:
                assert event is not None
                self._events.append(event)
            else:
                assert member is not None
                self._begin_job(do, member)
            effects.popleft()
        if self._events:
            self._tell()

    def _begin_job(self, do: Do, member: Member) -> None:
        raise NotImplementedError

    def _schedule(self) -> None:
        raise NotImplementedError

    def _delay(self) -> float:
        """Seconds until something is due; notes that this was asked for."""
        self._scheduled = min(self._core.due, self._find_at)
        return max(0.0, self._scheduled - self._clock())

    def _tell(self) -> None:
        me = object()
        while self._events and self._telling.take(me):  # one thread at a time keeps the order
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
                self._telling.leave(me)

    def add_listener(self, listener: ClusterListener) -> None:
        """Call ``listener(event)`` for each :class:`ClusterEvent` from now on, in order, outside the lock."""
        self._listeners.append(listener)

    def remove_listener(self, listener: ClusterListener) -> None:
        """Undo :meth:`add_listener`; not an error if it was dropped already."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def run_inbox(self) -> None:
        """Do what finalizers have left. Does not block."""
        self._drain()
