"""trio. The only file that imports it."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from .._log import logger
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
            pass  # nobody sleeps there any more

    def _wake(self) -> None:
        self._event.set()


def _is_here(token: trio.lowlevel.TrioToken) -> bool:
    try:
        return trio.lowlevel.current_trio_token() is token
    except RuntimeError:
        return False


class TrioRuntime:
    """One trio run."""

    library = "trio"

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._over = False

    def here(self) -> bool:
        """Whether the calling code runs in this run."""
        return _is_here(self._token)

    def alive(self) -> bool:
        """Whether the run goes on."""
        try:
            self._token.run_sync_soon(_nothing, idempotent=True)
        except trio.RunFinishedError:
            return False
        return True

    def parker(self) -> _Parker:
        """A place to sleep for the calling task."""
        return _Parker(self._token)

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a system task: no nursery of the user's has to wait for it."""
        if self.here():
            self._start(job, args)
        else:
            try:
                self._token.run_sync_soon(self._start, job, args)
            except trio.RunFinishedError:
                pass

    def _start(self, job: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        trio.lowlevel.spawn_system_task(_guarded, job, args)

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in ``delay`` seconds."""
        self.spawn(_run_due, weakref.ref(task), delay)

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


async def _run_due(ref: weakref.ref[Task], delay: float) -> None:
    await trio.sleep(delay)
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
    except trio.Cancelled:
        raise
    except GeneratorExit:  # the run has ended; raised by a driver it would end the run
        return
    except BaseException:  # a system task that raises would end the whole run
        logger.exception("poolkit: background job failed")


def _nothing() -> None:
    pass
