"""The pool's threads: they are few, shared, and end when no pool needs them."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import poolkit.runtimes.threads as threads
from poolkit import Pool, Verdict
from poolkit.testing import FakeConnector
from tests.support.waiting import PATIENCE


def housekeepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "poolkit-housekeeping"]


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "poolkit-worker"]


def soon(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test its own set of pool threads, which end soon after their last work."""
    monkeypatch.setattr(threads, "_process", threads._Process())
    monkeypatch.setattr(threads, "LINGER", 0.05)
    before = set(housekeepers())
    monkeypatch.setattr(sys.modules[__name__], "housekeepers", lambda: [t for t in _all() if t not in before])
    yield
    gc.collect()


def _all() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "poolkit-housekeeping"]


def test_a_pool_that_does_nothing_has_no_thread() -> None:
    before = threading.active_count()
    pool = Pool(FakeConnector())
    assert threading.active_count() == before
    pool.close()
    assert threading.active_count() == before


def test_one_housekeeping_thread_for_all_pools() -> None:
    pools = [Pool(FakeConnector(), max_size=2) for _ in range(10)]
    for pool in pools:
        pool.release(pool.acquire())
    assert len(housekeepers()) == 1
    assert housekeepers()[0].daemon
    for pool in pools[1:]:
        pool.close()
    time.sleep(0.15)
    assert len(housekeepers()) == 1  # one pool still uses it
    pools[0].close()
    assert soon(lambda: not housekeepers()), "nothing is due any more, but the thread is there"


def test_it_leaves_when_the_last_pool_is_collected() -> None:
    pool = Pool(FakeConnector(), max_size=2)
    pool.release(pool.acquire())
    assert housekeepers()
    del pool

    def gone() -> bool:
        gc.collect()
        return not housekeepers()

    assert soon(gone)


def test_it_comes_back_when_it_is_needed_again() -> None:
    for _ in range(3):
        connector = FakeConnector()
        pool = Pool(connector, max_size=2, idle_timeout=0.02)
        pool.release(pool.acquire())
        assert soon(lambda connector=connector: connector.live == 0)  # type: ignore[misc]
        pool.close()
        assert soon(lambda: not housekeepers())


def test_workers_leave_when_idle() -> None:
    pool = Pool(FakeConnector(connect=0.005), max_size=5)
    pool.warm_up(5)
    assert soon(lambda: not threads._process.workers)
    pool.close()


def test_a_pool_that_fails_in_housekeeping_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise RuntimeError("bug")

    broken = Pool(FakeConnector(), max_size=1, idle_timeout=0.02)
    broken._housekeeping.run_due = fails  # type: ignore[method-assign]
    broken.release(broken.acquire())
    connector = FakeConnector()
    good = Pool(connector, max_size=1, idle_timeout=0.03)
    good.release(good.acquire())
    assert soon(lambda: connector.live == 0)
    assert "housekeeping failed" in caplog.text
    broken.close()
    good.close()


def test_housekeeping_is_not_held_up_by_slow_io() -> None:
    """The check of one pool hangs, and the sweep of another goes on: workers do the I/O."""
    slow = FakeConnector()
    gate = slow.hold("check")
    first = Pool(slow, max_size=1, keepalive=0.01)
    first.release(first.acquire())
    assert soon(lambda: slow.calls["check"] == 1)
    quick = FakeConnector()
    second = Pool(quick, max_size=1, idle_timeout=0.02)
    second.release(second.acquire())
    assert soon(lambda: quick.live == 0)
    gate.set()
    first.close()
    second.close()


def test_many_pools_are_looked_after_in_time() -> None:
    connectors = [FakeConnector() for _ in range(50)]
    pools = [Pool(connector, max_size=1, idle_timeout=0.02) for connector in connectors]
    for pool in pools:
        pool.release(pool.acquire())
    assert soon(lambda: not any(connector.live for connector in connectors))
    for pool in pools:
        pool.close()
    assert soon(lambda: not housekeepers())


SIGNALS = """
import signal, sys, time
from poolkit import Pool
from poolkit.testing import FakeConnector
pool = Pool(FakeConnector(), max_size=1)
held = pool.acquire()
try:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    pool.acquire(timeout=30)
except KeyboardInterrupt:
    pool.check_books()
    assert pool.stats().waiting == 0
    pool.release(held)
    pool.release(pool.acquire(timeout=0))
    print("interrupted")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_control_c_while_waiting() -> None:
    answer = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=20)
    assert (answer.stdout.strip(), answer.stderr) == ("interrupted", "")


AT_EXIT = """
import atexit, threading
from poolkit import Pool
from poolkit.testing import FakeConnector
pool = Pool(FakeConnector(), max_size=2)
pool.release(pool.acquire())
def last():
    pool.release(pool.acquire(timeout=5))
    pool.close()
    print("closed", flush=True)
atexit.register(last)
"""


def test_a_pool_can_be_closed_at_exit() -> None:
    answer = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=20)
    assert (answer.stdout.strip(), answer.stderr) == ("closed", "")


LATE = """
import os, time
import poolkit.runtimes.threads
from poolkit import Pool
from poolkit.testing import FakeConnector
class Late:
    def __init__(self, pool):
        self.pool, self.lease = pool, pool.lease()
    def __del__(self, write=os.write):
        self.lease.close(discard=True)
        write(1, b"released")
pool = Pool(FakeConnector(), max_size=2, min_size=2)
keep = Late(pool)
poolkit.runtimes.threads.LINGER = 0.01
pool.release(pool.acquire())  # wakes the worker
time.sleep(2.2)  # no worker is left: the discarded connection's successor would need a new thread
print("done", flush=True)
"""


def test_a_release_while_the_interpreter_goes_down() -> None:
    answer = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=20)
    assert (answer.stdout.strip(), answer.stderr) == ("done\nreleased", "")


def test_verdicts_have_names_that_adapters_may_use() -> None:
    assert [verdict.value for verdict in Verdict] == ["keep", "discard", "suspect", "retire", "fatal", "overloaded"]
