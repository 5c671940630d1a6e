"""The rule among classes of callers: reserved permits, limits, and shares by start-time fair queueing."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from poolkit import ClassConfig, ConfigError
from poolkit.policies.classes import CallerClass, Classes


def classes(limit: int = 10, **configs: ClassConfig) -> tuple[Classes, dict[str, CallerClass]]:
    made = Classes()
    made.configure(configs, next(iter(configs)), ())
    return made, made.known


def served(made: Classes, waiting: list[CallerClass]) -> CallerClass:
    """One connection changes hands: to the first in turn, who gives it back."""
    one = min(waiting, key=made.rank)
    made.take(one)
    one.held -= 1
    return one


def test_what_is_reserved_is_left_to_its_class() -> None:
    made, known = classes(health=ClassConfig(reserved=2), bulk=ClassConfig())
    for _ in range(8):
        assert made.admits(known["bulk"], 10)
        made.take(known["bulk"])
    assert not made.admits(known["bulk"], 10)
    assert made.admits(known["health"], 10)
    made.take(known["health"])
    made.take(known["health"])
    assert not made.admits(known["health"], 10)


def test_a_class_may_go_beyond_its_reserve_while_something_is_left_for_all() -> None:
    made, known = classes(health=ClassConfig(reserved=1), bulk=ClassConfig())
    for _ in range(4):
        assert made.admits(known["health"], 4)
        made.take(known["health"])
    assert not made.admits(known["health"], 4)
    assert not made.admits(known["bulk"], 4)


def test_a_limit_holds_beside_free_connections() -> None:
    made, known = classes(web=ClassConfig(), bulk=ClassConfig(limit=2))
    made.take(known["bulk"])
    made.take(known["bulk"])
    assert not made.admits(known["bulk"], 10)
    assert made.admits(known["web"], 10)
    assert made.most(known["bulk"], 10) == 2


def test_who_is_within_its_reserve_comes_first() -> None:
    made, known = classes(health=ClassConfig(reserved=1, weight=0.001), web=ClassConfig(weight=1000))
    for _ in range(5):
        assert served(made, [known["web"], known["health"]]) is known["health"]


@pytest.mark.parametrize("weights", [(1, 1), (4, 1), (5, 3, 2), (0.5, 0.25, 8), (1, 1 / 3)])
def test_leases_follow_the_weights_at_every_moment(weights: tuple[float, ...]) -> None:
    """Goyal, Vin and Cheng's bound: leases by weight of two that wait all the time differ by 1/w1 + 1/w2 at most."""
    made, known = classes(**{f"c{n}": ClassConfig(weight=weight) for n, weight in enumerate(weights)})
    counts: Counter[CallerClass] = Counter()
    for _ in range(1000):
        counts[served(made, list(known.values()))] += 1
        for one, other in itertools.combinations(known.values(), 2):
            gap = abs(counts[one] / one.weight - counts[other] / other.weight)
            assert gap <= 1 / one.weight + 1 / other.weight + 1e-6
    total = sum(weights)
    for one in known.values():
        assert counts[one] == pytest.approx(1000 * one.weight / total, abs=2)


def test_nothing_is_saved_up_by_not_waiting() -> None:
    """A class that was silent while another had 1000 leases shares from its first one on, and does not catch up."""
    made, known = classes(web=ClassConfig(), bulk=ClassConfig())
    for _ in range(1000):
        served(made, [known["web"]])
    counts = Counter(served(made, list(known.values())).name for _ in range(10))
    assert counts == {"web": 5, "bulk": 5}


def test_use_of_the_reserve_costs_nothing_in_the_competition() -> None:
    made, known = classes(health=ClassConfig(reserved=1), web=ClassConfig(), bulk=ClassConfig())
    for _ in range(1000):
        served(made, [known["health"]])
    assert made.virtual == 0.0
    counts = Counter(served(made, [known["web"], known["bulk"]]).name for _ in range(10))
    assert counts == {"web": 5, "bulk": 5}


def test_nobody_starves_whoever_comes_and_goes() -> None:
    """A waiting class is served before any other class has had more than its share by weight, plus one round."""
    pick = random.Random(7)
    made, known = classes(a=ClassConfig(weight=8), b=ClassConfig(weight=1), c=ClassConfig(weight=3))
    for _ in range(300):
        others = [one for one in known.values() if one.name != "b" and pick.random() < 0.8] or [known["a"]]
        for _ in range(pick.randrange(20)):
            served(made, others)
        turns = 1
        while served(made, [*others, known["b"]]) is not known["b"]:
            turns += 1
        assert turns <= 8 + 3 + 2 + 1


def test_room_counts_what_classes_may_have_together() -> None:
    made, known = classes(health=ClassConfig(reserved=2), web=ClassConfig(), bulk=ClassConfig(limit=3))
    assert made.room([(known["bulk"], 10)], 10) == 3
    assert made.room([(known["web"], 10)], 10) == 8
    assert made.room([(known["web"], 10), (known["health"], 10)], 10) == 10
    assert made.room([(known["web"], 5), (known["bulk"], 5)], 10) == 8
    assert made.room([(known["web"], 10), (known["health"], 1)], 10, elsewhere=8) == 1


def test_a_class_that_is_gone_stays_for_those_who_have_something() -> None:
    made, known = classes(web=ClassConfig(), bulk=ClassConfig(reserved=1, limit=4))
    made.take(known["bulk"])
    bulk = known["bulk"]
    made.configure({"web": ClassConfig()}, "web", ())
    assert (bulk.reserved, bulk.limit) == (0, None)
    with pytest.raises(ConfigError, match=r"priority\('bulk'\): no such class of callers; known: web"):
        made.of("bulk")
    bulk.held -= 1
    made.configure({"web": ClassConfig()}, "web", ())
    assert set(made.known) == {"web"}


def test_an_unknown_name_is_answered_with_the_nearest_right_one() -> None:
    made, _ = classes(health=ClassConfig(), bulk=ClassConfig())
    with pytest.raises(ConfigError, match="did you mean 'health'"):
        made.of("helth")


def test_without_a_default_there_is_a_class_default() -> None:
    made = Classes()
    made.configure({"bulk": ClassConfig(weight=2)}, None, ())
    assert made.of(None).name == "default"
    assert made.words(made.of("bulk"), 5) == "class 'bulk': 0 in use of at most 5 (weight 2 of 3)"
