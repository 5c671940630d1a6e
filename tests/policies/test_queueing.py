"""Sizes and waits: against tables, the closed form, and a simulated queue."""

from __future__ import annotations

import heapq
import math
import random

import pytest

from poolkit import ConfigError, Pool, estimate_size
from poolkit.policies.queueing import erlang_c, mean_wait, size_for_wait, sized, wait_quantile
from poolkit.testing import FakeConnector, ManualClock


@pytest.mark.parametrize(
    ("size", "offered", "probability"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.4092), (20, 16.0, 0.2561), (5, 5.0, 1.0), (3, 0.0, 0.0)],
)
def test_erlang_c_agrees_with_the_tables(size: int, offered: float, probability: float) -> None:
    assert erlang_c(size, offered) == pytest.approx(probability, abs=1e-4)


def test_waits_agree_with_a_simulated_queue() -> None:
    """Poisson callers, exponential leases, one queue: 60,000 of them, seeded."""
    dice, size, rate, hold = random.Random(7), 4, 100.0, 0.028
    free = [0.0] * size
    now, waits = 0.0, []
    for _ in range(60_000):
        now += dice.expovariate(rate)
        begins = max(now, free[0])
        heapq.heapreplace(free, begins + dice.expovariate(1 / hold))
        waits.append(begins - now)
    waits.sort()
    assert mean_wait(size, rate, hold) == pytest.approx(sum(waits) / len(waits), rel=0.1)
    assert wait_quantile(0.95, size, rate, hold) == pytest.approx(waits[int(0.95 * len(waits))], rel=0.1)


def test_too_much_load_waits_for_ever() -> None:
    assert mean_wait(4, 100, 0.05) == math.inf
    assert wait_quantile(0.5, 4, 100, 0.05) == math.inf


def test_the_size_for_a_wait_is_the_smallest() -> None:
    size = size_for_wait(0.01, 0.99, 500, 0.02)
    assert wait_quantile(0.99, size, 500, 0.02) <= 0.01 < wait_quantile(0.99, size - 1, 500, 0.02)


def test_littles_law_with_headroom() -> None:
    assert sized(500, 0.02) == 12
    assert sized(1, 0.001) == 1
    assert estimate_size(500, 0.02).load == 10


def test_an_estimate_in_words() -> None:
    found = estimate_size(500, 0.02)
    assert str(found).splitlines()[0] == f"max_size={found.size}, min_size={found.min_size}"
    assert "On average 10.0 connections are in use (500 leases/s of 20.00 ms each: Little's law)." in str(found)
    assert found.size >= 12
    assert found.wait_99 <= 0.02
    assert found.min_size == math.ceil(0.3 * found.size)
    assert dict(found.wait)[found.size] == found.mean_wait
    assert [wait for _, wait in found.wait] == sorted((wait for _, wait in found.wait), reverse=True)


def test_many_processes_share_the_servers_limit() -> None:
    found = estimate_size(500, 0.02, processes=8, server_max=20)
    assert found.load == pytest.approx(1.25)
    (warning,) = found.warnings
    assert warning.startswith(f"8 x {found.size} = {8 * found.size} connections exceed the server's limit of 20; ")
    assert "with max_size=2 they fit, and callers wait " in warning
    (warning,) = estimate_size(5000, 0.02, processes=8, server_max=20).warnings
    assert "max_size=2 would fit, but is not enough for the load" in warning
    assert estimate_size(500, 0.02, processes=8, server_max=100).warnings == ()
    (warning,) = estimate_size(500, 0.02, server_max=estimate_size(500, 0.02).size + 1).warnings
    assert "leave little room for administration" in warning


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((0, 0.02), {}, "rate=0: must be a number above 0"),
        ((5, -1), {}, "hold=-1: must be a number above 0"),
        ((5, math.nan), {}, "hold=nan: must be a number above 0"),
        ((5, 1), {"processes": 0}, "processes=0: must be a whole number, 1 or more"),
        ((5, 1), {"server_max": 1.5}, "server_max=1.5: must be a whole number"),
        ((1e6, 20), {}, "check the units"),
    ],
)
def test_what_cannot_be_is_an_error(arguments: tuple[float, float], options: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        estimate_size(*arguments, **options)


def used(pool: Pool[object], clock: ManualClock, leases: int, hold: float, pause: float) -> str:
    for _ in range(leases):
        with pool.lease():
            clock.advance(hold)
        clock.advance(pause)
    return str(pool.advice())


def test_advice_from_what_a_pool_has_seen() -> None:
    clock = ManualClock()
    with Pool(FakeConnector(), name="db", max_size=20, clock=clock) as pool:
        assert str(pool.advice()) == "db: too few leases for advice"
        text = used(pool, clock, 100, 0.02, 0.08)  # type: ignore[arg-type]
        assert text.startswith("db: max_size=20 is more than enough: ")
        assert "10.0 leases/s of 20.00 ms, 0.2 in use on average, 0 timed out)" in text
        pool.reconfigure(max_size=1)
        text = used(pool, clock, 200, 0.09, 0.01)  # type: ignore[arg-type]
        assert text.startswith("db: max_size=1 is too small for this load: ")
        assert pool.advice().estimate is not None
