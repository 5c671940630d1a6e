"""The result of the demo: two tables, and the same as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poolkit.cli.demo.plan import TITLES, Plan
from poolkit.cli.demo.record import Record, Window
from poolkit.cli.demo.scenes import Scene

__all__ = ("as_data", "print_report", "summary")


Scenes = Sequence[tuple[Scene, dict[str, str]]]
"""The scenes that were played, with the answer of each kind of pools."""


def print_report(console: Console, records: Sequence[Record], plan: Plan, scenes: Scenes = ()) -> None:
    """Print the results of each kind of pools, the effects of each fault on the callers, and the scenes."""
    console.print()
    console.print(_overview(records, plan))
    console.print("Times from when a request was due; connections opened, as the servers counted them.", style="dim")
    console.print()
    for table in _noticed(records):
        console.print(table)
    examples = {kind: text for record in reversed(records) for kind, text in record.examples.items()}
    if examples:
        console.print(Text("The errors in the drivers' own words:", style="bold"))
        for kind, text in sorted(examples.items()):
            console.print(Text.assemble("  ", (kind, "bold"), f": {text}"), no_wrap=True, overflow="ellipsis")
        console.print()
    for scene, answers in scenes:
        console.print(Text(scene.title, style="bold"))
        for pools, answer in answers.items():
            name = Text(f"{TITLES[pools]:>12}", style="bold green" if pools == "poolkit" else "")
            console.print(Text.assemble("  ", name, f"  {answer}"))
    if scenes:
        console.print()


def summary(record: Record) -> str:
    """One line of numbers as they stand now."""
    errors = record.errors.total()
    return (
        f"{len(record.samples)} requests, {errors} error{'' if errors == 1 else 's'}, "
        f"p50 {_ms(record.latency(0.5))} ms, p99 {_ms(record.latency(0.99))} ms"
    )


def as_data(records: Sequence[Record], plan: Plan, scenes: Scenes = ()) -> dict[str, Any]:
    """Return everything the tables show; times in seconds."""
    return {
        "plan": {
            "seconds": plan.seconds,
            "rounds": plan.rounds,
            "callers": plan.callers,
            "pool_size": plan.pool_size,
        },
        "runs": [
            {
                "mode": record.mode,
                "pools": record.pools,
                "requests": len(record.samples),
                "errors": dict(record.errors),
                "p50": round(record.latency(0.5), 6),
                "p99": round(record.latency(0.99), 6),
                "max": round(record.latency(1.0), 6),
                "opened": dict(record.opened),
                "faults": [
                    {
                        "title": window.title,
                        "requests": len(window.samples),
                        "errors": dict(window.errors),
                        "slowest": round(window.slowest, 6),
                        "last_error_after": None if window.last_error is None else round(window.last_error, 6),
                    }
                    for window in record.windows()
                ],
            }
            for record in records
        ],
        "scenes": [{"title": scene.title, **answers} for scene, answers in scenes],
    }


def _overview(records: Sequence[Record], plan: Plan) -> Table:
    rounds = "one round" if plan.rounds == 1 else f"{plan.rounds} rounds"
    table = Table(
        title=f"{plan.callers} callers, {plan.pool_size} connections to each server, {rounds} of {plan.seconds:g} s",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("", "pools"):
        table.add_column(name, no_wrap=True)
    for name in ("requests", "errors", "p50 ms", "p99 ms", "max ms", "PostgreSQL", "Redis", "HTTP"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            record.mode,
            _title(record),
            str(len(record.samples)),
            str(record.errors.total()),
            *(_ms(record.latency(share)) for share in (0.5, 0.99, 1.0)),
            *(str(record.opened.get(server, "?")) for server in ("PostgreSQL", "Redis", "HTTP")),
            end_section=record.pools == "poolkit",
        )
    return table


def _noticed(records: Sequence[Record]) -> list[Table]:
    """One table for each fault, and one for the time before if anything failed then."""
    windows = [(record, record.windows()) for record in records]
    tables = []
    for index in range(max((len(each) for _, each in windows), default=0)):
        rows = [(record, each[index]) for record, each in windows if index < len(each)]
        if index or any(window.errors for _, window in rows):
            tables.append(_table_of_one(rows))
    return tables


def _table_of_one(rows: list[tuple[Record, Window]]) -> Table:
    table = Table(
        title=rows[0][1].title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("", width=5)
    table.add_column("pools", width=12)
    table.add_column("the callers got", min_width=34)
    table.add_column("last error", justify="right", no_wrap=True)
    table.add_column("slowest ms", justify="right", no_wrap=True)
    for record, window in rows:
        last = "" if window.last_error is None else f"{window.last_error:.2f} s later"
        table.add_row(record.mode, _title(record), _counts(window.errors), last, _ms(window.slowest))
    return table


def _title(record: Record) -> Text:
    return Text(TITLES[record.pools], style="bold green" if record.pools == "poolkit" else "")


def _counts(errors: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in errors.most_common()) or "no error"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"
