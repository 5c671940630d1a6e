"""A look at an idle connection that asks the server nothing and takes nothing from the driver."""

from __future__ import annotations

import select
import socket
from typing import Any

__all__ = ("looks_alive",)

_poll = getattr(select, "poll", None)
_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # Linux: the peer has closed, whatever is still to be read before that
_GONE = _HUNG_UP | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0) | getattr(select, "POLLNVAL", 0)

_UNASKED = b"ANS"
"""What a PostgreSQL server sends at any time (documentation, 54.2.7): NotificationResponse, NoticeResponse,
ParameterStatus. An ErrorResponse on an idle connection is the FATAL one that ends it."""
_SEALED = b"\x00\x17"
"""How a message begins that only the driver can read: a packet of GSSAPI encryption (its length), a TLS record of
application data. A TLS alert (0x15) is the end."""
_HEADER = 5  # type and length; the length counts itself and not the type
_GLANCE = 4096


def looks_alive(driver: Any) -> bool:
    """Whether the driver's connection may be of use: neither side has closed it, nothing unexpected waits in it.

    Attributes as in psycopg, psycopg2 (``closed``, ``fileno()``) and asyncpg (``is_closed()``); a driver that
    has none of them is taken to be alive. Never blocks; nothing is read from the socket, so that a notification
    that waits there is still the driver's to deliver.
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
    poll = _poll()  # needs no descriptor of its own
    poll.register(number, select.POLLIN | _HUNG_UP)
    found = poll.poll(0)
    if not found:
        return True
    if found[0][1] & _GONE:
        return False
    # psycopg and psycopg2 alone have both fileno() and notifies: what waits is in PostgreSQL's protocol
    return hasattr(driver, "notifies") and only_unasked(_glance(number))


def _glance(number: int) -> bytes:
    """The first bytes that wait in a socket, which stay there; none: the peer has closed, or the socket is broken."""
    sock = socket.socket(fileno=number)
    try:
        return sock.recv(_GLANCE, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
    except OSError:
        return b""
    finally:
        sock.detach()


def only_unasked(waiting: bytes) -> bool:
    """Whether nothing waits but messages that a PostgreSQL server may send on its own."""
    if waiting[:1] and waiting[:1] in _SEALED:
        return True  # whatever it is, the ping finds it out, or the hang-up that follows a FATAL message
    place = 0
    while place < len(waiting):
        if waiting[place] not in _UNASKED:
            return False
        place += 1 + max(4, int.from_bytes(waiting[place + 1 : place + _HEADER], "big"))
    return place > 0
