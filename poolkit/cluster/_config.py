"""The settings of a cluster: frozen, validated, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ..config import nearest, unknown
from ..errors import ConfigError
from ..policies.balance import (
    Balancer,
    LeastInUse,
    PeakEwma,
    RandomChoice,
    RoundRobin,
    SmoothWeighted,
    WeightedRandom,
)
from ..policies.dynamic import DynamicWeights

__all__ = ("BALANCERS", "ClusterConfig", "TierConfig")

BALANCERS: dict[str, type[Balancer]] = {
    "p2c": PeakEwma,
    "least_in_use": LeastInUse,
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "weighted": WeightedRandom,
    "smooth": SmoothWeighted,
    "dynamic": DynamicWeights,
}


@dataclass(frozen=True, kw_only=True)
class TierConfig:
    """One of a cluster's tiers. Raises :class:`~poolkit.ConfigError` for an impossible value."""

    name: str
    """For messages and statistics: "hot", say."""
    limit: int | None = None
    """Leases at once on each node of this tier; None: as many as its pool gives."""
    most: int | None = None
    """Nodes in this tier at most; None: any number. The last tier takes all that are left, so it has none."""

    def __post_init__(self) -> None:
        name: Any = self.name
        if not isinstance(name, str) or not name:
            raise ConfigError(f"tier name={name!r}: must be a word", "name")
        for setting in ("limit", "most"):
            value = getattr(self, setting)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(
                    f"tier {name!r}: {setting}={value!r}: must be a whole number, 1 or more, or None", setting
                )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """All settings of one cluster. Immutable: :meth:`replace` gives a changed copy.

    Raises :class:`~poolkit.ConfigError` for an impossible value.
    """

    balance: str | Balancer = "p2c"
    """"p2c" (power of two choices by latency and leases), "least_in_use", "round_robin", "random", "weighted",
    "smooth", "dynamic", or a :class:`~poolkit.policies.balance.Balancer`. p2c needs no tuning and avoids a node that
    slows down."""
    zone: str = ""
    """Where this program runs: nodes of the same zone come first within their priority."""
    acquire_timeout: float | None = 30.0
    """Seconds from asking to a usable connection in hand: queue, pool and all attempts; None: for ever."""
    eject_after: int | None = 3
    """Failures in a row after which a node is taken out; None: never. Fewer than Envoy's five: here a failure is a
    connect or a connection that broke, never an application error."""
    eject_for: float = 5.0
    """Seconds until the first probe of an ejected node; n times that after the n-th ejection in a row. Envoy's rule
    with a sixth of its base, because a probe here is one connect, not the next callers' requests."""
    eject_max: float = 60.0
    """Seconds that a node stays ejected at most before the next probe, and that it has to be well to be forgiven."""
    max_ejected_share: float = 0.5
    """Share of the nodes that may be ejected at once, rounded down: when all fail it is not the nodes."""
    probe_timeout: float = 5.0
    """Seconds for one probe (a connect, and the role where that is asked for)."""
    slow_start: float = 10.0
    """Seconds in which the share of a node that was added or came back rises to its full size; 0: at once."""
    warm_up: int = 1
    """Connections, opened one after another, that a node needs before it gets callers when added or back."""
    drain_timeout: float | None = 30.0
    """Seconds that the leases of a removed node may go on before they are cut; None: as long as they like."""
    role_interval: float = 5.0
    """Seconds between two looks at each node's role, where the cluster has a ``role_of``."""
    wait_for_node: float = 0.0
    """Seconds that a caller waits for a usable node (of his role) when there is none; 0: he fails at once."""
    spill_below: float = 0.7
    """Share of a priority group that must be usable for it to get all callers; below it, some go to the next group in
    proportion. Envoy's overprovisioning factor of 1.4 is about this."""

    tiers: tuple[TierConfig, ...] = ()
    """Tiers in the order in which they are tried; nodes move between them by their use. (): each node stays in the
    group of its ``priority``."""
    tier_window: float = 60.0
    """Seconds over which the use of a node is averaged, and that it stays in a tier before it is judged anew: longer
    than a burst, shorter than a busy hour."""
    promote_above: float = 0.75
    """Leases, as a share of those that fit on a node in its tier, from which on it moves up: well before it is full."""
    demote_below: float = 0.25
    """The share up to which it moves down: far enough from the other one that a node does not move to and fro."""

    def __post_init__(self) -> None:
        if isinstance(self.balance, str):
            if self.balance not in BALANCERS:
                raise ConfigError(
                    f"balance={self.balance!r}: no such strategy; {nearest(self.balance, BALANCERS)}", "balance"
                )
        elif not isinstance(self.balance, Balancer):
            raise ConfigError(f"balance={self.balance!r}: must be the name of a strategy or a Balancer", "balance")
        if not isinstance(self.zone, str):
            raise ConfigError(f"zone={self.zone!r}: must be a string", "zone")
        self._number("acquire_timeout", 0, none=True)
        self._number("eject_after", 1, none=True, whole=True)
        self._number("eject_for", 0, above=True)
        self._number("eject_max", self.eject_for)
        self._number("max_ejected_share", 0, most=1)
        self._number("probe_timeout", 0, above=True)
        self._number("slow_start", 0)
        self._number("warm_up", 1, whole=True)
        self._number("drain_timeout", 0, none=True)
        self._number("role_interval", 0, above=True)
        self._number("wait_for_node", 0)
        self._number("spill_below", 0, above=True, most=1)
        self._number("tier_window", 0, above=True)
        self._number("promote_above", 0, above=True, most=1)
        self._number("demote_below", 0, most=1)
        if self.demote_below >= self.promote_above:
            raise ConfigError(
                f"demote_below={self.demote_below!r}: must be below promote_above ({self.promote_above!r})",
                "demote_below",
            )
        self._check_tiers()

    def _check_tiers(self) -> None:
        tiers: Any = self.tiers
        if not isinstance(tiers, (tuple, list)) or not all(isinstance(tier, TierConfig) for tier in tiers):
            raise ConfigError(f"tiers={tiers!r}: must be TierConfigs, the first to be tried first", "tiers")
        object.__setattr__(self, "tiers", tuple(tiers))
        names = [tier.name for tier in tiers]
        if len(names) == 1:
            raise ConfigError(f"tiers: {names[0]!r} alone is none: must be two or more", "tiers")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"tiers: two are called {name!r}; names must be unique", "tiers")
        if tiers and tiers[-1].most is not None:
            raise ConfigError(
                f"tiers: the last one ({names[-1]!r}) has most={tiers[-1].most}: must be None, for it takes all nodes "
                "that are left",
                "tiers",
            )

    def _number(
        self, name: str, low: float, *, most: float | None = None, none: bool = False, whole: bool = False,
        above: bool = False,
    ) -> None:  # fmt: skip
        value = getattr(self, name)
        if value is None and none:
            return
        kind = int if whole else (int, float)
        good = isinstance(value, kind) and not isinstance(value, bool)
        if not good or not (value > low if above else value >= low) or (most is not None and value > most):
            right = f"a {'whole ' if whole else ''}number {'above' if above else 'not below'} {low:g}"
            right += f" and at most {most:g}" if most is not None else ""
            raise ConfigError(f"{name}={value!r}: must be {right}{', or None' if none else ''}", name)

    def replace(self, **changes: Any) -> ClusterConfig:
        """A copy with some settings changed; an unknown name is a ConfigError with the nearest right one."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise unknown(name, changes[name], "", name, known)
        return replace(self, **changes)

    def balancer(self) -> Balancer:
        """The strategy itself."""
        return BALANCERS[self.balance]() if isinstance(self.balance, str) else self.balance
