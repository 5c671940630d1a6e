"""What is aimed at, as named checks of a run's numbers. One that is missed is shown as missed."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.experiments.cells import PAIRS, SIZES, SPIKE
from bench.experiments.contended import FLOOR, MAIN, UNFAIR
from bench.experiments.http import SECOND, STEADY, TRANSPORTS
from bench.experiments.overload import CLIENTS, WORLDS
from bench.experiments.overload import UNFAIR as BARGING
from bench.figures import Spread, number, ratios, spread
from bench.http_clients import PEERS, REQUESTS, URLLIB3
from bench.result import Param, Result

__all__ = ("CELLS", "TARGETS", "Target", "Verdict", "judge")

Measure = Callable[[Result], list[float]]
_OPERATORS = {"<=": operator.le, ">=": operator.ge, ">": operator.gt, "=": operator.eq}


@dataclass(frozen=True)
class Target:
    """One number that a run gives for each repetition, and the bound for its median."""

    group: str
    name: str
    relation: str
    bound: float
    measure: Measure
    unit: str = "x"

    @property
    def wanted(self) -> str:
        """The bound in words."""
        return f"{self.relation} {number(self.bound)}{'' if self.unit == 'x' else ' '}{self.unit}"


@dataclass(frozen=True)
class Verdict:
    """A target and what a run says of it; ``met`` is None where the run has not measured it."""

    target: Target
    measured: Spread | None
    met: bool | None

    @property
    def word(self) -> str:
        """``met``, ``NOT met`` or ``not measured``."""
        return "not measured" if self.met is None else "met" if self.met else "NOT met"


def judge(result: Result, targets: Sequence[Target] | None = None) -> list[Verdict]:
    """Judge a run by each of the targets (by default :data:`TARGETS`, and :data:`CELLS` if it has measured those)."""
    verdicts = []
    if targets is None:
        targets = (*TARGETS, *CELLS) if "cells" in result.seconds else TARGETS
    for target in targets:
        values = target.measure(result)
        if values:
            measured = spread(values)
            verdicts.append(Verdict(target, measured, _OPERATORS[target.relation](measured.median, target.bound)))
        else:
            verdicts.append(Verdict(target, None, None))
    return verdicts


# -- ways to measure ----------------------------------------------------------------------------------------------


def _plain(experiment: str, subject: str, metric: str, **params: Param) -> Measure:
    return lambda result: result.values(experiment, subject, metric, **params)


def _ratio(experiment: str, subject: str, base: str | Sequence[str], metric: str, **params: Param) -> Measure:
    """To the base; of several, to the one whose median is best: the fastest, or the cheapest.

    Not to the best in each repetition: the better of two that vary is better than either.
    """
    bases = (base,) if isinstance(base, str) else tuple(base)
    best: Callable[..., list[float]] = max if metric == "rate" else min

    def measure(result: Result) -> list[float]:
        found = [values for one in bases if (values := result.values(experiment, one, metric, **params))]
        against = best(found, key=statistics.median) if found else []
        return ratios(result.values(experiment, subject, metric, **params), against)

    return measure


def _growth(size: int, small: int, what: str) -> Measure:
    def measure(result: Result) -> list[float]:
        large = result.values("scale", "poolkit", "operation", **{what: size})
        return ratios(large, result.values("scale", "poolkit", "operation", **{what: small}))

    return measure


def _inverse(measure: Measure) -> Measure:
    return lambda result: [1 / value if value else float("inf") for value in measure(result)]


def _worst(measures: Sequence[Measure], worst: Callable[[Iterable[float]], float]) -> Measure:
    """The worst of several in each repetition; nothing unless all were measured."""
    return lambda result: [worst(turn) for turn in zip(*(measure(result) for measure in measures), strict=False)]


def _steady(tasks: int) -> Measure:
    """The rate with so many tasks by that with the fewest, one connection for each task."""

    def measure(result: Result) -> list[float]:
        return ratios(*(result.values("http", _HTTP, "rate", steady=one) for one in (tasks, STEADY[0])))

    return measure


def _tasks(tasks: int, limit: int) -> dict[str, Param]:
    return {"protocol": "HTTP/1.1", "world": "tasks", "callers": tasks, "limit": limit}


def _threads(threads: int, limit: int) -> dict[str, Param]:
    return {"protocol": "HTTP/1.1", "world": "threads", "callers": threads, "limit": limit}


# -- the targets --------------------------------------------------------------------------------------------------

_HTTP = "httpx -> poolkit"
_SQL = "SQLAlchemy -> poolkit"
_REDIS = "redis-py -> poolkit"
_REDIS_OWN = ("redis-py BlockingConnectionPool", "redis-py ConnectionPool")
_VALKEY = "valkey-py -> poolkit"
_VALKEY_OWN = ("valkey-py BlockingConnectionPool", "valkey-py ConnectionPool")
_T: dict[str, Param] = {"world": "threads"}
_CALLERS, _CONNECTIONS = MAIN


def _case(hold: float) -> dict[str, Param]:
    return {"world": "threads", "callers": _CALLERS, "connections": _CONNECTIONS, "hold_ms": hold}


def _fair(metric: str, *holds: float) -> Measure:
    worst = min if metric == "jain" else max
    return _worst([_plain("contended", "poolkit", metric, **_case(hold)) for hold in holds], worst)


def _in_time(world: str, busy: int) -> Measure:
    case: dict[str, Param] = {"world": world, "busy": busy}
    return _worst(
        [_ratio("overload", "poolkit", BARGING[world], "rate", callers=callers, **case) for callers in CLIENTS], min
    )


TARGETS: tuple[Target, ...] = (
    Target("cycle", "engine / lock and deque", "<=", 1.3, _ratio("cycle", "poolkit", "lock and deque", "cpu", **_T)),
    Target("cycle", "engine / psycopg_pool", "<=", 0.3, _ratio("cycle", "poolkit", "psycopg_pool", "cpu", **_T)),
    Target("cycle", "engine / DBUtils", "<=", 0.25, _ratio("cycle", "poolkit", "DBUtils", "cpu", **_T)),
    Target(
        "cycle", "engine / redis-py's cheaper pool", "<=", 0.25,
        _ratio("cycle", "poolkit", _REDIS_OWN, "cpu", **_T),
    ),
    Target(
        "cycle", "engine / QueuePool", "<=", 0.25, _ratio("cycle", "poolkit", "SQLAlchemy QueuePool", "cpu", **_T)
    ),
    Target(
        "cycle", "engine with exporters / without", "<=", 1.1,
        _ratio("exporters", "poolkit, exporters", "poolkit", "cpu", **_T),
    ),
    Target("adapters", "SQLAlchemy / QueuePool", "<=", 0.6, _ratio("cycle", _SQL, "SQLAlchemy QueuePool", "cpu", **_T)),
    Target(
        "adapters", "SQLAlchemy with checks / QueuePool without pre_ping, SELECT 1", "<=", 1.1,
        _inverse(_ratio("sql", f"{_SQL}, checks", "SQLAlchemy QueuePool", "rate", callers=1, **_T)),
    ),
    Target(
        "adapters", "asyncpg acquire and release / asyncpg's own pool", "<=", 1.0,
        _ratio("sql", "asyncpg -> poolkit", "asyncpg", "cycle", world="tasks"),
    ),
    Target(
        "adapters", "redis get and release / redis-py's cheaper pool", "<=", 0.3,
        _ratio("redis", _REDIS, _REDIS_OWN, "cycle", **_T),
    ),
    Target(
        "adapters", "redis GET/s, 1 thread / redis-py's faster pool", ">=", 1.25,
        _ratio("redis", _REDIS, _REDIS_OWN, "rate", callers=1, **_T),
    ),
    Target(
        "adapters", "redis GET/s, 16 threads / redis-py's faster pool", ">=", 1.4,
        _ratio("redis", _REDIS, _REDIS_OWN, "rate", callers=16, **_T),
    ),
    Target(
        "adapters", "redis CPU per GET, asyncio / redis-py's cheaper pool", "<=", 0.85,
        _ratio("redis", _REDIS, _REDIS_OWN, "cpu", world="tasks", callers=1),
    ),
    *(
        Target(
            "adapters", f"valkey get and release, {world} / valkey-py's cheaper pool", "<=", 1.0,
            _ratio("redis", _VALKEY, _VALKEY_OWN, "cycle", world=world),
        )
        for world in ("threads", "tasks")
    ),
    *(
        Target(
            "adapters", f"valkey GET/s, {callers} {world} / valkey-py's faster pool", ">=", 0.97,
            _ratio("redis", _VALKEY, _VALKEY_OWN, "rate", callers=callers, world=world),
        )
        for world in ("threads", "tasks")
        for callers in (1, 16)
    ),
    *(
        Target(
            "http", f"{own}: requests/s, {threads} threads on {limit} connections / its own pool", ">=", 0.97,
            _ratio("http", ours, own, "rate", **_threads(threads, limit)),
        )
        for own, ours in (URLLIB3, REQUESTS)
        for threads, limit in ((1, 1), (8, 8), (64, 64), (64, 16))
    ),
    *(
        Target(
            "http", f"requests/s, {tasks} tasks on {limit} connections / httpx", ">=", bound,
            _ratio("http", _HTTP, "httpx", "rate", **_tasks(tasks, limit)),
        )
        for tasks, bound in ((1, 1.0), (100, 4.0), (500, 8.0), (1000, 10.0))
        for limit in dict.fromkeys((tasks, max(1, tasks // 10)))
    ),
    *(
        Target(
            "http", f"httpx2: requests/s, {tasks} tasks, default limits / its own pool", ">=", bound,
            _ratio("http", "httpx2 -> poolkit", "httpx2", "rate", default_limits=tasks),
        )
        for tasks, bound in zip(SECOND, (1.0, 1.6, 2.0), strict=True)
    ),
    *(
        Target(
            "http", f"httpx transports: CPU per GET of {size} B, {way}, {tasks} tasks / better of two",
            "<=", 0.95, _ratio("http", _HTTP, PEERS, "cpu", way=way, tasks=tasks, size=size),
        )
        for way in ("plain", "TLS")
        for tasks, size in TRANSPORTS
    ),
    Target(
        "http", "slowest of 100, 500, 1000 tasks / 10 tasks", ">=", 0.8,
        _worst([_steady(tasks) for tasks in STEADY[1:]], min),
    ),
    Target("http", "burst of 400 over 10 connections / ideal", "<=", 1.3, _plain("http", _HTTP, "total", burst=400)),
    Target(
        "http", "connections for 50 workers", "=", 50, _plain("http", _HTTP, "connections", workers=50), "connections"
    ),
    *(
        Target(
            "http", f"requests/s, {threads} thread{'s' * (threads > 1)} / httpx", ">=", 1.5,
            _ratio("http", _HTTP, "httpx", "rate", **_threads(threads, threads)),
        )
        for threads in (1, 8, 64)
    ),
    Target("fairness", "Jain's index, holds of 1 and 5 ms", ">", 0.999, _fair("jain", 1.0, 5.0), ""),
    Target("fairness", "most / least served, holds of 1 and 5 ms", "<=", 1.1, _fair("most/least", 1.0, 5.0)),
    Target("fairness", "most / least served, any hold", "<=", 1.5, _fair("most/least", 0.0, 0.05, 1.0, 5.0)),
    Target("fairness", "worst wait / fair share, any hold", "<=", 3, _fair("worst wait", 0.0, 0.05, 1.0, 5.0)),
    Target(
        "fairness", "acquires/s at 1 ms / queue.LifoQueue", ">=", 0.95,
        _ratio("contended", "poolkit", FLOOR, "rate", **_case(1.0)),
    ),
    Target(
        "fairness", "acquires/s at 0 ms / fastest unfair pool", ">=", 0.8,
        _ratio("contended", "poolkit", UNFAIR, "rate", **_case(0.0)),
    ),
    *(
        Target(
            "overload",
            f"in time/s, {world}{', all cores busy' if busy else ''}, worst of 12 to 60 callers / best unfair pool",
            ">=", 0.95, _in_time(world, busy),
        )
        for world in WORLDS
        for busy in (0, 1)
    ),
    Target("spike", "connections opened", "<=", 1, _plain("spike", "poolkit", "opened", most=20), "connections"),
    Target(
        "spike", "time for all / psycopg_pool", "<=", 1.1,
        _ratio("spike", "poolkit", "psycopg_pool", "total", most=20),
    ),
    Target(
        "spike", "p99 wait / psycopg_pool", "<=", 1.0,
        _ratio("spike", "poolkit", "psycopg_pool", "wait p99", most=20),
    ),
    Target(
        "spike", "20 long holders all served", "<=", 2, _plain("spike", "poolkit", "all served", holders=20),
        "connect times",
    ),
    Target("scale", "10 000 connections / 10", "<=", 1.5, _growth(10_000, 10, "connections")),
    Target("scale", "100 000 waiters / 10", "<=", 1.5, _growth(100_000, 10, "waiters")),
    Target("scale", "10 000 endpoints / 10", "<=", 1.5, _growth(10_000, 10, "lanes")),
    Target(
        "scale", "memory of an idle entry", "<=", 1024, _plain("scale", "poolkit", "memory of an idle entry"), "bytes",
    ),
    Target("scale", "threads of 100 pools", "<=", 1, _plain("scale", "poolkit", "threads of 100 pools"), "threads"),
)  # fmt: skip


def _cells() -> tuple[Target, ...]:
    """Each adapter at each size is not slower than the driver's own pool, and its slow requests take no longer."""
    made = []
    for adapter, (_, _, own, ours) in PAIRS.items():
        for callers, connections in SIZES:
            where: dict[str, Param] = {"adapter": adapter, "callers": callers, "connections": connections}
            what = f"{adapter}, {callers} callers on {connections}"
            for metric, title, relation, bound in (("rate", "rate", ">=", 0.97), ("latency p99", "p99", "<=", 1.0)):
                measure = _ratio("cells", ours, own, metric, **where)
                made.append(Target("cells", f"{what}: {title} / own pool", relation, bound, measure))
    for name in SPIKE:
        opened = _plain("cells", name, "opened", most=20)
        made.append(Target("cells", f"spike, {name}: connections opened", "<=", 2, opened, "connections"))
        total = _ratio("cells", name, "poolkit", "total", most=20)
        made.append(Target("cells", f"spike, {name}: time for all / the engine's", "<=", 1.2, total))
    return tuple(made)


CELLS = _cells()
"""Of the experiment *cells*: 0.97 of the rate leaves room for noise alone."""
