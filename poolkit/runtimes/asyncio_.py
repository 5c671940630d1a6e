"""The runtime for asyncio. Only this file imports asyncio."""

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
from .base import AsyncParker, AsyncRuntime, Inbox, Task
from .holders import NOBODY, name_of_task

__all__ = ("AnyLoopRuntime", "AsyncioRuntime", "current")

_running = asyncio._get_running_loop


NAP = 0.5
"""Seconds that a caller of a pool for any loop sleeps at a time: the loop that runs the pool's work may have ended."""


LEAVE = 0.05
"""Seconds from the cancellation of background work until a loop that still runs continues the work."""


def current(any_loop: bool = False) -> AsyncRuntime | None:
    """The runtime of the running asyncio loop, if there is one; ``any_loop``: one for all loops of the process."""
    loop = _running()
    if loop is None:
        return None
    return AnyLoopRuntime(loop) if any_loop else AsyncioRuntime(loop)


class _Parker:
    """Suspends a task with a future, which is created only when the task really waits."""

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
            pass  # the loop is closed, so no task is suspended in it

    def _wake(self) -> None:
        self._woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


if sys.version_info >= (3, 11):  # a try block costs nothing to enter

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
    """The one pending call of ``run_due()`` for a task. Only :meth:`_collected` may run outside of the loop's
    thread.
    """

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
        """Called by the garbage collector, in any thread: cancel the timer together with its task."""
        # not in a forked child: a message to the loop would reach the parent's
        if self._handle is not None and os.getpid() == self._pid:
            try:
                self._loop.call_soon_threadsafe(self.set, NEVER)
            except RuntimeError:
                pass  # the loop is closed, and with it its timers


def _cancels(task: asyncio.Task[Any]) -> int:
    """Return how many cancellations of a task are requested. Python 3.10 does not count them."""
    return task.cancelling() if hasattr(task, "cancelling") else 0


async def _bounded(timeout: float | None, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    task = asyncio.current_task()
    if timeout is None or task is None:
        return await call(*args)
    late, before = False, _cancels(task)

    def cancel() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = task.get_loop().call_later(timeout, cancel)
    try:
        return await call(*args)
    except asyncio.CancelledError:
        if not late or _cancels(task) > before + 1:  # its caller has cancelled it, too
            raise
        raise TimeoutError(f"no answer in {timeout:g} s") from None
    finally:
        timer.cancel()
        if late and hasattr(task, "uncancel"):
            task.uncancel()  # even if the call has returned in spite of the cancellation


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

    def running(self) -> bool:
        """Whether the loop runs now."""
        return self._loop.is_running()

    def parker(self) -> _Parker:
        """A new parker for the calling task."""
        return _Parker(self._loop)

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a new task."""
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

    bounded = staticmethod(_bounded)
    """``await call(*args)`` under a deadline. A cancellation by others is not lost (except, on Python 3.10, in the same
    turn of the loop).
    """

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
    except GeneratorExit:  # the loop has ended; if a driver raised it, nobody would retrieve the error
        return
    except BaseException:  # a driver's own exception class; nobody awaits this task
        logger.exception("poolkit: background job failed")


class _Job:
    """Background work of a loop. The loop that pops ``work`` runs it: this loop, or one that replaces it."""

    __slots__ = ("loop", "task", "work")

    def __init__(self, loop: asyncio.AbstractEventLoop | None, work: tuple[Callable[..., Any], Any]) -> None:
        self.loop = loop
        self.work = [work]
        self.task: asyncio.Task[None] | None = None  # the loop itself keeps only weak references


class _NappingParker:
    """Suspends a task in the caller's loop, and checks at intervals whether the loop of the pool's work has ended."""

    __slots__ = ("_parker", "_runtime", "wake")

    def __init__(self, runtime: AnyLoopRuntime, loop: asyncio.AbstractEventLoop) -> None:
        self._runtime = runtime
        self._parker = _Parker(loop)
        self.wake = self._parker.wake

    async def wait(self, timeout: float | None) -> None:
        await self._parker.wait(NAP if timeout is None else min(timeout, NAP))
        self._runtime.here()


class AnyLoopRuntime:
    """The runtime for any asyncio loop: one after the other, or several at once in different threads.

    For connectors with ``any_loop``. Callers wait, and background work runs, in the loop that requests it. Timers run
    in the home loop: the first loop that used the pool. When it stops, the next loop that uses the pool becomes the
    home. The next loop also runs the work that a stopped loop has not begun. There is no lock, because finalizers call
    :meth:`spawn` and :meth:`nudge` at any point; each step on the shared sets is atomic.
    """

    library = "asyncio"
    caller = staticmethod(_caller)
    bounded = staticmethod(_bounded)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: asyncio.AbstractEventLoop | None = loop  # that of the home
        self._home: AsyncioRuntime | None = AsyncioRuntime(loop)
        self._pool: weakref.ref[Task] | None = None  # tasks with timed work
        self._jobs: set[_Job] = set()
        self._leaving: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    def here(self) -> bool:
        """Whether the calling code runs in a loop."""
        loop = _running()
        if loop is not self._loop:
            if loop is None:
                return False
            self._enter(loop)
        return True

    def alive(self) -> bool:
        """Whether there is a loop that runs the pool's work."""
        loop = self._loop
        return loop is not None and loop.is_running()

    running = alive

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the running loop take over the work that stopped loops have left."""
        stays = loop in self._leaving  # no work has begun in it since it seemed to end
        self._leaving.discard(loop)
        if not self.alive():
            self._home, self._loop = AsyncioRuntime(loop), loop
            pool = self._pool() if self._pool is not None else None
            if pool is not None:
                self._home.schedule(pool, 0.0)  # sooner than requested: the task then requests its next call
        for job in tuple(self._jobs):
            other = job.loop
            if other is None or (stays and other is loop) or other in self._leaving or not other.is_running():
                self._take_over(job)

    def _take_over(self, job: _Job) -> None:
        try:
            call, args = job.work.pop()
        except IndexError:  # begun: it continues when its loop does
            if job.loop is not None and job.loop.is_closed():
                self._jobs.discard(job)  # never set: the garbage collector ends this task, which the pool notices
            return
        self._jobs.discard(job)
        self.spawn(call, *args)

    def parker(self) -> AsyncParker:
        """A new parker for the calling task."""
        return _NappingParker(self, asyncio.get_running_loop())

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a task of the running loop or of the home; without one, in the next loop."""
        here = _running()
        loop = here if here is not None else self._loop
        given = _Job(loop, (job, args))
        self._jobs.add(given)
        if loop is None:
            return
        try:
            if here is not None:
                loop.call_soon(self._start, given)
            else:
                loop.call_soon_threadsafe(self._start, given)
        except RuntimeError:
            pass  # the loop is closed

    def _start(self, job: _Job) -> None:
        loop = job.loop
        assert loop is not None
        if job.work and loop not in self._leaving:
            job.task = loop.create_task(self._run(job, loop))

    async def _run(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        try:
            call, args = job.work.pop()
        except IndexError:
            return  # another loop has taken it over
        try:
            await _guarded(call, args)
        except asyncio.CancelledError:
            self._leave(loop)
            raise
        finally:
            self._jobs.discard(job)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin no work in the loop for a moment: its task was cancelled, so the loop is probably about to end."""
        self._leaving.add(loop)
        if loop is self._loop:
            self._home = self._loop = None
        loop.call_later(LEAVE, self._enter, loop)  # the driver or a callback raised CancelledError

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in ``delay`` seconds, or sooner; infinity: no more."""
        self._pool = weakref.ref(task) if delay < NEVER else None
        home = self._home
        if home is not None:
            home.schedule(task, delay)

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` soon."""
        home = self._home
        if home is not None:
            home.nudge(task)

    def name_of(self, caller: Any) -> str:
        """The task's name."""
        return name_of_task(caller, _look)
