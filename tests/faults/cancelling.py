"""Cancel a coroutine at its k-th suspension point, whatever it awaits there."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

__all__ = ("Points", "cancel_at", "counted")


class Points:
    """Counts the suspensions of a coroutine and calls ``at_point(n)`` at each of them, before it takes effect."""

    def __init__(self, at_point: Callable[[int], object]) -> None:
        self.count = 0
        self._at_point = at_point

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run ``coroutine`` inside the calling task."""
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
    if struck and sys.version_info < (3, 12) and "asyncio.tasks wait_for" in inside:
        return True  # swallows a cancellation when what it waits for is just done (python/cpython#81839)
    assert not struck, f"the cancellation was accepted and swallowed in {inside}"  # the task was suspended
    return False


def _innermost(awaited: Any) -> str:
    """Module and function in which a coroutine is suspended."""
    frame = None
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None) or frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return "" if frame is None else f"{frame.f_globals.get('__name__')} {frame.f_code.co_name}"
