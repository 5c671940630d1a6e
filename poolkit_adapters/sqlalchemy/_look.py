"""A check of an idle connection that sends the server nothing and reads nothing from the socket."""

from __future__ import annotations

import select
import socket
from typing import Any

__all__ = ("looks_alive",)

_poll = getattr(select, "poll", None)
_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # Linux: the peer has closed, even if unread data remains
_GONE = _HUNG_UP | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0) | getattr(select, "POLLNVAL", 0)

_UNASKED = b"ANS"
"""Types of messages that a PostgreSQL server may send at any time (documentation, 54.2.7): NotificationResponse,
NoticeResponse, ParameterStatus. An ErrorResponse on an idle connection is the FATAL one that ends it."""
_SEALED = b"\x00\x17"
"""First bytes of messages that only the driver can read: a packet of GSSAPI encryption (its length), a TLS record of
application data. A TLS alert (0x15) means the end."""
_HEADER = 5  # type and length; the length counts itself and not the type
_GLANCE = 4096


def looks_alive(driver: Any) -> bool:
    """Return whether the driver's connection seems usable: neither side has closed it, and it has no unexpected data.

    Uses the attributes of psycopg and psycopg2 (``closed``, ``fileno()``) and asyncpg (``is_closed()``). A driver
    without them counts as alive. Never blocks, and reads nothing from the socket, so that the driver can still deliver
    a pending notification.
    """
    is_closed = getattr(driver, "is_closed", None)
    if callable(is_closed):
        return not is_closed()
    if getattr(driver, "closed", False):
        return False
    fileno = getattr(driver, "fileno", None)
    if _poll is None or not callable(fileno):
        return True
    number = fileno()
    poll = _poll()  # needs no extra descriptor
    poll.register(number, select.POLLIN | _HUNG_UP)
    found = poll.poll(0)
    if not found:
        return True
    if found[0][1] & _GONE:
        return False
    # only psycopg and psycopg2 have both fileno() and notifies, so the data is in PostgreSQL's protocol
    return hasattr(driver, "notifies") and only_unasked(_glance(number))


def _glance(number: int) -> bytes:
    """Return the first unread bytes of a socket without removing them. Empty if the peer has closed or it is broken."""
    sock = socket.socket(fileno=number)
    try:
        return sock.recv(_GLANCE, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
    except OSError:
        return b""
    finally:
        sock.detach()


def only_unasked(waiting: bytes) -> bool:
    """Return whether the unread data consists only of messages that a PostgreSQL server may send at any time."""
    if waiting[:1] and waiting[:1] in _SEALED:
        return True  # unreadable here; the ping, or the close that follows a FATAL message, shows a dead connection
    place = 0
    while place < len(waiting):
        if waiting[place] not in _UNASKED:
            return False
        place += 1 + max(4, int.from_bytes(waiting[place + 1 : place + _HEADER], "big"))
    return place > 0
