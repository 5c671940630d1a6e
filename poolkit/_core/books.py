"""The invariants, as one function that raises when the books do not balance."""

from __future__ import annotations

from collections import Counter

from .entry import ESTABLISHED, IDLE, IN_USE, State
from .machine import Core
from .state import Phase

__all__ = ("check",)


def check(core: Core) -> None:
    """Raise AssertionError unless all invariants of the core hold.

    Only true between calls, and while no thread is on the lock-free path (simulations; a quiet pool).
    """
    entries = list(core.entries.values())
    states = Counter(entry.state for entry in entries)
    assert states[State.CLOSED] == 0, "a closed connection still holds a permit"
    assert states[State.CLOSING] == core.closing, "closing connections are miscounted"
    assert sum(lane.size for lane in core.lanes.values()) == len(entries), "lanes do not add up"
    for lane in core.lanes.values():
        mine = [entry for entry in entries if entry.lane is lane]
        assert lane.size == len(mine), f"lane {lane.key!r}: size"
        assert lane.live == sum(e.state in ESTABLISHED for e in mine), f"lane {lane.key!r}: live"
        dialling = sum(e.pending and e.generation == lane.generation for e in mine)
        assert lane.connecting == dialling, f"lane {lane.key!r}: connecting {lane.connecting} != {dialling}"
        listed = [entry for entry in lane.idle if entry.state is IDLE]
        assert len(listed) == len(set(listed)), "a connection is idle twice"
        assert set(listed) == {e for e in mine if e.state is IDLE}, "an idle connection is nowhere to be found"
        assert not (lane.waiters and listed and not core.suspended and core.phase is Phase.OPEN) or any(
            waiter.nudged for waiter in lane.waiters
        ), "a waiter is stranded beside an idle connection"
        if lane.waiters and not core.suspended and core.phase is Phase.OPEN:
            spare = core.limit - len(entries)
            blocked = lane.connecting or lane.live or core.closing or lane in core.timed
            claimed = core.permits is not None and core.permits.claiming
            assert blocked or spare <= 0 or claimed, "a waiter is stranded while a permit is free"
        for waiter in lane.waiters:
            assert waiter.queued, "a waiter who is gone is still in the queue"
            assert waiter.outcome is None, "a waiter who was served is still in the queue"
    for entry in entries:
        leaving = core.permits is not None and entry.state is State.CLOSING
        assert entry.leaving == leaving, "the budget knows a closing connection that is none, or does not know one"
    held = Counter(id(entry) for entry in core.leased.values())
    for entry in core.leased.values():
        assert entry.state is IN_USE, f"a leased connection is {entry.state.value}"
        assert entry.leases >= held[id(entry)] >= 1, "leases do not add up"
        assert entry.leases <= max(entry.capacity, 1), "a connection is in too many hands"
