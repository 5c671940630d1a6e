"""The results as text: a line for the terminal, and the tables of docs/reliability.md."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from bench.reliability.faults import FAULTS, Fault
from bench.reliability.measure import Result

__all__ = ("line", "write")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: made by python -m bench.reliability --write -->", "<!-- end -->"
HEAD = (
    "| | pool | requests | failed | what callers saw | longest | first answer | last failure | capacity |",
    "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _errors(result: Result) -> str:
    return ", ".join(f"{number} {name}" for name, number in result.errors.items()) or "-"


def line(result: Result) -> str:
    """One result on one line."""
    parts = [
        f"{result.fault:15} {result.adapter:16} {result.pool:22} {result.failed:4}/{result.requests:<4} failed",
        f"longest {_time(result.longest):>7}  first answer {_time(result.first_answer):>7}",
        f"last failure {_time(result.last_failure):>7}{' STILL' if result.failing_at_end else ''}",
        f"capacity {result.capacity}/{result.size}",
        _errors(result),
    ]
    if result.wrong:
        parts.append(f"WRONG REPLIES {result.wrong}: {result.notes}")
    if not result.finished:
        parts.append("CALLERS HUNG")
    return "  ".join(parts)


def _row(result: Result) -> str:
    last = _time(result.last_failure) + (", goes on" if result.failing_at_end else "")
    wrong = f", **{result.wrong} wrong replies**" if result.wrong else ""
    hung = ", **callers hung**" if not result.finished else ""
    pool = f"**{result.pool}**" if result.pool == "poolkit" else f"`{result.pool}`"
    cells = (
        result.adapter, pool, str(result.requests), str(result.failed), _errors(result) + wrong + hung,
        _time(result.longest), _time(result.first_answer), last, f"{result.capacity}/{result.size}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _sections(results: Sequence[Result], faults: Sequence[Fault]) -> dict[str, str]:
    """The tables, one for each fault, by its name."""
    parts = {}
    day = datetime.now(timezone.utc).date()
    for name in dict.fromkeys(fault.name for fault in faults):
        rows = [_row(one) for one in results if one.fault == name]
        if rows:
            what = dict.fromkeys(fault.what for fault in faults if fault.name == name)
            text = "; ".join(what)
            what_and_when = f"{text[0].upper()}{text[1:]}. Measured on {day}."
            parts[name] = "\n".join((f"### {name}", "", what_and_when, "", *HEAD, *rows))
    return parts


SUMMARY = (
    "### All adapters together",
    "",
    "| fault | failed, poolkit | failed, own pools | slowest first answer, poolkit | own pools |",
    "| --- | ---: | ---: | ---: | ---: |",
)


def _summary(results: Sequence[Result]) -> dict[str, str]:
    """All adapters together, one row for each fault, by its name."""
    lines = {}
    for name in dict.fromkeys(one.fault for one in results):
        cells = [name]
        halves = [
            [one for one in results if one.fault == name and (one.pool == "poolkit") is ours] for ours in (True, False)
        ]
        cells += [f"{sum(one.failed for one in half)} of {sum(one.requests for one in half)}" for half in halves]
        for half in halves:
            never = any(one.first_answer is None for one in half)
            cells.append("never" if never else _time(max(one.first_answer or 0.0 for one in half)))
        lines[name] = "| " + " | ".join(cells) + " |"
    return lines


def write(results: Sequence[Result], faults: Sequence[Fault]) -> None:
    """Write the tables between the marks of the page. Tables of faults that were not measured are kept."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    old, _, tail = rest.partition(END)
    sections = {part.partition("\n")[0]: f"### {part.strip()}" for part in old.split("\n### ")[1:]}
    rows = {row.split("|")[1].strip(): row for row in sections.pop(SUMMARY[0][4:], "").splitlines()[4:]}
    rows |= _summary(results)
    sections |= _sections(results, faults)
    order = [name for name in dict.fromkeys(fault.name for fault in FAULTS) if name in sections]
    tables = "\n\n".join(("\n".join((*SUMMARY, *(rows[name] for name in order))), *(sections[name] for name in order)))
    drivers = ", ".join(
        f"{name} {version(name)}"
        for name in ("sqlalchemy", "psycopg", "psycopg-pool", "asyncpg", "redis", "httpx", "httpcore")
    )
    made = f"Last with Python {platform.python_version()}, {drivers}; {len(results)} runs."
    PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{tables}\n\n{END}{tail}", encoding="utf-8")
