"""The settings of a pool: frozen, validated, times in seconds.

A :class:`PoolConfig` records which of its settings were given explicitly and where (:func:`sources_of`), so that an
explicit value counts even if it equals the default. :mod:`poolkit.settings` reads files and the environment.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, runtime_checkable

from ._numbers import bad, is_number, is_seconds, is_whole, seconds, whole
from .errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = (
    "AutoscaleConfig",
    "BackoffConfig",
    "BreakerConfig",
    "ClassConfig",
    "NodePoolSettings",
    "OverloadConfig",
    "PoolConfig",
    "PoolConfigWarning",
    "PoolSettings",
    "SettingsBesideSizes",
    "SharedBudget",
    "Source",
    "bad",
    "is_seconds",
    "is_whole",
    "seconds",
    "sources_of",
    "whole",
    "with_sources",
)


@runtime_checkable
class SharedBudget(Protocol):
    """What a pool needs of a budget: :class:`poolkit.Budget`, :class:`poolkit.fleet.FleetBudget`."""

    def open_account(self, pool: Any, minimum: int, weight: float) -> Any:
        """The pool's part of it; ConfigError if the minimums do not fit in."""


class PoolConfigWarning(UserWarning):
    """The settings are valid, but the combination is probably a mistake."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    import difflib  # imported only after a misspelling

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)


def unknown(full: str, value: object, source: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name. Its value is shown only if it is a number or if the name is close to that of a
    setting; the value of any other name may be a password.
    """
    hint = nearest(str(name), known)
    harmless = value is None or isinstance(value, (int, float)) or hint.startswith("did you mean")
    return ConfigError(f"{full}{f'={value!r}' if harmless else ''}{source}: no such setting; {hint}", name)


def _seconds(name: str, value: object, *, zero: bool, none: str | None = None) -> None:
    seconds(name, value, above=not zero, most=math.inf, none=none)


def _share(name: str, value: object, *, zero: bool, one: bool) -> None:
    right = f"a share, {'0' if zero else 'above 0'} to {'1' if one else 'below 1'}"
    if not is_number(value) or not 0 <= value <= 1:
        raise bad(name, value, right)
    if (value == 0 and not zero) or (value == 1 and not one):
        raise bad(name, value, right)


def _positive(name: str, value: object) -> None:
    if not is_number(value) or not 0 < value < math.inf:
        raise bad(name, value, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class BackoffConfig:
    """How long to wait between failed connects: full jitter, ``random() * min(cap, base * 2**(rounds - 1))``.

    Formula: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
    """

    base: float = 0.1
    """Seconds. The first retry comes after 0.05 s on average, which is short compared with a failover or restart."""
    cap: float = 5.0
    """Seconds. The longest time that the pool still waits after the server is back."""

    def __post_init__(self) -> None:
        _seconds("backoff.base", self.base, zero=False)
        _seconds("backoff.cap", self.cap, zero=False)
        if self.cap < self.base:
            raise bad("backoff.cap", self.cap, f"at least backoff.base ({self.base!r})")


@dataclass(frozen=True, kw_only=True)
class BreakerConfig:
    """Circuit breaker: after ``failure_threshold`` failed connects in a row callers fail at once.

    States and names: M. Nygard, "Release It!", 2nd ed. 2018, "Circuit Breaker".
    """

    failure_threshold: int = 5
    """Failed connects in a row that open the breaker. With the default backoff five attempts, one after the
    other, take about 0.8 s: longer than a short interruption, shorter than a caller's timeout."""
    reset_timeout: float = 10.0
    """Seconds that the breaker stays open before it lets one probe through (half-open). The default is the time that
    one connect may take, and twice the cap of the backoff."""

    def __post_init__(self) -> None:
        whole("breaker.failure_threshold", self.failure_threshold, 1)
        _seconds("breaker.reset_timeout", self.reset_timeout, zero=False)


@dataclass(frozen=True, kw_only=True)
class ClassConfig:
    """What callers of one class may have of a pool (see ``docs/concepts/priorities.md``)."""

    reserved: int = 0
    """Connections that no other class may use, whether this class needs them or not. 0: none."""
    weight: float = 1.0
    """Share of the unreserved connections while several classes wait, relative to the other classes' weights: 4 and 1
    mean four leases of five. Equal shares by default."""
    limit: int | None = None
    """Connections that callers of this class may have in use at once; None: no limit of its own."""

    def __post_init__(self) -> None:
        whole("reserved", self.reserved, 0)
        _positive("weight", self.weight)
        whole("limit", self.limit, 1, none="no limit of its own")
        if self.limit is not None and self.reserved > self.limit:
            raise bad("reserved", self.reserved, f"at most limit ({self.limit})")


def _classes(classes: object, default: object, max_size: int | None) -> None:
    """Raise ConfigError for invalid classes of callers."""
    if not isinstance(classes, Mapping) or not classes:
        raise bad("classes", classes, "a ClassConfig for each name, or None: all callers are equal")
    for name, one in classes.items():
        if not isinstance(name, str) or not name or not isinstance(one, ClassConfig):
            raise ConfigError(f"classes={{{name!r}: {one!r}}}: must be a name and its ClassConfig", "classes")
    if default is not None and default not in classes:
        raise ConfigError(
            f"default_class={default!r}: no such class of callers; {nearest(str(default), classes)}", "default_class"
        )
    reserved = sum(one.reserved for one in classes.values())
    if not reserved:
        return
    each = ", ".join(f"{name!r} {one.reserved}" for name, one in classes.items() if one.reserved)
    if max_size is None:
        raise ConfigError(f"classes: {each} reserved: reserved connections need a pool with max_size", "classes")
    if reserved >= max_size:
        raise ConfigError(
            f"classes: {reserved} connections are reserved ({each}): must be fewer than max_size ({max_size}), "
            "otherwise the other classes never get a connection",
            "classes",
        )


@dataclass(frozen=True, kw_only=True)
class AutoscaleConfig:
    """Elastic size: the number of connections follows the load, between ``min_size`` and ``max_size``.

    ``docs/concepts/elastic.md`` describes the rules and their sources.
    """

    target: float = 0.75
    """Share of the connections that should be in use on average, above 0 to 1. Beyond 0.8 waits grow steeply (see
    ``poolkit size``). Small pools automatically keep more headroom."""
    max_wait: float = 0.01
    """Seconds that a caller may wait for a connection before the limit rises. The default is longer than most
    statements take, so that a connection in use has had time to come back."""
    up_delay: float = 0.01
    """Seconds for which callers have to wait longer than ``max_wait`` before the limit rises, and between two such
    rises (each at most doubles the limit). With 0 for both, every burst gets its connections. With a second or more,
    only lasting load does. The default is a compromise: see the traces in ``docs/concepts/elastic.md``."""
    down_delay: float = 60.0
    """Seconds for which connections have to be unnecessary before they are closed. The default is longer than the
    pauses of a busy service and much shorter than the quiet hours of a working day."""
    prewarm: float = 0.5
    """Share of a recent peak that is kept open for the next one, 0 (nothing) to 1. With one half, the pool reaches the
    peak again after one doubling."""
    peak_memory: float = 900.0
    """Seconds for which a peak is remembered: load that comes every 5 or 15 minutes finds open connections."""
    overload_factor: float = 0.8
    """Share of the open connections that is kept when the server refuses another one, above 0 to below 1. Other
    processes get room and most of the work continues. Milder than TCP (0.7 in RFC 9438), because the callers of closed
    connections have to wait."""
    overload_recovery: float = 5.0
    """Seconds after a refusal until the pool may open one more connection than the reduced limit, and again after each
    further period."""

    def __post_init__(self) -> None:
        _share("autoscale.target", self.target, zero=False, one=True)
        _share("autoscale.prewarm", self.prewarm, zero=True, one=True)
        _share("autoscale.overload_factor", self.overload_factor, zero=False, one=False)
        _seconds("autoscale.max_wait", self.max_wait, zero=True)
        _seconds("autoscale.up_delay", self.up_delay, zero=True)
        for name in ("down_delay", "peak_memory", "overload_recovery"):
            _seconds(f"autoscale.{name}", getattr(self, name), zero=False)


@dataclass(frozen=True, kw_only=True)
class OverloadConfig:
    """What happens to a queue whose callers give up: the newest are served first, until it is over.

    A queue is overloaded if callers have had to wait for ``interval`` without a break **and** more than
    ``give_up_share`` of them gave up. ``docs/concepts/overload.md`` describes the rule and its sources.
    """

    give_up_share: float = 0.05
    """Share of the recent callers that may give up (time out, be cancelled) before the order changes, above 0 to below
    1. A few in a hundred that give up now and then change nothing: all are served in order of arrival."""
    interval: float = 0.1
    """Seconds for which callers must have waited without a break, but at least as long as five leases last. The default
    is the interval of CoDel (RFC 8289)."""
    max_wait: float | None = None
    """Seconds after which a caller in an overloaded queue is refused with PoolBusy; None: it waits until its own
    deadline. Useful if callers go elsewhere when they are refused. Callers that try again at once only add load."""

    def __post_init__(self) -> None:
        _share("overload.give_up_share", self.give_up_share, zero=False, one=False)
        _seconds("overload.interval", self.interval, zero=False)
        _seconds("overload.max_wait", self.max_wait, zero=False, none="until its own deadline")


@dataclass(frozen=True)
class Source:
    """Where the value of a setting comes from."""

    text: str
    """For display: "default", "config", "keyword", "pools.toml [orders-db]", "POOLKIT_MAX_SIZE"."""
    written: bool = True
    """Whether the value was given explicitly; False for a default of poolkit or of a driver."""
    shared: bool = False
    """Whether it was given for every pool (``[default]``, ``POOLKIT_MAX_SIZE``), not for this one."""
    driver: bool = False
    """Whether it was given as an argument of the driver. The driver accepts the value without a warning, so poolkit
    does not warn either."""
    fixed: str = ""
    """Why no other value can apply to this pool; "" if one can."""
    mute: str = ""
    """The driver for which the setting has no effect, if so."""
    lowered: tuple[int, Source] | None = None
    """The default and its source, if ``reconfigure()`` has lowered it to the limit that another setting sets."""


_CONFIG = Source("config")
_REPLACED = Source("replace()")

R = TypeVar("R", bound="_Recording")


class _Recording:
    """Records which settings are given explicitly in the call that creates a config.

    A base class, so that the signature of PoolConfig and of dataclasses derived from it remains that of ``__init__``.
    """

    _sources: Mapping[str, Source]

    def __new__(cls: type[R], *args: Any, **written: Any) -> R:
        """A call with all settings is a copy (``dataclasses.replace()``) and does not show which ones were explicit."""
        made = super().__new__(cls)
        copied = len(written) >= len(fields(cls))  # type: ignore[arg-type]
        object.__setattr__(made, "_sources", {} if copied else dict.fromkeys(written, _CONFIG))
        return made


@dataclass(frozen=True, kw_only=True)
class PoolConfig(_Recording):
    """All settings of one pool. Immutable and thread-safe: :meth:`replace` returns a changed copy.

    The config records which settings were given explicitly (``==`` and ``repr`` ignore this): only those override an
    adapter's defaults. Raises :class:`~poolkit.errors.ConfigError` for an invalid value and warns
    (:class:`PoolConfigWarning`) about combinations that are probably mistakes.
    """

    min_size: int = 0
    """Connections kept open while unused. 0: a pool costs the server nothing until it is used."""
    max_size: int | None = 10
    """Connections that exist at once, including those being opened or closed; None: no limit. The default is
    HikariCP's: about twice the cores of a mid-size database server."""
    max_idle: int | None = None
    """Idle connections that are kept; a connection returned beyond that is closed. None: as many as ``max_size``."""
    max_waiting: int | None = None
    """Callers that may wait; the next one fails with PoolBusy. None: no limit (each caller has a deadline anyway)."""
    order: Literal["lifo", "fifo"] = "lifo"
    """Which idle connection is used next. "lifo": the last used one, so that surplus connections time out. "fifo": the
    longest unused one, which spreads the use."""
    start: Literal["lazy", "eager"] = "lazy"
    """"eager" opens ``min_size`` connections when the pool is created; "lazy" from its first use on. An AsyncPool that
    is created outside of an event loop opens them from its first use on in any case. "eager" binds one that is created
    in an event loop to that loop while it runs; if it no longer runs at the first use, the loop of that use counts."""
    acquire_timeout: float | None = 30.0
    """Seconds from the call until the caller has a usable connection, including all stages; 0: never wait; None: no
    limit. The default is that of QueuePool, psycopg_pool and HikariCP."""
    connect_timeout: float | None = 10.0
    """Seconds for one attempt to open a connection; None: no limit. Keep it below ``acquire_timeout``, so that there is
    time for a second attempt."""
    check_timeout: float | None = 2.0
    """Seconds for one check of a connection; None: no limit. A healthy server answers in milliseconds."""
    max_lifetime: float | None = 1800.0
    """Seconds after which a connection is replaced (DNS changes, server-side leaks); None: never.
    Half an hour is HikariCP's default: the pool follows a change soon enough, and a connect every 30 minutes costs
    next to nothing."""
    lifetime_jitter: float = 0.1
    """Share of ``max_lifetime`` by which lifetimes are shortened at random, so that they do not end together. With the
    defaults, connections opened at the same moment end over a period of 3 minutes."""
    idle_timeout: float | None = 600.0
    """Seconds after which an unused connection above ``min_size`` is closed; None: never. The default is that of
    psycopg_pool and HikariCP: longer than the pauses of a busy service."""
    keepalive: float | None = None
    """Seconds after which an idle connection is checked, so that no firewall drops it; None: never. Off by default: a
    pool sends nothing on its own unless configured to."""
    check_after_idle: float | None = 1.0
    """Check a connection at acquire when it was idle for this many seconds; 0: always; None: only when in doubt. The
    default is pgxpool's value: a connection in constant use is never checked. HTTP and Redis connections are examined
    for unread bytes and for a closed peer at every checkout, whatever is set here."""
    max_connecting: int | None = 16
    """Connects in progress at once; None: no limit. 16 serve a burst within one connect time and do not overload the
    server."""
    connect_in_caller: bool = False
    """Open connections on demand in the thread or task of the caller that needs them, for drivers that are bound to a
    thread. False: the pool opens them in threads or tasks of its own. The caller then takes whichever comes first, the
    new connection or a returned one, and no connect makes it wait longer than ``acquire_timeout``."""
    leak_after: float | None = None
    """Report a lease held longer than this many seconds, with the place where it was taken; None: never.
    Off by default, because recording the place makes every acquire slower."""
    on_leak: Literal["warn", "raise", "reclaim"] = "warn"
    """What happens to a lease held longer than ``leak_after``. "warn": a log entry and an event. "raise": in addition,
    the caller that returns it gets LeaseOverdue once the connection is back (for tests and staging). "reclaim": in
    addition to the log entry and the event, the connection is closed at once and its slot is free. The holder's next
    use of it fails with the driver's own error. "warn" is the default, because only the program knows whether a long
    lease is a mistake."""
    use_histogram: bool = False
    """Measure how long each lease lasts (``stats().use``). Off by default: it makes acquire and release about two
    thirds slower (by less than a microsecond). The mean is known in any case."""
    barging_window: float | None = None
    """Newcomers may overtake waiting callers until the first of these has waited this many seconds; 0: strict FIFO.
    None: 0.001 for threads (saves a thread switch where leases last microseconds), 0 for tasks."""
    backoff: BackoffConfig = field(default_factory=BackoffConfig)
    """Pause between failed connects."""
    breaker: BreakerConfig | None = None
    """Circuit breaker; None: callers wait for the server until their own deadline."""
    autoscale: AutoscaleConfig | None = None
    """Elastic size between ``min_size`` and ``max_size``. None: connections are opened as callers need them, up to
    ``max_size``, and closed after ``idle_timeout``, which is enough for most services."""
    overload: OverloadConfig | None = field(default_factory=OverloadConfig)
    """Newest callers first while many give up (see ``docs/concepts/overload.md``). None: always in order of arrival. On
    by default, because it does no harm to callers that would have been served. In order of arrival, an overloaded queue
    serves callers that are about to give up."""
    budget: SharedBudget | None = None
    """A limit that several pools share, in addition to each pool's ``max_size``; None: only ``max_size`` applies."""
    budget_weight: float = 1.0
    """This pool's share of the budget relative to the other pools, in addition to its ``min_size``. It gets this share
    when all pools together want more than the limit. Equal shares by default."""

    classes: Mapping[str, ClassConfig] | None = field(default=None, hash=False)
    """Classes of callers, by name, with reserved connections, weights and limits. Callers choose a class with
    ``poolkit.priority(name)``. None: all callers are equal, and acquire and release can use the lock-free fast path."""
    default_class: str | None = None
    """The class of callers that choose none. None: "default", with nothing reserved and weight 1 unless it is one of
    the classes."""

    def __post_init__(self) -> None:
        whole("min_size", self.min_size, 0)
        whole("max_size", self.max_size, 1, none="no limit")
        whole("max_idle", self.max_idle, 0, none="max_size")
        whole("max_waiting", self.max_waiting, 0, none="no limit")
        whole("max_connecting", self.max_connecting, 1, none="no limit")
        _seconds("acquire_timeout", self.acquire_timeout, zero=True, none="wait for ever")
        _seconds("connect_timeout", self.connect_timeout, zero=False, none="no limit")
        _seconds("check_timeout", self.check_timeout, zero=False, none="no limit")
        _seconds("max_lifetime", self.max_lifetime, zero=False, none="never")
        _seconds("idle_timeout", self.idle_timeout, zero=False, none="never")
        _seconds("keepalive", self.keepalive, zero=False, none="never")
        _seconds("check_after_idle", self.check_after_idle, zero=True, none="only when in doubt")
        _seconds("leak_after", self.leak_after, zero=False, none="never")
        _seconds("barging_window", self.barging_window, zero=True, none="0.001 for threads, 0 for tasks")
        _seconds("lifetime_jitter", self.lifetime_jitter, zero=True)
        if self.lifetime_jitter >= 1:
            raise bad("lifetime_jitter", self.lifetime_jitter, "a share of max_lifetime, 0 to below 1")
        for name in ("connect_in_caller", "use_histogram"):
            if not isinstance(getattr(self, name), bool):
                raise bad(name, getattr(self, name), "True or False")
        if self.order not in ("lifo", "fifo"):
            raise bad("order", self.order, "'lifo' or 'fifo'")
        if self.on_leak not in ("warn", "raise", "reclaim"):
            raise bad("on_leak", self.on_leak, "'warn', 'raise' or 'reclaim'")
        if self.start not in ("lazy", "eager"):
            raise bad("start", self.start, "'lazy' or 'eager'")
        if not isinstance(self.backoff, BackoffConfig):
            raise bad("backoff", self.backoff, "a BackoffConfig")
        if self.breaker is not None and not isinstance(self.breaker, BreakerConfig):
            raise bad("breaker", self.breaker, "a BreakerConfig, or None")
        if self.autoscale is not None and not isinstance(self.autoscale, AutoscaleConfig):
            raise bad("autoscale", self.autoscale, "an AutoscaleConfig, or None")
        if self.overload is not None and not isinstance(self.overload, OverloadConfig):
            raise bad("overload", self.overload, "an OverloadConfig, or None")
        if self.budget is not None and not isinstance(self.budget, SharedBudget):
            raise bad("budget", self.budget, "a poolkit.Budget, or None")
        _positive("budget_weight", self.budget_weight)
        if self.classes is not None:
            _classes(self.classes, self.default_class, self.max_size)
            object.__setattr__(self, "classes", dict(self.classes))  # a copy, which the caller cannot change later
        if self.max_size is not None:
            if self.min_size > self.max_size:
                raise bad("min_size", self.min_size, f"at most max_size ({self.max_size})")
            if self.max_idle is not None and self.max_idle > self.max_size:
                raise bad("max_idle", self.max_idle, f"at most max_size ({self.max_size})")
        if self.max_idle is not None and self.min_size > self.max_idle:
            raise bad("min_size", self.min_size, f"at most max_idle ({self.max_idle})")

    def replace(self, **changes: Unpack[PoolSettings]) -> PoolConfig:
        """Return a copy with some settings changed.

        Raises ConfigError for an invalid value, and for an unknown name with the nearest known one. The copy knows
        which settings were given explicitly. A copy made by ``dataclasses.replace()`` does not: it treats the settings
        that differ from their defaults as explicit.
        """
        known = [f.name for f in fields(self)]
        new: Mapping[str, object] = changes
        for name in new:
            if name not in known:
                raise unknown(name, new[name], "", name, known)
        return with_sources(replace(self, **changes), {**sources_of(self), **dict.fromkeys(changes, _REPLACED)})

    __replace__ = replace  # copy.replace(), Python 3.13

    def doubts(self) -> list[str]:
        """Valid combinations that are probably mistakes: one sentence each, with the reason.

        Defaults are never criticised: the setting named first in each sentence was given explicitly.
        """
        found = []
        sources = sources_of(self)
        acquire, connect = self.acquire_timeout, self.connect_timeout
        if _written("connect_timeout", sources) and acquire and (connect is None or connect >= acquire):
            found.append(
                f"connect_timeout={connect!r} is not below acquire_timeout={acquire!r}: one slow connect uses up "
                "the caller's whole wait and leaves no time for a second attempt"
            )
        keepalive = self.keepalive if _written("keepalive", sources) else None
        if keepalive and self.idle_timeout and self.min_size == 0 and keepalive >= self.idle_timeout:
            found.append(
                f"keepalive={self.keepalive!r} is not below idle_timeout={self.idle_timeout!r}: idle connections "
                "are closed before their first heartbeat"
            )
        idle, life = self.idle_timeout, self.max_lifetime
        if _written("idle_timeout", sources) and life and idle and idle >= life:
            found.append(
                f"idle_timeout={self.idle_timeout!r} is not below max_lifetime={self.max_lifetime!r}: "
                "it can never take effect"
            )
        if _written("check_timeout", sources) and self.check_timeout and acquire and self.check_timeout >= acquire:
            found.append(
                f"check_timeout={self.check_timeout!r} is not below acquire_timeout={acquire!r}: a check that hangs "
                "leaves no time for another connection"
            )
        if self.on_leak != "warn" and self.leak_after is None:
            found.append(f"on_leak={self.on_leak!r} has no effect without leak_after: no lease is ever reported")
        if self.classes is None and self.default_class is not None:
            found.append(f"default_class={self.default_class!r} has no effect without classes: all callers are equal")
        if self.classes is not None and self.barging_window:
            found.append(
                f"barging_window={self.barging_window!r} has no effect with classes: overtaking is off, so that each "
                "class gets its share"
            )
        if self.autoscale is not None and self.min_size == self.max_size:
            found.append(f"autoscale has no effect: min_size and max_size are both {self.min_size}")
        return found

    def warn(self, stacklevel: int = 2, packages: tuple[str, ...] = ()) -> None:
        """Issue a :class:`PoolConfigWarning` for each of :meth:`doubts`.

        It names a line of the application. ``stacklevel`` counts from the function that calls this, as for
        ``warnings.warn``. Frames of poolkit, of its adapters and of ``packages`` are skipped from there on.
        """
        for doubt in self.doubts():
            level = stacklevel + 1
            warnings.warn(doubt, PoolConfigWarning, stacklevel=level + _frames_of(packages, level))


# -- settings as keywords ---------------------------------------------------------------------------------------------


class SettingsBesideSizes(TypedDict, total=False):
    """The settings that no class has as named arguments of its own: what each class's keywords are made from."""

    order: Literal["lifo", "fifo"]
    start: Literal["lazy", "eager"]
    connect_timeout: float | None
    check_timeout: float | None
    lifetime_jitter: float
    idle_timeout: float | None
    keepalive: float | None
    check_after_idle: float | None
    max_connecting: int | None
    connect_in_caller: bool
    leak_after: float | None
    on_leak: Literal["warn", "raise", "reclaim"]
    use_histogram: bool
    barging_window: float | None
    backoff: BackoffConfig
    breaker: BreakerConfig | None
    autoscale: AutoscaleConfig | None
    overload: OverloadConfig | None
    budget: SharedBudget | None
    budget_weight: float
    classes: Mapping[str, ClassConfig] | None
    default_class: str | None


class _Sizes(TypedDict, total=False):
    """The settings that some drivers' pools have as named arguments."""

    min_size: int
    max_size: int | None
    max_idle: int | None
    max_waiting: int | None
    max_lifetime: float | None


class NodePoolSettings(SettingsBesideSizes, _Sizes, total=False):
    """The settings of the pools of a cluster as keywords. ``acquire_timeout`` is the cluster's own."""


class PoolSettings(SettingsBesideSizes, _Sizes, total=False):
    """The settings of :class:`PoolConfig` as keywords, for type checkers and editors.

    Use it to annotate a function of your own that passes settings on: ``**settings: Unpack[PoolSettings]``.
    """

    acquire_timeout: float | None


def _frames_of(packages: tuple[str, ...], depth: int) -> int:
    """How many frames from the ``depth``-th caller on are of poolkit, of its adapters or of ``packages``."""
    between = tuple(f"{name}." for name in ("poolkit", "poolkit_adapters", *packages))
    try:
        frame: FrameType | None = sys._getframe(depth)
    except ValueError:  # the stack is not so deep
        return 0
    count = 0
    while frame is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(between):
        frame, count = frame.f_back, count + 1
    return count


_FIELDS = tuple(field.name for field in fields(PoolConfig))
_DEFAULTS = PoolConfig()


def sources_of(config: PoolConfig) -> dict[str, Source]:
    """The sources, by name, of the settings that were given explicitly or whose default is not poolkit's.

    A value that differs from poolkit's default and has no source was set by a subclass and counts as explicit.
    """
    known: Mapping[str, Source] = config._sources
    found = {}
    for name in _FIELDS:
        if name in known:
            found[name] = known[name]
        elif getattr(config, name) != getattr(_DEFAULTS, name):
            found[name] = _CONFIG
    return found


def with_sources(config: PoolConfig, sources: Mapping[str, Source]) -> PoolConfig:
    """Set the sources of a config and return it. Only for a config that was just created and is not shared yet."""
    object.__setattr__(config, "_sources", dict(sources))
    return config


def _written(name: str, sources: Mapping[str, Source]) -> bool:
    """Whether the setting was given explicitly as poolkit's, so that a warning about it is justified."""
    return name in sources and sources[name].written and not sources[name].driver
