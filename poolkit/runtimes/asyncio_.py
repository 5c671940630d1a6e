"""asyncio. The only file that imports it."""

from __future__ import annotations

import asyncio
import os
import sys
import weakref
from asyncio import current_task
from collections.abc import Awaitable, Callable, Hashable
from typing import Any
from weakref import ref

from .._log import logger
from ..policies.retire import NEVER
from .base import Inbox, Task
from .holders import NOBODY, name_of_task

__all__ = ("AsyncioRuntime", "current")

_running = asyncio._get_running_loop


def current() -> AsyncioRuntime | None:
    """The runtime of the running asyncio loop, if there is one."""
    loop = _running()
    return None if loop is None else AsyncioRuntime(loop)


class _Parker:
    """A future, made when somebody really sleeps."""

    __slots__ = ("_future", "_loop", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] | None = None
        self._woken = False

    async def wait(self, timeout: float | None) -> None:
        if self._woken:
            self._woken = False
            return
        future = self._future = self._loop.create_future()
        timer = None if timeout is None else self._loop.call_later(timeout, self._wake)
        try:
            await future
        finally:
            self._future = None
            self._woken = False
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        if _running() is self._loop:
            self._wake()
            return
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            pass  # the loop is closed: nobody sleeps there any more

    def _wake(self) -> None:
        self._woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


if sys.version_info >= (3, 11):  # entering a try costs nothing

    def _caller() -> Hashable:
        try:
            return ref(current_task())  # every acquire executes this
        except TypeError:
            return 0
else:

    def _caller() -> Hashable:
        return ref(current_task() or NOBODY)


def _look(task: Any) -> tuple[str, bool]:
    return ("a task", False) if task is NOBODY else (task.get_name(), task.done())


class _Timer:
    """The one pending call of ``run_due()`` for a task. Used in the loop's thread, but for :meth:`_collected`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: Task) -> None:
        self._loop = loop
        self._task = weakref.ref(task, self._collected)
        self._handle: asyncio.TimerHandle | None = None
        self._at = NEVER
        self._pid = os.getpid()

    def set(self, delay: float) -> None:
        """Call in ``delay`` seconds: an earlier time replaces a later one, a later one adds nothing."""
        at = self._loop.time() + delay
        if self._handle is not None:
            if self._at <= at < NEVER:
                return
            self._handle.cancel()
            self._handle = None
        if at < NEVER:
            self._at = at
            self._handle = self._loop.call_at(at, _run_due, self)

    def run(self) -> None:
        """The time has come."""
        self._handle = None
        task = self._task()
        if task is not None:
            task.run_due()

    def _collected(self, _ref: weakref.ref[Task]) -> None:
        """Called by the garbage collector, in any thread: the timer goes with its task."""
        # not in a forked child: a message to the loop would reach the parent's
        if self._handle is not None and os.getpid() == self._pid:
            try:
                self._loop.call_soon_threadsafe(self.set, NEVER)
            except RuntimeError:
                pass  # the loop is closed, and with it its timers


class AsyncioRuntime:
    """One asyncio event loop."""

    library = "asyncio"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timers: weakref.WeakKeyDictionary[Task, _Timer] = weakref.WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    def here(self) -> bool:
        """Whether the calling code runs in this loop."""
        return _running() is self._loop

    def alive(self) -> bool:
        """Whether the loop is open."""
        return not self._loop.is_closed()

    def parker(self) -> _Parker:
        """A place to sleep for the calling task."""
        return _Parker(self._loop)

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a task of its own."""
        if self.here():
            self._start(job, args)
        else:
            try:
                self._loop.call_soon_threadsafe(self._start, job, args)
            except RuntimeError:
                pass  # the loop is closed, and with it every connection of the pool

    def _start(self, job: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        task = self._loop.create_task(_guarded(job, args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in ``delay`` seconds, or sooner; infinity: no more."""
        if self.here():
            self._set_timer(weakref.ref(task), delay)
        else:
            try:
                self._loop.call_soon_threadsafe(self._set_timer, weakref.ref(task), delay)
            except RuntimeError:
                pass

    def _set_timer(self, ref: weakref.ref[Task], delay: float) -> None:
        task = ref()
        if task is not None:
            timer = self._timers.get(task)
            if timer is None:
                timer = self._timers[task] = _Timer(self._loop, task)
            timer.set(delay)

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` soon."""
        try:
            self._loop.call_soon_threadsafe(_run_inbox, weakref.ref(task))
        except RuntimeError:
            pass  # the loop is closed

    async def bounded(self, timeout: float | None, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """``await call(*args)`` under a deadline, in a task that nobody else cancels but the end of the loop."""
        task = asyncio.current_task()
        if timeout is None or task is None:
            return await call(*args)
        late = False

        def cancel() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = self._loop.call_later(timeout, cancel)
        try:
            return await call(*args)
        except asyncio.CancelledError:
            if not late:
                raise
            if hasattr(task, "uncancel"):
                task.uncancel()
            raise TimeoutError(f"no answer in {timeout:g} s") from None
        finally:
            timer.cancel()

    caller = staticmethod(_caller)
    """Identity of the current task."""

    def name_of(self, caller: Any) -> str:
        """The task's name."""
        return name_of_task(caller, _look)


def _run_due(timer: _Timer) -> None:
    timer.run()


def _run_inbox(ref: weakref.ref[Inbox]) -> None:
    task = ref()
    if task is not None:
        task.run_inbox()


async def _guarded(job: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
    try:
        await job(*args)
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except GeneratorExit:  # the loop has ended; raised by a driver it would be an error that nobody retrieves
        return
    except BaseException:  # a driver's own kind; nobody awaits this task
        logger.exception("poolkit: background job failed")
