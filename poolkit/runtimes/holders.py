"""Identities for threads and tasks that hold a lease. An identity is never reused and keeps nothing alive.

Python reuses its own numbers (``get_ident()``, ``id(task)``) for the next thread or task as soon as one has ended. A
lease that was left behind would then be attributed to a thread or task that never had it.

A task is identified by a weak reference to it. A thread is identified by a :class:`ThreadHolder`, created once in each
thread. The holder notices the end of its thread because the thread's local storage is gone. Two identities are equal
only if they belong to the same thread or task.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

__all__ = ("ENDED", "NOBODY", "ThreadHolder", "hashable", "name_of_task", "name_of_thread", "named", "thread_caller")

ENDED = " (ended)"  # the end of the name of a thread or task that no longer exists; the diagnosis reads it


class _Mark:
    """Exists only in a thread's local storage, so it is gone as soon as the thread has ended."""

    __slots__ = ("__weakref__",)


class ThreadHolder:
    """The identity of one thread (or greenlet, where gevent has patched ``threading``). Compared by identity."""

    __slots__ = ("_mark", "_name", "_thread")

    def __init__(self, mark: _Mark) -> None:
        thread = threading.current_thread()
        self._mark = weakref.ref(mark)
        self._thread = weakref.ref(thread)
        self._name = thread.name

    def __str__(self) -> str:
        """The thread's name; for an ended thread its last known name with "(ended)"."""
        thread = self._thread()
        if self._mark() is None:
            return f"thread {self._name}{ENDED}"
        if thread is not None:
            self._name = thread.name
        return self._name


_callers: dict[type, Callable[[], ThreadHolder]] = {}


def thread_caller() -> Callable[[], ThreadHolder]:
    """Return a function that returns the identity of the calling thread. It is written in C and costs no Python call.

    ``threading.local`` is looked up here, not at import: gevent may have replaced it since, and then each greenlet is a
    separate caller.
    """
    base: Any = threading.local
    if base not in _callers:

        class Here(base):  # type: ignore[misc]
            """One mark and one identity for each thread, made when the thread first asks."""

            def __init__(self) -> None:
                self.mark = _Mark()
                self.holder = ThreadHolder(self.mark)

        _callers[base] = partial(getattr, Here(), "holder")
    return _callers[base]


def name_of_thread(holder: object) -> str:
    """The name of a thread by its identity."""
    return str(holder) if isinstance(holder, ThreadHolder) else "a thread"


class _Named(weakref.ref[Any]):
    """The identity of a task, with the name that it had when this was made."""

    __slots__ = ("name",)
    name: str


def named(holder: Hashable, name_of: Callable[[Any], str]) -> Hashable:
    """The same identity, which keeps the name of a task after the task is gone.

    Only for the slow path: the name of a task costs more than its identity.
    """
    if not isinstance(holder, weakref.ref):
        return holder
    task = holder()
    if task is None:
        return holder
    known = _Named(task)
    known.name = name_of(holder)
    return known


def name_of_task(holder: object, look: Callable[[Any], tuple[str, bool]]) -> str:
    """The name of a task by its identity. ``look(task)`` gives its name and whether it has ended."""
    task = holder() if isinstance(holder, weakref.ref) else None
    if task is not None:
        name, ended = look(task)
        return f"task {name}{ENDED}" if ended else name
    if isinstance(holder, _Named):
        return f"task {holder.name}{ENDED}"
    return "a task" + ENDED if isinstance(holder, weakref.ref) else "a task"


class _Nobody:
    """Replaces a task if something other than a task runs the coroutine."""


NOBODY = _Nobody()


def hashable(holder: Hashable) -> Hashable:
    """The identity; 0 for an unknown caller; a new object, equal to no other, if the identity has no hash.

    The hash of a weak reference is that of its referent. If the referent is gone and the hash was never computed, there
    is none. That is correct here, because a caller that no longer exists is equal to no existing one.
    """
    try:
        hash(holder)
    except TypeError:
        return object()
    return 0 if isinstance(holder, weakref.ref) and holder() is NOBODY else holder
