"""Collects test modules of httpx and httpcore a second time, with httpx2 and httpcore2 in their place.

Only the imports of the two libraries and of poolkit's adapters are changed, in the module's syntax tree. The tests say
``httpx.Client`` and mean httpx2's. Nothing is replaced in ``sys.modules``, so both runs fit in one process.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _pytest.assertion.rewrite import rewrite_asserts

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests/adapters/httpx",)
FILES = ("tests/adapters/errors/test_httpx.py", "tests/cluster/test_logical_host.py")
HELPERS = ("tests.support.http11", "tests.support.strangers")
"""Modules of helpers that import the libraries, too."""
INSTALLED = importlib.util.find_spec("httpx2") is not None


def second(name: str) -> str:
    """Return the name of a module's counterpart, or the name itself."""
    if name in HELPERS:
        _helper(name)
        return f"{name}_httpx2"
    parts = name.split(".")
    at = 1 if parts[0] == "poolkit_adapters" and len(parts) > 1 else 0
    if parts[at] in ("httpx", "httpcore"):
        parts[at] += "2"
    return ".".join(parts)


class _Imports(ast.NodeTransformer):
    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            other = second(alias.name)
            if other != alias.name:
                assert alias.asname or "." not in alias.name, f"import {alias.name}: give it a name, with 'as'"
                alias.name, alias.asname = other, alias.asname or alias.name
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and node.module is not None:
            node.module = second(node.module)
            if node.module == "poolkit_adapters":
                for alias in node.names:
                    if alias.name in ("httpx", "httpcore"):
                        alias.name, alias.asname = f"{alias.name}2", alias.asname or alias.name
        return node


def load(path: Path, name: str, config: pytest.Config | None = None) -> ModuleType:
    """Return the module of this file, made with the second pair of libraries."""
    source = path.read_bytes()
    tree = _Imports().visit(ast.parse(source, str(path)))
    if config is not None:
        rewrite_asserts(tree, source, str(path), config)
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module  # for pickle
    exec(compile(tree, str(path), "exec", dont_inherit=True), vars(module))
    return module


def _helper(name: str) -> None:
    if f"{name}_httpx2" not in sys.modules:
        load(ROOT.joinpath(*name.split(".")).with_suffix(".py"), f"{name}_httpx2")


class SecondModule(pytest.Module):
    """A test module on the second pair of libraries."""

    def _getobj(self) -> Any:
        name = ".".join(self.path.relative_to(ROOT).with_suffix("").parts)
        return load(self.path, f"{name}_httpx2", self.config)


def collect(path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Return the second collector for a test module of both libraries, or None for any other file."""
    try:
        inside = path.relative_to(ROOT)
    except ValueError:
        return None
    of_both = inside.parent.as_posix() in FOLDERS or inside.as_posix() in FILES
    if not (INSTALLED and of_both and path.name.startswith("test_") and path.suffix == ".py"):
        return None
    module: pytest.Module = SecondModule.from_parent(
        parent, path=path, name=f"{path.name}[httpx2]", nodeid=f"{inside.as_posix()}[httpx2]"
    )
    return module
