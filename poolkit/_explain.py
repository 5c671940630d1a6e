"""The text of ``explain()`` and of timeout errors: holders of leases, input of the diagnosis, and their wording."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from operator import attrgetter
from types import FrameType
from typing import TYPE_CHECKING, Any

from ._core.endpoints import Endpoint
from ._core.machine import Core
from ._core.slots import Held as OnLease
from ._core.slots import State
from .errors import describe, shown
from .policies.diagnose import OFTEN, Diagnosis, Held, Symptoms, diagnose
from .policies.meters import WINDOWS, frozen
from .runtimes.holders import ENDED, hashable
from .stats import ClassStats, Holder, PoolStats

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = (
    "COUNTED",
    "diagnosed",
    "explain",
    "holders",
    "in_short",
    "nothing_wrong",
    "packages_of",
    "place_of",
    "place_outside",
    "symptoms",
)

COUNTED = 1000  # the most callers that are counted ahead of one that timed out, to bound the cost of the message


_SINCE, _REPORTED = attrgetter("since"), attrgetter("reported")


def holders(core: Core, now: float, most: int = 1) -> list[tuple[Hashable, Holder]]:
    """Return the ``most`` leases that have lasted longest, longest first, each with the identity of its holder. The
    holders' names are looked up later. The caller holds the lock.
    """
    # they are nearly sorted by their start, so sorted() is faster than heapq.nsmallest, which is written in Python
    return [
        (
            record.holder,
            frozen(
                Holder,
                connection_id=record.slot.id,
                held=now - record.since,
                holder="",
                place=place_of(record),
            ),
        )
        for record in sorted(core.leased.copy().values(), key=_SINCE)[:most]
    ]


def place_of(record: OnLease) -> str | None:
    """Return where the lease was taken, as file:line, if that is recorded."""
    return None if record.place is None else _place(record.place)


@lru_cache(2048)  # places are few and repeat in every snapshot
def _place(place: tuple[str, int]) -> str:
    return shown("{}:{}".format(*place), 1000)


_PACKAGES = ("poolkit.", "poolkit_adapters.", "contextlib.")


def packages_of(connector: object) -> tuple[str, ...]:
    """Return the prefixes of modules that do not count as callers: this package, its adapters and the driver."""
    return _PACKAGES + tuple(f"{name}." for name in getattr(connector, "packages", ()))


def in_short(pool: PoolBase[Any]) -> str:
    """What ``repr()`` says of a pool. Takes no lock."""
    core = pool._core
    return (
        f"<{type(pool).__name__} {pool.name!r} {core.phase.value}: {len(core.all_slots)} open, "
        f"{len(core.leased)} leased, {len(core.endpoint.requests)} waiting>"
    )


def place_outside(frame: FrameType | None, packages: tuple[str, ...], runtime: object) -> tuple[str, int] | None:
    """Return file and line of the nearest frame outside ``packages``. ``runtime`` may know where the stack of a caller
    continues below its first frame (greenlets).
    """
    while frame is not None:
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(packages):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
        if frame is None:
            beyond, runtime = getattr(runtime, "outer_frame", None), None
            frame = None if beyond is None else beyond()
    return None


def symptoms(core: Core, stats: PoolStats, name_of: Callable[[Hashable], str], now: float) -> Symptoms:
    """Return the input of the rules in :mod:`poolkit.policies.diagnose`. The caller holds the lock."""
    leased = [record for record in core.leased.copy().values() if not record.slot.opening]
    endpoints = list(core.all_endpoints.values())
    slots = core.slots.living()
    returns = core.counts.uses + sum(slot.uses for slot in slots)
    returned = core.counts.busy + sum(slot.busy for slot in slots)
    last = max((slot.last_used for slot in slots if slot.uses), default=None)
    recent = stats.windows[WINDOWS[1]]
    failing = max(endpoints, key=lambda endpoint: endpoint.dialer.breaker.failures)
    connects = [slot.requested_at for slot in slots if slot.opening]
    return Symptoms(
        limit=core.limit,
        live=sum(endpoint.live for endpoint in endpoints)
        - sum(slot.state is State.IN_USE and slot.pending for slot in slots),
        waiting=stats.waiting,
        suspended=core.suspended,
        failures=failing.dialer.breaker.failures,
        breaker_open=any(endpoint.dialer.breaker.is_open(now) for endpoint in endpoints),
        last_error=describe(failing.dialer.last_error),
        connecting_for=now - min(connects, default=now),
        held=sorted((_held(record, name_of(record.holder), now) for record in leased),
                    key=attrgetter("seconds"), reverse=True),
        taken=len({record.slot.id for record in leased}),
        waiters=frozenset(hashable(request.holder) for endpoint in endpoints for request in endpoint.requests),
        returns=returns,
        usual_use=returned / returns if returns >= OFTEN else None,
        recent_use=recent.mean_use if recent.acquires >= OFTEN else None,
        returned_ago=None if last is None else now - last,
        acquires_per_second=recent.acquires_per_second,
        barred=_barred(core, endpoints),
    )  # fmt: skip


def diagnosed(core: Core, stats: PoolStats, name_of: Callable[[Hashable], str], now: float) -> Diagnosis | None:
    """Return the diagnosis for an observer, which does not wait itself. The caller holds the lock.

    In most pools no rule can apply most of the time. Then no name of a holder is looked up.
    """
    return None if nothing_wrong(core) else diagnose(symptoms(core, stats, name_of, now))


def nothing_wrong(core: Core) -> bool:
    """Whether no rule of the diagnosis can apply. The caller holds the lock."""
    leased = core.leased.copy()
    if core.suspended or len(leased) >= core.limit or any(map(_REPORTED, leased.values())):
        return False
    return not any(one.requests or one.dialer.breaker.failures for one in list(core.all_endpoints.values()))


def _barred(core: Core, endpoints: list[Endpoint]) -> str:
    """Return the classes that wait although capacity is free, because they are at their own limit."""
    classes = core.classes
    if classes is None or len(core.all_slots) - sum(len(endpoint.idle) for endpoint in endpoints) >= core.limit:
        return ""
    barred = dict.fromkeys(one for endpoint in endpoints for one in endpoint.queue.barred(core.limit))
    return ", ".join(classes.words(one, core.limit, unlimited=core.config.max_size is None) for one in barred)


def _held(record: OnLease, name: str, now: float) -> Held:
    ended = name.endswith(ENDED)
    return Held(now - record.since, hashable(record.holder), name, place_of(record), ended, record.reported)


def _class_words(one: ClassStats) -> str:
    waiting = f", {one.waiting} waiting" if one.waiting else ""
    return f"class {shown(one.name)!r} {one.in_use}{'' if one.most is None else f'/{one.most}'}{waiting}"


def explain(
    stats: PoolStats,
    held: list[Holder],
    *,
    ahead: int | None = None,
    diagnosis: Diagnosis | None = None,
    spent: str = "",
    entitled: str = "",
) -> str:
    """Return the state of a pool as text, for ``explain()`` and timeout errors.

    Timeout errors add how many callers are ``ahead``, how the time was ``spent``, and what the caller's class is
    ``entitled`` to.
    """
    limit = "no limit" if stats.limit is None else stats.limit
    numbers = [f"in use {stats.in_use}/{limit}", f"idle {stats.idle}", f"connecting {stats.connecting}"]
    numbers += [
        f"{name} {number}"
        for name, number in (("checking", stats.checking), ("resetting", stats.resetting), ("closing", stats.closing))
        if number
    ]
    if ahead is None:
        numbers.append(f"{stats.waiting} waiting")
    else:
        numbers.append(f"{ahead} ahead of you" if ahead < COUNTED else f"at least {ahead} ahead of you")
    text = ", ".join(numbers)
    if entitled:
        text += f"; {entitled}"
    elif stats.classes:
        text += "; " + ", ".join(_class_words(one) for one in stats.classes.values())
    if stats.overloaded:
        text += f"; overloaded: {shown(stats.overload_reason)}, so the newest are served first"
    if held:
        first = held[0]
        text += f"; longest held {first.held:.1f} s by {first.holder}"
        if first.place:
            text += f" at {first.place}"
    if stats.limit_reason:
        bounds = f"{stats.min_size} to {'any number' if stats.max_size is None else stats.max_size}"
        text += f"; elastic size {limit} of {bounds}: {stats.limit_reason}"
    text += f"; last connect error: {stats.last_connect_error or 'none'}"
    if spent:
        text += f"; time spent: {spent}"
    return text if diagnosis is None else f"{text}; diagnosis: {diagnosis}"
