"""A core that settles after each event, as it does behind a pool's gate."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from poolkit._core.capacity import Capacity, NoClasses, OwnLimit, SharedLimit, Size, Use, size_of
from poolkit._core.effects import Do, Effect
from poolkit._core.endpoints import Endpoint as Endpoint
from poolkit._core.endpoints import Endpoints, KeyedEndpoints, OneEndpoint
from poolkit._core.ledger import Account
from poolkit._core.machine import Core
from poolkit._core.opener import Dialer, Opener
from poolkit._core.overload import NoOverload, Overload
from poolkit._core.queue import FifoQueue, Queue
from poolkit._core.queue import Request as Request
from poolkit._core.service import Service
from poolkit._core.slots import Slot as Slot
from poolkit._core.slots import Slots
from poolkit._core.state import Features, Phase
from poolkit.config import PoolConfig
from poolkit.events import EventKind
from poolkit.policies.meters import Meters
from poolkit.policies.retire import NEVER

__all__ = ("Board", "Endpoint", "Request", "SettlingCore", "Slot", "at", "do", "endpoint", "request", "slot")

T = TypeVar("T")

EVENTS = (
    "acquire", "look", "abandon", "checked", "retry", "give_back", "discard", "dropped", "set_capacity", "closed",
    "detach", "connected", "connect_failed",
)  # fmt: skip


class SettlingCore(Core):
    """For tests of one decision after the other. It holds the slots that the threads of a pool would hold."""

    _inside = False
    _hands: tuple[Slot, ...] = ()
    _now = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in EVENTS:
            setattr(self, name, self._settling(getattr(self, name)))

    def hold(self) -> None:
        """Refer to each slot."""
        self._hands = tuple(self.slots.living())

    def take_effects(self) -> list[Effect]:
        self.hold()
        return super().take_effects()

    def _settling(self, event: Callable[..., T]) -> Callable[..., T]:
        """Return a function that records the event and settles at its time, or at that of the last one."""
        signature = inspect.signature(event)

        def settled(*args: Any, **kwargs: Any) -> T:
            self._now = signature.bind(*args, **kwargs).arguments.get("now", self._now)
            outermost = not self._inside
            self._inside = True
            try:
                result = event(*args, **kwargs)
            finally:
                if outermost:
                    self._inside = False
            if outermost:
                self.settle(self._now)
                self.hold()
            return result

        return settled


def do(step: Callable[..., T], core: Core, *args: Any) -> T:
    """Run a command of the whole pool, or timed work that is due. The last argument is the time."""
    result = step(core, *args)
    core.settle(args[-1])
    return result


def at(core: Core, key: Hashable) -> Endpoint:
    """The endpoint of a key."""
    return core.add_endpoint(key)


def endpoint(queue: Queue | None = None) -> Endpoint:
    """An endpoint without a pool."""
    return Endpoint(None, Dialer("pool", PoolConfig()), queue or FifoQueue())


def request(ticket: int = 0, at: float = 1000.0) -> Request:
    """A caller of an endpoint of its own."""
    made = Request(endpoint(), at)
    made.ticket = ticket
    return made


def slot(number: int = 1, at: float = 1000.0) -> Slot:
    """A connection of an endpoint of its own, being opened."""
    return Slot(endpoint(), number, at)


class Board:
    """What the parts of a core share, for tests of a single part."""

    def __init__(self, *, features: Features | None = None, account: Account | None = None, **settings: Any) -> None:
        self.name = "part"
        self.config = PoolConfig(**settings)
        self.features = features or Features()
        self.due: list[float] = []
        self.size: Size = size_of(self.config, None, on_demand=self.features.on_demand, due=self.due.append)
        self.use: Use = NoClasses()
        self.permits = account
        self.capacity: Capacity = OwnLimit() if account is None else SharedLimit(account)
        self.overload: Overload = NoOverload()
        self.random: Callable[[], float] = lambda: 1.0
        self.barging = self.config.barging_window or 0.0
        self.window = 1.0
        self.can_check = self.features.checks
        self.lifo = self.config.order == "lifo"
        self.max_connecting = self.config.max_connecting or 100
        self.most_waiting = self.config.max_waiting
        self.finishes = self.most_waiting is not None or account is not None
        self.phase = Phase.OPEN
        self.suspended = False
        self.fail_fast = False
        self.started = True
        self.sweep_at = NEVER
        self.recheck_interval = NEVER
        self.meters = Meters()
        self.last_failed: Endpoint | None = None
        self.newcomers: deque[Request] = deque()
        self.returned: dict[Slot, None] = {}
        self.watchers: list[Any] = []
        self.effects: deque[Effect] = deque()
        self.told: list[EventKind] = []
        self.ticks: list[float] = []
        self.endpoints: Endpoints = (KeyedEndpoints if self.features.keyed else OneEndpoint)(self)
        self.touched = self.endpoints.touched
        self.idle = self.endpoints.idle
        self.slots = Slots(self, self.idle, self.endpoints.unused)
        self.counts = self.slots.counts
        self.service = Service(self, self.slots, self.idle)
        self.opener = Opener(self, self.slots, self.service, self.idle)
        self.endpoints.bind(self.slots, self.service, self.opener)
        self.only = self.endpoints.only

    @property
    def hands_out(self) -> bool:
        return self.phase is Phase.OPEN and not self.suspended

    def add_endpoint(self, key: Hashable) -> Endpoint:
        return self.endpoints.add(key)

    def tell(self, kind: EventKind, now: float, slot: Slot | None = None, **_details: Any) -> None:
        self.told.append(kind)

    def want(self, at: float) -> None:
        self.ticks.append(at)

    def want_tick(self, endpoint: Endpoint, at: float) -> None:
        self.ticks.append(at)

    def want_sweep(self, at: float) -> None:
        self.sweep_at = min(self.sweep_at, at)

    def request(self, endpoint: Endpoint | None = None, at: float = 1000.0) -> Request:
        """A caller of this pool."""
        return Request(endpoint or self.only, at)

    def open(self, endpoint: Endpoint | None = None, *, capacity: int = 1, at: float = 1000.0) -> Slot:
        """Return a new connection that the core has not examined yet."""
        made = self.slots.open(endpoint or self.only, at, for_caller=True)
        self.opener.connected(made, object(), capacity, at)
        self.returned.clear()
        return made

    def done(self) -> list[Do]:
        """Return the effects since the last call."""
        effects, self.effects = self.effects, deque()
        return [effect.do for effect in effects]
