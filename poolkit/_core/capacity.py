"""How many connections a pool may have, in three parts.

- The size is the most connections that the pool may have and the least that it keeps. It is fixed by the settings, or
  decided by a policy (``autoscale``).
- The capacity decides whether the pool may open one more: by its own limit alone, or by a budget that pools share.
- The use counts the connections of each class of callers. The numbers are in
  :class:`~poolkit.policies.classes.Classes`; this module connects them with slots. A class's ``held`` is the number of
  slots whose ``owner`` it is.

The number of connections is not stored here: it is the number of slots.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING

from ..config import AutoscaleConfig, PoolConfig
from ..policies.autoscale import Autoscaler, View
from ..policies.classes import CallerClass, Classes
from ..policies.retire import NEVER, evictable_at
from .ledger import LAST, Account
from .queue import ClassQueue, FifoQueue, Queue, Request
from .slots import CLOSED, CLOSING, IDLE, IN_USE, RESETTING, Slot

if TYPE_CHECKING:
    from .endpoints import Endpoint

__all__ = (
    "Capacity",
    "ClassUse",
    "ElasticSize",
    "FixedSize",
    "NoClasses",
    "OwnLimit",
    "SharedLimit",
    "Size",
    "Use",
    "configured",
    "size_of",
)


class FixedSize:
    """A size that changes only with the settings."""

    __slots__ = ("limit", "max_idle", "minimum")

    reason = ""
    """Why the limit has its present value; empty if the settings fix it."""
    max_wait: float | None = None
    """Seconds after which a waiting caller is a reason to call the policy; None without a policy."""

    def __init__(self, config: PoolConfig) -> None:
        self.limit = _most(config)  # connections that may exist
        self.max_idle = _most_idle(config)  # connections that may be idle
        self.minimum = config.min_size  # connections that are kept without demand

    @property
    def largest(self) -> int:
        """The largest limit that this size may choose."""
        return self.limit

    def queued(self, now: float) -> None:
        """A caller has to wait."""

    def look_by(self, at: float) -> None:
        """Have :meth:`tick` called not later than ``at``."""

    def watched(self) -> bool:
        """Whether a further call of :meth:`tick` is scheduled; True here, where none is needed."""
        return True

    def expect(self, count: int, now: float) -> bool:
        """Make room for ``count`` connections that the shell opens; whether limit or minimum may have changed."""
        return False

    def refused(self, begun: float, now: float, live: Callable[[], int]) -> None:
        """The server has refused a connect because it is full. ``begun``: when the connect began; ``live``: returns the
        number of connections.
        """

    def tick(self, now: float, least: float, waiting: Callable[[], bool], view: Callable[[], View]) -> bool:
        """Call the policy if it is due; whether limit or minimum may have changed."""
        return False


class ElasticSize:
    """A size that follows the load.

    ``on_demand``: keep no connection without demand. ``due(at)``: schedules a call of :meth:`tick` not later than
    ``at``.
    """

    def __init__(
        self, config: PoolConfig, policy: AutoscaleConfig, *, on_demand: bool, due: Callable[[float], object]
    ) -> None:
        self._on_demand = on_demand
        self._due = due
        self._look_at = NEVER
        self._looked_at = -NEVER
        self._scaler = Autoscaler(policy, config.min_size, _most(config))
        self.configure(config, policy)

    def configure(self, config: PoolConfig, policy: AutoscaleConfig) -> None:
        """Apply settings, at any time."""
        self.max_wait: float | None = policy.max_wait
        self._scaler.configure(policy, config.min_size, _most(config))
        self.max_idle = _most_idle(config)
        self._reserved = sum(one.reserved for one in (config.classes or {}).values())
        self._apply()

    def _apply(self) -> None:
        scaler = self._scaler
        self.limit = max(scaler.limit, self._reserved + 1)  # otherwise classes without a reserve never get a connection
        self.minimum = 0 if self._on_demand else min(scaler.floor, self.max_idle)

    @property
    def reason(self) -> str:
        """Why the limit has its present value."""
        return self._scaler.reason

    @property
    def largest(self) -> int:
        """The largest limit that this size may choose."""
        return self._scaler.high

    def queued(self, now: float) -> None:
        """A caller has to wait: call the policy after ``max_wait`` seconds."""
        self.look_by(now + self._scaler.config.max_wait)

    def look_by(self, at: float) -> None:
        """Have :meth:`tick` called not later than ``at``."""
        self._look_at = min(self._look_at, at)
        self._due(self._look_at)

    def watched(self) -> bool:
        """Whether a further call of :meth:`tick` is scheduled."""
        return self._look_at < NEVER

    def expect(self, count: int, now: float) -> bool:
        """Make room for ``count`` connections that the shell opens; whether limit or minimum may have changed."""
        if count <= self._scaler.limit:
            return False
        self._scaler.expect(now, count)
        self._apply()
        self.look_by(now)
        return True

    def refused(self, begun: float, now: float, live: Callable[[], int]) -> None:
        """The server has refused a connect because it is full: reduce the limit."""
        if self._scaler.refused(now, begun, live()):
            self.look_by(now)

    def tick(self, now: float, least: float, waiting: Callable[[], bool], view: Callable[[], View]) -> bool:
        """Call the policy if it is due; whether limit or minimum may have changed.

        ``least``: least seconds between two calls, longer for a large pool; ``waiting``: whether callers wait.
        """
        if now < self._look_at:
            self._due(self._look_at)
            return False
        self._look_at = NEVER
        scaler = self._scaler
        rest = scaler.idle_until(now)
        if rest is not None and not waiting():
            self.look_by(rest)  # the usual case: the caller that had to wait has been served
            return False
        if now < self._looked_at + least:
            self.look_by(self._looked_at + least)
            return False
        self._looked_at = now
        seen = view()
        changed = scaler.look(now, seen)
        if changed:
            self._apply()
        self.look_by(scaler.next_look(now, seen, least))
        return changed


Size = FixedSize | ElasticSize
"""Both classes have the same methods and attributes."""


def size_of(config: PoolConfig, old: Size | None, *, on_demand: bool, due: Callable[[float], object]) -> Size:
    """Return the size for these settings. An elastic one keeps its measurements."""
    if config.autoscale is None:
        return FixedSize(config)
    if isinstance(old, ElasticSize):
        old.configure(config, config.autoscale)
        return old
    return ElasticSize(config, config.autoscale, on_demand=on_demand, due=due)


def _most(config: PoolConfig) -> int:
    return sys.maxsize if config.max_size is None else config.max_size


def _most_idle(config: PoolConfig) -> int:
    return _most(config) if config.max_idle is None else config.max_idle


Spare = Callable[[], Slot | None]
"""Returns the idle connection that has been unused longest."""
Evict = Callable[[Slot], bool]
"""Closes an idle connection; False if another thread has just taken it."""
Want = Callable[[float], object]
"""Schedules a tick."""


class OwnLimit:
    """The capacity of a pool without a budget: every permit below the limit is its own."""

    account: Account | None = None
    sharing_needed = False
    """Whether other pools claim permits of this one, so that each returned connection may have to be closed."""
    claiming = False
    """Whether the budget has a claim of this pool."""

    def __init__(self) -> None:
        self.ticket: Callable[[], int] = count(1).__next__  # the next place in the queue

    def take(self, request: Request, need: int, *, pressing: bool = False) -> bool:
        """Take a permit for the caller; whether there was one. If not, claim ``need`` permits. ``pressing``: the first
        of them must not wait until a connection of another pool has been unused for a while.
        """
        return True

    def take_spare(self) -> bool:
        """Take a permit for a connection that no caller waits for; whether there was one to spare."""
        return True

    def take_minimum(self, short: int) -> bool:
        """Take a permit for ``min_size``, after all waiting callers; whether there was one. If not, claim the ``short``
        permits that are reserved.
        """
        return True

    def give(self, *, announced: bool) -> None:
        """Return a permit. ``announced``: :meth:`leave` has been called for its connection."""

    def leave(self) -> None:
        """Note that a connection is being closed."""

    def must_yield(self, queue: Queue) -> bool:
        """Whether to close a returned connection for another pool, although callers of this pool wait for it."""
        return False

    def yield_to_others(self, now: float, longest_unused: Spare, evict: Evict, want: Want) -> bool:
        """Close idle connections for other pools; whether other pools have to be notified."""
        return False

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: set the permits taken, and those of connections that are being closed."""

    def agrees(self, held: int, leaving: int) -> bool:
        """Whether the budget has the same numbers."""
        return True

    def retire(self) -> None:
        """The pool admits no more callers."""


class SharedLimit:
    """The capacity of a pool under a budget: each permit is also taken from the :class:`~.ledger.Account`.

    ``account.ticket`` counts over all pools, so that permits go to the oldest caller of any pool.
    """

    def __init__(self, account: Account) -> None:
        self.account: Account | None = account
        self._account = account
        self.ticket = account.ticket
        self.sharing_needed = False
        self._asked = 0  # permits that were refused since the claim was last adjusted

    @property
    def claiming(self) -> bool:
        """Whether the budget has a claim of this pool."""
        return self._account.claiming

    def take(self, request: Request, need: int, *, pressing: bool = False) -> bool:
        """Take a permit for the caller; whether there was one. If not, claim ``need`` permits. ``pressing``: the first
        of them must not wait until a connection of another pool has been unused for a while.
        """
        if self._account.take(request.ticket, need, pressing=pressing):
            return True
        self._asked = need
        return False

    def take_spare(self) -> bool:
        """Take a permit for a connection that no caller waits for; whether there was one to spare."""
        return self._account.take(LAST, 0)

    def take_minimum(self, short: int) -> bool:
        """Take a permit for ``min_size``, after all waiting callers; whether there was one. If not, claim the ``short``
        permits that are reserved.
        """
        if self._asked:
            return False
        if self._account.take(LAST, short):
            return True
        self._asked = short
        return False

    def give(self, *, announced: bool) -> None:
        """Return a permit. ``announced``: :meth:`leave` has been called for its connection."""
        self._account.give(announced)

    def leave(self) -> None:
        """Note that a connection is being closed."""
        self._account.leave()

    def must_yield(self, queue: Queue) -> bool:
        """Whether to close a returned connection for another pool, although callers of this pool wait for it. If so, it
        counts as leaving.
        """
        if not (self.sharing_needed and self._account.short):
            return False
        request = queue.first()
        return request is not None and self._account.must_yield(request.ticket)

    def yield_to_others(self, now: float, longest_unused: Spare, evict: Evict, want: Want) -> bool:
        """Reduce the claim to what is needed, and close idle connections while other pools need permits, longest unused
        first. Whether other pools have to be notified.

        ``evict``: closes a connection that already counts as leaving; False if another thread has just taken it.
        ``want(at)``: schedules another call at that time, when the connection will have been unused for long enough.
        """
        account = self._account
        if account.claiming:
            account.lower(self._asked)
        self._asked = 0
        while self.sharing_needed and account.short:
            slot = longest_unused()
            if slot is None:
                account.look()
                break
            settled_at = evictable_at(unused_since=slot.last_used)
            if not account.may_evict(slot.last_used, settled=now >= settled_at):
                if now < settled_at:
                    want(settled_at)
                else:
                    account.look()
                break
            if not evict(slot):
                account.keep()
        return account.news or (self.sharing_needed and not account.short)

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: set the permits taken, and those of connections that are being closed."""
        self._account.correct(held, leaving)

    def agrees(self, held: int, leaving: int) -> bool:
        """Whether the budget has the same numbers. True for a closed account."""
        account = self._account
        return account not in account.ledger.accounts or (account.held, account.leaving) == (held, leaving)

    def retire(self) -> None:
        """The pool admits no more callers."""
        self._account.retire()


Capacity = OwnLimit | SharedLimit
"""Both classes have the same methods."""


class NoClasses:
    """The use in a pool without classes: all callers are equal, and no connection is charged to a class."""

    classes: Classes | None = None

    def new_queue(self, requests: OrderedDict[Request, None] | None = None) -> FifoQueue:
        """Return a new queue for one endpoint."""
        return FifoQueue(requests)

    def charge(self, slot: Slot, request: Request) -> None:
        """Charge the connection, or a further lease of it, to the caller's class."""

    def charge_lease(self, slot: Slot, request: Request) -> None:
        """Charge the lease that begins now, and count it."""

    def uncharge(self, slot: Slot) -> None:
        """The connection is no longer in use: charge it to no class."""

    def widened(self) -> bool:
        """Whether a class may have more connections than at the last :meth:`note`."""
        return False

    def note(self) -> None:
        """Record the numbers of each class, after all callers have been served that can be."""

    def recount(self, slots: Iterable[Slot]) -> None:
        """After an interruption: compute the numbers from the slots."""
        for slot in slots:
            slot.owner = None

    def check(self, slots: Iterable[Slot]) -> None:
        """Raise AssertionError unless the numbers agree with the slots."""
        owned = any(slot.owner is not None for slot in slots)
        assert not owned, "a connection belongs to a class of callers that does not exist"


class ClassUse:
    """The use of connections by each class of callers.

    ``limit``: returns the pool's present limit. ``coming``: returns the number of connections that are neither idle,
    closing nor checked in the background. ``by_caller``: whether a connection that is being opened is charged to the
    class of the caller that opens it.
    """

    def __init__(
        self, classes: Classes, limit: Callable[[], int], coming: Callable[[], int], *, by_caller: Callable[[], bool]
    ) -> None:
        self.classes = classes
        self.limit = limit
        self._coming = coming
        self._by_caller = by_caller
        self._noted: list[int] = []

    def new_queue(self, requests: OrderedDict[Request, None] | None = None) -> ClassQueue:
        """Return a new queue for one endpoint."""
        return ClassQueue(OrderedDict() if requests is None else requests, self)

    def room(self, needs: Iterable[tuple[CallerClass, int]], opening: int) -> int:
        """Return how many further connects the classes may have. ``needs``: the classes, and how many connects each
        needs; ``opening``: connects of the endpoint that are in progress.
        """
        opening = 0 if self._by_caller() else opening
        return self.classes.room(needs, self.limit(), max(0, self._unowned() - opening)) - opening

    def _unowned(self) -> int:
        """Connections that are being opened and not charged to a class yet."""
        held = sum([one.held for one in self.classes.known.values()])
        return max(0, self._coming() - held)

    def charge(self, slot: Slot, request: Request) -> None:
        """Charge the connection, or a further lease of it, to the caller's class."""
        one = request.caller_class
        if one is None:
            return
        if slot.owner is None:
            self.classes.take(one)
            slot.owner = one
        elif slot.leases:
            self.classes.join(one, slot.owner)

    def charge_lease(self, slot: Slot, request: Request) -> None:
        """Charge the lease that begins now, and count it."""
        if request.caller_class is not None:
            self.charge(slot, request)
            request.caller_class.acquires += 1

    def uncharge(self, slot: Slot) -> None:
        """The connection is no longer in use: charge it to no class."""
        owner, slot.owner = slot.owner, None
        if owner is not None:
            self.classes.give(owner)

    def widened(self) -> bool:
        """Whether a class may have more connections than at the last :meth:`note`."""
        before, now = self._noted, self._numbers()
        return len(before) != len(now) or any(one < other for one, other in zip(now, before, strict=True))

    def note(self) -> None:
        """Record the numbers of each class, after all callers have been served that can be.

        An earlier record would be wrong: a connection that is leased after it and returned before the next ``settle()``
        would go unnoticed, and a caller of a class at its limit would continue to wait.
        """
        self._noted = self._numbers()

    def _numbers(self) -> list[int]:
        return [self._unowned(), *(one.held for one in self.classes.known.values())]

    def recount(self, slots: Iterable[Slot]) -> None:
        """After an interruption: compute the numbers from the slots."""
        for one in self.classes.known.values():
            one.held = 0
        for slot in slots:
            if slot.state in (IDLE, CLOSING, CLOSED):
                slot.owner = None
            elif slot.owner is not None:
                slot.owner.held += 1
        self.classes.count()

    def check(self, slots: Iterable[Slot]) -> None:
        """Raise AssertionError unless the numbers agree with the slots."""
        slots = list(slots)
        known = self.classes.known.values()
        owners = Counter(slot.owner for slot in slots if slot.owner is not None)
        assert owners.keys() <= set(known), "a connection belongs to a class that does not exist"
        for one in known:
            assert one.held == owners[one], f"class {one.name!r}: held {one.held} != {owners[one]}"
        committed = sum(max(one.held, one.reserved) for one in known)
        assert self.classes.committed == committed, f"committed {self.classes.committed} != {committed}"
        unused = any(slot.owner is not None and slot.state in (IDLE, CLOSING) for slot in slots)
        assert not unused, "an unused connection belongs to a class"


Use = NoClasses | ClassUse
"""Both classes have the same methods, except for :meth:`ClassUse.room`, which only a ClassQueue calls."""


def configured(
    old: Use,
    config: PoolConfig,
    endpoints: Iterable[Endpoint],
    slots: Iterable[Slot],
    make: Callable[[Classes], ClassUse],
) -> Use:
    """Return the use for new settings, at any time. Waiting callers keep their class, and each endpoint gets a queue of
    the right kind.
    """
    endpoints = list(endpoints)
    if config.classes is None:
        if isinstance(old, NoClasses):
            return old
        use = NoClasses()
        use.recount(slots)
        for endpoint in endpoints:
            _replace_queue(endpoint, use)
        return use
    if isinstance(old, ClassUse):
        busy = {w.caller_class for endpoint in endpoints for w in endpoint.requests if w.caller_class is not None}
        old.classes.configure(config.classes, config.default_class, busy)
        for endpoint in endpoints:
            assert isinstance(endpoint.queue, ClassQueue)
            endpoint.queue.renew()
        return old
    made = make(Classes())
    made.classes.configure(config.classes, config.default_class, ())
    default = made.classes.default  # callers without a class belong to the default one
    for endpoint in endpoints:
        for request in endpoint.requests:
            request.caller_class = default
        _replace_queue(endpoint, made)
    for slot in slots:
        if slot.state in (IN_USE, RESETTING):
            slot.owner = default
    made.recount(slots)
    return made


def _replace_queue(endpoint: Endpoint, use: Use) -> None:
    old = endpoint.queue
    endpoint.queue = use.new_queue(endpoint.requests)
    endpoint.queue.waits, endpoint.queue.queued_at = old.waits, old.queued_at
