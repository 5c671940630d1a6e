"""How it is measured: subjects take turns, and each turn adds one number to each of its series."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TypeVar

from bench.result import Param, Result, Series

__all__ = ("Effort", "Run", "quiet_gc", "together")

T = TypeVar("T")


class Effort(IntEnum):
    """How much is measured. ``SMOKE`` measures nothing worth reading: it tries the machinery."""

    SMOKE = 0
    QUICK = 1
    FULL = 2


class Run:
    """What an experiment is given: how much to do, and where its numbers go."""

    def __init__(self, result: Result, effort: Effort, say: Callable[[str], None] | None = None) -> None:
        self.result = result
        self.effort = effort
        self.experiment = ""
        self._say = say or (lambda text: None)

    def pick(self, smoke: T, quick: T, full: T) -> T:
        """Choose by effort."""
        return (smoke, quick, full)[self.effort]

    def say(self, text: str) -> None:
        """Tell the user what is going on now."""
        self._say(f"{self.experiment}: {text}")

    def add(self, subject: str, metric: str, unit: str, value: float, **params: Param) -> None:
        """Add one number."""
        self.result.add(Series(self.experiment, subject, metric, unit, params), value)

    def add_all(self, subject: str, unit: str, numbers: dict[str, float], **params: Param) -> None:
        """Add several numbers of one unit, named by their metrics."""
        for metric, value in numbers.items():
            self.add(subject, metric, unit, value, **params)

    def turns(self, subjects: Sequence[T], repeat: int) -> Iterator[T]:
        """Each subject once, then each again, beginning with another one each time.

        What disturbs the machine falls on all of them, and none always runs behind the same other.
        """
        for turn in range(repeat):
            first = turn % len(subjects) if subjects else 0
            for subject in (*subjects[first:], *subjects[:first]):
                gc.collect()
                yield subject


@contextmanager
def quiet_gc() -> Iterator[None]:
    """No garbage collection during turns, because it would disturb only the measured subject."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def together(work: Callable[[int], object], threads: int) -> None:
    """Run ``work(0)`` to ``work(threads - 1)`` at once, a thread for each, until all have ended.

    Raises:
        BaseException: the first error of any of them, after all have ended.
    """
    errors: list[BaseException] = []
    ready = threading.Barrier(threads)

    def guarded(index: int) -> None:
        try:
            ready.wait(60)
            work(index)
        except BaseException as error:  # raised below, in the thread that asked
            errors.append(error)

    started = [threading.Thread(target=guarded, args=(index,), daemon=True) for index in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
