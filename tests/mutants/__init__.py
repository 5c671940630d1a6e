"""Planted faults: single-line changes of the engine, each of which the fast tests must notice."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ("ENGINE", "LIST", "ROOT", "Mutant", "Stale", "load", "plant")

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "poolkit"
LIST = Path(__file__).with_name("mutants.toml")


class Stale(Exception):
    """The text that a mutant replaces is not there exactly once: the code has moved on."""


@dataclass(frozen=True)
class Mutant:
    """One planted fault."""

    number: int
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.number:2} {self.file}: {self.breaks}"


def load(path: Path = LIST) -> list[Mutant]:
    """All mutants of the list, numbered from 1 in its order."""
    rows: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(number, **{**row, "tests": tuple(row["tests"])}) for number, row in enumerate(rows, 1)]


def plant(mutant: Mutant, text: str) -> str:
    """The file's text with the fault in it. Raises Stale."""
    found = text.count(mutant.old)
    if found != 1:
        raise Stale(f"mutant {mutant}: its old text stands {found} times in the file, not once:\n{mutant.old}")
    return text.replace(mutant.old, mutant.new)
