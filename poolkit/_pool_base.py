"""The base of both pools: it creates the parts of a pool, and has the methods that do not wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _misuse, _registry
from ._access import Access, FastPath
from ._begin import after_fork, open_core
from ._core import commands, invariants
from ._core.endpoints import Endpoint
from ._core.machine import Core
from ._core.slots import Held, Slot
from ._core.state import Phase
from ._explain import packages_of, place_outside
from ._gate import Gate
from ._housekeeping import Housekeeping
from ._listeners import Listeners
from ._membership import Membership
from ._monitor import Monitor, WaitObserver
from ._operations import Operations
from ._register import LeaseRegister
from .config import PoolConfig, PoolSettings
from .connector import require_connect
from .events import EventKind, Listener, kinds_of
from .policies.diagnose import Diagnosis
from .policies.retire import NEVER
from .runtimes.fork import Stage, restart_after_fork
from .settings import Setting, for_connector, merge, on_demand, reconfigured
from .sizing import Advice
from .stats import LaneStats, PoolDetails, PoolStats, lane_stats

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolBase",)

C = TypeVar("C")


def _no_methods(access: Access) -> dict[str, Callable[..., Any]]:
    """Replace no method: the default."""
    return {}


class PoolBase(Generic[C]):
    """The common part of :class:`~poolkit.Pool` and :class:`~poolkit.AsyncPool`. None of its methods waits."""

    _barging = 0.0
    _core: Core
    _gate: Gate
    _endpoint: Endpoint
    _leased: dict[int, Held]
    _driver_kind: Any
    _driver: Any
    _runtime: Any
    _slow_kind: Any
    _slow: Any
    _take: Callable[..., Slot | None]
    _take_at: Callable[..., Slot | None]
    _put: Callable[[Any], bool]
    _caller: Callable[[], Hashable]

    def __init__(
        self,
        connector: Any,
        config: PoolConfig | None,
        settings: PoolSettings,
        *,
        name: str | None,
        clock: Callable[[], float] | None,
        random: Callable[[], float] | None,
        listeners: Iterable[Listener],
        debug: bool,
        keyed: bool,
        methods: Callable[[Access], dict[str, Callable[..., Any]]] = _no_methods,
    ) -> None:
        require_connect(connector)
        self._config = for_connector(merge(config, settings), connector)
        self.name = _registry.pool_name(name)
        operations: Operations[C] = Operations(connector, self.name, keyed=keyed)
        self._features = operations.features
        if self._features.on_demand:
            self._config = on_demand(self._config, keyed=keyed)
        self._config.warn(stacklevel=1, packages=tuple(getattr(connector, "packages", ())))
        self._connector = connector
        self._clock = clock or time.monotonic
        if random is None:
            from random import random as uniform  # imported with the first pool, because it imports hashlib

            random = uniform
        self._random = random
        self._debug = debug
        self._driver = self._driver_kind(self, operations)
        self._name_of: Callable[[Hashable], str] = self._driver.name_of
        self._membership = Membership(self)
        self._shared = operations.shared  # one connection may have several leases
        self._listeners = Listeners(self.name, self.remove_listener)
        for listener in listeners:
            self._listeners.add(listener, kinds_of(listener))
        self._monitor = Monitor(self)
        self._register = LeaseRegister(self)
        self._housekeeping = Housekeeping(self)
        self._slow = self._slow_kind(self)
        self._fast = FastPath(self, methods)
        self._packages = packages_of(connector)
        open_core(self)
        self._made_at = place_outside(sys._getframe(1), self._packages, self._runtime)
        if getattr(connector, "counted", True):
            _misuse.made(self.name, self._made_at)
        _registry.register(self)
        restart_after_fork(Stage.POOLS, self, after_fork)
        self._gate.step(self._core.tell, EventKind.POOL_CREATED, self._clock())
        self._gate.step(self._core.tell, EventKind.POOL_READY, self._clock())

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
        caller = self._caller()
        return any(record.holder == caller for record in self._leased.copy().values())

    def release_dropped(self, key: int) -> None:
        """Close a connection whose holder has dropped it without :meth:`release`.

        For adapters whose callers hold an object of the driver, to which the connector's connection only refers.
        ``key``: the ``id()`` of the acquired connection, which is all that a finalizer still has. Does nothing if no
        lease has it. Takes no lock and does no I/O. Any finalizer and any thread may call it.
        """
        record = self._leased.get(key)
        if record is not None:
            self._register.dropped(key, record)

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
        """Return each setting with its value and source (with ``autoscale`` also ``limit`` and its reason).
        Thread-safe.
        """
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

        No lease is interrupted: surplus connections are closed when they are returned. Raises ConfigError, and changes
        nothing, for an unknown name or an invalid value. Thread-safe.
        """

        def apply() -> PoolConfig:  # under the lock, so that two changes at once both count
            config = for_connector(reconfigured(self._config, changes), self._connector)
            if self._features.on_demand:
                config = on_demand(config, keyed=self._features.keyed)
            self._membership.change(config)
            self._config = config
            changed = ", ".join(f"{name}={value!r}" for name, value in changes.items())
            commands.reconfigure(self._core, config, self._barging, changed, self._clock())
            return config

        self._gate.step(apply).warn(stacklevel=1)

    def check_books(self) -> None:
        """Raise AssertionError if an invariant of the pool is broken. For tests, while no caller uses the pool."""
        self._gate.step(invariants.check, self._core)
        self._fast.check()

    def __del__(self) -> None:
        try:
            core, name, place = self._core, self.name, self._made_at
            open_ones = len(core.all_slots)  # not living(): the collector has already cleared the references to them
            expected = core.phase is not Phase.OPEN or not getattr(self._connector, "must_be_closed", True)
            if open_ones and not expected and not sys.is_finalizing():
                _misuse.collected(name, place, open_ones)
        except AttributeError:  # __init__ failed, or the interpreter is shutting down
            pass

    def __repr__(self) -> str:
        core = self._core
        return (
            f"<{type(self).__name__} {self.name!r} {core.phase.value}: {len(core.all_slots)} open, "
            f"{len(core.leased)} leased, {len(core.endpoint.requests)} waiting>"
        )
