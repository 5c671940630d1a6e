"""The gate of a cluster: access to its core, and the core's effects (wake-ups, background work, events)."""

from __future__ import annotations

import threading
from collections import deque
from typing import cast

from .._gate import Gate, OwnedLock, Turn
from .._log import logger
from ..policies.retire import NEVER
from ._core import ClusterCore, Do, Effect, NodeEntry
from ._events import ClusterEvent, ClusterListener

__all__ = ("ClusterGate",)


class ClusterGate(Gate):
    """Runs steps of a cluster's core under its lock and carries out their effects."""

    _core: ClusterCore
    _listeners: list[ClusterListener]
    _find_at: float
    """When the discovery is due, by the clock, in seconds."""

    def _open_gate(self, core: ClusterCore) -> None:
        self._lock = cast("OwnedLock", threading.RLock())
        self._inbox = deque()
        self._failed_step: object = None  # the first entry of the inbox when a step last raised
        self._core = core
        self._events: deque[ClusterEvent] = deque()
        self._emitting = Turn()
        self._scheduled = NEVER

    def _empty(self) -> None:
        inbox = self._inbox
        try:
            while inbox:
                step, args = inbox[0]
                step(*args)
                inbox.popleft()  # after the step: an interrupted one is repeated
        except BaseException:
            if inbox and inbox[0] is self._failed_step:
                inbox.popleft()  # it raised twice: drop it, or it would block the inbox (a user's Balancer may raise)
            elif inbox:
                self._failed_step = inbox[0]
            raise

    def _mend_core(self) -> None:
        self._core.repair(self._clock())

    def _keep_time(self) -> None:
        if min(self._core.due, self._find_at) < self._scheduled:
            self._schedule()

    def _perform(self, effects: deque[Effect]) -> None:
        while effects:
            do, entry, request, event = effects[0]
            try:
                if do is Do.WAKE:
                    assert request is not None
                    if request.parker is not None:  # else the caller does not sleep yet, and checks the outcome first
                        request.parker.wake()
                elif do is Do.EMIT:
                    assert event is not None
                    self._events.append(event)
                else:
                    assert entry is not None
                    self._begin_job(do, entry)
            except Exception:
                effects.popleft()
                raise
            effects.popleft()  # after the work: if interrupted, do it twice rather than never
        if self._events:
            self._emit_events()

    def _begin_job(self, do: Do, entry: NodeEntry) -> None:
        raise NotImplementedError

    def _note_alone(self) -> None:
        for request in self._core.waiting():
            self._core.effects.append(Effect(Do.WAKE, None, request))

    def _emit_events(self) -> None:
        me = object()
        while self._events and self._emitting.take(me):  # one thread at a time, to keep the order
            try:
                while self._events:
                    event = self._events.popleft()
                    for listener in tuple(self._listeners):
                        try:
                            listener(event)
                        except Exception:
                            logger.exception("%s: listener %r raised and was removed", self.name, listener)
                            self.remove_listener(listener)
            finally:
                self._emitting.leave(me)

    def add_listener(self, listener: ClusterListener) -> None:
        """Call ``listener(event)`` for each later :class:`ClusterEvent`, in order, outside the lock. Thread-safe."""
        self._listeners.append(listener)

    def remove_listener(self, listener: ClusterListener) -> None:
        """Undo :meth:`add_listener`. Does nothing if the listener is not registered. Thread-safe."""
        if listener in self._listeners:
            self._listeners.remove(listener)
