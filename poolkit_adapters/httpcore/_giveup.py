"""HTTP/2: a stream that its caller no longer wants is given up, and the connection goes on.

httpcore forgets such a stream without a word: the server goes on working for it, and counts it as open. So the stream
is reset here (RFC 9113, 5.4.2 and 8.7). Where that cannot be, the connection takes no further requests, which is
always right. It is the way for threads too: httpcore's state of a connection is not made for two threads at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any

import httpcore

from ._link import Exchange, Link
from ._look import innermost
from ._network import ABANDONED, Watchable

__all__ = ("give_up",)

_CANCEL = 8  # RFC 9113, 7: the stream is no longer needed
_WINDOW = 2**23
"""Bytes that the server must still be allowed to send on the connection: half of what httpcore allows. What had
arrived for a stream and was not read is never acknowledged, so each stream given up may take some of it away."""


def give_up(link: Link[Any], exchange: Exchange, alive: float | None) -> bool:
    """Reset the stream of a request that was broken off, without waiting; whether the connection is as good as before.

    Not if it has been silent for longer than ``alive`` seconds (None: that does not matter): the caller may have lost
    patience because nothing comes any more on this connection, and the next ones must not find out in turn.
    """
    stream = link.streams[-1] if link.streams else None
    if not (link.http2 and link.capacity and isinstance(stream, Watchable)) or exchange.in_settings:
        return False
    if not exchange.stream_id:  # nothing was sent
        return link.open_to_more()
    if alive is not None and time.monotonic() - stream.heard_at > alive:
        return False
    connection = innermost(link.connection)
    state = getattr(connection, "_h2_state", None)
    if state is None or not link.open_to_more() or state.inbound_flow_control_window < _WINDOW:
        return False
    if exchange.stream_id in connection._events:  # httpcore was kept from forgetting it
        return False
    import h2.exceptions

    try:
        state.reset_stream(exchange.stream_id, _CANCEL)
    except h2.exceptions.NoSuchStreamError:  # its headers never left, or its answer is there and was not read
        return True
    except h2.exceptions.ProtocolError:
        return False
    _in_background(connection._write_outgoing_data(exchange.request))
    return True


def _in_background(write: Coroutine[Any, Any, None]) -> None:
    """Written by the next request at the latest, so nothing is lost if it fails. Not for longer than ABANDONED seconds:
    it holds httpcore's lock for writing meanwhile, for which other requests wait without a limit.
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
"""Those under way; the event loop itself keeps only weak references."""
