"""The pool for tasks, one text for asyncio and trio. Decisions are the core's.

No I/O on a connection ever runs in the task of a caller (unless the driver insists to connect there): checks,
connects, resets and closes run in tasks of the pool's own, under deadlines of their own, and a caller only sleeps
until they are done. So the cancellation of a caller can never hit a connection in mid-exchange.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, cast

from ._async_jobs import AsyncJobs
from ._core import commands
from ._core.contract import BrokenContract
from ._core.entry import CHECKING, IN_USE, RESETTING, Entry
from ._core.lease_record import Held
from ._core.state import Phase
from ._core.waiter import Waiter
from ._leases import AsyncLease, LeaseRequest, refuse_shared
from ._log import logger
from ._shell import DEFAULT, Default, deadline_of
from .config import PoolConfig
from .connector import AsyncConnector, Verdict, require_kind
from .errors import ConfigError, NotLeased, PoolError, UsageError, WrongLoop, describe
from .events import Listener
from .policies.retire import NEVER
from .runtimes import asyncio_
from .runtimes.base import AsyncParker, AsyncRuntime

__all__ = ("AsyncLease", "AsyncPool")

C = TypeVar("C")


def current_runtime(any_loop: bool = False) -> AsyncRuntime:
    """The event loop of the calling task; ``any_loop``: it and all others. Raises UsageError outside of one."""
    runtime: AsyncRuntime | None = asyncio_.current(any_loop)
    if runtime is None and "trio" in sys.modules:
        from .runtimes import trio_

        runtime = trio_.current()
    if runtime is None:
        raise UsageError("an AsyncPool needs a running event loop (asyncio or trio); use Pool in threads")
    return runtime


class AsyncPool(AsyncJobs[C]):
    """A pool for tasks, on asyncio or trio. Arguments as :class:`~poolkit.Pool`, ``connector`` is an
    :class:`~poolkit.AsyncConnector`.

    May be made outside an event loop; it lives on the loop of its first use. On a second loop it raises
    :class:`~poolkit.WrongLoop` while the first has not been closed; after that, the pool begins anew on the second with
    connections of its own. With a connector whose connections belong to no loop (``any_loop``), every asyncio loop may
    use the pool, several at once in threads of their own too.
    """

    def __init__(
        self,
        connector: AsyncConnector[C],
        config: PoolConfig | None = None,
        *,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        keyed: bool = False,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] | None = None,
        runtime: AsyncRuntime | None = None,
        **settings: Any,
    ) -> None:
        require_kind(connector, asynchronous=True)
        self._runtime = runtime
        self._any_loop = bool(getattr(connector, "any_loop", False))
        self._caller = (lambda: 0) if runtime is None else runtime.caller
        super().__init__(
            connector, config, settings,
            name=name, clock=clock, random=random, listeners=listeners, debug=debug, keyed=keyed,
        )  # fmt: skip

    def _here(self) -> AsyncRuntime:
        """The pool's event loop, which must be the caller's."""
        runtime = self._runtime
        if runtime is not None and runtime.here():
            return runtime
        new = current_runtime(self._any_loop)
        if runtime is None:
            self._runtime, self._caller = new, new.caller
            self._changed()
            if self._config.start == "eager" and not self._opens_later:
                self._gate.step(self._start)
            return new
        if runtime.alive():
            raise WrongLoop(
                f"{self.name}: this AsyncPool lives on another {runtime.library} event loop, which has not been "
                "closed; make one pool for each loop"
            )
        for entry in list(self._core.entries.values()):  # bound to the loop that is gone
            if entry.connection is not None:
                self._aborted(entry.connection)
        self._runtime, self._caller = new, new.caller
        self._begin_anew()
        return new

    def _after_fork(self) -> None:
        self._runtime = None  # the parent's loop does not run here
        super()._after_fork()

    def _start(self) -> None:
        self._core.started = True  # from now on min_size is kept

    # -- leases ---------------------------------------------------------------------------------------------------

    async def acquire(self, timeout: float | Default | None = DEFAULT) -> C:
        """A connection, to be given back with :meth:`release`. See :meth:`poolkit.Pool.acquire`."""
        runtime = self._runtime
        if runtime is None or not runtime.here():
            runtime = self._here()
        record: Held | None = self._take()
        if record is None:
            record = await self._acquire(runtime, timeout, None)
            if record.capacity > 1:
                refuse_shared(self, record)
        connection: C = record.connection
        self._leased[id(connection)] = record
        return connection

    async def release(self, connection: C, discard: bool = False, error: BaseException | None = None) -> None:
        """Give back what :meth:`acquire` gave; waits for a reset, if one is due. See :meth:`poolkit.Pool.release`.

        The connection is back in the pool's hands when this is called: a cancellation cannot undo that.
        """
        await self._give(id(connection), discard, error)

    def release_nowait(self, connection: C, discard: bool = False, error: BaseException | None = None) -> None:
        """As :meth:`release` without waiting for the reset. Callable from finalizers and from any thread."""
        self._give_nowait(id(connection), discard, error)

    def lease(self, timeout: float | Default | None = DEFAULT, key: Hashable = None) -> LeaseRequest[C]:
        """``async with pool.lease() as connection: ...`` or ``lease = await pool.lease()``."""
        return LeaseRequest(self, timeout, key)

    async def _lease_of(self, timeout: float | Default | None, key: Hashable) -> AsyncLease[C]:
        runtime = self._runtime
        if runtime is None or not runtime.here():
            runtime = self._here()
        lease = AsyncLease(self)
        record: Held | None = self._take() if key is None else self._take_at(key)
        if record is None:
            record = await self._acquire(runtime, timeout, key)
        lease.connection = record.connection
        lease.since = record.since
        self._leased[id(lease)] = record
        lease._record = record
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

    async def _give(self, key: int, discard: bool, error: BaseException | None) -> None:
        record = self._begin_give(key, discard, error)
        if record is None:
            return
        overdue = self._overdue(record, error) if record.reported else None
        runtime = cast("AsyncRuntime", self._runtime)
        parker = runtime.parker()
        done: list[bool] = []
        runtime.spawn(self._reset_job, record, self._clock(), parker, done)
        while not done:  # if this task is cancelled meanwhile, the reset goes on without it
            await parker.wait(None)
        if overdue is not None:
            raise overdue

    def _give_nowait(self, key: int, discard: bool, error: BaseException | None) -> None:
        record = self._begin_give(key, discard, error, quiet=True)
        if record is not None:
            cast("AsyncRuntime", self._runtime).spawn(self._reset_job, record, self._clock(), None, [])

    def _begin_give(self, key: int, discard: bool, error: BaseException | None, quiet: bool = False) -> Held | None:
        """End the lease; the lease if its connection has to be reset before anybody else gets it.

        ``quiet``: raise nothing about a lease that lasted too long.
        """
        record = self._leased.pop(key, None)
        if record is None:
            self._refuse_release(key)
            return None
        if not discard and error is None and self._put(record):
            return None
        entry = record.slot
        now = self._clock()
        overdue = self._overdue(record, error) if record.reported and not quiet else None
        if self._config.use_histogram:
            self._used.append(now - record.since)
        try:
            verdict = self._fate(discard, error)
            if verdict is Verdict.KEEP and entry.leases == 1 and self._dirty(entry):
                entry.move(RESETTING)
                return record
            entry.dirty = None  # others still use it, or it goes
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: needs_reset of connection %d failed: %s", self.name, entry.id, describe(failure))
            verdict = Verdict.DISCARD
        except BaseException:  # interrupted: the state of the connection is unknown
            self._gate.post(self._core.discard, record, now)
            raise
        if verdict is Verdict.KEEP:
            self._gate.post(self._core.give_back, record, now)
        else:
            self._gate.post(self._core.discard, record, now, verdict, error)
        if overdue is not None:
            raise overdue
        return None

    # -- the long way ---------------------------------------------------------------------------------------------

    async def _acquire(self, runtime: AsyncRuntime, timeout: float | Default | None, key: Hashable) -> Held:
        if self._gate.inbox:
            self._gate.run_posted()  # a dropped lease may be just what is missing
        core, now = self._core, self._clock()
        deadline = deadline_of(timeout, self._config, now)
        waiter = Waiter(self._lane, now, runtime.caller())
        if core.classes is not None:
            waiter.caller_class = self._class_of_caller(core.classes)
        parker = runtime.parker()
        waiter.parker = parker
        try:
            if key is None and not self._features.keyed:
                self._gate.step(core.acquire, waiter, now)
            else:
                self._gate.step(self._ask, waiter, key, now)
            while True:
                outcome = waiter.outcome
                if outcome is None:
                    await self._wait(waiter, parker, deadline)
                elif not isinstance(outcome, Entry):
                    if isinstance(outcome, PoolError):
                        self._gate.step(self._fail, waiter, outcome, self._clock())
                    raise outcome
                elif outcome.state is IN_USE:
                    return self._mark(outcome, waiter, self._clock())
                elif outcome.state is CHECKING:
                    self._check_for(runtime, waiter, outcome, deadline)
                else:
                    await self._connect_for(waiter, outcome, deadline)
        except BaseException as error:
            if core is self._core:  # else the collector ends a task of a parent process or of a loop that is gone
                self._gate.step(self._abandon, waiter, error, self._clock())
                self._observed(self._clock() - waiter.since, error)
            raise

    def _ask(self, waiter: Waiter, key: Hashable, now: float) -> None:
        if self._features.keyed:
            waiter.lane = self._lane_of(key)
        elif key is not None:
            raise ConfigError(f"{self.name}: lease(key={key!r}): only a pool made with keyed=True has keys", "key")
        self._core.acquire(waiter, now)

    async def _wait(self, waiter: Waiter, parker: AsyncParker, deadline: float) -> None:
        left = deadline - self._clock()
        if left > 0:
            await parker.wait(None if deadline == NEVER else left)
        if waiter.outcome is None:
            now = self._clock()
            if now < deadline:
                self._gate.step(self._core.look, waiter, now)
                return
            error = self._gate.step(self._expire, waiter, now)
            if error is not None:
                raise error

    def _check_for(self, runtime: AsyncRuntime, waiter: Waiter, entry: Entry, deadline: float) -> None:
        """Check an idle connection in doubt for a caller: in place if it asks the server nothing."""
        left = deadline - self._clock()
        waiter.busy = True  # an exception from here leaves the connection in an unknown state
        error = self._peek(entry)
        waiter.outcome = None  # from here on the check decides
        if error is not None or self._check_method is None or left <= 0:
            now, asked = self._clock(), self._check_method is None
            self._gate.step(lambda: self._core.checked(entry, waiter, error, now, asked=asked))
        else:
            runtime.spawn(self._check_job, entry, waiter)

    async def _connect_for(self, waiter: Waiter, entry: Entry, deadline: float) -> None:
        """The caller connects itself, as its driver requires."""
        limit = self._config.connect_timeout
        began = self._clock()
        left = deadline - began
        if 0 < left < (limit or NEVER):
            limit = left
        core, waiter.outcome = self._core, None
        try:
            opened = await self._connect(entry, limit)
        except BaseException as error:
            if core is self._core:
                self._connect_failed(core, entry, error)
            raise
        now = self._clock()
        waiter.connecting += now - began
        found = self._gate.step(lambda: self._arrived(entry, opened, keep=True))
        if isinstance(found, BrokenContract):
            raise found
        if found:
            waiter.outcome = entry
        else:
            self._gate.step(self._core.retry, waiter, now)

    # -- the pool as a whole --------------------------------------------------------------------------------------

    async def warm_up(self, count: int | None = None, *, timeout: float | None = None) -> None:
        """Open connections until ``count`` exist (None: ``min_size``). See :meth:`poolkit.Pool.warm_up`."""
        count = self._warm_up_count(count)
        runtime = self._here()
        entries = self._gate.step(commands.reserve, self._core, count, self._clock())
        if not entries:
            return
        pending, errors = list(reversed(entries)), list[BaseException]()
        left = len(entries)
        parker = runtime.parker()

        async def work() -> None:
            nonlocal left
            while pending:
                error: BaseException | None = None
                try:
                    error = await self._connect_job(pending.pop())
                except BaseException as interrupted:
                    error = interrupted
                    raise
                finally:
                    left -= 1
                    if error is not None:
                        errors.append(error)
                    parker.wake()

        for _ in range(min(len(entries), self._core.max_connecting)):
            runtime.spawn(work)
        deadline = deadline_of(timeout, self._config, self._clock())
        while left and (rest := deadline - self._clock()) > 0:
            await parker.wait(None if deadline == NEVER else rest)
        if errors or left:
            raise self._warm_up_error(len(entries), errors, left)

    async def drain(self, timeout: float | None = 30.0) -> bool:
        """Stop admitting, let leases end, abort the rest, close. See :meth:`poolkit.Pool.drain`."""
        return await self._shut(Phase.DRAINING, timeout)

    async def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool: it is closed when this is called, even if the wait is cancelled.
        See :meth:`poolkit.Pool.close`.
        """
        await self._shut(Phase.CLOSED, timeout)

    async def _shut(self, phase: Phase, timeout: float | None) -> bool:
        deadline = deadline_of(timeout, self._config, self._clock())
        runtime = self._runtime
        if runtime is not None and runtime.alive():
            runtime = self._here()
        self._gate.step(commands.shut, self._core, phase, self._clock())
        self._changed()
        core = self._core
        if runtime is not None and runtime.here():
            runtime.schedule(self, NEVER)  # nothing is due any more
            parker = runtime.parker()
            core.watchers.append(parker)
            try:
                while core.entries if phase is Phase.DRAINING else core.closing:
                    left = deadline - self._clock()
                    if left <= 0:
                        break
                    await parker.wait(None if deadline == NEVER else left)
            finally:
                core.watchers.remove(parker)
        if phase is Phase.CLOSED:
            return True
        aborted = self._gate.step(commands.abort_leased, core, self._clock())
        self._gate.step(commands.shut, core, Phase.CLOSED, self._clock())
        return not aborted

    async def __aenter__(self) -> AsyncPool[C]:
        self._refuse_closed()
        self._here()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
