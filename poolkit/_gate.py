"""The one way to a core, a pool's or a cluster's: decide under the lock, act after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ._log import logger
from .policies.retire import NEVER
from .runtimes.base import Runtime

__all__ = ("Gate", "OwnedLock", "Turn")

T = TypeVar("T")


class OwnedLock(Protocol):
    """What is needed of ``threading.RLock``: after an interruption it alone knows whether this thread holds it."""

    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...
    def _is_owned(self) -> bool: ...


class Turn:
    """A lock that is only ever tried. Whoever asks gives a name, to undo an attempt whose result an exception hid."""

    def __init__(self) -> None:
        self._holder: dict[int, object] = {}

    def take(self, who: object) -> bool:
        """Whether it is ``who``'s turn now."""
        return self._holder.setdefault(0, who) is who

    def leave(self, who: object) -> None:
        """The turn of ``who`` is over, if ``who`` had it."""
        if self._holder.get(0) is who:
            del self._holder[0]


class Gate:
    """Lock, inbox and effects around a core.

    The core decides, and puts what is to be done into its ``effects``; ``due`` is when it wants to be asked again.
    Who must not wait for the lock (a release in a finalizer, possibly in the middle of this very thread's own
    critical section) puts its call into the inbox instead; whoever holds the lock empties it on the way out.

    Each way in stands in one ``try`` from end to end (no ``with``: the bytecodes around its exit are not covered),
    so that an asynchronous exception anywhere ends in :meth:`_mend`.
    """

    name: str
    _core: Any
    _lock: OwnedLock  # guards the core; never held during I/O or a callback
    _inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]]
    _scheduled: float  # when the runtime will call run_due(); NEVER: it will not
    _clock: Callable[[], float]
    _alone = False  # no thread can be started that would call run_due(): whoever comes by does what is due

    def _settle(self, now: float) -> None:
        """Under the lock, after each step: do what the state of the core asks for. Nothing, for a core that does it
        within its steps.
        """

    def _decide(self, step: Callable[..., T], *args: Any) -> T:
        """``step(*args)`` under the lock; then carry out what it asks for."""
        effects: deque[Any] | None = None
        try:
            self._lock.acquire()
            result = step(*args)
            self._settle(self._clock())
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
        effects: deque[Any] | None = None
        try:
            # try-lock, then look again: if it fails, its holder comes by here after letting go and sees our call
            while self._inbox and self._lock.acquire(False):
                core = self._core
                self._empty()
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
                self._emptied()
        except BaseException:
            self._mend(effects)
            raise

    def _mend(self, effects: deque[Any] | None) -> None:
        """A step, or what follows it, was left by an exception: leave nothing half done. ``effects`` are left over."""
        core = self._core
        todo: deque[Any] = deque()
        if effects is not None and effects is not core.effects:
            todo = effects
        if self._lock._is_owned():
            try:
                self._mend_core()
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
        self._keep_time()
        self._drain()

    def _keep_time(self) -> None:
        """Have the core asked again when it wants to."""
        if self._core.due < self._scheduled:
            self._schedule()

    def _order(self, runtime: Runtime, due: float) -> None:
        """Have a thread call :meth:`run_due` at ``due``.

        If none can be started, ``_scheduled`` stays NEVER: then each step ends here again, tries anew and does what
        is due. Waiters are woken once to take part in that (see ``ThreadParker.wait``).
        """
        self._scheduled = due
        delay = max(0.0, due - self._clock())
        alone = runtime.schedule(self, delay) is False
        if alone:
            self._scheduled = NEVER
        if alone is not self._alone:
            self._alone = alone
            self._submit(self._note_alone)
        if alone and not delay:
            self.run_due()

    def run_due(self) -> None:
        """Called by the runtime when something is due. Does not block."""
        raise NotImplementedError

    def run_inbox(self) -> None:
        """Do what finalizers have left. Does not block."""
        self._drain()

    # -- what pool and cluster each do in their own way ---------------------------------------------------------------

    def _empty(self) -> None:
        """Under the lock: carry out what is in the inbox."""
        raise NotImplementedError

    def _emptied(self) -> None:
        """The lock is free again."""

    def _mend_core(self) -> None:
        """Under the lock: a step was cut short; make the core whole."""
        raise NotImplementedError

    def _perform(self, effects: deque[Any]) -> None:
        """Carry out and remove one after the other: who is interrupted loses at most the one in hand."""
        raise NotImplementedError

    def _schedule(self) -> None:
        raise NotImplementedError

    def _note_alone(self) -> None:
        """Under the lock: ``_alone`` has changed."""
        raise NotImplementedError
