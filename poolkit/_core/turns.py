"""Whose turn it is: the oldest waiter's, or, among classes of callers, that of the class that comes first.

The rules are in :mod:`poolkit.policies.classes`; here they meet entries and waiters. What belongs to whom is written on
the entry: a class's ``held`` is the number of entries whose ``owner`` it is.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from ..config import PoolConfig
from ..policies.classes import Classes
from ..policies.sizing import dials_wanted
from .entry import CLOSED, CLOSING, IDLE, IN_USE, RESETTING, Entry
from .lane import Lane
from .state import CoreState
from .waiter import Waiter

__all__ = ("Turns",)


class Turns(CoreState):
    """Order among those who wait."""

    def set_classes(self, config: PoolConfig) -> None:
        """Take over the settings of the classes, at any time: callers keep the class that they came with."""
        old = self.classes
        if config.classes is None:
            if old is not None:
                self._disband()
            return
        classes = self.classes = old or Classes()
        busy = {one for lane in self.lanes.values() for one, queue in lane.queues.items() if queue}
        classes.configure(config.classes, config.default_class, busy)
        for lane in self.lanes.values():
            self.open_queues(lane)
        if old is None:  # who came without a class is of the default one
            for lane in self.lanes.values():
                for waiter in lane.waiters:
                    waiter.caller_class = classes.default
                    lane.queues[classes.default][waiter] = None
            for entry in self.entries.values():
                if entry.state in (IN_USE, RESETTING):
                    entry.owner = classes.default
                    classes.default.held += 1
            classes.count()

    def _disband(self) -> None:
        self.classes = None
        for entry in self.entries.values():
            entry.owner = None
        for lane in self.lanes.values():
            lane.queues = {}

    def open_queues(self, lane: Lane) -> None:
        """A queue for each class. A new dict: who looks at the old one without the lock is not disturbed."""
        assert self.classes is not None
        lane.queues = {one: lane.queues.get(one) or OrderedDict() for one in self.classes.known.values()}

    def classify(self, waiter: Waiter) -> None:
        """Who names no class, or one that is gone by now, is of the default one."""
        if self.classes is not None and waiter.caller_class not in waiter.lane.queues:
            waiter.caller_class = self.classes.default

    # -- who is next ----------------------------------------------------------------------------------------------

    def in_turn(self, lane: Lane) -> list[Waiter]:
        """The first of each class, in the order in which they are to be served; without classes the oldest."""
        classes = self.classes
        if classes is None:
            return [lane.oldest()] if lane.waiters else []
        firsts = [(classes.rank(one), next(iter(queue))) for one, queue in lane.queues.items() if queue]
        firsts.sort(key=lambda first: (first[0], first[1].ticket))
        return [waiter for _, waiter in firsts]

    def next_waiter(self, lane: Lane) -> Waiter | None:
        """The next waiter for a connection of its own; None: nobody waits that may have one."""
        if self.classes is None:
            return lane.oldest() if lane.waiters else None
        return next((one for one in self.in_turn(lane) if self.admits(one)), None)

    def next_for(self, lane: Lane, entry: Entry) -> Waiter | None:
        """Who of the lane is next for just this connection."""
        if self.classes is None:
            return lane.oldest() if lane.waiters else None
        return next((one for one in self.in_turn(lane) if self.may_have(one, entry)), None)

    def admits(self, waiter: Waiter) -> bool:
        """Whether the waiter's class may have one more connection in use."""
        classes, one = self.classes, waiter.caller_class
        return classes is None or one is None or classes.admits(one, self.limit)

    def may_have(self, waiter: Waiter, entry: Entry) -> bool:
        """Whether the waiter may use this connection, or this further stream of one that is in use."""
        classes, one = self.classes, waiter.caller_class
        if classes is None or one is None:
            return True
        return classes.may_join(one, entry.owner) if entry.leases else classes.admits(one, self.limit)

    def wanting(self, lane: Lane) -> bool:
        """Whether anybody waits who may have a connection. Called without the lock, too: then it is a guess."""
        classes = self.classes
        if classes is None or not lane.waiters:
            return bool(lane.waiters)
        return any(queue and classes.admits(one, self.limit) for one, queue in lane.queues.items())

    def overtakes(self, waiter: Waiter, now: float) -> bool:
        """Whether the newcomer may look for an idle connection before those who wait already.

        Among classes: not before those of its own. The others would have taken it, if they were allowed to.
        """
        lane = waiter.lane
        if self.classes is not None:
            self.classify(waiter)
            assert waiter.caller_class is not None
            return not lane.queues[waiter.caller_class]
        return not lane.waiters or now - lane.oldest().since < self.barging

    def ahead_of(self, waiter: Waiter) -> OrderedDict[Waiter, None]:
        """The queue in which the waiter stands: that of its class, where there are classes."""
        if self.classes is None or waiter.caller_class is None:
            return waiter.lane.waiters
        return waiter.lane.queues[waiter.caller_class]

    # -- how many connections are wanted --------------------------------------------------------------------------

    def dials_needed(self, lane: Lane, extra: int = 0, *, beside: int = 0) -> int:
        """Further connects that the waiters of a lane need and may have. ``extra``: callers beside those who wait;
        ``beside``: connects in addition to those that would do.
        """
        wanted = dials_wanted(len(lane.waiters) + extra, lane.connecting, lane.streams) + beside
        if self.classes is None or not wanted:
            return wanted
        in_caller = self.features.connect_in_caller  # such a connection counts for its caller's class
        coming = 0 if in_caller else lane.connecting
        needs = [(one, math.ceil(len(queue) / lane.streams) + beside) for one, queue in lane.queues.items() if queue]
        room = self.classes.room(needs, self.limit, max(0, self._unowned() - coming))
        return min(wanted, room - coming)

    def _unowned(self) -> int:
        """Connections that will be somebody's before long: those being opened that are nobody's yet."""
        assert self.classes is not None
        idle = len(self.idle_order) if self.features.keyed else len(self.lane.idle)
        held = sum([one.held for one in self.classes.known.values()])
        return max(0, len(self.entries) - idle - self.closing - self.pinging - held)

    # -- what belongs to whom -------------------------------------------------------------------------------------

    def charge(self, entry: Entry, waiter: Waiter) -> None:
        """Give the waiter the connection, or a further lease of it."""
        classes, one = self.classes, waiter.caller_class
        if classes is None or one is None:
            return
        if entry.owner is None:
            classes.take(one)
            entry.owner = one
        elif entry.leases:
            classes.join(one, entry.owner)

    def charge_lease(self, entry: Entry, waiter: Waiter) -> None:
        """The same, for a lease that begins now."""
        if waiter.caller_class is not None:
            self.charge(entry, waiter)
            waiter.caller_class.acquires += 1

    def uncharge(self, entry: Entry) -> None:
        """Nobody uses the connection any more."""
        owner, entry.owner = entry.owner, None
        if owner is not None and self.classes is not None:
            self.classes.give(owner)

    def room_for_classes(self) -> bool:
        """Whether a class may have more than at the last look."""
        assert self.classes is not None
        before = self.class_use
        self.class_use = now = [self._unowned(), *(one.held for one in self.classes.known.values())]
        return len(before) != len(now) or any(one < other for one, other in zip(now, before, strict=True))

    def recount(self) -> None:
        """After an interruption: the numbers and queues that follow from entries and waiters."""
        classes = self.classes
        if classes is None:
            self._disband()
            return
        for one in classes.known.values():
            one.held = 0
        for entry in self.entries.values():
            if entry.state in (IDLE, CLOSING, CLOSED):
                entry.owner = None
            elif entry.owner is not None:
                entry.owner.held += 1
        classes.count()
        for lane in self.lanes.values():
            for queue in lane.queues.values():
                queue.clear()
            for waiter in list(lane.waiters):
                self.classify(waiter)
                lane.join(waiter)
