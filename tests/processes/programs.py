"""Start a program of its own, and say all it said when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ("ROOT", "environment", "run")

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """That of this process, with this very poolkit and these tests on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning", **more}


def run(*arguments: str, timeout: float = 90, **more: str) -> tuple[str, str]:
    """Stdout and stderr of ``python *arguments``, which must end by itself with status 0."""
    child = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(**more), timeout=timeout, capture_output=True,
        text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert child.returncode == 0, f"status {child.returncode}\n{child.stdout}\n{child.stderr}"
    return child.stdout, child.stderr
