"""One thread for many deadlines."""

from __future__ import annotations

import queue
import threading
import time

import psycopg
import pytest

from poolkit import _watchdog
from poolkit._watchdog import Watchdog
from poolkit.fleet import PostgresStore
from poolkit.fleet._ledger import Ask
from poolkit.testing.servers import PostgresServer
from tests.support.waiting import PATIENCE


def until_gone(name: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_expired_deadlines_fire_in_order_and_disarmed_ones_do_not() -> None:
    """A shorter deadline that is set later wakes the thread in time."""
    expired: queue.Queue[str] = queue.Queue()
    watchdog = Watchdog(expired.put)
    watchdog.arm(0.2, "second")
    ended = watchdog.arm(0.01, "ended")
    watchdog.disarm(ended)
    watchdog.arm(0.05, "first")
    assert [expired.get(timeout=20), expired.get(timeout=20)] == ["first", "second"]
    watchdog.arm(0.01, "third")
    assert expired.get(timeout=20) == "third"
    assert expired.empty()
    watchdog.stop()
    until_gone("poolkit-watchdog")


def test_a_deadline_fires_after_stop() -> None:
    """The thread ends when no deadline is set; the next deadline starts a new one."""
    expired: queue.Queue[str] = queue.Queue()
    watchdog = Watchdog(expired.put)
    watchdog.arm(0.05, "late")
    watchdog.stop()
    assert expired.get(timeout=20) == "late"
    until_gone("poolkit-watchdog")
    watchdog.arm(0.01, "again")
    assert expired.get(timeout=20) == "again"
    watchdog.stop()
    until_gone("poolkit-watchdog")


def test_a_watchdog_that_is_not_stopped_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discovery by etcd has a watchdog, and no close()."""
    monkeypatch.setattr(_watchdog, "IDLE", 0.01)
    expired: queue.Queue[str] = queue.Queue()
    watchdog = Watchdog(expired.put)
    for number in ("first", "after the thread has ended"):
        watchdog.arm(0.05, number)
        assert expired.get(timeout=20) == number
        until_gone("poolkit-watchdog")


def test_exchanges_with_postgresql_start_no_thread_each(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All share one thread, because a signal that a starting or ending thread receives may not wake the main thread."""
    begun: list[str] = []
    start, here = threading.Thread.start, threading.current_thread()

    def started(thread: threading.Thread) -> None:
        if threading.current_thread() is here:  # other tests may start some too
            begun.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS poolkit_watched")
    store = PostgresStore(postgres.url, table="poolkit_watched")
    for _ in range(20):
        assert store.exchange(Ask("watched", "me", 0, 0, 10, 5.0)).members == 1
    store.leave("watched", "me")
    store.close()
    assert begun == ["poolkit-watchdog"]
    until_gone("poolkit-watchdog")
