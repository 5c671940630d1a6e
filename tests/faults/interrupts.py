"""Raise an exception before the n-th bytecode of the engine, in the thread that runs it."""

from __future__ import annotations

import contextvars
import dis
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from types import CodeType, FrameType
from typing import Any

import poolkit
from tests.support.instructions import marks

__all__ = ("Interrupt", "interrupted_at", "line_of", "opcode_at", "place_of", "spared")

_ENGINE = os.path.dirname(poolkit.__file__) + os.sep
_TOOL = 3
_KIT = _ENGINE + "testing" + os.sep


class Interrupt(BaseException):
    """An interrupt, like KeyboardInterrupt or the soft time limit of a task queue."""


class _Trap:
    """Counts bytecodes in the files below ``roots`` and raises before the n-th, except in finalizers."""

    def __init__(self, at: int, roots: tuple[str, ...]) -> None:
        self.left = at
        self.roots = roots
        self.paused = 0
        self.thread = get_ident()
        self.sprung: tuple[CodeType, int] | None = None
        self._mine: dict[CodeType, bool] = {}

    def watches(self, code: CodeType) -> bool:
        known = self._mine.get(code)
        if known is None:
            file = code.co_filename
            known = self._mine[code] = file.startswith(self.roots) and not file.startswith(_KIT)
        return known

    def step(self, frame: FrameType | None, offset: int) -> None:
        if self.sprung is None and not self.paused:
            self.left -= 1
            if self.left <= 0 and frame is not None and not _in_finalizer(frame):
                self.sprung = (frame.f_code, offset)
                raise Interrupt

    # -- up to Python 3.12 ----------------------------------------------------------------------------------------

    def called(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if self.sprung is not None or not self.watches(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        return self.traced

    def traced(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "opcode":
            self.step(frame, frame.f_lasti)
        return self.traced

    # -- from Python 3.13 on --------------------------------------------------------------------------------------

    def monitored(self, code: CodeType, offset: int) -> Any:
        if self.watches(code) and get_ident() == self.thread and offset not in marks(code):
            self.step(sys._getframe(1), offset)


_trap: _Trap | None = None


@contextmanager
def spared() -> Iterator[None]:
    """Do not interrupt the code in this block, which stands for other threads."""
    trap = _trap
    if trap is not None:
        trap.paused += 1
    try:
        yield
    finally:
        if trap is not None:
            trap.paused -= 1


@contextmanager
def _sprung_by(trap: _Trap) -> Iterator[None]:
    global _trap
    _trap = trap
    try:
        if sys.version_info >= (3, 13):
            monitoring, instruction = sys.monitoring, sys.monitoring.events.INSTRUCTION
            monitoring.use_tool_id(_TOOL, "poolkit")
            monitoring.register_callback(_TOOL, instruction, trap.monitored)
            monitoring.set_events(_TOOL, instruction)
            try:
                yield
            finally:
                monitoring.set_events(_TOOL, 0)
                monitoring.register_callback(_TOOL, instruction, None)
                monitoring.free_tool_id(_TOOL)
        else:
            before = sys.gettrace()
            sys._getframe().f_trace_opcodes = True  # Python 3.12 reads this when tracing begins
            sys.settrace(trap.called)
            try:
                yield
            finally:
                sys.settrace(before)
    finally:
        _trap = None


def _in_finalizer(frame: FrameType | None) -> bool:
    if frame is not None and frame.f_code.co_flags & inspect.CO_GENERATOR and frame.f_lineno is None:
        return True  # Python 3.12: a generator that is dropped unfinished runs its handler, which has no line
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def interrupted_at(
    at: int, call: Callable[[], object], *, roots: tuple[str, ...] = (_ENGINE,)
) -> tuple[CodeType, int] | None:
    """Run ``call()``, interrupted before its ``at``-th bytecode in the engine; where that was, None if it ended before.

    AssertionError if the interruption was swallowed.
    """
    trap = _Trap(at, roots)
    context = contextvars.copy_context()  # an interrupted end of ``with priority(...)`` must not affect other tests
    delivered = False
    try:
        with _sprung_by(trap):
            context.run(call)
    except Interrupt:
        delivered = True
    assert delivered == (trap.sprung is not None), f"the interruption was swallowed: {place_of(trap.sprung)}"
    return trap.sprung


def place_of(place: tuple[CodeType, int] | None) -> str:
    """Return file, function, line and bytecode, for messages."""
    if place is None:
        return "nowhere"
    code, offset = place
    line = next((line for start, end, line in code.co_lines() if start <= offset < end), None)
    return f"{os.path.basename(code.co_filename)}:{line} {code.co_name} {opcode_at(place)} (offset {offset})"


def line_of(place: tuple[CodeType, int]) -> str:
    """Return the source of the line."""
    code, offset = place
    number = next((line for start, end, line in code.co_lines() if start <= offset < end), None)
    return linecache.getline(code.co_filename, number or 0)


def opcode_at(place: tuple[CodeType, int]) -> str:
    """Return the name of the bytecode."""
    code, offset = place
    return next((i.opname for i in dis.get_instructions(code) if i.offset == offset), "?")
