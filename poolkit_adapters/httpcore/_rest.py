"""The rest of an HTTP/1.1 response whose reader stopped early.

A reader often stops just before the end: at the ``[DONE]`` of a stream of events, or at the line that it looked for.
What it leaves unread may be only the end of the message. If that has arrived, it is read here, and the connection can
carry the next request. Otherwise the connection must be closed, because the rest would be taken for the next response.
"""

from __future__ import annotations

import os
from typing import Any

import h11

from ._link import Link
from ._look import innermost

__all__ = ("read_rest",)


def read_rest(link: Link[Any]) -> None:
    """Read the response to its end, if the end has arrived. Never waits, and reads a limited number of bytes.

    Call it only while nobody reads from the connection. If the end has not arrived, or if anything fails, the response
    stays incomplete, and httpcore closes the connection together with the response. A forked child reads nothing of its
    parent's connections.
    """
    if link.process != os.getpid():
        return
    try:
        parsed = getattr(innermost(link.connection), "_h11_state", None)
        if parsed is None or parsed.their_state is not h11.SEND_BODY:
            return
        taken = False
        while True:
            event = parsed.next_event()
            if event is h11.NEED_DATA:
                data = b"" if taken else link.take()  # once: what arrives later is not waited for
                if not data:
                    return
                taken = True
                parsed.receive_data(data)
            elif not isinstance(event, h11.Data):
                return
    except Exception:  # noqa: BLE001  a protocol error, the end of the stream, a custom stream: close the connection
        return
