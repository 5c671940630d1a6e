"""The two paths without a lock: take an idle connection in its best days, and put one back.

Here the rule stands for both shells, as closures over the few things it needs: a closure finds them faster than a
method finds attributes, and this is what every acquire and release runs. What makes it safe is said in
``_core/__init__.py``. In all doubt they decline, and the long way through the core decides.

``make_acquire`` and ``make_release`` are ``make_take`` and ``make_put`` written out once more, without the call in
between, and ``make_lease`` once again: a call of a Python function is about a sixth of the whole pair.

What a cycle consists of, and why it is not less: a pop and an append; two readings of the clock (how long idle, how
long in use); who holds it, since when, how often, how long (six fields of the entry); its line in the register of
leases, which tells whether what comes back is on lease. Counts are left to the entries, what can be computed is not
stored, and a comparison stands in for a call where that is possible (``bounded``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ._core.entry import IDLE, IN_USE, Entry
from ._core.lane import Lane
from ._core.machine import Core

__all__ = ("decline_put", "decline_take", "make_acquire", "make_lease", "make_put", "make_release", "make_take")


def decline_take() -> Entry | None:
    """Take nothing: the pool is in a state in which only the core may decide."""
    return None


def decline_put(entry: Entry) -> bool:
    """Put nothing back."""
    return False


def make_take(
    core: Core, clock: Callable[[], float], caller: Callable[[], Hashable], undo: Callable[[Entry], None]
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
        if now < entry.good_until and now < entry.expires:
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
    bounded = most < core.limit  # else there cannot be too many
    window = core.window
    moved = core.moved

    def put(entry: Entry) -> bool:
        if waiters or (bounded and len(idle) >= most):
            return False
        now = clock()
        if now >= entry.expires:
            return False
        entry.uses += 1
        entry.busy += now - entry.leased_at
        entry.last_used = now
        entry.good_until = now + window
        entry.leases = 0
        entry.state = IDLE
        push(entry)
        if waiters or moved or (bounded and len(idle) > most):  # several may have found the last place
            missed(lane, now)
        return True

    return put


def make_acquire(
    core: Core,
    clock: Callable[[], float],
    caller: Callable[[], Hashable],
    undo: Callable[[Entry], None],
    slow: Callable[..., Any],
    default: Any,
) -> Callable[..., Any]:
    """``Pool.acquire`` without the lock; ``slow(timeout)`` is the long way."""
    lane = core.lane
    waiters = lane.waiters
    pop = lane.idle.pop if core.lifo else lane.idle.popleft
    leased = core.leased
    moved = core.moved

    def acquire(timeout: Any = default) -> Any:
        if waiters or moved:  # moved: this is not the pool's way any more, and somebody has kept it
            return slow(timeout)
        entry: Entry | None
        try:
            entry = pop()
        except IndexError:
            entry = None
        if entry is None:  # out of the except block: an error of the long way must not have this one as its context
            return slow(timeout)
        now = clock()
        if now < entry.good_until and now < entry.expires:
            entry.state = IN_USE
            entry.leases = 1
            entry.leased_at = now
            entry.holder = caller()
            connection = entry.connection
            leased[entry.key] = entry  # last: who is interrupted before it leaves nothing that cannot be found
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
    bounded = most < core.limit
    window = core.window
    moved = core.moved
    leased = core.leased

    def release(connection: Any, discard: bool = False, error: BaseException | None = None) -> None:
        key = id(connection)
        entry: Entry | None
        try:
            entry = leased[key]
            del leased[key]  # one of several who give back the same comes through here
        except KeyError:
            entry = None
        if entry is None or discard or error is not None or waiters or (bounded and len(idle) >= most):
            return slow(entry, key, discard, error)
        now = clock()
        if now >= entry.expires:
            return slow(entry, key, discard, error)
        entry.uses += 1
        entry.busy += now - entry.leased_at
        entry.last_used = now
        entry.good_until = now + window
        entry.leases = 0
        entry.state = IDLE
        push(entry)
        if waiters or moved or (bounded and len(idle) > most):
            missed(lane, now)
        return None

    return release


def make_lease(
    pool: Any,
    kind: type[Any],
    core: Core,
    clock: Callable[[], float],
    caller: Callable[[], Hashable],
    undo: Callable[[Entry], None],
    slow: Callable[..., Any],
    default: Any,
) -> Callable[..., Any]:
    """``Pool.lease`` without the lock; ``kind`` is the class of a lease, ``slow(timeout, key=key)`` the long way."""
    lane = core.lane
    waiters = lane.waiters
    pop = lane.idle.pop if core.lifo else lane.idle.popleft
    leased = core.leased
    moved = core.moved
    new: Any = kind.__new__  # its __init__ would be one more call

    def lease(timeout: Any = default, key: Any = None) -> Any:
        if waiters or moved or key is not None:
            return slow(timeout, key)
        made = new(kind)
        made._pool = pool
        entry: Entry | None
        try:
            entry = pop()
        except IndexError:
            entry = None
        if entry is None:
            return slow(timeout)
        now = clock()
        if now < entry.good_until and now < entry.expires:
            entry.state = IN_USE
            entry.leases = 1
            entry.leased_at = made.since = now
            entry.holder = caller()
            made.connection = entry.connection
            made.entry = entry  # first: a lease that is dropped from here on gives its connection back
            leased[id(made)] = entry
            return made
        undo(entry)
        return slow(timeout)

    return lease
