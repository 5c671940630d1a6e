"""Counts the bytecodes that Python executes: the count does not depend on the load of the machine."""

from __future__ import annotations

import dis
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

__all__ = ("instructions", "marks")


@functools.cache
def marks(code: CodeType) -> frozenset[int]:
    """Return the offsets at which Python 3.14 has only a mark for tools (``NOT_TAKEN``), which does nothing."""
    return frozenset(one.offset for one in dis.get_instructions(code) if one.opname == "NOT_TAKEN")


def instructions(work: Callable[[], object], *, warm: int = 5, rounds: int = 20) -> float:
    """Bytecodes that one ``work()`` executes in this thread, all Python code that it calls included, without marks.

    The least of three counts: a finalizer or a timer of something else may fall into one. Work in C counts as the
    one bytecode that called it.
    """
    for _ in range(warm):
        work()
    gc.collect()
    gc.disable()
    try:
        return min(_count(work, 2 * rounds) - _count(work, rounds) for _ in range(3)) / rounds
    finally:
        gc.enable()


def _count(work: Callable[[], object], rounds: int) -> int:
    with _counting() as count:
        for _ in range(rounds):
            work()
    return count[0]


@contextmanager
def _counting() -> Iterator[list[int]]:
    count = [0]
    if sys.version_info >= (3, 12):
        monitoring: Any = sys.monitoring
        me, tool, event = threading.get_ident(), 4, monitoring.events.INSTRUCTION

        def executed(code: CodeType, offset: int) -> None:
            if threading.get_ident() == me and offset not in marks(code):  # a pool's housekeeping has another one
                count[0] += 1

        monitoring.use_tool_id(tool, "instructions")
        monitoring.register_callback(tool, event, executed)
        monitoring.set_events(tool, event)
        try:
            yield count
        finally:
            monitoring.set_events(tool, 0)
            monitoring.register_callback(tool, event, None)
            monitoring.free_tool_id(tool)
        return

    def local(_frame: FrameType, what: str, _argument: object) -> Any:
        if what == "opcode":
            count[0] += 1
        return local

    def called(frame: FrameType, _what: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return local

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield count
    finally:
        sys.settrace(before)
