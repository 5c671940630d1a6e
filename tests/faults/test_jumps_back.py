"""Where a loop inside a ``try`` or ``with`` block jumps back, an asynchronous exception reaches the block's handler.

CPython delivers Ctrl-C and time limits of task queues at jumps back. Its compiler writes some of them outside of the
range of the block: in 3.12 and 3.13 that of ``while condition:``, in 3.12 to 3.14 that of an ``if`` at the end of the
loop. An exception there runs no handler: a lock stays held, or the place of a waiting caller is lost. A safe loop
begins with ``while True:`` and a test that leaves it, and ends with a plain statement.
"""

from __future__ import annotations

import ast
import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import poolkit
import poolkit_adapters

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="blocks have no table of exceptions")

PACKAGES = [Path(str(package.__file__)).parent for package in (poolkit, poolkit_adapters)]
ELSEWHERE = ("cli/demo", "cli/doctor", "testing")
"""Programs that end with an interruption anyway, and the kit for tests."""


def uncovered(text: str, file: str) -> list[str]:
    """The jumps back of loops inside a block that are not in the block's range of instructions."""
    loops = {
        (loop.lineno, loop.end_lineno or 0)
        for block in ast.walk(ast.parse(text))
        if _runs_always(block)
        for loop in _loops_of(block)
    }
    return [
        f"{file}:{at.lineno} {code.co_name}: {text.splitlines()[at.lineno - 1].strip()}"
        for code in _codes(compile(text, file, "exec"))
        for instruction in dis.get_instructions(code)
        if "JUMP_BACKWARD" in instruction.opname and "NO_INTERRUPT" not in instruction.opname
        for at in [instruction.positions]  # type: ignore[attr-defined]
        if at is not None and at.lineno is not None
        if any(code.co_firstlineno <= begin <= at.lineno <= end for begin, end in loops)
        if not any(entry.start <= instruction.offset < entry.end for entry in _table_of(code))
    ]


def _table_of(code: CodeType) -> list[dis._ExceptionTableEntry]:  # type: ignore[name-defined]
    return list(dis._parse_exception_table(code))  # type: ignore[attr-defined]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _runs_always(block: ast.AST) -> bool:
    """Whether the block has a part that runs after any exception in its body."""
    if isinstance(block, (ast.With, ast.AsyncWith)):
        return True
    if not isinstance(block, ast.Try):
        return False
    kinds = [ast.unparse(handler.type) if handler.type else "BaseException" for handler in block.handlers]
    return bool(block.finalbody) or any("BaseException" in kind for kind in kinds)


def _loops_of(block: ast.AST) -> Iterator[ast.While | ast.For | ast.AsyncFor]:
    """The loops in the body of a block, without those of functions that are defined there."""
    todo: list[ast.AST] = list(block.body)  # type: ignore[attr-defined]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, (ast.While, ast.For, ast.AsyncFor)):
            yield node
        todo.extend(ast.iter_child_nodes(node))


def test_every_jump_back_inside_a_block_is_covered() -> None:
    found = []
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            name = path.relative_to(package).as_posix()
            if not name.startswith(ELSEWHERE):
                found += uncovered(path.read_text(encoding="utf-8"), f"{package.name}/{name}")
    assert not found, "\n".join(found)


IF_AT_THE_END = """
def f(a, b):
    try:
        for one in a:
            if one:
                b()
    finally:
        b()
"""
PLAIN_STATEMENT_AT_THE_END = """
def f(a, b):
    try:
        while True:
            if a():
                break
            b()
    finally:
        b()
"""


@pytest.mark.skipif(not (3, 12) <= sys.version_info[:2] <= (3, 14), reason="covered on this Python")
def test_a_jump_back_that_is_not_covered_is_found() -> None:
    assert set(uncovered(IF_AT_THE_END, "f.py")) == {"f.py:5 f: if one:"}


def test_a_loop_that_ends_with_a_plain_statement_is_covered() -> None:
    assert uncovered(PLAIN_STATEMENT_AT_THE_END, "f.py") == []
