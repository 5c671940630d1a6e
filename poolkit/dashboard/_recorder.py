"""History for the dashboard: rare events, and a point for each pool every few seconds. Its size is bounded."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .._log import logger
from .._registry import live_pools, watch_pools
from ..cluster._begin import live_clusters
from ..cluster._events import ClusterEvent
from ..errors import describe, shown
from ..events import OF_EACH_LEASE, Event, EventKind
from ..policies.members import snapshot
from ..runtimes.fork import Stage, after_fork, restart_after_fork
from ..stats import PoolStats, WindowStats
from ..telemetry.alerts import Alert, Alerts, live_alerts
from ..telemetry.logs import fields_of

__all__ = ("EVENTS", "INTERVAL", "POINTS", "Point", "Recorder", "load_of", "shared")

INTERVAL = 2.0  # seconds between two points of history
POINTS = 300  # kept for each pool: ten minutes
EVENTS = 500  # kept of all pools together
_NUMBERS = re.compile(r"[\d.]+")
_LOOK_BACK = 8  # recent events that are searched for one that a new event repeats

KINDS = frozenset(EventKind) - OF_EACH_LEASE - {EventKind.CONNECTION_CREATED}
"""The kinds of event that are kept. Events of each lease are not among them: they would slow the fast path down."""

Point = tuple[float, float, float, float, int]
"""Unix time, load (0 to 1), mean wait and acquires/s of the last 10 s, callers in the queue."""


def load_of(recent: WindowStats, max_size: int | None, size: int) -> float:
    """Share of the limit (without one: of what is open) that was on lease on average in a window, 0 to 1."""
    return min(1.0, recent.mean_in_use / (max_size or size or 1))


class _Log:
    """A listener of pools and clusters that keeps texts, not events. An error in an event would keep stack frames and
    their connections alive.
    """

    kinds = KINDS

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start without events."""
        self._lock = threading.RLock()  # a finalizer may return a connection and emit an event in the middle of this
        self._kept: deque[tuple[tuple[str, ...], dict[str, Any]]] = deque(maxlen=EVENTS)

    def __call__(self, event: Event) -> None:
        fields = fields_of(event)
        pool, what = fields.pop("pool"), fields.pop("event")
        self._keep(pool, what, fields)

    def of_cluster(self, event: ClusterEvent) -> None:
        """Keep an event of a cluster."""
        fields = {"node": event.node, "detail": shown(event.detail, 1000)}
        if event.error is not None:
            fields["error"] = describe(event.error)
        self._keep(event.cluster, event.kind.value, fields)

    def _keep(self, source: str, what: str, fields: dict[str, Any]) -> None:
        """Count an event that repeats one of the last few: an outage emits the same event a hundred times a second."""
        spent = fields.pop("seconds", 0.0)
        said = {name: str(value) for name, value in fields.items() if value != ""}
        key = (source, what, *(_NUMBERS.sub("#", value) for name, value in said.items() if name != "connection"))
        text = ", ".join(value if name == "detail" else f"{name} {value}" for name, value in said.items())
        if spent >= 0.001:
            text += f"{', ' if text else ''}{spent:.3f} s"
        news = {"at": time.time(), "source": source, "event": what, "text": text, "times": 1}
        with self._lock:
            recent = [self._kept[index] for index in range(-1, -min(_LOOK_BACK, len(self._kept)) - 1, -1)]
            same = next((event for known, event in recent if known == key), None)
            if same is None:
                self._kept.append((key, news))
            else:
                same.update(news, times=same["times"] + 1)

    def last(self, most: int) -> list[dict[str, Any]]:
        """Return the ``most`` newest events, newest first."""
        with self._lock:
            kept = [event.copy() for _, event in self._kept]
        return sorted(kept, key=lambda event: -event["at"])[:most]


class Recorder:
    """Events of all pools and clusters of this process, and a history that a daemon thread extends every ``interval``
    seconds (None: when :meth:`tick` is called). Thread-safe. The thread ends when the recorder is garbage-collected.

    Alerts come from the :class:`~poolkit.telemetry.alerts.Alerts` objects of the process. If there are none, the
    recorder has its own with the default thresholds.
    """

    def __init__(self, *, interval: float | None = INTERVAL, pools: Callable[[], Iterable[Any]] = live_pools) -> None:
        self._interval = interval
        self.pools = pools
        self._log = log = _Log()
        self._own: Alerts | None = None
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._next = itertools.count(1)
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._begin()
        self._end = watch_pools(lambda pool: pool.add_listener(log))  # must not refer to self
        self._over = threading.Event()
        self.tick()
        if interval is not None:
            self._start()
            restart_after_fork(Stage.WATCHERS, self, _start_again)

    def _begin(self) -> None:
        """Start without history. Called again in a forked child: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._history: weakref.WeakKeyDictionary[Any, deque[Point]] = weakref.WeakKeyDictionary()
        self._log.begin()

    def _start(self) -> None:
        threading.Thread(
            target=_run, args=(weakref.ref(self), self._over, self._interval, self._end, self._log),
            name="poolkit-dashboard", daemon=True,
        ).start()  # fmt: skip

    def close(self) -> None:
        """Stop recording and remove the listeners. Idempotent."""
        self._over.set()
        _take_off(self._end, self._log)
        if self._own is not None:
            self._own.close()

    # -- the thread -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Add a point for each pool, check the alerts, and listen to new clusters."""
        now = time.time()
        seen = [(pool, pool.stats()) for pool in self.pools()]
        for pool, stats in seen:
            recent = stats.windows[10]
            point = (round(now, 1), round(load_of(recent, stats.max_size, stats.size), 4), round(recent.wait.mean, 6),
                     round(recent.acquires_per_second, 1), stats.waiting)  # fmt: skip
            with self._lock:
                self._history.setdefault(pool, deque(maxlen=POINTS)).append(point)
        for cluster in live_clusters():
            with self._lock:
                known = cluster in self._known
                self._known.add(cluster)
            if not known:
                cluster.add_listener(self._log.of_cluster)
        self._look_for_alerts(seen)

    def _look_for_alerts(self, seen: list[tuple[Any, PoolStats]]) -> None:
        others = [one for one in live_alerts() if one is not self._own]
        if others and self._own is not None:
            self._own.close()
            self._own = None
        elif not others:
            if self._own is None:
                self._own = Alerts(interval=None, pools=self.pools)
            self._own.look_at(seen)

    # -- the history ------------------------------------------------------------------------------------------------

    def id_of(self, pool: Any) -> str:
        """Return the id of a pool, unique among all processes of the machine: two pools may have the same name."""
        with self._lock:
            number = self._numbers.get(pool)
            if number is None:
                number = self._numbers[pool] = next(self._next)
        return f"{os.getpid()}-{number}"

    def history(self) -> dict[str, list[Point]]:
        """Return the points of each live pool, the oldest first, by its id."""
        with self._lock:
            kept = {pool: list(self._history[pool]) for pool in snapshot(self._history)}
        return {self.id_of(pool): points for pool, points in kept.items() if not pool.closed}

    def events(self, most: int) -> list[dict[str, Any]]:
        """Return the ``most`` newest events, newest first."""
        return self._log.last(most)

    def alerts(self) -> list[tuple[str, Alert]]:
        """Return the alerts that are raised now, each with the id of its pool."""
        return [(self.id_of(pool), alert) for one in live_alerts() for pool, alert in one._raised()]


def _take_off(end: Callable[[], None], log: _Log) -> None:
    end()
    for pool in live_pools():
        pool.remove_listener(log)
    for cluster in live_clusters():
        cluster.remove_listener(log.of_cluster)


def _run(
    ref: weakref.ref[Recorder], over: threading.Event, interval: float, end: Callable[[], None], log: _Log
) -> None:
    while not over.wait(interval):
        recorder = ref()
        if recorder is None:  # done here, because a finalizer of the recorder must not take the pools' locks
            _take_off(end, log)
            return
        try:
            recorder.tick()
        except Exception:
            logger.exception("the dashboard's history could not be extended")
        del recorder


def _start_again(recorder: Recorder) -> None:
    if not recorder._over.is_set():
        recorder._over = threading.Event()
        recorder._begin()
        recorder._start()


_shared: weakref.ref[Recorder] | None = None
_shared_lock = threading.Lock()


def shared() -> Recorder:
    """Return the recorder of this process; the first call creates it. Thread-safe."""
    global _shared
    with _shared_lock:
        recorder = None if _shared is None else _shared()
        if recorder is None:
            recorder = Recorder()
            _shared = weakref.ref(recorder)
        return recorder


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()


after_fork(Stage.RUNTIME, _after_fork_in_child)
