"""The base of both pools: it makes the parts of a pool, and has the methods that do not wait."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _misuse, _registry
from ._access import Access, FastPath
from ._core import commands, invariants
from ._core.machine import Core
from ._core.slot import Slot
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
from .settings import Setting, for_connector, for_keyed, merge, reconfigured
from .sizing import Advice
from .stats import LaneStats, PoolDetails, PoolStats, lane_stats

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolBase",)

C = TypeVar("C")


def Lock() -> Any:  # noqa: N802  the simulations put a class of their own in its place
    """The lock of a pool, of the kind that there is now: gevent may have replaced it since the import."""
    return threading.RLock()


def _no_methods(access: Access) -> dict[str, Callable[..., Any]]:
    """No function stands for a method."""
    return {}


class PoolBase(Generic[C]):
    """What both pools have in common: nothing here waits."""

    _barging = 0.0
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
        if keyed:
            self._config = for_keyed(self._config)
        self._config.warn(stacklevel=1, packages=tuple(getattr(connector, "packages", ())))
        self.name = _registry.pool_name(name)
        self._connector = connector
        self._clock = clock or time.monotonic
        if random is None:
            from random import random as uniform  # not before there is a pool: it brings hashlib with it

            random = uniform
        self._random = random
        self._debug = debug
        operations: Operations[C] = Operations(connector, self.name, keyed=keyed)
        self._driver = self._driver_kind(self, operations)
        self._name_of: Callable[[Hashable], str] = self._driver.name_of
        self._membership = Membership(self)
        self._shared = operations.shared  # one connection may have several leases
        self._features = operations.features
        self._listeners = Listeners(self.name, self.remove_listener)
        for listener in listeners:
            self._listeners.add(listener, kinds_of(listener))
        self._monitor = Monitor(self)
        self._register = LeaseRegister(self)
        self._housekeeping = Housekeeping(self)
        self._slow = self._slow_kind(self)
        self._fast = FastPath(self, methods)
        self._packages = packages_of(connector)
        self._open_core()
        self._made_at = place_outside(sys._getframe(1), self._packages, self._runtime)
        if getattr(connector, "counted", True):
            _misuse.made(self.name, self._made_at)
        _registry.register(self)
        self._gate.step(self._core.tell, EventKind.POOL_CREATED, self._clock())
        self._gate.step(self._core.tell, EventKind.POOL_READY, self._clock())

    def _open_core(self) -> None:
        """An empty core with a lock of its own (again in a forked child)."""
        self._core = core = Core(
            self._config, self._features, name=self.name, barging=self._barging, random=self._random
        )
        self._gate = Gate(
            core,
            name=self.name,
            clock=self._clock,
            lock=Lock(),
            settle=core.settle,
            renew=self._fast.renew,
            repair=self._housekeeping.repair,
            perform=self._housekeeping.perform,
            call_later=self._driver.call_later,
            run_due=self._housekeeping.run_due,
            note_alone=self._housekeeping.note_alone,
        )
        self._listeners.restart(core)
        core.meters.begin(self._clock())
        self._endpoint = core.endpoint
        self._leased = core.leased
        self._membership.open_account()
        self._fast.restart()
        if core.permits is not None:
            core.permits.deliver()
            self._gate.run_posted()

    # -- events -------------------------------------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(event)`` for each event from now on, in order, outside the pool's lock.

        A listener that raises is logged once and dropped. One that has an attribute ``kinds`` is called for these
        kinds only. While anybody listens to what every lease tells (:data:`poolkit.events.OF_EACH_LEASE`), a pair of
        acquire and release makes these events and calls the listeners: about two microseconds more.

        Raises :class:`~poolkit.ConfigError` if ``kinds`` is no collection of :class:`~poolkit.EventKind`.
        """
        self._gate.step(self._listeners.add, listener, kinds_of(listener))

    def remove_listener(self, listener: Listener) -> None:
        """Undo :meth:`add_listener`; not an error if it was dropped already."""
        self._gate.step(self._listeners.remove, listener)

    def held_by_caller(self) -> bool:
        """Whether the calling thread or task holds a lease of this pool. Thread-safe; takes no lock."""
        caller = self._caller()
        return any(record.holder == caller for record in self._leased.copy().values())

    def release_dropped(self, key: int) -> None:
        """Take a connection back that its holder has dropped without :meth:`release`; it is closed.

        For adapters whose callers hold an object of the driver and whose connector's connection only refers to it.
        ``key``: the ``id()`` of what :meth:`acquire` gave, the only thing that a finalizer still has. Does nothing if
        that is not on lease. Takes no lock and does no I/O: callable from finalizers and from any thread.
        """
        record = self._leased.get(key)
        if record is not None:
            self._register.dropped(key, record)

    def run_due(self) -> None:
        """Do the timed work that is due. The runtime calls this by itself; tests with a ``clock`` of their own call it.
        Does not block. Thread-safe.
        """
        self._housekeeping.run_due()

    # -- what the pool says of itself ---------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """A frozen snapshot, computed from the pool's state now. Thread-safe; never waits for I/O."""
        return self._monitor.stats()

    def lane_stats(self) -> list[LaneStats]:
        """A frozen snapshot of each endpoint of a keyed pool; of any other pool there is one."""
        return self._gate.step(lane_stats, self._core)

    def explain(self) -> str:
        """The state of the pool in plain words: what is in use, who waits, who holds longest, what failed last, and
        why callers wait, if any do (the rules are in ``docs/guides/explain.md``).
        """
        return self._monitor.explain()

    def diagnose(self) -> Diagnosis | None:
        """Why callers wait, with the numbers that speak for it; None if nothing is wrong."""
        return self._monitor.diagnose()

    def advice(self) -> Advice:
        """Whether ``max_size`` fits what the pool has seen in its windows, in plain words and numbers."""
        return self._monitor.advice()

    def describe(self) -> dict[str, Setting]:
        """Each setting with the value in effect and where it came from.

        With ``autoscale`` also ``limit``, the connections that may exist now, and why it is so many.
        """
        return self._monitor.describe()

    def details(self, most: int | None = 100) -> PoolDetails:
        """Statistics, diagnosis, endpoints, and the ``most`` (None: all) longest leases and waits, of one moment.
        Thread-safe; waits for no I/O. The lock is held as long as for :meth:`explain`.
        """
        return self._monitor.details(most)

    def dump(self) -> str:
        """As :meth:`explain`, with every lease and every waiting caller on a line of its own."""
        return self._monitor.dump()

    def announce(self, kind: EventKind, detail: str) -> None:
        """Tell the listeners something that was found out about this pool from outside (alerts)."""
        self._gate.step(lambda: self._core.tell(kind, self._clock(), detail=detail))

    def add_wait_observer(self, observer: WaitObserver) -> None:
        """Call ``observer(pool, seconds, error)`` at the end of each acquire that found no idle connection at once.

        It runs in the thread or task of the caller (tracing finds its context there), outside the pool's lock, and
        must be quick. ``error`` is None, or why there is no connection. One that raises is logged and dropped.
        Acquires that are served without waiting cost nothing more.
        """
        self._gate.step(self._monitor.add, observer)

    def remove_wait_observer(self, observer: WaitObserver) -> None:
        """Undo :meth:`add_wait_observer`; not an error if it is not there."""
        self._gate.step(self._monitor.remove, observer)

    # -- settings and commands ------------------------------------------------------------------------------------

    @property
    def config(self) -> PoolConfig:
        """The settings in effect."""
        return self._config

    @property
    def closed(self) -> bool:
        """Whether the pool admits nobody any more."""
        return self._core.phase is not Phase.OPEN

    def clear(self) -> None:
        """Retire all connections: idle ones are closed now, leased ones when they come back, those being opened
        when they arrive. The next caller gets a new one. Thread-safe.
        """
        self._gate.step(commands.clear, self._core, self._clock())

    def discard_idle(
        self, condition: Callable[[C], bool] | None = None, *, unused_since: float = NEVER, rest: bool = False
    ) -> int:
        """Close the idle connections for which ``condition(connection)`` holds (None: all); the number of them. Leases
        are not touched. ``unused_since``: only those that came back then or before. ``rest``: open no others, not even
        ``min_size``, until the next use. The condition must not block; it may see one just being leased. Thread-safe.
        """
        return self._gate.step(commands.discard_idle, self._core, condition, unused_since, rest, self._clock())

    def suspend(self, *, fail_fast: bool = False) -> None:
        """Hand out and open nothing until :meth:`resume`: callers wait (within their timeouts), or with ``fail_fast``
        get :class:`~poolkit.PoolSuspended` at once. Leases go on. Thread-safe.
        """
        self._gate.step(commands.suspend, self._core, fail_fast, self._clock())

    def resume(self) -> None:
        """End :meth:`suspend`; waiting callers are served in order."""
        self._gate.step(commands.resume, self._core, self._clock())

    def reconfigure(self, **changes: Unpack[PoolSettings]) -> None:
        """Change settings of the live pool: ``reconfigure(max_size=20)``.

        No lease is cut: surplus connections are closed when they come back. Raises ConfigError and changes
        nothing for an unknown name or an impossible value. Thread-safe.
        """
        self._gate.step(self._apply, changes).warn(stacklevel=1)

    def _apply(self, changes: PoolSettings) -> PoolConfig:
        """Under the lock, so that two changes at once both count."""
        config = for_connector(reconfigured(self._config, changes), self._connector)
        if self._features.keyed:
            config = for_keyed(config)
        self._membership.change(config)
        self._config = config
        changed = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        commands.reconfigure(self._core, config, self._barging, changed, self._clock())
        return config

    def check_books(self) -> None:
        """Raise AssertionError unless the pool's invariants hold. For tests; the pool must be quiet."""
        self._gate.step(invariants.check, self._core)
        self._fast.check()

    # -- fork -----------------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child: begin empty; leave the parent's connections alone."""
        _registry.let_go(self.name, self._core.slots.living(), self._driver.operations.forget)
        self._restart()

    def _restart(self) -> None:
        """Go on with an empty core; what is on lease now will be let go of when it comes back."""
        old, leased = self._core, set(self._leased.copy())
        self._leased.clear()  # first: a lease that is collected from here on is none of the new core's
        self._monitor.restart()
        self._register.restart(leased)
        self._open_core()
        self._gate.step(commands.inherit, self._core, old)

    def __del__(self) -> None:
        try:
            core, name, place = self._core, self.name, self._made_at
            open_ones = sum(slot.connection is not None for slot in core.slots.living())
            expected = core.phase is not Phase.OPEN or not getattr(self._connector, "must_be_closed", True)
            if open_ones and not expected and not sys.is_finalizing():
                _misuse.collected(name, place, open_ones)
        except AttributeError:  # it was never finished, or the interpreter is going down
            pass

    def __repr__(self) -> str:
        core = self._core
        return (
            f"<{type(self).__name__} {self.name!r} {core.phase.value}: {len(core.all_slots)} open, "
            f"{len(core.leased)} leased, {len(core.endpoint.requests)} waiting>"
        )
