"""Threads: sleepers, background workers, and the one housekeeping thread of the process."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from .base import Task

__all__ = ("ThreadParker", "ThreadRuntime")

logger = logging.getLogger("poolkit")

LINGER = 2.0
"""Seconds that a thread without work stays, so that a busy pool does not start one for each job."""


class ThreadParker:
    """A lock that is held from the start: waiting is acquiring it, waking is releasing it."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> None:
        """Sleep until woken or ``timeout`` seconds have passed."""
        self._lock.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Wake the sleeper. Takes no lock that anybody else can hold: safe in finalizers and signal handlers."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # awake already


class _Worker:
    """A daemon thread that runs jobs, one after the other, and leaves when there are none for a while."""

    __slots__ = ("_home", "_parker", "job")

    def __init__(self, home: deque[_Worker], job: tuple[Callable[..., object], tuple[Any, ...]]) -> None:
        self._home = home
        self._parker = ThreadParker()
        self.job: tuple[Callable[..., object], tuple[Any, ...]] | None = job

    def give(self, job: tuple[Callable[..., object], tuple[Any, ...]]) -> None:
        self.job = job
        self._parker.wake()

    def run(self) -> None:
        while self.job is not None:
            (call, args), self.job = self.job, None
            try:
                call(*args)
            except BaseException:
                logger.exception("poolkit: background job failed")
            del call, args  # keep no pool alive while idle
            self._home.append(self)
            self._parker.wait(LINGER)
            if self.job is None:
                try:
                    self._home.remove(self)
                except ValueError:  # somebody took it in this very moment and is about to give it a job
                    self._parker.wait(None)


class _Housekeeper:
    """One thread for all pools: sleeps until the next pool has something due, and ends when none has."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._parker = ThreadParker()
        self._due: list[tuple[float, int, weakref.ref[Task]]] = []
        self._numbers = 0
        self._running = False

    def schedule(self, task: Task, delay: float) -> None:
        at = time.monotonic() + delay
        with self._lock:
            self._numbers += 1
            first = not self._due or at < self._due[0][0]
            heappush(self._due, (at, self._numbers, weakref.ref(task)))
            start, self._running = not self._running, True
        if start:
            try:
                threading.Thread(target=self._run, name="poolkit-housekeeping", daemon=True).start()
            except RuntimeError:  # the interpreter is shutting down: nothing will be due any more
                self._running = False
        elif first:
            self._parker.wake()

    def _run(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                ready = []
                while self._due and (self._due[0][0] <= now or self._due[0][2]() is None):
                    ready.append(heappop(self._due)[2])
                pause = self._due[0][0] - now if self._due else LINGER
            for ref in ready:
                task = ref()
                if task is not None:
                    try:
                        task.run_due()
                    except Exception:
                        logger.exception("poolkit: housekeeping failed")
                    del task
            if ready:
                continue
            self._parker.wait(pause)
            with self._lock:
                if not self._due and time.monotonic() - now >= LINGER:
                    self._running = False
                    return


class _Process:
    """The threads of this process; a forked child begins with none."""

    def __init__(self) -> None:
        self.workers: deque[_Worker] = deque()
        self.housekeeper = _Housekeeper()


_process = _Process()


def _begin_anew() -> None:
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


class ThreadRuntime:
    """The world of :class:`~poolkit.Pool`. Stateless: one instance serves all pools."""

    def parker(self) -> ThreadParker:
        """A place to sleep for the calling thread."""
        return ThreadParker()

    def spawn(self, job: Callable[..., object], *args: Any) -> None:
        """Run ``job(*args)`` in a daemon thread; in this one if the interpreter lets no thread start any more."""
        try:
            _process.workers.pop().give((job, args))
            return
        except IndexError:
            pass
        worker = _Worker(_process.workers, (job, args))
        try:
            threading.Thread(target=worker.run, name="poolkit-worker", daemon=True).start()
        except RuntimeError:
            job(*args)

    def schedule(self, task: Task, delay: float) -> None:
        """Call ``task.run_due()`` in the housekeeping thread in ``delay`` seconds."""
        _process.housekeeper.schedule(task, delay)

    caller = staticmethod(get_ident)
    """The calling thread's identity."""

    def name_of(self, caller: int) -> str:
        """The thread's name."""
        for thread in threading.enumerate():
            if thread.ident == caller:
                return thread.name
        return f"thread {caller} (ended)"
