"""The small decisions, with the numbers written out."""

from __future__ import annotations

import pytest

from poolkit import BackoffConfig, BreakerConfig
from poolkit.policies.connects import Breaker, BreakerState, connects_wanted, full_jitter, pace, patience
from poolkit.policies.retire import LONGEST, NEVER, SETTLED, evictable_at, expiry, rotation_lead


@pytest.mark.parametrize(("failures", "bound"), [(1, 0.1), (2, 0.2), (3, 0.4), (7, 5.0), (10_000, 5.0)])
def test_backoff_is_uniform_below_an_exponential_bound_with_a_cap(failures: int, bound: float) -> None:
    config = BackoffConfig(base=0.1, cap=5.0)
    assert full_jitter(config, failures, lambda: 0.0) == 0.0
    assert full_jitter(config, failures, lambda: 0.5) == pytest.approx(bound / 2)
    assert full_jitter(config, failures, lambda: 1.0) == pytest.approx(bound)


def test_breaker_opens_after_the_threshold_and_lets_one_probe_through() -> None:
    breaker = Breaker(BreakerConfig(failure_threshold=3, reset_timeout=10))
    assert [breaker.failed(1.0), breaker.failed(2.0), breaker.failed(3.0)] == [False, False, True]
    assert breaker.is_open(12.9)
    assert breaker.retry_after(5.0) == pytest.approx(8.0)
    assert not breaker.may_open(12.9, connecting=0)
    assert breaker.may_open(13.0, connecting=0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.may_open(13.0, connecting=1), "one probe at a time"
    assert breaker.failed(14.0), "a failed probe opens it again"
    assert breaker.retry_after(14.0) == pytest.approx(10.0)
    assert breaker.may_open(24.0, connecting=0)
    assert breaker.succeeded(), "a probe that works closes it"
    assert breaker.state is BreakerState.CLOSED
    assert breaker.failures == 0


def test_without_a_breaker_nothing_is_ever_refused() -> None:
    breaker = Breaker(None)
    for _ in range(100):
        assert not breaker.failed(1.0)
    assert breaker.may_open(1.0, connecting=99)
    assert not breaker.is_open(1.0)


@pytest.mark.parametrize(
    ("waiting", "connecting", "streams", "wanted"),
    [(0, 0, 1, 0), (3, 0, 1, 3), (3, 2, 1, 1), (2, 5, 1, 0), (100, 0, 100, 1), (101, 1, 100, 1), (99, 1, 100, 0)],
)
def test_dials_cover_the_waiters_that_connects_on_their_way_do_not(
    waiting: int, connecting: int, streams: int, wanted: int
) -> None:
    assert connects_wanted(waiting, connecting, streams) == wanted


@pytest.mark.parametrize(("connect", "pause"), [(None, 0.01), (0.1, 0.025), (0.0001, 0.001), (10.0, 0.05)])
def test_a_burst_waits_a_quarter_of_a_connect_within_bounds(connect: float | None, pause: float) -> None:
    assert pace(connect) == pytest.approx(pause)


@pytest.mark.parametrize(("connect", "limit"), [(None, 0.25), (0.2, 0.4), (0.001, 0.25), (10.0, 0.5)])
def test_a_shared_connect_is_counted_on_for_twice_its_usual_time_within_bounds(
    connect: float | None, limit: float
) -> None:
    assert patience(connect) == pytest.approx(limit)


def test_lives_are_shortened_never_lengthened() -> None:
    assert expiry(100.0, 60.0, 0.1, lambda: 0.0) == 160.0
    assert expiry(100.0, 60.0, 0.1, lambda: 0.999) == pytest.approx(154.0, abs=0.01)
    assert expiry(100.0, None, 0.1, lambda: 0.5) == NEVER
    assert rotation_lead(1800.0) == 10.0
    assert rotation_lead(20.0) == pytest.approx(1.0)
    assert rotation_lead(None) == 0.0


def test_an_idle_connection_goes_to_others_once_it_is_settled_or_their_caller_has_waited_long() -> None:
    assert evictable_at(unused_since=100.0) == 100.0 + SETTLED
    assert evictable_at(waiting_since=100.0) == 100.0 + LONGEST
    assert evictable_at(unused_since=100.0, waiting_since=99.5) == 100.0 + SETTLED
    assert evictable_at(unused_since=100.0, waiting_since=98.0) == 98.0 + LONGEST
