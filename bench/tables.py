"""A run as tables: subjects in rows, and in each cell the median and its ratio to a base, with the spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.experiments.cells import PAIRS, SIZES
from bench.experiments.contended import FLOOR, MAIN
from bench.experiments.http import SECOND, STEADY
from bench.experiments.overload import CLIENTS, UNFAIR, WORLDS
from bench.figures import number, ratios, spread
from bench.result import Failure, Param, Result
from bench.targets import Verdict

__all__ = ("Column", "Table", "as_markdown", "as_text", "failures_table", "tables_of", "targets_table")


@dataclass(frozen=True)
class Column:
    """One metric under some conditions; with a base, the ratio to it is shown too."""

    head: str
    metric: str
    params: dict[str, Param] = field(default_factory=dict)
    base: str = ""


@dataclass(frozen=True)
class Table:
    """A title, heads, and rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables_of(result: Result) -> dict[str, list[Table]]:
    """The tables of each experiment of the run, without those of which nothing was measured."""
    found = {}
    for experiment, layouts in _LAYOUTS.items():
        tables = [_fill(result, experiment, title, columns) for title, columns in layouts]
        kept = [table for table in tables if table.rows]
        if kept:
            found[experiment] = kept
    return found


def _fill(result: Result, experiment: str, title: str, columns: Sequence[Column]) -> Table:
    cells: dict[str, dict[int, str]] = {}
    for index, column in enumerate(columns):
        base = result.values(experiment, column.base, column.metric, **column.params) if column.base else []
        for one in result.where(experiment, metric=column.metric):
            if one.params == column.params:
                cells.setdefault(one.subject, {})[index] = _cell(one.values, base)
    used = sorted({index for row in cells.values() for index in row})
    heads = ("", *(columns[index].head for index in used))
    rows = [(subject, *(row.get(index, "") for index in used)) for subject, row in cells.items()]
    return Table(title, heads, rows)


def _cell(values: Sequence[float], base: Sequence[float]) -> str:
    median = spread(values)
    if not base:
        return str(median) if len(values) > 1 and median.low != median.high else number(median.median)
    ratio = spread(ratios(values, base))
    if len(base) == 1:
        return f"{number(median.median)}; {number(ratio.median)}x"
    return f"{number(median.median)}; {number(ratio.median)}x [{number(ratio.low)}, {number(ratio.high)}]"


def targets_table(verdicts: Sequence[Verdict]) -> Table:
    """The targets, one to a row."""
    rows: list[tuple[str, ...]] = [
        (one.target.group, one.target.name, one.target.wanted, str(one.measured or "-"), one.word) for one in verdicts
    ]
    return Table("Targets", ("", "target", "bound", "median [least, greatest]", ""), rows)


def failures_table(failures: Sequence[Failure]) -> Table:
    """The turns that failed, one row for each subject and measurement."""
    rows: list[tuple[str, ...]] = [
        (
            f"{one.experiment}, {one.during}" if one.during else one.experiment,
            one.subject or "the experiment",
            f"{one.times}, {'given up' if one.given_up or not one.subject else 'repeated'}",
            one.error,
        )
        for one in failures
    ]
    return Table("Failed turns", ("", "subject", "failed", "last error"), rows)


def as_text(table: Table) -> str:
    """For a terminal."""
    lines = [table.heads, *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.heads))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join((table.title, *("  " + line for line in shown)))


def as_markdown(table: Table) -> str:
    """For a page."""
    align = ["---"] * len(table.heads)
    lines = (table.heads, align, *table.rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# -- what stands in which table -----------------------------------------------------------------------------------

_HOLDS = (0.0, 0.05, 1.0, 5.0)


def _contended(metric: str, base: str = "", *, world: str = "threads") -> list[Column]:
    callers, connections = MAIN
    common: dict[str, Param] = {"world": world, "callers": callers, "connections": connections}
    return [Column(f"hold {hold:g} ms", metric, {**common, "hold_ms": hold}, base) for hold in _HOLDS]


def _deadlines(metric: str, world: str, busy: int) -> list[Column]:
    base = UNFAIR[world][0] if metric == "rate" else ""
    return [
        Column(f"{callers} callers", metric, {"world": world, "callers": callers, "busy": busy}, base)
        for callers in CLIENTS
    ]


def _sizes(metric: str, base: str, world: str) -> list[Column]:
    return [
        Column(
            f"{callers} on {connections}, {hold:g} ms",
            metric,
            {"world": world, "callers": callers, "connections": connections, "hold_ms": hold},
            base,
        )
        for callers, connections in ((2, 1), (16, 16), (256, 64))
        for hold in (0.0, 1.0)
    ]


def _callers(metric: str, base: str, world: str, counts: Sequence[int], what: str) -> list[Column]:
    return [Column(f"{count} {what}", metric, {"world": world, "callers": count}, base) for count in counts]


def _http(metric: str, base: str, world: str, cases: Sequence[tuple[int, int]], protocol: str) -> list[Column]:
    return [
        Column(
            f"{callers} on {limit}",
            metric,
            {"protocol": protocol, "world": world, "callers": callers, "limit": limit},
            base,
        )
        for callers, limit in cases
    ]


_TASK_CASES = ((1, 1), (10, 10), (100, 100), (500, 500), (1000, 1000), (100, 10), (500, 50), (1000, 100))
_THREAD_CASES = ((1, 1), (8, 8), (64, 64), (64, 16))
_LATENCIES = ("latency p50", "latency p99", "latency p99.9", "latency max")


def _scale(what: str, sizes: Sequence[int]) -> list[Column]:
    return [Column(f"{size:,}", "operation", {what: size}) for size in sizes]


_Layout = list[tuple[str, list[Column]]]
_LAYOUTS: dict[str, _Layout] = {
    "cycle": [
        ("Threads: µs of CPU, and times the floor", [Column("", "cpu", {"world": "threads"}, "lock and deque")]),
        ("Tasks: µs of CPU, and times the floor", [Column("", "cpu", {"world": "tasks"}, "deque")]),
    ],
    "exporters": [
        ("µs of CPU for acquire and release, and times the pool that nothing watches",
         [Column("", "cpu", {"world": "threads"}, "poolkit")]),
        ("One scrape by Prometheus and one collection by OpenTelemetry, ms of CPU",
         [Column("", "a scrape and a collection")]),
    ],
    "contended": [
        ("64 threads, 8 connections: acquires/s, and times queue.LifoQueue", _contended("rate", FLOOR)),
        ("64 threads, 8 connections: most / least acquires of a thread", _contended("most/least")),
        ("64 threads, 8 connections: Jain's index", _contended("jain")),
        ("64 threads, 8 connections: worst wait, times the fair share", _contended("worst wait")),
        ("64 threads, 8 connections: median wait, ms", _contended("wait p50")),
        ("64 threads, 8 connections: p99 wait, ms", _contended("wait p99")),
        ("64 threads, 8 connections: p99.9 wait, ms", _contended("wait p99.9")),
        ("64 threads, 8 connections: longest wait, ms", _contended("wait max")),
        ("64 threads, 8 connections: least acquires of a thread", _contended("least")),
        ("64 threads, 8 connections: most acquires of a thread", _contended("most")),
        ("Other sizes, threads: acquires/s, and times queue.LifoQueue", _sizes("rate", FLOOR, "threads")),
        ("Other sizes, threads: most / least acquires of a thread", _sizes("most/least", "", "threads")),
        ("64 tasks, 8 connections: acquires/s, and times asyncio.LifoQueue",
         _contended("rate", "asyncio.LifoQueue", world="tasks")),
        ("64 tasks, 8 connections: most / least acquires of a task", _contended("most/least", world="tasks")),
        ("64 tasks, 8 connections: worst wait, times the fair share", _contended("worst wait", world="tasks")),
        ("Other sizes, tasks: acquires/s, and times asyncio.LifoQueue", _sizes("rate", "asyncio.LifoQueue", "tasks")),
        ("Other sizes, tasks: most / least acquires of a task", _sizes("most/least", "", "tasks")),
    ],
    "overload": [
        *((f"{world.capitalize()} on 6 connections{', all cores busy' if busy else ''}: {what}",
           _deadlines(metric, world, busy))
          for world in WORLDS
          for busy in (0, 1)
          for metric, what in (("rate", f"answers in time/s, and times {UNFAIR[world][0]}"),
                               ("answered", "share of all calls"), ("jain", "Jain's index"))),
    ],
    "spike": [
        *((f"50 callers, at most {most} connections",
           [Column("opened", "opened", {"most": most}), Column("ms until all are served", "total", {"most": most}),
            Column("p99 wait, ms", "wait p99", {"most": most})]) for most in (20, 50)),
        ("20 callers who keep their connection", [Column("all served, connect times", "all served", {"holders": 20})]),
    ],
    "scale": [
        ("µs for acquire and release beside so many idle connections",
         _scale("connections", (10, 100, 1000, 10_000))),
        ("µs for a lease of one of so many endpoints", _scale("lanes", (1, 10, 100, 1000, 10_000))),
        ("µs from one task to the next, with so many waiting", _scale("waiters", (10, 100, 1000, 10_000, 100_000))),
        ("Memory and threads",
         [Column("bytes of an idle entry", "memory of an idle entry"),
          Column("bytes of a waiting task", "memory of a waiting task"),
          Column("threads of 100 pools", "threads of 100 pools")]),
    ],
    "cells": [
        (f"{adapter}: {what}, and times the driver's own pool",
         [Column(f"{callers} on {connections}", metric,
                 {"adapter": adapter, "callers": callers, "connections": connections}, own)
          for callers, connections in SIZES])
        for adapter, (_, _, own, _) in PAIRS.items()
        for metric, what in (("rate", "requests/s"), ("latency p99", "p99 in ms"))
    ],
    "sql": [
        *((f"{who.capitalize()} on 4 connections: {what}, and times {base}",
           _callers(metric, base, who, (1, 16), who))
          for who, base in (("threads", "SQLAlchemy QueuePool"),
                            ("tasks", "SQLAlchemy (psycopg) AsyncAdaptedQueuePool"))
          for metric, what in (("rate", "SELECT 1 a second"), ("cpu", "µs of CPU for each"))),
        *((f"{who.capitalize()} on 4 connections, 16 of them: latency, ms",
           [Column(metric, metric, {"world": who, "callers": 16}) for metric in _LATENCIES])
          for who in ("threads", "tasks")),
        *((f"Taking and giving back a real connection, {who}: µs of CPU, and times psycopg_pool",
           [Column("", "cycle", {"world": who}, "psycopg_pool")]) for who in ("threads", "tasks")),
    ],
    "redis": [
        *((f"{who.capitalize()}: {what}, and times redis-py's ConnectionPool",
           _callers(metric, "redis-py ConnectionPool", who, (1, 16), who))
          for who in ("threads", "tasks")
          for metric, what in (("rate", "GET a second"), ("cpu", "µs of CPU for each"))),
        *((f"16 {who}: latency, ms",
           [Column(metric, metric, {"world": who, "callers": 16}) for metric in _LATENCIES])
          for who in ("threads", "tasks")),
        *((f"Taking and giving back a real connection, {who}: µs of CPU, and times redis-py's ConnectionPool",
           [Column("", "cycle", {"world": who}, "redis-py ConnectionPool")]) for who in ("threads", "tasks")),
    ],
    "http": [
        ("HTTP/1.1, tasks on connections: requests/s, and times httpx",
         _http("rate", "httpx", "tasks", _TASK_CASES, "HTTP/1.1")),
        ("HTTP/1.1, tasks on connections: requests that failed", _http("failed", "", "tasks", _TASK_CASES, "HTTP/1.1")),
        ("HTTP/1.1, tasks on connections: µs of CPU for a request, and times httpx",
         _http("cpu", "httpx", "tasks", _TASK_CASES, "HTTP/1.1")),
        *((f"HTTP/1.1, tasks on connections: {metric}, ms", _http(metric, "", "tasks", _TASK_CASES, "HTTP/1.1"))
          for metric in _LATENCIES),
        ("HTTP/1.1, tasks on connections: connections opened",
         _http("connections", "", "tasks", _TASK_CASES, "HTTP/1.1")),
        ("HTTP/1.1, a connection for each task, few and many in turns: requests/s",
         [Column(f"{tasks} tasks", "rate", {"steady": tasks}) for tasks in STEADY]),
        ("HTTP/1.1, threads on connections: requests/s, and times httpx",
         _http("rate", "httpx", "threads", _THREAD_CASES, "HTTP/1.1")),
        ("HTTP/1.1, threads on connections: requests that failed",
         _http("failed", "", "threads", _THREAD_CASES, "HTTP/1.1")),
        ("HTTP/1.1, threads on connections: µs of CPU for a request, and times httpx",
         _http("cpu", "httpx", "threads", _THREAD_CASES, "HTTP/1.1")),
        ("httpx2 with its default limits, tasks: requests/s, and times its own pool",
         [Column(f"{tasks} tasks", "rate", {"default_limits": tasks}, "httpx2") for tasks in SECOND]),
        ("httpx2 with its default limits, tasks: µs of CPU for a request, and times its own pool",
         [Column(f"{tasks} tasks", "cpu", {"default_limits": tasks}, "httpx2") for tasks in SECOND]),
        ("50 workers, answers after 0 to 20 ms",
         [Column("connections opened", "connections", {"workers": 50}), Column("requests/s", "rate", {"workers": 50})]),
        ("A burst of 400 over 10 connections of 20 ms", [Column("times the ideal", "total", {"burst": 400})]),
        *((f"HTTP/2, {who}: {what}, and times httpx", _http(metric, "httpx", who, cases, "HTTP/2"))
          for who, cases in (("tasks", ((1, 1), (50, 50))), ("threads", ((8, 8),)))
          for metric, what in (("rate", "requests/s"), ("cpu", "µs of CPU for a request"))),
    ],
    "start": [
        ("In a fresh interpreter",
         [Column("ms", "time"), Column("ms of CPU", "cpu"), Column("modules", "modules"),
          Column("modules from elsewhere", "modules from elsewhere")]),
    ],
}  # fmt: skip
