"""Threads stepped deterministically: real threads of which one runs at a time, switched between any two lines.

A seed decides at which lines of the engine the running thread is set aside and who goes on, and at which lines the
garbage collector runs the finalizers of what was dropped. Time is virtual: it moves when everybody sleeps. So a race
that needs two unlucky switches is found by trying seeds, and the seed replays it.

The schedule follows *probabilistic concurrency testing* (Burckhardt, Kothari, Musuvathi, Nagarakatte: "A Randomized
Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010): of those that can go on the one with the
highest priority does, and now and then the running one falls behind all others. So a thread that was set aside at a
bad moment stays there while the others get far, which switching at random hardly ever brings about.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import poolkit
from poolkit.runtimes.holders import name_of_task
from poolkit.testing.clock import ManualClock

from .async_loop import weakly
from .replay import Decisions

__all__ = ("Deadlock", "Interleaving", "SimulatedLock", "SimulatedRuntime")

_FREE = not getattr(sys, "_is_gil_enabled", lambda: True)()
_ENGINE = os.path.dirname(poolkit.__file__)
_STEPPED = tuple(os.path.join(_ENGINE, name) for name in (
    "_access.py", "_begin.py", "_core", "_driver.py", "_fast.py", "_gate.py", "_pool_base.py", "_register.py",
    "_slow_path.py", "_threads.py", os.path.join("telemetry", "_aside.py"),
))  # fmt: skip


class Deadlock(AssertionError):
    """Nobody can go on, and nothing will ever happen."""


class _Stop(BaseException):
    """Ends a simulated thread that is left over."""


class _Thread:
    """One simulated thread; ``ready`` says whether it can go on, ``deadline`` when it wakes up by itself."""

    def __init__(self, name: str, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.name = name
        self.call = call
        self.args = args
        self.go = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True
        self.deadline: float | None = None
        self.random = random.Random()
        self.priority = 0.0
        self.done = False
        self.gone = False  # it belongs to the parent process
        self.error: BaseException | None = None
        self.os_thread: threading.Thread | None = None


class Interleaving:
    """A schedule. Start threads with :meth:`spawn`, then :meth:`run`; errors of threads are raised from there.

    ``switch``: how often a line is one at which the running thread is set aside, if ``decisions`` are drawn and not
    given. ``streams``: each thread has random numbers of its own, so that it does the same when others do not.
    """

    def __init__(
        self, seed: int, *, switch: float = 0.02, limit: int = 200_000, decisions: Decisions | None = None,
        streams: bool = True,
    ) -> None:  # fmt: skip
        self._random = random.Random(seed)
        self._streams = streams
        self.decisions = decisions or Decisions()
        self._decide = self.decisions.make
        self.garbage: list[object] = []
        self.lines = 0
        self.seed = seed
        self.switch = switch
        self.limit = limit
        self.clock = ManualClock()
        self.threads: list[_Thread] = []
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.current: _Thread | None = None
        self._back = threading.Semaphore(0)
        self._stopping = False
        self._lowest = 0.0
        self._spawned = 0
        self.switches = 0

    # -- what the simulated threads use ---------------------------------------------------------------------------

    @property
    def random(self) -> random.Random:
        """The random numbers of the running thread."""
        return self.current.random if self._streams and self.current is not None else self._random

    def reseed(self, what: object) -> None:
        """The running thread begins something whose random numbers depend on nothing that went before."""
        if self._streams:
            self.random.seed(f"{self.seed} {what}")

    def chance(self) -> float:
        """A random number for a decision that a replay is given (see :class:`~tests.simulation.replay.Decisions`)."""
        return self._random.random()

    def spawn(self, call: Callable[..., object], *args: Any, name: str = "", seed: str = "") -> None:
        """Add a thread that runs ``call(*args)``."""
        thread = _Thread(name or f"thread-{self._spawned + 1}", call, args)
        thread.random.seed(f"{self.seed} {seed or self._spawned}")
        self._spawned += 1
        thread.priority = (thread.random if self._streams else self._random).random()
        self.threads.append(thread)
        thread.os_thread = threading.Thread(target=self._main, args=(thread,), daemon=True)
        thread.os_thread.start()

    def block(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Set the running thread aside until ``ready()`` or ``timeout`` seconds of virtual time have passed."""
        thread = self.current
        assert thread is not None
        thread.ready = ready
        thread.deadline = None if timeout is None else self.clock.now + timeout
        self._switch(thread)
        thread.ready, thread.deadline = (lambda: True), None

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass in the running thread."""
        until = self.clock.now + seconds
        self.block(lambda: self.clock.now >= until, seconds)

    def later(self, delay: float, call: Callable[[], object]) -> None:
        """Run ``call`` in a thread of its own after ``delay`` seconds."""
        self.timers.append((self.clock.now + delay, call))

    def drop(self, thing: object) -> None:
        """Nobody but the collector knows ``thing`` any more: it is finalized at some line, in whatever thread."""
        self.garbage.append(thing)

    def _finalize(self, count: int) -> None:
        """Finalize so many of the dropped things, the oldest first."""
        del self.garbage[:count]
        if _FREE:  # otherwise the thread that made a thing finalizes it, and that is set aside
            gc.collect()

    def fork(self) -> None:
        """From here on this is the forked child: of all threads only the running one is there.

        The others stay as they are, for ever, and so does what they have in their hands, as after ``os.fork()``.
        """
        thread = self.current
        assert thread is not None
        for other in self.threads:
            other.gone = other is not thread
        self.timers.clear()

    def _switch(self, thread: _Thread) -> None:
        if self._stopping:
            raise _Stop
        self._back.release()
        thread.go.acquire()
        if self._stopping:
            raise _Stop

    def _main(self, thread: _Thread) -> None:
        thread.go.acquire()
        try:
            if not self._stopping:
                sys.settrace(self._trace)
                thread.call(*thread.args)
        except _Stop:
            pass
        except BaseException as error:  # raised again in run()
            thread.error = error
        finally:
            sys.settrace(None)
            thread.call, thread.args = id, (None,)  # keep no pool alive
            thread.done = True
            self._back.release()

    def _trace(self, frame: Any, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_STEPPED):
            return None
        return self._line

    def _line(self, _frame: Any, event: str, _arg: Any) -> Any:
        thread = self.current
        if event == "line" and thread is not None and not self._stopping:
            self.lines += 1
            what = self._decide(self.lines, self._draw, "")
            if what == "collect":
                self._finalize(1)
            elif what:
                self._lowest -= 1.0
                thread.priority = self._lowest
                self._switch(thread)
        return self._line

    def _draw(self) -> str:
        if self._random.random() < self.switch:
            return "switch"
        return "collect" if self.garbage and self._random.random() < 0.02 else ""

    # -- the scheduler --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until every thread is done. Raises what a thread raised, or :class:`Deadlock`.

        The garbage collector rests meanwhile: it would run finalizers of the engine, and so switch threads, in the
        middle of the standard library's own critical sections, whose locks are real.
        """
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()
        try:
            while True:
                for thread in self.threads:
                    if thread.error is not None:
                        raise thread.error
                self.threads = [thread for thread in self.threads if not thread.done]
                alive = [thread for thread in self.threads if not thread.done and not thread.gone]
                if not alive:
                    return
                self.switches += 1
                if self.switches > self.limit:
                    raise Deadlock(f"seed {self.seed}: no end after {self.limit} switches")
                ready = [t for t in alive if t.ready() or (t.deadline is not None and self.clock.now >= t.deadline)]
                if ready:
                    self._resume(max(ready, key=lambda thread: thread.priority))
                elif self.garbage:
                    self._finalize(len(self.garbage))  # nobody waits for ever for a collection that does not come
                elif not self._advance(alive):
                    names = ", ".join(thread.name for thread in alive)
                    raise Deadlock(f"seed {self.seed}: {names} wait for ever")
        finally:
            self._stop()
            if collecting:
                gc.enable()

    def _resume(self, thread: _Thread) -> None:
        self.current = thread
        thread.go.release()
        self._back.acquire()
        self.current = None

    def _advance(self, alive: list[_Thread]) -> bool:
        """Everybody sleeps: move the clock to the next thing that happens."""
        times = [thread.deadline for thread in alive if thread.deadline is not None]
        times += [at for at, _ in self.timers]
        if not times:
            return False
        self.clock.now = max(self.clock.now, min(times))
        due = [timer for timer in self.timers if timer[0] <= self.clock.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.clock.now]
        for _, call in due:
            self.spawn(call, name="timer")
        return True

    def _stop(self) -> None:
        self._stopping = True
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None  # some stand in a finalizer
        try:
            for thread in self.threads:  # one after the other: their locks are none for threads that really run
                if not thread.done:
                    thread.go.release()
                if thread.os_thread is not None:
                    thread.os_thread.join(5)
        finally:
            sys.unraisablehook = hook


class SimulatedLock:
    """A lock for simulated threads: who finds it taken is set aside."""

    def __init__(self, interleaving: Interleaving) -> None:
        self._interleaving = interleaving
        self._taken = 0
        self._owner: object = None

    def _is_owned(self) -> bool:
        """Whether the running thread holds it, as of ``threading.RLock``."""
        return self._taken > 0 and self._owner is self._interleaving.current

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; not blocking: only if it is free."""
        while self._taken and not self._is_owned():
            if not blocking:
                return False
            self._interleaving.block(lambda: not self._taken)
        self._taken += 1
        self._owner = self._interleaving.current
        return True

    def release(self) -> None:
        """Let go of it."""
        self._taken -= 1

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class _Parker:
    def __init__(self, interleaving: Interleaving) -> None:
        self._interleaving = interleaving
        self._woken = False

    def wait(self, timeout: float | None) -> None:
        self._interleaving.block(lambda: self._woken, timeout)
        self._woken = False

    def wake(self) -> None:
        self._woken = True


class SimulatedRuntime:
    """The world of a pool under an :class:`Interleaving`: ``Pool(..., runtime=..., clock=interleaving.clock)``."""

    def __init__(self, interleaving: Interleaving) -> None:
        self._interleaving = interleaving
        self._due: weakref.WeakKeyDictionary[Any, tuple[float, Callable[[], object]]] = weakref.WeakKeyDictionary()

    def lock(self) -> SimulatedLock:
        """A lock whose waiting is simulated; put it in the place of a pool's own."""
        return SimulatedLock(self._interleaving)

    def parker(self) -> _Parker:
        """A place to sleep in virtual time."""
        return _Parker(self._interleaving)

    def spawn(self, job: Callable[..., object], *args: Any) -> None:
        """Run ``job`` in a simulated thread."""
        self._interleaving.spawn(job, *args, name=getattr(job, "__name__", "job"))

    def schedule(self, task: Any, delay: float) -> None:
        """Call ``task.run_due()`` in virtual time: once, at the earliest time that was asked for, unless the pool has
        been collected by then.
        """
        timers, at = self._interleaving.timers, self._interleaving.clock.now + delay
        pending = self._due.get(task)
        if pending is not None and pending in timers:
            if pending[0] <= at < float("inf"):
                return
            timers.remove(pending)
        if at < float("inf"):
            self._due[task] = timer = (at, weakly(task.run_due))
            timers.append(timer)

    def nudge(self, task: Any) -> None:
        """Look into the pool's inbox soon."""
        self._interleaving.later(0.0, weakly(task.run_inbox))

    def caller(self) -> Hashable:
        """The running simulated thread."""
        current = self._interleaving.current
        return 0 if current is None else weakref.ref(current)

    def name_of(self, caller: Any) -> str:
        """Its name."""
        return name_of_task(caller, lambda thread: (thread.name, thread.done))
