"""The soak, for a short time; and that it finds what it is for."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bench.reliability.measure import ADAPTERS
from bench.soak.callers import Adapter, Book, Callers
from bench.soak.run import Report, soak
from bench.soak.watch import Usage, Watch

SECONDS = 20.0


@pytest.mark.stress
@pytest.mark.timeout(120)
def test_all_adapters_stand_random_faults() -> None:
    """Each run has another seed; a failure prints it."""
    report = soak(seconds=SECONDS, adapters=list(ADAPTERS), seed=random.randrange(10**6))
    assert not report.failures, report.text()
    assert min(report.book.requests.values()) > 50, report.text()
    assert report.chaos is not None
    assert sum(report.chaos.done.values()) > 5


def test_a_wrong_reply_is_fatal() -> None:
    book = Book()
    book.note("redis", "mine", "mine", None)
    assert not Report(1, book=book).failures
    book.note("redis", "mine", "yours", None)
    assert "'mine' was answered with 'yours'" in Report(1, book=book).text()


def test_a_caller_who_hears_nothing_is_noticed() -> None:
    callers = Callers([], Book(), seed=1)
    callers.busy["redis/1"] = -1e9
    assert callers.hung()[0].startswith("redis/1 for ")


def test_lost_capacity_and_growth_are_failures() -> None:
    report = Report(1, adapters=[Adapter("redis", {}, 3, capacity=2)])
    report.warm, report.end = Usage(100.0, 100, 30), Usage(150.0, 200, 30)
    assert [one.split(" ")[0] for one in report.failures] == ["redis:", "memory", "descriptors"]


def test_sessions_above_the_budget_fail_when_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        kind = "redis"

    watch = Watch(None, [Adapter("redis", {}, 3, client=Client())])  # type: ignore[arg-type]
    monkeypatch.setattr(watch, "_count_others", lambda: Counter(redis=4))
    watch.sample(0.0)
    watch.sample(0.5)
    assert not watch.excess
    assert watch.brief == 2
    watch.sample(1.5)
    assert watch.excess == ["redis: 4 connections at the server, 3 allowed"]
