"""The narrow interface between a shell and the world in which it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol

__all__ = ("AsyncParker", "AsyncRuntime", "Inbox", "Runtime", "SyncParker", "Task")


class SyncParker(Protocol):
    """Where one caller sleeps. ``wake`` never blocks; a wake before the wait is not lost."""

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
    """Something periodic that lives as long as somebody else keeps it alive: a pool."""

    def run_due(self) -> None:
        """Called when the time asked for has come. Must not block."""


class Inbox(Protocol):
    """Something that finalizers leave work for: a pool."""

    def run_inbox(self) -> None:
        """Called after a nudge: do what finalizers have left. Must not block."""


class Runtime(Protocol):
    """The world of a synchronous pool."""

    def parker(self) -> SyncParker:
        """A place to sleep for the calling thread (or greenlet)."""

    def spawn(self, job: Callable[..., object], *args: Any) -> None:
        """Run ``job(*args)`` in the background; it may block. Exceptions are the job's own business."""

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in ``delay`` seconds, or sooner; hold the task weakly. Infinity: no more."""

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` soon, if that takes no lock: this is called by finalizers. May do nothing."""

    def caller(self) -> Hashable:
        """Identity of the calling thread or task: never that of another one, even after this one has ended. Keeps
        nothing alive.
        """

    def name_of(self, caller: Any) -> str:
        """A caller's name for messages; with "(ended)" at its end if the thread or task does not exist any more."""


class AsyncRuntime(Protocol):
    """The world of an asynchronous pool: one event loop."""

    library: str

    def here(self) -> bool:
        """Whether the calling code runs in this runtime's event loop."""

    def alive(self) -> bool:
        """Whether the event loop can still run tasks."""

    def parker(self) -> AsyncParker:
        """A place to sleep for the calling task."""

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a task of its own, from any thread."""

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in the loop in ``delay`` seconds, or sooner; hold the task weakly."""

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` in the loop soon; this is called by finalizers, in any thread."""

    async def bounded(self, timeout: float | None, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """``await call(*args)``; TimeoutError after ``timeout`` seconds. Only in tasks made by ``spawn``."""

    def caller(self) -> Hashable:
        """Identity of the calling task, as :meth:`Runtime.caller`."""

    def name_of(self, caller: Any) -> str:
        """A task's name for messages, as :meth:`Runtime.name_of`."""
