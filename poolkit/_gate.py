"""Access to the core of a pool, a cluster or a budget: decide under the lock, perform effects after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ._log import logger
from .policies.retire import NEVER

__all__ = ("Gate", "InOrder", "NoWork", "OwnedLock", "TryLock")

T = TypeVar("T")


class OwnedLock(Protocol):
    """The part of ``threading.RLock`` that a gate needs. After an interruption only the lock knows whether this thread
    holds it.
    """

    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...
    def _is_owned(self) -> bool: ...


class TryLock:
    """A lock without blocking acquire. It stores its owner, so that an attempt that an exception has interrupted can be
    undone.
    """

    __slots__ = ("owner",)

    def __init__(self) -> None:
        self.owner: dict[int, object] = {}
        """The owner, under the key 0. The paths without the lock use this dict directly, which saves a call."""

    def try_acquire(self, owner: object) -> bool:
        """Return whether ``owner`` holds the lock now."""
        return self.owner.setdefault(0, owner) is owner

    def release(self, owner: object) -> None:
        """Release the lock if ``owner`` holds it."""
        if self.owner.get(0) is owner:
            del self.owner[0]


class InOrder(Generic[T]):
    """A queue that only one thread at a time empties, so that items are handled in order.

    If another thread empties it already, a thread returns at once: the other thread also handles the items that are
    added meanwhile. An item whose handling was interrupted is handled again, unless it is in ``begun``.
    """

    __slots__ = ("_handle", "begun", "items", "turn")

    def __init__(self, handle: Callable[[T], object], items: deque[T]) -> None:
        self.items = items
        self._handle = handle
        self.begun: T | None = None
        self.turn = TryLock()

    def flush(self) -> None:
        """Handle all items, unless another thread does so."""
        items, turn, me = self.items, self.turn, object()
        try:
            while True:  # no "while items": from Python 3.12 on its jump back is not covered by the try
                if not items or not turn.try_acquire(me):
                    return
                while True:
                    if not items:
                        break
                    self._handle(items[0])  # popped afterwards: an interruption would lose it
                    items.popleft()
                self.begun = None
                turn.release(me)
        except Exception:
            self.end_turn(me, items[0])  # the handler has failed and would fail again
            raise
        except BaseException:
            self.end_turn(me, self.begun)
            raise

    def end_turn(self, me: object, done: T | None) -> None:
        """Release the turn of a thread that was interrupted, so that another thread can continue. ``me``: its owner
        object. ``done``: an item that is removed if it is the first one.
        """
        if self.items and self.items[0] is done and self.turn.owner.get(0) is me:
            self.items.popleft()
        self.turn.release(me)


class NoWork:
    """The core of a gate whose steps leave no effects and no timed work."""

    def __init__(self) -> None:
        self.effects: deque[Any] = deque()
        self.due = NEVER
        self.stale = False


def _nothing(*_args: object) -> None:
    """Do nothing: the default of a function that the owner of the gate does not give."""


class Gate:
    """The lock, the inbox and the timer of a core.

    The core decides. It puts actions for the owner into ``effects``, and the time of its next call into ``due``.
    ``stale`` means that the owner's functions that run without the lock must be renewed. A caller that must not wait
    for the lock posts its step into the inbox instead. An example is a release in a finalizer, which may run inside a
    critical section of the same thread. Every thread runs the steps in the inbox after it has released the lock.

    Each entry point is one ``try`` from start to end, so that an asynchronous exception anywhere leads to
    :meth:`recover`. A ``with`` statement is not enough, because the bytecodes around its exit are not covered.

    Args:
        core: has ``effects``, ``due`` and ``stale``.
        name: of the owner, for the log.
        clock: returns the time in seconds.
        lock: an :class:`OwnedLock` that guards the core. NO-CALL-UNDER-LOCK: it is never held during I/O or a callback.
        settle: called under the lock after each step, with the time: acts on the state of the core.
        renew: called under the lock after a step if the core is ``stale``.
        repair: called under the lock after an interrupted step: makes the core consistent again.
        perform: performs effects and removes them one after the other, so that an interruption loses at most one.
        call_later: arranges a call of the owner's ``run_due()`` in so many seconds. Returns True if it will be called,
            False if no thread can be started, None if there is no event loop yet.
        run_due: does timed work that is due; called here only if no thread can be started for it.
        note_alone: called under the lock when :attr:`alone` has changed.
    """

    __slots__ = (  # noqa: RUF023  grouped by who writes them
        # constant
        "_call_later", "_clock", "_name", "_note_alone", "_perform", "_renew", "_repair", "_run_due", "_settle",
        "core", "inbox", "lock",
        # written by the thread that arranges the timer
        "alone", "scheduled",
    )  # fmt: skip

    def __init__(
        self,
        core: Any,
        *,
        name: str,
        clock: Callable[[], float],
        lock: Any,
        settle: Callable[[float], object] = _nothing,
        renew: Callable[[], object] = _nothing,
        repair: Callable[[], object] = _nothing,
        perform: Callable[[deque[Any]], object] = _nothing,
        call_later: Callable[[float], bool | None] = _nothing,
        run_due: Callable[[], object] = _nothing,
        note_alone: Callable[[], object] = _nothing,
    ) -> None:
        self.core = core
        self.lock: Any = lock
        self.inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.scheduled = NEVER  # when run_due() will be called; NEVER: it will not be
        self.alone = False  # no thread can be started for run_due(), so each step does the timed work that is due
        self._name = name
        self._clock = clock
        self._settle = settle
        self._renew = renew
        self._repair = repair
        self._perform = perform
        self._call_later = call_later
        self._run_due = run_due
        self._note_alone = note_alone

    @property
    def held(self) -> bool:
        """Whether the calling thread holds the lock. The call then comes from a finalizer inside a critical section."""
        return bool(self.lock._is_owned())

    def step(self, step: Callable[..., T], *args: Any) -> T:
        """Run ``step(*args)`` under the lock, then perform its effects. Returns the result of the step."""
        effects: deque[Any] | None = None
        try:
            self.lock.acquire()
            result = step(*args)
            self._settle(self._clock())
            core = self.core
            if core.stale:
                self._renew()
            effects = core.effects
            if effects:
                core.effects = deque()
                self.lock.release()
                self._perform(effects)
            else:
                effects = None
                self.lock.release()
            if core.due < self.scheduled:
                self.schedule()
            if self.inbox:
                self.run_posted()
        except BaseException:
            self.recover(effects)
            raise
        return result

    def post(self, step: Callable[..., object], *args: Any) -> None:
        """Run a step without waiting for the lock. If another thread holds the lock, that thread runs the step."""
        self.inbox.append((step, args))
        self.run_posted()

    def run_posted(self) -> None:
        """Run the steps in the inbox. If another thread holds the lock, that thread runs them."""
        lock = self.lock
        if lock._is_owned():
            return  # a finalizer inside a critical section of this thread
        effects: deque[Any] | None = None
        try:
            # if another thread holds the lock, it looks into the inbox after releasing it, and runs this step
            while True:  # its jump back follows a plain statement (tests/faults/test_jumps_back.py)
                if not self.inbox or not lock.acquire(False):
                    return
                self._run_inbox()
                core = self.core
                if core.stale:
                    self._renew()
                effects = core.effects
                if effects:
                    core.effects = deque()
                    lock.release()
                    self._perform(effects)
                else:
                    effects = None
                    lock.release()
                if core.due < self.scheduled:
                    self.schedule()
                effects = None
        except BaseException:
            self.recover(effects)
            raise

    def _run_inbox(self) -> None:
        """Run the posted steps. Called under the lock."""
        inbox = self.inbox
        while inbox:
            step, args = inbox.popleft()
            step(*args)
            self._settle(self._clock())

    def recover(self, effects: deque[Any] | None) -> None:
        """Complete a step that an exception has interrupted. ``effects``: those that have not been performed yet."""
        core = self.core
        todo: deque[Any] = deque()
        if effects is not None and effects is not core.effects:
            todo = effects
        if self.lock._is_owned():
            try:
                self._repair()
                more, core.effects = core.effects, deque()
                todo.extend(more)
            finally:
                self.lock.release()
        while todo:
            try:
                self._perform(todo)
            except Exception:
                logger.exception("%s: background work failed; the pool continues with the rest", self._name)
        self.scheduled = NEVER  # the call of call_later() may have been interrupted
        self.keep_time()
        self.run_posted()

    # -- the timer ----------------------------------------------------------------------------------------------------

    def keep_time(self) -> None:
        """Arrange the next call of the owner's ``run_due()``, unless an earlier one is arranged."""
        if self.core.due < self.scheduled:
            self.schedule()

    def schedule(self) -> None:
        """Have the owner's ``run_due()`` called when the core is due.

        If no thread can be started for that, ``scheduled`` stays NEVER. Then each step calls this method again, which
        tries to start a thread and does the work that is due. Waiting callers are woken once, and from then on do such
        work as well (see ``ThreadParker.wait``).
        """
        self.scheduled = due = self.core.due
        delay = max(0.0, due - self._clock())
        arranged = self._call_later(delay)
        alone = arranged is False
        if not arranged:
            self.scheduled = NEVER
        if alone is not self.alone:
            self.alone = alone
            self.post(self._note_alone)
        if alone and not delay:
            self._run_due()
