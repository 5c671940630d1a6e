"""The interface between a pool and its runtime (threads or an event loop)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol

__all__ = ("AsyncParker", "AsyncRuntime", "Inbox", "Runtime", "SyncParker", "Task")


class SyncParker(Protocol):
    """Suspends one waiting caller. ``wake`` never blocks; a wake before the wait is not lost."""

    def wait(self, timeout: float | None) -> None:
        """Sleep until woken or ``timeout`` seconds have passed (None: no limit)."""

    def wake(self) -> None:
        """Wake the sleeper, from any thread; may come twice or for nothing."""


class AsyncParker(Protocol):
    """As :class:`SyncParker`, for a task; a cancellation is raised from ``wait``."""

    async def wait(self, timeout: float | None) -> None:
        """Sleep until woken or ``timeout`` seconds have passed (None: no limit)."""

    def wake(self) -> None:
        """Wake the sleeper, from any thread; may come twice or for nothing."""


class Task(Protocol):
    """An object with timed work, held weakly: a pool."""

    def run_due(self) -> None:
        """Called once, at the requested time or earlier. Must not block."""


class Inbox(Protocol):
    """An object for which finalizers leave work: a pool."""

    def run_inbox(self) -> None:
        """Called after :meth:`Runtime.nudge`: do the work that finalizers have left. Must not block."""


class Runtime(Protocol):
    """The runtime of a synchronous pool. All methods are thread-safe."""

    def parker(self) -> SyncParker:
        """A new parker for the calling thread (or greenlet)."""

    def spawn(self, job: Callable[..., object], *args: Any) -> None:
        """Run ``job(*args)`` in the background; it may block and must handle its own exceptions."""

    def schedule(self, task: Task, delay: float) -> bool | None:
        """Call ``task.run_due()`` once in ``delay`` seconds, or sooner; hold the task weakly. Infinity: no call.

        At most one call is pending for a task: an earlier time replaces a later one, a later one has no effect. Returns
        False if no thread can be started to make the call; the task then does its timed work itself and asks again.
        """

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` soon. Called by finalizers, so it must not take a lock. May do nothing."""

    def caller(self) -> Hashable:
        """Identity of the calling thread or task. It is never reused, even after the thread or task has ended, and
        keeps nothing alive.
        """

    def name_of(self, caller: Any) -> str:
        """A caller's name for messages; it ends with "(ended)" if the thread or task no longer exists."""


class AsyncRuntime(Protocol):
    """The runtime of an asynchronous pool: one event loop."""

    library: str

    def here(self) -> bool:
        """Whether the calling code runs in this runtime's event loop."""

    def alive(self) -> bool:
        """Whether the event loop can still run tasks."""

    def running(self) -> bool:
        """Whether the event loop runs now, in any thread."""

    def parker(self) -> AsyncParker:
        """A new parker for the calling task."""

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a new task, in a copy of the calling context. May be called from any thread."""

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` once in the loop in ``delay`` seconds, or sooner; hold the task weakly.

        At most one call is pending for a task: an earlier time replaces a later one, a later one has no effect.
        Infinity: no call. No call is pending for a task that has been garbage-collected.
        """

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` in the loop soon. Called by finalizers, in any thread."""

    async def bounded(self, timeout: float | None, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """``await call(*args)``; TimeoutError after ``timeout`` seconds (None: no limit)."""

    def caller(self) -> Hashable:
        """Identity of the calling task, as :meth:`Runtime.caller`."""

    def name_of(self, caller: Any) -> str:
        """A task's name for messages, as :meth:`Runtime.name_of`."""
