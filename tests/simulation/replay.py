"""What a random schedule decides, one by one, so that a failing one can be cut down and replayed.

Each decision has a key. In a random run it is drawn, and noted if it is not the dull one (no step, no switch, the
first task in turn); in a replay only the decisions that are given are made, all others are dull. So each can be left
out by itself, and a failing schedule shrinks until nothing can be left out any more (*delta debugging*: Zeller and
Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002).
"""

from __future__ import annotations

import pprint
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ("Decisions", "SimulationFailure", "explain", "shrink")

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that :func:`shrink` tries for."""

Script = dict[Any, Any]
"""The decisions of one run that are not dull, by key."""


class SimulationFailure(AssertionError):
    """A promise was broken. The message holds the seed and a minimal replay; ``script`` is the latter as a dict."""

    script: Script
    """What ``replay()`` of the same simulation takes to fail in the same way."""


class Decisions:
    """The decisions of one run: drawn and noted, or those of a script and no others."""

    def __init__(self, script: Mapping[Any, Any] | None = None) -> None:
        self._script = script
        self.made: Script = {}

    def make(self, key: Any, draw: Callable[[], T], dull: T) -> T:
        """The decision ``key``."""
        if self._script is not None:
            choice: T = self._script.get(key, dull)
        else:
            choice = draw()
        if choice != dull:
            self.made[key] = choice
        return choice


def _kind(error: BaseException) -> str:
    """What two runs that fail in the same way have in common: numbers, and who it was, may differ."""
    return type(error).__name__ + re.sub(r"\d+(\.\d+)?", "#", str(error).partition("(")[0])


def shrink(run: Callable[[Script], object], script: Script, failure: BaseException) -> Script:
    """The part of ``script`` with which ``run`` still raises the like of ``failure``; none of it can be left out,
    unless ``PATIENCE`` was not enough to find that out.
    """
    wanted, end = _kind(failure), time.monotonic() + PATIENCE

    def fails(part: Script) -> bool:
        try:
            run(part)
        except Exception as error:  # whatever the failing schedule raises
            return _kind(error) == wanted
        return False

    kept = dict(script)
    if not fails(kept):
        return kept  # not repeatable: keep everything for the reader
    chunk = len(kept)
    while chunk and time.monotonic() < end:
        keys, removed = list(kept), False
        for begin in range(0, len(keys), chunk):
            if time.monotonic() >= end:
                break
            out = set(keys[begin : begin + chunk])
            part = {key: choice for key, choice in kept.items() if key not in out}
            if fails(part):
                kept, removed = part, True
        if chunk > 1 or not removed:
            chunk //= 2
    return kept


def explain(
    who: str,
    seed: int,
    run: Callable[[Script], object],
    made: Script,
    error: BaseException,
    trace: Callable[[Script], str] = lambda script: "",
) -> SimulationFailure:
    """The failure of ``who(seed)`` with its minimal replay, and the steps of that."""
    script = shrink(run, made, error)
    text = pprint.pformat(script, compact=True, width=100, sort_dicts=False)
    failure = SimulationFailure(
        f"seed {seed}: {type(error).__name__}: {error}\n"
        f"minimal replay ({len(script)} of {len(made)} decisions):\n{who}({seed}).replay({text})" + trace(script)
    )
    failure.script = script
    failure.__cause__ = error
    return failure
