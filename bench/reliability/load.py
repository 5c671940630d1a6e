"""A bounded load on one client, and the outcome of each request."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any

from bench.reliability.async_clients import AsyncClient
from bench.reliability.clients import SyncClient, WrongReply

__all__ = ("Load", "Request", "kind_of")

PACE = 0.02
"""Seconds from one request of a caller to its next one, so that failing fast does not cause more requests."""


@dataclass(frozen=True)
class Request:
    """One request: start and end (time.monotonic) and its error."""

    began: float
    ended: float
    error: str | None


def kind_of(error: BaseException) -> str:
    """The type of an error, with PostgreSQL's code if it has one."""
    name = f"{type(error).__module__.split('.')[0].replace('builtins', '')}.{type(error).__name__}".lstrip(".")
    code = getattr(error, "sqlstate", None) or getattr(getattr(error, "orig", None), "sqlstate", None)
    return f"{name} {code}" if code else name


class Load:
    """``callers`` threads or tasks that ask and compare, from :meth:`start` to :meth:`finish`.

    Safe to be driven from one other thread. For an async client it runs an event loop in a thread of its own.
    """

    def __init__(self, kind: type[SyncClient] | type[AsyncClient], *, callers: int = 8, size: int = 4, **made: Any):
        self.kind, self.callers, self.size, self._made = kind, callers, size, {"size": size, **made}
        self.requests: list[Request] = []
        self.wrong: list[str] = []
        self.capacity = 0
        self.failure: BaseException | None = None
        self._ready, self._stop, self._measured = threading.Event(), threading.Event(), threading.Event()
        work = self._threads if issubclass(kind, SyncClient) else lambda: asyncio.run(self._tasks())
        self._thread = threading.Thread(target=self._run, args=(work,), name="load", daemon=True)

    def start(self) -> None:
        """Create the client and start the callers."""
        self._thread.start()
        if not self._ready.wait(10) or self.failure:
            raise RuntimeError("the load did not start") from self.failure

    def finish(self, seconds: float = 8.0) -> bool:
        """Stop the callers, count the connections that can be taken, close. Return whether all of it ended."""
        self._stop.set()
        self._thread.join(seconds)
        if self.failure:
            raise self.failure
        return not self._thread.is_alive()

    def _run(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:
            self.failure = error
        finally:
            self._ready.set()

    def _note(self, key: str, began: float, reply: str | None, error: BaseException | None) -> None:
        if error is None and reply != key:
            self.wrong.append(f"{key!r} was answered with {reply!r}")
            error = WrongReply(self.wrong[-1])
        self.requests.append(Request(began, time.monotonic(), None if error is None else kind_of(error)))

    # Threads.

    def _threads(self) -> None:
        client: Any = self.kind(**self._made)
        callers = [threading.Thread(target=self._call, args=(client, n), daemon=True) for n in range(self.callers)]
        for caller in callers:
            caller.start()
        self._ready.set()
        for caller in callers:
            caller.join()
        with contextlib.ExitStack() as held:
            for _ in range(2 * self.size):  # a dead connection may have stayed in a pool that does not look
                with contextlib.suppress(Exception):
                    held.enter_context(client.hold())
                    self.capacity += 1
                if self.capacity == self.size:
                    break
        client.close()

    def _call(self, client: SyncClient, caller: int) -> None:
        number = 0
        self._stop.wait(PACE * caller / self.callers)
        while not self._stop.is_set():
            key, began = f"{caller}-{number}", time.monotonic()
            reply, failed = None, None
            try:
                reply = client.ask(key)
            except Exception as error:
                failed = error
            self._note(key, began, reply, failed)
            number += 1
            self._stop.wait(max(0.0, began + PACE - time.monotonic()))

    # Tasks.

    async def _tasks(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        kind: Any = self.kind
        client = kind()
        await client.open(**self._made)
        self._ready.set()
        await asyncio.gather(*(self._acall(client, n) for n in range(self.callers)))
        async with contextlib.AsyncExitStack() as held:
            for _ in range(2 * self.size):
                with contextlib.suppress(Exception):
                    await held.enter_async_context(client.hold())
                    self.capacity += 1
                if self.capacity == self.size:
                    break
        await client.close()

    async def _acall(self, client: AsyncClient, caller: int) -> None:
        number = 0
        await asyncio.sleep(PACE * caller / self.callers)
        while not self._stop.is_set():
            key, began = f"{caller}-{number}", time.monotonic()
            reply, failed = None, None
            try:
                reply = await asyncio.wait_for(client.ask(key), client.deadline)
            except Exception as error:
                failed = error
            self._note(key, began, reply, failed)
            number += 1
            await asyncio.sleep(max(0.0, began + PACE - time.monotonic()))
