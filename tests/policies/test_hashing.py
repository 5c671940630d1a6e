"""Consistent hashing: stable, even, and little moves when a node comes or goes."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable

import pytest

from poolkit import ConfigError
from poolkit.policies.hashing import Ring, hash_key, jump_hash, rendezvous_order

KEYS = [f"user:{number}" for number in range(8000)]
FOUR = ["a", "b", "c", "d"]

WAYS: dict[str, Callable[[list[str]], Callable[[str], str]]] = {
    "ring": lambda names: Ring(dict.fromkeys(names, 1.0)).owner,
    "rendezvous": lambda names: lambda key: rendezvous_order(key, names)[0],
    "jump": lambda names: lambda key: names[jump_hash(hash_key(key), len(names))],
}


@pytest.mark.parametrize("way", WAYS)
def test_from_four_to_five_nodes_a_fifth_of_the_keys_moves_and_only_to_the_new_one(way: str) -> None:
    """Measured on 8000 keys."""
    before, after = WAYS[way](FOUR), WAYS[way]([*FOUR, "e"])
    moved = [key for key in KEYS if before(key) != after(key)]
    assert 0.15 < len(moved) / len(KEYS) < 0.26
    assert {after(key) for key in moved} == {"e"}


@pytest.mark.parametrize("way", WAYS)
def test_every_node_gets_about_its_share(way: str) -> None:
    """Within a quarter of 2000 (a ring of 160 points for each node is the least even)."""
    counts = Counter(map(WAYS[way](FOUR), KEYS))
    assert all(1500 < counts[name] < 2500 for name in FOUR)


def test_weights_are_shares_of_the_keys() -> None:
    """Weight 3 beside 1: three quarters."""
    weights = {"a": 3.0, "b": 1.0}
    ring = Counter(map(Ring(weights).owner, KEYS))
    highest = Counter(rendezvous_order(key, list(weights), weights)[0] for key in KEYS)
    assert 0.68 < ring["a"] / len(KEYS) < 0.82
    assert 0.73 < highest["a"] / len(KEYS) < 0.77


def test_bounded_loads_pass_on_what_is_too_much() -> None:
    """With a bound of 1.1 times the average nobody is above it."""
    ring, loads = Ring(dict.fromkeys(FOUR, 1.0)), Counter[str]()
    for number, key in enumerate(KEYS, 1):
        loads[ring.owner(key, lambda name, n=number: loads[name] < 1.1 * n / 4 + 1)] += 1
    assert max(loads.values()) <= 1.1 * len(KEYS) / 4 + 1
    assert ring.owner("x", lambda name: False) == ring.owner("x")


def test_jump_hash_agrees_with_the_paper() -> None:
    """Values of the published algorithm."""
    cases = [(1, 1), (42, 57), (0xDEAD10CC, 666), (256, 1024), (10863919174838991, 11)]
    assert [jump_hash(*case) for case in cases] == [0, 43, 361, 520, 6]
    with pytest.raises(ConfigError, match="buckets=0"):
        jump_hash(1, 0)


def test_the_hash_of_a_key_is_the_same_in_every_process() -> None:
    """Unlike hash() of a string."""
    code = "from poolkit.policies.hashing import hash_key; print(hash_key(('a', 1, b'x')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == hash_key(("a", 1, b"x"))
    assert len({hash_key(key) for key in ("1", 1, b"1", True, ("1",), ("1", ""), uuid.UUID(int=1))}) == 7


@pytest.mark.parametrize("key", [1.5, None, object(), ["a"]])
def test_a_key_whose_text_is_not_the_same_everywhere_is_refused(key: object) -> None:
    """Floats, None, objects, lists."""
    with pytest.raises(ConfigError, match="must be a string, bytes, a whole number"):
        hash_key(key)  # type: ignore[arg-type]
