"""Exceptions thrown into running threads, as by a task queue's soft time limit: the interpreter picks the bytecode.

An exception may strike when a call has returned and its result is not stored yet: a connection that was just taken is
then in no list and no variable. The interpreter reports its slot as gone, with and without the GIL.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from poolkit import Connector, Pool
from poolkit._housekeeping import clear_ended_frames
from tests.faults.interrupts import Interrupt, interrupted_at

pytestmark = [
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs PyThreadState_SetAsyncExc"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # leases that interrupted callers have dropped
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # raised in finalizers
]

SIZE = 4


class Server(Connector[object]):
    """A connector without a server that records which connections are closed."""

    def __init__(self) -> None:
        self.closed: set[int] = set()

    def connect(self, timeout: float | None) -> object:
        return object()


def throw(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Interrupt))


class Working(threading.Thread):
    """Works in a loop until the exception arrives, then drops what it holds."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.began = threading.Event()
        self.rounds = 0
        self.thrown_in = -2

    def run(self) -> None:
        try:
            while True:
                self.work()
                self.rounds += 1
                self.began.set()
        except Interrupt:
            return

    def strike(self) -> None:
        """Throw the exception, and again if it was lost because it arrived in a finalizer.

        It was if the thread has begun two rounds since: a second exception must not strike while the first one unwinds
        the stack. The finalizer of a dropped lease is not run again, and its connection stays on lease.
        """
        if self.rounds >= self.thrown_in + 2:
            throw(self)
            self.thrown_in = self.rounds


def lease(pool: Pool[Any]) -> None:
    with pool.lease(timeout=60):
        pass


def ask_and_wait(pool: Pool[Any]) -> None:
    """Two at once: callers queue, and connections are handed over."""
    with pool.lease(timeout=60), pool.lease(timeout=60):
        pass


@pytest.mark.parametrize(("work", "threads", "times"), [(lease, 2, 40), (ask_and_wait, 3, 15)])
def test_no_place_is_lost_by_exceptions_that_are_thrown_into_threads(
    work: Callable[[Pool[Any]], None], threads: int, times: int
) -> None:
    with Pool(Server(), max_size=SIZE) as pool:
        for number in range(times):
            running = [Working(lambda: work(pool)) for _ in range(threads)]
            for thread in running:
                thread.start()
            for thread in running:
                assert thread.began.wait(60)
            time.sleep(number % 7 * 1e-4)  # not always at the same place
            for _ in range(1000):
                for thread in running:
                    thread.strike()
                for thread in running:
                    thread.join(0.05)
                running = [thread for thread in running if thread.is_alive()]
                if not running:
                    break
            assert not running, "the exceptions were swallowed"
        held = [pool.acquire(timeout=60) for _ in range(SIZE)]
        assert len({id(connection) for connection in held}) == SIZE
        for connection in held:
            pool.release(connection)
        pool.check_books()


@pytest.mark.parametrize("kept", ["in the stack of its thread", "in a cycle with a traceback"])
def test_a_connection_comes_back_whose_end_is_not_noticed_at_once(kept: str) -> None:
    """The thread that was interrupted has let go of it. But who has made its slot sleeps, as the one who waits does, so
    a free-threaded interpreter does not free it; and in a cycle no interpreter frees it. Here no collection comes by
    itself.
    """
    taken = threading.Event()

    def interrupted() -> None:
        slot = pool._core.endpoint.idle.pop()
        cycle: list[object] = [slot]
        if kept == "in a cycle with a traceback":
            cycle.append(cycle)
        taken.set()
        time.sleep(0.1)  # the other one waits by now; if not, nothing is shown, but nothing fails

    with Pool(Server(), max_size=1) as pool:
        pool.release(pool.acquire())
        thread = threading.Thread(target=interrupted)
        gc.disable()
        try:
            thread.start()
            assert taken.wait(60)
            pool.release(pool.acquire(timeout=60))
        finally:
            gc.enable()
            thread.join()
        pool.check_books()


def test_the_books_are_right_when_an_interrupted_caller_has_lost_a_connection() -> None:
    with Pool(Server(), max_size=2) as pool:
        pool.release(pool.acquire())
        pool._core.endpoint.idle.pop()
        gc.collect()  # without the GIL the thread that made the slot would free it, when it runs again
        pool.check_books()
        held = [pool.acquire(timeout=60) for _ in range(2)]
        for connection in held:
            pool.release(connection)


def bare(pool: Pool[Any]) -> None:
    pool.release(pool.acquire(timeout=60))


def test_every_connection_comes_back_while_the_tracebacks_of_interrupted_callers_are_stored() -> None:
    stored: list[BaseException] = []

    def interrupted() -> None:
        try:
            bare(pool)
        except Interrupt as error:
            stored.append(error)
            raise

    with Pool(Server(), max_size=200) as pool:
        for connection in [pool.acquire() for _ in range(200)]:
            pool.release(connection)
        while interrupted_at(len(stored) + 1, interrupted) is not None:
            pass
        assert len(stored) > 100
        for slot in pool._leased.copy().values():  # the interrupted caller has the connection
            pool.release(slot.connection)
        held = [pool.acquire(timeout=60) for _ in range(200)]
        assert len({id(connection) for connection in held}) == 200
        for connection in held:
            pool.release(connection)
        pool.check_books()


ENGINE = """
def has_ended(held):
    raise LookupError

def runs(held, act):
    act()
    return held

def is_suspended(held):
    yield
    yield held

async def is_awaited(held, sleep):
    await sleep
    return held
"""


def test_only_frames_of_our_functions_that_have_ended_are_cleared() -> None:
    ours: dict[str, Any] = {"__name__": "poolkit.engine"}
    theirs: dict[str, Any] = {"__name__": "application"}
    kept = []
    for module in (ours, theirs):
        exec(ENGINE, module)
        with pytest.raises(LookupError) as caught:
            module["has_ended"]("held")
        kept.append(caught.value)
    suspended, awaited = ours["is_suspended"]("held"), ours["is_awaited"]("held", Sleep())
    next(suspended)
    awaited.send(None)
    assert ours["runs"]("held", clear_ended_frames) == "held"
    assert next(suspended) == "held"
    with pytest.raises(StopIteration) as end:
        awaited.send(None)
    assert end.value.value == "held"
    left = [error.__traceback__.tb_next.tb_frame.f_locals for error in kept if error.__traceback__]  # type: ignore[union-attr]
    assert left == [{}, {"held": "held"}]


class Sleep:
    def __await__(self) -> Generator[None, None, None]:
        yield
