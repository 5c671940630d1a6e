"""The state that the parts of one core share: settings in effect, the state of the pool, and effects for the shell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from ..config import PoolConfig
from ..events import CloseReason, EventKind, FailReason
from ..policies.meters import Meters
from .capacity import Capacity, Size, Use
from .effects import Effect
from .endpoints import Endpoint
from .ledger import Account
from .overload import Overload
from .queue import Parker, Request
from .slots import Slot
from .state import Counts, Features, Phase

__all__ = ("Context",)


class Context(Protocol):
    """A :class:`~.machine.Core`, as its parts see it. They read and write it under the pool's lock."""

    # settings in effect, and the parts that depend on them
    name: str
    config: PoolConfig
    features: Features
    size: Size
    use: Use
    capacity: Capacity
    overload: Overload
    permits: Account | None  # of a budget shared with other pools
    random: Callable[[], float]
    barging: float  # seconds: the barging window
    window: float  # seconds after a sign of life for which a connection is used without a check
    can_check: bool  # the connector has a check() or peek()
    lifo: bool
    max_connecting: int
    most_waiting: int | None
    finishes: bool  # settle() has a last part: refuse callers, or share permits with other pools

    # the state of the pool
    phase: Phase
    suspended: bool
    fail_fast: bool
    started: bool
    sweep_at: float
    recheck_interval: float  # seconds between two sweeps while callers wait
    meters: Meters
    counts: Counts
    last_failed: Endpoint | None  # the endpoint whose connect failed last
    newcomers: deque[Request]  # requests that may be refused, in a pool with max_waiting

    # what settle() has to look at; it finds everything else in the state itself
    returned: dict[Slot, None]  # connections that are free, or have a stream to spare
    touched: dict[Endpoint, None]  # endpoints that have changed; unused in a pool with one endpoint

    @property
    def hands_out(self) -> bool:
        """Whether connections are opened and handed out: the pool is open and not suspended."""

    watchers: list[Parker]  # callers of close() and drain(), woken each time that a connection is gone
    effects: deque[Effect]
    """Actions for the shell, which replaces the deque when it takes them."""

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

    def add_endpoint(self, key: Hashable) -> Endpoint:
        """Return the endpoint of ``key``; create it if it does not exist."""

    def want(self, at: float) -> None:
        """Ask for a tick not later than ``at``."""

    def want_tick(self, endpoint: Endpoint, at: float) -> None:
        """Ask for a tick not later than ``at``, in which a connection may be opened to ``endpoint`` again."""

    def want_sweep(self, at: float) -> None:
        """Ask for a sweep over all connections not later than ``at``."""
