"""Which class of callers is served next: reserved permits, limits and weighted shares. Keeps numbers only.

Rules
-----
1. A class may always use its ``reserved`` connections. Beyond these it may use connections that are neither in use nor
   kept for a class below its reserve. It never has more than its own ``limit``.
2. Callers within the reserve of their class come first, in order of arrival. Their leases are not charged to the class.
3. All others are served by start-time fair queueing (P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM
   1996; its ancestor for locks and processors is stride scheduling, C. Waldspurger, W. Weihl, MIT/LCS/TM-528, 1995):
   the class with the least start tag comes first, and its tag grows by ``1 / weight`` for each lease. While two classes
   wait all the time, the leases of each differ from its share by less than one.
4. A start tag is never less than the tag that was served last. So a class that did not wait, or was not allowed to take
   a connection, accumulates no credit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..config import ClassConfig, nearest
from ..errors import ConfigError, shown

__all__ = ("DEFAULT_CLASS", "CallerClass", "Classes")

DEFAULT_CLASS = "default"
"""The class of callers that choose none, if the settings name no default class."""


class CallerClass:
    """One class: its settings and its current use. Written under the pool's lock."""

    __slots__ = (
        "acquires", "finish", "held", "limit", "name", "removed", "reserved", "timeouts", "waits", "weight",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.reserved = 0
        self.weight = 1.0
        self.limit: int | None = None
        self.removed = False  # no longer in the settings; kept for callers that came before the change
        self.held = 0  # connections that are in use, checked or opened by its callers
        self.finish = 0.0  # start tag of its next lease in the competition
        self.acquires = self.waits = self.timeouts = 0

    def __repr__(self) -> str:
        return f"<CallerClass {self.name!r} {self.held} held>"


class Classes:
    """All classes of one pool. ``limit`` in each method: the pool's ``max_size`` in effect."""

    def __init__(self) -> None:
        self.known: dict[str, CallerClass] = {}
        self.default = CallerClass(DEFAULT_CLASS)
        self.virtual = 0.0  # the start tag that was served last
        self.committed = 0  # connections that are in use or kept for a class below its reserve

    def configure(self, configs: Mapping[str, ClassConfig], default: str | None, busy: Collection[CallerClass]) -> None:
        """Apply new settings. A removed class is kept while it has connections or is ``busy`` (has waiting callers)."""
        wanted = dict(configs)
        first = default or DEFAULT_CLASS
        wanted.setdefault(first, ClassConfig())
        for name, config in wanted.items():
            one = self.known.setdefault(name, CallerClass(name))
            one.reserved, one.weight, one.limit = config.reserved, float(config.weight), config.limit
            one.removed = False
        for name, one in list(self.known.items()):
            if name not in wanted:
                one.reserved, one.limit, one.removed = 0, None, True
                if not one.held and one not in busy:
                    del self.known[name]
        self.default = self.known[first]
        self.count()

    def count(self) -> None:
        """Recompute ``committed`` after a change of ``held`` or ``reserved``."""
        self.committed = sum([max(one.held, one.reserved) for one in self.known.values()])

    def of(self, name: str | None) -> CallerClass:
        """The class of that name (None: the default). Raises ConfigError for an unknown one."""
        if name is None:
            return self.default
        one = self.known.get(name)
        if one is None or one.removed:
            known = [each.name for each in list(self.known.values()) if not each.removed]
            raise ConfigError(f"priority({name!r}): no such class of callers; {nearest(name, known)}", "classes")
        return one

    # -- what may be taken ----------------------------------------------------------------------------------------

    def shared(self, limit: int) -> int:
        """Connections that any class may take: neither in use nor kept for a class below its reserve."""
        return limit - self.committed

    def admits(self, one: CallerClass, limit: int) -> bool:
        """Whether a caller of this class may have one more connection in use (rule 1)."""
        if one.limit is not None and one.held >= one.limit:
            return False
        return one.held < one.reserved or self.shared(limit) > 0

    def room(self, needs: Iterable[tuple[CallerClass, int]], limit: int, elsewhere: int = 0) -> int:
        """How many of the connections that the classes need they may have, all together.

        ``elsewhere``: connections being opened whose class is not known yet.
        """
        own = rest = 0
        for one, need in needs:
            if one.limit is not None:
                need = min(need, one.limit - one.held)
            mine = max(0, min(need, one.reserved - one.held))
            own += mine
            rest += max(0, need - mine)
        return own + min(max(0, self.shared(limit) - elsewhere), rest)

    def most(self, one: CallerClass, limit: int) -> int:
        """Connections that the class may have in use when no other class wants any."""
        most = limit - sum([other.reserved for other in self.known.values() if other is not one])
        return most if one.limit is None else min(most, one.limit)

    def rank(self, one: CallerClass) -> float:
        """The sort key of a waiting caller; the least is served first (rules 2 to 4)."""
        return -1.0 if one.held < one.reserved else max(one.finish, self.virtual)

    # -- what is taken --------------------------------------------------------------------------------------------

    def take(self, one: CallerClass) -> None:
        """Record that a caller of the class gets a connection of its own."""
        if one.held >= one.reserved:
            self.committed += 1
            self._served(one)
        one.held += 1

    def admit(self, one: CallerClass, limit: int) -> bool:
        """As :meth:`take`, if :meth:`admits` allows it. Returns whether it does."""
        if one.limit is not None and one.held >= one.limit:
            return False
        if one.held >= one.reserved:
            if limit <= self.committed:
                return False
            self.committed += 1
            start = max(self.virtual, one.finish)
            self.virtual = start
            one.finish = start + 1 / one.weight
        one.held += 1
        return True

    def give(self, one: CallerClass) -> None:
        """Record that a connection of the class is no longer in use."""
        if one.held > one.reserved:
            self.committed -= 1
        one.held -= 1

    def join(self, one: CallerClass, owner: CallerClass) -> None:
        """Record that a caller of the class gets a further lease of a connection, which ``owner`` had first."""
        if not owner.reserved:
            self._served(one)

    def _served(self, one: CallerClass) -> None:
        self.virtual = max(one.finish, self.virtual)
        one.finish = self.virtual + 1 / one.weight

    @staticmethod
    def may_join(one: CallerClass, owner: CallerClass | None) -> bool:
        """Whether a class may use a connection at the same time as ``owner``: classes with a reserve share nothing."""
        return owner is None or owner is one or not owner.reserved

    def words(self, one: CallerClass, limit: int, *, unlimited: bool = False) -> str:
        """The current use and the rights of the class, for messages."""
        most = "" if unlimited and one.limit is None else f" of at most {self.most(one, limit)}"
        total = sum([each.weight for each in self.known.values()])
        reserved = f"{one.reserved} reserved, " if one.reserved else ""
        return f"class {shown(one.name)!r}: {one.held} in use{most} ({reserved}weight {one.weight:g} of {total:g})"
