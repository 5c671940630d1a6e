"""Resolve host names in poolkit's own threads, so that a caller waits no longer than its timeout.

The system's resolver (``getaddrinfo``) has no timeout and cannot be interrupted. A driver that calls it in the caller's
thread blocks that caller for as long as the name servers are silent. asyncio calls it in its default executor, whose
few threads are then blocked for every other name. Here, callers of the same name share one lookup, and a lookup that
hangs occupies a bounded number of threads, however often callers give up and retry.
"""

from __future__ import annotations

import copy
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from .base import AsyncParker, AsyncRuntime
from .fork import Stage, after_fork

__all__ = ("MOST_THREADS", "PATIENCE", "addresses", "addresses_async", "is_name")

MOST_THREADS = 3
"""Threads that one name may hold at once."""

PATIENCE = 5.0
"""Seconds after which a second lookup starts in parallel to one that has not ended, because its packets may have been
lost. It equals the first timeout of glibc's resolver."""

_LINGER = 2.0
"""Seconds for which an idle thread waits for the next name: starting a thread costs five times as much as waking
one.
"""

_Key = tuple[Any, ...]


class _Lookup:
    """A lookup of one name, and the callers that wait for its result."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.over = False
        self.found: list[str] = []
        self.error: BaseException | None = None
        self.wakers: set[Callable[[], object]] = set()

    def result(self) -> list[str]:
        if self.error is not None:
            raise copy.copy(self.error)  # each caller gets its own copy, because a traceback must not be shared
        return self.found


_lock = threading.Lock()
_lookups: dict[_Key, _Lookup] = {}
_threads: dict[_Key, int] = {}
_jobs: queue.SimpleQueue[_Key] = queue.SimpleQueue()
_idle = 0  # idle threads, minus the jobs that wait for a thread


def _restart() -> None:
    """In a forked child: start again, because the parent's threads do not exist here."""
    global _lock, _jobs, _idle
    _lock, _jobs, _idle = threading.Lock(), queue.SimpleQueue(), 0
    _lookups.clear()
    _threads.clear()


after_fork(Stage.RUNTIME, _restart)


def is_name(host: Any) -> bool:
    """Whether ``host`` may need a lookup: it is not an address, a path, or this machine's own name."""
    if not isinstance(host, str) or not host or host == "localhost" or host[0] in "/@" or ":" in host:
        return False
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return True
    return False


def addresses(host: Any, port: Any, timeout: float | None, family: int = socket.AF_UNSPEC) -> list[str] | None:
    """Return the addresses of ``host`` for a stream connection to ``port``, in the resolver's order. Thread-safe.

    None: the driver should resolve it, because it is not a name or no thread can be started. Raises TimeoutError after
    ``timeout`` seconds (None: no limit), and the errors of ``getaddrinfo``.
    """
    if not is_name(host):
        return None
    lookup = _join((host, port, family))
    if lookup is None:
        return None
    woken = threading.Event()
    try:
        if not _listen(lookup, woken.set) and not woken.wait(timeout) and not lookup.over:
            raise _late(host, timeout)
    finally:
        lookup.wakers.discard(woken.set)
    return lookup.result()


async def addresses_async(
    host: Any, port: Any, timeout: float | None, family: int = socket.AF_UNSPEC
) -> list[str] | None:
    """As :func:`addresses`, in a task of asyncio or trio. If a caller is cancelled, the lookup continues for the
    others.
    """
    if not is_name(host):
        return None
    lookup = _join((host, port, family))
    if lookup is None:
        return None
    parker = _parker()
    wake = parker.wake
    try:
        if not _listen(lookup, wake):
            await parker.wait(timeout)
            if not lookup.over:
                raise _late(host, timeout)
    finally:
        lookup.wakers.discard(wake)
    return lookup.result()


def _parker() -> AsyncParker:
    """A new parker for the running task."""
    from . import asyncio_

    runtime: AsyncRuntime | None = asyncio_.current()
    if runtime is None and "trio" in sys.modules:
        from . import trio_

        runtime = trio_.current()
    if runtime is None:
        raise UsageError("addresses_async() needs a running event loop (asyncio or trio)")
    return runtime.parker()


def _late(host: str, timeout: float | None) -> TimeoutError:
    return TimeoutError(f"the resolver has not answered for {host!r} in {timeout:g} s")


def _listen(lookup: _Lookup, wake: Callable[[], object]) -> bool:
    """Register ``wake`` for the end of ``lookup``. Returns whether the lookup has already ended."""
    with _lock:
        if not lookup.over:
            lookup.wakers.add(wake)
        return lookup.over


def _join(key: _Key) -> _Lookup | None:
    """The current lookup of this name, or a new one; None if no thread can be started for it."""
    global _idle
    with _lock:
        now = time.monotonic()
        lookup = _lookups.get(key)
        fresh = lookup is not None and now - lookup.begun < PATIENCE
        if lookup is None:
            lookup = _lookups[key] = _Lookup()
        if fresh or _threads.get(key, 0) >= MOST_THREADS:
            return lookup
        lookup.begun = now
        _threads[key] = _threads.get(key, 0) + 1
        if _idle > 0:
            _idle -= 1
            _jobs.put(key)
            return lookup
    try:
        threading.Thread(target=_work, args=(key,), name="poolkit-lookup", daemon=True).start()
    except BaseException as error:
        _ended(key, OSError(f"no thread to look up {key[0]!r}: {error}"))  # for the callers that have joined meanwhile
        if isinstance(error, RuntimeError):  # none can be started now, or none of this kind (in a subinterpreter)
            return None
        raise
    return lookup


def _work(key: _Key | None) -> None:
    global _idle
    jobs = _jobs
    while key is not None:
        outcome = _look_up(*key)
        with _lock:
            _idle += 1  # before the callers wake: their next lookup may use this thread
        _ended(key, outcome)
        try:
            key = jobs.get(timeout=_LINGER)
        except queue.Empty:
            with _lock:
                if _idle > 0:
                    _idle -= 1
                    return
            key = jobs.get()  # a job was given at this moment


def _look_up(host: str, port: Any, family: int) -> list[str] | BaseException:
    try:
        answers = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        found = list(dict.fromkeys(_address(answer[4]) for answer in answers))
        return found or socket.gaierror(socket.EAI_NONAME, f"{host!r} has no address")
    except BaseException as error:  # noqa: BLE001  raised in the callers
        return error


def _address(place: Any) -> str:
    """The host of a socket address, with the zone that a link-local address of IPv6 needs."""
    host = str(place[0])
    return f"{host}%{place[3]}" if len(place) > 3 and place[3] and "%" not in host else host


def _ended(key: _Key, outcome: list[str] | BaseException) -> None:
    """Handle the end of a thread. The first thread that finds the addresses provides them to all waiting callers. A
    failure counts only if no other thread is left, because it may come from a lookup that began during an outage.
    """
    with _lock:
        left = _threads.get(key, 0) - 1
        if left > 0:
            _threads[key] = left
        else:
            _threads.pop(key, None)
        lookup = _lookups.get(key)
        if lookup is None or (left > 0 and isinstance(outcome, BaseException)):
            return
        del _lookups[key]
        if isinstance(outcome, BaseException):
            lookup.error = outcome
        else:
            lookup.found = outcome
        lookup.over = True
        wakers = list(lookup.wakers)
    for wake in wakers:
        wake()
