"""A pool's way to its core, and what comes of its decisions: wake-ups, work in the background, events."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

from ._core.effects import Do, Effect
from ._core.entry import Entry
from ._core.machine import Core
from ._core.mend import mend
from ._gate import Gate
from ._listeners import Listeners
from ._log import logger
from .errors import describe
from .events import Event, EventKind, Listener, kinds_of

__all__ = ("Outbox",)


class Outbox:
    """What follows from the decisions of a pool's core."""

    name: str
    _clock: Callable[[], float]
    _gate: Gate
    _core: Core
    _listeners: Listeners[Event]
    _reports: deque[tuple[str, tuple[str, int]]]
    _abort_method: Any
    _close_method: Any

    def _refresh(self) -> None:
        raise NotImplementedError

    # -- effects ------------------------------------------------------------------------------------------------------

    def _repair(self) -> None:
        now = self._clock()
        mend(self._core, now)
        self._refresh()
        self._core.settle(now)

    def _report_dropped(self) -> None:
        while self._reports:
            try:
                report = self._reports.popleft()
            except IndexError:
                break  # another thread was faster
            self._report(*report)

    def _report(self, text: str, place: tuple[str, int]) -> None:
        """Warn about a dropped lease, at the place where it was taken."""
        try:
            warnings.warn_explicit(text, ResourceWarning, *place)
        except ResourceWarning:  # turned into an error: as for all finalizers, nobody is there to catch it
            logger.error("%s", text)

    def _perform(self, effects: deque[Effect]) -> None:
        while effects:
            do, entry, waiter, event = effects[0]
            if waiter is not None:  # WAKE: nothing else is about a waiter
                try:  # who sleeps has a parker; twice is harmless, never is not
                    waiter.parker.wake()  # type: ignore[union-attr]
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
                self._listeners.pending.append(event)
            elif do is Do.ABORT:
                assert entry is not None
                self._abort(entry)
            elif do is Do.REPORT:
                self._report_dropped()
            else:
                assert entry is not None
                self._begin_job(do, entry)
        if self._listeners.pending:
            self._listeners.flush()

    def _pass_on(self) -> None:
        raise NotImplementedError

    def _begin_job(self, do: Do, entry: Entry) -> None:
        raise NotImplementedError

    def _abort(self, entry: Entry) -> None:
        if self._abort_method is None and self._close_method is not None:
            self._begin_job(Do.CLOSE, entry)
        else:
            self._abort_now(entry)

    def _abort_now(self, entry: Entry) -> None:
        """Abort a connection; its permit is free when nothing is left of it at the server."""
        core, left = self._core, False
        try:
            left = self._aborted(entry.connection)
        finally:
            if isinstance(left, bool):
                self._gone(entry)
        if not isinstance(left, bool):
            left.add_done_callback(lambda _: self._gone(entry) if core is self._core else None)

    def _aborted(self, connection: Any) -> Any:
        """Abort a connection, if the connector can: False if that was not done, else True, or what it has left at the
        server (see ``Connector.abort``). An error is logged: nobody can do more.
        """
        if self._abort_method is None:
            return False
        try:
            left = self._abort_method(connection)
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: abort of a connection failed: %s", self.name, describe(failure))
            return False
        return left if callable(getattr(left, "add_done_callback", None)) else True

    def _gone(self, entry: Entry) -> None:
        """The connection is closed."""
        entry.connection = None
        self._gate.post(self._core.closed, entry, self._clock())

    # -- events ---------------------------------------------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(event)`` for each event from now on, in order, outside the pool's lock.

        A listener that raises is logged once and dropped. One that has an attribute ``kinds`` is called for these
        kinds only. While anybody listens to what every lease tells (:data:`poolkit.events.OF_EACH_LEASE`), acquire
        and release take the lock and make events: they are many times slower, though still some microseconds.

        Raises :class:`~poolkit.ConfigError` if ``kinds`` is no collection of :class:`~poolkit.EventKind`.
        """
        self._gate.step(self._listen, listener, kinds_of(listener))

    def remove_listener(self, listener: Listener) -> None:
        """Undo :meth:`add_listener`; not an error if it was dropped already."""
        self._gate.step(self._listen, listener, None)

    def _listen(self, listener: Listener, kinds: frozenset[EventKind] | None) -> None:
        """Under the lock: add, or (None) remove."""
        if kinds is None:
            self._listeners.remove(listener)
        else:
            self._listeners.add(listener, kinds)
        self._core.heard = self._listeners.kinds
        self._refresh()
