"""Seeded simulation of a whole :class:`~poolkit.AsyncPool`: an event loop in virtual time that cancels at will.

Tasks are resumed in random order and cancelled at random suspensions, also in the moment between being woken and
going on: there a careless pool loses a connection. The same seed gives the same schedule.
"""

from __future__ import annotations

import gc
import itertools
import random
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from .._async import AsyncPool
from ..config import BackoffConfig
from ..connector import AsyncConnector
from ..errors import AcquireTimeout
from .clock import ManualClock
from .connectors import FakeConnection

__all__ = ("AsyncPoolSimulation", "Cancelled", "SimulatedLoop")

LONG = 1000.0  # seconds of virtual time that nobody waits unless he is forgotten


class Cancelled(BaseException):
    """What a cancelled task of a :class:`SimulatedLoop` finds raised where it sleeps."""


class _TimedOut(BaseException):
    """The limit of ``bounded`` has passed."""


class _Sleep:
    """One suspension: until ``ready()``, or until ``until`` of virtual time."""

    def __init__(self, ready: Callable[[], bool], until: float | None) -> None:
        self.ready = ready
        self.until = until

    def __await__(self) -> Generator[_Sleep, None, None]:
        yield self


class _Task:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        self.coroutine = coroutine
        self.name = name
        self.sleep: _Sleep | None = None
        self.limit: float | None = None
        self.cancelled = False
        self.done = False


class SimulatedLoop:
    """An event loop of its own and the runtime of the pools that live on it. One task runs at a time."""

    library = "simulated"

    def __init__(self, seed: int, *, limit: int = 100_000) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.clock = ManualClock()
        self.tasks: list[_Task] = []
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.current: _Task | None = None
        self.left = limit

    # -- for tasks ------------------------------------------------------------------------------------------------

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str = "") -> _Task:
        """Run a coroutine as a task."""
        task = _Task(coroutine, name or f"task-{len(self.tasks) + 1}")
        self.tasks.append(task)
        return task

    async def sleep(self, seconds: float) -> None:
        """Let virtual time pass; a suspension even for 0 seconds."""
        await _Sleep(lambda: False, self.clock.now + seconds)

    async def until(self, ready: Callable[[], bool]) -> None:
        """Sleep until ``ready()``."""
        await _Sleep(ready, None)

    def cancel(self, task: _Task) -> None:
        """Raise :class:`Cancelled` in ``task`` where it sleeps, even if it has been woken already."""
        if not task.done and task.sleep is not None:
            task.cancelled = True

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until every task has ended. Raises what a task raised, or AssertionError if they sleep for ever."""
        while True:
            self.tasks = [task for task in self.tasks if not task.done]
            if not self.tasks:
                return
            self.left -= 1
            assert self.left > 0, f"seed {self.seed}: no end"
            awake = [task for task in self.tasks if self._awake(task)]
            if awake:
                self._step(self.random.choice(awake))
            else:
                self._pass_time()

    def _awake(self, task: _Task) -> bool:
        sleep, now = task.sleep, self.clock.now
        if sleep is None or task.cancelled or sleep.ready():
            return True
        return (sleep.until is not None and now >= sleep.until) or (task.limit is not None and now >= task.limit)

    def _step(self, task: _Task) -> None:
        self.current = task
        late = task.limit is not None and self.clock.now >= task.limit
        try:
            if task.cancelled:
                task.cancelled = False
                task.sleep = task.coroutine.throw(Cancelled())
            elif late and task.sleep is not None and not task.sleep.ready():
                task.limit = None
                task.sleep = task.coroutine.throw(_TimedOut())
            else:
                task.sleep = task.coroutine.send(None)
        except (StopIteration, Cancelled):
            task.done = True
        finally:
            self.current = None

    def _pass_time(self) -> None:
        times = [task.sleep.until for task in self.tasks if task.sleep is not None and task.sleep.until is not None]
        times += [task.limit for task in self.tasks if task.limit is not None]
        times += [at for at, _ in self.timers]
        names = ", ".join(task.name for task in self.tasks)
        assert times, f"seed {self.seed}: {names} sleep for ever"
        self.clock.now = max(self.clock.now, min(times))
        due = [call for at, call in self.timers if at <= self.clock.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.clock.now]
        for call in due:
            call()

    # -- as the runtime of a pool ---------------------------------------------------------------------------------

    def here(self) -> bool:
        """Whether the calling code runs in this loop: there is no other."""
        return True

    def alive(self) -> bool:
        """Whether the loop can run tasks."""
        return True

    def parker(self) -> _Parker:
        """A place to sleep in virtual time."""
        return _Parker(self)

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a task of its own."""

        async def run() -> None:
            await job(*args)

        self.start(run(), getattr(job, "__name__", "job"))

    def schedule(self, task: Any, delay: float) -> None:
        """Call ``task.run_due()`` in virtual time."""
        if delay < float("inf"):
            self.timers.append((self.clock.now + delay, task.run_due))

    def nudge(self, task: Any) -> None:
        """Look into the pool's inbox soon."""
        self.timers.append((self.clock.now, task.run_inbox))

    async def bounded(self, timeout: float | None, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """``await call(*args)`` under a deadline, in a task of the pool's own."""
        task = self.current
        if timeout is None or task is None:
            return await call(*args)
        task.limit = self.clock.now + timeout
        try:
            return await call(*args)
        except _TimedOut:
            raise TimeoutError(f"no answer in {timeout:g} s") from None
        finally:
            task.limit = None

    def caller(self) -> int:
        """The running task."""
        return id(self.current)

    def name_of(self, caller: int) -> str:
        """Its name."""
        return next((task.name for task in self.tasks if id(task) == caller), "nobody")


class _Parker:
    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._woken = False

    async def wait(self, timeout: float | None) -> None:
        until = None if timeout is None else self._loop.clock.now + timeout
        await _Sleep(lambda: self._woken, until)
        self._woken = False

    def wake(self) -> None:
        self._woken = True


class _Server(AsyncConnector[FakeConnection]):
    """Slow, sometimes refusing, counting what it has open; knows which connection is in the middle of an exchange."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.numbers = itertools.count(1)
        self.live = self.max_live = 0
        self.open: set[int] = set()

    async def connect(self, timeout: float | None) -> FakeConnection:
        """Open a connection, be refused, or get no answer in time."""
        pick = self.loop.random
        await self.loop.sleep(pick.choice([0.0, 0.01, 0.1, 0.1, 20.0]))
        if pick.random() < 0.1:
            raise ConnectionRefusedError("simulated")
        self.live += 1
        self.max_live = max(self.max_live, self.live)
        return FakeConnection(next(self.numbers))

    async def close(self, connection: FakeConnection) -> None:
        """Close it, in its own time."""
        await self.loop.sleep(self.loop.random.choice([0.0, 0.01]))
        self.abort(connection)

    def abort(self, connection: FakeConnection) -> None:
        """Close it at once."""
        assert not connection.closed, f"{connection} was closed twice"
        connection.closed = True
        self.live -= 1


class _CheckingServer(_Server):
    """The same, with a check and a reset."""

    async def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Ask the server."""
        await self.loop.sleep(self.loop.random.choice([0.0, 0.01, 20.0]))
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Whether somebody left it dirty."""
        return connection.dirty

    async def reset(self, connection: FakeConnection) -> None:
        """Clean it."""
        await self.loop.sleep(self.loop.random.choice([0.0, 0.001]))
        connection.dirty = False


class AsyncPoolSimulation:
    """One random schedule over one random pool; ``AsyncPoolSimulation(seed).run()`` raises AssertionError or returns.

    The promises are those of :class:`~poolkit.testing.pool_simulation.PoolSimulation`; here callers are cancelled,
    too, at any suspension, and some drop their lease.
    """

    def __init__(self, seed: int) -> None:
        self.loop = loop = SimulatedLoop(seed)
        pick = loop.random
        self.server = pick.choice([_Server, _CheckingServer])(loop)
        self.server.connect_in_caller = pick.random() < 0.3
        self.pool: AsyncPool[FakeConnection] = AsyncPool(
            self.server,
            runtime=loop,
            clock=loop.clock,
            random=pick.random,
            max_size=pick.choice([1, 1, 2, 4]),
            min_size=pick.choice([0, 0, 1]),
            order=pick.choice(["lifo", "fifo"]),
            check_after_idle=pick.choice([0, 1, None]),
            barging_window=pick.choice([0.0, 0.001, 0.05]),
            idle_timeout=pick.choice([None, 0.5]),
            max_lifetime=pick.choice([None, 1.0]),
            backoff=BackoffConfig(base=0.01, cap=0.1),
            max_connecting=pick.choice([1, 16]),
            acquire_timeout=2 * LONG,
            connect_timeout=5,
        )
        self.held: set[int] = set()
        self.workers = [loop.start(self._work(), f"worker-{number}") for number in range(pick.randint(3, 10))]

    async def _use(self) -> None:
        pool, loop = self.pool, self.loop
        pick = loop.random
        begun = loop.clock.now
        try:
            lease = await pool.lease(timeout=pick.choice([0, 0.01, 0.05] + [LONG] * 6))
        except AcquireTimeout as error:
            if loop.clock.now - begun < LONG:
                return
            raise AssertionError(f"a caller was forgotten: {error}") from error
        except ConnectionRefusedError:
            return  # he connected by himself
        connection = lease.connection
        assert connection.number not in self.held, f"{connection} is in two hands"
        assert not connection.closed, f"{connection} was handed out after it was closed"
        assert not connection.dirty, f"{connection} was handed out dirty"
        self.held.add(connection.number)
        fault: BaseException | None = None
        try:
            if pick.random() < 0.8:
                await loop.sleep(pick.choice([0.0, 0.001, 0.02]))
        except Cancelled as error:
            fault = error  # in mid-exchange
        self.held.discard(connection.number)
        how = pick.random()
        if how < 0.05 and fault is None:
            del lease  # forgotten: found and reported
            return
        connection.alive = how > 0.2
        connection.dirty = how > 0.8 and isinstance(self.server, _CheckingServer)
        await lease.close(discard=how < 0.1, error=fault)
        if fault is not None:
            raise fault

    async def _work(self) -> None:
        for _ in range(self.loop.random.randint(3, 12)):
            try:
                await self._use()
            except Cancelled:
                pass  # and on to the next request, as a service does
            what = self.loop.random.random()
            if what < 0.05:
                self.pool.clear()
            elif what < 0.1:
                self.pool.suspend()
                self.pool.resume()
            elif what < 0.15:
                self.pool.reconfigure(max_size=self.loop.random.randint(1, 4))

    async def _cancel_some(self) -> None:
        pick = self.loop.random
        for _ in range(pick.randint(0, 60)):
            await self.loop.sleep(pick.choice([0.0, 0.0, 0.0005, 0.005, 0.05]))
            self.loop.cancel(pick.choice(self.workers))

    async def _finish(self) -> None:
        """When all callers are gone, the whole capacity is there; then close."""
        pool, loop = self.pool, self.loop
        await loop.until(lambda: all(worker.done for worker in self.workers))
        assert pool.config.max_size is not None
        got: list[FakeConnection] = []
        begun = loop.clock.now
        while len(got) < pool.config.max_size:
            assert loop.clock.now - begun < LONG, "the capacity did not come back"
            try:
                got.append(await pool.acquire(timeout=LONG))
            except OSError:
                pass  # he connected by himself and was refused, or had no answer
        assert len({connection.number for connection in got}) == len(got), "one connection twice"
        assert self.server.max_live <= 4, f"{self.server.max_live} connections at the server"
        for connection in got:
            await pool.release(connection)
        await pool.close()
        await loop.sleep(LONG)
        assert self.server.live == 0, f"{self.server.live} connections were left open"
        pool.check_books()
        # the audit heals what a bug loses: nothing of the kind may have been necessary
        assert pool._core.counts.reclaimed == 0, f"{pool._core.counts.reclaimed} connections were in nobody's hands"

    def run(self) -> None:
        """Run the schedule to its end."""
        self.loop.start(self._cancel_some(), "canceller")
        self.loop.start(self._finish(), "finish")
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # leases are dropped on purpose
            try:
                self.loop.run()
            except AssertionError as error:
                raise AssertionError(f"seed {self.loop.seed}: {error}") from error
