"""How many connections a pool may have, and how many it keeps: the sizes alone, without a pool."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from poolkit import AutoscaleConfig, ClassConfig, PoolConfig
from poolkit._core.capacity import ElasticSize, FixedSize, Size, size_of
from poolkit.policies.autoscale import View

NOW = 1000.0
POLICY = AutoscaleConfig(max_wait=0.1, up_delay=0.0, down_delay=10.0)
QUIET = View(0, 0, 0.0, 0, 0.0, False, False)


def crowded(size: Size) -> View:
    return View(size.limit, size.limit, None, 5, 1.0, True, False)


def make(old: Size | None = None, *, on_demand: bool = False, **settings: Any) -> tuple[Size, list[float]]:
    asked: list[float] = []
    config = PoolConfig(**{"max_size": 8, **settings})
    return size_of(config, old, on_demand=on_demand, due=asked.append), asked


def elastic(**settings: Any) -> tuple[ElasticSize, list[float]]:
    size, asked = make(autoscale=POLICY, **settings)
    assert isinstance(size, ElasticSize)
    return size, asked


def tick(size: Size, now: float, view: View, *, waiting: bool = True, least: float = 0.0) -> bool:
    return size.tick(now, least, lambda: waiting, lambda: view)


def test_a_fixed_size_is_what_the_settings_say() -> None:
    size, asked = make(min_size=2, max_idle=3)
    assert (size.limit, size.minimum, size.max_idle, size.largest, size.reason) == (8, 2, 3, 8, "")
    size.queued(NOW)
    size.look_by(NOW)
    size.refused(NOW, NOW, lambda: pytest.fail("nobody has to count"))
    assert not size.expect(20, NOW)
    assert not tick(size, NOW, QUIET)
    assert not asked


def test_without_a_limit_anything_goes() -> None:
    size, _ = make(max_size=None)
    assert size.limit == size.max_idle == sys.maxsize


def test_callers_that_wait_too_long_make_the_pool_larger() -> None:
    size, asked = elastic(min_size=1)
    assert (size.limit, size.minimum, size.largest) == (1, 1, 8)
    size.queued(NOW)
    assert asked == [NOW + 0.1]
    assert not tick(size, NOW + 0.05, crowded(size)), "not due yet"
    assert asked[-1] == NOW + 0.1
    tick(size, NOW + 0.1, crowded(size))
    tick(size, asked[-1], crowded(size))
    assert size.limit > 1
    assert "waited" in size.reason
    assert size.watched()


def test_a_check_is_not_repeated_within_the_least_time() -> None:
    size, asked = elastic()
    size.look_by(NOW)
    tick(size, NOW, crowded(size), least=5.0)
    size.look_by(NOW + 1)
    views: list[View] = []
    size.tick(NOW + 1, 5.0, lambda: True, lambda: views.append(QUIET) or QUIET)  # type: ignore[func-returns-value]
    assert not views
    assert asked[-1] == NOW + 5


def test_who_asks_for_more_than_the_limit_gets_room() -> None:
    size, asked = elastic()
    assert size.expect(5, NOW)
    assert size.limit == 5
    assert asked == [NOW]
    assert not size.expect(5, NOW)


def test_a_refusal_for_overload_makes_the_pool_smaller() -> None:
    size, asked = elastic()
    size.expect(8, NOW)
    size.refused(NOW - 1, NOW, lambda: 4)
    assert asked[-1] == NOW
    tick(size, NOW, crowded(size))
    assert size.limit < 8
    assert "refused" in size.reason


def test_connections_kept_without_need_are_no_more_than_may_be_idle() -> None:
    size, _ = elastic(max_idle=2)
    size.expect(6, NOW)
    assert (size.limit, size.minimum) == (6, 2)
    bare, _ = make(autoscale=POLICY, on_demand=True)
    bare.expect(6, NOW)
    assert bare.minimum == 0


def test_a_class_without_a_reserve_gets_a_connection_at_any_size() -> None:
    size, _ = elastic(classes={"health": ClassConfig(reserved=3)})
    assert size.limit == 4


def test_other_settings_keep_what_was_learnt() -> None:
    size, _ = elastic()
    size.expect(6, NOW)
    changed, _ = make(size, autoscale=POLICY, max_size=7)
    assert changed is size
    assert (changed.limit, changed.largest) == (6, 7)
    fixed, _ = make(size)
    assert isinstance(fixed, FixedSize)
    assert fixed.limit == 8
