"""Who in a fleet of processes holds how many permits: the one decision of every store. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

__all__ = ("PLAUSIBLE", "Ask", "Grant", "Row", "decide")

PLAUSIBLE = 10
"""No lease is longer than so many times the ``ttl`` of another process (it may differ while the setting is changed):
what a store says beyond it is garbage, which would hold permits for ever.
"""


@dataclass(frozen=True)
class Ask:
    """What a process tells the store at each exchange: it holds ``held`` permits (fewer than before: the others are
    given back) and would like ``want`` more; all that for ``ttl`` seconds from now on.
    """

    fleet: str
    member: str
    held: int
    want: int
    limit: int
    ttl: float


@dataclass(frozen=True)
class Grant:
    """What the store answers: ``permits`` held from now on. ``lost``: the lease had run out and others have what was
    held. ``token`` is higher for each lease that is begun (a fencing token, for resources that can check one).
    ``short``: permits that others wait for; ``owed``: how many of them this process is to give back even if it uses
    them, for it has more than its even part and they have less.
    """

    permits: int
    token: int
    members: int = 1
    short: int = 0
    owed: int = 0
    lost: bool = False


@dataclass
class Row:
    """What the store knows of one process. ``until``: the end of its lease, by the store's clock."""

    permits: int
    want: int
    until: float
    token: int


def decide(rows: MutableMapping[str, Row], ask: Ask, now: float, *, token: int, grace: bool) -> Grant:
    """Answer ``ask`` and write it into ``rows``. ``token``: for a lease that begins; ``grace``: grant nothing new.

    The sum of all permits is never above the limit. Leases that ran out are removed. Every member has a floor, the
    even part of the limit: what is free goes first to those below it.
    """
    for name in [name for name, row in rows.items() if row.until <= now]:
        del rows[name]
    known = rows.get(ask.member)
    others = {name: row for name, row in rows.items() if name != ask.member}
    free = ask.limit - sum(row.permits for row in others.values())
    if ask.held > free:
        if known is None:  # the lease had run out, and they were given to others
            return Grant(0, token, members=len(others) + 1, lost=True)
        free = max(free, 0)  # the limit is smaller than it was
    held = min(ask.held, max(free, known.permits if known else 0))
    over = max(0, held - free)
    floor = max(1, ask.limit // (len(others) + 1))
    poor = sum(min(row.want, max(0, floor - row.permits)) for row in others.values())
    spare = 0 if grace else max(0, free - held)
    own = min(ask.want, max(0, floor - held), spare)
    more = min(ask.want - own, max(0, spare - own - poor))
    permits = held + own + more
    left = max(0, free - permits)
    rows[ask.member] = Row(permits, ask.want - own - more, now + ask.ttl, known.token if known else token)
    return Grant(
        permits,
        rows[ask.member].token,
        members=len(others) + 1,
        short=max(over, sum(row.want for row in others.values()) - left),
        owed=max(over, min(max(0, poor - left), max(0, permits - floor))),
    )
