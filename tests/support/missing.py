"""Runs programs as if packages were not installed."""

from __future__ import annotations

import subprocess
import sys

_BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def without(program: str, *packages: str) -> str:
    """Run a program as if these packages were not installed, and return its output."""
    code = _BLOCK.format(blocked=packages) + program
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
