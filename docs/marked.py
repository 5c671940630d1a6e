"""The parts of pages that are made from the code: between two marks, written or only compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

END = "<!-- end -->"


def keep(page: Path, script: str, text: str, arguments: Sequence[str]) -> int:
    """Put ``text`` between the marks of ``script`` in the page; with ``--check`` only say whether it stands there.

    The exit code: 1 if the page does not agree. Raises SystemExit unless the page holds the marks once.
    """
    name = f"docs/{Path(script).name}"
    begin = f"<!-- begin: made by {name} -->"
    old = page.read_text(encoding="utf-8")
    new, found = re.subn(re.escape(begin) + ".*?" + END, lambda _: f"{begin}\n\n{text}\n\n{END}", old, flags=re.DOTALL)
    if found != 1:
        raise SystemExit(f"{page} must hold the two marks once")
    if "--check" in arguments:
        if new != old:
            print(f"{page} does not agree with the code: run python {name}")
        return int(new != old)
    page.write_text(new, encoding="utf-8")
    return 0
