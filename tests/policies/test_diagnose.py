"""The rules of the diagnosis, one by one; docs/guides/explain.md states them in the same order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolkit import Cause
from poolkit.policies.diagnose import Held, Symptoms, diagnose

BUSY = Symptoms(
    limit=3, live=3, waiting=2, returns=500, usual_use=0.01, recent_use=0.012, returned_ago=0.002,
    held=[Held(0.011, 1), Held(0.006, 2), Held(0.001, 3)], waiters=frozenset({8, 9}), acquires_per_second=200.0,
)  # fmt: skip
STUCK = replace(BUSY, held=[Held(4.0, 1, "worker-1", "app.py:8"), Held(3.99, 2), Held(3.98, 3)], returned_ago=3.97)


def test_nothing_is_wrong_while_nobody_waits() -> None:
    assert diagnose(replace(BUSY, waiting=0, waiters=frozenset())) is None
    assert diagnose(Symptoms(limit=3, live=2)) is None


@pytest.mark.parametrize(
    ("seen", "cause", "words"),
    [
        (replace(BUSY, suspended=True), Cause.SUSPENDED, "until resume()"),
        (replace(BUSY, live=0, held=[], failures=3, last_error="refused"), Cause.SERVER_DOWN, "3 connects in a row"),
        (replace(BUSY, live=2, failures=1, last_error="too many clients"), Cause.SERVER_DOWN, "too many clients"),
        (replace(BUSY, live=0, held=[], connecting_for=2.0), Cause.SERVER_DOWN, "no answer to a connect for 2.0 s"),
        (replace(BUSY, waiting=0, breaker_open=True, failures=5), Cause.SERVER_DOWN, "5 connects"),
        (replace(BUSY, waiters=frozenset({1, 2, 3})), Cause.SELF_DEADLOCK, "each of the 3 holders waits"),
        (replace(STUCK, returned_ago=0.5), Cause.LEAKING, "3 of 3 leases are kept while others are returned"),
        (
            replace(BUSY, held=[Held(9.0, 1, "worker-1", "app.py:8", ended=True), *BUSY.held[1:]]),
            Cause.LEAKING,
            "1 of 3 leases is held by a thread or task that has ended: worker-1 at app.py:8, for 9.0 s",
        ),
        (
            replace(BUSY, usual_use=None, held=[Held(9.0, 1, reported=True), Held(8.0, 2), Held(7.0, 3)],
                    returned_ago=6.0),
            Cause.LEAKING,
            "kept while others are returned",
        ),
        (
            STUCK,
            Cause.SERVER_SLOW,
            "no connection is returned: 3 of 3 leases are held for up to 4.0 s, usually 10.0 ms",
        ),
        (replace(BUSY, recent_use=0.2), Cause.SERVER_SLOW, "recently took 200.0 ms, usually 10.0 ms"),
        (
            replace(BUSY, live=1, held=[Held(0.01, 1)], connecting_for=4.0),
            Cause.SERVER_SLOW,
            "a connect has been in progress for 4.0 s",
        ),
        (BUSY, Cause.TOO_SMALL, "all 3 connections are in use, each returned after 12.0 ms on average (so 250 "),
        (Symptoms(limit=1, live=1, waiting=1, held=[Held(0.4, 1)]), Cause.TOO_SMALL, "all 1 connections are in use"),
    ],
)  # fmt: skip
def test_each_rule(seen: Symptoms, cause: Cause, words: str) -> None:
    found = diagnose(seen)
    assert found is not None
    assert found.cause is cause
    assert words in found.reason
    assert str(found).startswith(f"{cause.value}: ")


def test_who_holds_everything_itself_is_told_so() -> None:
    seen = Symptoms(limit=2, live=2, held=[Held(0.1, 7, "MainThread"), Held(0.1, 7, "MainThread")])
    found = diagnose(seen, asking=7)
    assert found is not None
    assert found.cause is Cause.SELF_DEADLOCK
    victim = diagnose(seen, asking=8)
    assert victim is not None
    assert victim.cause is not Cause.SELF_DEADLOCK


def test_one_long_report_among_short_leases_is_no_leak() -> None:
    seen = replace(BUSY, held=[Held(60.0, 1), *BUSY.held[1:]])
    found = diagnose(seen)
    assert found is not None
    assert found.cause is Cause.TOO_SMALL


def test_a_lock_that_catches_leases_one_by_one_looks_like_a_leak_and_one_that_catches_all_like_a_slow_server() -> None:
    """The stated limit of the rules: what holders wait for, the pool does not see."""
    caught = [Held(4.0, 1, "worker-1", "app.py:8"), Held(2.0, 2)]  # each waits for a lock of the program's own
    for held, returned_ago, cause in (
        ([*caught, Held(0.001, 3)], 0.002, Cause.LEAKING),
        ([*caught, Held(1.5, 3)], 1.5, Cause.LEAKING),
        (STUCK.held, 3.97, Cause.SERVER_SLOW),
    ):
        found = diagnose(replace(BUSY, held=held, returned_ago=returned_ago))
        assert found is not None
        assert found.cause is cause


def test_waiting_for_a_connect_that_is_under_way_is_no_fault() -> None:
    assert diagnose(Symptoms(limit=5, live=1, waiting=1, held=[Held(0.1, 1)], connecting_for=0.02)) is None
