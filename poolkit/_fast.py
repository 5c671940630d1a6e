"""The fast path: take an idle connection that needs no check, and put one back, without the lock where possible.

Both shells share these functions. They are closures, because a closure reads its variables faster than a method reads
attributes, and every acquire and release runs them. ``_core/__init__.py`` explains why they are safe. In doubt they
decline, and the slow path through the core decides.

Pools with many endpoints (``make_keyed_take``) or classes of callers (``make_classed_take``) use such a pair of
functions under the lock. Pools whose listeners want the events of each lease use ``make_telling_take`` without the
lock. Further features are wrapped around them (``traced``, ``told``, ``unreported``, ``clean``).

The functions repeat lines of each other, and ``make_acquire``, ``make_release`` and ``make_lease`` contain copies of
``make_take`` and ``make_put``. A helper for these lines would be a call of a Python function, about a sixth of the cost
of the whole pair. Several pairs would then execute more bytecodes than ``tests/test_hot_paths.py`` allows.

A cycle needs a pop and an append, and two readings of the clock (time idle, time in use). It sets six fields of the
slot: the holder, the start, the uses and the durations. It also needs an entry in the register of leases, which shows
whether a returned connection is on lease. Counts are kept in the slots, values that can be computed are not stored, and
a comparison replaces a call where possible (``bounded``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sized
from functools import partial
from typing import Any

from ._core.endpoints import Endpoint
from ._core.machine import Core
from ._core.queue import ClassQueue
from ._core.slots import IDLE, IN_USE, Held, Slot
from ._gate import OwnedLock
from ._listeners import Listeners
from ._priority import chosen
from .events import Event, EventKind
from .policies.classes import CallerClass, Classes

__all__ = (
    "BATCH", "clean", "decline_put", "decline_take", "delivered", "make_acquire", "make_classed_put",
    "make_classed_take", "make_keyed_put", "make_keyed_take", "make_lease", "make_note", "make_put", "make_release",
    "make_take", "make_telling_put", "make_telling_take", "measured", "told", "traced", "unreported",
)  # fmt: skip


BATCH = 256  # times that are kept aside before a thread takes the lock to count them


def decline_take(key: Hashable = None) -> Slot | None:
    """Decline: in this state of the pool only the core may decide."""
    return None


def decline_put(record: Held) -> bool:
    """Decline: in this state of the pool only the core may decide."""
    return False


def make_take(
    core: Core, clock: Callable[[], float], caller: Callable[[], Hashable], undo: Callable[[Slot], None]
) -> Callable[..., Slot | None]:
    """Return a function that takes an idle connection and begins its lease, or declines."""
    endpoint = core.endpoint
    requests = endpoint.requests
    pop = endpoint.idle.pop if core.lifo else endpoint.idle.popleft

    def take() -> Slot | None:
        if requests:
            return None
        try:
            slot = pop()
        except IndexError:
            return None
        now = clock()
        if now < slot.fresh_until and now < slot.expires:
            slot.state = IN_USE
            slot.leases = 1
            slot.since = now
            slot.holder = caller()
            return slot
        undo(slot)
        return None

    return take


def make_put(
    core: Core, clock: Callable[[], float], missed: Callable[[Endpoint, float], None]
) -> Callable[[Any], bool]:
    """Return a function that ends the lease of a usable connection and makes it idle, or declines.

    ``missed`` is called when a caller queued, or the pool changed, while the connection was being put back.
    """
    endpoint = core.endpoint
    requests = endpoint.requests
    idle = endpoint.idle
    push = idle.append
    most = core.size.max_idle
    bounded = most < core.size.limit  # otherwise max_idle cannot be exceeded
    window = core.window
    moved = core.moved

    def put(slot: Any) -> bool:
        if requests or (bounded and len(idle) >= most):
            return False
        now = clock()
        if now >= slot.expires:
            return False
        slot.uses += 1
        slot.busy += now - slot.since
        slot.last_used = now
        slot.fresh_until = now + window
        slot.leases = 0
        slot.state = IDLE
        push(slot)
        if requests or moved or (bounded and len(idle) > most):  # several threads may have used the last place
            missed(endpoint, now)
        return True

    return put


def make_telling_take(
    core: Core,
    clock: Callable[[], float],
    caller: Callable[[], Hashable],
    undo: Callable[[Slot], None],
    listeners: Listeners[Event],
) -> Callable[..., Slot | None]:
    """As :func:`make_take`, and call the listeners for each lease that begins.

    They are called after the connection is taken. So the event comes after the ``RELEASED`` of its previous lease,
    which is queued before the connection is idle. If the caller is interrupted in a listener, no code refers to the
    slot, and the pool closes the connection.
    """
    endpoint = core.endpoint
    requests = endpoint.requests
    pop = endpoint.idle.pop if core.lifo else endpoint.idle.popleft
    make, pending = _maker(), listeners.pending
    deliver, flush, end_turn = listeners.deliver, listeners.flush, listeners.end_turn
    owner, own = listeners.turn.owner, listeners.turn.owner.setdefault
    with_start = EventKind.ACQUIRE_STARTED in core.wanted_events
    starting = vars(Event(EventKind.ACQUIRE_STARTED, core.name, 0.0))
    beginning = vars(Event(EventKind.ACQUIRED, core.name, 0.0, duration=0.0))

    def take() -> Slot | None:
        if requests:
            return None
        try:
            slot = pop()
        except IndexError:
            return None
        now = clock()
        if now >= slot.fresh_until or now >= slot.expires:
            undo(slot)
            return None
        slot.state = IN_USE
        slot.leases = 1
        slot.since = now
        slot.holder = caller()
        event: Any = make()
        event.__dict__.update(beginning, at=now, connection_id=slot.id)
        first: Any = None
        if with_start:
            first = make()
            first.__dict__.update(starting, at=now)
        try:
            if pending or own(0, event) is not event:  # other events come first, or another thread delivers them
                pending.extend([event] if first is None else [first, event])
                flush()
            else:
                if first is not None:
                    deliver(first)
                deliver(event)  # type: ignore[arg-type]
                del owner[0]
                if pending:
                    flush()
        except BaseException:
            if end_turn(event, None, deliver):
                raise
        return slot

    return take


def make_telling_put(
    core: Core,
    owned: Callable[[], bool],
    clock: Callable[[], float],
    missed: Callable[[Endpoint, float], None],
    listeners: Listeners[Event],
) -> Callable[[Any], bool]:
    """As :func:`make_put`, and call the listeners for each lease that ends.

    The event is queued before the connection is idle, so it comes before the events of the next lease.
    """
    endpoint = core.endpoint
    requests = endpoint.requests
    idle = endpoint.idle
    push = idle.append
    most = core.size.max_idle
    bounded = most < core.size.limit
    window = core.window
    moved = core.moved
    make, append, pending = _maker(), listeners.pending.append, listeners.pending
    deliver, done, end_turn = listeners.deliver, listeners.pending.popleft, listeners.end_turn
    owner, own = listeners.turn.owner, listeners.turn.owner.setdefault
    ending = vars(Event(EventKind.RELEASED, core.name, 0.0))

    def put(slot: Any) -> bool:
        if requests or (bounded and len(idle) >= most) or owned():
            return False  # owned: a finalizer inside a critical section, where no listener may be called
        now = clock()
        if now >= slot.expires:
            return False
        seconds = now - slot.since
        event = make()
        event.__dict__.update(ending, at=now, connection_id=slot.id, duration=seconds)
        slot.uses += 1
        slot.busy += seconds
        slot.last_used = now
        slot.fresh_until = now + window
        slot.leases = 0
        slot.state = IDLE
        append(event)
        push(slot)
        if requests or moved or (bounded and len(idle) > most):
            missed(endpoint, now)
        told = None
        try:  # as Listeners.flush()
            while True:
                if not pending or own(0, event) is not event:
                    break
                while True:
                    if not pending:  # not at the end: Python 3.14 would not cover its jump back
                        break
                    told = pending[0]
                    deliver(told)
                    done()
                del owner[0]
        except BaseException:
            if end_turn(event, told, deliver):
                raise
        return True

    return put


def _maker() -> Callable[[], Any]:
    """Return a function that creates events without ``Event.__init__``, which sets the fields one by one."""
    return partial(object.__new__, Event)


def make_keyed_take(
    core: Core,
    lock: OwnedLock,
    clock: Callable[[], float],
    inbox: deque[Any],
    run_posted: Callable[[], None],
    recover: Callable[[None], None],
    caller: Callable[[], Hashable],
    class_of: Callable[[Classes], CallerClass],
) -> Callable[..., Slot | None]:
    """As :func:`make_take`, under the lock, for a pool that is keyed or has multiplexed connections."""
    endpoint_of = core.all_endpoints.get
    keyed, idle_order = core.features.keyed, core.endpoints.idle.order
    at = -1 if core.lifo else 0
    classes = core.classes
    moved = core.moved
    acquire, release = lock.acquire, lock.release

    def take(key: Hashable = None) -> Slot | None:
        endpoint = endpoint_of(key)
        if endpoint is None or endpoint.requests:
            return None
        caller_class = None if classes is None else class_of(classes)
        idle = endpoint.idle
        try:
            acquire()
            slot: Slot | None = None
            if idle and not moved:
                first = idle[at]
                now = clock()
                if (
                    now < first.fresh_until
                    and now < first.expires
                    and first.state is IDLE
                    and first.capacity == 1
                    and first.generation == endpoint.generation
                    and (classes is None or endpoint.queue.admit(caller_class))
                ):
                    slot = first
                    del idle[at]
                    if keyed:
                        idle_order.pop(slot, None)
                    slot.state = IN_USE
                    slot.leases = 1
                    slot.since = now
                    slot.holder = caller()
                    if caller_class is not None:
                        slot.owner = caller_class
                        caller_class.acquires += 1
            release()
            if inbox:
                run_posted()
        except BaseException:
            recover(None)
            raise
        return slot

    return take


def make_keyed_put(
    core: Core,
    lock: OwnedLock,
    clock: Callable[[], float],
    inbox: deque[Any],
    run_posted: Callable[[], None],
    recover: Callable[[None], None],
    note: Callable[[Slot, float, float], None] | None = None,
) -> Callable[[Any], bool]:
    """As :func:`make_put`, for these pools. Never waits for the lock. ``note``: see :func:`make_note`."""
    queued = core.endpoints.queued
    keyed, idle_order = core.features.keyed, core.endpoints.idle.order
    idle_ones: Sized = idle_order if keyed else core.endpoint.idle
    most = core.size.max_idle
    window = core.window
    classes = core.classes
    moved = core.moved
    owned, acquire, release = lock._is_owned, lock.acquire, lock.release

    def put(record: Held) -> bool:
        slot = record.slot
        endpoint = slot.endpoint
        if owned():
            return False  # a finalizer inside a critical section of this thread
        try:
            if not acquire(False):
                return False
            now = clock()
            done = (
                now < slot.expires
                and slot.capacity == slot.leases == 1
                and slot.generation == endpoint.generation
                and len(idle_ones) < most
                and not (moved or endpoint.requests or queued)
            )
            if done:
                slot.uses += 1
                slot.busy += now - record.since
                slot.last_used = now
                slot.fresh_until = now + window
                if classes is not None:
                    core.use.uncharge(slot)
                if keyed:
                    idle_order[slot] = None
                slot.leases = 0
                slot.state = IDLE
                if note is not None:
                    note(slot, now, now - record.since)
                endpoint.idle.append(slot)
            release()
            if inbox:
                run_posted()
        except BaseException:
            recover(None)
            raise
        return done

    return put


def make_classed_take(
    core: Core,
    lock: OwnedLock,
    clock: Callable[[], float],
    inbox: deque[Any],
    run_posted: Callable[[], None],
    recover: Callable[[None], None],
    caller: Callable[[], Hashable],
    class_of: Callable[[Classes], CallerClass],
) -> Callable[..., Slot | None]:
    """As :func:`make_take`, under the lock, for a pool with classes of callers."""
    endpoint = core.endpoint
    requests = endpoint.requests
    idle = endpoint.idle
    at = -1 if core.lifo else 0
    queue = endpoint.queue
    assert isinstance(queue, ClassQueue)
    queues = queue.by_class
    classes = core.classes
    assert classes is not None
    default = classes.default
    size = core.size
    moved = core.moved
    acquire, release = lock.acquire, lock.release

    def take(key: Hashable = None) -> Slot | None:
        if requests or key is not None:
            return None
        caller_class = default if chosen() is None else class_of(classes)
        try:
            acquire()
            slot: Slot | None = None
            if not moved and not requests and idle:
                first = idle[at]
                now = clock()
                if (
                    now < first.fresh_until
                    and now < first.expires
                    and caller_class in queues
                    and classes.admit(caller_class, size.limit)
                ):
                    slot = first
                    del idle[at]
                    slot.state = IN_USE
                    slot.leases = 1
                    slot.since = now
                    slot.holder = caller()
                    slot.owner = caller_class
                    caller_class.acquires += 1
            release()
            if inbox:
                run_posted()
        except BaseException:
            recover(None)
            raise
        return slot

    return take


def make_classed_put(
    core: Core,
    lock: OwnedLock,
    clock: Callable[[], float],
    inbox: deque[Any],
    run_posted: Callable[[], None],
    recover: Callable[[None], None],
    note: Callable[[Slot, float, float], None] | None = None,
) -> Callable[[Any], bool]:
    """As :func:`make_put`, for these pools. Never waits for the lock. ``note``: see :func:`make_note`."""
    endpoint = core.endpoint
    requests = endpoint.requests
    idle = endpoint.idle
    most = core.size.max_idle
    bounded = most < core.size.limit
    window = core.window
    classes = core.classes
    assert classes is not None
    moved = core.moved
    owned, acquire, release = lock._is_owned, lock.acquire, lock.release

    def put(slot: Any) -> bool:
        if owned():
            return False
        try:
            if not acquire(False):
                return False
            now = clock()
            done = now < slot.expires and not (requests or moved or (bounded and len(idle) >= most))
            if done:
                slot.uses += 1
                slot.busy += now - slot.since
                slot.last_used = now
                slot.fresh_until = now + window
                owner = slot.owner
                if owner is not None:
                    slot.owner = None
                    if owner.held > owner.reserved:  # as Classes.give
                        classes.committed -= 1
                    owner.held -= 1
                slot.leases = 0
                slot.state = IDLE
                if note is not None:
                    note(slot, now, now - slot.since)
                idle.append(slot)
            release()
            if inbox:
                run_posted()
        except BaseException:
            recover(None)
            raise
        return done

    return put


def told(take: Callable[..., Slot | None], core: Core, listeners: Listeners[Event]) -> Callable[..., Slot | None]:
    """Wrap ``take``, which takes the lock, to call the listeners for each lease. As in :func:`make_telling_take`, they
    are called after the connection is taken.
    """
    make, pending = _maker(), listeners.pending
    deliver, flush, end_turn = listeners.deliver, listeners.flush, listeners.end_turn
    owner, own = listeners.turn.owner, listeners.turn.owner.setdefault
    with_start = EventKind.ACQUIRE_STARTED in core.wanted_events
    starting = vars(Event(EventKind.ACQUIRE_STARTED, core.name, 0.0))
    beginning = vars(Event(EventKind.ACQUIRED, core.name, 0.0, duration=0.0))

    def telling_take(*key: Hashable) -> Slot | None:
        slot = take(*key)
        if slot is None:
            return None
        now = slot.since
        event: Any = make()
        event.__dict__.update(beginning, at=now, connection_id=slot.id, key=slot.endpoint.key)
        first: Any = None
        if with_start:
            first = make()
            first.__dict__.update(starting, at=now)
        try:
            if pending or own(0, event) is not event:
                pending.extend([event] if first is None else [first, event])
                flush()
            else:
                if first is not None:
                    deliver(first)
                deliver(event)  # type: ignore[arg-type]
                del owner[0]
                if pending:
                    flush()
        except BaseException:
            if end_turn(event, None, deliver):
                raise
        return slot

    return telling_take


def make_note(core: Core, listeners: Listeners[Event]) -> Callable[[Slot, float, float], None]:
    """Return a function that queues the event for a lease that ends. The functions that take the lock call it before
    they make the connection idle, so the event comes before those of the next lease.
    """
    make, append = _maker(), listeners.pending.append
    ending = vars(Event(EventKind.RELEASED, core.name, 0.0))

    def note(slot: Slot, now: float, seconds: float) -> None:
        event = make()
        event.__dict__.update(ending, at=now, connection_id=slot.id, duration=seconds, key=slot.endpoint.key)
        append(event)

    return note


def delivered(put: Callable[[Any], bool], listeners: Listeners[Event]) -> Callable[[Any], bool]:
    """Wrap ``put``, which takes the lock and has queued an event, to call the listeners after it."""
    pending, deliver, done, end_turn = (
        listeners.pending, listeners.deliver, listeners.pending.popleft, listeners.end_turn
    )  # fmt: skip
    owner, own = listeners.turn.owner, listeners.turn.owner.setdefault

    def telling_put(record: Any) -> bool:
        if not put(record):
            return False
        me, event = object(), None
        try:  # as Listeners.flush()
            while True:
                if not pending or own(0, me) is not me:
                    break
                while True:
                    if not pending:
                        break
                    event = pending[0]
                    deliver(event)
                    done()
                del owner[0]
        except BaseException:
            if end_turn(me, event, deliver):
                raise
        return True

    return telling_put


def traced(take: Callable[..., Slot | None], trace: Callable[[Slot], None]) -> Callable[..., Slot | None]:
    """Wrap ``take`` to record the place of each lease."""

    def traced_take(*key: Hashable) -> Slot | None:
        slot = take(*key)
        if slot is not None:
            slot.reported = False
            trace(slot)
        return slot

    return traced_take


def unreported(put: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Wrap ``put`` to decline a lease that was reported as held too long."""

    def put_unreported(record: Any) -> bool:
        return not record.reported and put(record)

    return put_unreported


def clean(put: Callable[[Any], bool], dirty: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Wrap ``put`` to decline a connection that has to be reset. The connector is asked once; the slow path uses the
    same answer.
    """

    def put_clean(record: Any) -> bool:
        slot = record.slot
        if slot.leases != 1:
            return False
        try:
            found: bool | BaseException = bool(dirty(slot.connection))
        except BaseException as error:  # noqa: BLE001  the slow path raises it, and drops the connection
            found = error
        if found is False and put(record):
            return True
        slot.dirty = found
        return False

    return put_clean


def measured(
    put: Callable[[Any], bool], clock: Callable[[], float], used: deque[float], flush: Callable[[], None]
) -> Callable[[Any], bool]:
    """Wrap ``put`` to record the duration of each lease. It needs no lock: appending to a deque is atomic."""
    note = used.append

    def measured_put(slot: Any) -> bool:
        seconds = clock() - slot.since  # first: after put() another caller may own the slot
        if not put(slot):
            return False
        note(seconds)
        if len(used) >= BATCH:
            flush()
        return True

    return measured_put


def make_acquire(
    core: Core,
    clock: Callable[[], float],
    caller: Callable[[], Hashable],
    undo: Callable[[Slot], None],
    slow: Callable[..., Any],
    default: Any,
) -> Callable[..., Any]:
    """Return ``Pool.acquire`` without the lock; ``slow(timeout)`` is the slow path."""
    endpoint = core.endpoint
    requests = endpoint.requests
    pop = endpoint.idle.pop if core.lifo else endpoint.idle.popleft
    leased = core.leased
    moved = core.moved

    def acquire(timeout: Any = default) -> Any:
        if requests or moved:  # moved: the pool has replaced this function, but the program has kept a reference
            return slow(timeout)
        slot: Slot | None
        try:
            slot = pop()
        except IndexError:
            slot = None
        if slot is None:  # not in the except block: IndexError must not be the context of a later error
            return slow(timeout)
        now = clock()
        if now < slot.fresh_until and now < slot.expires:
            slot.state = IN_USE
            slot.leases = 1
            slot.since = now
            slot.holder = caller()
            connection = slot.connection
            leased[slot.key] = slot  # last: after an interruption before this, the slot's finalizer reports it
            return connection
        undo(slot)
        return slow(timeout)

    return acquire


def make_release(
    core: Core,
    clock: Callable[[], float],
    missed: Callable[[Endpoint, float], None],
    slow: Callable[[Held | None, int, bool, BaseException | None], None],
) -> Callable[..., None]:
    """Return ``Pool.release`` without the lock; ``slow(slot, key, discard, error)`` is the slow path."""
    endpoint = core.endpoint
    requests = endpoint.requests
    idle = endpoint.idle
    push = idle.append
    most = core.size.max_idle
    bounded = most < core.size.limit
    window = core.window
    moved = core.moved
    leased = core.leased

    def release(connection: Any, discard: bool = False, error: BaseException | None = None) -> None:
        key = id(connection)
        slot: Any  # on the fast path each connection has only one lease, and is its own record
        try:
            slot = leased[key]
            del leased[key]  # of several threads that return the same connection, only one gets past this line
        except KeyError:
            slot = None
        if slot is None or discard or error is not None or requests or (bounded and len(idle) >= most):
            return slow(slot, key, discard, error)
        now = clock()
        if now >= slot.expires:
            return slow(slot, key, discard, error)
        slot.uses += 1
        slot.busy += now - slot.since
        slot.last_used = now
        slot.fresh_until = now + window
        slot.leases = 0
        slot.state = IDLE
        push(slot)
        if requests or moved or (bounded and len(idle) > most):
            missed(endpoint, now)
        return None

    return release


def make_lease(
    pool: Any,
    kind: type[Any],
    core: Core,
    clock: Callable[[], float],
    caller: Callable[[], Hashable],
    undo: Callable[[Slot], None],
    slow: Callable[..., Any],
    default: Any,
) -> Callable[..., Any]:
    """Return ``Pool.lease`` without the lock; ``kind`` is the class of leases, ``slow(timeout, key)`` the slow path."""
    endpoint = core.endpoint
    requests = endpoint.requests
    pop = endpoint.idle.pop if core.lifo else endpoint.idle.popleft
    leased = core.leased
    moved = core.moved
    new: Any = kind.__new__  # calling __init__ would cost one more call

    def lease(timeout: Any = default, key: Any = None) -> Any:
        if requests or moved or key is not None:
            return slow(timeout, key)
        slot: Slot | None
        try:
            slot = pop()
        except IndexError:
            slot = None
        if slot is None:
            return slow(timeout)
        now = clock()
        if now < slot.fresh_until and now < slot.expires:
            made = new(kind)
            made._pool = pool
            slot.state = IN_USE
            slot.leases = 1
            slot.since = made.since = now
            slot.holder = caller()
            made.connection = slot.connection
            made._record = slot  # first: the finalizer of a lease that is dropped from here on returns the connection
            leased[id(made)] = slot
            return made
        undo(slot)
        return slow(timeout)

    return lease
