"""The invariants that the state of a core must fulfil after each step.

Their names and reasons are in ``docs/architecture.md``.
"""

from __future__ import annotations

from collections import Counter

from ..policies.members import members
from ..policies.retire import NEVER
from .endpoints import Endpoint
from .machine import Core
from .queue import ClassQueue, NewestFirst
from .slots import ESTABLISHED, IDLE, IN_USE, Slot, State

__all__ = ("check",)


def _usable(endpoint: Endpoint) -> list[Slot]:
    """Return the idle connections, and those with a stream to spare, for which a caller waits that may have them."""
    spare = [one for one in endpoint.spare if one.leases < one.capacity and one.generation == endpoint.generation]
    return [slot for slot in [*members(endpoint.idle), *spare] if endpoint.queue.first_for(slot) is not None]


def _check_overload(core: Core) -> None:
    """OVERLOAD-ENDS: a queue serves its newest callers first only while the rule counts it as overloaded, and a tick is
    scheduled that may end that.
    """
    for endpoint in core.all_endpoints.values():
        lines = endpoint.queue.by_class.values() if isinstance(endpoint.queue, ClassQueue) else [endpoint.queue]
        for line in lines:
            known = core.overload.knows(line)
            assert isinstance(line.order, NewestFirst) == known, "the newest come first, and no tick will end that"
            assert not known or core.due < NEVER, "no tick is due for an overloaded queue"


def _check_classes(core: Core) -> None:
    """NO-STRANDING with classes of callers: each slot belongs to the right class, each request to the right queue."""
    core.use.check(core.slots.living())
    for endpoint in core.all_endpoints.values():
        endpoint.queue.check()
        if core.classes is None or not isinstance(endpoint.queue, ClassQueue):
            continue
        # a caller that may have a connection waits only if one is being opened or closed, or all permits are taken
        opening = any(slot.state is State.CONNECTING for slot in core.slots.living())
        opening = opening or core.slots.closing > 0 or endpoint in core.timed
        claimed = core.capacity.claiming
        if endpoint.queue.wanting and core.hands_out and not opening and not claimed:
            # leases that are older than the settings of classes belong to none, and use what no class has reserved
            known = core.classes.known.values()
            free = core.size.limit - len(core.all_slots)
            kept = sum(max(0, one.reserved - one.held) for one in known)
            for one in known:
                entitled = free > (0 if one.held < one.reserved else kept)
                entitled = entitled and (one.limit is None or one.held < one.limit)
                waits = entitled and one in endpoint.queue.by_class and len(endpoint.queue.by_class[one]) > 0
                assert not waits, "a class below what it is entitled to waits while a permit is free"


def _check_minimum(core: Core) -> None:
    """MINIMUM-KEPT: ``min_size`` connections exist, unless a rule forbids to open one now."""
    endpoint = core.endpoint
    have = endpoint.live + endpoint.connecting
    wanted = core.started and core.hands_out and not core.features.on_demand
    if not wanted or have >= core.size.minimum or len(core.all_slots) >= core.size.limit:
        return
    blocked = endpoint in core.timed or endpoint.connecting >= core.max_connecting
    blocked = blocked or (
        endpoint.connecting > 0 and (endpoint.dialer.rounds > 0 or endpoint.dialer.breaker.failures > 0)
    )
    # a pool claims permits of a budget for min_size alone; a frozen budget serves no claim
    shared = core.permits is not None and (core.permits.claiming or have >= core.config.min_size)
    assert blocked or shared, "min_size is not kept while a permit is free"


def check(core: Core) -> None:
    """Raise AssertionError unless all invariants of the core hold.

    They hold between calls while no thread is on the path without the lock: in simulations, and in a quiet pool.
    """
    assert not core.returned, "a returned connection was not assigned"
    slots = core.slots.living()
    states = Counter(slot.state for slot in slots)
    assert len(slots) == len(core.all_slots), "a connection is gone, and its permit is not free"
    # PERMIT-UNTIL-CLOSED
    assert states[State.CLOSED] == 0, "a closed connection still holds a permit"
    assert states[State.CLOSING] == core.slots.closing, "closing connections are miscounted"
    assert set(core.slots.known.values()) <= core.all_slots.keys(), "a connection that is gone is still known"
    assert sum(endpoint.size for endpoint in core.all_endpoints.values()) == len(slots), "endpoints do not add up"
    for endpoint in core.all_endpoints.values():
        mine = [slot for slot in slots if slot.endpoint is endpoint]
        assert endpoint.size == len(mine), f"endpoint {endpoint.key!r}: size"
        assert endpoint.live == sum(e.state in ESTABLISHED for e in mine), f"endpoint {endpoint.key!r}: live"
        opening = sum(e.pending and e.generation == endpoint.generation for e in mine)
        assert endpoint.connecting == opening, (
            f"endpoint {endpoint.key!r}: connecting {endpoint.connecting} != {opening}"
        )
        # PLACE-BY-STATE
        idle = members(endpoint.idle)
        assert len(idle) == len(set(idle)), "a connection is idle twice"
        assert set(idle) == {e for e in mine if e.state is IDLE}, "an idle connection is nowhere to be found"
        assert all(e.state is IN_USE for e in endpoint.spare), "a connection has a stream to spare that is not in use"
        # NO-STRANDING
        usable = _usable(endpoint)
        assert not (usable and core.hands_out) or any(request.rechecking for request in endpoint.requests), (
            "a request is stranded beside an idle connection"
        )
        if endpoint.queue.wanting and core.hands_out:
            spare = core.size.limit - len(slots)
            blocked = endpoint.connecting or endpoint.live or core.slots.closing or endpoint in core.timed
            if core.classes is not None:  # a connection that is being opened may be charged to any class
                blocked = blocked or states[State.CONNECTING]
            claimed = core.capacity.claiming
            assert blocked or spare <= 0 or claimed, "a request is stranded while a permit is free"
        if endpoint.requests and core.hands_out:
            assert core.size.watched(), "callers wait, and autoscale is not scheduled"
        for request in endpoint.requests:  # ONE-END
            assert not request.gone, "a request that is gone is still in the queue"
            assert request.outcome is None, "a request that was served is still in the queue"
    _check_classes(core)
    _check_overload(core)
    _check_minimum(core)
    assert core.capacity.agrees(len(slots), core.slots.closing), "the budget counts other connections"
    # RECORD-PER-LEASE
    leased = list(core.leased.copy().values())
    held = Counter(id(record.slot) for record in leased)
    assert len(leased) == len({id(record) for record in leased}), "two leases share one record"
    for record in leased:
        slot = record.slot
        assert slot.state is IN_USE, f"a leased connection is {slot.state.value}"
        assert slot.leases >= held[id(slot)] >= 1, "leases do not add up"
        assert slot.leases <= max(slot.capacity, 1), "a connection is in too many hands"
