"""What a system may lack has a guard in the code and skips its tests by name."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from poolkit.telemetry import _processes
from tests.support.platforms import LACKS, NEEDS, needs_of, skip_what_is_lacking

ROOT = Path(__file__).parents[1]

POSIX = re.compile(
    r"os\.fork\(|os\.killpg\(|os\.getuid\(|os\.geteuid\(|signal\.(?:SIG(?:USR1|ALRM|STOP|CONT|KILL)|pthread_kill|setitimer)"
    r"|^import (?:fcntl|resource)$|select\.poll\(|socket\.AF_UNIX",
    re.MULTILINE,
)
GUARD = re.compile(
    r"hasattr\((?:os|signal|select|socket), |skipif\((?:os\.name|sys\.platform)|sys\.platform [!=]= \""
    r"|os\.name [!=]= \"|importorskip|except ImportError:  # not a POSIX|sched_getaffinity"
)
ONLY_WITH_SERVERS = ("testing/servers/", "cli/demo/")  # poolkit's own servers: there are none for Windows
USED_BY_LISTED = {
    "tests/adapters/redis/rogue.py", "tests/guarantees/rows.py", "tests/processes/fork_program.py",
    "tests/support/mariadb.py", "tests/support/strangers.py", "tests/conformance", "tests/mutants", "tests/simulation",
    "tests/support/platforms.py", "tests/test_platforms.py",
}  # fmt: skip


def test_what_only_posix_has_is_used_behind_a_guard() -> None:
    found = []
    for package in ("poolkit", "poolkit_adapters"):
        for path in (ROOT / package).rglob("*.py"):
            text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
            if POSIX.search(text) and not GUARD.search(text) and not any(part in name for part in ONLY_WITH_SERVERS):
                found.append(name)
    assert not found, f"guard it, and say in docs/platforms.md what is different: {found}"


def test_a_test_that_needs_posix_is_skipped_elsewhere() -> None:
    listed = {name.partition("::")[0] for name in NEEDS}
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if (
            name not in listed
            and not name.startswith(tuple(USED_BY_LISTED))
            and POSIX.search(text)
            and not GUARD.search(text)
        ):
            found.append(name)
    assert not found, f"a condition of its own, or a line in tests/support/platforms.py: {found}"


@pytest.mark.parametrize("name", NEEDS)
def test_the_listed_tests_exist(name: str) -> None:
    file, _, test = name.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not test or f"def {test}(" in text
    assert NEEDS[name] in LACKS


def test_a_test_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Item:
        nodeid = "tests/adapters/httpx/test_ways.py::test_unix_socket[asyncio]"
        name = "test_unix_socket[asyncio]"
        originalname = "test_unix_socket"

        def __init__(self) -> None:
            self.marks: list[pytest.MarkDecorator] = []

        def add_marker(self, mark: pytest.MarkDecorator) -> None:
            self.marks.append(mark)

    for lacking in (False, True):
        monkeypatch.setitem(LACKS, "Unix sockets", lambda lacking=lacking: lacking)
        item = Item()
        skip_what_is_lacking([item])  # type: ignore[list-item]
        assert [mark.kwargs["reason"] for mark in item.marks] == ["this system lacks: Unix sockets"] * lacking
    assert needs_of("tests/any.py", "test_any", {"postgres"}) == {"PostgreSQL and Redis for this system"}


def test_no_signal_is_sent_to_look_for_a_process_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal 0 is Ctrl-C there."""
    monkeypatch.setattr(sys, "platform", "win32")
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(pid))
    assert _processes._alive(4711)
    assert not sent
