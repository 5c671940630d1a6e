"""The deadline of a caller, as a context variable: code between the block and the pool need not pass it on."""

from __future__ import annotations

import time
import weakref
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from ._core.machine import Core
    from ._core.queue import Request
    from ._pool_base import PoolBase

__all__ = ("BLOCKS", "Running", "current", "deadline")


class Running:
    """One block that is being executed."""

    __slots__ = ("_asked", "at")

    def __init__(self, at: float) -> None:
        self.at = at  # in seconds of time.monotonic()
        # the last request at each pool, by the id of the pool: in a long block there may be any number
        self._asked: dict[int, tuple[weakref.ref[PoolBase[Any]], Core, Request]] = {}

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def note(self, pool: PoolBase[Any], request: Request) -> float:
        """A caller in the block has to ask the core of a pool. Return :meth:`left`."""
        self._asked[id(pool)] = weakref.ref(pool), pool._core, request
        return self.left()

    def report(self) -> None:
        """The block has ended after its deadline. Tell the pools that served it that the lease was given up."""
        for pool, core, request in self._asked.copy().values():
            found = pool()
            # one that was not served has given up in the queue, which is known
            if found is not None and core is found._core and not request.gone:
                found._gate.post(core.overload.gave_up_lease, request.endpoint, request.caller_class, found._clock())


BLOCKS: set[Running] = set()
"""All blocks that are being executed. While there are none, no acquire looks for its own."""
_current: ContextVar[Running | None] = ContextVar("poolkit.deadline", default=None)


def current() -> Running | None:
    """Return the innermost block that the current thread or task executes, or None."""
    block = _current.get()
    return block if block in BLOCKS else None  # a task may outlive the block that has started it


class deadline:  # noqa: N801  it is used like a function
    """``with poolkit.deadline(0.5): ...``: the calls in this block have half a second together.

    Each acquire in the block waits, and connects, no longer than until then. Its own timeout counts if that is earlier,
    and so does an outer block. A pool or a cluster then raises its error for a timeout; an idle connection is handed
    out even after the deadline. Nothing interrupts the work on a connection. If the block ends late, the pools count
    its callers among those that gave up (see :class:`~poolkit.OverloadConfig`).

    This is a context variable (see :pep:`567`). It applies to the calling thread or task and to the tasks that it
    starts, through every driver and adapter, until the block is left. A new thread starts without it, but
    ``asyncio.to_thread`` and ``contextvars.copy_context().run`` pass it on.

    Raises :class:`~poolkit.UsageError` unless ``seconds`` is a number of seconds, 0 or more.
    """

    __slots__ = ("_blocks", "seconds")

    def __init__(self, seconds: float) -> None:
        given: Any = seconds
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not given >= 0:
            raise UsageError(f"deadline({seconds!r}): must be a time in seconds, 0 or more")
        self.seconds = seconds
        self._blocks: list[tuple[Running, Token[Running | None]]] = []

    def __enter__(self) -> None:
        at, outer = time.monotonic() + self.seconds, current()
        block = Running(at if outer is None else min(at, outer.at))
        BLOCKS.add(block)
        self._blocks.append((block, _current.set(block)))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        block, token = self._blocks.pop()
        BLOCKS.discard(block)
        _current.reset(token)
        # a caller that is cancelled or interrupted is known to have given up
        if not block.left() and (kind is None or issubclass(kind, Exception)):
            block.report()
