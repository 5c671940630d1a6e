"""Threads: sleepers, background workers, and the one housekeeping thread of the process."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from .._log import logger
from ..policies.retire import NEVER
from .base import Inbox, Task
from .holders import ThreadHolder, name_of_thread, thread_caller

__all__ = ("ThreadParker", "ThreadRuntime")

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
    """One thread for all pools: sleeps until the next pool has something due, and ends when none has.

    Pools ask from anywhere, a finalizer in the middle of this very code included: they append to an inbox and
    wake the thread; there is no lock that they could wait for.
    """

    def __init__(self) -> None:
        self._inbox: deque[tuple[float, weakref.ref[Task]]] = deque()
        self._nudged: deque[weakref.ref[Inbox]] = deque()
        self._parker = ThreadParker()
        self._holder: dict[int, object] = {}  # filled as long as there is a thread, with what that one was given
        self._until = 0.0  # how long the thread sleeps
        # the rest is the thread's own
        self._due: list[tuple[float, int, int, weakref.ref[Task]]] = []  # when, number, id of the pool, pool
        self._valid: dict[int, int] = {}  # id of a pool to the number of its latest entry in _due
        self._numbers = 0

    def schedule(self, task: Task, delay: float) -> None:
        at = time.monotonic() + delay
        self._inbox.append((at, weakref.ref(task, self._forget)))
        if at == NEVER or sys.is_finalizing():
            self._parker.wake()
        elif not self._holder:
            self._start()
        elif at < self._until:
            self._parker.wake()

    def nudge(self, task: Inbox) -> None:
        self._nudged.append(weakref.ref(task))
        self._parker.wake()

    def _forget(self, ref: weakref.ref[Task]) -> None:
        self._parker.wake()  # a pool was collected: perhaps nothing is due any more

    def _start(self) -> None:
        me, thread = object(), None
        try:
            if self._holder.setdefault(0, me) is me:
                thread = threading.Thread(target=self._run, args=(me,), name="poolkit-housekeeping", daemon=True)
                thread.start()
        except BaseException as error:
            if self._holder.get(0) is me and (thread is None or not thread.is_alive()):
                del self._holder[0]  # interrupted: the next one who asks tries again
            if not isinstance(error, RuntimeError):  # the interpreter is shutting down: nothing will be due any more
                raise

    def _run(self, me: object) -> None:
        while self._holder.get(0) is me:
            self._until = 0.0  # awake: whoever asks now is seen below
            self._read_inbox()
            now = time.monotonic()
            for ref in self._take_due(now):
                self._visit(ref)
            while self._nudged:
                self._look_into(self._nudged.popleft())
            self._until = self._due[0][0] if self._due else now + LINGER
            if self._inbox or self._nudged:  # came between the two looks
                continue
            self._parker.wait(max(0.0, self._until - time.monotonic()))
            if not self._due and not self._inbox and not self._nudged and time.monotonic() >= self._until:
                del self._holder[0]
                if not self._inbox or self._holder.setdefault(0, me) is not me:
                    return

    def _read_inbox(self) -> None:
        while self._inbox:
            at, ref = self._inbox.popleft()
            task = ref()
            if task is not None:
                self._numbers += 1
                self._valid[id(task)] = self._numbers
                heappush(self._due, (at, self._numbers, id(task), ref))

    def _take_due(self, now: float) -> list[weakref.ref[Task]]:
        """What is due; what is out of date on the way there is dropped."""
        due = []
        while self._due:
            at, number, key, ref = self._due[0]
            latest = self._valid.get(key) == number
            if latest and at > now and at != NEVER and ref() is not None:
                break
            heappop(self._due)
            if latest:
                del self._valid[key]
                if at <= now:
                    due.append(ref)
        return due

    def _visit(self, ref: weakref.ref[Task]) -> None:
        task = ref()
        try:
            if task is not None:
                task.run_due()
        except BaseException:  # also a listener's SystemExit: this thread serves all pools
            logger.exception("poolkit: housekeeping failed")

    def _look_into(self, ref: weakref.ref[Inbox]) -> None:
        pool = ref()
        try:
            if pool is not None:
                pool.run_inbox()
        except BaseException:  # also a listener's SystemExit: this thread serves all pools
            logger.exception("poolkit: housekeeping failed")


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
        """Run ``job(*args)`` in a daemon thread; in this one if the interpreter lets no thread start any more.

        Nothing is begun once the interpreter goes down: the end of the process closes what is open, and a thread
        started then never runs, while ``Thread.start`` waits for it for ever (up to Python 3.11).
        """
        if sys.is_finalizing():
            return
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

    def nudge(self, task: Inbox) -> None:
        """Call ``task.run_inbox()`` in the housekeeping thread, if there is one."""
        _process.housekeeper.nudge(task)

    @property
    def caller(self) -> Callable[[], ThreadHolder]:
        """``caller()`` is the identity of the calling thread. A pool looks this up once, when it is made."""
        return thread_caller()

    def name_of(self, caller: Any) -> str:
        """The thread's name."""
        return name_of_thread(caller)
