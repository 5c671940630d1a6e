"""Classes with a known result, to check the harness with: some must score as the stock pool, some must not."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import time
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.connection
from redis.observability.attributes import get_pool_name

_TESTS = os.path.join(os.environ.get("CONF_TESTS", ""), "tests") + os.sep
_STORAGE = ("_available_connections", "_in_use_connections", "_created_connections", "_connections", "pool")


class TrivialPool(redis.ConnectionPool):
    """The stock pool with the constructor of the blocking one; it waits by asking again."""

    def __init__(
        self,
        max_connections: int = 50,
        timeout: float | None = 20,
        connection_class: Any = redis.Connection,
        queue_class: Any = queue.LifoQueue,
        **kwargs: Any,
    ) -> None:
        self.timeout, self.queue_class = timeout, queue_class
        super().__init__(connection_class=connection_class, max_connections=max_connections, **kwargs)

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        until = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            try:
                return super().get_connection(*args, **kwargs)
            except redis.exceptions.MaxConnectionsError:
                if until is not None and time.monotonic() >= until:
                    raise
            time.sleep(0.005)


class AsyncTrivialPool(redis.asyncio.ConnectionPool):
    """The stock pool with the constructor of the blocking one; it waits by asking again."""

    def __init__(
        self,
        max_connections: int = 50,
        timeout: float | None = 20,
        connection_class: Any = redis.asyncio.Connection,
        queue_class: Any = asyncio.LifoQueue,
        **kwargs: Any,
    ) -> None:
        self.timeout, self.queue_class = timeout, queue_class
        super().__init__(connection_class=connection_class, max_connections=max_connections, **kwargs)

    def set_in_maintenance(self, in_maintenance: bool) -> None:
        self._in_maintenance = in_maintenance

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        until = None if self.timeout is None else began + self.timeout
        while True:
            try:
                connection = await super().get_connection(*args, **kwargs)
                if self.timeout != 0:
                    await redis.asyncio.connection.record_connection_wait_time(
                        pool_name=get_pool_name(self), duration_seconds=time.monotonic() - began
                    )
                return connection
            except redis.exceptions.MaxConnectionsError:
                if until is not None and time.monotonic() >= until:
                    raise
            await asyncio.sleep(0.005)


def _hide(self: Any, name: str) -> Any:
    if name in _STORAGE and sys._getframe(1).f_code.co_filename.startswith(_TESTS):
        raise AttributeError(f"private: {name}")
    return object.__getattribute__(self, name)


class HidingPool(TrivialPool):
    """Hides its storage from the test files: what fails with it, and nothing else, reads private attributes."""

    __getattribute__ = _hide


class AsyncHidingPool(AsyncTrivialPool):
    """Hides its storage from the test files."""

    __getattribute__ = _hide


class NoReusePool(TrivialPool):
    """Broken: closes what comes back and never hands it out again."""

    def release(self, connection: Any) -> None:
        super().release(connection)
        with self._lock:
            while self._available_connections:
                self._available_connections.pop().disconnect()


class AsyncNoReusePool(AsyncTrivialPool):
    """Broken: closes what comes back and never hands it out again."""

    async def release(self, connection: Any) -> None:
        await super().release(connection)
        while self._available_connections:
            await self._available_connections.pop().disconnect()


class NoLimitPool(TrivialPool):
    """Broken: ignores max_connections."""

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        told, self.max_connections = self.max_connections, 10_000
        try:
            return super().get_connection(*args, **kwargs)
        finally:
            self.max_connections = told


class AsyncNoLimitPool(AsyncTrivialPool):
    """Broken: ignores max_connections."""

    def get_available_connection(self) -> Any:
        told, self.max_connections = self.max_connections, 10_000
        try:
            return super().get_available_connection()
        finally:
            self.max_connections = told


class AsyncWrongErrorPool(AsyncTrivialPool):
    """Broken: an exhausted pool raises what no driver knows."""

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().get_connection(*args, **kwargs)
        except redis.exceptions.MaxConnectionsError:
            raise RuntimeError("exhausted") from None
