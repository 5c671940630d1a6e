"""Decides how many permits each process of a fleet holds, for all stores. Without I/O: the time is an argument."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

__all__ = ("PLAUSIBLE", "Ask", "Grant", "Row", "decide")

PLAUSIBLE = 10
"""No lease is longer than this many times the ``ttl`` of another process (values may differ while the setting is being
changed). A stored end beyond it is invalid data, which would otherwise hold permits for ever.
"""


@dataclass(frozen=True)
class Ask:
    """What a process sends to the store in each exchange: it holds ``held`` permits and wants ``want`` more.

    If ``held`` is smaller than before, the difference is returned. The lease is for ``ttl`` seconds from now on.
    ``member`` identifies the process, ``limit`` is the limit of the fleet.
    """

    fleet: str
    member: str
    held: int
    want: int
    limit: int
    ttl: float


@dataclass(frozen=True)
class Grant:
    """What the store answers: the process holds ``permits`` from now on.

    ``lost``: the lease had expired, and other processes have the permits that were held. ``token``: a fencing token
    for resources that can check one; it increases with each new lease. ``members``: processes in the fleet.
    ``short``: permits that other processes wait for. ``owed``: how many of them this process must return even if it
    uses them, because it has more than its even share and they have less.
    """

    permits: int
    token: int
    members: int = 1
    short: int = 0
    owed: int = 0
    lost: bool = False


@dataclass
class Row:
    """The record of one process in the store. ``until``: the end of its lease by the store's clock, in seconds."""

    permits: int
    want: int
    until: float
    token: int


def decide(rows: MutableMapping[str, Row], ask: Ask, now: float, *, token: int, grace: bool) -> Grant:
    """Answer ``ask`` and update ``rows``. ``token``: for a new lease; ``grace``: grant nothing new.

    The sum of all permits never exceeds the limit. Expired leases are removed. Each member has a floor, its even share
    of the limit: free permits go first to members below their floor.
    """
    for name in [name for name, row in rows.items() if row.until <= now]:
        del rows[name]
    known = rows.get(ask.member)
    others = {name: row for name, row in rows.items() if name != ask.member}
    free = ask.limit - sum(row.permits for row in others.values())
    if ask.held > free:
        if known is None:  # the lease had expired and the permits were granted to others
            return Grant(0, token, members=len(others) + 1, lost=True)
        free = max(free, 0)  # the limit was lowered
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
