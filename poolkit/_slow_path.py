"""Acquire and release by way of the core: deadlines, waiting, checks, connects, resets, classification of errors."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from ._core import commands
from ._core.endpoints import Endpoint
from ._core.queue import Request
from ._core.slots import CHECKING, IN_USE, RESETTING, Held, LeaseRecord, Slot
from ._deadline import BLOCKS, current, forget
from ._driver import Opened
from ._fast import BATCH
from ._log import logger
from ._numbers import LONGEST, seconds
from ._operations import BrokenContract
from ._places import packages_of, place_outside
from ._priority import chosen
from .config import PoolConfig
from .connector import Verdict
from .errors import ConfigError, ConnectTimeout, LeaseOverdue, PoolError, UsageError, describe
from .events import Event, EventKind, FailReason
from .policies.classes import CallerClass, Classes
from .policies.retire import NEVER
from .runtimes.base import AsyncParker, AsyncRuntime, SyncParker
from .runtimes.holders import named

if TYPE_CHECKING:
    from ._async import AsyncPool
    from ._pool_base import PoolBase
    from ._threads import Pool

__all__ = ("DEFAULT", "Default", "SlowPath", "TaskSlowPath", "ThreadSlowPath", "deadline_of")

C = TypeVar("C")


class Default:
    """The type of a marker for "the pool's own setting", for arguments where None means no limit."""

    def __repr__(self) -> str:
        return "<the pool's setting>"


DEFAULT = Default()

_EARLY = 0.001
"""Seconds by which a timer may end a connect before its time, as the pool's clock tells it: both round."""


def deadline_of(timeout: float | Default | None, config: PoolConfig, now: float) -> float:
    """Return when a call that starts now must end; NEVER for a timeout of None. Raises ConfigError if it is no time."""
    if isinstance(timeout, Default):
        timeout = config.acquire_timeout
    elif timeout is not None and not (type(timeout) in (int, float) and 0 <= timeout <= LONGEST):  # usual: no call
        seconds("timeout", timeout, most=NEVER, none="no limit")
    return NEVER if timeout is None else now + timeout


def _in_block(
    pool: PoolBase[Any], request: Request, key: Hashable, timeout: float | Default | None, now: float
) -> float:
    """Return the deadline of a caller that may be in a block with a deadline (see :class:`poolkit.deadline`)."""
    own, block = deadline_of(timeout, pool._config, now), current()
    return own if block is None else min(own, now + block.note(pool, key, request.caller_class))


def _left(pool: PoolBase[Any], request: Request, deadline: float, now: float) -> float | None:
    """Return the seconds that are left to a caller for a connect of its own; None: no limit. With a timeout of 0 it
    connects, too, but after its deadline or the end of its block it gets its error.
    """
    left, block = deadline - now, current()
    if left <= 0 and deadline > request.since:  # served when its time was up: it would connect without a limit
        raise pool._gate.step(_time_out, pool, request, now)
    if block is not None:
        rest = block.left()
        if not rest:
            raise pool._gate.step(_time_out, pool, request, now)
        left = rest if left <= 0 else min(left, rest)
    return left if 0 < left < NEVER else None


def _within(limit: float | None, left: float | None) -> float | None:
    """Return the limit of a connect that the caller makes itself: ``limit``, or what is left if that is less."""
    return limit if left is None else min(limit or NEVER, left)


def _raise_late(
    pool: PoolBase[Any], request: Request, error: BaseException, left: float | None, bound: float | None, spent: float
) -> None:
    """The caller's own connect has failed: raise the pool's error if the engine has ended it, at the caller's deadline
    or after ``connect_timeout``.
    """
    spent += _EARLY
    if type(error) is not TimeoutError or bound is None or spent < bound:
        return
    if left is not None and spent >= left:
        raise pool._gate.step(_time_out, pool, request, pool._clock())
    raise ConnectTimeout(f"{pool.name}: no connection within connect_timeout={bound:g}: {describe(error)}") from error


def _time_out(pool: PoolBase[Any], request: Request, now: float) -> PoolError:
    """End a request whose deadline has passed. Return the caller's error. Called under the lock."""
    core, error = pool._core, pool._monitor.timeout_error(request, now)
    core.abandon(request, now, timed_out=True)
    waited = now - request.since
    core.tell(EventKind.ACQUIRE_FAILED, now, duration=waited, reason=FailReason.TIMEOUT, error=error)
    return error


class SlowPath(Generic[C]):
    """The common part of the slow paths of threads and tasks."""

    def __init__(self, pool: PoolBase[C]) -> None:
        self._base = pool
        self._clock = pool._clock
        self.packages = packages_of(pool._connector)
        """Where a lease begins is a line outside of these."""
        # set by FastPath.renew()
        self.waited: deque[float] = pool._monitor.waited
        self.tracing = False  # record the holder of each lease, and where it was taken
        self.watched = False  # there are listeners or observers for leases that took the slow path
        self.plain_end = False  # a usable connection is returned without a reset

    # -- the start of a lease -----------------------------------------------------------------------------------------

    def class_of_caller(self, classes: Classes) -> CallerClass:
        """Return the class of the calling thread or task. Raises ConfigError if the pool has no such class."""
        try:
            return classes.of(chosen())
        except ConfigError as error:
            raise ConfigError(f"{self._base.name}: {error}", error.setting) from None

    def _ask(self, request: Request, key: Hashable, now: float) -> None:
        """Queue or serve a request in a keyed pool; ConfigError for a key in another pool. Called under the lock."""
        pool = self._base
        if pool._core.features.keyed:
            request.endpoint = self._endpoint(key)
        elif key is not None:
            raise ConfigError(f"{pool.name}: lease(key={key!r}): only a pool with keyed=True has keys", "key")
        pool._core.acquire(request, now)

    def _endpoint(self, key: Hashable) -> Endpoint:
        """Return the endpoint of a key, and create it if needed. Called under the lock."""
        core = self._base._core
        endpoint = core.all_endpoints.get(key)
        if endpoint is None:
            endpoint = core.add_endpoint(key)
            streams = self._base._driver.operations.streams(key)
            if streams is not None:
                endpoint.streams = streams
        return endpoint

    def _fail(self, request: Request, error: PoolError, now: float) -> None:
        """Queue an event for the listeners: an acquire failed. Called under the lock."""
        reasons = {"PoolClosed": FailReason.POOL_CLOSED, "PoolBusy": FailReason.BUSY,
                   "PoolSuspended": FailReason.SUSPENDED}  # fmt: skip
        reason = reasons.get(type(error).__name__, FailReason.CONNECTION_ERROR)
        self._base._core.tell(EventKind.ACQUIRE_FAILED, now, duration=now - request.since, reason=reason, error=error)

    def _abandon(self, request: Request, error: BaseException, now: float) -> None:
        """The caller was interrupted or gets an error: free the connection assigned to it. Called under the lock."""
        core, outcome = self._base._core, request.outcome
        told = request.gone or outcome is error or isinstance(error, ConfigError)
        if request.told and isinstance(outcome, Slot):  # interrupted after the listeners were called for its lease
            core.tell(EventKind.RELEASED, now, outcome, duration=now - outcome.since)
        core.abandon(request, now)
        if BLOCKS:
            forget(self._base)
        if not told and not request.told:
            reason = FailReason.CONNECTION_ERROR if isinstance(error, Exception) else FailReason.CANCELLED
            core.tell(EventKind.ACQUIRE_FAILED, now, duration=now - request.since, reason=reason, error=error)

    def look_again(self, request: Request, deadline: float) -> float:
        """The caller woke up without an outcome. Raise its error if its deadline has passed. Return the seconds that it
        sleeps beyond its deadline, because a connect for it is in progress (0: not beyond it, or it was served).
        """
        pool, now = self._base, self._clock()
        if now < deadline:
            pool._gate.step(pool._core.look, request, now)
            return 0.0
        ask = pool._driver.operations.connect_grace
        longer = 0.0 if ask is None or current() is not None else ask(now - deadline)
        error = pool._gate.step(self.expire, request, now, longer)
        if error is not None:
            raise error
        return longer if request.outcome is None else 0.0

    def expire(self, request: Request, now: float, longer: float = 0.0) -> PoolError | None:
        """The caller's deadline has passed: return the error. None if it was just served, or may wait ``longer`` and a
        connect for it is in progress or has woken it (``rechecking``). Called under the lock.
        """
        if request.outcome is not None:
            return None
        core = self._base._core
        if longer > 0 and (request.rechecking or request.endpoint.connects_for(request)):
            core.look(request, now)
            return None
        return _time_out(self._base, request, now)

    def _begin(self, slot: Slot, request: Request, now: float) -> Held:
        """Begin a lease: record its start, its holder and, with tracing, where it was taken."""
        record = slot if slot.leases == 1 else LeaseRecord(slot)
        record.since, record.holder = now, request.holder
        record.reported = False
        record.place = None
        self.waited.append(now - request.since)
        if self.watched or len(self.waited) >= BATCH:
            self._tell(record, request, now)
        return record

    def _tell(self, record: Held, request: Request, now: float) -> None:
        """Call observers and listeners for a lease that begins, and record its place if tracing."""
        pool, monitor = self._base, self._base._monitor
        if self.tracing:
            self.trace(record)
        if len(monitor.waited) >= BATCH:
            monitor.flush()
        if monitor.observers:
            monitor.observed(now - request.since, None)
        if EventKind.ACQUIRED in pool._core.wanted_events:
            slot, waited = record.slot, now - request.since
            event = Event(EventKind.ACQUIRED, pool.name, now, slot.id, waited, key=slot.endpoint.key)
            request.told = True
            pool._listeners.pending.append(event)
            pool._listeners.flush()

    def trace(self, record: Held) -> None:
        """Record where a lease was taken, and the name of its holder."""
        pool = self._base
        record.place = place_outside(sys._getframe(3), self.packages, pool._runtime)
        record.holder = named(record.holder, pool._driver.name_of)

    # -- the end of a lease -------------------------------------------------------------------------------------------

    def refuse_shared(self, record: Held) -> NoReturn:
        """Raise UsageError for acquire() of a multiplexed connection: release() could not tell its leases apart."""
        pool = self._base
        pool._gate.post(pool._core.give_back, record, self._clock())
        raise UsageError(f"{pool.name}: acquire(): connections of this pool serve several leases at once; use lease()")

    def _verdict(self, discard: bool, error: BaseException | None) -> Verdict:
        if discard:
            return Verdict.DISCARD
        return Verdict.KEEP if error is None else self._base._driver.operations.verdict(error)

    def _note_given_up(self, record: Held, error: BaseException | None, now: float) -> None:
        """Report to the core if the holder is being cancelled: it gave up; the server did not fail. Most drivers then
        close the connection without giving a reason, so the exception that is being handled counts, too.
        """
        passing = sys.exc_info()[1] if error is None else error
        if passing is not None and not isinstance(passing, Exception):
            pool = self._base
            pool._gate.post(commands.lease_given_up, pool._core, record, now)

    def _end(self, record: Held, verdict: Verdict, error: BaseException | None, now: float) -> None:
        """Keep or discard the connection."""
        pool = self._base
        if verdict is Verdict.KEEP:
            pool._gate.post(pool._core.give_back, record, now)
        else:
            pool._gate.post(pool._core.discard, record, now, verdict, error)


class ThreadSlowPath(SlowPath[C]):
    """The slow path of threads: a caller checks and resets its connection itself."""

    def __init__(self, pool: Pool[C]) -> None:
        super().__init__(pool)
        self._pool = pool
        self._parker = pool._runtime.parker

    def acquire(self, timeout: float | Default | None, key: Hashable) -> Held:
        """Ask the core, and wait for a connection."""
        pool = self._pool
        if pool._gate.inbox:
            pool._gate.run_posted()  # it may free the connection of a dropped lease
        core = pool._core
        now = self._clock()
        request = Request(pool._endpoint, now, pool._caller())
        if core.classes is not None:
            request.caller_class = self.class_of_caller(core.classes)
        deadline = _in_block(pool, request, key, timeout, now) if BLOCKS else deadline_of(timeout, pool._config, now)
        parker = request.parker = self._parker()
        try:
            if key is None and not core.features.keyed:
                pool._gate.step(core.acquire, request, now)
            else:
                pool._gate.step(self._ask, request, key, now)
            while True:
                outcome = request.outcome
                if outcome is None:
                    self._wait(request, parker, deadline)
                elif not isinstance(outcome, Slot):
                    if isinstance(outcome, PoolError):
                        pool._gate.step(self._fail, request, outcome, self._clock())
                    raise outcome
                elif outcome.state is IN_USE:
                    return self._begin(outcome, request, self._clock())
                elif outcome.state is CHECKING:
                    self._check(request, outcome, deadline)
                else:
                    self._connect(request, outcome, deadline)
        except BaseException as error:
            pool._gate.step(self._abandon, request, error, self._clock())
            pool._monitor.observed(self._clock() - request.since, error)
            raise

    def acquire_bare(self, timeout: float | Default | None) -> C:
        """See :meth:`poolkit.Pool.acquire`."""
        if (record := self.acquire(timeout, None)).capacity > 1:
            self.refuse_shared(record)
        connection: C = record.connection
        self._pool._leased[id(connection)] = record
        return connection

    def _wait(self, request: Request, parker: SyncParker, deadline: float) -> None:
        """Sleep until the caller is woken or times out."""
        left = deadline - self._clock()
        if left > 0:
            parker.wait(None if deadline == NEVER else left)
        if request.outcome is None and (longer := self.look_again(request, deadline)):
            parker.wait(longer)

    def _check(self, request: Request, slot: Slot, deadline: float) -> None:
        """The caller checks an idle connection in doubt before it uses it."""
        pool, began = self._pool, self._clock()
        left = deadline - began
        request.busy = True  # an interruption from here on leaves the connection in an unknown state
        error = pool._driver.check(slot, left, ask=left > 0)
        now = self._clock()
        request.checking += now - began
        pool._gate.step(lambda: pool._core.checked(slot, request, error, now, asked=left > 0))

    def _connect(self, request: Request, slot: Slot, deadline: float) -> None:
        """The caller connects itself, as its driver requires."""
        pool, began = self._pool, self._clock()
        limit = _within(pool._config.connect_timeout, _left(pool, request, deadline, began))
        try:
            opened = pool._driver.connect(slot, limit)
        except BaseException as error:
            pool._driver.connect_failed(pool._core, slot, error)
            raise
        request.connecting += self._clock() - began
        pool._gate.step(self._take_own, request, slot, opened)

    def _take_own(self, request: Request, slot: Slot, opened: Opened[C]) -> None:
        """Give a connection to the caller that has opened it, unless the pool has changed. Called under the lock."""
        request.outcome = None
        found = self._pool._driver.arrived(slot, opened, keep=True)
        if isinstance(found, BrokenContract):
            request.outcome = found
        elif found:
            request.outcome = slot
        else:
            self._pool._core.retry(request, self._clock())

    def give(self, record: Held | None, key: int, discard: bool, error: BaseException | None) -> None:
        """Return a connection; ``record`` is the lease under ``key``, None if there is none."""
        if record is None:
            self._pool._register.refuse(key)
            return
        now = self._clock()
        if self.plain_end and error is None and not discard and not record.reported:
            self._pool._gate.post(self._pool._core.give_back, record, now)
            return
        pool = self._pool
        self._note_given_up(record, error, now)
        if pool._config.use_histogram:
            pool._monitor.used.append(now - record.since)
        overdue = pool._register.overdue(record, error) if record.reported else None
        slot = record.slot
        try:
            verdict = self._verdict(discard, error)
            if pool._driver.operations.reset is not None and verdict is Verdict.KEEP and slot.leases == 1:
                verdict = pool._driver.reset(slot)
            else:
                slot.dirty = None  # it has other leases, or is discarded
        except BaseException:  # interrupted: the state of the connection is unknown
            pool._gate.post(pool._core.discard, record, now)
            raise
        self._end(record, verdict, error, now)
        if overdue is not None:
            raise overdue


class TaskSlowPath(SlowPath[C]):
    """The slow path of tasks: checks and resets run in tasks of the pool."""

    def __init__(self, pool: AsyncPool[C]) -> None:
        super().__init__(pool)
        self._pool = pool

    async def acquire(self, runtime: AsyncRuntime, timeout: float | Default | None, key: Hashable) -> Held:
        """Ask the core, and wait for a connection."""
        pool, clock = self._pool, self._clock
        gate, core = pool._gate, pool._core
        if gate.inbox:
            gate.run_posted()  # it may free the connection of a dropped lease
        now = clock()
        request = Request(pool._endpoint, now, runtime.caller())
        if core.classes is not None:
            request.caller_class = self.class_of_caller(core.classes)
        deadline = _in_block(pool, request, key, timeout, now) if BLOCKS else deadline_of(timeout, pool._config, now)
        parker = request.parker = runtime.parker()
        try:
            if key is None and not core.features.keyed:
                gate.step(core.acquire, request, now)
            else:
                gate.step(self._ask, request, key, now)
            while True:
                outcome = request.outcome
                if outcome is None:
                    await self._wait(request, parker, deadline)
                elif not isinstance(outcome, Slot):
                    if isinstance(outcome, PoolError):
                        pool._gate.step(self._fail, request, outcome, clock())
                    raise outcome
                elif outcome.state is IN_USE:
                    return self._begin(outcome, request, clock())
                elif outcome.state is CHECKING:
                    self._check(runtime, request, outcome, deadline)
                else:
                    await self._connect(runtime, request, outcome, deadline)
        except BaseException as error:
            if core is pool._core:  # otherwise the garbage collector ends a task of a parent process or a closed loop
                gate.step(self._abandon, request, error, clock())
                pool._monitor.observed(clock() - request.since, error)
            raise

    async def _wait(self, request: Request, parker: AsyncParker, deadline: float) -> None:
        """Sleep until the caller is woken or times out."""
        left = deadline - self._clock()
        if left > 0:
            await parker.wait(None if deadline == NEVER else left)
        if request.outcome is None and (longer := self.look_again(request, deadline)):
            await parker.wait(longer)

    def _check(self, runtime: AsyncRuntime, request: Request, slot: Slot, deadline: float) -> None:
        """Check an idle connection in doubt for a caller: in place if it asks the server nothing."""
        pool, operations = self._pool, self._pool._driver.operations
        left = deadline - self._clock()
        request.busy = True  # an exception from here leaves the connection in an unknown state
        error = operations.look(slot.connection)
        request.outcome = None  # from here on the check decides
        if error is not None or operations.check is None or left <= 0:
            now, asked = self._clock(), operations.check is None
            pool._gate.step(lambda: pool._core.checked(slot, request, error, now, asked=asked))
        else:
            runtime.spawn(pool._driver.check_job, slot, request)

    async def _connect(self, runtime: AsyncRuntime, request: Request, slot: Slot, deadline: float) -> None:
        """The caller connects itself, as its driver requires."""
        pool, began = self._pool, self._clock()
        left = _left(pool, request, deadline, began)
        core, request.outcome = pool._core, None
        limit = _within(pool._config.connect_timeout, left)
        bound = None if pool._driver.operations.bounds_connects else limit
        try:
            opened = await runtime.bounded(bound, pool._driver.connect, slot, limit)
        except BaseException as error:
            if core is pool._core:
                pool._driver.connect_failed(core, slot, error)
                _raise_late(pool, request, error, left, bound, self._clock() - began)
            raise
        now = self._clock()
        request.connecting += now - began
        found = pool._gate.step(lambda: pool._driver.arrived(slot, opened, keep=True))
        if isinstance(found, BrokenContract):
            raise found
        if found:
            request.outcome = slot
        else:
            pool._gate.step(pool._core.retry, request, now)

    async def give(self, record: Held | None, key: int, discard: bool, error: BaseException | None) -> None:
        """Return a connection, and wait for a reset if one is needed. ``record``: the lease under ``key``, or None."""
        if not self._must_reset(record, key, discard, error):
            return
        assert record is not None
        pool = self._pool
        overdue = pool._register.overdue(record, error) if record.reported else None
        runtime: Any = pool._runtime
        parker = runtime.parker()
        done: list[bool] = []
        runtime.spawn(pool._driver.reset_job, record, self._clock(), parker, done)
        while not done:  # if this task is cancelled meanwhile, the reset continues
            await parker.wait(None)
        if overdue is not None:
            raise overdue

    def give_nowait(
        self, record: Held | None, key: int, discard: bool, error: BaseException | None
    ) -> LeaseOverdue | None:
        """As :meth:`give`, without waiting for the reset. Returns the error of a lease that was held too long."""
        overdue = None if record is None or not record.reported else self._pool._register.overdue(record, error)
        if self._must_reset(record, key, discard, error, quiet=True):
            assert record is not None
            runtime: Any = self._pool._runtime
            runtime.spawn(self._pool._driver.reset_job, record, self._clock(), None, [])
        return overdue

    def _must_reset(
        self, record: Held | None, key: int, discard: bool, error: BaseException | None, *, quiet: bool = False
    ) -> bool:
        """End the lease, unless its connection has to be reset first. Returns whether it has to be.

        ``quiet``: do not raise the error of a lease that was held too long.
        """
        pool = self._pool
        if record is None:
            pool._register.refuse(key)
            return False
        slot, now = record.slot, self._clock()
        self._note_given_up(record, error, now)
        overdue = pool._register.overdue(record, error) if record.reported and not quiet else None
        if pool._config.use_histogram:
            pool._monitor.used.append(now - record.since)
        try:
            verdict = self._verdict(discard, error)
            if verdict is Verdict.KEEP and slot.leases == 1 and pool._driver.operations.is_dirty(slot):
                slot.move(RESETTING)
                return True
            slot.dirty = None  # others still use it, or it goes
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: needs_reset of connection %d failed: %s", pool.name, slot.id, describe(failure))
            verdict = Verdict.DISCARD
        except BaseException:  # interrupted: the state of the connection is unknown
            pool._gate.post(pool._core.discard, record, now)
            raise
        self._end(record, verdict, error, now)
        if overdue is not None:
            raise overdue
        return False
