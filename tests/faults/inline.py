"""A runtime with one thread and virtual time: background jobs run while the caller sleeps, or as time passes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from poolkit.testing import ManualClock
from tests.faults.interrupts import spared

__all__ = ("InlineRuntime",)

Job = tuple[Callable[..., object], tuple[Any, ...]]


class InlineRuntime:
    """``Pool(..., runtime=runtime, clock=runtime.clock)``."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.jobs: deque[Job] = deque()
        self.timers: list[tuple[float, Any]] = []
        self.caller_id = 1

    def parker(self) -> _Parker:
        return _Parker(self)

    def spawn(self, job: Callable[..., object], *args: Any) -> None:
        self.jobs.append((job, args))

    def schedule(self, task: Any, delay: float) -> None:
        self.timers = [timer for timer in self.timers if timer[1] is not task]
        if delay != float("inf"):
            self.timers.append((self.clock.now + delay, task))

    def nudge(self, task: Any) -> None:
        self.spawn(task.run_inbox)

    def caller(self) -> int:
        return self.caller_id

    def name_of(self, caller: int) -> str:
        return f"caller {caller}"

    def run_jobs(self) -> None:
        """Run everything that other threads would do now. This code is not interrupted."""
        with spared():
            while self.jobs:
                job, args = self.jobs.popleft()
                job(*args)
                del job, args

    def until(self, woken: Callable[[], bool], deadline: float) -> None:
        """Let time pass and run what is due, until ``woken()`` or ``deadline``."""
        while True:
            self.run_jobs()
            if woken():
                return
            due = min([at for at, _ in self.timers], default=float("inf"))
            if min(due, deadline) == float("inf"):
                raise AssertionError("somebody sleeps for ever")
            self.clock.now = max(self.clock.now, min(due, deadline))
            if due > deadline:
                return
            ready = [timer for timer in self.timers if timer[0] <= self.clock.now]
            self.timers = [timer for timer in self.timers if timer[0] > self.clock.now]
            self.jobs.extend((task.run_due, ()) for _, task in ready)

    def pass_time(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.until(lambda: False, self.clock.now + seconds)


class _Parker:
    def __init__(self, runtime: InlineRuntime) -> None:
        self.runtime = runtime
        self.woken = False

    def wait(self, timeout: float | None) -> None:
        now = self.runtime.clock.now
        self.runtime.until(lambda: self.woken, float("inf") if timeout is None else now + timeout)
        self.woken = False

    def wake(self) -> None:
        self.woken = True
