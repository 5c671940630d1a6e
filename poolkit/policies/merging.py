"""Merge the answers of several shards into one. Each function takes the answers in the order of the shards."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

__all__ = ("concat", "largest", "merge_sorted", "smallest", "top", "total")


def concat(answers: Sequence[Iterable[Any]]) -> list[Any]:
    """All rows, shard after shard."""
    return list(chain.from_iterable(answers))


def merge_sorted(
    key: Callable[[Any], Any] | None = None, *, reverse: bool = False, limit: int | None = None
) -> Callable[[Sequence[Iterable[Any]]], list[Any]]:
    """Merge rows that each shard has sorted already, like ORDER BY over all shards. ``limit``: the maximum number of
    rows.
    """
    return lambda answers: list(islice(heapq.merge(*answers, key=key, reverse=reverse), limit))


def total(answers: Sequence[Any]) -> Any:
    """The sum of one number from each shard: COUNT and SUM over shards."""
    return sum(answers)


def smallest(answers: Sequence[Any]) -> Any:
    """The smallest value. A shard without a value returns None; so does this if no shard has one."""
    return min((answer for answer in answers if answer is not None), default=None)


def largest(answers: Sequence[Any]) -> Any:
    """The largest value. A shard without a value returns None; so does this if no shard has one."""
    return max((answer for answer in answers if answer is not None), default=None)


def top(count: int, key: Callable[[Any], Any] | None = None) -> Callable[[Sequence[Iterable[Any]]], list[Any]]:
    """The ``count`` largest rows of all shards, largest first. The rows of a shard may be in any order."""
    return lambda answers: heapq.nlargest(count, chain.from_iterable(answers), key=key)
