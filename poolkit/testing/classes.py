"""Classes of callers in the simulations."""

from __future__ import annotations

import random

from .._priority import choose
from ..config import ClassConfig

__all__ = ("CallerClasses", "some_classes")


def some_classes(pick: random.Random, max_size: int) -> dict[str, ClassConfig]:
    """Two to four classes that fit into a pool of that size."""
    found, left = {}, max_size - 1
    for name in ("health", "web", "bulk", "default")[: pick.randint(2, 4)]:
        reserved = min(left, pick.choice([0, 0, 1, 2]))
        left -= reserved
        limit = pick.choice([None, None, reserved or 1, reserved + 1])
        found[name] = ClassConfig(reserved=reserved, weight=pick.choice([0.5, 1, 4]), limit=limit)
    return found


class CallerClasses:
    """In some schedules callers are of several classes; drawn apart, so that the others stay what they were."""

    def __init__(self, seed: int, share: float) -> None:
        self._apart = random.Random(f"classes {seed}")
        self.drawn = self._apart.random() < share
        self.reserved = 0

    def configs(self, max_size: int) -> dict[str, ClassConfig] | None:
        """What is given to a pool of that size."""
        if not self.drawn:
            return None
        self.reserved = min(max_size - 1, self._apart.choice([0, 1, 1]))
        return {
            "health": ClassConfig(reserved=self.reserved),
            "web": ClassConfig(weight=self._apart.choice([1, 4])),
            "bulk": ClassConfig(limit=1),
        }

    def barging(self, window: float) -> float:
        """The pool's ``barging_window``: among classes nobody overtakes."""
        return 0.0 if self.drawn else window

    def choose(self, pick: random.Random) -> None:
        """The next caller is of some class."""
        if self.drawn:
            choose(pick.choice(["health", "web", "bulk", None]))

    def fill(self, number: int, size: int) -> None:
        """The next caller is the ``number``-th of those who take the whole capacity: the last ones what is reserved."""
        if self.drawn:
            choose("health" if number >= size - self.reserved else None)
