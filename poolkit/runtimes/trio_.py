"""The runtime for trio. Only this file imports trio."""

from __future__ import annotations

import os
import weakref
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any

import trio

from .._log import logger
from ..policies.retire import NEVER
from .base import Inbox, Task
from .holders import name_of_task

__all__ = ("TrioRuntime", "current")


def current() -> TrioRuntime | None:
    """The runtime of the running trio loop, if there is one."""
    try:
        return TrioRuntime(trio.lowlevel.current_trio_token())
    except RuntimeError:
        return None


class _Parker:
    __slots__ = ("_event", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._event = trio.Event()

    async def wait(self, timeout: float | None) -> None:
        event = self._event
        if timeout is None:
            await event.wait()
        else:
            with trio.move_on_after(timeout):
                await event.wait()
        self._event = trio.Event()

    def wake(self) -> None:
        if _is_here(self._token):
            self._wake()
            return
        try:
            self._token.run_sync_soon(self._wake)
        except trio.RunFinishedError:
            pass  # the run has ended, so no task sleeps there

    def _wake(self) -> None:
        self._event.set()


def _is_here(token: trio.lowlevel.TrioToken) -> bool:
    try:
        return trio.lowlevel.current_trio_token() is token
    except RuntimeError:
        return False


class _Timer:
    """The one pending call of ``run_due()`` for a task: a system task that sleeps until then, and ends when there is
    nothing to wait for. Used in the run's thread, but for :meth:`_collected`.
    """

    def __init__(self, token: trio.lowlevel.TrioToken, task: Task) -> None:
        self._token = token
        self._task = weakref.ref(task, self._collected)
        self._at = NEVER
        self._sleep: trio.CancelScope | None = None
        self._pid = os.getpid()

    def set(self, delay: float) -> None:
        """Call in ``delay`` seconds: an earlier time replaces a later one, a later one adds nothing."""
        at = trio.current_time() + delay
        if self._at <= at < NEVER:
            return
        self._at = at
        if self._sleep is not None:
            self._sleep.deadline = at
            if at == NEVER:
                self._sleep.cancel()
        elif at < NEVER:
            self._sleep = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._wait)

    async def _wait(self) -> None:
        try:
            while True:
                if self._at == NEVER:
                    break
                self._sleep = trio.CancelScope(deadline=self._at)
                with self._sleep:
                    await trio.sleep_forever()
                self._call_if_due()
        finally:
            self._sleep = None

    def _call_if_due(self) -> None:
        if trio.current_time() < self._at:
            return
        self._at = NEVER
        task = self._task()
        try:
            if task is not None:
                task.run_due()
        except Exception:  # a system task that raises would end the whole run
            logger.exception("poolkit: housekeeping failed")

    def _collected(self, _ref: weakref.ref[Task]) -> None:
        """Called by the garbage collector, in any thread: cancel the timer together with its task."""
        # not in a forked child: a message to the run would reach the parent's
        if self._sleep is not None and os.getpid() == self._pid:
            try:
                self._token.run_sync_soon(self.set, NEVER)
            except trio.RunFinishedError:
                pass


class TrioRuntime:
    """One trio run."""

    library = "trio"

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._timers: weakref.WeakKeyDictionary[Task, _Timer] = weakref.WeakKeyDictionary()

    def here(self) -> bool:
        """Whether the calling code runs in this run."""
        return _is_here(self._token)

    def alive(self) -> bool:
        """Whether the run has not ended."""
        try:
            self._token.run_sync_soon(_nothing, idempotent=True)
        except trio.RunFinishedError:
            return False
        return True

    running = alive

    def parker(self) -> _Parker:
        """A new parker for the calling task."""
        return _Parker(self._token)

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a system task, so that no nursery of the user has to wait for it.

        It runs in a copy of the calling context.
        """
        if self.here():
            self._start(job, args, copy_context())
        else:
            try:
                self._token.run_sync_soon(self._start, job, args, copy_context())
            except trio.RunFinishedError:
                pass

    def _start(self, job: Callable[..., Awaitable[object]], args: tuple[Any, ...], context: Context) -> None:
        # by itself, trio runs a system task in the context in which its loop was started
        trio.lowlevel.spawn_system_task(_guarded, job, args, context=context)

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in ``delay`` seconds, or sooner; infinity: no more."""
        if self.here():
            self._set_timer(weakref.ref(task), delay)
        else:
            try:
                self._token.run_sync_soon(self._set_timer, weakref.ref(task), delay)
            except trio.RunFinishedError:
                pass

    def _set_timer(self, ref: weakref.ref[Task], delay: float) -> None:
        task = ref()
        if task is not None:
            timer = self._timers.get(task)
            if timer is None:
                timer = self._timers[task] = _Timer(self._token, task)
            timer.set(delay)

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` soon."""
        try:
            self._token.run_sync_soon(_run_inbox, weakref.ref(task))
        except trio.RunFinishedError:
            pass

    async def bounded(self, timeout: float | None, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """``await call(*args)`` under a deadline."""
        if timeout is None:
            return await call(*args)
        with trio.move_on_after(timeout):
            return await call(*args)
        raise TimeoutError(f"no answer in {timeout:g} s")

    def caller(self) -> weakref.ref[trio.lowlevel.Task]:
        """Identity of the current task."""
        return weakref.ref(trio.lowlevel.current_task())

    def name_of(self, caller: Any) -> str:
        """The task's name."""
        return name_of_task(caller, _look)


def _look(task: trio.lowlevel.Task) -> tuple[str, bool]:
    return task.name, getattr(task.coro, "cr_frame", task) is None  # a coroutine that has ended has no frame


def _run_inbox(ref: weakref.ref[Inbox]) -> None:
    task = ref()
    if task is not None:
        task.run_inbox()


async def _guarded(job: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
    try:
        await job(*args)
    except trio.Cancelled:
        raise
    except GeneratorExit:  # the run has ended; raised by a driver it would end the run
        return
    except BaseException:  # a system task that raises would end the whole run
        logger.exception("poolkit: background job failed")


def _nothing() -> None:
    pass
