"""SQLAlchemy's way to be asynchronous: synchronous code in greenlets, which switch to the event loop to wait."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from importlib import import_module
from types import FrameType
from typing import Any

from sqlalchemy import util
from sqlalchemy.util import concurrency

from poolkit.runtimes import Inbox, Task
from poolkit.runtimes.holders import name_of_task, name_of_thread, thread_caller

__all__ = ("GreenletRuntime", "await_", "in_greenlet", "running_loop")

logger = logging.getLogger("poolkit")

running_loop = asyncio._get_running_loop
await_: Any = getattr(util, "await_", None) or util.await_only  # its name in SQLAlchemy 2.0


def _in_greenlet() -> bool:
    of_sqlalchemy: Any = import_module("sqlalchemy.util._concurrency_py3k")  # as it was in the first 2.0
    return isinstance(import_module("greenlet").getcurrent(), of_sqlalchemy._AsyncIoGreenlet)


in_greenlet: Callable[[], bool] = getattr(concurrency, "in_greenlet", _in_greenlet)
"""Whether the calling code may wait."""
_current_task = asyncio.current_task
_greenlet_spawn = util.greenlet_spawn


class _Parker:
    """Where a greenlet sleeps: a future of the loop that runs when it goes to sleep, not when the pool was made."""

    __slots__ = ("_future", "_loop", "_woken")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None
        self._woken = False

    def wait(self, timeout: float | None) -> None:
        """Sleep until woken or ``timeout`` seconds have passed; a cancellation is raised from here."""
        loop = running_loop()
        if loop is None:
            nothing = _nothing()
            try:
                await_(nothing)  # raises MissingGreenlet: nobody can wait here
            finally:
                nothing.close()
            return
        self._loop = loop
        future = self._future = loop.create_future()
        timer = None
        try:
            if not self._woken:  # set by another thread before it looked for our future
                if timeout is not None:
                    timer = loop.call_later(timeout, _finish, future)
                await_(future)
        finally:
            self._future = None
            self._woken = False
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Wake the sleeper, from any thread."""
        self._woken = True
        future, loop = self._future, self._loop
        if future is None or loop is None:
            return
        if running_loop() is loop:
            _finish(future)
            return
        try:
            loop.call_soon_threadsafe(_finish, future)
        except RuntimeError:
            pass  # the loop is closed: nobody sleeps there any more


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _nothing() -> None: ...


class _Here(threading.local):
    """Of the thread: several loops may use one pool at once, each in a thread of its own."""

    loop: asyncio.AbstractEventLoop | None = None
    """In which a connection was asked for last."""
    latest: asyncio.Task[None] | None = None
    """The background task that was started last; who wants to wait for his own looks right after."""

    def forget(self) -> None:
        """From here on the latest one is one of the caller's."""
        self.latest = None


class GreenletRuntime:
    """The world of an :class:`~.AsyncPoolkitPool`: greenlets of whichever event loop runs.

    ``loop`` is its home, where timers run: the first loop that used the pool, until that one ends.
    """

    def __init__(self) -> None:
        self._forget_everything()
        _runtimes.add(self)

    def _forget_everything(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.here = _Here()
        self._thread = thread_caller()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self._due: float | None = None
        self._pool: weakref.ref[Task] | None = None

    def enter(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Another loop than the home runs here: it becomes the home if that one has ended."""
        home = self.loop
        if loop is None or (home is not None and home.is_running()):
            return
        self.loop = loop
        if self._due is not None:
            loop.call_later(max(0.0, self._due - time.monotonic()), self._run_due)

    def parker(self) -> _Parker:
        """A place to sleep for the calling greenlet."""
        return _Parker()

    def spawn(self, job: Callable[..., object], *args: Any, **keywords: Any) -> None:
        """Run ``job(*args)`` in a greenlet of a task of its own; where no loop runs at all, here."""
        loop = running_loop()
        if loop is not None:
            self._start(loop, job, args, keywords)
            return
        home = self.loop
        if home is not None and home.is_running():
            try:
                home.call_soon_threadsafe(self._start, home, job, args, keywords)
                return
            except RuntimeError:
                pass  # it has just ended
        job(*args, **keywords)

    def _start(
        self,
        loop: asyncio.AbstractEventLoop,
        job: Callable[..., object],
        args: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> None:
        task = self.here.latest = loop.create_task(_guarded(job, args, keywords))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def pending(self) -> list[asyncio.Task[None]]:
        """The background tasks of the running loop that are not done."""
        loop = running_loop()
        return [task for task in tuple(self._tasks) if task.get_loop() is loop]

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in the home loop in ``delay`` seconds; infinity: no more."""
        if delay == math.inf:
            self._due = None
            return
        self._pool = weakref.ref(task)
        self._due = time.monotonic() + delay
        loop, home = running_loop(), self.loop
        if home is None or not home.is_running():
            self.enter(loop)
        elif home is loop:
            home.call_later(delay, self._run_due)
        else:
            try:
                home.call_soon_threadsafe(home.call_later, delay, self._run_due)
            except RuntimeError:
                pass  # the next loop that comes by takes it over

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` in the home loop soon, if it runs."""
        if self.loop is not None and self.loop.is_running():
            try:
                self.loop.call_soon_threadsafe(_run_inbox, weakref.ref(task))
            except RuntimeError:
                pass  # it has just ended

    def _run_due(self) -> None:
        if self._due is None or time.monotonic() < self._due - 0.001:
            return  # a timer that was overtaken by an earlier or a later one
        self._due = None
        task = None if self._pool is None else self._pool()
        if task is not None:
            task.run_due()

    def caller(self) -> Hashable:
        """Identity of the current task, or of the thread where there is none."""
        loop = self.here.loop
        return self._thread() if loop is None else weakref.ref(_current_task(loop))

    def outer_frame(self) -> FrameType | None:
        """Where the frames of the running greenlet go on: with the coroutine that switched to it."""
        greenlets: Any = import_module("greenlet")  # not needed by those who never come here
        parent = greenlets.getcurrent().parent
        frame: FrameType | None = None if parent is None else parent.gr_frame
        return frame

    def name_of(self, caller: Any) -> str:
        """The name of the task, or of the thread."""
        return name_of_task(caller, _look) if isinstance(caller, weakref.ref) else name_of_thread(caller)


def _look(task: asyncio.Task[object]) -> tuple[str, bool]:
    return task.get_name(), task.done()


def _run_inbox(ref: weakref.ref[Inbox]) -> None:
    task = ref()
    if task is not None:
        task.run_inbox()


async def _guarded(job: Callable[..., object], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    try:
        await _greenlet_spawn(job, *args, **keywords)
    except Exception:
        logger.exception("poolkit: background job failed")


_runtimes: weakref.WeakSet[GreenletRuntime] = weakref.WeakSet()
_buried: list[object] = []


def _after_fork_in_child() -> None:
    """The parent's loop does not run here, whatever it says of itself; waking it would write to a shared pipe."""
    for runtime in list(_runtimes):
        _buried.append((runtime.loop, runtime._tasks))
        runtime._forget_everything()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
