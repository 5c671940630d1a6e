"""The callers: threads, or tasks of an event loop in its own thread, so that only the display handles Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time

from poolkit.cli.demo.record import Record, Round
from poolkit.cli.demo.stacks import AsyncStack, Sites, Stack, async_stack, sync_stack

__all__ = ("Load",)

_LOOK = 0.1  # seconds between two samples of the pools


class Load:
    """One round's callers. ``ready`` is set when they set out, ``over`` when nothing of the round is left.

    Args:
        record: what kind of pools, in which mode; gets a new round, which the callers fill in.
        sites: the servers.
    """

    def __init__(self, record: Record, sites: Sites) -> None:
        self.record = record
        self.round = Round(record.plan)
        self.ready = threading.Event()
        self.over = threading.Event()
        self.failure: BaseException | None = None
        self._sites = sites
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="poolkit-demo-load", daemon=True)

    def start(self) -> None:
        """Start the callers in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End early; returns when the clients are closed, or after a few seconds without them."""
        self._stop.set()
        self._thread.join(self.record.plan.grace + 3)

    def _run(self) -> None:
        try:
            if self.record.mode == "sync":
                self._run_threads()
            else:
                asyncio.run(self._run_tasks())
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for the round
            self.failure = error
        finally:
            self.ready.set()
            self.over.set()

    def _set_out(self) -> None:
        self.record.rounds.append(self.round)
        self.round.started = time.monotonic()
        self.ready.set()

    def _time_left(self) -> bool:
        plan = self.record.plan
        return not self._stop.is_set() and self.round.now() < plan.seconds + plan.grace

    # Threads.

    def _run_threads(self) -> None:
        plan = self.record.plan
        with sync_stack(self.record.pools, self._sites, plan) as stack:
            stack.handle(0)  # warm up: the first imports and query plans do not depend on the pool
            pending: dict[int, float] = {}
            self._set_out()
            threads = [
                threading.Thread(target=self._caller, args=(stack, caller, pending), name=f"caller-{caller}")
                for caller in range(plan.callers)
            ]
            for thread in threads:
                thread.daemon = True
                thread.start()
            while any(thread.is_alive() for thread in threads) and self._time_left():
                self.record.states = stack.states()
                self._stop.wait(_LOOK)
            self._stop.set()
            while pending:
                # The thread that removes a request records it, so each is recorded once.
                with contextlib.suppress(KeyError):
                    self.round.add_unfinished(pending.popitem()[1])

    def _caller(self, stack: Stack, caller: int, pending: dict[int, float]) -> None:
        book = self.round
        for due in book.plan.due_times(caller):
            if self._stop.wait(max(0.0, due - book.now())):
                return
            pending[caller] = due
            error: BaseException | None = None
            try:
                stack.handle(next(self._numbers))
            except Exception as failure:  # noqa: BLE001 - whatever a caller gets is what is shown
                error = failure
            if pending.pop(caller, None) is not None:
                book.add(due, error)

    # Tasks.

    async def _run_tasks(self) -> None:
        plan = self.record.plan
        async with async_stack(self.record.pools, self._sites, plan) as stack:
            await stack.handle(0)
            self._set_out()
            tasks = {asyncio.ensure_future(self._async_caller(stack, caller)) for caller in range(plan.callers)}
            while tasks and self._time_left():
                self.record.states = stack.states()
                _done, tasks = await asyncio.wait(tasks, timeout=_LOOK)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _async_caller(self, stack: AsyncStack, caller: int) -> None:
        book = self.round
        for due in book.plan.due_times(caller):
            await asyncio.sleep(max(0.0, due - book.now()))
            error: BaseException | None = None
            try:
                await stack.handle(next(self._numbers))
            except asyncio.CancelledError:
                book.add_unfinished(due)
                raise
            except Exception as failure:  # noqa: BLE001 - whatever a caller gets is what is shown
                error = failure
            book.add(due, error)
