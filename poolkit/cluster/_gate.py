"""A cluster's way to its core, and what comes of its decisions: wake-ups, work in the background, events."""

from __future__ import annotations

import threading
from collections import deque
from typing import cast

from .._gate import Gate, OwnedLock, Turn
from .._log import logger
from ..policies.retire import NEVER
from ._core import ClusterCore, Do, Effect, Member
from ._events import ClusterEvent, ClusterListener

__all__ = ("ClusterGate",)


class ClusterGate(Gate):
    """The gate of a cluster."""

    _core: ClusterCore
    _listeners: list[ClusterListener]
    _find_at: float
    """When discovery is due, by the clock."""

    def _open_gate(self, core: ClusterCore) -> None:
        self._lock = cast("OwnedLock", threading.RLock())
        self._inbox = deque()
        self._stumbled: object = None  # what stood first in the inbox when a step was left by an exception
        self._core = core
        self._events: deque[ClusterEvent] = deque()
        self._telling = Turn()
        self._scheduled = NEVER

    def _empty(self) -> None:
        inbox = self._inbox
        try:
            while inbox:
                step, args = inbox[0]
                step(*args)
                inbox.popleft()  # last: one that is cut short is done once more
        except BaseException:
            if inbox and inbox[0] is self._stumbled:
                inbox.popleft()  # it fails each time: a Balancer of somebody's own, for instance
            elif inbox:
                self._stumbled = inbox[0]
            raise

    def _mend_core(self) -> None:
        self._core.mend(self._clock())

    def _keep_time(self) -> None:
        if min(self._core.due, self._find_at) < self._scheduled:
            self._schedule()

    def _perform(self, effects: deque[Effect]) -> None:
        while effects:
            do, member, caller, event = effects[0]
            try:
                if do is Do.WAKE:
                    assert caller is not None
                    if caller.parker is not None:  # else he has not gone to sleep yet, and looks at his outcome first
                        caller.parker.wake()
                elif do is Do.TELL:
                    assert event is not None
                    self._events.append(event)
                else:
                    assert member is not None
                    self._begin_job(do, member)
            except Exception:
                effects.popleft()
                raise
            effects.popleft()  # last: better twice than never
        if self._events:
            self._tell()

    def _begin_job(self, do: Do, member: Member) -> None:
        raise NotImplementedError

    def _note_alone(self) -> None:
        for caller in self._core.waiting():
            self._core.effects.append(Effect(Do.WAKE, None, caller))

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
