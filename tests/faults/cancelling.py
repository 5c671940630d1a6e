"""Cancel a coroutine at its k-th suspension point, whatever it awaits there."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio

__all__ = (
    "Points", "Swallowed", "by_scope", "by_timeout", "by_wait_for", "cancel_at", "counted", "natively",
    "natively_twice",
)  # fmt: skip

_ENTER = contextlib._AsyncGeneratorContextManager.__aenter__.__code__

Act = Callable[[], Awaitable[Any]]


class Swallowed(AssertionError):
    """The cancellation was accepted but not delivered. ``inside``: where the task was suspended each time."""

    def __init__(self, inside: list[str]) -> None:
        super().__init__(f"the cancellation was accepted and swallowed in {inside}")
        self.inside = set(inside)


class Points:
    """Counts the suspensions of a coroutine and calls ``at_point(n)`` at each of them, before it takes effect."""

    def __init__(self, at_point: Callable[[int], object]) -> None:
        self.count = 0
        self.thrown = 0  # errors from outside, such as cancellations
        self._at_point = at_point

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run ``coroutine`` in the calling task."""
        send, value = coroutine.send, None
        while True:
            try:
                waited_for = send(value)
            except StopIteration as end:
                return end.value
            self.count += 1
            self._at_point(self.count)
            try:
                value, send = (yield waited_for), coroutine.send
            except BaseException as error:
                self.thrown += 1
                value, send = error, coroutine.throw


async def counted(coroutine: Coroutine[Any, Any, Any], at_point: Callable[[int], object]) -> Any:
    """Await ``coroutine``; ``at_point(n)`` is called when it is suspended for the n-th time."""
    return await Points(at_point).drive(coroutine)


async def cancel_at(point: int, call: Callable[[], Awaitable[Any]], *, again: bool = False) -> bool:
    """asyncio: run ``call()`` in a task that is cancelled while it is suspended for the ``point``-th time.

    ``again``: also at the next point, if there is one. False if it ended before. AssertionError if the
    cancellation was accepted but not delivered.
    """
    loop = asyncio.get_running_loop()
    task: asyncio.Task[Any]
    struck = 0

    def strike(number: int) -> None:
        nonlocal struck
        if number == point or (again and number == point + 1):
            struck += 1
            inside.append(_innermost(coroutine))
            loop.call_soon(task.cancel)

    async def work() -> Any:
        return await call()

    inside: list[str] = []
    coroutine = work()
    task = loop.create_task(counted(coroutine, strike))
    try:
        await task
    except asyncio.CancelledError:
        assert struck, "cancelled by somebody else"
        return True
    except BaseException as error:
        if struck:
            raise AssertionError(f"an error took the place of the cancellation: {error!r}") from error
        raise
    if struck and not _lossy(inside):  # the task was suspended
        raise Swallowed(inside)
    return bool(struck)


# -- ways to be cancelled: each says whether the operation was still going on at that point ----------------------------


async def natively(point: int, act: Act) -> bool:
    return await cancel_at(point, act)


async def natively_twice(point: int, act: Act) -> bool:
    return await cancel_at(point, act, again=True)


async def by_scope(point: int, act: Act) -> bool:
    """Level cancellation: every further suspension in the scope is cancelled too."""
    struck = False

    def strike(number: int) -> None:
        nonlocal struck
        if number == point:
            struck = True
            scope.cancel()

    async def work() -> None:
        await act()

    with anyio.CancelScope() as scope:
        await counted(work(), strike)
        assert not struck or scope.cancel_called
        return struck
    assert struck
    return True


async def by_timeout(point: int, act: Act) -> bool:
    """``asyncio.timeout`` (Python 3.11) that expires at this moment."""
    inside: list[str] = []

    def strike(number: int) -> None:
        if number == point:
            inside.append(_innermost(coroutine))
            limit.reschedule(0)

    async def work() -> None:
        await act()

    coroutine = work()
    try:
        async with asyncio.timeout(None) as limit:  # type: ignore[attr-defined,unused-ignore]
            await counted(coroutine, strike)
    except TimeoutError:
        assert inside
        task: Any = asyncio.current_task()
        assert not task.cancelling(), "a cancellation is still counted"
        return True
    if inside and not _lossy(inside):
        raise Swallowed(inside)
    return bool(inside)


async def by_wait_for(point: int, act: Act) -> bool:
    """``asyncio.wait_for`` that expires at this moment."""
    loop = asyncio.get_running_loop()
    inside: list[str] = []
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def spy(when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        handle = call_at(when, *args, **kwargs)
        if when > loop.time() + _AGES / 2:
            timers.append(handle)
        return handle

    def strike(number: int) -> None:
        if number == point:
            inside.append(_innermost(coroutine))
            loop.call_soon(fire)

    def fire() -> None:
        (timer,) = timers
        if not timer.cancelled():
            callback, arguments = timer._callback, timer._args  # type: ignore[attr-defined]
            timer.cancel()
            callback(*arguments)

    async def work() -> None:
        await act()

    async def driven() -> None:
        await points.drive(coroutine)

    coroutine = work()
    points = Points(strike)
    loop.call_at = spy  # type: ignore[method-assign]
    try:
        await asyncio.wait_for(driven(), _AGES)
    except asyncio.TimeoutError:
        assert inside
        return True
    finally:
        del loop.call_at
    if points.thrown and not _lossy(inside):  # otherwise it ended at the same moment
        raise Swallowed(inside)
    return bool(inside)


_AGES = 1e6  # seconds


def _lossy(inside: list[str]) -> bool:
    """Up to Python 3.11 wait_for loses a cancellation if the awaited call has just ended (python/cpython#81839)."""
    return sys.version_info < (3, 12) and "asyncio.tasks wait_for" in inside


def _innermost(awaited: Any) -> str:
    """Return the module and function in which a coroutine is suspended."""
    frame = None
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None) or frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        if awaited is not None and frame is not None and frame.f_code is _ENTER:
            awaited = frame.f_locals["self"].gen.ag_await  # the awaited object does not name its generator
    return "" if frame is None else f"{frame.f_globals.get('__name__')} {frame.f_code.co_name}"
