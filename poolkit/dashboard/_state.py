"""The snapshot that the dashboard shows, as plain data: for the page, ``poolkit top`` and clients of the JSON API."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from operator import itemgetter
from pathlib import PurePath
from typing import Any

from poolkit import __version__

from .._monitor import explain
from ..budget import Budget
from ..cluster._begin import live_clusters
from ..cluster._nodepool import engine_of
from ..cluster._shell import ClusterShell
from ..errors import shown, shown_again, shown_key
from ..stats import PoolBrief, PoolDetails, in_brief
from ._recorder import INTERVAL, Recorder, load_of

__all__ = ("FEW", "LISTED", "brief_of", "detail_of", "history_of", "merged", "state_of")

FEW = 3
"""Leases and waiters (the longest) of a pool with waiting callers or a problem in the state of all; of other pools the
longest lease. The numbers beside them count all.
"""
LISTED = 50
"""Leases, waiters and endpoints in the detail of one pool, and endpoints whose breaker is not closed in the state."""
_EVENTS = 100
_TEXT = 2000  # characters of one text at most
_STARTED = time.time()

State = dict[str, Any]


def state_of(recorder: Recorder, *, actions: bool, service: str | None = None) -> State:
    """Return all pools, clusters, budgets, alerts and events of this process. O(connections); waits for no I/O.

    ``service``: the name of the process for its readers (None: that of its program).
    """
    pools = sorted(recorder.pools(), key=lambda pool: str(pool.name))
    budgets = {id(pool.config.budget): pool.config.budget for pool in pools if isinstance(pool.config.budget, Budget)}
    state = {
        "at": time.time(),
        "actions": actions,
        "processes": [_process(service)],
        "pools": [brief_of(pool, recorder.id_of(pool)) for pool in pools],
        "clusters": [_cluster(cluster, recorder) for cluster in sorted(live_clusters(), key=lambda one: one.name)],
        "budgets": [{**_plain(budget.stats()), "pid": os.getpid()} for budget in budgets.values()],
        "alerts": [{**_plain(alert), "pid": os.getpid(), "id": number} for number, alert in recorder.alerts()],
        "events": [{**event, "pid": os.getpid()} for event in recorder.events(_EVENTS)],
    }
    _worst_first(state)
    return state


def history_of(recorder: Recorder) -> State:
    """Return the history of each pool, by its id: lists of Unix time, load, mean wait (s), acquires/s, callers in the
    queue.
    """
    return {"interval": INTERVAL, "pools": recorder.history()}


def merged(states: Iterable[State]) -> State:
    """Return the snapshots of several processes as one."""
    states = list(states)
    lists = ("processes", "pools", "clusters", "budgets", "alerts", "events")
    total: State = {"at": time.time(), "actions": any(state["actions"] for state in states)}
    total |= {name: [one for state in states for one in state[name]] for name in lists}
    _worst_first(total)
    total["events"] = sorted(total["events"], key=lambda event: -event["at"])[:_EVENTS]
    return total


_RANKS = {"critical": 0, "warning": 1, "info": 2}
_PATIENCE = 1.0  # seconds of a wait that are trouble; less would reorder the pools at every look


def _worst_first(state: State) -> None:
    """Sort the alerts by severity, the oldest first. Pools with alerts or trouble come first, then all by name."""
    state["alerts"].sort(key=lambda alert: (_RANKS[alert["severity"]], alert["at"]))
    worst: dict[str | None, int] = {}
    for alert in state["alerts"]:
        worst.setdefault(alert.get("id"), _RANKS[alert["severity"]])

    def rank(pool: State) -> tuple[int, str, int]:
        trouble = pool["phase"] != "open" or pool["open_breakers"] or pool["longest_wait"] >= _PATIENCE
        return min(worst.get(pool["id"], 3), 1 if trouble else 3), pool["name"], pool["pid"]

    state["pools"].sort(key=rank)


def _process(service: str | None) -> dict[str, Any]:
    path = PurePath(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "python")
    program = shown(path.parent.name if path.name == "__main__.py" else path.name)
    version = ".".join(map(str, sys.version_info[:3]))
    return {
        "pid": os.getpid(),
        "program": program,
        "service": program if service is None else shown(service),
        "python": version,
        "poolkit": __version__,
        "seen_since": _STARTED,
    }


_NAMES = (
    "phase", "size", "idle", "in_use", "connecting", "checking", "resetting", "closing", "leases", "waiting",
    "min_size", "max_size", "acquires", "waits", "timeouts", "connects", "connect_errors", "checks", "failed_checks",
    "leaks", "open_breakers", "lanes", "longest_held", "longest_wait", "last_connect_error", "overload_reason",
)  # fmt: skip
_numbers = itemgetter(*_NAMES)


def brief_of(pool: Any, number: str) -> State:
    """Return the short form of a pool. Every reader gets it for every pool in each snapshot, so each field adds up."""
    return _brief(pool, number, pool._monitor.brief(FEW))


def _brief(pool: Any, number: str, seen: PoolBrief) -> State:
    # times are finite, and the texts of the pool are masked and escaped: only the name and the diagnosis are not
    numbers, recent = seen.numbers, seen.recent
    wait = recent.wait
    found = dict(zip(_NAMES, _numbers(numbers), strict=True))
    found |= {
        "id": number,
        "pid": os.getpid(),
        "kind": type(pool).__name__,
        "name": shown_again(numbers["name"], _TEXT),
        "load": load_of(recent, numbers["max_size"], numbers["size"]),
        "mean_wait": wait.mean,
        "p99_wait": wait.quantile(0.99),
        "mean_use": recent.mean_use,
        "acquires_per_second": recent.acquires_per_second,
        "connects_per_second": recent.connects_per_second,
        "timeouts_in_a_minute": seen.timeouts,
        "diagnosis": None if seen.diagnosis is None else _plain(seen.diagnosis),
        "held": [vars(lease) for lease in seen.leases],
        "queue": [_with_key(waiter) for waiter in seen.waiters],
        "endpoints": [_with_key(endpoint) for endpoint in seen.broken[:LISTED]],
    }
    return found


def detail_of(pool: Any, number: str) -> State:
    """Return the long form of one pool, for a reader that has opened it."""
    seen: PoolDetails = pool.details(LISTED)
    stats = seen.stats
    return _brief(pool, number, in_brief(seen, list(seen.lanes))) | {
        "closes": dict(stats.closes),
        "words": _plain(explain(stats, list(seen.leases[:1]), diagnosis=seen.diagnosis)),
        "settings": {
            name: {"value": _plain(setting.value), "source": setting.source}
            for name, setting in pool.describe().items()
        },
    }


def _cluster(cluster: ClusterShell[Any], recorder: Recorder) -> dict[str, Any]:
    stats = cluster.stats()
    nodes = []
    for node in stats.nodes:
        try:
            engine = engine_of(cluster.pool(node.name))
        except KeyError:  # removed, and about to be gone
            engine = None
        nodes.append({
            **{name: _plain(value) for name, value in vars(node).items() if name != "pool"},
            "pool": None if engine is None else recorder.id_of(engine),
        })  # fmt: skip
    return {"pid": os.getpid(), "name": stats.name, "kind": type(cluster).__name__, "leases": stats.leases,
            "waiting": stats.waiting, "timeouts": stats.timeouts, "nodes": nodes}  # fmt: skip


def _with_key(one: Any) -> dict[str, Any]:
    """Return the fields as plain data. The key may be anything that can be hashed, and becomes text."""
    return {**_plain(replace(one, key=None)), "key": None if one.key is None else shown_key(one.key)}


def _plain(value: Any) -> Any:
    """Return a value that JSON can represent: infinity and unknown types become text. Texts are bounded, masked and
    escaped.
    """
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return shown_again(value, _TEXT)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Budget):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {_plain(name) if isinstance(name, str) else shown(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return shown(value, _TEXT)
