"""How to walk a container that other threads change: walk a copy, made by one of these functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeVar

__all__ = ("members", "snapshot")

T = TypeVar("T")


def members(shared: deque[T]) -> list[T]:
    """Return the members of a deque while other threads change it. Takes no lock.

    ``copy()`` is one call in C, and atomic with the GIL and from Python 3.14 on. A free-threaded Python 3.13 gives up
    the lock of the deque in the middle of a copy whenever another thread wants it, and the copy fails. There ``list()``
    nearly always succeeds; it does not on Python 3.14.
    """
    while True:
        try:
            return list(shared.copy())
        except RuntimeError:  # the deque was mutated during iteration
            pass
        try:
            return list(shared)
        except RuntimeError:
            pass


def snapshot(things: Iterable[T]) -> list[T]:
    """Return the members of a weak set, or the keys of a weak dict.

    ``list()`` alone may raise: the garbage collector removes dead members in any thread, even while another thread
    iterates over them.
    """
    for _ in range(100):
        try:
            return list(things)
        except RuntimeError:  # changed size during iteration
            continue
    return list(things)
