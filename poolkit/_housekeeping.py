"""Work of a pool besides its steps: it performs effects, repairs the core after an interruption, does timed work."""

from __future__ import annotations

import gc
import inspect
import sys
from collections import deque
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from ._core.effects import Do, Effect
from ._core.maintenance import tick_safely
from ._core.repair import repair
from ._log import logger
from .policies.retire import NEVER

if TYPE_CHECKING:
    from ._pool_base import PoolBase

__all__ = ("Housekeeping",)

_WAKE = Do.WAKE
_PACKAGES = ("poolkit.", "poolkit_adapters.")
_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""In Python 3.10, ``frame.clear()`` would end a generator or coroutine that is suspended."""


def clear_ended_frames() -> None:
    """Clear the variables of our functions that have ended and that a stored traceback keeps.

    The traceback of an interrupted acquire has the slot in its frames. Test runners, error trackers and futures store
    tracebacks. A function that has ended will not act on the slot, so REFERENCE-IS-CLAIM does not hold for its frame.
    """
    spared = _SUSPENDED if sys.version_info < (3, 11) else 0
    for frame in gc.get_objects():
        if (
            type(frame) is FrameType
            and not frame.f_code.co_flags & spared
            and str(frame.f_globals.get("__name__")).startswith(_PACKAGES)
        ):
            with suppress(RuntimeError):  # it has not ended
                frame.clear()
                frame.f_locals  # noqa: B018  # updates the copy that Python 3.10 keeps for debuggers and tracers


class Housekeeping:
    """Called by the gate of one pool."""

    def __init__(self, pool: PoolBase[Any]) -> None:
        self._pool = pool
        self._listeners = pool._listeners

    def perform(self, effects: deque[Effect]) -> None:
        """Perform the effects and remove them one after the other. Called without a lock."""
        while effects:
            do, slot, request = effects[0]
            if do is _WAKE:
                # a caller that sleeps has a parker; removed after the wake: if interrupted, wake twice, not never
                try:
                    request.parker.wake()  # type: ignore[union-attr]
                except Exception:
                    effects.popleft()
                    raise
                effects.popleft()
                continue
            effects.popleft()
            if do is Do.SHARE:
                self._pool._membership.deliver()
            elif do is Do.REPORT:
                self._pool._register.report()
            elif do is Do.COLLECT:
                clear_ended_frames()
                gc.collect()
            elif do is not Do.TELL:
                assert slot is not None
                self._pool._driver.start(do, slot, request)
        if self._listeners.pending:
            self._listeners.flush()

    def repair(self) -> None:
        """Make the core consistent after an interrupted step. Called under the lock."""
        pool = self._pool
        now = pool._clock()
        repair(pool._core, now)
        pool._fast.restart()
        pool._core.settle(now)

    def note_alone(self) -> None:
        """Wake all waiting callers: from now on there is, or is not, a thread that does timed work. Called under the
        lock.
        """
        core = self._pool._core
        core.stale = True  # without a thread, callers do the timed work, and only those that take the lock
        for endpoint in core.all_endpoints.values():
            for request in endpoint.requests:
                core.effects.append(Effect(Do.WAKE, None, request))

    def run_due(self) -> None:
        """Do the timed work that is due. Called by the runtime; does not block."""
        self._pool._driver.keep_house(self.run)

    def run_inbox(self) -> None:
        """Run the steps that finalizers have posted. Does not block."""
        self._pool._gate.run_posted()

    def start_if_eager(self) -> None:
        """With ``start="eager"``, keep ``min_size`` connections from now on. Otherwise the first use starts that."""
        pool = self._pool
        if pool._config.start == "eager" and not pool._driver.operations.opens_later:
            pool._gate.step(self._start)

    def _start(self) -> None:
        """Keep ``min_size`` connections from now on. Called under the lock."""
        self._pool._core.started = True

    def run(self) -> None:
        """Do the timed work that is due. Does not block."""
        pool = self._pool
        pool._gate.scheduled = NEVER
        error = pool._gate.step(tick_safely, pool._core, pool._clock())
        if error is not None:
            logger.error("%s: housekeeping failed", pool.name, exc_info=error)
        pool._monitor.flush()
        pool._register.look_for_leaks()
        pool._gate.keep_time()
