"""How it is measured: subjects take turns, and each turn adds one number to each of its series.

A turn that fails costs only its own numbers. It is repeated a few times and counted, and the run goes on.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import TracebackType
from typing import Generic, TypeVar

from bench.result import Failure, Param, Result, Series

__all__ = ("TRIES", "Effort", "Run", "Turn", "quiet_gc", "together")

TRIES = 3
"""How often a turn that fails is tried in all."""

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
        self._during = ""
        self._turn: list[tuple[Series, float]] | None = None
        """The numbers of the turn that is under way; a turn that fails adds none."""

    def pick(self, smoke: T, quick: T, full: T) -> T:
        """Choose by effort."""
        return (smoke, quick, full)[self.effort]

    def say(self, text: str) -> None:
        """Tell the user what is going on now."""
        self._during = text
        self._say(f"{self.experiment}: {text}")

    def add(self, subject: str, metric: str, unit: str, value: float, **params: Param) -> None:
        """Add one number."""
        series = Series(self.experiment, subject, metric, unit, params)
        if self._turn is None:
            self.result.add(series, value)
        else:
            self._turn.append((series, value))

    def add_all(self, subject: str, unit: str, numbers: dict[str, float], **params: Param) -> None:
        """Add several numbers of one unit, named by their metrics."""
        for metric, value in numbers.items():
            self.add(subject, metric, unit, value, **params)

    def turns(self, subjects: Sequence[T], repeat: int, named: Callable[[T], str] = str) -> Iterator[Turn[T]]:
        """Each subject once, then each again, beginning with another one each time; ``with turn as subject`` runs one.

        What disturbs the machine falls on all of them, and none always runs behind the same other. A turn that fails
        is tried :data:`TRIES` times in all. If it fails each time, the subject has no further turns here, so that the
        numbers before are still in the order of the repetitions. ``named`` returns the name for its failures.
        """
        given_up: list[T] = []
        for repetition in range(repeat):
            first = repetition % len(subjects) if subjects else 0
            for subject in (*subjects[first:], *subjects[:first]):
                if subject in given_up:
                    continue
                for left in reversed(range(TRIES)):
                    gc.collect()
                    turn = Turn(self, subject, named(subject))
                    yield turn
                    if turn.failure is None:
                        break
                    if not left:
                        turn.failure.given_up = True
                        given_up.append(subject)

    def begin(self) -> None:
        """Keep the numbers that are added from now on until :meth:`end`."""
        self._turn = []

    def end(self, *, keep: bool) -> None:
        """Add the numbers since :meth:`begin` to the result, or drop them."""
        numbers, self._turn = self._turn or (), None
        if keep:
            for series, value in numbers:
                self.result.add(series, value)

    def start(self, experiment: str) -> None:
        """Begin an experiment. What fails from now on is noted under its name."""
        self.experiment, self._during = experiment, ""

    def failed(self, subject: str, error: BaseException) -> Failure:
        """Note the failure of a subject's turn, or of the experiment outside a turn (no subject), and say it."""
        ours = not subject or "poolkit" in subject
        found = Failure(self.experiment, subject, self._during, _told(error), ours)
        trace = "".join(traceback.format_exception(error))
        self._say(f"{self.experiment}: {self._during}: {subject or 'the experiment'} failed\n{trace}")
        return self.result.note(found)


class Turn(Generic[T]):
    """One turn of one subject: a context manager that gives the subject and keeps an error from ending the run."""

    def __init__(self, run: Run, subject: T, name: str) -> None:
        self._run = run
        self._subject = subject
        self._name = name
        self.failure: Failure | None = None

    def __enter__(self) -> T:
        self._run.begin()
        return self._subject

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._run.end(keep=error is None)
        if not isinstance(error, (Exception, asyncio.CancelledError)):  # none, or an interrupt
            return False
        self.failure = self._run.failed(self._name, error)
        return True


def _told(error: BaseException) -> str:
    """The error in one line, without the command line of a process: it names paths of this machine."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"its process ended with status {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"its process did not end within {error.timeout:g} s"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


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
