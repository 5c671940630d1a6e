"""The operating system or the interpreter refuses to start a thread: once, for a while, or always.

No caller waits in vain and nothing is lost: callers do the work of the threads until one can be started.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

import poolkit
from poolkit import Budget, Pool
from poolkit.cluster import Cluster, NoNodeAvailable
from poolkit.runtimes import threads
from poolkit.testing import FakeConnector, ManualClock

PATIENCE = 30.0
"""Seconds that a caller waits for what must happen at once; only a failing test uses them up."""


class Refusal:
    """Refuses poolkit's threads while ``left`` is above 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.refused = 0
        self.name = "poolkit-"
        self.meanwhile: Callable[[], object] | None = None
        """Called once, while a start is being refused. It stands for another thread."""
        start = threading.Thread.start

        def refusing(thread: threading.Thread) -> None:
            if not thread.name.startswith(self.name) or not self.left:
                start(thread)
                return
            self.left -= 1
            self.refused += 1
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refusing)


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Give the test its own set of pool threads, as in a process of its own."""
    monkeypatch.setattr(threads, "_process", threads._Process())
    return Refusal(monkeypatch)


def failing_first(times: int) -> FakeConnector:
    """Return a connector whose first connects fail."""
    connector = FakeConnector()
    errors: list[BaseException] = [ConnectionRefusedError("down") for _ in range(times)]
    connector.fail("connect", lambda: errors.pop() if errors else None)
    return connector


def told(caplog: pytest.LogCaptureFixture) -> int:
    return sum("no thread can be started" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["poolkit-housekeeping", "poolkit-worker", "poolkit-"])
@pytest.mark.parametrize("times", [1, 3, 10**9], ids=["once", "thrice", "always"])
def test_a_caller_whose_connect_fails_is_served_by_a_retry(
    refusal: Refusal, caplog: pytest.LogCaptureFixture, name: str, times: int
) -> None:
    refusal.name, refusal.left = name, times
    pool = Pool(failing_first(2), max_size=2, acquire_timeout=PATIENCE)
    pool.release(pool.acquire())
    pool.check_books()
    assert told(caplog) == min(1, refusal.refused), "said once"
    pool.close()


def test_the_next_need_starts_the_thread(refusal: Refusal) -> None:
    refusal.left = 1
    pool = Pool(FakeConnector(), max_size=2)
    pool.release(pool.acquire())
    pool.release(pool.acquire())
    assert threads._process.housekeeper._holder, "there is no housekeeping thread"
    assert not threads._process.housekeeper.alone
    assert "acquire" in vars(pool), "the pool goes on without its ways around the lock"
    pool.close()


def test_a_sleeping_caller_retries_too(refusal: Refusal) -> None:
    """A worker schedules the retry that it waits for, and cannot start the housekeeping thread."""
    connector = failing_first(1)
    gate = connector.hold("connect")
    pool = Pool(connector, max_size=1, acquire_timeout=PATIENCE)
    served: list[Any] = []
    waiter = threading.Thread(target=lambda: served.append(pool.acquire()))
    waiter.start()
    while not connector.calls["connect"]:
        threading.Event().wait(0.001)
    refusal.name, refusal.left = "poolkit-housekeeping", 10**9
    gate.set()
    waiter.join(PATIENCE)
    assert served
    pool.release(served.pop())
    pool.close()


@pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning")
@pytest.mark.parametrize("acquire_timeout", [None, PATIENCE])
def test_a_connect_of_a_caller_has_what_is_left_of_its_block(refusal: Refusal, acquire_timeout: float | None) -> None:
    refusal.left = 10**9
    connector = FakeConnector()
    connect, limits = connector.connect, list[Any]()

    def noted(limit: float | None) -> Any:
        limits.append(limit)
        return connect(limit)

    connector.connect = noted  # type: ignore[method-assign]
    pool = Pool(connector, max_size=3, acquire_timeout=acquire_timeout, connect_timeout=None)
    assert pool._gate.alone or pool.acquire()
    for seconds in (PATIENCE / 2, 0.0):
        with poolkit.deadline(seconds), contextlib.suppress(poolkit.AcquireTimeout):
            pool.acquire()
    assert pool._gate.alone
    *_, in_time, late = limits
    assert 0.0 < in_time <= PATIENCE / 2
    assert late == 0.001
    pool.close()


def test_callers_do_the_housekeeping_where_no_thread_can(refusal: Refusal) -> None:
    """This includes callers that find an idle connection at once."""
    refusal.left = 10**9
    connector, clock = FakeConnector(), ManualClock()
    pool = Pool(connector, max_size=3, idle_timeout=10.0, max_lifetime=None, clock=clock)
    pool.warm_up(3)
    for _ in range(12):
        pool.release(pool.acquire())  # one of the three is used again and again
        clock.advance(1.0)
    pool.release(pool.acquire())
    assert connector.live == 1, "idle connections outlive idle_timeout"
    pool.check_books()
    pool.close()
    assert connector.live == 0


def test_another_pool_that_asks_during_the_refusal_notices_it(refusal: Refusal) -> None:
    """It saw that another pool was starting the thread, and relied on that."""
    connector, clock = FakeConnector(), ManualClock()
    other = Pool(connector, max_size=2, idle_timeout=10.0, max_lifetime=None, clock=clock)
    first = Pool(FakeConnector(in_caller=True), max_size=1)  # all in this thread
    held = other.acquire()
    refusal.name = "poolkit-housekeeping"
    threads._process = threads._Process()  # no thread yet
    other._gate.scheduled = float("inf")
    refusal.left, refusal.meanwhile = 10**9, lambda: other._gate.schedule()
    first.release(first.acquire())
    assert other._gate.scheduled == float("inf"), "the other pool relies on a thread that was never started"
    other.release(held)
    for _ in range(3):
        clock.advance(11.0)
        other.explain()
    assert connector.live == 0
    for pool in (first, other):
        pool.close()


def test_pools_that_ask_during_the_refusal_do_not_tell_each_other_without_end(
    refusal: Refusal, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them asks again when it is told. It ended in a RecursionError, with a record of a thousand lines."""
    clock = ManualClock()
    first = Pool(FakeConnector(in_caller=True), max_size=1)  # all in this thread
    others = [Pool(FakeConnector(), max_size=2, idle_timeout=10.0, clock=clock) for _ in range(3)]
    held = [other.acquire() for other in others]
    refusal.name = "poolkit-housekeeping"
    threads._process = threads._Process()  # no thread yet
    for other in others:
        other._gate.scheduled = float("inf")
    refusal.left, refusal.meanwhile = 10**9, lambda: [other._gate.schedule() for other in others]
    first.release(first.acquire())
    assert refusal.refused < 20
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for other, connection in zip(others, held, strict=True):
        assert other._gate.alone, "this pool relies on a thread that was never started"
        other.release(connection)
        other.close()
    first.close()


def test_no_permit_of_a_budget_is_lost(refusal: Refusal) -> None:
    refusal.left = 10**9
    budget = Budget(2)
    pools = [Pool(FakeConnector(), max_size=2, budget=budget, acquire_timeout=PATIENCE) for _ in range(2)]
    for _ in range(3):
        for pool in pools:
            held = [pool.acquire(), pool.acquire()]
            for connection in held:
                pool.release(connection, discard=True)
    for pool in pools:
        pool.close()
    assert budget.stats().held == 0


def test_a_cluster_works_without_threads(refusal: Refusal) -> None:
    refusal.left = 10**9
    connectors = {"a": failing_first(1), "b": FakeConnector()}
    cluster: Cluster[Any] = Cluster(lambda node: connectors[node.name], ["a", "b"], acquire_timeout=PATIENCE)
    for _ in range(4):
        with cluster.lease(), cluster.lease():
            pass
    cluster.check_books()
    cluster.close()
    assert not any(connector.live for connector in connectors.values())


def test_a_caller_of_a_cluster_waits_for_a_node_that_comes_back(refusal: Refusal) -> None:
    """Its only node is down. The probe that brings it back is due while the caller sleeps."""
    refusal.left = 10**9
    connector = failing_first(2)
    cluster: Cluster[Any] = Cluster(
        lambda node: connector,
        ["a"],
        acquire_timeout=PATIENCE,
        wait_for_node=PATIENCE,
        eject_after=1,
        eject_for=0.1,
        max_ejected_share=1.0,
    )
    with pytest.raises(NoNodeAvailable):
        cluster.lease()
    with cluster.lease():
        assert connector.calls["connect"] >= 3
    cluster.close()


@pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning")
def test_a_connect_in_the_caller_is_bounded_by_what_a_caller_waits(refusal: Refusal) -> None:
    limits: list[float | None] = []

    class Asked(FakeConnector):
        def connect(self, timeout: float | None) -> Any:
            limits.append(timeout)
            return super().connect(timeout)

    refusal.left = 10**9
    with Pool(Asked(), max_size=2, acquire_timeout=2.0, connect_timeout=30.0) as pool:
        pool.release(pool.acquire())  # the first refusal
        held = [pool.acquire(), pool.acquire()]
        for connection in held:
            pool.release(connection)
    assert limits[-1] == 2.0


def test_the_end_of_the_process_is_no_news(refusal: Refusal, caplog: pytest.LogCaptureFixture) -> None:
    threads._refused(RuntimeError("can't create new thread at interpreter shutdown"))
    assert told(caplog) == 0
    threads._refused(RuntimeError("can't start new thread"))
    assert told(caplog) == 1


def test_a_listener_that_ends_its_thread_does_not_end_the_housekeeping(
    refusal: Refusal, caplog: pytest.LogCaptureFixture
) -> None:
    """``sys.exit()`` in a listener: the next pool still gets its housekeeping."""

    def exits() -> None:
        raise SystemExit(1)

    caplog.set_level(logging.ERROR)
    broken = Pool(FakeConnector(), max_size=1, idle_timeout=0.02)
    broken._housekeeping.run_due = exits  # type: ignore[method-assign]
    broken.release(broken.acquire())
    connector = FakeConnector()
    good = Pool(connector, max_size=1, idle_timeout=0.1)
    good.release(good.acquire())
    for _ in range(2000):
        if connector.live == 0:
            break
        threading.Event().wait(0.005)
    assert connector.live == 0
    assert "housekeeping failed" in caplog.text
    broken.close()
    good.close()
