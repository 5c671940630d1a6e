"""Whether a node gets requests: failures, ejection, probes. Sans-IO, like all of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import remembered
from ._events import ClusterEventKind, NodeState
from ._parts import Do, Effect, NodeEntry, failure_streaks

if TYPE_CHECKING:
    from ._core import ClusterCore

__all__ = ("Health",)

USABLE, PROBING, EJECTED = NodeState.USABLE, NodeState.PROBING, NodeState.EJECTED

_COUNTED = "_poolkit_failure_streak"
"""The attribute of an error that was already counted as a failure of a node: the number of the streak."""


class Health:
    """Ejects nodes that fail, and readmits them after a successful probe."""

    def __init__(self, core: ClusterCore) -> None:
        self._core = core

    def count_failure(self, entry: NodeEntry, error: BaseException, now: float) -> None:
        """Count a failure of the node, and eject the node if that is due."""
        cause = error.__cause__ or error
        entry.last_error = remembered(cause)
        if entry.state is not USABLE or cause.__dict__.get(_COUNTED) == entry.failure_streak:
            return  # one failed connect that several callers received counts once
        entry.failures += 1  # before the mark: if interrupted, count it twice rather than never
        # a mark on the error: a reference to the error would keep its frames alive
        cause.__dict__[_COUNTED] = entry.failure_streak
        self.eject_if_due(entry, error, now)

    def recovered(self, entry: NodeEntry, now: float) -> None:
        """Record that a node which had failed has served a lease."""
        if entry.failures:
            entry.failures, entry.failure_streak = 0, next(failure_streaks)
        if entry.ejections and entry.state is USABLE and now - entry.since > self._core.config.eject_max:
            entry.ejections = 0

    def eject_if_due(self, entry: NodeEntry, error: BaseException | None, now: float) -> None:
        """Eject the node if it has failed too often and ``max_ejected_share`` allows it."""
        core = self._core
        limit = core.config.eject_after
        if limit is not None and entry.failures >= limit and entry.state is USABLE:
            ejected = sum(one.state in (EJECTED, PROBING) for one in core.entries.values())
            if ejected + 1 <= core.config.max_ejected_share * len(core.entries):
                self._eject(entry, error, now)
            else:
                core.choice.failing = True

    def _eject(self, entry: NodeEntry, error: BaseException | None, now: float) -> None:
        core = self._core
        if entry.state is USABLE:
            core.effects.append(Effect(Do.DROP, entry))
        entry.state = EJECTED
        entry.ejections += 1
        stay = min(core.config.eject_max, core.config.eject_for * entry.ejections)
        entry.until = now + stay
        core.tick_at(entry.until)
        core.emit(ClusterEventKind.NODE_EJECTED, now, entry, error, f"for {stay:g} s")
        if core.asks_roles and entry.known_role == "primary":
            core.roles.ask(now)
        core.requests.settle(now)

    def probe_due(self, now: float) -> None:
        """Probe the nodes whose ejection has ended, and those whose pool was suspended when their probe was due."""
        for entry in self._core.entries.values():
            if entry.state is EJECTED:
                if now >= entry.until:
                    self.probe(entry)
                else:
                    self._core.tick_at(entry.until)
            elif entry.state is PROBING and entry.paused and not entry.suspended():
                self.probe(entry)

    def probe(self, entry: NodeEntry) -> None:
        """Start a probe of the node; if its pool is suspended, :meth:`probe_due` starts it after that."""
        core = self._core
        suspended = entry.suspended()
        if not suspended:
            core.effects.append(Effect(Do.PROBE, entry))  # before the state: PROBING without a probe would never end
        entry.paused = suspended
        entry.state = PROBING
        entry.asking = core.asks_roles

    def interrupted(self, entry: NodeEntry) -> None:
        """Record that a probe found the node's pool suspended, which is no failure: another one is needed."""
        if entry.state is PROBING:
            self.probe(entry)

    def probed(self, entry: NodeEntry, error: BaseException | None, role: str | None, now: float) -> None:
        """Record the end of a probe, which succeeded if ``error`` is None."""
        core = self._core
        entry.asking = False
        if entry.state is not PROBING:
            return  # removed meanwhile
        if error is not None:
            entry.last_error = remembered(error)
            core.emit(ClusterEventKind.PROBE_FAILED, now, entry, error)
            self._eject(entry, error, now)
            return
        entry.slow = core.config.slow_start > 0
        core.choice.starting = core.choice.starting or entry.slow
        entry.state, entry.since = USABLE, now
        entry.failures, entry.failure_streak = 0, next(failure_streaks)
        core.emit(ClusterEventKind.NODE_USABLE, now, entry)
        if core.asks_roles:
            core.roles.answered(entry, now)
            core.roles.note(entry, role, now)
        core.requests.settle(now)
