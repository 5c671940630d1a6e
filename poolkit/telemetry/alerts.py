"""Alerts: rules over the statistics of all pools, with hysteresis. Standard library only.

The Prometheus rules in ``contrib/`` are equivalent. These rules need no Prometheus and can stop a deployment or page an
operator from inside the process.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from .._log import logger
from .._numbers import seconds
from .._registry import live_pools
from ..errors import ConfigError
from ..events import EventKind
from ..policies.hysteresis import Hysteresis
from ..policies.members import snapshot
from ..runtimes.fork import Stage, after_fork, restart_after_fork
from ..stats import PoolStats
from .families import require

__all__ = ("Alert", "Alerts", "Thresholds", "live_alerts")

_alerts: weakref.WeakSet[Alerts] = weakref.WeakSet()
_alerts_lock = threading.Lock()


def live_alerts() -> list[Alerts]:
    """Return every :class:`Alerts` of this process that is neither closed nor collected. Thread-safe."""
    with _alerts_lock:
        return [one for one in snapshot(_alerts) if not one._over.is_set()]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds of the alerts; None disables an alert. Shares are from 0 to 1, times in seconds. An alert ends when
    its value falls to 0.8 times the threshold. Raises ConfigError for invalid values.
    """

    utilisation: float | None = 0.8
    """Share of ``max_size`` in use on average over 10 s: beyond it waits grow steeply (see ``poolkit size``)."""
    half_used: float | None = 0.5
    """The same over up to 5 minutes, but at least 30 s, as an early notice that leaves time to plan."""
    mean_wait: float | None = 0.1
    """Seconds that callers waited on average in the last 10 s. Users notice delays of this size."""
    connect_failures: float | None = 0.01
    """Share of the connects in the last minute that failed."""
    queue: float | None = 10.0
    """Seconds for which the queue was never seen empty: the pool does not keep up."""
    timeouts: int | None = 0
    """Acquires that timed out in the last minute; 0: every timeout raises the alert."""
    leaks: int | None = 0
    """Leases that leaked in the last 5 minutes."""
    longest_held: float | None = 600.0
    """Age in seconds of a lease that is still held. In a pool with ``leak_after`` the alert is not raised before
    ``leak_after``, and at the latest when the lease drops out of ``leaks``.
    """
    breaker: int | None = 0
    """Endpoints whose circuit breaker is open."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            share = field.name in ("utilisation", "half_used", "connect_failures")
            right = "a share from 0 to 1 (or None: never)" if share else "a number, 0 or more (or None: never)"
            if value is not None:
                require(field.name, value, (int, float), 0, 1 if share else None, right)


@dataclass(frozen=True)
class Alert:
    """One alert of one pool. ``raised``: True when it begins, False when it ends. ``value`` crossed ``threshold``;
    ``text`` describes it. ``at``: Unix time.
    """

    pool: str
    name: str
    severity: str
    raised: bool
    value: float
    threshold: float
    text: str
    at: float


@dataclass(frozen=True)
class _Rule:
    severity: str
    value: Callable[[PoolStats], float]
    words: Callable[[float], str]
    after: float = 0.0


def _share_used(window: int) -> Callable[[PoolStats], float]:
    def value(stats: PoolStats) -> float:
        seen = stats.windows[window]
        return 0.0 if stats.max_size is None or seen.seconds < window / 10 else seen.mean_in_use / stats.max_size

    return value


def _number(value: float, thing: str) -> str:
    return f"{value:.0f} {thing}{'' if round(value) == 1 else 's'}"


_RULES: dict[str, _Rule] = {
    "utilisation": _Rule("warning", _share_used(10), lambda v: f"{v:.0%} of the connections are in use"),
    "half_used": _Rule("info", _share_used(300), lambda v: f"{v:.0%} of the limit is in use over up to 5 minutes"),
    "mean_wait": _Rule("warning", lambda s: s.windows[10].wait.mean, lambda v: f"callers wait {v:.3f} s on average"),
    "connect_failures": _Rule("warning", lambda s: s.windows[60].connect_failure_rate,
                              lambda v: f"{v:.1%} of the connects fail"),
    "queue": _Rule("warning", lambda s: float(s.waiting > 0), lambda v: "callers have been waiting without a break"),
    "timeouts": _Rule("critical", lambda s: float(s.windows[60].timeouts),
                      lambda v: f"{_number(v, 'caller')} got no connection in a minute"),
    "leaks": _Rule("warning", lambda s: float(s.windows[300].leaks),
                   lambda v: f"{_number(v, 'lease')} leaked in 5 minutes"),
    "longest_held": _Rule("warning", lambda s: s.longest_held, lambda v: f"a connection has been held for {v:.0f} s"),
    "breaker": _Rule("critical", lambda s: float(s.open_breakers),
                     lambda v: f"the circuit breaker of {_number(v, 'endpoint')} is open"),
}  # fmt: skip


def _longest(threshold: float, leak_after: float | None) -> float:
    """``leaks`` reports a lease for 300 s. This alert must be raised by then, or a leak that is still held is
    forgotten.
    """
    return threshold if leak_after is None else max(leak_after, min(threshold, leak_after + 300.0))


_LEVELS = {"info": "info", "warning": "warning", "critical": "error"}


class Alerts:
    """Checks all live pools every ``interval`` seconds, in a daemon thread (None: only when :meth:`check` is called).

    Each alert that begins or ends goes to ``callback(alert)``, to the log, and to the pool's listeners
    (``ALERT_RAISED``, ``ALERT_CLEARED``). The alerts of a pool end when it is closed or collected. :meth:`active`
    returns the current alerts. An error of the callback is logged, and the callback is called for later alerts as well.
    Thread-safe.
    """

    def __init__(
        self,
        thresholds: Thresholds | None = None,
        callback: Callable[[Alert], object] | None = None,
        *,
        interval: float | None = 5.0,
        pools: Callable[[], Iterable[Any]] = live_pools,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if thresholds is not None and not isinstance(thresholds, Thresholds):
            raise ConfigError(f"thresholds={thresholds!r}: must be Thresholds", "thresholds")
        seconds("interval", interval, least=0.001, none="only when check() is called")
        self._thresholds = thresholds or Thresholds()
        self._callback = callback
        self._interval = interval
        self._pools = pools
        self._clock = clock
        self._lock = threading.Lock()
        self._states: weakref.WeakKeyDictionary[Any, dict[str, Hysteresis]] = weakref.WeakKeyDictionary()
        self._active: dict[weakref.ref[Any], dict[str, Alert]] = {}  # of collected pools until their alerts have ended
        self._over = threading.Event()
        with _alerts_lock:
            _alerts.add(self)
        if interval is not None:
            self._start(interval)
        restart_after_fork(Stage.WATCHERS, self, _start_again)

    def _start(self, interval: float) -> None:
        self._over = threading.Event()
        threading.Thread(target=_look, args=(weakref.ref(self), self._over, interval), name="poolkit-alerts",
                         daemon=True).start()  # fmt: skip

    def close(self) -> None:
        """Stop checking. Idempotent."""
        self._over.set()

    def active(self) -> list[Alert]:
        """Return what is raised now. ``value`` and ``text`` are of the last check, ``at`` is when the alert began."""
        return [alert for _, alert in self._raised()]

    def _raised(self) -> list[tuple[Any, Alert]]:
        """As :meth:`active`, each with its pool."""
        with self._lock:
            known = [(ref(), active) for ref, active in self._active.items()]
            return [
                (pool, alert) for pool, active in known if pool is not None and not pool.closed
                for alert in active.values()
            ]  # fmt: skip

    def check(self) -> list[Alert]:
        """Check now. Returns the alerts that began or ended."""
        return self.look_at([(pool, pool.stats()) for pool in self._pools()])

    def look_at(self, seen: Iterable[tuple[Any, PoolStats]]) -> list[Alert]:
        """As :meth:`check`, for a caller that already has the statistics of these pools."""
        found: list[tuple[Any, Alert]] = []
        live = [(pool, stats) for pool, stats in seen if not pool.closed]
        with self._lock:
            for pool, stats in live:
                found += [(pool, alert) for alert in self._look_at(pool, stats)]
            found += self._ended()
        for pool, alert in found:
            self._deliver(pool, alert)
        return [alert for _, alert in found]

    def _ended(self) -> list[tuple[Any, Alert]]:
        """Return the end of each alert whose pool is closed or collected (None)."""
        found: list[tuple[Any, Alert]] = []
        for ref in list(self._active):
            pool = ref()
            if pool is None or pool.closed:
                for alert in self._active.pop(ref).values():
                    text = f"{alert.name}: over, the pool is closed"
                    found.append((pool, replace(alert, raised=False, text=text, at=time.time())))
        return found

    def _look_at(self, pool: Any, stats: PoolStats) -> Iterable[Alert]:
        now = self._clock()
        states = self._states.setdefault(pool, {})
        active = self._active.setdefault(weakref.ref(pool), {})
        for name, rule in _RULES.items():
            threshold = getattr(self._thresholds, name)
            if threshold is None:
                continue
            if name == "longest_held":
                threshold = _longest(threshold, pool.config.leak_after)
            if name not in states:  # the queue is a question of time, not of a number
                line, after = (0.0, threshold) if name == "queue" else (threshold, rule.after)
                states[name] = Hysteresis(line, 0.8 * line, after)
            value = rule.value(stats)
            if states[name].update(value, now):
                raised = states[name].raised
                alert = Alert(stats.name, name, rule.severity, raised, value, threshold,
                              rule.words(value) if raised else f"{name}: over", time.time())  # fmt: skip
                if raised:
                    active[name] = alert
                else:
                    active.pop(name, None)
                yield alert
            elif states[name].raised and active[name].value != value:
                active[name] = replace(active[name], value=value, text=rule.words(value))

    def _deliver(self, pool: Any, alert: Alert) -> None:
        level = _LEVELS[alert.severity] if alert.raised else "info"
        getattr(logger, level)("%s: alert %s %s: %s", alert.pool, alert.name, "raised" if alert.raised else "cleared",
                               alert.text)  # fmt: skip
        kind = EventKind.ALERT_RAISED if alert.raised else EventKind.ALERT_CLEARED
        if pool is not None:
            pool.announce(kind, f"{alert.name}: {alert.text}")
        if self._callback is not None:
            try:
                self._callback(alert)
            except Exception:
                logger.exception("%s: alert callback %r failed", alert.pool, self._callback)


def _look(alerts: weakref.ref[Alerts], over: threading.Event, interval: float) -> None:
    while not over.wait(interval):
        one = alerts()
        if one is None:
            return
        try:
            one.check()
        except Exception:
            logger.exception("alerts could not be checked")
        del one


def _after_fork_in_child() -> None:
    global _alerts_lock
    _alerts_lock = threading.Lock()  # another thread of the parent may have held it


after_fork(Stage.RUNTIME, _after_fork_in_child)


def _start_again(alerts: Alerts) -> None:
    alerts._lock = threading.Lock()  # another thread of the parent may have held it
    if alerts._interval is not None and not alerts._over.is_set():
        alerts._start(alerts._interval)
