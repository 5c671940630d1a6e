"""The line of each second, the final tables, and the same as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poolkit.cli.demo.cluster.load import Load
from poolkit.cli.demo.cluster.plan import NODES, Plan
from poolkit.cli.demo.cluster.record import Cell, Row

__all__ = ("as_data", "header", "line", "print_report")

_WIDTH = 12


def header() -> str:
    """The head of the lines."""
    nodes = "".join(f"{name:>{_WIDTH}}" for name in NODES)
    return f"{'':24}{nodes}{'errors':>8}   (requests per second, in flight)"


def line(title: str, row: Row) -> str:
    """One second of one cluster."""
    cells = "".join(f"{_cell(row.cells.get(name)):>{_WIDTH}}" for name in NODES)
    return f"{row.at:5.1f} s  {title:<15}{cells}{row.errors:>8}"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    if cell.state == "usable":
        return f"{cell.served} ({cell.leases})"
    return f"{cell.served} {cell.state}"


def print_report(console: Console, loads: Sequence[Load]) -> None:
    """Print the share of each node between two events, and the cost of the kill."""
    for load in loads:
        table = Table(box=box.SIMPLE_HEAD, title=f"{load.site.title}: share of each node", title_justify="left")
        table.add_column("", no_wrap=True)
        for name in (*NODES, "requests", "errors"):
            table.add_column(name, justify="right", no_wrap=True)
        for phase in load.book.phases:
            shares = phase.shares
            table.add_row(
                phase.title,
                *(f"{shares[name]:.0%}" if name in shares else "-" for name in NODES),
                str(sum(phase.served.values())),
                Text(str(phase.errors), style="bold red" if phase.errors else ""),
            )
        console.print(table)
        kill = load.book.kill
        if kill is not None:
            console.print(
                f"{load.site.title}: {kill.node} was killed with {kill.in_flight} requests in flight on it; "
                f"{kill.lost} requests were lost{'' if kill.kept else ', MORE THAN THOSE'}."
            )
        for text, number in load.book.kinds().most_common(3):
            console.print(f"  {number} x {text}", markup=False, soft_wrap=True)
        console.print()


def as_data(loads: Sequence[Load], plan: Plan) -> dict[str, Any]:
    """Everything that the lines and tables show."""
    return {
        "seconds": plan.seconds,
        "callers": plan.callers,
        "size": plan.size,
        "clusters": [
            {
                "servers": load.site.title,
                "phases": [
                    {
                        "title": phase.title,
                        "served": phase.served,
                        "shares": {name: round(share, 4) for name, share in phase.shares.items()},
                        "errors": phase.errors,
                    }
                    for phase in load.book.phases
                ],
                "kill": None
                if (kill := load.book.kill) is None
                else {"node": kill.node, "in_flight": kill.in_flight, "lost": kill.lost, "kept": kill.kept},
                "errors": dict(load.book.kinds()),
                "seconds": [
                    {
                        "at": round(row.at, 3),
                        "errors": row.errors,
                        "nodes": {
                            name: {"served": cell.served, "in_flight": cell.leases, "state": cell.state}
                            for name, cell in row.cells.items()
                        },
                    }
                    for row in load.book.rows
                ],
            }
            for load in loads
        ],
    }
