"""Words that the project no longer uses.

``PRONOUNS``: a caller, a thread or a task is "it", "they" or a noun. ``RETIRED``: old names of concepts that have a new
one. The glossary in ``docs/architecture.md`` has the words that are in use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    "examples",
)
"""What is searched: single files, and directories with everything below them."""
SUFFIXES = {".py", ".md", ".toml", ".js", ".html", ".css", ".yml", ".yaml"}

PRONOUNS = re.compile(r"\b(?:he|his|him|himself)\b", re.IGNORECASE)

RETIRED: dict[str, str] = {
    r"\bEntry\b": "Slot",
    r"\bWaiter\b": "Request",
    r"\bLanes?\b|\blane\b|(?<![.\"`])\blanes\b(?!: |=)": "endpoint",  # PoolStats.lanes is public
    r"\bTurns\b": "ClassQueue",
    r"\bvigil": "recheck",
    r"\bunsure\b": "rechecks_left",
    r"\b(?:self|core|account)\.pressed\b": "sharing_needed",
    r"\bneedy\b": "(gone)",
    r"\bin_heap\b": "(gone)",
    r"\bfreshen\b": "mark_alive",
    r"\bgood_until\b": "fresh_until",
    r"\bunfit\b": "retire_reason",
    r"\bbegin_close\b": "start_close",
    r"\bgive_way\b": "settle",
    r"\brefill\b": "keep_minimum",
    r"\bpump\b": "open_connections",
    r"\bdial(?:s|led)?\b": "open, connect",  # FakeConnector.dialling is public
    r"\bnudge[sd]\b": "wake",  # Runtime.nudge() is public
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
    r"\b_lifecycle\b": "registry",
    r"\bmay_dial\b|\bdialing\.py\b": "may_open, opener.py",
    r"\bThreadJobs\b|\bAsyncJobs\b": "ThreadDriver, TaskDriver",
    r"\bOutbox\b": "Listeners",
    r"\b[Ww]hoever\b": "the caller that, a thread that",
    r"\banew\b": "again",
}
"""A pattern, and the word that stands in its place."""

ALLOWED: dict[str, str] = {
    "tests/test_words.py": "names the words that it bans",
}
"""Files that are not searched, with the reason."""


def files() -> Iterator[Path]:
    for place in PLACES:
        path = ROOT / place
        for each in (path,) if path.is_file() else sorted(path.rglob("*")):
            if each.suffix in SUFFIXES and "__pycache__" not in each.parts and "results" not in each.parts:
                yield each


def uses(pattern: re.Pattern[str]) -> list[str]:
    """Where a pattern occurs, as "file:line: word"."""
    return [
        f"{path.relative_to(ROOT).as_posix()}:{number}: {word}"
        for path in files()
        if path.relative_to(ROOT).as_posix() not in ALLOWED
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word in pattern.findall(line)
    ]


def test_a_caller_is_not_a_man() -> None:
    found = uses(PRONOUNS)
    assert not found, 'write "it", "they" or a noun:\n' + "\n".join(found)


@pytest.mark.parametrize("pattern", RETIRED)
def test_retired_words_do_not_come_back(pattern: str) -> None:
    found = uses(re.compile(pattern))
    assert not found, f"write {RETIRED[pattern]}:\n" + "\n".join(found)


def test_the_files_that_are_not_searched_exist() -> None:
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
