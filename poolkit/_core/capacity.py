"""How many connections there may be, in three parts.

- The size says how many the pool may have and keeps: as its settings say, or as its policy decides (``autoscale``).
- The capacity says whether it may have one more: by its own limit alone, or by that of a budget that pools share.
- The use says how many of them each class of callers has. The numbers are in
  :class:`~poolkit.policies.classes.Classes`; here they meet slots. A class's ``held`` is the number of slots whose
  ``owner`` it is.

The number of connections is not kept here: it is the number of slots.
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
from ..policies.retire import NEVER
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
    """Why the limit is what it is; empty if the settings say so."""
    max_wait: float | None = None
    """Seconds after which a waiting caller makes it worth a look, if there is anything to decide."""

    def __init__(self, config: PoolConfig) -> None:
        self.limit = _most(config)  # connections that may exist
        self.max_idle = _most_idle(config)  # connections that may be idle
        self.minimum = config.min_size  # connections that are kept without need

    @property
    def largest(self) -> int:
        """The limit that it may grow to."""
        return self.limit

    def queued(self, now: float) -> None:
        """A caller has to wait."""

    def look_by(self, at: float) -> None:
        """Have the size looked at not later than ``at``."""

    def watched(self) -> bool:
        """Whether the size is looked at again, if that is of any use."""
        return True

    def expect(self, count: int, now: float) -> bool:
        """Make room for ``count`` connections that somebody else opens; whether limit or minimum may have changed."""
        return False

    def refused(self, begun: float, now: float, live: Callable[[], int]) -> None:
        """The server has refused a connect for overload. ``begun``: when that began; ``live``: the connections."""

    def tick(self, now: float, least: float, waiting: Callable[[], bool], view: Callable[[], View]) -> bool:
        """Do what is due; whether limit or minimum may have changed."""
        return False


class ElasticSize:
    """A size that follows the load.

    ``keyed``: no connection is kept without need. ``due(at)``: asks for a call of :meth:`tick` not later than ``at``.
    """

    def __init__(
        self, config: PoolConfig, policy: AutoscaleConfig, *, keyed: bool, due: Callable[[float], object]
    ) -> None:
        self._keyed = keyed
        self._due = due
        self._look_at = NEVER
        self._looked_at = -NEVER
        self._scaler = Autoscaler(policy, config.min_size, _most(config))
        self.configure(config, policy)

    def configure(self, config: PoolConfig, policy: AutoscaleConfig) -> None:
        """Take over settings, at any time."""
        self.max_wait: float | None = policy.max_wait
        self._scaler.configure(policy, config.min_size, _most(config))
        self.max_idle = _most_idle(config)
        self._reserved = sum(one.reserved for one in (config.classes or {}).values())
        self._apply()

    def _apply(self) -> None:
        scaler = self._scaler
        self.limit = max(scaler.limit, self._reserved + 1)  # else the other classes would never get any
        self.minimum = 0 if self._keyed else min(scaler.floor, self.max_idle)

    @property
    def reason(self) -> str:
        """Why the limit is what it is."""
        return self._scaler.reason

    @property
    def largest(self) -> int:
        """The limit that it may grow to."""
        return self._scaler.high

    def queued(self, now: float) -> None:
        """A caller has to wait: look whether it waits for too long."""
        self.look_by(now + self._scaler.config.max_wait)

    def look_by(self, at: float) -> None:
        """Have the size looked at not later than ``at``."""
        self._look_at = min(self._look_at, at)
        self._due(self._look_at)

    def watched(self) -> bool:
        """Whether the size is looked at again."""
        return self._look_at < NEVER

    def expect(self, count: int, now: float) -> bool:
        """Make room for ``count`` connections that somebody else opens; whether limit or minimum may have changed."""
        if count <= self._scaler.limit:
            return False
        self._scaler.expect(now, count)
        self._apply()
        self.look_by(now)
        return True

    def refused(self, begun: float, now: float, live: Callable[[], int]) -> None:
        """The server bears no more than it has: become smaller."""
        if self._scaler.refused(now, begun, live()):
            self.look_by(now)

    def tick(self, now: float, least: float, waiting: Callable[[], bool], view: Callable[[], View]) -> bool:
        """Look at the pool, if that is due; whether limit or minimum may have changed.

        ``least``: seconds between two looks at so large a pool; ``waiting``: whether callers wait.
        """
        if now < self._look_at:
            self._due(self._look_at)
            return False
        self._look_at = NEVER
        scaler = self._scaler
        rest = scaler.idle_until(now)
        if rest is not None and not waiting():
            self.look_by(rest)  # whoever has asked for a look has been served: the usual case
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
"""Both have the same methods and attributes."""


def size_of(config: PoolConfig, old: Size | None, *, keyed: bool, due: Callable[[float], object]) -> Size:
    """The size by these settings; an elastic one keeps what it has learnt."""
    if config.autoscale is None:
        return FixedSize(config)
    if isinstance(old, ElasticSize):
        old.configure(config, config.autoscale)
        return old
    return ElasticSize(config, config.autoscale, keyed=keyed, due=due)


def _most(config: PoolConfig) -> int:
    return sys.maxsize if config.max_size is None else config.max_size


def _most_idle(config: PoolConfig) -> int:
    return _most(config) if config.max_idle is None else config.max_idle


class OwnLimit:
    """A pool that shares its limit with nobody: every permit below the limit is its own."""

    account: Account | None = None
    sharing_needed = False
    """Whether other pools need connections of this one: returned ones have to be looked at."""
    claiming = False
    """Whether the budget has noted that this pool needs permits."""

    def __init__(self) -> None:
        self.ticket: Callable[[], int] = count(1).__next__  # the next place in the queue

    def take(self, request: Request, need: int) -> bool:
        """Take a permit for the caller; if there is none, claim ``need`` of them."""
        return True

    def take_spare(self) -> bool:
        """Take a permit for a connection that nobody waits for, if there is one to spare."""
        return True

    def take_minimum(self, short: int) -> bool:
        """Take a permit for ``min_size``, after all who wait; if there is none, claim the ``short`` reserved ones."""
        return True

    def give(self, *, announced: bool) -> None:
        """A permit is free; ``announced``: the connection was being closed."""

    def leave(self) -> None:
        """A connection is being closed."""

    def must_yield(self, queue: Queue) -> bool:
        """Whether a returned connection gives way to another pool, although callers wait for it here."""
        return False

    def yield_to_others(self, longest_unused: Callable[[], Slot | None], evict: Callable[[Slot], bool]) -> bool:
        """Let idle connections give way to other pools; whether the other pools have to be told something."""
        return False

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: the permits that are taken, and those of connections that are being closed."""

    def agrees(self, held: int, leaving: int) -> bool:
        """Whether these are the numbers that the budget has."""
        return True

    def retire(self) -> None:
        """The pool admits nobody any more."""


class SharedLimit:
    """A pool under a budget: each permit is taken from the :class:`~.ledger.Account`, too.

    ``account.ticket`` counts over all pools, so that permits go to whoever came first in any of them.
    """

    def __init__(self, account: Account) -> None:
        self.account: Account | None = account
        self._account = account
        self.ticket = account.ticket
        self.sharing_needed = False
        self._asked = 0  # permits that were refused since the claim was adjusted last

    @property
    def claiming(self) -> bool:
        """Whether the budget has noted that this pool needs permits."""
        return self._account.claiming

    def take(self, request: Request, need: int) -> bool:
        """Take a permit for the caller; if there is none, claim ``need`` of them."""
        if self._account.take(request.ticket, need):
            return True
        self._asked = need
        return False

    def take_spare(self) -> bool:
        """Take a permit for a connection that nobody waits for, if there is one to spare."""
        return self._account.take(LAST, 0)

    def take_minimum(self, short: int) -> bool:
        """Take a permit for ``min_size``, after all who wait; if there is none, claim the ``short`` reserved ones."""
        if self._asked:
            return False
        if self._account.take(LAST, short):
            return True
        self._asked = short
        return False

    def give(self, *, announced: bool) -> None:
        """A permit is free; ``announced``: the connection was being closed."""
        self._account.give(announced)

    def leave(self) -> None:
        """A connection is being closed."""
        self._account.leave()

    def must_yield(self, queue: Queue) -> bool:
        """Whether a returned connection gives way to another pool, although callers wait for it here. Then it counts as
        leaving.
        """
        if not (self.sharing_needed and self._account.short):
            return False
        request = queue.first()
        return request is not None and self._account.must_yield(request.ticket)

    def yield_to_others(self, longest_unused: Callable[[], Slot | None], evict: Callable[[Slot], bool]) -> bool:
        """Claim no more than is needed, and let idle connections give way, longest unused first, as long as other pools
        need them. Whether the other pools have to be told something.

        ``evict``: closes the connection, which counts as leaving already; False if another thread has just taken it.
        """
        account = self._account
        if account.claiming:
            account.lower(self._asked)
        self._asked = 0
        while self.sharing_needed and account.short:
            slot = longest_unused()
            if slot is None or not account.may_evict(slot.last_used):
                account.look()
                break
            if not evict(slot):
                account.keep()
        return account.news or (self.sharing_needed and not account.short)

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: the permits that are taken, and those of connections that are being closed."""
        self._account.correct(held, leaving)

    def agrees(self, held: int, leaving: int) -> bool:
        """Whether these are the numbers that the budget has. True for an account that is closed."""
        account = self._account
        return account not in account.ledger.accounts or (account.held, account.leaving) == (held, leaving)

    def retire(self) -> None:
        """The pool admits nobody any more."""
        self._account.retire()


Capacity = OwnLimit | SharedLimit
"""Both have the same methods."""


class NoClasses:
    """All callers are equal: nothing is charged to anybody."""

    classes: Classes | None = None

    def new_queue(self, requests: OrderedDict[Request, None] | None = None) -> FifoQueue:
        """The queue of one endpoint."""
        return FifoQueue(requests)

    def charge(self, slot: Slot, request: Request) -> None:
        """Give the caller the connection, or a further lease of it."""

    def charge_lease(self, slot: Slot, request: Request) -> None:
        """The same, for a lease that begins now."""

    def uncharge(self, slot: Slot) -> None:
        """Nobody uses the connection any more."""

    def widened(self) -> bool:
        """Whether a class may have more than was noted."""
        return False

    def note(self) -> None:
        """Note what each class has, when everybody has got what it may have."""

    def recount(self, slots: Iterable[Slot]) -> None:
        """After an interruption: what follows from the slots."""
        for slot in slots:
            slot.owner = None

    def check(self, slots: Iterable[Slot]) -> None:
        """Raise AssertionError unless the numbers agree with the slots."""
        owned = any(slot.owner is not None for slot in slots)
        assert not owned, "a connection belongs to a class of callers that does not exist"


class ClassUse:
    """The use of connections by classes.

    ``limit``: the pool's limit now. ``coming``: connections that are neither idle nor being closed nor checked in the
    background. ``by_caller``: whether a connection that is opened is charged to the class of the caller that opens it.
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
        """The queue of one endpoint."""
        return ClassQueue(OrderedDict() if requests is None else requests, self)

    def room(self, needs: Iterable[tuple[CallerClass, int]], opening: int) -> int:
        """How many connects the classes may have that need so many each; ``opening`` connects of the endpoint are going
        on.
        """
        opening = 0 if self._by_caller() else opening
        return self.classes.room(needs, self.limit(), max(0, self._unowned() - opening)) - opening

    def _unowned(self) -> int:
        """Connections that will be somebody's before long: those being opened that are nobody's yet."""
        held = sum([one.held for one in self.classes.known.values()])
        return max(0, self._coming() - held)

    def charge(self, slot: Slot, request: Request) -> None:
        """Give the caller the connection, or a further lease of it."""
        one = request.caller_class
        if one is None:
            return
        if slot.owner is None:
            self.classes.take(one)
            slot.owner = one
        elif slot.leases:
            self.classes.join(one, slot.owner)

    def charge_lease(self, slot: Slot, request: Request) -> None:
        """The same, for a lease that begins now."""
        if request.caller_class is not None:
            self.charge(slot, request)
            request.caller_class.acquires += 1

    def uncharge(self, slot: Slot) -> None:
        """Nobody uses the connection any more."""
        owner, slot.owner = slot.owner, None
        if owner is not None:
            self.classes.give(owner)

    def widened(self) -> bool:
        """Whether a class may have more than was noted."""
        before, now = self._noted, self._numbers()
        return len(before) != len(now) or any(one < other for one, other in zip(now, before, strict=True))

    def note(self) -> None:
        """Note what each class has, when everybody has got what it may have.

        Earlier would be wrong: what is given out after it and comes back before the next look would not be noticed.
        """
        self._noted = self._numbers()

    def _numbers(self) -> list[int]:
        return [self._unowned(), *(one.held for one in self.classes.known.values())]

    def recount(self, slots: Iterable[Slot]) -> None:
        """After an interruption: the numbers that follow from the slots."""
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
"""Both have the same methods, except for :meth:`ClassUse.room`, which only queues of classes ask for."""


def configured(
    old: Use,
    config: PoolConfig,
    endpoints: Iterable[Endpoint],
    slots: Iterable[Slot],
    make: Callable[[Classes], ClassUse],
) -> Use:
    """What new settings make of ``old``, at any time: callers keep the class that they came with. Each endpoint has the
    queue that belongs to it.
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
    default = made.classes.default  # who came without a class is of the default one
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
