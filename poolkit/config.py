"""The settings of a pool: frozen, validated, times in seconds.

A :class:`PoolConfig` knows which of its settings somebody has written and where (:func:`sources_of`), so that a written
value counts even if it equals a default. :mod:`poolkit.settings` reads files and the environment.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import FrameType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from .errors import ConfigError

__all__ = (
    "AutoscaleConfig",
    "BackoffConfig",
    "BreakerConfig",
    "ClassConfig",
    "PoolConfig",
    "PoolConfigWarning",
    "SharedBudget",
    "Source",
    "sources_of",
    "with_sources",
)


@runtime_checkable
class SharedBudget(Protocol):
    """What a pool needs of a budget: :class:`poolkit.Budget`, :class:`poolkit.fleet.FleetBudget`."""

    def open_account(self, pool: Any, minimum: int, weight: float) -> Any:
        """The pool's part of it; ConfigError if the minimums do not fit in."""


class PoolConfigWarning(UserWarning):
    """Settings that are possible but hardly meant."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    import difflib  # only for those who have mistyped

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)


def unknown(full: str, value: object, source: str, name: str, known: Iterable[str]) -> ConfigError:
    """An unknown name. Its value is shown if it is harmless: a number, or meant for a setting that is nearly so called
    (what is called quite otherwise may be a password).
    """
    hint = nearest(str(name), known)
    harmless = value is None or isinstance(value, (int, float)) or hint.startswith("did you mean")
    return ConfigError(f"{full}{f'={value!r}' if harmless else ''}{source}: no such setting; {hint}", name)


def _bad(setting: str, value: object, right: str) -> ConfigError:
    return ConfigError(f"{setting}={value!r}: must be {right}", setting.rpartition(".")[2])


def _count(name: str, value: object, low: int, *, none: str | None = None) -> None:
    if value is None and none is not None:
        return
    right = f"a whole number, {low} or more" + (f" (or None: {none})" if none else "")
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise _bad(name, value, right)


def _seconds(name: str, value: object, *, zero: bool, none: str | None = None) -> None:
    if value is None and none is not None:
        return
    right = f"a time in seconds, {'0 or more' if zero else 'above 0'}" + (f" (or None: {none})" if none else "")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise _bad(name, value, right)
    if value < 0 or (value == 0 and not zero):
        raise _bad(name, value, right)


def _share(name: str, value: object, *, zero: bool, one: bool) -> None:
    right = f"a share, {'0' if zero else 'above 0'} to {'1' if one else 'below 1'}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise _bad(name, value, right)
    if (value == 0 and not zero) or (value == 1 and not one):
        raise _bad(name, value, right)


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise _bad(name, value, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class BackoffConfig:
    """How long to wait between failed connects: full jitter, ``random() * min(cap, base * 2**(rounds - 1))``.

    Formula: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
    """

    base: float = 0.1
    """Seconds; the first retry comes after 0.05 s on average, which a failover or restart hardly notices."""
    cap: float = 5.0
    """Seconds; bounds how long after the server's return the pool still waits."""

    def __post_init__(self) -> None:
        _seconds("backoff.base", self.base, zero=False)
        _seconds("backoff.cap", self.cap, zero=False)
        if self.cap < self.base:
            raise _bad("backoff.cap", self.cap, f"at least backoff.base ({self.base!r})")


@dataclass(frozen=True, kw_only=True)
class BreakerConfig:
    """Circuit breaker: after ``failure_threshold`` failed connects in a row callers fail at once.

    States and names: M. Nygard, "Release It!", 2nd ed. 2018, "Circuit Breaker".
    """

    failure_threshold: int = 5
    """Failed connects in a row that open the breaker. With the default backoff five attempts, one after the
    other, take about 0.8 s: longer than a hiccup, shorter than a caller's patience."""
    reset_timeout: float = 10.0
    """Seconds that the breaker stays open before one probe is let through (half-open): as long as one connect may
    take, twice the cap of the backoff."""

    def __post_init__(self) -> None:
        _count("breaker.failure_threshold", self.failure_threshold, 1)
        _seconds("breaker.reset_timeout", self.reset_timeout, zero=False)


@dataclass(frozen=True, kw_only=True)
class ClassConfig:
    """What callers of one class may have of a pool (see ``docs/concepts/priorities.md``)."""

    reserved: int = 0
    """Connections that no other class may use, whether this one needs them or not. 0: nothing is set aside."""
    weight: float = 1.0
    """Share of what is not reserved, beside the other classes' weights, while several of them wait: 4 beside 1 is four
    leases of five. Equal shares by default."""
    limit: int | None = None
    """Connections that callers of this class may have in use at once; None: as many as the pool gives."""

    def __post_init__(self) -> None:
        _count("reserved", self.reserved, 0)
        _positive("weight", self.weight)
        _count("limit", self.limit, 1, none="no limit of its own")
        if self.limit is not None and self.reserved > self.limit:
            raise _bad("reserved", self.reserved, f"at most limit ({self.limit})")


def _classes(classes: object, default: object, max_size: int | None) -> None:
    """Raise ConfigError for classes of callers that cannot be meant."""
    if not isinstance(classes, Mapping) or not classes:
        raise _bad("classes", classes, "a ClassConfig for each name, or None: all callers are equal")
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
        raise ConfigError(f"classes: {each} reserved: of a pool without max_size nothing can be set aside", "classes")
    if reserved >= max_size:
        raise ConfigError(
            f"classes: {reserved} connections are reserved ({each}): must be fewer than max_size ({max_size}), for "
            "the others would never get any",
            "classes",
        )


@dataclass(frozen=True, kw_only=True)
class AutoscaleConfig:
    """Elastic size: the pool has as many connections as its load needs, between ``min_size`` and ``max_size``.

    The rules, and where they come from, are in ``docs/concepts/elastic.md``.
    """

    target: float = 0.75
    """Share of the connections that should be in use on average, above 0 to 1. Beyond 0.8 waits grow steeply (see
    ``poolkit size``); small pools keep more room by themselves."""
    max_wait: float = 0.01
    """Seconds that a caller may wait for want of a connection before the limit rises: longer than most statements
    take, so that one of those in use has had time to come back."""
    up_delay: float = 0.01
    """Seconds for which callers have to wait longer than ``max_wait`` before the limit rises, and between two such
    rises (it doubles at most). With both at 0 every burst gets its connections; a second or more lets only lasting
    load have them. 0.01 each is between: see the traces in ``docs/concepts/elastic.md``."""
    down_delay: float = 60.0
    """Seconds for which connections have to be superfluous before they are closed: longer than the pauses of a
    service in use, shorter than a working day's quiet hours by far."""
    prewarm: float = 0.5
    """Share of a recent peak that is kept open for the next one, 0 (nothing) to 1. Half: the other half is open
    after one doubling."""
    peak_memory: float = 900.0
    """Seconds for which a peak is remembered: what comes every 5 or 15 minutes finds connections."""
    overload_factor: float = 0.8
    """Share of the connections that stand which is kept when the server refuses another one, above 0 to below 1.
    Others get room, and most of the work goes on: milder than TCP (0.7 in RFC 9438), for those cut off would wait."""
    overload_recovery: float = 5.0
    """Seconds after which one connection more may be opened than the server's refusal allowed, and again each time."""

    def __post_init__(self) -> None:
        _share("autoscale.target", self.target, zero=False, one=True)
        _share("autoscale.prewarm", self.prewarm, zero=True, one=True)
        _share("autoscale.overload_factor", self.overload_factor, zero=False, one=False)
        _seconds("autoscale.max_wait", self.max_wait, zero=True)
        _seconds("autoscale.up_delay", self.up_delay, zero=True)
        for name in ("down_delay", "peak_memory", "overload_recovery"):
            _seconds(f"autoscale.{name}", getattr(self, name), zero=False)


@dataclass(frozen=True)
class Source:
    """Where the value of a setting comes from."""

    text: str
    """For people: "default", "config", "keyword", "pools.toml [orders-db]", "POOLKIT_MAX_SIZE"."""
    written: bool = True
    """Whether somebody wrote the value; False for a default, poolkit's or a driver's."""
    shared: bool = False
    """Whether it was written for every pool (``[default]``, ``POOLKIT_MAX_SIZE``), not for this one."""
    driver: bool = False
    """Whether it was written as an argument of the driver, which accepts it without a warning, and so does poolkit."""


_CONFIG = Source("config")
_REPLACED = Source("replace()")

R = TypeVar("R", bound="_Recording")


class _Recording:
    """Notes the names of the settings that are written in the call that makes a config.

    A base class, so that the signature of PoolConfig and of dataclasses derived from it remains that of ``__init__``.
    """

    _sources: Mapping[str, Source]

    def __new__(cls: type[R], *args: Any, **written: Any) -> R:
        """All settings at once are a copy (``dataclasses.replace()``), which tells nothing about who wrote what."""
        made = super().__new__(cls)
        copied = len(written) >= len(fields(cls))  # type: ignore[arg-type]
        object.__setattr__(made, "_sources", {} if copied else dict.fromkeys(written, _CONFIG))
        return made


@dataclass(frozen=True, kw_only=True)
class PoolConfig(_Recording):
    """All settings of one pool. Immutable: :meth:`replace` gives a changed copy.

    Which settings were written is remembered (not by ``==`` and ``repr``): only those replace an adapter's defaults.
    Raises :class:`~poolkit.errors.ConfigError` for an impossible value and warns
    (:class:`PoolConfigWarning`) about combinations that are hardly meant.
    """

    min_size: int = 0
    """Connections kept open without need. 0: a pool costs the server nothing until it is used."""
    max_size: int | None = 10
    """Connections that exist at once, those being opened or closed included; None: no limit.
    10 is HikariCP's default: about twice the cores of a mid-size database server."""
    max_idle: int | None = None
    """Idle connections kept; one returned beyond that is closed. None: as many as ``max_size``."""
    max_waiting: int | None = None
    """Callers that may wait; the next one fails with PoolBusy. None: no limit (each has a deadline anyway)."""
    order: Literal["lifo", "fifo"] = "lifo"
    """Which idle connection is taken: the last used, so that a surplus ages out, or the longest unused, which
    spreads use."""
    start: Literal["lazy", "eager"] = "lazy"
    """"eager" opens ``min_size`` connections when the pool is made; "lazy" from its first use on."""
    acquire_timeout: float | None = 30.0
    """Seconds from asking to a usable connection in hand, all stages included; 0 never waits; None: for ever.
    30 is what QueuePool, psycopg_pool and HikariCP use."""
    connect_timeout: float | None = 10.0
    """Seconds for one attempt to open a connection. Below ``acquire_timeout``, so that there is a second."""
    check_timeout: float | None = 2.0
    """Seconds for one check of a connection; a healthy server answers in milliseconds."""
    max_lifetime: float | None = 1800.0
    """Seconds after which a connection is replaced (DNS changes, server-side leaks); None: never.
    Half an hour is HikariCP's default: a change is followed before long, and a connect in 30 minutes costs nothing."""
    lifetime_jitter: float = 0.1
    """Share of ``max_lifetime`` by which lives are shortened at random, so that they do not end together:
    those opened in one moment end spread over 3 minutes of 30."""
    idle_timeout: float | None = 600.0
    """Seconds after which an unused connection above ``min_size`` is closed; None: never.
    10 minutes, as in psycopg_pool and HikariCP: longer than the pauses of a service in use."""
    keepalive: float | None = None
    """Seconds after which an idle connection is checked, so that no firewall forgets it; None: never.
    Off: a pool sends nothing by itself unless asked to."""
    check_after_idle: float | None = 1.0
    """Check a connection at acquire when it was idle this long in seconds; 0: always; None: only when in doubt.
    1 second is pgxpool's: a connection in constant use is never asked. HTTP and Redis connections are looked at for
    unread bytes and for the peer's end at every checkout, whatever is set here."""
    max_connecting: int | None = 16
    """Connects in progress at once: a burst is served in one connect time, a server is not stormed."""
    leak_after: float | None = None
    """Report a lease held longer than this many seconds, with the place where it was taken; None: never.
    Off, because to note the place makes every acquire slower."""
    on_leak: Literal["warn", "raise", "reclaim"] = "warn"
    """What becomes of a lease held longer than ``leak_after``. "warn": a log entry and an event. "raise": these, and
    whoever gives it back gets LeaseOverdue once the connection is back (for tests and staging). "reclaim": these, and
    the connection is closed at once and its place is free; its holder's next use of it fails with the driver's own
    error. "warn", because only the program knows whether a long lease is a mistake."""
    use_histogram: bool = False
    """Measure how long each lease lasts (``stats().use``). Off: a clock reading and an append more for every release
    make a pair of acquire and release about two thirds slower (still under a microsecond more); the mean is known in
    any case."""
    barging_window: float | None = None
    """Newcomers may overtake waiters until the oldest has waited this long in seconds; 0: strict FIFO.
    None: 0.001 for threads (saves a switch of threads where leases last microseconds), 0 for tasks."""
    backoff: BackoffConfig = field(default_factory=BackoffConfig)
    """Pause between failed connects."""
    breaker: BreakerConfig | None = None
    """Circuit breaker; None: callers wait for the server until their own deadline."""
    autoscale: AutoscaleConfig | None = None
    """Elastic size between ``min_size`` and ``max_size``. None: connections are opened as callers need them, up to
    ``max_size``, and age out by ``idle_timeout``, which is enough for most services."""
    budget: SharedBudget | None = None
    """A limit that several pools share, beside each one's ``max_size``; None: ``max_size`` alone."""
    budget_weight: float = 1.0
    """This pool's part of the budget beside the others', over and above their ``min_size``: what it can count on when
    all of them want more than there is. Equal parts by default."""

    classes: Mapping[str, ClassConfig] | None = field(default=None, hash=False)
    """Classes of callers, by name, with reserved connections, weights and limits; callers choose with
    ``poolkit.priority(name)``. None: all are equal, and the ways without the lock are open."""
    default_class: str | None = None
    """The class of callers who choose none. None: "default", with nothing reserved and weight 1 unless it is among the
    classes."""

    def __post_init__(self) -> None:
        _count("min_size", self.min_size, 0)
        _count("max_size", self.max_size, 1, none="no limit")
        _count("max_idle", self.max_idle, 0, none="max_size")
        _count("max_waiting", self.max_waiting, 0, none="no limit")
        _count("max_connecting", self.max_connecting, 1, none="no limit")
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
            raise _bad("lifetime_jitter", self.lifetime_jitter, "a share of max_lifetime, 0 to below 1")
        if not isinstance(self.use_histogram, bool):
            raise _bad("use_histogram", self.use_histogram, "True or False")
        if self.order not in ("lifo", "fifo"):
            raise _bad("order", self.order, "'lifo' or 'fifo'")
        if self.on_leak not in ("warn", "raise", "reclaim"):
            raise _bad("on_leak", self.on_leak, "'warn', 'raise' or 'reclaim'")
        if self.start not in ("lazy", "eager"):
            raise _bad("start", self.start, "'lazy' or 'eager'")
        if not isinstance(self.backoff, BackoffConfig):
            raise _bad("backoff", self.backoff, "a BackoffConfig")
        if self.breaker is not None and not isinstance(self.breaker, BreakerConfig):
            raise _bad("breaker", self.breaker, "a BreakerConfig, or None")
        if self.autoscale is not None and not isinstance(self.autoscale, AutoscaleConfig):
            raise _bad("autoscale", self.autoscale, "an AutoscaleConfig, or None")
        if self.budget is not None and not isinstance(self.budget, SharedBudget):
            raise _bad("budget", self.budget, "a poolkit.Budget, or None")
        _positive("budget_weight", self.budget_weight)
        if self.classes is not None:
            _classes(self.classes, self.default_class, self.max_size)
            object.__setattr__(self, "classes", dict(self.classes))  # nobody else's to change
        if self.max_size is not None:
            if self.min_size > self.max_size:
                raise _bad("min_size", self.min_size, f"at most max_size ({self.max_size})")
            if self.max_idle is not None and self.max_idle > self.max_size:
                raise _bad("max_idle", self.max_idle, f"at most max_size ({self.max_size})")
        if self.max_idle is not None and self.min_size > self.max_idle:
            raise _bad("min_size", self.min_size, f"at most max_idle ({self.max_idle})")

    def replace(self, **changes: Any) -> PoolConfig:
        """A copy with some settings changed; an unknown name is a ConfigError with the nearest right one.

        The copy knows which settings were written. One made by ``dataclasses.replace()`` does not: there, those count
        that differ from their defaults.
        """
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise unknown(name, changes[name], "", name, known)
        return with_sources(replace(self, **changes), {**sources_of(self), **dict.fromkeys(changes, _REPLACED)})

    __replace__ = replace  # copy.replace(), Python 3.13

    def doubts(self) -> list[str]:
        """What is possible but hardly meant, a sentence each, with the reason.

        Nobody is blamed for a default: the setting named first in each sentence was written by somebody.
        """
        found = []
        sources = sources_of(self)
        acquire, connect = self.acquire_timeout, self.connect_timeout
        if _written("connect_timeout", sources) and acquire and (connect is None or connect >= acquire):
            found.append(
                f"connect_timeout={connect!r} is not below acquire_timeout={acquire!r}: one slow connect uses up "
                "the caller's whole wait and there is no second attempt"
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
            found.append(f"on_leak={self.on_leak!r} has no effect without leak_after: no lease is ever too long")
        if self.classes is None and self.default_class is not None:
            found.append(f"default_class={self.default_class!r} has no effect without classes: all callers are equal")
        if self.classes is not None and self.barging_window:
            found.append(
                f"barging_window={self.barging_window!r} has no effect with classes: nobody overtakes there, so that "
                "shares are kept"
            )
        if self.autoscale is not None and self.min_size == self.max_size:
            found.append(f"autoscale has no effect: min_size and max_size are both {self.min_size}")
        return found

    def warn(self, stacklevel: int = 2, packages: tuple[str, ...] = ()) -> None:
        """Issue a :class:`PoolConfigWarning` for each of :meth:`doubts`.

        It names the line that ``stacklevel`` means in the function that calls this, as for ``warnings.warn``; from
        there on, frames of poolkit, of its adapters and of ``packages`` are passed over.
        """
        for doubt in self.doubts():
            level = stacklevel + 1
            warnings.warn(doubt, PoolConfigWarning, stacklevel=level + _frames_of(packages, level))


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
    """The sources of the settings that somebody wrote, and of those whose default is not poolkit's, by name.

    A value that differs from poolkit's default and has no source was set by a subclass: it counts as written there.
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
    """The config itself, which was just made and is nobody else's yet, with these sources."""
    object.__setattr__(config, "_sources", dict(sources))
    return config


def _written(name: str, sources: Mapping[str, Source]) -> bool:
    """Whether somebody wrote the setting as poolkit's, and may be told that it is hardly meant."""
    return name in sources and sources[name].written and not sources[name].driver
