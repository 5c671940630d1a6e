"""What the two shells share: the lock, the core behind it, the inbox, settings and statistics. No waiting."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from . import _churn, _lifecycle
from ._access import access_of
from ._core import books, commands, upkeep
from ._core.contract import BrokenContract, broken, capacity_of, connection_of, raised, returned
from ._core.effects import Do, Effect
from ._core.entry import Entry
from ._core.lane import Lane
from ._core.lease_record import Held, LeaseRecord
from ._core.machine import Core
from ._core.state import Features, Phase
from ._core.waiter import Waiter
from ._gate import Gate
from ._listeners import Listeners
from ._log import logger
from ._picture import packages_of, place_of, place_outside, warm_up_words
from ._priority import chosen
from ._timeouts import DEFAULT, Default, deadline_of
from ._watch import BATCH, Watch
from .config import PoolConfig
from .connector import Verdict, default_classify, overloaded, overridden, require_connect
from .errors import ConfigError, ConnectFailed, NotLeased, PoolClosed, PoolError, describe
from .events import Event, EventKind, FailReason, Listener, kinds_of
from .policies.classes import CallerClass, Classes
from .policies.retire import NEVER
from .runtimes.holders import named
from .settings import for_keyed, merge, reconfigured

__all__ = ("DEFAULT", "Default", "Shell", "deadline_of")

C = TypeVar("C")
T = TypeVar("T")


def Lock() -> Any:  # noqa: N802  the simulations put a class of their own in its place
    """The lock of a pool, of the kind that there is now: gevent may have replaced it since the import."""
    return threading.RLock()


class Shell(Watch, Generic[C]):
    """Everything about a pool that does not wait: settings, statistics, commands, dropped leases, fork."""

    _barging = 0.0
    _caller: Callable[[], Hashable]

    def __init__(
        self,
        connector: Any,
        config: PoolConfig | None,
        settings: dict[str, Any],
        *,
        name: str | None,
        clock: Callable[[], float] | None,
        random: Callable[[], float] | None,
        listeners: Iterable[Listener],
        debug: bool,
        keyed: bool,
    ) -> None:
        require_connect(connector)
        self._config = merge(config, settings)
        if keyed:
            self._config = for_keyed(self._config)
        self._config.warn(stacklevel=1, packages=tuple(getattr(connector, "packages", ())))
        self.name = _lifecycle.pool_name(name)
        self._connector = connector
        self._clock = clock or time.monotonic
        if random is None:
            from random import random as uniform  # not before there is a pool: it brings hashlib with it

            random = uniform
        self._random = random
        self._debug = debug
        self._abort_method = overridden(connector, "abort")
        self._close_method = overridden(connector, "close")
        self._check_method = overridden(connector, "check")
        self._peek_method = overridden(connector, "peek")
        self._reset_method = overridden(connector, "reset")
        self._dirty_method = overridden(connector, "needs_reset")
        self._capacity_method = overridden(connector, "capacity")
        self._leftover_method = overridden(connector, "leftover")
        self._shared = keyed or self._capacity_method is not None  # one connection may have several leases
        self._connect_to = getattr(connector, "connect_to", None) if keyed else None
        self._lazy = getattr(connector, "lazy", None) if keyed else None
        self._streams = getattr(connector, "streams", None) if keyed else None
        self._classify = getattr(connector, "classify", None) or default_classify
        self._features = Features(
            connect_in_caller=bool(getattr(connector, "connect_in_caller", False)),
            checks=self._check_method is not None,
            peeks=self._peek_method is not None,
            keyed=keyed,
        )
        self._close_in_caller = bool(getattr(connector, "close_in_caller", False))
        # an adapter whose pool has an open() of its own fills it there, if start="eager"
        self._opens_later = bool(getattr(connector, "opens_later", False))
        self._listeners = Listeners(self.name, self.remove_listener)
        for listener in listeners:
            self._listeners.add(listener, kinds_of(listener))
        self._observers = []
        self._complaints: set[str] = set()
        self._packages = packages_of(connector)
        self._begin()
        self._made_at = self._caller_place()
        if getattr(connector, "counted", True):
            _churn.made(self.name, self._made_at)
        _lifecycle.register(self)
        self._gate.step(self._core.tell, EventKind.POOL_CREATED, self._clock())
        self._gate.step(self._core.tell, EventKind.POOL_READY, self._clock())

    def _begin(self) -> None:
        """An empty core with a lock of its own (again in a forked child)."""
        self._orphans: set[int] = set()
        self._reports: deque[tuple[str, tuple[str, int]]] = deque()
        self._core = core = Core(
            self._config, self._features, name=self.name, barging=self._barging, random=self._random
        )
        self._gate = Gate(
            core,
            name=self.name,
            clock=self._clock,
            lock=Lock(),
            settle=core.settle,
            repair=self._repair,
            perform=self._perform,
            call_later=self._call_later,
            run_due=self.run_due,
            note_alone=self._note_alone,
        )
        self._listeners.restart()
        core.heard = self._listeners.kinds
        self._measure_anew()
        self._lane = core.lane
        self._leased = core.leased
        if self._config.budget is not None:
            self._gate.lock.acquire()  # other pools of the budget may have news for this one as soon as it has its part
            try:
                core.join(self._open_account())
            finally:
                self._gate.lock.release()
        self._refresh()
        if core.permits is not None:
            core.permits.deliver()
            self._gate.run_posted()

    def _refresh(self) -> None:
        """Cache what the paths without the lock need. Called under the lock after each change of it."""
        core, config = self._core, self._config
        core.moved.append(True)
        core.moved = []
        core.resized = False
        self._tracing = self._debug or config.leak_after is not None
        self._watched = self._tracing or EventKind.ACQUIRED in core.heard or bool(self._observers)
        self._unwatched_end = self._reset_method is None and not config.use_histogram
        self._over = len(core.entries) - core.closing > core.limit  # after a smaller limit: surplus goes on return
        self._take, self._take_at, self._put, self._bare = access_of(self, tracing=self._tracing, surplus=self._over)

    def _callers_have_elsewhere(self) -> None:
        """From now on callers hear of a failed connect at once (they are a cluster's), whatever else is in use."""
        self._features = replace(self._features, elsewhere=True)
        self._core.features = self._features

    # -- acquire and release, the parts without waiting -----------------------------------------------------------

    def _undo_take(self, entry: Entry) -> None:
        """A take without the lock was rash: put the entry where it was; the long way decides about it."""
        self._gate.post(self._put_back, entry)

    def _put_back(self, entry: Entry) -> None:
        idle = self._lane.idle
        if self._core.lifo:
            idle.append(entry)
        else:
            idle.appendleft(entry)

    def _set_capacity(self, entry: Entry, leases: int) -> None:
        if leases > 1 and not self._shared:  # news: from now on only the core may hand out
            self._shared = True
            self._gate.step(self._refresh)
        self._gate.step(self._core.set_capacity, entry, leases, self._clock())

    def _missed(self, lane: Lane, now: float) -> None:
        """A connection was put back without the lock while the pool changed, or somebody queued."""
        self._gate.post(_nothing)  # the look that follows each step makes good what was missed

    def _gone(self, entry: Entry) -> None:
        super()._gone(entry)
        if self._over:
            self._gate.post(self._refresh)  # the surplus may be gone now: releases need no lock again

    def _verdict(self, error: BaseException) -> Verdict:
        try:
            verdict = self._classify(error)
        except Exception:
            logger.exception("%s: connector.classify failed", self.name)
            return Verdict.DISCARD
        if isinstance(verdict, Verdict):
            return verdict
        self._complain(broken(self._connector, "classify", returned(verdict), "it must return a poolkit.Verdict"))
        return Verdict.DISCARD

    def _connect_failed(self, core: Core, entry: Entry, error: BaseException) -> None:
        """A connect failed: judge the error, and tell the core whatever becomes of that. The permit is free when
        nothing is left of the connect at the server.
        """
        verdict, left = Verdict.DISCARD, None
        try:
            if isinstance(error, BrokenContract):
                verdict = Verdict.DISCARD if error.__cause__ else Verdict.FATAL
            elif self._config.autoscale is not None and overloaded(error):
                verdict = Verdict.OVERLOADED
            else:
                verdict = self._verdict(error)
            left = self._left_by(error)
        finally:
            self._gate.step(core.connect_failed, entry, error, verdict, self._clock(), left is not None)
        if left is not None:
            left.add_done_callback(lambda _: self._gone(entry) if core is self._core else None)

    def _left_by(self, error: BaseException) -> Any:
        """What a failed connect has left at the server, if the connector can tell (see ``Connector.leftover``)."""
        if self._leftover_method is None:
            return None
        try:
            left = self._leftover_method(error)
        except Exception as failure:  # noqa: BLE001 - told; the connect has failed all the same
            self._complain(broken(self._connector, "leftover", raised(failure), "it must not raise"))
            return None
        if left is None or callable(getattr(left, "add_done_callback", None)):
            return left
        wanted = "it must return None, or an object with add_done_callback()"
        self._complain(broken(self._connector, "leftover", returned(left), wanted))
        return None

    def _judged(self, connection: C) -> tuple[C, int, bool]:
        """A new connection, how many leases it serves, and whether it is opened by its first user. BrokenContract if
        the connector gave no connection, or cannot tell.
        """
        connector, method = self._connector, "connect" if self._connect_to is None else "connect_to"
        connection_of(connector, method, connection)
        capacity, lazy = 1, False
        try:
            method = "capacity"
            if self._capacity_method is not None:
                capacity = capacity_of(connector, method, self._capacity_method(connection))
            method = "lazy"
            if self._lazy is not None:
                lazy = bool(self._lazy(connection))
        except BrokenContract:
            raise
        except Exception as error:
            raise broken(connector, method, raised(error), "it must not raise") from error
        return connection, capacity, lazy

    def _arrived(self, entry: Entry, opened: tuple[C, int, bool], *, keep: bool = False) -> BrokenContract | bool:
        """Under the lock: a connect succeeded, unless the connection is another entry's. See ``Core.connected``."""
        core, now = self._core, self._clock()
        connection, capacity, lazy = opened
        twin = core.twin_of(connection)
        if twin is None:
            return core.connected(entry, connection, capacity, now, keep=keep, lazy=lazy)
        error = broken(
            self._connector, "connect" if self._connect_to is None else "connect_to",
            f"returned {object.__repr__(connection)}, which is the pool's connection {twin.id} already",
            "it must return a new object each time",
        )  # fmt: skip
        core.connect_failed(entry, error, Verdict.FATAL, now)
        return error

    def _complain(self, error: BrokenContract) -> None:
        """Log what is wrong with the connector where no caller can be told; once for each text."""
        if str(error) not in self._complaints and len(self._complaints) < 100:
            self._complaints.add(str(error))
            logger.error("%s: %s", self.name, error)

    def _fate(self, discard: bool, error: BaseException | None) -> Verdict:
        if discard:
            return Verdict.DISCARD
        return Verdict.KEEP if error is None else self._verdict(error)

    def _dirty(self, entry: Entry) -> bool:
        """Whether the returned connection has to be reset."""
        if self._reset_method is None:
            return False
        found, entry.dirty = entry.dirty, None
        if isinstance(found, BaseException):
            raise found
        if found is not None:
            return found
        return True if self._dirty_method is None else bool(self._dirty_method(entry.connection))

    def _refuse_release(self, key: int) -> None:
        """What comes back is not on lease: an error, unless the pool took the lease away itself."""
        if self._core.phase is not Phase.OPEN or key in self._orphans:
            self._orphans.discard(key)
            return  # cut when the pool was closed, or inherited from the parent process
        raise NotLeased(
            f"{self.name}: release of a connection that is not on lease from this pool: "
            "it is foreign, was released already, or belongs to a Lease (close that)"
        )

    def _fail(self, waiter: Waiter, error: PoolError, now: float) -> None:
        """Under the lock: tell the listeners why an acquire failed."""
        reasons = {"PoolClosed": FailReason.POOL_CLOSED, "PoolBusy": FailReason.BUSY,
                   "PoolSuspended": FailReason.SUSPENDED}  # fmt: skip
        reason = reasons.get(type(error).__name__, FailReason.CONNECTION_ERROR)
        self._core.tell(EventKind.ACQUIRE_FAILED, now, duration=now - waiter.since, reason=reason, error=error)

    def _abandon(self, waiter: Waiter, error: BaseException, now: float) -> None:
        """Under the lock: the caller was interrupted or told an error; what it was given passes on."""
        told = waiter.gone or waiter.outcome is error or isinstance(error, ConfigError)
        self._core.abandon(waiter, now)
        if not told:
            reason = FailReason.CONNECTION_ERROR if isinstance(error, Exception) else FailReason.CANCELLED
            self._core.tell(EventKind.ACQUIRE_FAILED, now, duration=now - waiter.since, reason=reason, error=error)

    def _mark(self, entry: Entry, waiter: Waiter, now: float) -> Held:
        """A lease begins: write down since when, by whom and, when tracing, where."""
        record = entry if entry.leases == 1 else LeaseRecord(entry)
        record.since, record.holder = now, waiter.holder
        record.reported = False
        record.place = None
        self._waited.append(now - waiter.since)
        if self._watched or len(self._waited) >= BATCH:
            self._tell_of(record, waiter, now)
        return record

    def _tell_of(self, record: Held, waiter: Waiter, now: float) -> None:
        """Whoever wants to know that a caller has its connection."""
        if self._tracing:
            self._trace(record)
        if len(self._waited) >= BATCH:
            self._flush()
        if self._observers:
            self._observed(now - waiter.since, None)
        if EventKind.ACQUIRED in self._core.heard:
            slot, waited = record.slot, now - waiter.since
            self._listeners.pending.append(
                Event(EventKind.ACQUIRED, self.name, now, slot.id, waited, key=slot.lane.key)
            )
            self._listeners.flush()

    def _trace(self, record: Held) -> None:
        """Write down where a lease begins, and by whom in words."""
        record.place = place_outside(sys._getframe(3), self._packages, getattr(self, "_runtime", None))
        record.holder = named(record.holder, self._name_of)

    def _caller_place(self) -> tuple[str, int] | None:
        """File and line of the nearest frame outside this package, its adapters and the driver above them."""
        return place_outside(sys._getframe(2), self._packages, getattr(self, "_runtime", None))

    # -- leases that were dropped ---------------------------------------------------------------------------------

    def _dropped(self, key: int, record: Held) -> None:
        """Called by a finalizer: takes no lock, does no I/O; the next one at the lock does the work."""
        if self._leased.pop(key, None) is None:  # at once: the next lease may get this one's id
            return  # cut when the pool was closed, or inherited from the parent process
        self._gate.inbox.append((self._reclaim, (record,)))
        self._nudge()  # nobody else may come by for long
        if not _GIL:
            return  # an OrderedDict is not safe to look at while others change it: the nudge has to do
        try:
            waiter = next(iter(record.slot.lane.waiters))
        except (StopIteration, RuntimeError):  # nobody, or the queue is changing: then somebody is at the lock
            return
        if waiter.parker is not None:
            waiter.parker.wake()  # nobody may come by for long, but that waiter waits for just this

    def release_dropped(self, key: int) -> None:
        """Take a connection back that its holder has dropped without :meth:`release`; it is closed.

        For adapters whose callers hold an object of the driver and whose connector's connection only refers to it.
        ``key``: the ``id()`` of what :meth:`acquire` gave, the only thing that a finalizer still has. Does nothing if
        that is not on lease. Takes no lock and does no I/O: callable from finalizers and from any thread.
        """
        record = self._leased.get(key)
        if record is not None:
            self._dropped(key, record)

    def _reclaim(self, record: Held) -> None:
        """Under the lock: the lease is gone, the state of its connection unknown."""
        self._core.dropped(record, self._clock())
        text = (
            f"{self.name}: a lease was dropped without close(), taken by {self._name_of(record.holder)} at "
            f"{place_of(record) or 'an unknown place (debug=True notes it)'}; its connection is closed"
        )
        self._reports.append((text, record.place or (__file__, 0)))
        self._core.effects.append(Effect(Do.REPORT))

    # -- time -----------------------------------------------------------------------------------------------------

    def _nudge(self) -> None:
        """Have the runtime call :meth:`run_inbox` soon."""
        raise NotImplementedError

    def _note_alone(self) -> None:
        self._refresh()  # only callers who take the lock see what is due
        for lane in self._core.lanes.values():
            for waiter in lane.waiters:
                self._core.effects.append(Effect(Do.WAKE, None, waiter))

    def run_due(self) -> None:
        """Housekeeping: called by the runtime when something is due. Does not block."""
        self._gate.scheduled = NEVER
        now = self._clock()
        error = self._gate.step(upkeep.tick_safely, self._core, now)
        if error is not None:
            logger.error("%s: housekeeping failed", self.name, exc_info=error)
        if self._core.resized:
            self._changed()
        self._flush()
        self._look_for_leaks()
        self._gate.keep_time()

    def run_inbox(self) -> None:
        """Run the steps that finalizers have left. Does not block."""
        self._gate.run_posted()

    def _call_later(self, delay: float) -> bool | None:
        """See :class:`Gate`."""
        raise NotImplementedError

    # -- settings and statistics ----------------------------------------------------------------------------------

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

    def discard_idle(self, condition: Callable[[C], bool] | None = None, *, unused_since: float = NEVER) -> int:
        """Close the idle connections for which ``condition(connection)`` holds (None: all); the number of them.

        ``unused_since``: only those that came back at this time (``lease.since``, for instance) or before it.
        Leases are not touched. The condition must not block; it may see a connection that is just being leased.
        Thread-safe.
        """
        return self._gate.step(commands.discard_idle, self._core, condition, unused_since, self._clock())

    def suspend(self, *, fail_fast: bool = False) -> None:
        """Hand out and open nothing until :meth:`resume`: callers wait (within their timeouts), or with ``fail_fast``
        get :class:`~poolkit.PoolSuspended` at once. Leases go on. Thread-safe.
        """
        self._gate.step(commands.suspend, self._core, fail_fast, self._clock())
        self._changed()

    def resume(self) -> None:
        """End :meth:`suspend`; waiters are served in order."""
        self._gate.step(commands.resume, self._core, self._clock())
        self._changed()

    def reconfigure(self, **changes: Any) -> None:
        """Change settings of the live pool: ``reconfigure(max_size=20)``.

        No lease is cut: surplus connections are closed when they come back. Raises ConfigError and changes
        nothing for an unknown name or an impossible value. Thread-safe.
        """
        self._gate.step(self._apply, changes).warn(stacklevel=1)
        self._changed()

    def _apply(self, changes: dict[str, Any]) -> PoolConfig:
        """Under the lock, so that two changes at once both count."""
        config = reconfigured(self._config, changes)
        if self._features.keyed:
            config = for_keyed(config)
        self._change_account(config)
        self._config = config
        changed = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        commands.reconfigure(self._core, config, self._barging, changed, self._clock())
        return config

    def _changed(self) -> None:
        self._gate.step(self._refresh)

    def check_books(self) -> None:
        """Raise AssertionError unless the pool's books balance. For tests; the pool must be quiet."""
        self._gate.step(books.check, self._core)

    def _refuse_closed(self) -> None:
        if self.closed:
            raise PoolClosed(f"{self.name}: the pool is {self._core.phase.value}")

    def _warm_up_count(self, count: Any) -> int:
        if count is None:
            count = self._config.min_size
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"warm_up({count!r}): must be a number of connections, 0 or more", "count")
        self._refuse_closed()
        return count

    def _lane_of(self, key: Hashable) -> Lane:
        """Under the lock: the lane of a key; a new one knows how many leases a connection of it may serve."""
        core = self._core
        known = key in core.lanes
        lane = core.add_lane(key)
        if not known and self._streams is not None:
            try:
                streams = self._streams(key)
            except Exception as error:
                raise broken(self._connector, "streams", raised(error), "it must not raise") from error
            lane.streams = max(1, capacity_of(self._connector, "streams", streams))
        return lane

    def _class_of_caller(self, classes: Classes) -> CallerClass:
        """In the caller's own thread or task, before it asks. ConfigError if there is no such class."""
        try:
            return classes.of(chosen())
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}", error.setting) from None

    def _warm_up_error(self, count: int, errors: list[BaseException], late: int) -> ConnectFailed:
        error = ConnectFailed(f"{self.name}: warm_up: {warm_up_words(count, errors, late)}")
        error.errors = tuple(errors)
        error.__cause__ = errors[0] if errors else None
        return error

    # -- fork -----------------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """In the child: begin empty; leave the parent's connections alone."""
        forget = overridden(self._connector, "forget")
        for entry in list(self._core.entries.values()):
            if entry.connection is not None:
                try:
                    if forget is not None:
                        forget(entry.connection)
                except BaseException as error:  # noqa: BLE001 - other connections and pools are still to be let go of
                    logger.debug("%s: forget failed: %s", self.name, describe(error))
                _lifecycle.bury(entry.connection)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Go on with an empty core; what is on lease now will be let go of when it comes back."""
        old, leased = self._core, set(self._leased.copy())
        self._leased.clear()  # first: a lease that is collected from here on is none of the new core's
        self._begin()
        self._orphans = leased
        commands.inherit(self._core, old)
        self._gate.step(self._refresh)

    def __repr__(self) -> str:
        core = self._core
        return (
            f"<{type(self).__name__} {self.name!r} {core.phase.value}: {len(core.entries)} open, "
            f"{len(core.leased)} leased, {len(core.lane.waiters)} waiting>"
        )


def _nothing() -> None:
    """A step that only has the gate look at the state."""


_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
