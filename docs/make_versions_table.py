"""Writes the table of drivers into ``docs/versions.md`` from the extras in ``pyproject.toml``.

``python docs/make_versions_table.py`` writes, ``--check`` only says whether the page agrees (exit code 1 if not).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from marked import keep

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    "all", "bench", "cli", "dashboard", "demo", "dist", "docs", "lint", "peers", "plot", "sdks", "servers", "suite",
    "test", "types",
}  # fmt: skip
"""The extras that bring no driver, exporter or framework of the application."""


def table() -> str:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = ["| extra | supported versions |", "| --- | --- |"]
    for extra, needed in project["optional-dependencies"].items():
        if extra not in TOOLS:
            lines.append(f"| `{extra}` | {', '.join(filter(None, map(_shown, needed)))} |")
    return "\n".join(lines)


def _shown(requirement: str) -> str:
    """The name and the oldest version of a requirement; nothing for another extra of this project."""
    found = re.match(r"([\w-]+)(?:\[[\w,-]+\])?>=([\d.]+)(.*)", requirement)
    if found is None:
        return ""
    name, oldest, rest = found.groups()
    python = re.search(r"python_version (>=|<) '([\d.]+)'", rest)
    until = re.match(r",<([\d.]+)", rest)
    shown = f"{name} {oldest} or newer" + (f", before {until[1]}" if until else "")
    if python is None:
        return shown
    return f"{shown} (Python {python[2]} or newer)" if python[1] == ">=" else f"{shown} (before Python {python[2]})"


if __name__ == "__main__":
    sys.exit(keep(ROOT / "docs" / "versions.md", __file__, table(), sys.argv[1:]))
