"""asyncio. The only file that imports it."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import current_task
from collections.abc import Awaitable, Callable, Hashable
from typing import Any
from weakref import ref

from .._log import logger
from .base import Inbox, Task
from .holders import name_of_task

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


def _caller() -> Hashable:
    try:
        return ref(current_task())  # every acquire executes this
    except TypeError:  # no task: the coroutine is run by something else
        return 0


def _look(task: asyncio.Task[object]) -> tuple[str, bool]:
    return task.get_name(), task.done()


class AsyncioRuntime:
    """One asyncio event loop."""

    library = "asyncio"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
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
        """Call ``task.run_due()`` in ``delay`` seconds."""
        ref = weakref.ref(task)
        if self.here():
            self._loop.call_later(delay, _run_due, ref)
        else:
            try:
                self._loop.call_soon_threadsafe(self._loop.call_later, delay, _run_due, ref)
            except RuntimeError:
                pass

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


def _run_due(ref: weakref.ref[Task]) -> None:
    task = ref()
    if task is not None:
        task.run_due()


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
