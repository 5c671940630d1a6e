"""Words that the project no longer uses, and how many of them are left where the work is not done yet.

``PRONOUNS`` are banned everywhere: a caller, a thread or a task is "it", "they" or a noun. ``RETIRED`` are old names of
concepts that have a new one; they are banned wherever they are gone. A directory that is not listed in
``PRONOUNS_LEFT`` or ``RETIRED_LEFT`` must have none. A number that is listed there is a ratchet: it may only shrink,
and a directory whose number is 0 leaves the list.

``python -m tests.test_words`` prints the numbers of today in the form of the two lists.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs",
    "poolkit",
    "poolkit_adapters",
    "tests",
    "bench",
    "contrib",
)
"""What is searched: single files, and directories with everything below them."""
SUFFIXES = {".py", ".md", ".toml", ".js", ".html", ".css", ".yml", ".yaml"}

PRONOUNS = re.compile(r"\b(?:he|his|him|himself)\b", re.IGNORECASE)

RETIRED: dict[str, str] = {
    r"\bEntry\b": "Slot",
    r"\bWaiter\b": "Request",
    r"\bLanes?\b|\blanes?\b": "endpoint",
    r"\bTurns\b": "ClassQueue",
    r"\bvigil": "recheck",
    r"\bunsure\b": "rechecks_left",
    r"\bpressed\b": "sharing_needed",
    r"\bneedy\b": "(gone)",
    r"\bin_heap\b": "(gone)",
    r"\bfreshen\b": "mark_alive",
    r"\bgood_until\b": "fresh_until",
    r"\bunfit\b": "retire_reason",
    r"\bbegin_close\b": "start_close",
    r"\bgive_way\b": "settle",
    r"\brefill\b": "keep_minimum",
    r"\bpump\b": "open_connections",
    r"\bdial(?:s|led|ling)?\b": "open, connect",
    r"\bnudge(?:s|d)?\b": "wake",
    r"\bbooks\b": "invariants",
    r"\b_mend\b|\bmend(?:s|ed|ing)?\b": "recover, repair",
    r"\bupkeep\b": "maintenance",
    r"\b_picture\b": "explain",
    r"\b_churn\b": "misuse",
    r"\bbury\b|\bburied\b": "keep_from_finalizer",
    r"\b_orphans\b": "revoked",
    r"\b_begin_anew\b": "restart",
    r"\b_hear\b": "on_news",
    r"\bmisled\b": "wrong_server",
    r"\bspells? of failures\b": "failure_streak",
    r"\bahead_of\b": "position",
    r"\bnext_for\b": "first_for",
    r"\b[Tt]he (?:short|long) way\b|\bon the (?:short|long) way\b": "fast path, slow path",
    r"\bcoat over\b": "wrapper around",
}
"""A pattern, and the word that stands in its place."""

ALLOWED: dict[str, str] = {
    "tests/test_words.py": "names the words that it bans",
}
"""Files that are not searched, with the reason."""

PRONOUNS_LEFT: dict[str, int] = {}

RETIRED_LEFT: dict[str, int] = {
    "bench": 4,
    "bench/experiments": 2,
    "docs/architecture.md": 3,
    "docs/benchmarks.md": 2,
    "docs/guides": 3,
    "docs/reference": 1,
    "docs/roles.py": 1,
    "poolkit/_core": 1,
    "poolkit/_driver.py": 2,
    "poolkit/_misuse.py": 1,
    "poolkit/_monitor.py": 2,
    "poolkit/_pool_base.py": 1,
    "poolkit/cli/top": 7,
    "poolkit/cluster": 1,
    "poolkit/dashboard": 9,
    "poolkit/dashboard/page": 19,
    "poolkit/frameworks": 1,
    "poolkit/runtimes": 11,
    "poolkit/stats.py": 3,
    "poolkit/telemetry": 13,
    "poolkit/testing": 5,
    "poolkit/testing/servers": 1,
    "poolkit_adapters/sqlalchemy": 1,
    "tests": 1,
    "tests/adapters/httpx": 1,
    "tests/adapters/redis": 1,
    "tests/conformance": 7,
    "tests/conformance/inside": 1,
    "tests/dashboard": 6,
    "tests/faults": 3,
    "tests/processes": 5,
    "tests/shells": 15,
    "tests/simulation": 6,
    "tests/typing": 3,
}


def files() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        for each in (path,) if path.is_file() else sorted(path.rglob("*")):
            if each.suffix in SUFFIXES and "__pycache__" not in each.parts and "results" not in each.parts:
                yield each


def directory_of(path: Path) -> str:
    """What the numbers are counted by: the directory of the file. Files at the top, and right below ``poolkit`` and
    ``docs``, count for themselves: one of them is done at a time.
    """
    inside = path.relative_to(ROOT)
    alone = len(inside.parts) == 1 or inside.parent.as_posix() in ("poolkit", "docs")
    return (inside if alone else inside.parent).as_posix()


@lru_cache(1)
def found() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The uses of each list of words by directory, as "file:line: word"."""
    pronouns: dict[str, list[str]] = {}
    retired: dict[str, list[str]] = {}
    every = [re.compile(pattern) for pattern in RETIRED]
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name in ALLOWED:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for word in PRONOUNS.findall(line):
                pronouns.setdefault(directory_of(path), []).append(f"{name}:{number}: {word}")
            for pattern in every:
                for word in pattern.findall(line):
                    retired.setdefault(directory_of(path), []).append(f"{name}:{number}: {word}")
    return pronouns, retired


def directories() -> list[str]:
    return sorted({directory_of(path) for path in files()})


@pytest.mark.parametrize("directory", directories())
def test_a_caller_is_not_a_man(directory: str) -> None:
    uses, most = found()[0].get(directory, []), PRONOUNS_LEFT.get(directory, 0)
    assert len(uses) <= most, f'write "it", "they" or a noun; {most} were left here:\n' + "\n".join(uses)


@pytest.mark.parametrize("directory", directories())
def test_retired_words_do_not_come_back(directory: str) -> None:
    uses, most = found()[1].get(directory, []), RETIRED_LEFT.get(directory, 0)
    assert len(uses) <= most, f"see RETIRED for the new words; {most} were left here:\n" + "\n".join(uses)


def test_the_lists_name_only_what_exists_and_is_not_done() -> None:
    known = set(directories())
    for left in (PRONOUNS_LEFT, RETIRED_LEFT):
        assert set(left) <= known, set(left) - known
        assert all(number > 0 for number in left.values()), "what is done leaves the list"
    assert all((ROOT / name).is_file() and reason for name, reason in ALLOWED.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a caller waits until he is served", ["he"]),
        ("His lease, and what was given to him", ["His", "him"]),
        ("the shed, the history and this", []),
    ],
)
def test_pronouns_are_found_as_whole_words(text: str, words: list[str]) -> None:
    assert PRONOUNS.findall(text) == words


def main() -> None:
    for name, uses in zip(("PRONOUNS_LEFT", "RETIRED_LEFT"), found(), strict=True):
        print(f"{name}: dict[str, int] = {{")
        for directory, number in sorted(Counter({key: len(lines) for key, lines in uses.items()}).items()):
            print(f'    "{directory}": {number},')
        print("}")


if __name__ == "__main__":
    main()
