"""Writes the table of metrics into ``docs/guides/metrics.md`` from ``poolkit/telemetry/families.py``.

``python docs/make_metrics_table.py`` writes, ``--check`` only says whether the page agrees (exit code 1 if not).
"""

from __future__ import annotations

import sys
from pathlib import Path

from marked import keep

from poolkit.telemetry.families import FAMILIES

PAGE = Path(__file__).resolve().parent / "guides" / "metrics.md"


def generated() -> str:
    lines = ["| metric | kind | labels beside `pool` | |", "| --- | --- | --- | --- |"]
    for family in FAMILIES:
        name = family.name + ("_total" if family.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(keep(PAGE, __file__, generated(), sys.argv[1:]))
