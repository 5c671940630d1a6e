"""The I/O on a pool's connections: connect, peek, check, reset, close; in threads or in tasks."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._core import commands
from ._core.effects import Do
from ._core.endpoints import Endpoint
from ._core.machine import Core
from ._core.maintenance import pinged
from ._core.queue import Request
from ._core.slots import IN_USE, RESETTING, Held, Slot
from ._core.state import Phase
from ._deadline import current
from ._log import logger
from ._operations import BrokenContract, Operations, broken, returned
from .connector import Verdict
from .errors import PoolClosed, describe, name_missing_descriptor, name_own_thread, shown_again
from .policies.retire import NEVER, evictable_at
from .runtimes.base import AsyncParker, AsyncRuntime, Runtime

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("Attempt", "Attempts", "Driver", "Loops", "TaskDriver", "ThreadDriver", "refuse_closed")

C = TypeVar("C")
OnGiveUp = Callable[[Slot, BaseException | None], object]
"""Called with the error of a connect that was given up."""
Opened = tuple[C, int, bool]
"""A new connection, how many leases it serves at once, and whether the driver connects at its first use."""


def refuse_closed(pool: PoolBase[Any]) -> None:
    """Raise PoolClosed if the pool is closed."""
    phase = pool._core.phase
    if phase is not Phase.OPEN:
        raise PoolClosed(f"{pool.name}: the pool is {phase.value}")


class Driver(Generic[C]):
    """The common part of both drivers: it reports to the core how connects and closes ended."""

    runtime_survives_fork = True
    """Whether a forked child can continue with the runtime of its parent."""

    def __init__(self, pool: PoolBase[C], operations: Operations[C]) -> None:
        self._pool = pool
        self.operations = operations

    def arrived(self, slot: Slot, opened: Opened[C], *, keep: bool = False) -> BrokenContract | bool:
        """A connect succeeded, unless the connection belongs to another slot (see ``Opener.connected``). Called under
        the lock.
        """
        pool, operations = self._pool, self.operations
        core, now = pool._core, pool._clock()
        connection, capacity, lazy = opened
        twin = core.twin_of(connection)
        if twin is None:
            return core.connected(slot, connection, capacity, now, keep=keep, lazy=lazy)
        error = broken(
            operations.connector, operations.connect_method,
            f"returned {object.__repr__(connection)}, which is already connection {twin.id} of the pool",
            "it must return a new object each time",
        )  # fmt: skip
        core.connect_failed(slot, error, Verdict.FATAL, now)
        return error

    def connect_failed(self, core: Core, slot: Slot, error: BaseException) -> None:
        """Classify the error of a connect and report it to the core. The permit is free when nothing of the connection
        is left at the server.
        """
        pool, operations = self._pool, self.operations
        verdict, left = Verdict.DISCARD, None
        try:
            name_missing_descriptor(error)
            verdict = operations.verdict_of_connect(error, elastic=pool._config.autoscale is not None)
            if not pool._config.connect_in_caller and name_own_thread(error):
                verdict = Verdict.FATAL  # it would fail in every thread of the pool
            left = operations.left_by(error)
        finally:
            pool._gate.step(core.connect_failed, slot, error, verdict, pool._clock(), left is not None)
        if left is not None:
            left.add_done_callback(lambda _: self.closed(slot) if core is pool._core else None)

    def closed(self, slot: Slot) -> None:
        """Report to the core that the connection is closed."""
        pool = self._pool
        slot.connection = None
        pool._gate.post(pool._core.closed, slot)

    def abort(self, slot: Slot) -> None:
        """Abort a connection; its permit is free when nothing is left of it at the server."""
        pool = self._pool
        core, left = pool._core, False
        try:
            left = self.operations.abort(slot.connection)
        finally:
            if isinstance(left, bool):
                self.closed(slot)
        if not isinstance(left, bool):
            left.add_done_callback(lambda _: self.closed(slot) if core is pool._core else None)

    def asks_server(self, slot: Slot) -> bool:
        """Whether the check of an idle connection is due."""
        keepalive = self._pool._config.keepalive
        return self.operations.check is not None and (
            slot.fresh_until == 0.0 or (keepalive is not None and self._pool._clock() - slot.seen_at >= keepalive)
        )


class Attempt:
    """One connect in a background thread."""

    __slots__ = ("begun", "due", "ended", "error", "limit", "lingers", "on_give_up", "reported", "slot", "thread")

    def __init__(self, slot: Slot, limit: float | None, begun: float, on_give_up: OnGiveUp | None = None) -> None:
        self.slot = slot
        self.limit = limit
        self.begun = begun
        self.on_give_up = on_give_up
        self.due = NEVER  # when it is given up
        self.thread = threading.get_ident()
        self.error: TimeoutError | None = None  # it was given up
        self.ended = False  # it was given up, and the connector has ended it
        self.lingers = False  # it was given up, and keeps its place until its thread has returned
        # set when the core knows that it was given up. Until then its thread must not begin the next connect, which the
        # connector would give up in its place, and must not report that its place is free
        self.reported = threading.Event()


class Attempts:
    """The connects of one core in background threads: one that does not return in time is given up. Thread-safe.

    Python cannot end a thread. A function of the application that hangs in a connect would keep its place for ever.
    Whatever hangs once may hang each time, and each connect would leave one more thread behind. So no more than
    ``max_size`` threads go on while their places are free. Beyond that a place is free when its thread has returned.
    """

    def __init__(self, pool: PoolBase[Any], driver: ThreadDriver[Any]) -> None:
        self._pool = pool
        self.core = pool._core
        self._driver = driver
        self._running: dict[Attempt, bool] = {}  # the thread that removes an attempt reports its end
        self._astray: dict[Attempt, bool] = {}  # their threads go on although their places are free
        self._wakes = NEVER  # when the runtime calls run_due()
        self._swept = NEVER  # when the core is due instead, because no thread could be started for that call

    def begin(self, slot: Slot, limit: float | None, on_give_up: OnGiveUp | None) -> Attempt:
        """The calling thread is about to connect within ``limit`` seconds (None: no limit)."""
        attempt = Attempt(slot, limit, self._pool._clock(), on_give_up)
        bound = self._driver.operations.bound(attempt.thread, limit)
        attempt.due = NEVER if bound is None else attempt.begun + bound
        self._running[attempt] = True
        self.set_timer()
        return attempt

    def end(self, attempt: Attempt) -> bool:
        """The connect has returned. False: it had been given up; call :meth:`over` when nothing is left of it."""
        if self._running.pop(attempt, False):
            return True
        attempt.reported.wait()
        return False

    def over(self, attempt: Attempt, left: Any) -> None:
        """A connect that was given up has returned. ``left``: what is left of it at the server, None: nothing."""
        if left is not None:
            left.add_done_callback(lambda _: self.over(attempt, None))
        elif not attempt.lingers:
            self._astray.pop(attempt, None)
        elif self.core is self._pool._core:
            self._driver.closed(attempt.slot)

    def set_timer(self) -> None:
        """Have the runtime call :meth:`run_due` when the next one is due, unless it will."""
        due = min((attempt.due for attempt in self._running.copy()), default=NEVER)
        if due < self._wakes:
            self._wakes = due
            if self._driver.runtime.schedule(self, max(0.0, due - self._pool._clock())) is False:
                self._wakes = NEVER
                if due != self._swept:
                    self._swept = due
                    self._pool._gate.post(self.core.want_sweep, due)  # that leads to look_again()

    def look_again(self) -> None:
        """Do the work of :meth:`run_due` if the runtime will not call it, because no thread could be started."""
        if self._wakes == NEVER and self._running and self.core is self._pool._core:  # another one in a forked child
            self.run_due()

    def run_due(self) -> None:
        """Called by the runtime: give up what is overdue. Does not block."""
        self._wakes = NEVER
        now = self._pool._clock()
        late = [attempt for attempt in self._running.copy() if attempt.due <= now]
        if late:
            self._driver.keep_house(self._give_up, late, now)
        else:
            self.set_timer()

    def _give_up(self, late: list[Attempt], now: float) -> None:
        pool = self._pool
        given_up: list[Attempt] = []
        try:
            for attempt in late:
                self._give_up_if_late(attempt, now, given_up)
            self.set_timer()  # before listeners and log handlers, which may take their time
            if given_up and self.core is pool._core:
                pool._gate.step(self._report, given_up, now)
        finally:
            for attempt in given_up:
                attempt.reported.set()
                if attempt.on_give_up is not None:
                    attempt.on_give_up(attempt.slot, attempt.error)
        for attempt in given_up:
            place = "its place is free when it returns" if attempt.lingers else "its place is free"
            logger.warning(
                "%s: %s: it is given up; its thread goes on until it returns, and %s", pool.name, attempt.error, place
            )

    def _give_up_if_late(self, attempt: Attempt, now: float, given_up: list[Attempt]) -> None:
        if self._is_late(attempt, now) and self._running.pop(attempt, False):
            given_up.append(attempt)
            attempt.error = TimeoutError(f"the connect has not returned in {now - attempt.begun:.3g} s")
            attempt.ended = self._driver.operations.give_up(attempt.thread)

    def _is_late(self, attempt: Attempt, now: float) -> bool:
        """Ask again how long it may take, which may be known only by now; whether that time is over."""
        bound = self._driver.operations.bound(attempt.thread, attempt.limit)
        attempt.due = NEVER if bound is None else attempt.begun + bound
        return attempt.due <= now

    def _report(self, given_up: list[Attempt], now: float) -> None:
        """Report to the core that connects were given up. Called under the lock."""
        core = self.core
        for attempt in given_up:
            attempt.lingers = not attempt.ended or len(self._astray) >= core.size.limit
            if not attempt.lingers:
                self._astray[attempt] = True
            assert attempt.error is not None
            core.connect_failed(attempt.slot, attempt.error, Verdict.DISCARD, now, attempt.lingers)
            attempt.reported.set()  # here, because listeners run before the step returns


class Loops:
    """Connections that belong to event loops, of which several may use one pool. The parkers of callers know theirs."""

    def __init__(self, pool: PoolBase[Any]) -> None:
        self._pool = pool

    def arrives(self, request: Any) -> None:
        """A connection has been opened in the event loop of this caller, or of a caller in that loop if this one is
        served: it comes first. Called under the lock.
        """
        home, first = request.parker.home, request.endpoint.queue.first()
        if first is not None and first.parker.home is not home:
            _move_first(request.endpoint, home, (request,) if request.queued else request.endpoint.requests)

    def returns(self, home: object) -> None:
        """A connection of the event loop ``home`` is about to be returned.

        The oldest caller in that loop gets it. One in another loop would replace it, and does so only once it may close
        idle connections of others (``evictable_at``).
        """
        self._pool._gate.post(self._prefer, home)

    def _prefer(self, home: object) -> None:
        endpoint = self._pool._endpoint
        first: Any = endpoint.queue.first()
        if first is None or first.parker.home is home:
            return
        if self._pool._clock() < evictable_at(waiting_since=first.since):
            _move_first(endpoint, home, endpoint.requests)

    def replaced(self, connection: Any, began: float) -> None:
        """An adapter has replaced a leased connection in place, by a connect that began at ``began``. Count it."""
        self._pool._gate.step(self._count, connection, began)

    def _count(self, connection: Any, began: float) -> None:
        held = self._pool._leased.get(id(connection))  # None: the lease was taken away meanwhile
        if held is not None:
            commands.replaced(self._pool._core, held, began, self._pool._clock())


def _move_first(endpoint: Endpoint, home: object, callers: Iterable[Any]) -> None:
    """Put the first of these callers that waits in this event loop before all others."""
    here = next((one for one in callers if one.parker.home is home), None)
    if here is not None:
        endpoint.queue.move_first(here)


class ThreadDriver(Driver[C]):
    """Works in the calling thread, or in the background threads of a runtime."""

    _attempts: Attempts | None = None

    def __init__(self, pool: PoolBase[C], operations: Operations[C]) -> None:
        super().__init__(pool, operations)
        self.loops = Loops(pool)

    def _of_core(self) -> Attempts:
        """The connects for the pool's core. A forked child has another one, and none of its parent's threads."""
        attempts = self._attempts
        if attempts is None or attempts.core is not self._pool._core:
            attempts = self._attempts = Attempts(self._pool, self)
        return attempts

    @property
    def runtime(self) -> Runtime:
        """The runtime whose threads do background work."""
        runtime: Runtime = self._pool._runtime
        return runtime

    # -- in the calling thread or in the background -------------------------------------------------------------------

    def connect(self, slot: Slot, limit: float | None) -> Opened[C]:
        """Open a connection within ``limit`` seconds."""
        operations = self.operations
        connection: C
        if operations.connect_to is not None:
            connection = operations.connect_to(slot.endpoint.key, limit)
        else:
            connection = operations.connector.connect(limit)
        try:
            return operations.examine(connection)
        except BaseException as error:
            left = self._dispose(connection)
            if isinstance(error, BrokenContract):
                error.left = left
            raise

    def _dispose(self, connection: C) -> Any:
        """Close a new connection that the pool cannot use. Returns what is left of it at the server; None: nothing."""
        operations = self.operations
        left = connection is None or operations.abort(connection)
        if left is False and operations.close is not None:
            try:
                operations.close(connection)
            except Exception as failure:  # noqa: BLE001 - logged, and the connection is dropped
                logger.debug(
                    "%s: close of a connection failed, so it was dropped: %s", self._pool.name, describe(failure)
                )
        return None if isinstance(left, bool) else left

    def check(self, slot: Slot, left: float, *, ask: bool) -> Exception | None:
        """Examine an idle connection, and with ``ask`` also check it at the server within ``left`` seconds. Returns the
        error if it cannot be used.
        """
        operations = self.operations
        error = operations.look(slot.connection)
        if error is not None or not ask or operations.check is None:
            return error
        limit = self._pool._config.check_timeout
        limit = left if limit is None else min(limit, left)
        try:
            return operations.refused(operations.check(slot.connection, None if limit == NEVER else limit))
        except Exception as failure:  # noqa: BLE001  whatever it is, the connection is not alive
            return operations.dead(failure)

    def reset(self, slot: Slot) -> Verdict:
        """Reset a used connection in the returning thread. Returns whether it can be used again."""
        verdict = Verdict.DISCARD
        try:
            if self.operations.is_dirty(slot):
                slot.move(RESETTING)
                self.operations.reset(slot.connection)
                slot.move(IN_USE)
            verdict = Verdict.KEEP
        except Exception as failure:  # noqa: BLE001 - logged, and the connection is dropped
            logger.debug("%s: reset of connection %d failed: %s", self._pool.name, slot.id, describe(failure))
        return verdict

    # -- in the background --------------------------------------------------------------------------------------------

    def call_later(self, delay: float) -> bool | None:
        """See :class:`~poolkit._gate.Gate`."""
        arranged = self.runtime.schedule(self._pool._housekeeping, delay) is not False
        if self._attempts is not None:
            self._attempts.look_again()
        return arranged

    def wake(self) -> None:
        """Have the steps in the pool's inbox run soon."""
        self.runtime.nudge(self._pool._housekeeping)

    def keep_house(self, work: Callable[..., object], *args: Any) -> None:
        """Do housekeeping, which may close connections. It must not delay the calling thread."""
        if self.operations.close_in_caller:
            self.runtime.spawn(work, *args)  # closing here would delay a caller of another pool, or the timer thread
        else:
            work(*args)

    def deliver(self, step: Callable[[], object]) -> None:
        """Run a step soon. Called by a thread of another pool."""
        self.keep_house(self._pool._gate.post, step)

    def is_elsewhere(self) -> bool:
        """Whether only another thread may use the connections: never, with threads."""
        return False

    def start(self, do: Do, slot: Slot, request: Request | None = None) -> None:
        """Start the action that the core asks for. ``request``: the caller in whose context a connect runs, if any."""
        operations, spawn = self.operations, self.runtime.spawn
        if do is Do.CONNECT:
            if request is None or request.context is None:
                spawn(self.connect_job, slot)
            else:
                # a new thread starts with an empty context, a new task (of greenlets) with a copy of the current one
                context = request.context
                job: tuple[Any, ...] = self.connect_job, slot
                home = getattr(request.parker, "spawn", None)  # in the caller's event loop, if there are several
                if home is not None:
                    spawn, job = home, (*job, request)
                context.copy().run(spawn, context.copy().run, *job)
        elif do is Do.PING:
            spawn(self._ping_job, slot)
        elif operations.close is None or (do is Do.ABORT and operations.aborts is not None):
            self.abort(slot)
        elif operations.close_in_caller:
            self._close_job(slot)
        else:
            spawn(self._close_job, slot)

    def connect_job(
        self, slot: Slot, request: Request | None = None, on_give_up: OnGiveUp | None = None
    ) -> BaseException | None:
        """Open a connection for the first waiting caller. Returns the error if it failed.

        ``request``: the caller in whose event loop it is opened, if there are several loops. ``on_give_up(slot,
        error)``: called if the connect is given up, before it returns.
        """
        pool, attempts = self._pool, self._of_core()
        attempt = attempts.begin(slot, self.connect_limit(), on_give_up)
        try:
            refuse_closed(pool)  # the pool may have been closed since the core decided to connect
            opened = self.connect(slot, attempt.limit)
        except BaseException as error:  # noqa: BLE001  reported to the core
            if attempts.end(attempt):
                self.connect_failed(pool._core, slot, error)
                return error
            attempts.over(attempt, self.operations.left_by(error))
            return attempt.error
        if not attempts.end(attempt):
            attempts.over(attempt, self._dispose(opened[0]))
            return attempt.error
        found = pool._gate.step(self._arrived_in_loop, slot, opened, request)
        return found if isinstance(found, BrokenContract) else None

    def _arrived_in_loop(self, slot: Slot, opened: Opened[C], request: Any) -> BrokenContract | bool:
        """As :meth:`arrived`. ``request``: the caller in whose event loop it was opened, if there are several loops. A
        caller in another loop could not use it, so the first one in this loop comes before it.
        """
        if request is not None:
            self.loops.arrives(request)
        return self.arrived(slot, opened)

    def connect_limit(self) -> float | None:
        """Return the seconds for a connect that is not bounded by a caller's deadline. If no thread can be started and
        callers connect themselves, it is at most ``acquire_timeout`` and what is left of the caller's block.
        """
        config = self._pool._config
        limits = [config.connect_timeout]
        if self._pool._gate.alone:
            block = current()
            # more than 0, which means no limit to some drivers
            limits += [config.acquire_timeout, None if block is None else max(0.001, block.left())]
        return min((limit for limit in limits if limit is not None), default=None)

    def _close_job(self, slot: Slot) -> None:
        try:
            self.operations.close(slot.connection)
        except Exception as failure:  # noqa: BLE001 - logged, and the connection is dropped
            logger.debug("%s: close of connection %d failed: %s", self._pool.name, slot.id, describe(failure))
        finally:
            self.closed(slot)

    def _ping_job(self, slot: Slot) -> None:
        pool, ask = self._pool, self.asks_server(slot)
        error: Exception | None = ConnectionAbortedError("check interrupted")
        try:
            error = self.check(slot, NEVER, ask=ask)
        finally:
            pool._gate.step(pinged, pool._core, slot, error, ask, pool._clock())

    def name_of(self, holder: Hashable) -> str:
        """Return the name of a thread for messages."""
        return shown_again(self.runtime.name_of(holder))


def _loop_ends(pool: Any, error: BaseException) -> None:
    """If a connect was cancelled, its event loop ends. A pool that it has only created is to have no error then."""
    if not isinstance(error, (Exception, GeneratorExit)):  # GeneratorExit: in a finalizer, which must not take locks
        from ._binding import unbind_if_unused  # imported here, because it imports asyncio

        unbind_if_unused(pool)


class TaskDriver(Driver[C]):
    """Works in separate tasks, which the cancellation of a caller does not reach.

    An interrupted task reports to the core with which it started. If the pool has another core by then, the task does
    nothing: its connection belongs to the parent process or was closed with the loop. That happens in a forked child,
    and after the end of the loop, when the garbage collector ends suspended tasks.
    """

    runtime_survives_fork = False

    @property
    def runtime(self) -> Any:
        """The event loop; None before the first use, also in a forked child."""
        runtime: AsyncRuntime | None = self._pool._runtime
        return runtime

    # -- the event loop -----------------------------------------------------------------------------------------------

    def call_later(self, delay: float) -> bool | None:
        """See :class:`~poolkit._gate.Gate`."""
        if self.runtime is None:
            return None  # the gate asks again on the first use
        self.runtime.schedule(self._pool._housekeeping, delay)
        return True

    def wake(self) -> None:
        """Have the steps in the pool's inbox run soon."""
        if self.runtime is not None:
            self.runtime.nudge(self._pool._housekeeping)

    def keep_house(self, work: Callable[..., object], *args: Any) -> None:
        """Do housekeeping."""
        work(*args)

    def deliver(self, step: Callable[[], object]) -> None:
        """Run a step soon. Called by a thread of another pool."""
        gate = self._pool._gate
        if self.is_elsewhere():
            gate.inbox.append((step, ()))
            self.wake()
        else:
            gate.post(step)

    def is_elsewhere(self) -> bool:
        """Whether the connections belong to an event loop that runs in another thread, which alone may use them."""
        runtime = self.runtime
        return runtime is not None and not runtime.here() and bool(runtime.alive())

    def start(self, do: Do, slot: Slot, request: Request | None = None) -> None:
        """Start the action that the core asks for. ``request``: the caller in whose context a connect runs, if any."""
        runtime, operations = self.runtime, self.operations
        if runtime is None:
            return  # a forked child before its restart: all connections belong to the parent
        if do is Do.CONNECT:
            if request is None or request.context is None:
                runtime.spawn(self.connect_job, slot)
            else:
                # a copy: a context cannot be entered twice at once, and two connects may be for the same caller
                request.context.copy().run(runtime.spawn, self.connect_job, slot)
        elif do is Do.PING:
            runtime.spawn(self._ping_job, slot)
        elif operations.close is None or (do is Do.ABORT and operations.aborts is not None) or not runtime.alive():
            self.abort(slot)
        else:
            runtime.spawn(self._close_job, slot)

    async def _call(self, name: str, method: Callable[..., Any], *args: Any) -> Any:
        """Await ``method(*args)``. For a plain function, close the connection that it has opened and raise
        BrokenContract.
        """
        result = method(*args)
        if inspect.isawaitable(result):
            return await result
        error = broken(
            self.operations.connector, name, returned(result),
            "that of an AsyncConnector must be a coroutine (async def)",
        )  # fmt: skip
        if name in ("connect", "connect_to"):
            error.left = self._dispose(result)
        self.operations.complain(error)
        raise error

    async def _bounded(self, name: str, method: Any, *args: Any) -> Any:
        """Call :meth:`_call` within ``check_timeout``."""
        return await self.runtime.bounded(self._pool._config.check_timeout, self._call, name, method, *args)

    # -- connects -----------------------------------------------------------------------------------------------------

    async def connect(self, slot: Slot, limit: float | None) -> Opened[C]:
        """Open a connection."""
        operations = self.operations
        connection: C
        if operations.connect_to is not None:
            connection = await self._call("connect_to", operations.connect_to, slot.endpoint.key, limit)
        else:
            connection = await self._call("connect", operations.connector.connect, limit)
        try:
            return operations.examine(connection)
        except BaseException as error:
            left = self._dispose(connection)
            if isinstance(error, BrokenContract):
                error.left = left
            raise

    async def connect_job(self, slot: Slot) -> BaseException | None:
        """Open a connection for the first waiting caller. Returns the error if it failed."""
        pool = self._pool
        core, limit = pool._core, pool._config.connect_timeout
        if not core.slots.has(slot):
            return None  # the pool was bound to another loop before this job began
        try:
            refuse_closed(pool)  # the pool may have been closed since the core decided to connect
            bound = None if self.operations.bounds_connects else limit
            opened = await self.runtime.bounded(bound, self.connect, slot, limit)
        except BaseException as error:
            _loop_ends(pool, error)
            if core is pool._core:
                self.connect_failed(core, slot, error)
            if not isinstance(error, Exception):
                raise
            return error
        if core is not pool._core:  # the pool was bound to another loop
            self.operations.abort(opened[0])
            return None
        found = pool._gate.step(self.arrived, slot, opened)
        return found if isinstance(found, BrokenContract) else None

    # -- checks -------------------------------------------------------------------------------------------------------

    async def _ask_server(self, slot: Slot) -> Exception | None:
        operations, limit = self.operations, self._pool._config.check_timeout
        try:
            return operations.refused(await self._bounded("check", operations.check, slot.connection, limit))
        except Exception as error:  # noqa: BLE001  whatever it is, the connection is not alive
            return operations.dead(error)

    async def check_job(self, slot: Slot, request: Request) -> None:
        """Check a connection at the server, for the caller to which it is assigned."""
        pool = self._pool
        core = pool._core
        error: BaseException | None = ConnectionAbortedError("check interrupted")
        began = pool._clock()
        try:
            error = await self._ask_server(slot)
        finally:
            if core is pool._core:
                now = pool._clock()
                request.checking += now - began
                pool._gate.step(core.checked, slot, request, error, now)
                assert request.parker is not None
                request.parker.wake()

    async def _ping_job(self, slot: Slot) -> None:
        pool, ask = self._pool, self.asks_server(slot)
        core = pool._core
        error: BaseException | None = ConnectionAbortedError("check interrupted")
        try:
            error = self.operations.look(slot.connection)
            if error is None and ask:
                error = await self._ask_server(slot)
        finally:
            if core is pool._core:
                pool._gate.step(pinged, core, slot, error, ask, pool._clock())

    # -- reset and close ----------------------------------------------------------------------------------------------

    async def reset_job(self, record: Held, ended: float, parker: AsyncParker | None, done: list[bool]) -> None:
        """Reset a returned connection, then wake ``parker``."""
        pool, slot = self._pool, record.slot
        sound, core = False, pool._core
        try:
            await self._bounded("reset", self.operations.reset, slot.connection)
            sound = True
        except Exception as failure:  # noqa: BLE001 - logged, and the connection is dropped
            logger.debug("%s: reset of connection %d failed: %s", pool.name, slot.id, describe(failure))
        finally:
            if core is pool._core:
                if sound:
                    pool._gate.post(core.give_back, record, ended)
                else:
                    pool._gate.post(core.discard, record, ended, Verdict.DISCARD)
                done.append(sound)
                if parker is not None:
                    parker.wake()

    async def _close_job(self, slot: Slot) -> None:
        pool = self._pool
        closed, core = False, pool._core
        try:
            await self._bounded("close", self.operations.close, slot.connection)
            closed = True
        except Exception as failure:  # noqa: BLE001 - logged, and the connection is dropped
            logger.debug("%s: close of connection %d failed: %s", pool.name, slot.id, describe(failure))
        finally:
            if core is pool._core:
                if closed:
                    self.closed(slot)
                else:
                    self.abort(slot)

    def _dispose(self, connection: Any) -> Any:
        """Close a new connection that the pool cannot use. Returns what is left of it at the server; None: nothing."""
        operations = self.operations
        left = connection is None or operations.abort(connection)
        if left is False and operations.close is not None:
            self.runtime.spawn(self._close_unused, connection)
        return None if isinstance(left, bool) else left

    async def _close_unused(self, connection: Any) -> None:
        try:
            await self._bounded("close", self.operations.close, connection)
        except Exception as failure:  # noqa: BLE001 - logged, and the connection is dropped
            logger.debug("%s: close of a connection failed, so it was dropped: %s", self._pool.name, describe(failure))

    def name_of(self, holder: Hashable) -> str:
        """Return the name of a task for messages."""
        return "a task" if self.runtime is None else shown_again(self.runtime.name_of(holder))
