"""The threads of a fleet budget: a start that fails is retried, then the pool gets a clear error."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from poolkit import Pool, UsageError
from poolkit._watchdog import Watchdog
from poolkit.fleet import Ask, FileStore, FleetBudget, Grant, StoreError, _renewal
from poolkit.testing import FakeConnector
from tests.support.waiting import until


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


class Forgetful:
    """A store that ends the lease of its first member, and says so."""

    expires = False

    def __init__(self) -> None:
        self.members: list[str] = []
        self.left: list[str] = []
        self.fails = 1  # calls of leave that get no answer

    def exchange(self, ask: Ask) -> Grant:
        if ask.member not in self.members:
            self.members.append(ask.member)
        lost = ask.held > 0 and ask.member == self.members[0]
        return Grant(0, 2, lost=True) if lost else Grant(ask.held + ask.want, 1)

    def leave(self, fleet: str, member: str) -> None:
        if self.fails and member == self.members[0]:
            self.fails -= 1
            raise StoreError("no answer")
        self.left.append(member)

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_member_whose_permits_were_lost_leaves_the_store() -> None:
    """Otherwise a FileStore, which sees that the process is alive, waits for this member to report for ever."""
    store = Forgetful()
    with FleetBudget(store, "fleet", limit=2, ttl=0.5) as budget:
        with Pool(FakeConnector(), max_size=2, budget=budget, acquire_timeout=20.0) as pool:
            pool.release(pool.acquire())
            until(lambda: store.left, "the former member has left")
            pool.release(pool.acquire())
        assert store.left == store.members[:1]
    assert store.left == store.members


def test_a_budget_that_is_closed_first_leaves_for_its_former_member_too() -> None:
    store = Forgetful()
    store.fails = 0
    with FleetBudget(store, "fleet", limit=2, ttl=30.0) as budget:
        with Pool(FakeConnector(), max_size=2, budget=budget, acquire_timeout=20.0) as pool:
            pool.release(pool.acquire())
            until(lambda: len(store.members) == 2, "the permits are lost")
        assert store.left == []
    assert store.left == store.members


def test_a_former_member_that_cannot_leave_does_not_keep_the_present_one_from_its_permits() -> None:
    store = Forgetful()
    store.fails = 10**9
    with FleetBudget(store, "fleet", limit=2, ttl=0.5) as budget:
        with Pool(FakeConnector(), max_size=2, budget=budget, acquire_timeout=20.0) as pool:
            pool.release(pool.acquire())
            until(lambda: store.fails < 10**9, "the former member tries to leave")
            pool.release(pool.acquire())
    assert store.left == store.members[1:]
