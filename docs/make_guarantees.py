"""Writes the table of ``docs/guarantees.md`` from the table that ``tests/guarantees`` runs, cell by cell.

``python docs/make_guarantees.py`` writes, ``--check`` only says whether the page agrees (exit code 1 if not).
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from marked import keep  # noqa: E402

from tests.guarantees.rows import CONFIG, LINE, ROWS, Row  # noqa: E402
from tests.guarantees.subjects import SUBJECTS, Subject  # noqa: E402

YES, WITH, NO, VOID = "yes", "settings", "no", "n/a"


def cell(row: Row, subject: type[Subject], reasons: list[str]) -> str:
    """What the promise takes for this adapter, with the number of its reason."""
    line, config = row.reason(subject, LINE), row.reason(subject, CONFIG)
    if config is not None and line is not None:
        return f"{VOID if row.is_void(subject) else NO} ({_number(config, reasons)})"
    if line is not None:
        return WITH if line == "needs the setting" else f"{WITH} ({_number(line, reasons)})"
    return YES


def _number(reason: str, reasons: list[str]) -> int:
    if reason not in reasons:
        reasons.append(reason)
    return 1 + reasons.index(reason)


def table() -> str:
    """The table, and the reasons below it."""
    reasons: list[str] = []
    lines = [
        "| | " + " | ".join(subject.adapter for subject in SUBJECTS) + " |",
        "| --- |" + " --- |" * len(SUBJECTS),
    ]
    for row in ROWS:
        cells = " | ".join(cell(row, subject, reasons) for subject in SUBJECTS)
        settings = f" ({', '.join(f'`{name}`' for name in row.settings)})" if _needs(row) else ""
        lines.append(f"| {row.title}{settings} | {cells} |")
    notes = [f"{number}. {reason[0].upper()}{reason[1:]}." for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes])


def _needs(row: Row) -> bool:
    """Whether the promise needs poolkit's settings in every adapter."""
    return row.reason(SUBJECTS[0], LINE) == "needs the setting"


if __name__ == "__main__":
    sys.exit(keep(ROOT / "docs" / "guarantees.md", __file__, table(), sys.argv[1:]))
