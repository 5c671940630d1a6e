"""HTTP/2: cancels the stream of a request whose caller no longer wants it, and keeps the connection.

httpcore drops such a stream without telling the server, which keeps working on it and counts it as open. So reset the
stream here (RFC 9113, 5.4.2 and 8.7). If that is not possible, the connection takes no further requests, which is
always safe. Threads always do the latter, because httpcore's connection state is not thread-safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any

from ._driver import httpcore
from ._link import Exchange, Link
from ._look import innermost
from ._network import ABANDONED, Watchable

__all__ = ("cancel_stream",)

_CANCEL = 8  # RFC 9113, 7: the stream is no longer needed
_WINDOW = 2**23
"""Minimum number of bytes that the server may still send on the connection: half of what httpcore allows. Data that
arrived for a cancelled stream and was not read is never acknowledged, so each cancelled stream may reduce it."""


def cancel_stream(link: Link[Any], exchange: Exchange, alive: float | None) -> bool:
    """Reset the stream of an aborted request without waiting. Return whether the connection can still be used.

    Return False if the connection has been silent for longer than ``alive`` seconds (None: no limit). The caller may
    have given up because the connection is dead, and the next callers must not discover that one after the other.
    """
    stream = link.streams[-1] if link.streams else None
    if not (link.http2 and link.capacity and isinstance(stream, Watchable)) or exchange.in_settings:
        return False
    if not exchange.stream_id:  # nothing was sent
        return link.accepts_more()
    if alive is not None and time.monotonic() - stream.heard_at > alive:
        return False
    connection = innermost(link.connection)
    state = getattr(connection, "_h2_state", None)
    if state is None or not link.accepts_more() or state.inbound_flow_control_window < _WINDOW:
        return False
    if exchange.stream_id in connection._events:  # httpcore could not remove the stream
        return False
    import h2.exceptions

    try:
        state.reset_stream(exchange.stream_id, _CANCEL)
    except h2.exceptions.NoSuchStreamError:  # its headers were never sent, or its response has arrived
        return True
    except h2.exceptions.ProtocolError:
        return False
    _in_background(connection._write_outgoing_data(exchange.request))
    return True


def _in_background(write: Coroutine[Any, Any, None]) -> None:
    """Run the write in the background, for at most ABANDONED seconds.

    The limit is needed because it holds httpcore's write lock, for which other requests wait without a limit. Nothing
    is lost if it fails: the next request writes the same data.
    """
    if asyncio._get_running_loop() is None:
        import trio

        async def on_trio() -> None:
            with contextlib.suppress(*_EXPECTED), trio.move_on_after(ABANDONED):
                await write

        trio.lowlevel.spawn_system_task(on_trio)
        return

    async def work() -> None:
        with contextlib.suppress(*_EXPECTED, asyncio.TimeoutError):
            await asyncio.wait_for(write, ABANDONED)

    task = asyncio.ensure_future(work())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


_EXPECTED = (httpcore.NetworkError, httpcore.TimeoutException, OSError)
_tasks: set[asyncio.Future[None]] = set()
"""The running tasks. The event loop itself keeps only weak references to them."""
