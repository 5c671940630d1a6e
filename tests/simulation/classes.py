"""Classes of callers in the simulations."""

from __future__ import annotations

import random
from collections import Counter

from poolkit._core.machine import Core
from poolkit._core.queue import Request
from poolkit._core.slots import Slot
from poolkit._priority import choose
from poolkit.config import ClassConfig
from poolkit.policies.classes import CallerClass

__all__ = ("CallerClasses", "check_growth", "check_use", "held_by_classes", "some_classes")


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


def held_by_classes(core: Core) -> Counter[CallerClass]:
    """Connections in use, by the class that they are counted for."""
    return Counter(slot.owner for slot in core.slots.living() if slot.owner is not None)


def check_growth(core: Core, before: Counter[CallerClass], most: int) -> None:
    """Who has more than ``before`` is entitled to it, in a pool that may have had ``most`` connections meanwhile."""
    held, classes = held_by_classes(core), core.classes
    if classes is None:
        return
    taken = sum(max(held[one], one.reserved) for one in classes.known.values())
    for one, number in held.items():
        if number > before[one] and number > one.reserved:
            assert one.limit is None or number <= one.limit, f"class {one.name!r} is beyond its limit"
            assert taken <= most, f"class {one.name!r} got a connection that was reserved for another"


def check_use(core: Core, request: Request, slot: Slot, *, changed: bool) -> None:
    """It has its connection: it is counted for its class. ``changed``: the settings of the classes, at some time."""
    owner, one, classes = slot.owner, request.caller_class, core.classes
    # its class may be of a time before the last settings: they were taken away and others came since it was served
    here = one is not None and classes is not None and classes.known.get(one.name) is one
    if owner is not None and here and owner is not one:
        assert slot.capacity > 1, "a connection is counted for another class than its user's"
        assert not owner.reserved or changed, "a connection of a class with a reserve is shared with another"
