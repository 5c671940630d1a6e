"""Cancel a coroutine at its k-th suspension point, whatever it awaits there."""

from __future__ import annotations

import asyncio
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
            loop.call_soon(task.cancel)

    async def work() -> Any:
        return await call()

    task = loop.create_task(counted(work(), strike))
    try:
        await task
    except asyncio.CancelledError:
        assert struck, "cancelled by somebody else"
        return True
    except BaseException as error:
        if struck:
            raise AssertionError(f"an error took the place of the cancellation: {error!r}") from error
        raise
    assert not struck, "the cancellation was accepted and swallowed"  # the task was suspended when it came
    return False
