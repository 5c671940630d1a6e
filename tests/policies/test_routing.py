"""Routers and merges: which shard a key has, and one answer out of several."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit import ConfigError
from poolkit.policies.merging import concat, largest, merge_sorted, smallest, top, total
from poolkit.policies.routing import (
    FunctionRouter,
    JumpRouter,
    LookupRouter,
    RangeRouter,
    RendezvousRouter,
    RingRouter,
    Router,
)


def test_ranges_are_closed_below_and_open_above() -> None:
    """A bound belongs to the range that begins with it."""
    router = RangeRouter([1000, 2000], ["a", "b", "a"])
    assert [router.shard_of(key) for key in (-5, 999, 1000, 1999, 2000, 10**9)] == ["a", "a", "b", "b", "a", "a"]
    assert router.names == ("a", "b")


def test_a_table_with_a_default_or_another_router_behind_it() -> None:
    """Large customers have shards of their own; the rest is hashed."""
    hashed = JumpRouter(["s0", "s1"])
    router = LookupRouter({"big": "own"}, hashed)
    assert router.names == ("own", "s0", "s1")
    assert (router.shard_of("big"), router.shard_of("small")) == ("own", hashed.shard_of("small"))
    assert LookupRouter({}, "rest").shard_of("x") == "rest"


def test_a_function_decides() -> None:
    """And is held to the names."""
    router = FunctionRouter(lambda key: "even" if key % 2 == 0 else "odd", ["even", "odd"])
    assert router.shard_of(3) == "odd"
    with pytest.raises(ConfigError, match="returned 'odd', which is not one of the shards"):
        FunctionRouter(lambda key: "odd", ["even"]).shard_of(1)


def test_bounded_loads_send_a_hot_key_on() -> None:
    """One key, asked for again and again, does not fill its own shard alone."""
    router = RingRouter(["a", "b", "c"], bound=1.5)
    loads = dict.fromkeys("abc", 0)
    for _ in range(90):
        loads[router.choose("hot", loads.__getitem__)] += 1
    assert max(loads.values()) <= 46
    assert RingRouter(["a", "b", "c"]).choose("hot", lambda name: 10**6) == router.shard_of("hot")


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: RingRouter([]), "shards: empty"),
        (lambda: RingRouter("abc"), "must be a list of names"),
        (lambda: JumpRouter(["a", "a"]), "must be unique"),
        (lambda: RendezvousRouter({"a": 0}), "weight=0: must be a number above 0"),
        (lambda: RingRouter(["a"], points=0), "points=0"),
        (lambda: RingRouter(["a"], bound=1), "bound=1: must be a number above 1"),
        (lambda: RangeRouter([1], ["a"]), "1 bounds make 2 ranges, but there are 1 shards"),
        (lambda: RangeRouter([2, 1], ["a", "b", "c"]), "must be in ascending order"),
        (lambda: RangeRouter([2, "x"], ["a", "b", "c"]), "cannot be compared"),
        (lambda: RangeRouter([2], ["a", "b"]).shard_of("x"), r"key='x': must be of the kind of the bounds \(int\)"),
        (lambda: LookupRouter({"a": "s"}).shard_of("b"), "not in the table"),
        (lambda: LookupRouter({"a": "s"}, "s").shard_of([]), "must be hashable"),
        (lambda: RingRouter(["a"]).shard_of(1.5), "key=1.5: must be a string, bytes"),
        (lambda: JumpRouter(["a"]).shard_of(None), "key=None: must be a string, bytes"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(build: Any, match: str) -> None:
    """Tables, and keys of the wrong kind."""
    with pytest.raises(ConfigError, match=match):
        build()


def test_merges() -> None:
    """In the order of the shards; sorted rows stay sorted."""
    rows = [[1, 4, 9], [2, 3], []]
    assert concat(rows) == [1, 4, 9, 2, 3]
    assert merge_sorted()(rows) == [1, 2, 3, 4, 9]
    assert merge_sorted(reverse=True, limit=2)([[9, 4], [3]]) == [9, 4]
    assert merge_sorted(key=lambda row: row[1])([[("a", 1)], [("b", 0)]]) == [("b", 0), ("a", 1)]
    assert (total([1, 2]), smallest([None, 3, 2]), largest([3, None]), smallest([None])) == (3, 2, 3, None)
    assert top(2)(rows) == [9, 4]
    assert issubclass(RingRouter, Router)
