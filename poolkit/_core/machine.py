"""The events of a pool, as methods of its core. The package's docstring has the rules."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable

from ..config import PoolConfig
from ..connector import Verdict
from ..events import CloseReason, Event, EventKind, FailReason
from ..policies.meters import Meters
from ..policies.retire import NEVER
from .capacity import Capacity, ClassUse, NoClasses, OwnLimit, SharedLimit, Use, configured, size_of
from .effects import Do, Effect
from .endpoints import Endpoint, Endpoints, KeyedEndpoints, OneEndpoint
from .ledger import Account
from .opener import Opener
from .overload import NoOverload, Overload, rule_of
from .queue import Parker, Request
from .service import Service
from .slots import CHECKING, CONNECTING, IN_USE, Held, Slot, Slots
from .state import Features, Phase

__all__ = ("Core",)

_OPEN = Phase.OPEN


class Core:
    """The decisions of one pool. Not thread-safe: the shell holds its lock around every call.

    It holds the settings and the state, and records events. Its parts decide: ``endpoints`` (``settle()``),
    ``service`` (which caller gets which connection), ``opener`` (when a connection is opened), ``slots`` (how a
    connection begins and ends), ``size``, ``capacity`` and ``use`` (how many connections there may be, and for which
    class of callers).
    """

    def __init__(
        self,
        config: PoolConfig,
        features: Features,
        *,
        name: str,
        barging: float,
        random: Callable[[], float],
        account: Account | None = None,
    ) -> None:
        self.name = name
        self.features = features
        self.random = random
        self.config = config
        self.leased: dict[int, Held] = {}  # by the id of the lease, or of the connection where there is none
        self.last_failed: Endpoint | None = None  # the endpoint whose connect failed last
        self.returned: dict[Slot, None] = {}  # connections that are free, or have a stream to spare
        self.newcomers: deque[Request] = deque()  # requests that may be refused, in a pool with max_waiting
        self.effects: deque[Effect] = deque()
        self.events: deque[Event] = deque()  # not delivered yet; the shell puts its own queue here
        self.meters = Meters()
        self.phase = Phase.OPEN
        self.suspended = False
        self.fail_fast = False
        self.started = False  # the pool has been used: from then on min_size is kept
        self.wanted_events: frozenset[EventKind] = frozenset()  # the kinds of event that have a listener
        self.due = NEVER  # when tick() is to be called: for a sweep, or for the endpoints in timed
        self.sweep_at = NEVER
        self.timed: set[Endpoint] = set()
        self.stale = False  # a fact has changed on which the paths without the lock depend
        self.recheck_interval = 1.0  # seconds between two sweeps while callers wait
        self.rechecks_left = 0  # further sweeps after an interruption, whether callers wait or not
        self.moved: list[bool] = []  # not empty: the facts have changed since the paths without the lock got this list
        self.watchers: list[Parker] = []  # callers of close() and drain(), woken each time that a connection is gone

        self.join(account)
        self.use: Use = NoClasses()
        self.overload: Overload = NoOverload()
        self.endpoints: Endpoints = (KeyedEndpoints if features.keyed else OneEndpoint)(self)
        self.slots = Slots(self, self.endpoints.idle, self.endpoints.unused)
        self.service = Service(self, self.slots, self.endpoints.idle)
        self.opener = Opener(self, self.slots, self.service, self.endpoints.idle)
        self.endpoints.bind(self.slots, self.service, self.opener)
        self.settle = self.endpoints.settle  # the shell calls it once after each step
        self.size = size_of(config, None, on_demand=features.on_demand, due=self.want)
        self.configure(config, barging)

        # the other events: each concerns one part, which records it
        self.checked, self.retry = self.service.checked, self.service.retry
        self.connected, self.connect_failed = self.opener.connected, self.opener.connect_failed
        self.set_capacity = self.opener.set_capacity
        self.closed = self.slots.closed

        # read by callers, the shell and statistics; the same objects as in the parts
        self.all_slots = self.slots.all
        self.counts = self.slots.counts
        self.all_endpoints = self.endpoints.all
        self.endpoint = self.endpoints.only
        self.touched = self.endpoints.touched
        self.add_endpoint = self.endpoints.add
        self.touch_all = self.endpoints.touch_all
        self.unused_since = self.endpoints.unused_since
        self.twin_of = self.slots.twin_of

    def configure(self, config: PoolConfig, barging: float) -> None:
        """Apply settings, at any time. ``commands.reconfigure`` applies them to existing connections."""
        self.config = config
        self.barging = barging if config.barging_window is None else config.barging_window
        if config.classes is not None:
            self.barging = 0.0  # a newcomer that overtakes would take a connection from the class whose turn it is
        self.size = size_of(config, self.size, on_demand=self.features.on_demand, due=self.want)
        self.overload.end_all()  # the settings may replace the queues below
        self.overload = rule_of(self, config.overload)
        self.most_waiting = config.max_waiting
        self.finishes = config.max_waiting is not None or self.permits is not None or self.overload.refuses
        self.max_connecting = config.max_connecting or sys.maxsize
        self.lifo = config.order == "lifo"
        self.can_check = self.features.checks or self.features.peeks
        window = config.check_after_idle if self.can_check and config.check_after_idle is not None else NEVER
        self.window = min(window, config.idle_timeout or NEVER)
        endpoints, slots = self.endpoints.all.values(), self.slots.living()
        self.use = configured(self.use, config, endpoints, slots, lambda classes: ClassUse(
            classes, lambda: self.size.limit, self.slots.coming, by_caller=lambda: self.config.connect_in_caller,
        ))  # fmt: skip
        self.classes = self.use.classes

    def join(self, account: Account | None) -> None:
        """Share the limit of a budget from now on. Called before the first connection is opened."""
        self.permits = account
        self.finishes = account is not None
        self.capacity: Capacity = OwnLimit() if account is None else SharedLimit(account)

    @property
    def limit(self) -> int:
        """The most connections that may exist now."""
        return self.size.limit

    @property
    def hands_out(self) -> bool:
        """Whether connections are opened and handed out."""
        return self.phase is _OPEN and not self.suspended

    @property
    def closing(self) -> int:
        """Connections that are being closed."""
        return self.slots.closing

    # -- effects, events and ticks ------------------------------------------------------------------------------------

    def take_effects(self) -> list[Effect]:
        """Return and remove the effects that were added since the last call."""
        effects, self.effects = self.effects, deque()
        return list(effects)

    def tell(
        self,
        kind: EventKind,
        now: float,
        slot: Slot | None = None,
        *,
        duration: float | None = None,
        reason: CloseReason | FailReason | None = None,
        error: BaseException | None = None,
        detail: str | None = None,
    ) -> None:
        """Queue an event, if there is a listener for its kind."""
        if self.wanted_events and kind in self.wanted_events:
            number = slot.id if slot is not None else None
            key = slot.endpoint.key if slot is not None else None
            self.effects.append(Effect(Do.TELL))
            self.events.append(Event(kind, self.name, now, number, duration, reason, error, detail, key))

    def want(self, at: float) -> None:
        """Ask for a tick not later than ``at``."""
        self.due = min(self.due, at)

    def want_tick(self, endpoint: Endpoint, at: float) -> None:
        """Ask for a tick not later than ``at``, in which a connection may be opened to ``endpoint`` again."""
        self.timed.add(endpoint)
        self.want(at)

    def want_sweep(self, at: float) -> None:
        """Ask for a sweep over all connections not later than ``at``."""
        self.sweep_at = min(self.sweep_at, at)
        self.want(at)

    # -- acquire ------------------------------------------------------------------------------------------------------

    def acquire(self, request: Request, now: float) -> None:
        """A caller asks for a connection. Its ``outcome`` is set at once if possible; otherwise it enters the queue."""
        if self.wanted_events:
            self.tell(EventKind.ACQUIRE_STARTED, now)
        self.started = True
        if self.phase is not _OPEN or self.suspended:
            request.outcome = self.service.refusal()
            if request.outcome is not None:
                return
        elif (request.endpoint.idle or request.endpoint.spare) and request.endpoint.queue.served_before(
            request, now, self.barging
        ):
            request.outcome = self.service.take_for(request, now)
            if request.endpoint.requests:
                self.touched[request.endpoint] = None
            if request.outcome is not None:
                return
        self.service.enqueue(request, now)
        if self.most_waiting is not None:
            self.newcomers.append(request)

    def look(self, request: Request, now: float) -> None:
        """The request woke up without an outcome: it may be served from idle connections again."""
        request.rechecking = False
        self.touched[request.endpoint] = None

    def abandon(self, request: Request, now: float, *, timed_out: bool = False) -> None:
        """The caller is gone (timed out, cancelled): the connection that it was assigned goes to the next caller."""
        self.counts.timeouts += timed_out
        if timed_out and request.caller_class is not None:
            request.caller_class.timeouts += 1
        outcome, request.outcome = request.outcome, None
        request.gone = True
        if request.queued:
            request.endpoint.queue.discard(request)
            self.touched[request.endpoint] = None
            self.overload.gave_up(request, now)
        elif isinstance(outcome, Slot):
            if outcome.state is IN_USE:
                outcome.leases -= 1
                self.returned[outcome] = None
            elif outcome.state is CHECKING and request.busy:  # interrupted during the exchange with the server
                self.slots.start_close(outcome, CloseReason.DISCARDED, now, abort=True)
            elif outcome.state is CHECKING:  # the check had not begun
                self.service.put_idle(outcome)
                self.touched[outcome.endpoint] = None
            elif outcome.state is CONNECTING:
                self.slots.remove(outcome)

    # -- release ------------------------------------------------------------------------------------------------------

    def give_back(self, record: Held, now: float) -> None:
        """A lease ended and its connection may be used again."""
        slot = record.slot
        slot.uses += 1
        slot.busy += now - record.since
        slot.last_used = now
        slot.fresh_until = now + self.window
        if self.wanted_events:
            self.tell(EventKind.RELEASED, now, slot, duration=now - record.since)
        slot.leases -= 1
        self.returned[slot] = None

    def discard(
        self, record: Held, now: float, verdict: Verdict = Verdict.DISCARD, error: BaseException | None = None
    ) -> None:
        """A lease ended and its connection must not be used again. ``error``: of a lazy connect that failed."""
        slot = record.slot
        slot.uses += 1
        slot.busy += now - record.since
        slot.leases -= 1
        self.tell(EventKind.RELEASED, now, slot, duration=now - record.since)
        endpoint = slot.endpoint
        if slot.pending and error is not None:
            self.opener.failed(slot, error, verdict, slot.generation == endpoint.generation, now)
        elif verdict is Verdict.OVERLOADED:
            self.opener.refused(record.since, now)
        if verdict is Verdict.SUSPECT:
            self.service.distrust_idle(endpoint, now)
        elif verdict is Verdict.RETIRE:
            self.endpoints.clear(endpoint, now)
        self._retire(slot, CloseReason.DISCARDED if verdict is Verdict.DISCARD else CloseReason.ERROR, now)

    def dropped(self, record: Held, now: float) -> None:
        """A lease was dropped without being closed: the state of its connection is unknown."""
        slot = record.slot
        self.counts.leaks += 1
        self.tell(EventKind.LEASE_LEAKED, now, slot, duration=now - record.since)
        slot.leases -= 1
        self._retire(slot, CloseReason.LEAKED, now)

    def _retire(self, slot: Slot, reason: CloseReason, now: float) -> None:
        if slot.leases:  # multiplexed: it is closed when its last lease ends
            slot.retire()
        else:
            self.slots.start_close(slot, reason, now, abort=True)

    def detach(self, slot: Slot) -> None:
        """Remove the connection from the pool; its holder keeps it."""
        slot.endpoint.live -= 1
        slot.leases = 0
        self.slots.remove(slot)
