"""The runtime for threads: parkers, background workers, and the housekeeping thread of the process."""

from __future__ import annotations

import _thread
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from heapq import heapify, heappop, heappush
from typing import Any

from .._log import logger
from ..policies.members import members
from ..policies.retire import NEVER
from .base import Inbox, Task
from .fork import Stage, after_fork
from .holders import ThreadHolder, name_of_thread, thread_caller

__all__ = ("ThreadParker", "ThreadRuntime")

LINGER = 2.0
"""Seconds that an idle thread is kept, so that a busy pool does not start a thread for each job."""
NAP = 0.05
"""Seconds that a caller sleeps at a time while no housekeeping thread can be started; in between it does that work."""
FEW = 64
"""Entries of the housekeeper's heap below which no clean-up is made."""

_REFUSED = (RuntimeError, MemoryError)  # what Thread() and Thread.start() raise where no thread can be started


class ThreadParker:
    """A lock that is held from the start: a wait acquires it, a wake releases it.

    The lock class is looked up here and not at import, because gevent may have replaced it since then.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> None:
        """Sleep until woken or ``timeout`` seconds have passed; less where no thread does the housekeeping."""
        if _process.housekeeper.alone and (timeout is None or timeout > NAP):
            timeout = NAP
        self._lock.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Wake the sleeper. Takes no lock that another thread can hold, so it is safe in finalizers and signal
        handlers.
        """
        try:
            self._lock.release()
        except RuntimeError:
            pass  # awake already


class _Worker:
    """A daemon thread that runs jobs one after the other and ends when there are none for a while."""

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
                except ValueError:  # another thread took this worker at the same moment and is about to give it a job
                    while self.job is None:
                        self._parker.wait(None)


_Entry = tuple[float, int, int, "weakref.ref[Task]"]  # when, number, id of the pool, pool


class _Housekeeper:
    """One thread for all pools: it sleeps until the next timed work of a pool, and ends when there is none.

    Pools may ask at any point, even in a finalizer in the middle of this code. They append to an inbox and wake the
    thread, without a lock that they could wait for.
    """

    def __init__(self) -> None:
        self.alone = False  # no thread could be started: callers do its work
        self._inbox: deque[tuple[float, weakref.ref[Task]]] = deque()
        self._nudged: dict[int, weakref.ref[Inbox]] = {}  # by id: one entry for a pool, however often it asks
        self._parker = ThreadParker()
        self._holder: dict[int, object] = {}  # requests for the thread; empty if there is none
        self._until = 0.0  # how long the thread sleeps
        # the following belong to the thread
        self._due: list[_Entry] = []  # a heap; some entries are out of date
        self._latest: dict[int, _Entry] = {}  # id of a pool to its entry in _due that counts
        self._numbers = 0
        self._many = FEW  # entries in _due from which on those that are out of date are removed

    def schedule(self, task: Task, delay: float) -> bool:
        """See :meth:`ThreadRuntime.schedule`."""
        at = time.monotonic() + delay
        self._inbox.append((at, weakref.ref(task, self._forget)))
        if at == NEVER or sys.is_finalizing():
            self._parker.wake()
        elif not self._holder:
            return self._start(task)
        elif at < self._until:
            self._parker.wake()
        return True

    def nudge(self, task: Inbox) -> None:
        self._nudged[id(task)] = weakref.ref(task)
        self._parker.wake()

    def adopt(self, old: _Housekeeper) -> None:
        """Take over the requests of an earlier housekeeper."""
        now = time.monotonic()
        for at, ref in [*members(old._inbox), *((entry[0], entry[3]) for entry in old._latest.copy().values())]:
            task = ref()
            if task is not None and not self.schedule(task, at - now):
                self._visit(ref)  # it notices that there is no thread

    def _forget(self, ref: weakref.ref[Task]) -> None:
        self._parker.wake()  # a pool was collected, so perhaps no work is due

    def _start(self, task: Task) -> bool:
        """Start the thread. Returns False if that is refused; then the inbox is emptied, because no thread reads it."""
        me, thread = object(), None
        try:
            if self._holder.setdefault(0, me) is me:
                thread = threading.Thread(target=self._run, args=(me,), name="poolkit-housekeeping", daemon=True)
                thread.start()
                self.alone = False
        except BaseException as error:
            if self._holder.get(0) is me and (thread is None or not thread.is_alive()):
                del self._holder[0]  # interrupted: the next request tries again
            if not isinstance(error, _REFUSED):
                raise
            self.alone = True
            _refused(error)
            self._hand_back(task)
            return False
        return True

    def _hand_back(self, task: Task) -> None:
        """Tell the other pools that asked while ``task`` tried to start the thread that there is none.

        The inbox is emptied first: a pool that is told asks again, and must not find the requests of the others there,
        or each would tell the other without end.
        """
        others: deque[tuple[float, weakref.ref[Task]]] = deque()
        try:
            self._move_requests(task, others)
            self._tell(others)
        finally:
            self._inbox.extend(others)  # interrupted: the next request tells them

    def _move_requests(self, task: Task, others: deque[tuple[float, weakref.ref[Task]]]) -> None:
        """An interruption may leave a request in both deques: it is read twice then, and never lost."""
        for request in members(self._inbox):
            if request[1]() is not task:
                others.append(request)
            with suppress(ValueError):  # another thread does the same
                self._inbox.remove(request)

    def _tell(self, others: deque[tuple[float, weakref.ref[Task]]]) -> None:
        while others:
            self._visit(others[0][1])
            others.popleft()

    def _run(self, me: object) -> None:
        try:
            while True:
                if self._holder.get(0) is not me or _outdated():
                    break
                self._work_once(me)
        finally:
            if self._holder.get(0) is me:  # it was interrupted: otherwise no other thread would ever be started
                del self._holder[0]

    def _work_once(self, me: object) -> None:
        """Do what is due and wait. If nothing came for a while, give up the holder's place, which ends the thread."""
        self._until = 0.0  # awake: a request that comes now is seen below
        self._read_inbox()
        now = time.monotonic()
        for ref in self._take_due(now):
            self._visit(ref)
        while self._nudged:
            self._look_into(self._nudged.popitem()[1])
        self._until = self._due[0][0] if self._due else now + LINGER
        if self._inbox or self._nudged:  # came between the two looks
            return
        self._parker.wait(max(0.0, self._until - time.monotonic()))
        if not self._due and not self._inbox and not self._nudged and time.monotonic() >= self._until:
            del self._holder[0]
            if self._inbox or self._nudged:
                self._holder.setdefault(0, me)

    def _read_inbox(self) -> None:
        while self._inbox:
            try:
                at, ref = self._inbox.popleft()
            except IndexError:
                break  # a thread that could not start another housekeeper has taken it: see _hand_back()
            task = ref()
            if task is None:
                continue
            key = id(task)
            latest = self._latest.get(key)
            if at == NEVER:
                self._latest.pop(key, None)
            elif latest is None or at < latest[0] or latest[3]() is not task:  # last, because Python reuses ids
                self._numbers += 1
                self._latest[key] = entry = (at, self._numbers, key, ref)
                heappush(self._due, entry)
        if len(self._due) > self._many:
            self._tidy()

    def _tidy(self) -> None:
        """Remove outdated entries. Otherwise each short queue of a busy pool would leave an entry here until its time,
        perhaps for half an hour. Each pool that is gone would leave one as long as another pool is in use.
        """
        self._due = [entry for entry in self._due if self._latest.get(entry[2]) is entry and entry[3]() is not None]
        self._latest = {entry[2]: entry for entry in self._due}
        heapify(self._due)
        self._many = max(FEW, 2 * len(self._due))

    def _take_due(self, now: float) -> list[weakref.ref[Task]]:
        """The entries that are due; outdated ones before them are dropped."""
        due = []
        while self._due:
            entry = self._due[0]
            at, _, key, ref = entry
            latest = self._latest.get(key) is entry
            if latest and at > now and ref() is not None:
                break
            heappop(self._due)
            if latest:
                del self._latest[key]
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
    """The threads of this process; a forked child starts with none."""

    def __init__(self) -> None:
        self.made_with = _thread.allocate_lock
        self.told: dict[int, object] = {}  # not empty: it was logged that no thread can be started
        self.workers: deque[_Worker] = deque()
        self.housekeeper = _Housekeeper()


_process = _Process()


def _restart() -> None:
    global _process
    _process = _Process()


after_fork(Stage.RUNTIME, _restart)


def _refused(error: BaseException) -> None:
    """Log once per process that no thread can be started."""
    me = object()  # several threads may fail at once
    if "shutdown" not in str(error) and _process.told.setdefault(0, me) is me:  # expected at the end of the process
        logger.warning(
            "poolkit: no thread can be started (%s: %s): until one can, the callers of the pools connect, "
            "close and do the housekeeping themselves",
            type(error).__name__, error,
        )  # fmt: skip


def _outdated() -> bool:
    """Whether gevent has replaced the locks since the threads of this process began."""
    return _process.made_with is not _thread.allocate_lock


def _current() -> _Process:
    """The threads of this process. If gevent has patched the locks since they started, new ones are created: the old
    ones would block the one thread in which all greenlets run. The old ones end by themselves.
    """
    if _outdated():
        old = _process.housekeeper
        _restart()
        _process.housekeeper.adopt(old)
    return _process


class ThreadRuntime:
    """The runtime of :class:`~poolkit.Pool`. Stateless and thread-safe: one instance serves all pools."""

    def parker(self) -> ThreadParker:
        """A new parker for the calling thread."""
        return ThreadParker()

    def spawn(self, job: Callable[..., object], *args: Any) -> None:
        """Run ``job(*args)`` in a daemon thread, or in the calling thread if none can be started.

        Nothing is started while the interpreter shuts down: the end of the process closes all connections, and up to
        Python 3.11 ``Thread.start`` would wait forever for a thread that never runs.
        """
        if sys.is_finalizing():
            return
        process = _current()
        try:
            process.workers.pop().give((job, args))
            return
        except IndexError:
            pass
        worker = _Worker(process.workers, (job, args))
        try:
            threading.Thread(target=worker.run, name="poolkit-worker", daemon=True).start()
            return
        except _REFUSED as error:
            _refused(error)
        try:
            job(*args)
        except Exception:
            logger.exception("poolkit: background job failed")

    def schedule(self, task: Task, delay: float) -> bool:
        """Call ``task.run_due()`` in the housekeeping thread in ``delay`` seconds, or sooner; infinity: no call.

        At most one call is pending for a task: an earlier time replaces a later one. Returns False if there is no such
        thread and none can be started now; no call is made then, and the task has to ask again.
        """
        return _current().housekeeper.schedule(task, delay)

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
