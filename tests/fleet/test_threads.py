"""The threads of a fleet budget: a start that fails is retried, then the pool gets a clear error."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from poolkit import Pool, UsageError
from poolkit._watchdog import Watchdog
from poolkit.fleet import FileStore, FleetBudget, _renewal
from poolkit.testing import FakeConnector


class Refusal:
    """Make the start of threads of this name fail while ``left`` is above 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.left = 0
        start = threading.Thread.start

        def refusing(thread: threading.Thread) -> None:
            if thread.name == name and self.left:
                self.left -= 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refusing)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_thread_that_cannot_be_started_is_retried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int
) -> None:
    Refusal(monkeypatch, "poolkit-fleet").left = times
    with FleetBudget(FileStore(tmp_path), "fleet", limit=2) as budget:
        with Pool(FakeConnector(), max_size=2, budget=budget, acquire_timeout=20.0) as pool:
            pool.release(pool.acquire())


def test_if_no_thread_can_be_started_the_pool_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of it is left, and the next pool works once threads can be started again."""
    monkeypatch.setattr(_renewal, "START", 0.1)
    refusal = Refusal(monkeypatch, "poolkit-fleet")
    refusal.left = 10**9
    with FleetBudget(FileStore(tmp_path), "fleet", limit=2) as budget:
        with pytest.raises(UsageError, match="none can be started"):
            Pool(FakeConnector(), max_size=2, budget=budget)
        assert not [share for share in budget.stats().pools if share.pool != "other processes"]
        refusal.left = 0
        with Pool(FakeConnector(), max_size=2, budget=budget, acquire_timeout=20.0) as pool:
            pool.release(pool.acquire())


def test_a_watchdog_whose_thread_cannot_be_started_has_armed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expired: list[str] = []
    arrived = threading.Event()
    watchdog = Watchdog(lambda what: (expired.append(what), arrived.set()))
    Refusal(monkeypatch, "poolkit-watchdog").left = 1
    with pytest.raises(RuntimeError):
        watchdog.arm(0.0, "refused")
    watchdog.arm(0.0, "armed")
    assert arrived.wait(20)
    assert expired == ["armed"]
    watchdog.stop()
