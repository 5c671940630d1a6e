"""Which nodes move between tiers."""

from __future__ import annotations

import random

import pytest

from poolkit.policies.tiers import Standing, moves

SIZES = (2, 2, None)


def at(name: str, tier: int, use: float, below: float = 0.0, **more: bool) -> Standing:
    return Standing(name, tier, use, below, **more)


def look(*standings: Standing, sizes: tuple[int | None, ...] = SIZES) -> dict[str, int]:
    return dict(moves(standings, sizes, 0.75, 0.25))


def test_a_node_that_is_used_much_moves_up_where_there_is_room() -> None:
    assert look(at("a", 0, 0.5), at("b", 1, 0.9)) == {"b": 0}
    assert look(at("a", 0, 0.5), at("b", 1, 0.7)) == {}


def test_a_full_tier_takes_nobody_unless_it_gives_one_down() -> None:
    assert look(at("a", 0, 0.5), at("b", 0, 0.5), at("c", 1, 0.9)) == {}
    assert look(at("a", 0, 0.5), at("b", 0, 0.1), at("c", 1, 0.9)) == {"c": 0, "b": 1}


def test_two_change_places_even_where_both_tiers_are_full() -> None:
    full = [at("a", 0, 0.5), at("b", 0, 0.1), at("c", 1, 0.9), at("d", 1, 0.5), at("e", 2, 0.5)]
    assert look(*full) == {"c": 0, "b": 1}


def test_an_unused_node_moves_down_but_the_first_tier_keeps_one() -> None:
    assert look(at("a", 0, 0.1), at("b", 0, 0.2)) == {"a": 1}
    assert look(at("a", 0, 0.0), at("b", 1, 0.0)) == {"b": 2}


def test_one_node_moves_in_each_direction_at_a_time() -> None:
    found = look(*(at(f"n{n}", 2, 0.8 + n / 100) for n in range(5)), at("a", 0, 0.5))
    assert found == {"n4": 1}


def test_who_has_just_moved_is_left_alone() -> None:
    assert look(at("a", 0, 0.1, settled=False), at("b", 0, 0.5), at("c", 1, 0.9, settled=False)) == {}


def test_a_node_that_is_down_does_not_move_up() -> None:
    assert look(at("a", 0, 0.5), at("b", 1, 0.9, well=False)) == {}


def test_nobody_moves_down_to_where_it_would_move_up_again() -> None:
    """A node with two leases: a quarter of the eight that fit here, but all of the two that fit further down."""
    assert look(at("a", 0, 0.25, below=1.0), at("b", 0, 0.5)) == {}
    assert look(at("a", 0, 0.25, below=0.4), at("b", 0, 0.5)) == {"a": 1}


@pytest.mark.parametrize("seed", range(20))
def test_sizes_hold_whatever_the_use(seed: int) -> None:
    """At hundreds of looks, with random uses, no tier is over its size, no node is lost, the first is never empty."""
    pick = random.Random(seed)
    tiers = {f"n{n}": tier for n, tier in enumerate((0, 0, 1, 1, 2, 2, 2))}
    for _ in range(300):
        standings = [at(name, tier, pick.random(), pick.random()) for name, tier in tiers.items()]
        tiers.update(moves(standings, SIZES, 0.75, 0.25))
        placed = list(tiers.values())
        assert 1 <= placed.count(0) <= 2
        assert placed.count(1) <= 2
        assert set(placed) <= {0, 1, 2}


def test_a_steady_load_comes_to_rest() -> None:
    """Whatever load a node has, it does not wander for ever between tiers of different limits."""
    limits = (10.0, 4.0, 1.0)
    for load in (0.1, 0.5, 0.9, 1.0, 1.5, 2.4, 3.0, 3.9, 5.0, 9.0):
        tier, seen = 2, []
        for _ in range(20):
            now = min(load, limits[tier])
            below = now / limits[min(tier + 1, 2)]
            others = [at("x", 0, 0.5), at("y", 1, 0.5)]
            tier = dict(moves([at("n", tier, now / limits[tier], below), *others], (2, 2, None), 0.75, 0.25)).get(
                "n", tier
            )
            seen.append(tier)
        assert len(set(seen[5:])) == 1, f"load {load}: {seen}"
