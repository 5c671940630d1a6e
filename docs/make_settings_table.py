"""Writes the table of settings into ``docs/reference/settings.md`` from ``poolkit/config.py``.

``python docs/make_settings_table.py`` writes, ``--check`` only says whether the page agrees (exit code 1 if not).
"""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import fields
from pathlib import Path

from marked import keep

from poolkit import AutoscaleConfig, BackoffConfig, BreakerConfig, ClassConfig, OverloadConfig, PoolConfig

PAGE = Path(__file__).resolve().parent / "reference" / "settings.md"


def described(kind: type) -> list[tuple[str, str, str, str]]:
    """Name, type, default and description of each setting, in the order of the class."""
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    types: dict[str, str] = {}
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            types[node.target.id] = ast.unparse(node.annotation)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[node.target.id] = inspect.cleandoc(str(after.value.value))
    default = kind()
    rows = []
    for field in fields(kind):
        if field.name not in texts:
            raise SystemExit(f"{kind.__name__}.{field.name} has no description under it")
        value = getattr(default, field.name)
        shown = f"{type(value).__name__}()" if type(value).__module__.startswith("poolkit") else repr(value)
        rows.append((field.name, types[field.name], shown, texts[field.name]))
    return rows


def table(kind: type, prefix: str = "") -> str:
    lines = ["| setting | type | default | meaning, and why this default |", "| --- | --- | --- | --- |"]
    for name, annotation, default, text in described(kind):
        cells = (
            f"`{prefix}{name}`",
            annotation.replace("|", "or"),
            f"`{default}`",
            " ".join(text.replace("``", "`").split()),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def generated() -> str:
    return "\n\n".join(
        (table(PoolConfig), "### Backoff", table(BackoffConfig, "backoff."),
         "### Circuit breaker", table(BreakerConfig, "breaker."),
         "### Classes of callers", table(ClassConfig, "classes.NAME."),
         "### Elastic size", table(AutoscaleConfig, "autoscale."),
         "### Overload", table(OverloadConfig, "overload."))
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(keep(PAGE, __file__, generated(), sys.argv[1:]))
