"""Limits the handshake of a connection, even if the application sets no limit for its commands."""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any

from .._attempts import Attempt
from .._hang_up import Connecting
from .._time_limits import Watch
from ._driver import AsyncAbstract, async_connection, exceptions

__all__ = ("async_connect_limit", "connect_limit", "handshake_limit")

_attempts = Watch()


class _Late(Exception):
    """The connecting caller has no time left for another attempt. redis-py's ``retry`` does not retry this error."""


class _BoundedPauses:
    """The pauses of a connection's ``retry``, none longer than the time that the caller has left."""

    def __init__(self, own: Any, deadline: float) -> None:
        self._own = own
        self._deadline = deadline

    def reset(self) -> None:
        self._own.reset()

    def compute(self, failures: int) -> float:
        own: float = self._own.compute(failures)
        return min(own, max(0.0, self._deadline - time.monotonic()))


@contextmanager
def _until(connection: Any, seconds: float | None) -> Iterator[float]:
    """Let no pause of ``connection`` in this block go on for longer than ``seconds`` from now. Yields the deadline."""
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    retry: Any = getattr(connection, "retry", None)
    if seconds is None or not hasattr(retry, "_backoff"):
        yield deadline
        return
    hasty = copy.copy(retry)  # several connections may share theirs
    hasty._backoff = _BoundedPauses(retry._backoff, deadline)
    connection.retry = hasty
    try:
        yield deadline
    finally:
        if connection.retry is hasty:
            connection.retry = retry


@contextmanager
def connect_limit(
    connection: Any,
    connecting: Connecting,
    connect_timeout: float | None,
    left: float | None = None,
    attempt: Attempt | None = None,
) -> Iterator[None]:
    """Limit each attempt to connect ``connection`` in this block, all replies of its handshake together.

    An attempt has ``connect_timeout`` (None: no limit) for TCP, and for the handshake ``socket_timeout`` or, where that
    is None, ``connect_timeout`` again. ``left``: the seconds for all attempts, where the caller makes them itself.
    ``connecting`` belongs to the calling function. ``attempt``: told how far the connect is.
    """
    own = connection.socket_timeout
    if connect_timeout is None:
        yield
        return
    longest = connect_timeout + (connect_timeout if own is None else own)
    if attempt is not None:
        attempt.extend(_attempts_of(connection) * (longest + _pause(connection)) + 1.0)
    open_socket = connection._connect  # the first step of each attempt
    deadline = math.inf

    def begin() -> Any:
        _attempts.end(connecting)
        seconds = min(longest, deadline - time.monotonic())
        if seconds <= 0:
            raise _Late
        if attempt is not None:
            attempt.opening()
        _attempts.begin(connecting, seconds)
        sock = open_socket()
        if attempt is not None:
            attempt.opened(partial(_attempts.cut, connecting))
        return sock

    connection._connect = begin
    try:
        with (
            _until(connection, left) as deadline,
            handshake_limit(connection, connect_timeout) if own is None else nullcontext(),
        ):
            yield
    except _Late as error:
        raise exceptions.TimeoutError(f"no connection in {left:g} s (timeout)") from error.__context__
    except Exception as error:
        if _attempts.end(connecting):
            raise exceptions.TimeoutError(f"no connection in {connect_timeout:g} s (connect_timeout)") from error
        raise
    finally:
        del connection._connect
        _attempts.end(connecting)


@contextmanager
def handshake_limit(connection: Any, seconds: float | None) -> Iterator[None]:
    """Limit each reply to ``seconds`` while ``connection``, which has ``socket_timeout=None``, connects in this block.

    None sets no limit. redis-py's ``socket_connect_timeout`` covers the TCP connect only; what follows (TLS in
    threads, HELLO, AUTH) has ``socket_timeout``. With ``socket_timeout=None``, which blocking commands need, a server
    that accepts and never replies would block the caller and its slot in the pool forever.
    """
    connection.socket_timeout = seconds
    try:
        yield
    finally:
        connection.socket_timeout = None
        sock = getattr(connection, "_sock", None)  # None if the connect failed
        if sock is not None:
            sock.settimeout(None)
            parser: Any = connection._parser
            if hasattr(parser, "_socket_timeout"):  # hiredis
                parser._socket_timeout = None
            buffer: Any = getattr(parser, "_buffer", None)
            if hasattr(buffer, "socket_timeout"):
                buffer.socket_timeout = None


@asynccontextmanager
async def async_connect_limit(connection: Any, seconds: float | None) -> AsyncIterator[None]:
    """As :func:`connect_limit`, for asyncio: TCP and TLS take at most ``seconds``, and each reply of the handshake.

    redis-py's own limits replace ``seconds``. Whatever else runs in a connect (a ``redis_connect_func``, a credential
    provider) ends with the time for all attempts. Another class of connections has ``seconds`` for everything.

    Only the reads have a limit for each reply: with a ``socket_timeout`` redis-py writes in ``asyncio.wait_for()``,
    which before Python 3.12 loses a cancellation that arrives when the write ends.
    """
    total = seconds
    with ExitStack() as limits:
        names = ("socket_connect_timeout", "socket_timeout", "retry")
        if isinstance(connection, AsyncAbstract) and all(hasattr(connection, name) for name in names):
            tcp, replies = connection.socket_connect_timeout or seconds, connection.socket_timeout or seconds
            total = tcp and replies and _attempts_of(connection) * (tcp + replies + _pause(connection))
            if connection.socket_connect_timeout is None:
                connection.socket_connect_timeout = seconds
                limits.callback(setattr, connection, "socket_connect_timeout", None)
            if connection.socket_timeout is None:
                limits.enter_context(_async_replies(connection, seconds))
        try:
            async with async_connection.async_timeout(total):
                yield
        except asyncio.TimeoutError:
            raise exceptions.TimeoutError(f"no connection in {total:g} s") from None


def _attempts_of(connection: Any) -> float:
    """Return how many times redis-py tries to connect, by the connection's ``retry``."""
    retries = getattr(connection.retry, "_retries", 0)
    return 1e6 if retries < 0 else retries + 1  # negative: no limit


def _pause(connection: Any) -> float:
    """Return the longest pause between two attempts, in seconds."""
    backoff = getattr(connection.retry, "_backoff", None)
    pauses = [getattr(backoff, "_cap", None), getattr(backoff, "_backoff", None)]  # of a growing, of a constant backoff
    return max((pause for pause in pauses if isinstance(pause, (int, float))), default=0.0)


@contextmanager
def _async_replies(connection: Any, seconds: float | None) -> Iterator[None]:
    read: Any = connection.read_response

    async def read_response(*args: Any, **kwargs: Any) -> Any:
        try:
            async with async_connection.async_timeout(seconds):
                return await read(*args, **kwargs)
        except asyncio.TimeoutError:
            raise exceptions.TimeoutError(f"no answer to the handshake in {seconds:g} s") from None

    connection.read_response = read_response
    try:
        yield
    finally:
        del connection.read_response
