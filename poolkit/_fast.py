"""The two paths without a lock: take an idle connection in its best days, and put one back.

Here the rule stands for both shells, as closures over the few things it needs: a closure finds them faster than a
method finds attributes, and this is what every acquire and release runs. What makes it safe is said in
``_core/__init__.py``. In all doubt they decline, and the long way through the core decides.

``make_acquire`` and ``make_release`` are ``make_take`` and ``make_put`` written out once more, without the call in
between: of 620 ns for a pair of acquire and release the two calls and what goes with them were 170.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._core.entry import IDLE, IN_USE, Entry
from ._core.lane import Lane
from ._core.machine import Core

__all__ = ("decline_put", "decline_take", "make_acquire", "make_put", "make_release", "make_take")


def decline_take() -> Entry | None:
    """Take nothing: the pool is in a state in which only the core may decide."""
    return None


def decline_put(entry: Entry) -> bool:
    """Put nothing back."""
    return False


def make_take(
    core: Core, clock: Callable[[], float], caller: Callable[[], int], undo: Callable[[Entry], None]
) -> Callable[[], Entry | None]:
    """A function that takes an idle connection and begins its lease, or declines."""
    lane = core.lane
    waiters = lane.waiters
    pop = lane.idle.pop if core.lifo else lane.idle.popleft

    def take() -> Entry | None:
        if waiters:
            return None
        try:
            entry = pop()
        except IndexError:
            return None
        now = clock()
        if now < entry.good_until and entry.generation == lane.generation:
            entry.state = IN_USE
            entry.leases = 1
            entry.leased_at = now
            entry.holder = caller()
            return entry
        undo(entry)
        return None

    return take


def make_put(core: Core, clock: Callable[[], float], missed: Callable[[Lane, float], None]) -> Callable[[Entry], bool]:
    """A function that ends the lease of a sound connection and makes it idle, or declines.

    ``missed`` is called when a caller queued, or the pool changed, while the connection was being put back.
    """
    lane = core.lane
    waiters = lane.waiters
    idle = lane.idle
    push = idle.append
    most = core.max_idle
    window = core.window
    epoch = core.epoch

    def put(entry: Entry) -> bool:
        now = clock()
        expires = entry.expires
        if waiters or now >= expires or entry.generation != lane.generation or len(idle) >= most:
            return False
        entry.uses += 1
        entry.busy += now - entry.leased_at
        entry.last_used = now
        good = now + window
        entry.good_until = good if good < expires else expires  # noqa: FURB136  a call of min() costs as much as put()
        entry.leases = 0
        entry.state = IDLE
        push(entry)
        if waiters or core.epoch != epoch or len(idle) > most:  # several may have found the last place free
            missed(lane, now)
        return True

    return put


def make_acquire(
    core: Core,
    clock: Callable[[], float],
    caller: Callable[[], int],
    undo: Callable[[Entry], None],
    slow: Callable[..., Any],
    default: Any,
) -> Callable[..., Any]:
    """``Pool.acquire`` without the lock; ``slow(timeout)`` is the long way."""
    lane = core.lane
    waiters = lane.waiters
    pop = lane.idle.pop if core.lifo else lane.idle.popleft
    leased = core.leased

    def acquire(timeout: Any = default) -> Any:
        if waiters:
            return slow(timeout)
        entry: Entry | None
        try:
            entry = pop()
        except IndexError:
            entry = None
        if entry is None:  # out of the except block: an error of the long way must not have this one as its context
            return slow(timeout)
        now = clock()
        if now < entry.good_until and entry.generation == lane.generation:
            entry.state = IN_USE
            entry.leases = 1
            entry.leased_at = now
            entry.holder = caller()
            connection = entry.connection
            leased[id(connection)] = entry
            return connection
        undo(entry)
        return slow(timeout)

    return acquire


def make_release(
    core: Core,
    clock: Callable[[], float],
    missed: Callable[[Lane, float], None],
    slow: Callable[[Entry | None, int, bool, BaseException | None], None],
) -> Callable[..., None]:
    """``Pool.release`` without the lock; ``slow(entry, key, discard, error)`` is the long way."""
    lane = core.lane
    waiters = lane.waiters
    idle = lane.idle
    push = idle.append
    most = core.max_idle
    window = core.window
    epoch = core.epoch
    unlease = core.leased.pop

    def release(connection: Any, *, discard: bool = False, error: BaseException | None = None) -> None:
        entry = unlease(id(connection), None)
        if entry is None or discard or error is not None or waiters or len(idle) >= most:
            return slow(entry, id(connection), discard, error)
        now = clock()
        expires = entry.expires
        if now >= expires or entry.generation != lane.generation:
            return slow(entry, id(connection), discard, error)
        entry.uses += 1
        entry.busy += now - entry.leased_at
        entry.last_used = now
        good = now + window
        entry.good_until = good if good < expires else expires  # noqa: FURB136
        entry.leases = 0
        entry.state = IDLE
        push(entry)
        if waiters or core.epoch != epoch or len(idle) > most:
            missed(lane, now)
        return None

    return release
