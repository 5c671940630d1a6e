"""No test judges by a wall clock: what is asserted must not depend on how busy the machine is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CLOCKS = {"monotonic", "perf_counter", "time"}
"""Functions of ``time`` that tell the time of day. CPU time of this thread, compared in one run, is no wall clock."""

ALLOWED = {
    "faults/test_proxy.py",  # a lower bound: a busy machine only takes longer
    "faults/test_real_faults.py",  # a bound on attempts that grows with the time they took
    "test_servers.py",  # a lower bound
}


def reads_a_clock(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "time"
        and node.func.attr in CLOCKS
    )


def is_elapsed(node: ast.AST, begun: set[str]) -> bool:
    """Whether the expression is a difference of two times."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)):
        return False
    return any(
        reads_a_clock(part) or (isinstance(part, ast.Name) and part.id in begun) for part in (node.left, node.right)
    )


def judgements(tree: ast.Module) -> Iterator[int]:
    """Lines of assertions that compare an elapsed time."""
    begun, elapsed = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and reads_a_clock(node.value):
            begun |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_elapsed(node.value, begun):
            elapsed |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assert):
            continue
        for part in ast.walk(node.test):
            if is_elapsed(part, begun) or (isinstance(part, ast.Name) and part.id in elapsed):
                yield node.lineno
                break


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("began = time.monotonic()\nassert time.monotonic() - began < 5", [2]),
        ("began = time.time()\nspent = time.time() - began\nassert spent < 5", [3]),
        ("end = time.monotonic() + 5\nwhile work():\n    assert time.monotonic() < end", []),
        ("began = time.thread_time()\nassert time.thread_time() - began < 5", []),
    ],
)
def test_what_counts_as_a_judgement(text: str, lines: list[int]) -> None:
    assert list(judgements(ast.parse(text))) == lines


def test_no_assertion_compares_elapsed_time() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("test_*.py"))
        if str(path.relative_to(TESTS).as_posix()) not in ALLOWED
        for line in judgements(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "wait for an event, count, or use a ManualClock instead"
