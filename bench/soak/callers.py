"""The callers: threads on the sync clients, tasks of one loop on the async ones. Every reply is compared."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio

from bench.reliability.clients import SyncClient
from bench.reliability.load import kind_of
from bench.reliability.measure import ADAPTERS

__all__ = ("Adapter", "Book", "Callers")

CANCELLED = 0.1
"""Share of the async requests that are cancelled at a random moment."""
HUNG = 20.0
"""Seconds after which a request counts as lost; every fault ends within two."""


@dataclass
class Adapter:
    """One client, and where its server is."""

    name: str
    made: dict[str, Any]
    size: int
    front: Any = None
    client: Any = None
    capacity: int | None = None

    @property
    def asynchronous(self) -> bool:
        return not issubclass(ADAPTERS[self.name], SyncClient)


@dataclass
class Book:
    """The counts. All callers write them, under the lock."""

    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    fatal: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, adapter: str, key: str, reply: str | None, error: BaseException | None) -> None:
        with self.lock:
            self.requests[adapter] += 1
            if error is not None:
                self.errors[adapter, kind_of(error)] += 1
            elif reply is not None and reply != key:
                self.fatal.append(f"{adapter}: wrong reply: {key!r} was answered with {reply!r}")

    def fail(self, what: str) -> None:
        with self.lock:
            self.fatal.append(what)


class Callers:
    """All callers of all adapters, from :meth:`start` to :meth:`finish`."""

    def __init__(self, adapters: list[Adapter], book: Book, *, seed: int, each: int = 4, pace: float = 0.03) -> None:
        self.adapters, self.book, self.seed, self.each, self.pace = adapters, book, seed, each, pace
        self.stop = threading.Event()
        self.busy: dict[str, float] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for adapter in self.adapters:
            if adapter.asynchronous:
                continue
            adapter.client = ADAPTERS[adapter.name](**adapter.made)
            for number in range(self.each):
                self._begin(f"{adapter.name}/{number}", self._call, adapter, f"{adapter.name}/{number}")
        self._begin("tasks", lambda: asyncio.run(self._tasks()))
        if not self._ready.wait(15) or self.book.fatal:
            raise RuntimeError(f"the async clients did not start: {self.book.fatal}")

    def at(self, adapter: Adapter, work: Callable[[], object]) -> None:
        """Run an action on a pool, in its event loop if it has one."""
        if not adapter.asynchronous:
            self._tried(adapter, work)
        elif self.loop is not None:
            self.loop.call_soon_threadsafe(self._tried, adapter, work)

    def hung(self) -> list[str]:
        """Callers that have waited longer than any timeout allows."""
        now = time.monotonic()
        return [f"{name} for {now - since:.0f} s" for name, since in self.busy.copy().items() if now - since > HUNG]

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Hold all connections of every pool open during the block, whatever was broken before."""
        assert self.loop is not None
        ready, over = threading.Event(), asyncio.Event()
        with contextlib.ExitStack() as held:
            tasks = asyncio.run_coroutine_threadsafe(self._afull(ready, over), self.loop)
            try:
                for adapter in self.adapters:
                    if not adapter.asynchronous:
                        self._hold_all(adapter, held)
                ready.wait(HUNG)
                yield
            finally:
                self.loop.call_soon_threadsafe(over.set)
                tasks.result(HUNG)

    def finish(self, seconds: float = 25.0) -> None:
        """Stop all callers, count the connections that can be taken, close the pools."""
        self.stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
            if thread.is_alive():
                self.book.fail(f"the thread {thread.name} did not end: {self.hung()}")
        for adapter in self.adapters:
            if not adapter.asynchronous and not self.book.fatal:
                self._settle(adapter)

    def _begin(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.book.fail(f"{name} died: {error!r}")
                raise

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _tried(self, adapter: Adapter, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self.book.fail(f"{adapter.name}: {error!r} from an operation of the pool")

    # Threads.

    def _call(self, adapter: Adapter, name: str) -> None:
        number, dice = 0, random.Random(f"{self.seed}{name}")
        while not self.stop.is_set():
            key, reply, failed = f"{name}/{number}", None, None
            self.busy[name] = time.monotonic()
            try:
                reply = adapter.client.ask(key)
            except Exception as error:
                failed = error
            del self.busy[name]
            self.book.note(adapter.name, key, reply, failed)
            number += 1
            self.stop.wait(self.pace * 2 * dice.random())

    def _hold_all(self, adapter: Adapter, held: contextlib.ExitStack) -> int:
        """Take as many connections as possible at once and hold them until ``held`` is closed; return their number."""
        count = 0
        for _ in range(2 * adapter.size):
            with contextlib.suppress(Exception):
                held.enter_context(adapter.client.hold())
                count += 1
            if count == adapter.size:
                break
        return count

    def _settle(self, adapter: Adapter) -> None:
        with contextlib.ExitStack() as held:
            adapter.capacity = self._hold_all(adapter, held)
        adapter.client.engine.check_books()
        adapter.client.close()

    # Tasks.

    async def _tasks(self) -> None:
        self.loop = asyncio.get_running_loop()
        # an unretrieved exception of a cancelled driver call is expected here
        self.loop.set_exception_handler(lambda loop, context: None)
        mine = [adapter for adapter in self.adapters if adapter.asynchronous]
        for adapter in mine:
            adapter.client = ADAPTERS[adapter.name]()
            await adapter.client.open(**adapter.made)
        self._ready.set()
        await asyncio.gather(
            *(self._acall(adapter, f"{adapter.name}/{number}") for adapter in mine for number in range(self.each))
        )
        for adapter in mine:
            if not self.book.fatal:
                await self._asettle(adapter)

    async def _acall(self, adapter: Adapter, name: str) -> None:
        number, dice = 0, random.Random(f"{self.seed}{name}")
        while not self.stop.is_set():
            key, reply, failed = f"{name}/{number}", None, None
            self.busy[name] = time.monotonic()
            try:
                reply = await self._cancelled_or_not(adapter.client, key, dice)
            except Exception as error:
                failed = error
            del self.busy[name]
            self.book.note(adapter.name, key, reply, failed)
            number += 1
            await asyncio.sleep(self.pace * 2 * dice.random())

    async def _cancelled_or_not(self, client: Any, key: str, dice: random.Random) -> str | None:
        if dice.random() > CANCELLED:
            answer: str = await asyncio.wait_for(client.ask(key), client.deadline)
            return answer
        patience = dice.random() ** 2 * 0.03
        if dice.random() < 0.5:  # asyncio cancels once, anyio at every step until the scope is left
            return str(await asyncio.wait_for(client.ask(key), patience))
        with anyio.move_on_after(patience):
            return str(await client.ask(key))
        return None

    async def _ahold_all(self, adapter: Adapter, held: contextlib.AsyncExitStack) -> int:
        count = 0
        for _ in range(2 * adapter.size):
            with contextlib.suppress(Exception):
                await held.enter_async_context(adapter.client.hold())
                count += 1
            if count == adapter.size:
                break
        return count

    async def _afull(self, ready: threading.Event, over: asyncio.Event) -> None:
        async with contextlib.AsyncExitStack() as held:
            for adapter in self.adapters:
                if adapter.asynchronous:
                    await self._ahold_all(adapter, held)
            ready.set()
            await over.wait()

    async def _asettle(self, adapter: Adapter) -> None:
        async with contextlib.AsyncExitStack() as held:
            adapter.capacity = await self._ahold_all(adapter, held)
        await asyncio.sleep(0.1)  # what is just being closed
        adapter.client.engine.check_books()
        await adapter.client.close()
