"""Host names looked up in threads of poolkit's own, so that a caller waits no longer than its time allows.

The system's resolver (``getaddrinfo``) takes no time limit and cannot be interrupted. A driver that calls it in the
caller's thread keeps that caller for as long as the name servers are silent; asyncio calls it in its default executor,
whose few threads are then missing for every other name. Here callers of the same name share one lookup, and one that
hangs takes a bounded number of threads, whoever gives up and asks again.
"""

from __future__ import annotations

import copy
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from .base import AsyncParker, AsyncRuntime

__all__ = ("MOST_THREADS", "PATIENCE", "addresses", "addresses_async", "is_name")

MOST_THREADS = 3
"""Threads that one name may hold at once."""

PATIENCE = 5.0
"""Seconds after which a lookup is begun anew beside one that has not ended: its packets may have been lost on a way
that works again. It is the first pause of glibc's resolver."""

_LINGER = 2.0
"""Seconds for which a thread that has nothing to do waits for the next name: to start one costs five times as much as
to wake it."""

_Key = tuple[Any, ...]


class _Lookup:
    """One name that is being looked up, and who waits for the outcome."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.over = False
        self.found: list[str] = []
        self.error: BaseException | None = None
        self.wakers: set[Callable[[], object]] = set()

    def result(self) -> list[str]:
        if self.error is not None:
            raise copy.copy(self.error)  # each caller its own: a traceback is not shared
        return self.found


_lock = threading.Lock()
_lookups: dict[_Key, _Lookup] = {}
_threads: dict[_Key, int] = {}
_jobs: queue.SimpleQueue[_Key] = queue.SimpleQueue()
_idle = 0  # threads that wait for a job, less the jobs that wait for a thread


def _begin_anew() -> None:
    """In a forked child: the threads of the parent are not here."""
    global _lock, _jobs, _idle
    _lock, _jobs, _idle = threading.Lock(), queue.SimpleQueue(), 0
    _lookups.clear()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def is_name(host: Any) -> bool:
    """Whether ``host`` may have to be asked for: not an address, a path, nor this machine's own name."""
    if not isinstance(host, str) or not host or host == "localhost" or host[0] in "/@" or ":" in host:
        return False
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return True
    return False


def addresses(host: Any, port: Any, timeout: float | None, family: int = socket.AF_UNSPEC) -> list[str] | None:
    """The addresses of ``host`` for a stream connection to ``port``, in the resolver's order; thread-safe.

    None: the driver can resolve it by itself, because it is no name, or no thread can be had. Raises TimeoutError after
    ``timeout`` seconds (None: no limit), and what ``getaddrinfo`` raises.
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
    """As :func:`addresses`, in a task of asyncio or trio. A cancelled caller leaves the lookup to the others."""
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
    """Where the running task sleeps."""
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
    """Have ``wake`` called at the end of ``lookup``; whether it has ended already."""
    with _lock:
        if not lookup.over:
            lookup.wakers.add(wake)
        return lookup.over


def _join(key: _Key) -> _Lookup | None:
    """The lookup of this name that is under way, or a new one; None: no thread can be had for it."""
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
        _ended(key, OSError(f"no thread to look up {key[0]!r}: {error}"))  # for those who have joined meanwhile
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
            _idle += 1  # before the callers hear: their next lookup is for this thread
        _ended(key, outcome)
        try:
            key = jobs.get(timeout=_LINGER)
        except queue.Empty:
            with _lock:
                if _idle > 0:
                    _idle -= 1
                    return
            key = jobs.get()  # given in this very moment


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
    """A thread has ended: whoever waits for this name has the addresses, whichever thread found them. A failure counts
    when no other thread is left: it may be an old one, of a lookup that was begun while the network was away.
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
