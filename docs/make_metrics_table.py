"""Writes the table of metrics into ``docs/guides/metrics.md`` from ``poolkit/telemetry/families.py``.

``python docs/make_metrics_table.py`` writes, ``--check`` only says whether the page agrees (exit code 1 if not).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from poolkit.telemetry.families import FAMILIES

PAGE = Path(__file__).resolve().parent / "guides" / "metrics.md"
BEGIN, END = "<!-- begin: made by docs/make_metrics_table.py -->", "<!-- end -->"


def generated() -> str:
    lines = ["| metric | kind | labels beside `pool` | |", "| --- | --- | --- | --- |"]
    for family in FAMILIES:
        name = family.name + ("_total" if family.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join([BEGIN, "", *lines, "", END])


def main(arguments: list[str]) -> int:
    old = PAGE.read_text(encoding="utf-8")
    new, found = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: generated(), old, flags=re.DOTALL)
    if found != 1:
        raise SystemExit(f"{PAGE} must hold the two marks once")
    if "--check" in arguments:
        if new != old:
            print(f"{PAGE} does not agree with the code: run python docs/make_metrics_table.py")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
