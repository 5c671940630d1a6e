"""Work of a cluster besides its steps: it performs effects, and does timed work."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ..policies.retire import NEVER
from ._parts import Do, Effect

if TYPE_CHECKING:
    from ._shell import ClusterShell

__all__ = ("ClusterHousekeeping",)


class ClusterHousekeeping:
    """Called by the gate and the runtime of one cluster."""

    def __init__(self, cluster: ClusterShell[Any]) -> None:
        self._cluster = cluster

    def run_due(self) -> None:
        """Do the work that is due. Does not block."""
        cluster = self._cluster
        gate, core = cluster._gate, cluster._core
        gate.scheduled = NEVER
        if core.closed:
            return
        now = cluster._clock()
        if now >= core.find_at:
            core.find_at = NEVER
            cluster._driver.find()
        gate.step(core.tick, now)
        gate.keep_time()

    def run_inbox(self) -> None:
        """Run the steps that finalizers have posted. Does not block."""
        self._cluster._gate.run_posted()

    def perform(self, effects: deque[Effect]) -> None:
        """Perform the effects and remove them one after the other. Called without a lock."""
        listeners = self._cluster._listeners
        while effects:
            do, entry, request, event = effects[0]
            try:
                if do is Do.WAKE:
                    assert request is not None
                    if request.parker is not None:  # otherwise the caller does not sleep yet, and sees the outcome
                        request.parker.wake()
                elif do is Do.EMIT:
                    assert event is not None
                    listeners.pending.append(event)
                else:
                    assert entry is not None
                    self._cluster._driver.start(do, entry)
            except Exception:
                effects.popleft()
                raise
            effects.popleft()  # after the work: if interrupted, do it twice rather than never
        if listeners.pending:
            listeners.flush()

    def note_alone(self) -> None:
        """Wake all waiting callers: from now on there is, or is not, a thread that does timed work. Called under the
        lock.
        """
        core = self._cluster._core
        for request in core.requests.in_order():
            core.effects.append(Effect(Do.WAKE, None, request))
