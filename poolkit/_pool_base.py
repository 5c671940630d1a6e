"""The base of both pools: their parts, and the methods that do not wait."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._access import FastPath
from ._begin import Kind, change_settings
from ._core import commands, invariants
from ._core.endpoints import Endpoint
from ._core.machine import Core
from ._core.repair import audit
from ._core.slots import Held, Slot
from ._core.state import Phase
from ._gate import Gate
from ._housekeeping import Housekeeping
from ._listeners import Listeners
from ._membership import Membership
from ._misuse import Origin
from ._monitor import Monitor, WaitObserver
from ._register import LeaseRegister
from .config import PoolConfig, PoolSettings
from .events import Event, EventKind, Listener, kinds_of
from .policies.diagnose import Diagnosis
from .policies.retire import NEVER
from .settings import Setting
from .sizing import Advice
from .stats import LaneStats, PoolDetails, PoolStats, lane_stats

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolBase",)

C = TypeVar("C")


class PoolBase(Generic[C]):
    """The common part of :class:`~poolkit.Pool` and :class:`~poolkit.AsyncPool`. None of its methods waits."""

    _kind: Kind
    # set by begin()
    name: str
    _connector: Any
    _config: PoolConfig
    _clock: Callable[[], float]
    _random: Callable[[], float]
    _debug: bool
    _runtime: Any
    # the parts
    _core: Core
    _gate: Gate
    _driver: Any
    _slow: Any
    _fast: FastPath
    _listeners: Listeners[Event]
    _monitor: Monitor
    _register: LeaseRegister
    _housekeeping: Housekeeping
    _membership: Membership
    _origin: Origin
    # of the parts, so that the ways of a lease read one attribute less
    _endpoint: Endpoint
    _leased: dict[int, Held]
    _take: Callable[..., Slot | None]
    _take_at: Callable[..., Slot | None]
    _put: Callable[[Any], bool]
    _caller: Callable[[], Hashable]

    # -- events ---------------------------------------------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(event)`` for each event from now on, in order, outside the pool's lock. Thread-safe.

        A listener that raises is logged once and removed. One with an attribute ``kinds`` gets only these kinds. Events
        of every lease (:data:`poolkit.events.OF_EACH_LEASE`) exist only while a listener wants them. They cost about
        two microseconds for each acquire and release. Raises :class:`~poolkit.ConfigError` for invalid ``kinds``.
        """
        self._gate.step(self._listeners.add, listener, kinds_of(listener))

    def remove_listener(self, listener: Listener) -> None:
        """Undo :meth:`add_listener`. Not an error if the listener was removed already."""
        self._gate.step(self._listeners.remove, listener)

    def held_by_caller(self) -> bool:
        """Return whether the calling thread or task holds a lease of this pool. Thread-safe; takes no lock."""
        return self._register.holds(self._caller())

    def release_dropped(self, key: int) -> None:
        """Close a connection whose holder has dropped it without :meth:`release`.

        For adapters whose callers hold an object of the driver, to which the connector's connection only refers.
        ``key``: the ``id()`` of the acquired connection, which is all that a finalizer still has. Does nothing if no
        lease has it. Takes no lock and does no I/O. Any finalizer and any thread may call it.
        """
        self._register.dropped_bare(key)

    def run_due(self) -> None:
        """Do the timed work that is due. For the runtime, and for tests with a ``clock``. Never blocks. Thread-safe."""
        self._housekeeping.run_due()

    # -- statistics and explanations ------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return a frozen snapshot of the pool's state now. Thread-safe; never waits for I/O."""
        return self._monitor.stats()

    def lane_stats(self) -> list[LaneStats]:
        """Return a frozen snapshot of each endpoint. Only a keyed pool has more than one. Thread-safe."""
        return self._gate.step(lane_stats, self._core)

    def explain(self) -> str:
        """Return the state of the pool as a sentence, and why callers wait. Thread-safe.

        ``docs/guides/explain.md`` has the rules.
        """
        return self._monitor.explain()

    def diagnose(self) -> Diagnosis | None:
        """Return why callers wait, with the numbers that support it. None if nothing is wrong. Thread-safe."""
        return self._monitor.diagnose()

    def advice(self) -> Advice:
        """Return whether ``max_size`` fits the load of the pool's windows, in words and numbers. Thread-safe."""
        return self._monitor.advice()

    def describe(self) -> dict[str, Setting]:
        """Return each setting with its value and its source (with ``autoscale`` also ``limit``). Thread-safe."""
        return self._monitor.describe()

    def details(self, most: int | None = 100) -> PoolDetails:
        """Return statistics, diagnosis, endpoints, and the ``most`` (None: all) longest leases and waits, at one
        moment. Holds the lock as long as :meth:`explain`. Thread-safe.
        """
        return self._monitor.details(most)

    def dump(self) -> str:
        """Return the same as :meth:`explain`, with each lease and each waiting caller on its own line. Thread-safe."""
        return self._monitor.dump()

    def announce(self, kind: EventKind, detail: str) -> None:
        """Send the listeners an event about something that was found outside of the pool (alerts). Thread-safe."""
        self._gate.step(lambda: self._core.tell(kind, self._clock(), detail=detail))

    def add_wait_observer(self, observer: WaitObserver) -> None:
        """Call ``observer(pool, seconds, error)`` at the end of each acquire that found no idle connection at once.

        It runs in the caller's thread or task (tracing finds its context there), outside the pool's lock, and must be
        quick. ``error`` is None, or why there is no connection. An observer that raises is logged and removed.
        """
        self._gate.step(self._monitor.add, observer)

    def remove_wait_observer(self, observer: WaitObserver) -> None:
        """Undo :meth:`add_wait_observer`. Not an error if the observer is not there."""
        self._gate.step(self._monitor.remove, observer)

    # -- settings and commands ------------------------------------------------------------------------------------

    @property
    def config(self) -> PoolConfig:
        """The settings in effect."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether the pool accepts no more callers."""
        return self._core.phase is not Phase.OPEN

    def clear(self) -> None:
        """Replace all connections: idle ones now, the others when they are returned or opened. Thread-safe."""
        self._gate.step(commands.clear, self._core, self._clock())

    def discard_idle(
        self, condition: Callable[[C], bool] | None = None, *, unused_since: float = NEVER, rest: bool = False
    ) -> int:
        """Close the idle connections for which ``condition(connection)`` is true (None: all), and return their number.
        Leases are not changed. ``unused_since``: only those that were returned at that time or before. ``rest``: open
        no others, not even ``min_size``, until the next use. The condition must not block, and may see a connection
        that is just being leased. Thread-safe.
        """
        return self._gate.step(commands.discard_idle, self._core, condition, unused_since, rest, self._clock())

    def suspend(self, *, fail_fast: bool = False) -> None:
        """Give out and open no connections until :meth:`resume`. Callers wait within their timeouts, or with
        ``fail_fast`` get :class:`~poolkit.PoolSuspended` at once. Leases continue. Thread-safe.
        """
        self._gate.step(commands.suspend, self._core, fail_fast, self._clock())

    def resume(self) -> None:
        """End :meth:`suspend`. Waiting callers are served in order. Thread-safe."""
        self._gate.step(commands.resume, self._core, self._clock())

    def reconfigure(self, **changes: Unpack[PoolSettings]) -> None:
        """Change settings of the running pool: ``reconfigure(max_size=20)``.

        No lease is interrupted: surplus connections are closed when they are returned. A smaller limit also lowers the
        defaults of ``max_idle`` and ``min_size``. Raises ConfigError, and changes nothing, for an unknown name, an
        invalid value, or a setting that cannot apply to this pool. Thread-safe.
        """
        self._gate.step(change_settings, self, changes).warn(stacklevel=1)

    def check_books(self) -> None:
        """Raise AssertionError if an invariant of the pool is broken. For tests, while no caller uses the pool."""
        self._gate.step(audit, self._core, self._clock())  # what interrupted callers have left is no error
        self._gate.step(invariants.check, self._core)
        self._fast.check()

    def __repr__(self) -> str:
        core = self._core  # without the lock
        return (
            f"<{type(self).__name__} {self.name!r} {core.phase.value}: {len(core.all_slots)} open, "
            f"{len(core.leased)} leased, {len(core.endpoint.requests)} waiting>"
        )
