"""Connections that do nothing, so that what is measured is the pool."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

__all__ = ("AsyncRedisConnection", "Connection", "Opener", "RedisConnection")


class Connection:
    """Looks enough like a DB-API connection."""

    def rollback(self) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...
    def cursor(self) -> Connection:
        return self


class Opener:
    """Opens connections, ``seconds`` for each, and counts them."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, *_arguments: Any, **_settings: Any) -> Connection:
        """Open one, in the calling thread."""
        with self._lock:
            self.count += 1
        if self.seconds:
            time.sleep(self.seconds)
        return Connection()

    async def open(self) -> Connection:
        """Open one, in the calling task."""
        self.count += 1
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return Connection()


class RedisConnection:
    """Looks enough like redis-py's ``Connection``, which is made first and connected later."""

    def __init__(self, opener: Opener, **_settings: Any) -> None:
        self._opener = opener
        self._open = False
        self.pid = os.getpid()

    def connect(self) -> None:
        if not self._open:
            self._opener()
            self._open = True

    def disconnect(self, *_arguments: Any) -> None: ...
    def can_read(self, timeout: float = 0) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False

    def set_re_auth_token(self, token: object) -> None: ...
    def re_auth(self) -> None: ...
    def register_connect_callback(self, callback: object) -> None: ...


class AsyncRedisConnection:
    """The same for ``redis.asyncio``."""

    def __init__(self, opener: Opener, **_settings: Any) -> None:
        self._opener = opener
        self._open = False

    async def connect(self) -> None:
        if not self._open:
            await self._opener.open()
            self._open = True

    async def disconnect(self, *_arguments: Any, **_settings: Any) -> None: ...
    async def can_read(self, timeout: float = 0) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False

    def set_re_auth_token(self, token: object) -> None: ...
    async def re_auth(self) -> None: ...
    def register_connect_callback(self, callback: object) -> None: ...
