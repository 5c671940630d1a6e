"""The invariants, as one function that raises when the books do not balance."""

from __future__ import annotations

from collections import Counter

from .entry import ESTABLISHED, IDLE, IN_USE, Entry, State
from .lane import Lane
from .machine import Core

__all__ = ("check",)


def _usable(lane: Lane) -> list[Entry]:
    """The connections that are idle or have a stream to spare, and that somebody waits for who may have one."""
    spare = [one for one in lane.spare if one.leases < one.capacity and one.generation == lane.generation]
    return [entry for entry in [*lane.idle.copy(), *spare] if lane.queue.first_for(entry) is not None]


def _check_classes(core: Core) -> None:
    """What belongs to whom, and who stands where."""
    core.use.check(core.entries.values())
    for lane in core.lanes.values():
        lane.queue.check()
        if core.classes is None:
            continue
        # whoever may have a connection has an idle one, or one on its way, or all are taken
        dialling = any(entry.state is State.CONNECTING for entry in core.entries.values())
        dialling = dialling or core.slots.closing > 0 or lane in core.timed
        claimed = core.capacity.claiming
        if lane.queue.wanting and core.hands_out:
            full = len(core.entries) >= core.size.limit
            assert full or dialling or claimed, "a class below what it is entitled to waits while a permit is free"


def _check_minimum(core: Core) -> None:
    """As many connections as are to be kept, unless something stands against opening more."""
    lane = core.lane
    have = lane.live + lane.connecting
    wanted = core.started and core.hands_out and not core.features.keyed
    if not wanted or have >= core.size.minimum or len(core.entries) >= core.size.limit:
        return
    blocked = lane in core.timed or lane.connecting >= core.max_connecting
    blocked = blocked or (lane.connecting > 0 and (lane.dialer.rounds > 0 or lane.dialer.breaker.failures > 0))
    # only min_size is claimed of a budget, and one that is frozen serves no claim
    shared = core.permits is not None and (core.permits.claiming or have >= core.config.min_size)
    assert blocked or shared, "min_size is not kept while a permit is free"


def check(core: Core) -> None:
    """Raise AssertionError unless all invariants of the core hold.

    Only true between calls, and while no thread is on the lock-free path (simulations; a quiet pool).
    """
    assert not core.returned, "a connection was given back, and nobody has looked at it"
    entries = list(core.entries.values())
    states = Counter(entry.state for entry in entries)
    assert states[State.CLOSED] == 0, "a closed connection still holds a permit"
    assert states[State.CLOSING] == core.slots.closing, "closing connections are miscounted"
    assert set(core.slots.known.values()) <= core.entries.keys(), "a connection that is gone is still known"
    assert sum(lane.size for lane in core.lanes.values()) == len(entries), "lanes do not add up"
    for lane in core.lanes.values():
        mine = [entry for entry in entries if entry.lane is lane]
        assert lane.size == len(mine), f"lane {lane.key!r}: size"
        assert lane.live == sum(e.state in ESTABLISHED for e in mine), f"lane {lane.key!r}: live"
        dialling = sum(e.pending and e.generation == lane.generation for e in mine)
        assert lane.connecting == dialling, f"lane {lane.key!r}: connecting {lane.connecting} != {dialling}"
        idle = lane.idle.copy()
        assert len(idle) == len(set(idle)), "a connection is idle twice"
        assert set(idle) == {e for e in mine if e.state is IDLE}, "an idle connection is nowhere to be found"
        assert all(e.state is IN_USE for e in lane.spare), "a connection has a stream to spare that is not in use"
        usable = _usable(lane)
        assert not (usable and core.hands_out) or any(waiter.nudged for waiter in lane.waiters), (
            "a waiter is stranded beside an idle connection"
        )
        if lane.queue.wanting and core.hands_out:
            spare = core.size.limit - len(entries)
            blocked = lane.connecting or lane.live or core.slots.closing or lane in core.timed
            if core.classes is not None:  # what is being opened takes room, until it is known whose it is
                blocked = blocked or states[State.CONNECTING]
            claimed = core.capacity.claiming
            assert blocked or spare <= 0 or claimed, "a waiter is stranded while a permit is free"
        if lane.waiters and core.hands_out:
            assert core.size.watched(), "callers wait, and nobody looks whether more are needed"
        for waiter in lane.waiters:
            assert not waiter.gone, "a waiter who is gone is still in the queue"
            assert waiter.outcome is None, "a waiter who was served is still in the queue"
    _check_classes(core)
    _check_minimum(core)
    assert core.capacity.agrees(len(entries), core.slots.closing), "the budget counts other connections"
    leased = list(core.leased.copy().values())
    held = Counter(id(record.slot) for record in leased)
    assert len(leased) == len({id(record) for record in leased}), "two leases share one record"
    for record in leased:
        entry = record.slot
        assert entry.state is IN_USE, f"a leased connection is {entry.state.value}"
        assert entry.leases >= held[id(entry)] >= 1, "leases do not add up"
        assert entry.leases <= max(entry.capacity, 1), "a connection is in too many hands"
