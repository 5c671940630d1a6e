"""Collects test modules of one library a second time, with the library in its place that has the same adapter.

httpx2 and httpcore2 stand in for httpx and httpcore, valkey-py for redis-py. Only what names the libraries and
poolkit's adapters is changed, in the module's syntax tree. The tests say ``httpx.Client`` and mean httpx2's. Nothing is
replaced in ``sys.modules``, so both runs fit in one process.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _pytest.assertion.rewrite import rewrite_asserts

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Pair:
    """A library, its counterpart, and the tests of both."""

    suffix: str
    """The counterpart's name in the ids of its tests."""
    modules: Mapping[str, str]
    """Each package of the library, and its counterpart."""
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    """Helper modules that import the library too."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Names in the library that differ."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Arguments and strings that differ."""

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(name) for name in self.modules.values())

    def second(self, name: str) -> str:
        """Return the name of a module's counterpart, or the name itself."""
        if name in self.helpers:
            return _helper(self, name)
        parts = name.split(".")
        at = 1 if parts[0] == "poolkit_adapters" and len(parts) > 1 else 0
        parts[at] = self.modules.get(parts[at], parts[at])
        return ".".join(parts)


PAIRS = (
    Pair(
        "httpx2",
        {"httpx": "httpx2", "httpcore": "httpcore2"},
        folders=("tests/adapters/httpx",),
        files=("tests/adapters/errors/test_httpx.py", "tests/cluster/test_logical_host.py"),
        helpers=("tests.support.http11", "tests.support.strangers"),
    ),
    Pair(
        "valkey",
        {"redis": "valkey"},
        folders=("tests/adapters/redis",),
        files=("tests/adapters/errors/test_redis.py", "tests/cluster/test_redis_servers.py"),
        helpers=("tests.adapters.redis.test_clean", "tests.adapters.redis.test_liveness"),
        attributes={"Redis": "Valkey", "RedisError": "ValkeyError", "RedisCluster": "ValkeyCluster",
                    "redis_connection": "valkey_connection"},
        words={
            "redis_connect_func": "valkey_connect_func", "hiredis": "libvalkey", "HiredisParser": "LibvalkeyParser",
            "redis-py": "valkey-py",
        },
    ),
)  # fmt: skip


class _Renamed(ast.NodeTransformer):
    def __init__(self, pair: Pair, package: str) -> None:
        self.pair = pair
        self.package = package

    def visit_Import(self, node: ast.Import) -> ast.Import | list[ast.Import]:
        made: list[ast.Import] = []
        for alias in node.names:
            other = self.pair.second(alias.name)
            if other == alias.name or alias.asname:
                made.append(ast.Import([ast.alias(other, alias.asname)]))
            else:  # "import redis.asyncio" binds "redis"
                made += [ast.Import([ast.alias(other)])] if "." in other else []
                made.append(ast.Import([ast.alias(other.split(".")[0], alias.name.split(".")[0])]))
        return [ast.copy_location(one, node) for one in made]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 1 and f"{self.package}.{node.module}" in self.pair.helpers:
            node.level, node.module = 0, f"{self.package}.{node.module}"
        if node.level == 0 and node.module is not None:
            original, node.module = node.module, self.pair.second(node.module)
            if node.module == "poolkit_adapters":
                for alias in node.names:
                    other = self.pair.modules.get(alias.name, alias.name)
                    if other != alias.name:
                        alias.name, alias.asname = other, alias.asname or alias.name
            elif node.module != original and not original.startswith(("tests", "poolkit")):
                for alias in node.names:
                    other = self.pair.attributes.get(alias.name, alias.name)
                    if other != alias.name:
                        alias.name, alias.asname = other, alias.asname or alias.name
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self.pair.attributes.get(node.attr, node.attr)
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg is not None:
            node.arg = self.pair.words.get(node.arg, node.arg)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """Rename names of modules and what is in ``words``, also in programs that a test runs elsewhere."""
        if not isinstance(node.value, str) or not self.pair.words:
            return node
        text = self.pair.words.get(node.value, node.value)
        for name, other in self.pair.modules.items():
            if "import" in text or "poolkit[" in text or re.fullmatch(rf"(poolkit_adapters\.)?{name}(\.\w+)*", text):
                text = re.sub(rf"\b(?<!\.){name}\b(?!:)|(?<=poolkit_adapters\.){name}\b", other, text)
        if "import" in text:
            for name, other in self.pair.attributes.items():
                text = re.sub(rf"\.{name}\b", f".{other}", text)
        node.value = text
        return node


def load(path: Path, name: str, pair: Pair, config: pytest.Config | None = None) -> ModuleType:
    """Return the module of this file, made with the second library."""
    source = path.read_bytes()
    package = name.rpartition(".")[0]
    tree = ast.fix_missing_locations(_Renamed(pair, package).visit(ast.parse(source, str(path))))
    if config is not None:
        rewrite_asserts(tree, source, str(path), config)
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__package__ = package
    vars(module)["SECOND"] = pair.suffix
    sys.modules[name] = module  # for pickle
    exec(compile(tree, str(path), "exec", dont_inherit=True), vars(module))
    return module


def adapter(name: str, module: ModuleType) -> Any:
    """Return the adapter that the tests of ``module`` are for: the one of ``name``, or of its counterpart."""
    suffix = getattr(module, "SECOND", None)
    pair = next((pair for pair in PAIRS if pair.suffix == suffix), None)
    return importlib.import_module(f"poolkit_adapters.{pair.modules[name] if pair else name}")


def _helper(pair: Pair, name: str) -> str:
    second = f"{name}_{pair.suffix}"
    if second not in sys.modules:
        load(ROOT.joinpath(*name.split(".")).with_suffix(".py"), second, pair)
    return second


class SecondModule(pytest.Module):
    """A test module on the second library."""

    pair: Pair

    def _getobj(self) -> Any:
        name = ".".join(self.path.relative_to(ROOT).with_suffix("").parts)
        return load(self.path, f"{name}_{self.pair.suffix}", self.pair, self.config)


def collect(path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Return the second collector for a test module of both libraries, or None for any other file."""
    try:
        inside = path.relative_to(ROOT)
    except ValueError:
        return None
    if not path.name.startswith("test_") or path.suffix != ".py":
        return None
    for pair in PAIRS:
        if (inside.parent.as_posix() in pair.folders or inside.as_posix() in pair.files) and pair.installed:
            module: SecondModule = SecondModule.from_parent(
                parent, path=path, name=f"{path.name}[{pair.suffix}]", nodeid=f"{inside.as_posix()}[{pair.suffix}]"
            )
            module.pair = pair
            return module
    return None
