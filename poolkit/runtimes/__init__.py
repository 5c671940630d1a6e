"""Runtimes for threads, asyncio and trio: they suspend callers and run background work.

An adapter whose driver waits in another way (SQLAlchemy's greenlets) supplies its own :class:`Runtime`.
"""

from .base import AsyncParker, AsyncRuntime, Inbox, Runtime, SyncParker, Task
from .threads import ThreadRuntime

__all__ = ("AsyncParker", "AsyncRuntime", "Inbox", "Runtime", "SyncParker", "Task", "ThreadRuntime")
