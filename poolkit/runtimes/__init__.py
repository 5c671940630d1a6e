"""Where callers sleep and background work runs: threads, asyncio, trio.

Adapters whose driver has a way of its own to wait (SQLAlchemy's greenlets) supply a :class:`Runtime`.
"""

from .base import AsyncParker, AsyncRuntime, Inbox, Runtime, SyncParker, Task
from .threads import ThreadRuntime

__all__ = ("AsyncParker", "AsyncRuntime", "Inbox", "Runtime", "SyncParker", "Task", "ThreadRuntime")
