"""An event loop in virtual time: tasks are resumed in any order, cancelled at will, and the collector runs anywhere.

The loop is also the runtime of the pools that live on it.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable
from functools import partial
from typing import Any

from poolkit.runtimes.holders import name_of_task
from poolkit.testing.clock import ManualClock

from .replay import Decisions

__all__ = ("Cancelled", "CollectingLock", "SimulatedLoop", "weakly")

PATIENCE = 600.0
"""Virtual seconds after which there has been a real collection. What was dropped may be part of a cycle (a lease in the
traceback of an exception), and nobody is to be called forgotten who waits for just that."""


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
        self.random = random.Random()
        self.cancelled = False
        self.done = False


class SimulatedLoop:
    """An event loop of its own and the runtime of the pools that live on it. One task runs at a time.

    Each task has random numbers of its own, so that it does the same when others do not.
    """

    library = "simulated"

    def __init__(
        self, seed: int, *, limit: int = 100_000, decisions: Decisions | None = None, clock: ManualClock | None = None
    ) -> None:
        self.seed = seed
        self.decisions = decisions or Decisions()
        self.clock = clock or ManualClock()
        self.garbage: list[object] = []
        self.problems: list[Exception] = []  # that a finalizer has met
        self._random = random.Random(seed)
        self._turns = self._started = self._places = 0
        self.tasks: list[_Task] = []
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self._due: weakref.WeakKeyDictionary[Any, tuple[float, Callable[[], object]]] = weakref.WeakKeyDictionary()
        self.current: _Task | None = None
        self.left = limit
        self._collected_at = self.clock.now

    # -- for tasks ------------------------------------------------------------------------------------------------

    @property
    def random(self) -> random.Random:
        """The random numbers of the running task."""
        return self._random if self.current is None else self.current.random

    def reseed(self, what: object) -> None:
        """The running task begins something whose random numbers depend on nothing that went before."""
        self.random.seed(f"{self.seed} {what}")

    def chance(self) -> float:
        """A random number for a decision that a replay is given (see :class:`~tests.simulation.replay.Decisions`)."""
        return self._random.random()

    def fork(self) -> SimulatedLoop:
        """The loop of a forked child. The parent's tasks never go on there: the collector ends them some time."""
        child = SimulatedLoop(self.seed, limit=self.left, decisions=self.decisions, clock=self.clock)
        child._turns, child._places, child._started = self._turns, self._places, self._started
        child.garbage = [*self.garbage, *(task for task in self.tasks if task is not self.current and not task.done)]
        random.Random(self.seed).shuffle(child.garbage)
        return child

    def drop(self, thing: object) -> None:
        """Nobody but the collector knows ``thing`` any more: it is finalized at some point."""
        self.garbage.append(thing)

    def collect(self) -> None:
        """Perhaps the collector runs just now."""
        self._places += 1
        if self.garbage:
            now: bool = self.decisions.make(("collect", self._places), self._whether, False)
            if now:
                self._dispose(self.garbage.pop(0))

    def _whether(self) -> bool:
        return self.chance() < 0.2

    def _dispose(self, thing: object) -> None:
        """What the collector does with a task that nobody knows any more; all else ends with its last reference."""
        try:
            if isinstance(thing, _Task):
                thing.coroutine.close()
        except Exception as error:  # raised again in run(): not out of whatever goes on here
            self.problems.append(error)

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str = "") -> _Task:
        """Run a coroutine as a task."""
        self._started += 1
        task = _Task(coroutine, name or f"task-{self._started}")
        task.random.seed(f"{self.seed} {name} {self._started}")
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
            if self.problems:
                raise self.problems[0]
            self.tasks = [task for task in self.tasks if not task.done]
            if not self.tasks:
                return
            self.left -= 1
            assert self.left > 0, f"seed {self.seed}: no end"
            self.collect()
            awake = [task for task in self.tasks if self._awake(task)]
            if awake:
                self._turns += 1
                turn = self.decisions.make(("turn", self._turns), partial(self._pick, len(awake)), 0)
                self._step(awake[min(turn, len(awake) - 1)])
            elif self.garbage:
                while self.garbage:
                    self._dispose(self.garbage.pop(0))  # nobody waits for ever for a collection that does not come
            else:
                self._pass_time()

    def _pick(self, many: int) -> int:
        return int(self.chance() * many)

    def end(self) -> None:
        """Close whatever is left of the tasks, in an order that does not matter any more."""
        for task in self.tasks:
            try:
                task.coroutine.close()
            except Exception:  # after a failure; or of the parent's, in a child's core
                pass

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
        if self.clock.now - self._collected_at > PATIENCE:
            self._collected_at = self.clock.now
            gc.collect()
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

    running = alive

    def parker(self) -> _Parker:
        """A place to sleep in virtual time."""
        return _Parker(self)

    def spawn(self, job: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run ``await job(*args)`` in a task of its own."""

        async def run() -> None:
            await job(*args)

        self.start(run(), getattr(job, "__name__", "job"))

    def schedule(self, task: Any, delay: float) -> None:
        """Call ``task.run_due()`` in virtual time: once, at the earliest time that was asked for."""
        at = self.clock.now + delay
        if self.pending(task):
            if self._due[task][0] <= at < float("inf"):
                return
            self.timers.remove(self._due[task])
        if at < float("inf"):
            self._due[task] = timer = (at, weakly(task.run_due))
            self.timers.append(timer)

    def pending(self, task: Any) -> bool:
        """Whether ``task.run_due()`` will be called."""
        return self._due.get(task) in self.timers

    def nudge(self, task: Any) -> None:
        """Look into the pool's inbox soon."""
        self.timers.append((self.clock.now, weakly(task.run_inbox)))

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

    def caller(self) -> Hashable:
        """The running task."""
        return 0 if self.current is None else weakref.ref(self.current)

    def name_of(self, caller: Any) -> str:
        """Its name."""
        return name_of_task(caller, lambda task: (task.name, task.done))


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


class CollectingLock:
    """The lock of a pool whose loop is simulated: never waited for, but the collector may run while it is held."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._taken = 0

    def _is_owned(self) -> bool:
        """Whether it is held: there is but one thread."""
        return self._taken > 0

    def acquire(self, blocking: bool = True) -> bool:
        """Take it."""
        self._taken += 1
        self._loop.collect()
        return True

    def release(self) -> None:
        """Let go of it."""
        self._loop.collect()
        self._taken -= 1


def weakly(method: Callable[[], object]) -> Callable[[], None]:
    """Call a method of an object if that is still there."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        found = ref()
        if found is not None:
            found()

    return call
