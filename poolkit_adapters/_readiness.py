"""Waits until a descriptor can be read or written, in a thread or in a task."""

from __future__ import annotations

import asyncio
import select
from typing import Any

__all__ = ("ready", "wait_for")


def ready(fd: int, timeout: float | None, *, write: bool = False) -> bool:
    """Return whether ``fd`` can be read (or written) within ``timeout`` seconds. ``poll`` needs no extra descriptor."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN | (select.POLLOUT if write else 0))
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))
    usable = select.select([fd], [fd] if write else [], [], timeout)
    return bool(usable[0] or usable[1])


async def wait_for(loop: asyncio.AbstractEventLoop, fd: int, *, read: bool = True, write: bool = False) -> None:
    """Sleep until ``fd`` can be read (or written)."""
    usable: asyncio.Future[Any] = loop.create_future()

    def wake() -> None:
        if not usable.done():
            usable.set_result(None)

    if read:
        loop.add_reader(fd, wake)
    if write or not read:
        loop.add_writer(fd, wake)
    try:
        await usable
    finally:
        loop.remove_reader(fd)
        loop.remove_writer(fd)
