"""The settings of a cluster: immutable and validated. All times are in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from .._numbers import given, is_number, whole
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

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("BALANCERS", "ClusterConfig", "ClusterSettings", "TierConfig")

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
    """One tier of a cluster. Raises :class:`~poolkit.ConfigError` for an invalid value."""

    name: str
    """For messages and statistics, for example "hot"."""
    limit: int | None = None
    """Maximum number of leases at once on each node of this tier; None: the limit of its pool."""
    most: int | None = None
    """Maximum number of nodes in this tier; None: no limit. The last tier takes all other nodes, so it must be None."""

    def __post_init__(self) -> None:
        name: Any = self.name
        if not isinstance(name, str) or not name:
            raise ConfigError(f"tier name={name!r}: must be a non-empty string", "name")
        for setting in ("limit", "most"):
            whole(f"tier {name!r}: {setting}", getattr(self, setting), 1, none="no limit")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """All settings of one cluster. Immutable: :meth:`replace` returns a changed copy.

    Raises :class:`~poolkit.ConfigError` for an invalid value.
    """

    balance: str | Balancer = "p2c"
    """"p2c" (power of two choices by latency and leases), "least_in_use", "round_robin", "random", "weighted",
    "smooth", "dynamic", or a :class:`~poolkit.policies.balance.Balancer`. p2c needs no tuning and avoids a node that
    slows down."""
    zone: str = ""
    """The zone in which this program runs: nodes of the same zone come first within their priority."""
    acquire_timeout: float | None = 30.0
    """Seconds for a lease in total: the queue, the node's pool and all attempts; None: no limit."""
    eject_after: int | None = 3
    """Consecutive failures after which a node is ejected; None: never. Envoy's default is five. Fewer are enough here,
    because only failed connects and broken connections count, never application errors."""
    eject_for: float = 5.0
    """Seconds until the first probe of an ejected node; n times as long after the n-th consecutive ejection. Envoy has
    the same rule with six times this base. Less is enough here, because a probe is one connect and not the next
    requests."""
    eject_max: float = 60.0
    """Maximum seconds until the next probe of an ejected node. A node that works for as long has its count of
    consecutive ejections reset."""
    max_ejected_share: float = 0.5
    """Share of the nodes that may be ejected at once, rounded down. If all nodes fail, the cause is hardly a node."""
    probe_timeout: float = 5.0
    """Seconds for one probe: a connect, and the lookup of the role if the cluster has a ``role_of``."""
    slow_start: float = 10.0
    """Seconds in which the share of a node rises to its full size after it was added or came back; 0: at once."""
    warm_up: int = 1
    """Connections that are opened, one after another, before a node that was added or came back gets requests."""
    drain_timeout: float | None = 30.0
    """Seconds that the leases of a removed node may continue before they are aborted; None: no limit."""
    role_interval: float = 5.0
    """Seconds between two lookups of each node's role, if the cluster has a ``role_of``."""
    wait_for_node: float = 0.0
    """Seconds that a caller waits for a usable node (of the wanted role) if there is none; 0: it fails at once."""
    spill_below: float = 0.7
    """Share of a priority group that must be usable for the group to get all requests. Below it, a proportional part
    goes to the next group. Envoy's overprovisioning factor of 1.4 corresponds to this."""

    tiers: tuple[TierConfig, ...] = ()
    """Tiers in the order in which they are tried; nodes move between them according to their use. (): no tiers, each
    node stays in the group of its ``priority``."""
    tier_window: float = 60.0
    """Seconds over which the use of a node is averaged, and for which it stays in a tier before it is evaluated again.
    Choose it longer than a burst and shorter than a busy hour."""
    promote_above: float = 0.75
    """Share of a node's capacity in its tier from which on the node moves up. It is below 1, so that a node moves
    before it is full."""
    demote_below: float = 0.25
    """Share up to which a node moves down. It is far below ``promote_above``, so that a node does not move back and
    forth."""

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
            raise ConfigError(f"tiers={tiers!r}: must be a tuple of TierConfig, in the order of use", "tiers")
        object.__setattr__(self, "tiers", tuple(tiers))
        names = [tier.name for tier in tiers]
        if len(names) == 1:
            raise ConfigError(f"tiers: only one tier, {names[0]!r}: must be two or more, or ()", "tiers")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"tiers: two tiers are called {name!r}; names must be unique", "tiers")
        if tiers and tiers[-1].most is not None:
            raise ConfigError(
                f"tiers: the last tier ({names[-1]!r}) has most={tiers[-1].most}: must be None, because it takes all "
                "other nodes",
                "tiers",
            )

    def _number(
        self, name: str, low: float, *, most: float | None = None, none: bool = False, whole: bool = False,
        above: bool = False,
    ) -> None:  # fmt: skip
        value = getattr(self, name)
        if value is None and none:
            return
        good = is_number(value) and (isinstance(value, int) or not whole)
        if not good or not (value > low if above else value >= low) or (most is not None and value > most):
            right = f"a {'whole ' if whole else ''}number {'above' if above else 'not below'} {low:g}"
            right += f" and at most {most:g}" if most is not None else ""
            raise ConfigError(f"{name}={given(value)}: must be {right}{', or None' if none else ''}", name)

    def replace(self, **changes: Unpack[ClusterSettings]) -> ClusterConfig:
        """Return a copy with some settings changed.

        Raises ConfigError for an invalid value, and for an unknown name, with the nearest known one.
        """
        known = [f.name for f in fields(self)]
        new: Mapping[str, object] = changes
        for name in new:
            if name not in known:
                raise unknown(name, new[name], "", name, known)
        return replace(self, **changes)

    def balancer(self) -> Balancer:
        """Return the balancer that ``balance`` names."""
        return BALANCERS[self.balance]() if isinstance(self.balance, str) else self.balance


class ClusterSettings(TypedDict, total=False):
    """The settings of :class:`ClusterConfig` as keywords, for type checkers and editors."""

    balance: str | Balancer
    zone: str
    acquire_timeout: float | None
    eject_after: int | None
    eject_for: float
    eject_max: float
    max_ejected_share: float
    probe_timeout: float
    slow_start: float
    warm_up: int
    drain_timeout: float | None
    role_interval: float
    wait_for_node: float
    spill_below: float
    tiers: tuple[TierConfig, ...]
    tier_window: float
    promote_above: float
    demote_below: float
