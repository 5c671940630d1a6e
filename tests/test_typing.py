"""mypy and pyright accept the examples of the pages, and pyright refuses each mistake of ``tests/typing/api.py``.

``make types`` runs mypy on ``tests/typing`` itself. pyright is a program of npm: without it on PATH, its tests are
skipped.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import symtable
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import PAGES, ROOT, blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MISTAKE = "# type: ignore"
MYPY = """
[mypy]
ignore_missing_imports = True
check_untyped_defs = True
disable_error_code = var-annotated
"""
SHOWN_MISTAKES = ("max_sise",)
"""Mistakes that a page shows on purpose."""
OPTIONS: dict[str, Any] = {
    "typeCheckingMode": "basic",
    "reportMissingModuleSource": False,
    "reportMissingImports": False,
    "reportUnusedExpression": False,
}


def examples(folder: Path) -> None:
    """Write each block of Python that a page executes into a module of its own.

    It imports from the earlier blocks what it uses of them. In one module, a name that two blocks bind would have both
    types.
    """
    for page in PAGES:
        stem = "_".join(page.relative_to(ROOT).with_suffix("").parts).replace("-", "_").lower()
        origin: dict[str, str] = {}
        for block in blocks(page):
            if block.language == "python" and block.mark.split(" ")[0] == "run":
                module = f"{stem}_{block.line}"
                bound, used = names_of(block.text)
                earlier = [f"from {origin[name]} import {name}" for name in sorted((used - bound) & origin.keys())]
                (folder / f"{module}.py").write_text("\n".join([*earlier, block.text]), encoding="utf-8")
                origin.update(dict.fromkeys(bound, module))


def names_of(code: str) -> tuple[set[str], set[str]]:
    """The names that a block binds at its top level, and those that it uses of the top level anywhere."""
    top = symtable.symtable(code, "block", "exec")
    bound = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    used = {one.get_name() for one in top.get_symbols() if one.is_referenced()}
    inner = list(top.get_children())
    while inner:
        table = inner.pop()
        used |= {one.get_name() for one in table.get_symbols() if one.is_global()}
        inner += table.get_children()
    return bound, used


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed (extra 'types')")
def test_mypy_accepts_the_examples(tmp_path: Path) -> None:
    examples(tmp_path)
    (tmp_path / "mypy.ini").write_text(MYPY, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache",
         *sorted(tmp_path.glob("*.py"))],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    ours = [line for line in done.stdout.splitlines() if not line.startswith(str(ROOT)) and "error:" in line]
    ours = [one for one in ours if not any(mistake in one for mistake in SHOWN_MISTAKES)]
    assert not ours, "\n".join(ours)
    assert done.returncode in (0, 1), done.stdout + done.stderr


def pyright(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The errors that pyright finds below the folder."""
    command = shutil.which("pyright")
    if command is None:
        pytest.skip("pyright is not on PATH (npm install pyright)")
    settings = {**OPTIONS, "extraPaths": [str(ROOT)], **options}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [command, "--pythonpath", sys.executable, "--project", "pyrightconfig.json", "--outputjson"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["generalDiagnostics"]
    return [one for one in found if one["severity"] == "error"]


def test_pyright_accepts_the_examples(tmp_path: Path) -> None:
    examples(tmp_path)
    found = [
        f"{Path(one['file']).name}:{one['range']['start']['line'] + 1}: {one['message']}" for one in pyright(tmp_path)
    ]
    found = [one for one in found if not any(mistake in one for mistake in SHOWN_MISTAKES)]
    assert not found, "\n".join(found)


def test_pyright_refuses_each_mistake(tmp_path: Path) -> None:
    """The comments that tell mypy of a mistake are not read here, so that each such line must be an error."""
    text = (ROOT / "tests" / "typing" / "api.py").read_text(encoding="utf-8")
    (tmp_path / "api.py").write_text(text, encoding="utf-8")
    mistakes = {number for number, line in enumerate(text.splitlines(), 1) if MISTAKE in line}
    found = {one["range"]["start"]["line"] + 1 for one in pyright(tmp_path, enableTypeIgnoreComments=False)}
    assert mistakes <= found, sorted(mistakes - found)
