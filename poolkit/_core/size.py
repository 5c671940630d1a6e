"""How many connections the pool may have and keeps: as its settings say, or as its policy decides (``autoscale``)."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..config import AutoscaleConfig, PoolConfig
from ..policies.autoscale import Autoscaler, View
from ..policies.retire import NEVER

__all__ = ("ElasticSize", "FixedSize", "Size", "size_of")


class FixedSize:
    """A size that changes only with the settings."""

    __slots__ = ("limit", "max_idle", "minimum")

    reason = ""
    """Why the limit is what it is; empty if the settings say so."""
    max_wait: float | None = None
    """Seconds after which a waiting caller makes it worth a look, if there is anything to decide."""

    def __init__(self, config: PoolConfig) -> None:
        self.limit = _most(config)  # connections that may exist
        self.max_idle = _most_idle(config)  # connections that may be idle
        self.minimum = config.min_size  # connections that are kept without need

    @property
    def largest(self) -> int:
        """The limit that it may grow to."""
        return self.limit

    def queued(self, now: float) -> None:
        """A caller has to wait."""

    def look_by(self, at: float) -> None:
        """Have the size looked at not later than ``at``."""

    def watched(self) -> bool:
        """Whether the size is looked at again, if that is of any use."""
        return True

    def expect(self, count: int, now: float) -> bool:
        """Make room for ``count`` connections that somebody else opens; whether limit or minimum may have changed."""
        return False

    def refused(self, begun: float, now: float, live: Callable[[], int]) -> None:
        """The server has refused a connect for overload. ``begun``: when that began; ``live``: the connections."""

    def tick(self, now: float, least: float, waiting: Callable[[], bool], view: Callable[[], View]) -> bool:
        """Do what is due; whether limit or minimum may have changed."""
        return False


class ElasticSize:
    """A size that follows the load.

    ``keyed``: no connection is kept without need. ``due(at)``: asks for a call of :meth:`tick` not later than ``at``.
    """

    def __init__(
        self, config: PoolConfig, policy: AutoscaleConfig, *, keyed: bool, due: Callable[[float], object]
    ) -> None:
        self._keyed = keyed
        self._due = due
        self._look_at = NEVER
        self._looked_at = -NEVER
        self._scaler = Autoscaler(policy, config.min_size, _most(config))
        self.configure(config, policy)

    def configure(self, config: PoolConfig, policy: AutoscaleConfig) -> None:
        """Take over settings, at any time."""
        self.max_wait: float | None = policy.max_wait
        self._scaler.configure(policy, config.min_size, _most(config))
        self.max_idle = _most_idle(config)
        self._reserved = sum(one.reserved for one in (config.classes or {}).values())
        self._apply()

    def _apply(self) -> None:
        scaler = self._scaler
        self.limit = max(scaler.limit, self._reserved + 1)  # else the other classes would never get any
        self.minimum = 0 if self._keyed else min(scaler.floor, self.max_idle)

    @property
    def reason(self) -> str:
        """Why the limit is what it is."""
        return self._scaler.reason

    @property
    def largest(self) -> int:
        """The limit that it may grow to."""
        return self._scaler.high

    def queued(self, now: float) -> None:
        """A caller has to wait: look whether it waits for too long."""
        self.look_by(now + self._scaler.config.max_wait)

    def look_by(self, at: float) -> None:
        """Have the size looked at not later than ``at``."""
        self._look_at = min(self._look_at, at)
        self._due(self._look_at)

    def watched(self) -> bool:
        """Whether the size is looked at again."""
        return self._look_at < NEVER

    def expect(self, count: int, now: float) -> bool:
        """Make room for ``count`` connections that somebody else opens; whether limit or minimum may have changed."""
        if count <= self._scaler.limit:
            return False
        self._scaler.expect(now, count)
        self._apply()
        self.look_by(now)
        return True

    def refused(self, begun: float, now: float, live: Callable[[], int]) -> None:
        """The server bears no more than it has: become smaller."""
        if self._scaler.refused(now, begun, live()):
            self.look_by(now)

    def tick(self, now: float, least: float, waiting: Callable[[], bool], view: Callable[[], View]) -> bool:
        """Look at the pool, if that is due; whether limit or minimum may have changed.

        ``least``: seconds between two looks at so large a pool; ``waiting``: whether callers wait.
        """
        if now < self._look_at:
            self._due(self._look_at)
            return False
        self._look_at = NEVER
        scaler = self._scaler
        rest = scaler.idle_until(now)
        if rest is not None and not waiting():
            self.look_by(rest)  # whoever has asked for a look has been served: the usual case
            return False
        if now < self._looked_at + least:
            self.look_by(self._looked_at + least)
            return False
        self._looked_at = now
        seen = view()
        changed = scaler.look(now, seen)
        if changed:
            self._apply()
        self.look_by(scaler.next_look(now, seen, least))
        return changed


Size = FixedSize | ElasticSize
"""Both have the same methods and attributes."""


def size_of(config: PoolConfig, old: Size | None, *, keyed: bool, due: Callable[[float], object]) -> Size:
    """The size by these settings; an elastic one keeps what it has learnt."""
    if config.autoscale is None:
        return FixedSize(config)
    if isinstance(old, ElasticSize):
        old.configure(config, config.autoscale)
        return old
    return ElasticSize(config, config.autoscale, keyed=keyed, due=due)


def _most(config: PoolConfig) -> int:
    return sys.maxsize if config.max_size is None else config.max_size


def _most_idle(config: PoolConfig) -> int:
    return _most(config) if config.max_idle is None else config.max_idle
