"""The rules of elastic size, one by one: numbers in, a limit out, time as an argument."""

from __future__ import annotations

import random
from typing import Any

import pytest

from poolkit import AutoscaleConfig, ConfigError
from poolkit.policies.autoscale import Autoscaler, Need, Peak, View, needed
from poolkit.policies.queueing import wait_quantile
from poolkit.policies.retire import NEVER


class Scaled:
    """An autoscaler with a load: ``run`` looks once a second at what so many connections on average would show."""

    def __init__(self, low: int = 2, high: int = 40, **settings: Any) -> None:
        self.scaler = Autoscaler(AutoscaleConfig(**settings), low, high)
        self.now = 1000.0
        self.busy = 0.0
        self.look(0)

    def look(self, in_use: int, **view: Any) -> bool:
        view = {"size": self.scaler.limit, "busy": self.busy, **view}
        return self.scaler.look(self.now, View(in_use, **view))

    def run(self, seconds: int, load: float) -> Scaled:
        for _ in range(seconds):
            self.now += 1
            self.busy += load
            self.look(round(load))
        return self

    def wait(self, waiting: int, longest: float) -> bool:
        """Callers stand in the queue while all connections are in use."""
        return self.look(self.scaler.limit, waiting=waiting, longest=longest, queued=True)


def test_the_share_in_use_sets_the_size() -> None:
    """75 in use on average at 75 % are 100 connections."""
    assert Scaled(high=200).run(10, 75).scaler.limit == 100
    assert Scaled(high=200, target=0.5).run(10, 75).scaler.limit == 150
    assert "30.0 in use on average" in Scaled().run(10, 30).scaler.reason


@pytest.mark.parametrize("load", [0.5, 1, 2, 5, 10, 20, 50])
def test_small_pools_keep_more_room_so_that_few_callers_wait(load: float) -> None:
    """By the formulas for the queue: 95 % of all callers wait less than a lease, whatever the load."""
    assert wait_quantile(0.95, needed(load, 0.75), load, 1.0) <= 0.75


def test_the_size_stays_within_its_bounds() -> None:
    busy, quiet = Scaled(low=3, high=10).run(10, 100).scaler, Scaled(low=3, high=10).run(5, 0.1).scaler
    assert (busy.limit, busy.floor) == (10, 10)
    assert (quiet.limit, quiet.floor, quiet.reason) == (3, 3, "min_size")


def test_an_unused_pool_without_min_size_keeps_none_and_may_open_one() -> None:
    scaler = Scaled(low=0).scaler
    assert (scaler.limit, scaler.floor) == (1, 0)


def test_callers_who_wait_raise_the_limit_to_its_double_at_most() -> None:
    """4, 8, 16, 32, 40: once each up_delay, as long as somebody waits for too long."""
    scaled = Scaled(low=4, max_wait=0.02, up_delay=5 / 64)
    seen = []
    for _ in range(30):
        scaled.now += 1 / 64
        scaled.wait(100, 0.03)
        seen.append(scaled.scaler.limit)
    assert seen[:5] == [4] * 5, "not before up_delay is over"
    assert list(dict.fromkeys(seen)) == [4, 8, 16, 32, 40]
    assert seen.count(8) == seen.count(16) == 5, "each rise gets its time to show"
    assert scaled.scaler.reason == "100 callers waited, the first 0.03 s"


def test_a_short_wait_raises_nothing() -> None:
    """Whether short because a lease came back, or because nobody waited as long as up_delay."""
    scaled = Scaled(low=4, max_wait=0.02, up_delay=0.05)
    for turn in range(50):
        scaled.now += 0.03
        scaled.wait(10, 0.03 if turn % 2 else 0.01)
    assert scaled.scaler.limit == 4


def test_waits_for_something_else_than_a_place_raise_nothing() -> None:
    """While permitted connections are missing (a budget, a slow server), a larger limit would not help."""
    scaled = Scaled(low=4, up_delay=0)
    scaled.now += 1
    scaled.look(3, size=3, waiting=10, longest=5.0, queued=True)
    assert scaled.scaler.limit == 4


def test_it_falls_only_when_the_whole_down_delay_was_quiet() -> None:
    scaled = Scaled(down_delay=60, prewarm=0).run(10, 20)
    assert scaled.run(59, 1).scaler.limit == needed(20, 0.75)
    assert scaled.run(3, 1).scaler.limit == needed(1, 0.75) == 3


def test_one_busy_moment_is_enough_to_keep_the_size() -> None:
    scaled = Scaled(down_delay=60, prewarm=0).run(5, 20)
    for _ in range(10):
        scaled.run(50, 1).run(10, 20)
    assert scaled.scaler.limit == needed(20, 0.75)


def test_a_share_of_a_recent_peak_stays_warm_until_it_is_forgotten() -> None:
    scaled = Scaled(down_delay=60, prewarm=0.5, peak_memory=900).run(5, 20)
    peak = needed(20, 0.75)
    assert scaled.run(100, 0).scaler.floor == -(-peak // 2)
    assert f"{peak} were needed at the last peak" in scaled.scaler.reason
    assert scaled.run(790, 0).scaler.floor == -(-peak // 2)
    assert scaled.run(20, 0).scaler.floor == 2


def test_a_refusal_cuts_and_each_recovery_gives_one_back() -> None:
    """20 stand and the server refuses the next: 16, then 17, 18, ... every 5 s."""
    scaled = Scaled().run(5, 20)
    assert scaled.scaler.refused(scaled.now, scaled.now - 0.1, 20)
    scaled.look(20)
    assert scaled.scaler.limit == 16
    assert scaled.scaler.reason.startswith("the server refused more")
    sizes = [scaled.run(5, 20).scaler.limit for _ in range(20)]
    assert sizes[:4] == [17, 18, 19, 20]
    assert sizes[-1] == needed(20, 0.75), "then the load alone counts again"


def test_connects_that_are_refused_together_cut_once() -> None:
    scaled = Scaled().run(5, 20)
    began = scaled.now - 0.1
    assert scaled.scaler.refused(scaled.now, began, 20)
    assert not scaled.scaler.refused(scaled.now + 0.01, began, 20)
    assert scaled.scaler.refused(scaled.now + 1, scaled.now + 0.5, 14), "one that began later is news"
    assert scaled.scaler.cap == 11


def test_a_cap_leaves_what_min_size_promises() -> None:
    scaled = Scaled(low=8).run(5, 20)
    scaled.scaler.refused(scaled.now, scaled.now, 3)
    scaled.look(20)
    assert scaled.scaler.limit == 8


def test_nothing_is_forgotten_while_the_server_is_down() -> None:
    """An hour without a server: it comes back, and the callers find as many connections as before."""
    scaled = Scaled(down_delay=60, prewarm=0).run(10, 20)
    before = scaled.scaler.limit
    for _ in range(3600):
        scaled.now += 1
        scaled.look(0, size=0, waiting=0, queued=True, down=True)
    assert scaled.scaler.limit == before


def test_somebody_who_knows_may_say_so() -> None:
    """warm_up(12): room for them, and they stay for a down_delay."""
    scaled = Scaled(prewarm=0)
    scaled.scaler.expect(scaled.now, 12)
    assert scaled.scaler.limit == scaled.scaler.floor == 12
    assert scaled.run(59, 0).scaler.limit == 12
    assert scaled.run(2, 0).scaler.limit == 2


def test_other_bounds_take_effect_at_once() -> None:
    scaled = Scaled().run(5, 20)
    scaled.scaler.configure(scaled.scaler.config, 2, 10)
    assert scaled.scaler.limit == 10
    scaled.scaler.configure(scaled.scaler.config, 15, 40)
    assert scaled.scaler.limit == 15


def test_multiplexed_connections_are_counted_where_seconds_say_nothing() -> None:
    scaled = Scaled()
    for _ in range(3):
        scaled.now += 5
        scaled.look(12, busy=None)
    assert scaled.scaler.limit == needed(12, 0.75)


def test_a_pool_at_rest_asks_for_no_look() -> None:
    """Used: every 5 s. Quiet but large: now and then. Small and quiet: never again."""
    scaled = Scaled(down_delay=60, prewarm=0).run(5, 20)
    scaler, unused = scaled.scaler, View(0, 2, busy=scaled.busy)
    assert scaler.next_look(scaled.now, View(20, 20, busy=0.0)) == scaled.now + 5
    scaled.run(10, 0)
    assert scaler.next_look(scaled.now, View(0, 2, busy=scaled.busy)) == scaled.now + 10
    scaled.run(100, 0)
    assert scaler.next_look(scaled.now, unused) == NEVER
    waits = View(2, 2, waiting=1, longest=0.005, queued=True)
    assert scaler.next_look(scaled.now, waits) == pytest.approx(scaled.now + 0.005), "when max_wait is over"
    served = View(2, 3, queued=True)
    assert scaler.next_look(scaled.now, served) == scaled.now + 0.01, "others may queue behind whom a connect is for"


def test_callers_that_wait_for_connects_within_the_limit_cause_no_busy_loop() -> None:
    """They have waited longer than max_wait, but what they lack is a slow connect and not a larger limit."""
    scaled = Scaled(max_wait=0.005, up_delay=0.05).run(10, 5)
    scaler, now = scaled.scaler, scaled.now
    waits = View(1, scaler.limit - 1, busy=scaled.busy, waiting=2, longest=40.0, queued=True)
    scaler.look(now, waits)
    assert scaler.next_look(now, waits) >= now + 0.05


def test_a_pool_that_is_used_again_after_a_rest_keeps_its_size() -> None:
    """Use without a wait wakes nobody, but the looks of a large pool notice it in time."""
    scaled = Scaled(down_delay=60, prewarm=0).run(10, 20).run(10, 0)
    for _ in range(30):  # leases come and go between the looks
        scaled.now += 10
        scaled.busy += 200
        scaled.look(0)
    assert scaled.scaler.limit == needed(20, 0.75)


def test_a_sliding_maximum_agrees_with_the_plain_one() -> None:
    """And keeps no more than one need of each size."""
    chance = random.Random(4)
    peak, all_of_them, now = Peak(), [], 0.0
    for _ in range(3000):
        now += chance.random()
        need = Need(now, chance.randint(1, 12), "")
        peak.add(need)
        all_of_them.append(need)
        span = 30.0
        most = peak.most(now, span)
        assert most is not None
        assert most.size == max(one.size for one in all_of_them if one.at >= now - span)
        assert len(peak._found) <= 12
    assert peak.most(now + 100, span) is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"target": 0}, r"autoscale\.target=0: must be a share, above 0 to 1"),
        ({"target": 75}, r"autoscale\.target=75: must be a share"),
        ({"target": True}, r"autoscale\.target=True"),
        ({"prewarm": -0.1}, r"autoscale\.prewarm=-0.1: must be a share, 0 to 1"),
        ({"overload_factor": 1}, r"autoscale\.overload_factor=1: must be a share, above 0 to below 1"),
        ({"overload_factor": float("nan")}, r"autoscale\.overload_factor=nan"),
        ({"up_delay": -1}, r"autoscale\.up_delay=-1: must be a time in seconds, 0 or more"),
        ({"max_wait": None}, r"autoscale\.max_wait=None: must be a time"),
        ({"down_delay": 0}, r"autoscale\.down_delay=0: must be a time in seconds, above 0"),
        ({"peak_memory": "900"}, r"autoscale\.peak_memory='900'"),
        ({"overload_recovery": 0}, r"autoscale\.overload_recovery=0"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        AutoscaleConfig(**settings)
    assert caught.value.setting in settings
