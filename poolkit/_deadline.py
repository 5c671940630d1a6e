"""The deadline of a caller, as a context variable: code between the block and the pool need not pass it on."""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import ref

from ._numbers import given, is_seconds
from .errors import UsageError
from .runtimes.fork import Stage, after_fork

if TYPE_CHECKING:
    from ._core.machine import Core
    from ._pool_base import PoolBase
    from .policies.classes import CallerClass

__all__ = ("BLOCKS", "Running", "current", "deadline", "forget", "gave_up")


class Running:
    """One block that is being executed."""

    __slots__ = ("asked", "at", "frame", "outer", "owner")

    def __init__(self, owner: deadline, outer: Running | None, frame: int) -> None:
        at = time.monotonic() + owner.seconds
        self.at: float = at if outer is None else min(at, outer.at)  # in seconds of time.monotonic()
        self.owner, self.outer = owner, outer
        self.frame = frame  # the id() of the frame with the block: the frame itself would keep its variables
        # the last caller at each pool, by the id of the pool: in a long block there may be any number. No strong
        # references to a pool or to its parts: they would keep connections of a dropped pool open
        self.asked: dict[int, tuple[ref[PoolBase[Any]], ref[Core], Hashable, CallerClass | None]] = {}

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def note(self, pool: PoolBase[Any], key: Hashable, caller_class: CallerClass | None) -> float:
        """A caller in the block has to ask the core of a pool. Return :meth:`left`."""
        self.asked[id(pool)] = ref(pool), ref(pool._core), key, caller_class
        return self.left()

    def report(self) -> None:
        """The block has ended after its deadline. Tell the pools that served it that the lease was given up."""
        for pool, core, key, caller_class in self.asked.copy().values():
            found = pool()
            if found is not None and core() is found._core:
                found._gate.post(gave_up, found._core, key, caller_class, found._clock())


def gave_up(core: Core, key: Hashable, caller_class: CallerClass | None, now: float) -> None:
    """A caller at this endpoint was served, but its block has ended after its deadline. Called under the lock."""
    endpoint = core.all_endpoints.get(key)
    if endpoint is not None:  # otherwise nobody waits there
        core.overload.gave_up_lease(endpoint, caller_class, now)


_RESUMABLE = 0x2A0  # inspect.CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR; importing inspect takes long

BLOCKS: set[Running] = set()
"""All blocks that are being executed. While there are none, no acquire looks for its own."""
_current: ContextVar[Running | None] = ContextVar("poolkit.deadline", default=None)


def current() -> Running | None:
    """Return the innermost block that the current thread or task executes, or None."""
    return _running(_current.get())


def forget(pool: PoolBase[Any]) -> None:
    """The caller was not served: it gives up no lease, and if it has given up in the queue, that is known."""
    block = current()
    if block is not None:
        block.asked.pop(id(pool), None)


def _running(block: Running | None) -> Running | None:
    """Return the block, or the next one around it that has not ended: a task or a generator may outlive its block."""
    while block is not None and block not in BLOCKS:
        block = block.outer
    return block


class deadline:  # noqa: N801  it is used like a function
    """``with poolkit.deadline(0.5): ...``: the calls in this block have half a second together.

    Each acquire in the block waits, and connects, no longer than until then. Its own timeout counts if that is earlier,
    and so does an outer block. A pool or a cluster then raises its error for a timeout; an idle connection is handed
    out even after the deadline. Nothing interrupts the work on a connection. If the block ends late, the pools count
    its callers among those that gave up (see :class:`~poolkit.OverloadConfig`).

    With ``connect_in_caller`` a connect has the time that is left, and none begins after the deadline. In a task it is
    cancelled then, unless the connector has ``bounds_connects``. In a thread the driver must keep to the limit that
    it gets.

    This is a context variable (see :pep:`567`). It applies to the calling thread or task and to the tasks that it
    starts, through every driver and adapter, until the block is left. A new thread starts without it, but
    ``asyncio.to_thread`` and ``contextvars.copy_context().run`` pass it on. Several threads and tasks may use one
    object at once, also in nested blocks: the time of each block begins when it is entered.

    Raises :class:`~poolkit.UsageError` unless ``seconds`` is a number of seconds, 0 or more.
    """

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        if not is_seconds(seconds):
            raise UsageError(f"deadline({given(seconds)}): must be a time in seconds, 0 or more")
        self.seconds = seconds

    @staticmethod
    def left() -> float | None:
        """Return the seconds that the calling thread or task has left in its block, at least 0; None: it is in none.

        It is the limit for the work on a connection, for example of a statement or a request.
        """
        block = current() if BLOCKS else None
        return None if block is None else block.left()

    def __enter__(self) -> None:
        block = Running(self, current(), id(sys._getframe(1)))
        BLOCKS.add(block)
        _current.set(block)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        block = self._entered(sys._getframe(1))
        if block is None:
            return  # entered in the parent process
        BLOCKS.discard(block)
        _current.set(current())  # not block.outer: generators do not leave their blocks in the order of a stack
        # a caller that is cancelled or interrupted is known to have given up
        if not block.left() and (kind is None or issubclass(kind, Exception)):
            block.report()

    def _entered(self, leaving: FrameType) -> Running | None:
        """Return the block that ends: the one of this object that was entered in the frame that leaves it now.

        Another thread or task may close a generator or coroutine, inside a block of the same object of its own.
        Where the frames differ (``contextlib.ExitStack``), it is the innermost block of this object.
        """
        frame = id(leaving)
        innermost, block = None, current()
        while block is not None:
            if block.owner is self:
                if block.frame == frame:
                    return block
                innermost = innermost or block
            block = _running(block.outer)
        if innermost is not None and not leaving.f_code.co_flags & _RESUMABLE:
            return innermost  # a block of another thread has this id only because its frame is gone
        others = [one for one in BLOCKS.copy() if one.owner is self]
        same = next((one for one in others if one.frame == frame), None)
        return same or innermost or (others[0] if others else None)


def _after_fork_in_child() -> None:
    """Forget the blocks of the parent's other threads: nothing leaves them here."""
    mine, block = set(), current()
    while block is not None:
        mine.add(block)
        block = block.outer
    BLOCKS.intersection_update(mine)


after_fork(Stage.RUNTIME, _after_fork_in_child)
