"""A runtime for SQLAlchemy's asyncio mode: synchronous code in greenlets, which switch to the event loop to wait."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Hashable
from importlib import import_module
from types import FrameType
from typing import Any

from sqlalchemy import util
from sqlalchemy.util import concurrency

from poolkit.runtimes import Inbox, Task
from poolkit.runtimes.fork import Stage, after_fork
from poolkit.runtimes.holders import name_of_task, name_of_thread, thread_caller

from .._time_limits import Watch, loop_watch

__all__ = ("GreenletRuntime", "await_", "in_greenlet", "running_loop")

logger = logging.getLogger("poolkit")

running_loop = asyncio._get_running_loop
await_: Any = getattr(util, "await_", None) or util.await_only  # its name in SQLAlchemy 2.0


def _in_greenlet() -> bool:
    of_sqlalchemy: Any = import_module("sqlalchemy.util._concurrency_py3k")  # as it was in the first 2.0
    return isinstance(import_module("greenlet").getcurrent(), of_sqlalchemy._AsyncIoGreenlet)


in_greenlet: Callable[[], bool] = getattr(concurrency, "in_greenlet", _in_greenlet)
"""Return whether the calling code may wait."""
_current_task = asyncio.current_task
_greenlet_spawn = util.greenlet_spawn


class _Parker:
    """Puts a greenlet to sleep on a future of the event loop that runs at that moment."""

    __slots__ = ("_future", "_loop", "_runtime", "_woken", "home")

    def __init__(self, runtime: GreenletRuntime) -> None:
        self._runtime = runtime
        self.home = running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None
        self._woken = False

    def wait(self, timeout: float | None) -> None:
        """Sleep until woken or until ``timeout`` seconds have passed. Raises a cancellation of the task."""
        loop = running_loop()
        if loop is None:
            nothing = _nothing()
            try:
                await_(nothing)  # raises MissingGreenlet, because this code cannot wait
            finally:
                nothing.close()
            return
        self._loop = loop
        future = self._future = loop.create_future()
        timer = None
        try:
            if not self._woken:  # another thread sets it before it reads self._future
                if timeout is not None:
                    timer = loop.call_later(timeout, _finish, future)
                await_(future)
        finally:
            self._future = None
            self._woken = False
            if timer is not None:
                timer.cancel()

    def spawn(self, job: Callable[..., object], *args: Any) -> None:
        """Run ``job(*args)`` in a task of the loop in which the sleeper needs its result, from any thread."""
        self._runtime.spawn_in(self.home, job, *args)

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
            pass  # the loop is closed, so nothing sleeps there


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _nothing() -> None: ...


class _Here(threading.local):
    """State of a thread: several event loops, each in its own thread, may use one pool at the same time."""

    loop: asyncio.AbstractEventLoop | None = None
    """The loop of the last acquire."""
    leftover: asyncio.Task[None] | None = None
    """The task that ends the last abandoned connect. The engine takes it over at once."""
    latest: asyncio.Task[None] | None = None
    """The background task on a connection, such as its close, that was started last. A caller reads it directly after
    starting its own."""

    _watched: asyncio.AbstractEventLoop | None = None
    _watch: Watch | None = None

    def forget(self) -> None:
        """Clear the latest task, so that the next one is the caller's."""
        self.latest = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> Watch:
        """Return the time limits of connections of ``loop``, which is running in this thread."""
        if self._watch is None or self._watched is not loop:
            self._watched, self._watch = loop, loop_watch(loop)
        return self._watch


class GreenletRuntime:
    """The runtime of an :class:`~.AsyncPoolkitPool`: greenlets of any event loop.

    Timers run in the home loop, ``loop``: the first loop that used the pool, until that loop ends.
    """

    def __init__(self) -> None:
        self._forget_everything()
        _runtimes.add(self)

    def _forget_everything(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.several = False  # whether several loops have used the pool at the same time
        self.here = _Here()
        self._thread = thread_caller()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references
        self._opening: set[asyncio.Task[None]] = set()  # those that have no connection yet
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None  # the timer set in the home loop
        self._pool: weakref.ref[Task] | None = None

    def enter(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Make the running loop the home loop if the home loop has ended."""
        home = self.loop
        if loop is None:
            return
        if home is not None and home.is_running():
            self.several = True
            return
        self.loop, self._timer = loop, None  # the old one ended with its loop
        self._set_timer()

    def parker(self) -> _Parker:
        """Return a parker for the calling greenlet."""
        return _Parker(self)

    def spawn(self, job: Callable[..., object], *args: Any, **keywords: Any) -> None:
        """Run ``job(*args)`` in a greenlet of a new task, or directly if no loop is running."""
        self.spawn_in(running_loop(), job, *args, **keywords)

    def spawn_in(
        self, wanted: asyncio.AbstractEventLoop | None, job: Callable[..., object], *args: Any, **keywords: Any
    ) -> None:
        """As :meth:`spawn`, in this loop if it runs."""
        here = running_loop()
        for loop in (wanted, here, self.loop):
            if loop is None:
                continue
            if loop is here:
                self._start(loop, job, args, keywords)
                return
            if loop.is_running():
                try:
                    loop.call_soon_threadsafe(self._start, loop, job, args, keywords)
                    return
                except RuntimeError:
                    pass  # the loop has just ended
        job(*args, **keywords)

    def _start(
        self,
        loop: asyncio.AbstractEventLoop,
        job: Callable[..., object],
        args: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> None:
        task = self._kept(loop.create_task(_guarded(job, args, keywords)))
        if args and getattr(args[0], "connection", None) is not None:
            self.here.latest = task
        else:
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``coroutine`` in a background task of the running loop."""
        return self._kept(asyncio.get_running_loop().create_task(coroutine))

    def _kept(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def pending(self, *, opening: bool = False) -> list[asyncio.Task[None]]:
        """Return the background tasks of the running loop that are not done: ``opening`` those that open connections,
        or else all others.
        """
        loop = running_loop()
        tasks = self._opening if opening else self._tasks - self._opening
        return [task for task in tuple(tasks) if task.get_loop() is loop]

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in the home loop in ``delay`` seconds. Infinity cancels the call."""
        due = time.monotonic() + delay
        if due < math.inf:
            self._pool = weakref.ref(task, self._collected)
            self._due = due if self._due is None else min(due, self._due)
        else:
            self._due = None
        loop, home = running_loop(), self.loop
        if home is None or not home.is_running():
            self.enter(loop)
        elif home is loop:
            self._set_timer()
        else:
            try:
                home.call_soon_threadsafe(self._set_timer)
            except RuntimeError:
                pass  # the next loop that uses the pool takes the timer over

    def _set_timer(self) -> None:
        """Set the only timer, in the home loop, to the time that is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due is not None and self.loop is not None:
            self._timer = self.loop.call_later(max(0.0, self._due - time.monotonic()), self._run_due)

    def _collected(self, _ref: weakref.ref[Task]) -> None:
        """Cancel the timer of a pool that was garbage-collected. The collector calls this in any thread."""
        self._due = None
        if self._timer is not None and self.loop is not None:  # a forked child has forgotten them
            try:
                self.loop.call_soon_threadsafe(self._set_timer)
            except RuntimeError:
                pass  # the loop is closed, and so are its timers

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` soon in the home loop, if that is running."""
        if self.loop is not None and self.loop.is_running():
            try:
                self.loop.call_soon_threadsafe(_run_inbox, weakref.ref(task))
            except RuntimeError:
                pass  # it has just ended

    def _run_due(self) -> None:
        self._timer = self._due = None
        task = None if self._pool is None else self._pool()
        if task is not None:
            task.run_due()

    def caller(self) -> Hashable:
        """Return the identity of the current task, or of the thread if there is none."""
        loop = self.here.loop
        return self._thread() if loop is None else weakref.ref(_current_task(loop))

    def outer_frame(self) -> FrameType | None:
        """Return the frame of the coroutine that switched to the running greenlet, where its frames continue."""
        greenlets: Any = import_module("greenlet")  # imported here, because most programs never need it
        parent = greenlets.getcurrent().parent
        frame: FrameType | None = None if parent is None else parent.gr_frame
        return frame

    def name_of(self, caller: Any) -> str:
        """Return the name of the task or of the thread."""
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
_kept_from_finalizers: list[object] = []


def _after_fork_in_child() -> None:
    """Forget the parent's loop. It claims to run, but does not run here, and waking it would write to a shared pipe."""
    for runtime in list(_runtimes):
        _kept_from_finalizers.append((runtime.loop, runtime._tasks))
        runtime._forget_everything()


after_fork(Stage.ADAPTERS, _after_fork_in_child)
