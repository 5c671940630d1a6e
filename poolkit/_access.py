"""Which short paths a pool has now: one value, computed from the state whenever that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ._core.entry import Entry
from ._core.state import Phase
from ._fast import (
    clean,
    decline_put,
    decline_take,
    make_classed_put,
    make_classed_take,
    make_keyed_put,
    make_keyed_take,
    make_put,
    make_take,
    traced,
    unreported,
)
from ._watch import measured
from .events import OF_EACH_LEASE

__all__ = ("Access", "access_of")


class Access(NamedTuple):
    """How callers get connections and give them back without asking the core. Each declines where it must."""

    take: Callable[..., Entry | None]
    take_at: Callable[..., Entry | None]
    """The same for an endpoint of a keyed pool."""
    put: Callable[[Any], bool]
    plain: bool
    """Nobody but the two ends of a lease is to be considered: no lock, no classes, nothing to note."""


def access_of(pool: Any, *, tracing: bool, surplus: bool) -> Access:
    """What the pool's state allows. Called under its lock. ``surplus``: connections have to go when they come back."""
    core, clock = pool._core, pool._clock
    if core.phase is not Phase.OPEN or core.suspended or pool._gate.alone or not core.heard.isdisjoint(OF_EACH_LEASE):
        return Access(decline_take, decline_take, decline_put, plain=False)
    gate = (core, pool._gate.lock, clock, pool._gate.inbox, pool._gate.run_posted, pool._gate.recover)
    exclusive = not core.keyed and not pool._shared  # one endpoint, and one lease for each connection
    take_at = decline_take
    if not exclusive:
        take = take_at = make_keyed_take(*gate, pool._caller, pool._class_of_caller)
        put = make_keyed_put(*gate)
    elif core.classes is not None:
        take = take_at = make_classed_take(*gate, pool._caller, pool._class_of_caller)
        put = make_classed_put(*gate)
    else:
        take = make_take(core, clock, pool._caller, pool._undo_take)
        put = make_put(core, clock, pool._missed)
    if tracing:
        take, take_at, put = traced(take, pool._trace), traced(take_at, pool._trace), unreported(put)
    resets, dirty = pool._reset_method is not None, pool._dirty_method
    if surplus or core.capacity.sharing_needed or (resets and dirty is None):
        put = decline_put
    else:
        put = clean(put, dirty) if resets else put
        put = measured(put, clock, pool._used, pool._flush) if pool._config.use_histogram else put
    return Access(take, take_at, put, plain=exclusive and core.classes is None and not tracing)
