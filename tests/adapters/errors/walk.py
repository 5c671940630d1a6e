"""The walk over a table of errors: a scenario for each row that causes the error, and what every error must be."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import pytest

from poolkit_adapters._errors import MISSING, Row, Table

T = TypeVar("T")


async def do(result: Any) -> Any:
    """Return the value of a call, awaited if the twin is asynchronous."""
    return await result if inspect.isawaitable(result) else result


class Scenarios(Generic[T]):
    """What makes each error of a table happen. A scenario gets what the test folder calls a twin, makes the error
    leave the adapter, and is a coroutine function, whichever twin it is for.
    """

    def __init__(self, table: Table) -> None:
        self.rows = [row for row in table if row is not MISSING]  # test_tables causes that one
        self._of: dict[int, tuple[Callable[[T], Awaitable[None]], tuple[str, ...], str]] = {}

    def happens(self, error: type[BaseException], *words: str, base: type | None = None, only: str = "") -> Any:
        """Mark the scenario of a row, found by its class (``base``: and by poolkit's). ``words`` stand in the message.
        ``only``: the twin in which it can happen, "sync" or "async".
        """
        found = [n for n, row in enumerate(self.rows) if row.error is error and base in (None, row.bases[0])]
        assert len(found) == 1, f"{error.__name__}: {len(found)} rows"

        def mark(scenario: Callable[[T], Awaitable[None]]) -> Callable[[T], Awaitable[None]]:
            assert found[0] not in self._of, f"{error.__name__}: has two scenarios"
            self._of[found[0]] = scenario, words, only
            return scenario

        return mark

    def walk(self) -> Any:
        """Parametrizes a test with ``row``, ``scenario``, ``words`` and ``only``; each row of the table counts."""
        missing = [row.error.__name__ for n, row in enumerate(self.rows) if n not in self._of]
        assert not missing, f"no scenario makes these happen: {missing}"
        return pytest.mark.parametrize(
            ("row", "scenario", "words", "only"),
            [pytest.param(row, *self._of[n], id=f"{row.error.__name__}-{row.bases[0].__name__}")
             for n, row in enumerate(self.rows)],
        )  # fmt: skip


async def walked(row: Row, scenario: Callable[[Any], Awaitable[None]], words: tuple[str, ...], twin: Any) -> None:
    """Cause the error and check the class of what was raised."""
    with pytest.raises(row.bases[-1]) as caught:
        await scenario(twin)
    check(caught.value, row, *words)


def check(error: BaseException, row: Row, *words: str) -> None:
    """Check that an error is of all its classes, names its pool or setting, and can be copied and pickled."""
    for kind in (row.error, *row.bases):
        assert isinstance(error, kind), f"{type(error).__mro__} without {kind}"
    for word in words:
        assert word in str(error)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert str(again) == str(error)


@contextmanager
def other_loop() -> Any:
    """Return a function that runs coroutines on an event loop in another thread, which keeps running."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    try:
        yield run
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
