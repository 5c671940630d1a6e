"""The pool for threads. Decisions are the core's; here is waiting, I/O and the reading of the clock."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, TypeVar

from ._core import commands
from ._core.contract import BrokenContract
from ._core.entry import CHECKING, IN_USE, Entry
from ._core.lease_record import Held
from ._core.state import Phase
from ._core.waiter import Waiter
from ._fast import decline_put, make_acquire, make_lease, make_release
from ._leases import Lease, refuse_shared
from ._shell import DEFAULT, Default, deadline_of
from ._thread_jobs import ThreadJobs
from .config import PoolConfig
from .connector import Connector, Verdict, require_kind
from .errors import ConfigError, NotLeased, PoolError
from .events import Listener
from .policies.retire import NEVER
from .runtimes.base import Runtime, SyncParker
from .runtimes.threads import ThreadRuntime

__all__ = ("Lease", "Pool")

C = TypeVar("C")

_THREADS = ThreadRuntime()


class Pool(ThreadJobs[C]):
    """A pool for threads. Thread-safe throughout; safe after ``fork()`` (the child begins empty).

    ``connector``: a :class:`~poolkit.Connector`. ``config``: a :class:`~poolkit.PoolConfig`; single settings may
    be given as keywords and win. ``name``: for messages and metrics, unique in the application. ``listeners``:
    called for each :class:`~poolkit.Event`. ``debug``: note the place of every acquire. ``keyed``: one lane for
    each ``key`` given to :meth:`lease`, all under one ``max_size``. ``clock``, ``random``, ``runtime``: for tests
    and for drivers with a way of their own to wait.

    Raises :class:`~poolkit.ConfigError` for an impossible setting or a connector that cannot connect.
    """

    _barging = 0.001

    def __init__(
        self,
        connector: Connector[C],
        config: PoolConfig | None = None,
        *,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        keyed: bool = False,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
        runtime: Runtime | None = None,
        **settings: Any,
    ) -> None:
        require_kind(connector, asynchronous=False)
        self._runtime = runtime or _THREADS
        self._caller = self._runtime.caller
        self._parker = self._runtime.parker
        super().__init__(
            connector, config, settings,
            name=name, clock=clock, random=random, listeners=listeners, debug=debug, keyed=keyed,
        )  # fmt: skip
        if self._config.start == "eager" and not self._opens_later:
            self._gate.step(self._start)

    def _start(self) -> None:
        self._core.started = True  # from now on min_size is kept

    def _refresh(self) -> None:
        """Put the ways without the lock in the place of acquire and release, as long as they are allowed."""
        super()._refresh()
        mine = self.__dict__
        mine.pop("acquire", None)
        mine.pop("release", None)
        mine.pop("lease", None)
        take = (self._core, self._clock, self._caller, self._undo_take)
        if self._bare and type(self).acquire is Pool.acquire:
            mine["acquire"] = make_acquire(*take, self._acquire_bare, DEFAULT)
        if self._bare and type(self).lease is Pool.lease:
            mine["lease"] = make_lease(self, Lease, *take, partial(Pool.lease, self), DEFAULT)
        plain = self._bare and self._put is not decline_put and self._unwatched_end
        if plain and type(self).release is Pool.release:
            mine["release"] = make_release(self._core, self._clock, self._missed, self._give)

    # -- leases ---------------------------------------------------------------------------------------------------

    def acquire(self, timeout: float | Default | None = DEFAULT) -> C:
        """A connection, to be given back with :meth:`release`.

        ``timeout`` in seconds replaces ``acquire_timeout``: 0 never waits, None waits for ever. Raises
        :class:`~poolkit.AcquireTimeout`, :class:`~poolkit.ConnectFailed`, :class:`~poolkit.PoolClosed`,
        :class:`~poolkit.PoolBusy` or :class:`~poolkit.PoolSuspended`.
        """
        if (entry := self._take()) is None:
            return self._acquire_bare(timeout)
        connection: C = entry.connection
        self._leased[id(connection)] = entry
        return connection

    def _acquire_bare(self, timeout: float | Default | None) -> C:
        """As acquire, the long way."""
        if (record := self._acquire(timeout, None)).capacity > 1:
            refuse_shared(self, record)
        connection: C = record.connection
        self._leased[id(connection)] = record
        return connection

    def release(self, connection: C, discard: bool = False, error: BaseException | None = None) -> None:
        """Give back what :meth:`acquire` gave. Never waits for the pool's lock; callable from finalizers.

        ``discard``: close the connection instead of keeping it. ``error``: what happened while it was used; the
        connector's ``classify`` decides. Raises :class:`~poolkit.NotLeased` for any other object, or twice.
        """
        record = self._leased.pop(id(connection), None)
        if record is None or discard or error is not None or not self._put(record):
            self._give(record, id(connection), discard, error)

    def lease(self, timeout: float | Default | None = DEFAULT, key: Hashable = None) -> Lease[C]:
        """A :class:`Lease`, at once: ``with pool.lease() as connection: ...``. Arguments and errors as acquire.

        ``key``: the lane (endpoint) of a keyed pool.
        """
        lease = Lease(self)
        record: Held | None = self._take() if key is None else self._take_at(key)
        if record is None:
            record = self._acquire(timeout, key)
        lease.connection = record.connection
        lease.since = record.since
        lease._record = record  # first: a lease that is dropped from here on gives its connection back
        self._leased[id(lease)] = record
        return lease

    def detach(self, connection: C) -> None:
        """Take a connection got by :meth:`acquire` out of the pool: it is the caller's, its place is free."""
        self._detach(id(connection))

    def _detach(self, key: int) -> None:
        record = self._leased.pop(key, None)
        if record is None:
            self._refuse_release(key)
        else:
            self._gate.step(self._core.detach, record.slot, self._clock())

    def _not_leased(self) -> PoolError:
        return NotLeased(f"{self.name}: the lease is closed")

    def _give(self, record: Held | None, key: int, discard: bool, error: BaseException | None) -> None:
        """Give a connection back the long way; ``record`` is what was on lease under ``key``."""
        if record is None:
            self._refuse_release(key)
            return
        now = self._clock()
        if self._unwatched_end and error is None and not discard and not record.reported:
            self._gate.post(self._core.give_back, record, now)
            return
        if self._config.use_histogram:
            self._used.append(now - record.since)
        self._end(record, discard, error, now)

    def _end(self, record: Held, discard: bool, error: BaseException | None, now: float) -> None:
        """The end of a lease whose connection has to be judged or reset, or which had lasted too long."""
        overdue = self._overdue(record, error) if record.reported else None
        entry = record.slot
        try:
            verdict = self._fate(discard, error)
            if self._reset_method is not None and verdict is Verdict.KEEP and entry.leases == 1:
                verdict = self._reset(entry)
            else:
                entry.dirty = None  # others still use it, or it goes
        except BaseException:  # interrupted: the state of the connection is unknown
            self._gate.post(self._core.discard, record, now)
            raise
        if verdict is Verdict.KEEP:
            self._gate.post(self._core.give_back, record, now)
        else:
            self._gate.post(self._core.discard, record, now, verdict, error)
        if overdue is not None:
            raise overdue

    # -- the long way ---------------------------------------------------------------------------------------------

    def _acquire(self, timeout: float | Default | None, key: Hashable) -> Held:
        if self._gate.inbox:
            self._gate.run_posted()  # a dropped lease may be just what is missing
        core = self._core
        now = self._clock()
        deadline = deadline_of(timeout, self._config, now)
        waiter = Waiter(self._lane, now, self._caller())
        if core.classes is not None:
            waiter.caller_class = self._class_of_caller(core.classes)
        parker = waiter.parker = self._parker()
        try:
            if key is None and not self._features.keyed:
                self._gate.step(core.acquire, waiter, now)
            else:
                self._gate.step(self._ask, waiter, key, now)
            while True:
                outcome = waiter.outcome
                if outcome is None:
                    self._wait(waiter, parker, deadline)
                elif not isinstance(outcome, Entry):
                    if isinstance(outcome, PoolError):
                        self._gate.step(self._fail, waiter, outcome, self._clock())
                    raise outcome
                elif outcome.state is IN_USE:
                    return self._mark(outcome, waiter, self._clock())
                elif outcome.state is CHECKING:
                    self._check_for(waiter, outcome, deadline)
                else:
                    self._connect_for(waiter, outcome, deadline)
        except BaseException as error:
            self._gate.step(self._abandon, waiter, error, self._clock())
            self._observed(self._clock() - waiter.since, error)
            raise

    def _ask(self, waiter: Waiter, key: Hashable, now: float) -> None:
        if self._features.keyed:
            waiter.lane = self._lane_of(key)
        elif key is not None:
            raise ConfigError(f"{self.name}: lease(key={key!r}): only a pool made with keyed=True has keys", "key")
        self._core.acquire(waiter, now)

    def _wait(self, waiter: Waiter, parker: SyncParker, deadline: float) -> None:
        left = deadline - self._clock()
        if left > 0:
            parker.wait(None if deadline == NEVER else left)
        if waiter.outcome is None:
            now = self._clock()
            if now < deadline:
                self._gate.step(self._core.look, waiter, now)
                return
            error = self._gate.step(self._expire, waiter, now)
            if error is not None:
                asyncio = sys.modules.get("asyncio") if self._runtime is _THREADS else None
                if asyncio is not None and asyncio._get_running_loop() is not None:
                    error.args = (f"{error.args[0]}; this thread runs an event loop, which the wait has blocked",)
                raise error

    def _check_for(self, waiter: Waiter, entry: Entry, deadline: float) -> None:
        """The caller checks an idle connection in doubt before it uses it."""
        began = self._clock()
        left = deadline - began
        waiter.busy = True  # who is interrupted from here on leaves the connection in an unknown state
        error = self._alive(entry, left, ask=left > 0)
        now = self._clock()
        waiter.checking += now - began
        self._gate.step(lambda: self._core.checked(entry, waiter, error, now, asked=left > 0))

    def _connect_for(self, waiter: Waiter, entry: Entry, deadline: float) -> None:
        """The caller connects itself, as its driver requires."""
        limit = self._config.connect_timeout
        began = self._clock()
        left = deadline - began
        if 0 < left < (limit or NEVER):
            limit = left
        try:
            opened = self._connect(entry, limit)
        except BaseException as error:
            self._connect_failed(self._core, entry, error)
            raise
        waiter.connecting += self._clock() - began
        self._gate.step(self._take_own, waiter, entry, opened)

    def _take_own(self, waiter: Waiter, entry: Entry, opened: tuple[C, int, bool]) -> None:
        """Under the lock: the caller has connected and gets the connection, unless the pool has changed meanwhile."""
        waiter.outcome = None
        found = self._arrived(entry, opened, keep=True)
        if isinstance(found, BrokenContract):
            waiter.outcome = found
        elif found:
            waiter.outcome = entry
        else:
            self._core.retry(waiter, self._clock())

    # -- the pool as a whole --------------------------------------------------------------------------------------

    def warm_up(self, count: int | None = None, *, timeout: float | None = None) -> None:
        """Open connections until ``count`` exist (None: ``min_size``), ``max_connecting`` at a time.

        Waits for all attempts, at most ``timeout`` seconds (None: as long as each may take). If any failed, raises
        :class:`~poolkit.ConnectFailed` with all errors in ``errors``; the connections that worked stay.
        """
        count = self._warm_up_count(count)
        entries = self._gate.step(commands.reserve, self._core, count, self._clock())
        if not entries:
            return
        pending, errors = list(reversed(entries)), list[BaseException]()
        left = [len(entries)]
        parker = self._runtime.parker()

        def work() -> None:
            while True:
                try:
                    entry = pending.pop()
                except IndexError:
                    return
                error = self._connect_job(entry)
                with counter:
                    if error is not None:
                        errors.append(error)
                    left[0] -= 1
                parker.wake()

        counter = threading.Lock()
        for _ in range(min(len(entries), self._core.max_connecting)):
            self._runtime.spawn(work)
        deadline = deadline_of(timeout, self._config, self._clock())
        while left[0] and (rest := deadline - self._clock()) > 0:
            parker.wait(None if deadline == NEVER else rest)
        if errors or left[0]:
            raise self._warm_up_error(len(entries), errors, left[0])

    def drain(self, timeout: float | None = 30.0) -> bool:
        """Admit nobody, close idle connections, wait up to ``timeout`` seconds for the leases to end, then abort
        those that are left and close the pool. True if every lease ended by itself. Thread-safe.
        """
        return self._shut(Phase.DRAINING, timeout)

    def close(self, timeout: float | None = 5.0) -> None:
        """Wake all waiters with :class:`~poolkit.PoolClosed` and close idle connections; a leased one is closed
        when it comes back, one being opened when it arrives. Waits up to ``timeout`` seconds for the idle ones
        to be closed. Idempotent, thread-safe.
        """
        self._shut(Phase.CLOSED, timeout)

    def _shut(self, phase: Phase, timeout: float | None) -> bool:
        deadline = deadline_of(timeout, self._config, self._clock())
        self._gate.step(commands.shut, self._core, phase, self._clock())
        self._changed()
        self._runtime.schedule(self, NEVER)  # nothing is due any more
        core = self._core
        parker = self._runtime.parker()
        core.watchers.append(parker)
        try:
            while core.entries if phase is Phase.DRAINING else core.closing:
                left = deadline - self._clock()
                if left <= 0:
                    break
                parker.wait(None if deadline == NEVER else left)
        finally:
            core.watchers.remove(parker)
        aborted = 0
        if phase is not Phase.CLOSED:
            aborted = self._gate.step(commands.abort_leased, core, self._clock())
            self._gate.step(commands.shut, core, Phase.CLOSED, self._clock())
        return not aborted

    def __enter__(self) -> Pool[C]:
        self._refuse_closed()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
