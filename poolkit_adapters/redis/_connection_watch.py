"""What a pool knows of one redis-py connection: whether it is clean, has a changed session, or is leased.

A connection is handed out only if, at that moment, the peer has not closed it and no unread data is left in the
socket or in the buffers of TLS, the stream and the parser. Every checkout checks this again with one system call, no
matter how recently the connection was used, opened or checked. Unread data is one of three things: a push message of
RESP3 (handled here), the reply to another caller's command (the next caller must never see it), or the end of the
stream.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import weakref
from collections.abc import Callable
from enum import Enum
from functools import partial
from secrets import token_hex
from typing import Any

from ._driver import (
    MARKS_FOR_RECONNECT,
    NO_WAIT,
    Abstract,
    AsyncAbstract,
    AsyncNativeParser,
    CacheProxy,
    NativeParser,
    NativePush,
    async_connection,
    exceptions,
    native_holds,
    parsers,
)
from ._footprint import NOTED, Footprint

__all__ = (
    "ANSWERED",
    "IDLE",
    "USED",
    "AsyncConnectionWatch",
    "ConnectionWatch",
    "State",
    "disconnect_now",
    "lease_begins",
    "passing_through",
)

_CLOSED = "Connection closed by server."
_PUSH = b">"
_PEEK = 1 << 17
_MARK = "_poolkit_handled"
_OLD_TLS = sys.version_info < (3, 11)
"""asyncio's TLS does not report that the peer closed TLS, and ``is_closing()`` fails after a lost connection."""
_ROUNDS = 64
"""How often the event loop may read what has arrived while more keeps arriving."""
_poll: Callable[[], Any] | None = getattr(select, "poll", None)  # absent on Windows


class State(Enum):
    """Who has the connection, in the terms of redis-py's metrics."""

    OPENING = "opening"
    IDLE = "idle"
    USED = "used"


ANSWERED = (exceptions.ResponseError, exceptions.WatchError)
"""What a lease may end with although every reply has been read. Any other exception, also one of the driver, may come
from a callback between two replies of a pipeline. A connection whose network failed is closed already."""

IDLE, USED = State.IDLE, State.USED  # looking up an enum member is the slowest part of each line that needs one


def _forget_token(connection: Any) -> None:
    if getattr(connection, "_re_auth_token", None) is not None:
        connection.set_re_auth_token(None)


def lease_begins(watch: ConnectionWatch | AsyncConnectionWatch) -> None:
    """Note that the connection is in use, and which exception its user is handling.

    A mark identifies the exception, and keeps neither it nor the frames of its traceback alive. An id could be used
    again, and most exceptions have no weak references.
    """
    watch.state, handled = USED, sys.exc_info()[1]
    watch.handled = None if handled is None else handled.__dict__.setdefault(_MARK, object())


def passing_through(
    watch: ConnectionWatch | AsyncConnectionWatch, passing: BaseException | None
) -> BaseException | None:
    """Return the exception that ends the lease of a connection: ``passing``, the current one, or None.

    An exception that was being handled when the lease began does not: its caller works in an ``except`` block.
    """
    handled, watch.handled = watch.handled, None
    return None if passing is None or passing.__dict__.get(_MARK) is handled else passing


class ConnectionWatch:
    """The state of one sync connection. Not thread-safe: only the current holder of the connection may call it."""

    __slots__ = (
        "_buffered",
        "_fileno",
        "_footprint",
        "_holds",
        "_kind",
        "_look_lock",
        "_number",
        "_pending",
        "_poll",
        "_sock",
        "connection",
        "counted",
        "handled",
        "inner",
        "inspectable",
        "opened_at",
        "recheck",
        "state",
        "uncertain",
    )

    def __init__(self, connection: Any, lock: Any) -> None:
        self.connection = connection
        self.inner = connection._conn if isinstance(connection, CacheProxy) else connection
        # with client-side caching another thread, holding the pool's lock, may read pushes from this connection
        self._look_lock = lock
        self.inspectable = isinstance(self.inner, Abstract) and type(self.inner).can_read is Abstract.can_read
        self.state = State.OPENING
        self.counted: State | None = None
        self.handled: object = None  # the mark of the exception that was being handled when the lease began
        self.opened_at = 0.0
        self.recheck = False  # whether work is due before the connection may be handed out, such as a new AUTH
        self.uncertain = False  # whether a reply to its last user may still arrive
        self._sock: Any = None
        self._fileno: Callable[[], int] | None = None
        self._number = -1
        self._pending: Callable[[], int] | None = None  # TLS only: number of bytes decrypted but unread
        self._poll: Callable[[int], Any] | None = None
        self._kind: type | None = None  # type of the last parser seen
        self._buffered = False
        self._holds: Callable[[Any], bool] | None = None  # of a parser written in C
        self._footprint: Footprint | None = None
        packer = getattr(self.inner, "_command_packer", None) if self.inspectable else None
        if packer is not None:
            self._footprint = Footprint(packer.pack, getattr(self.inner, "db", 0))
            self.inner._command_packer = self._footprint
            self.inner.disconnect = _noting(type(self.inner), weakref.ref(self.inner), self._footprint)

    def opened(self) -> None:
        """Record that the connection has just connected, with the current credentials."""
        self.recheck = self.uncertain = False
        _forget_token(self.inner)
        if self._footprint is not None:
            self._footprint.forget()

    def clean(self) -> bool:
        """Return whether the connection is open and has no unread data. Handles push messages that have arrived.

        Never waits and never raises. Costs one system call if there is nothing to read.
        """
        inner = self.inner
        if not self.inspectable:
            try:
                return not inner.can_read()
            except (exceptions.ConnectionError, exceptions.TimeoutError, OSError):
                return False  # the connection is dead
        sock = inner._sock
        if sock is None or (MARKS_FOR_RECONNECT and inner.should_reconnect()):
            return False
        if sock is not self._sock:
            self._arm(sock)
        poll = self._poll
        if poll is None or self.recheck or poll(0):
            return self._look(inner)
        if self._fileno() != self._number:  # type: ignore[misc]
            return False  # closed without redis-py's knowledge; another socket may have that descriptor by now
        if self._left_over(inner) or (self._pending is not None and self._pending()):
            return self._look(inner)
        return True

    def _arm(self, sock: Any) -> None:
        """Poll this socket from now on. Compare sockets, not descriptors, because descriptors are reused."""
        self._sock, self._poll = sock, None
        self._pending = getattr(sock, "pending", None)
        if _poll is None:
            return
        try:
            poll = _poll()
            self._fileno = sock.fileno
            self._number = sock.fileno()
            poll.register(self._number, select.POLLIN)
        except (OSError, ValueError, TypeError, AttributeError):
            return
        self._poll = poll.poll

    def _look(self, inner: Any) -> bool:
        """Examine data that may have arrived. Handle push messages; return False for anything else."""
        try:
            with self._look_lock:
                ready: bool | None = True
                while True:
                    if not ready:
                        break
                    ready = False if self._ends_within_a_record() else self._next_is_push(inner)
            if ready is False:
                return False
            if self.uncertain:
                word = token_hex(16)
                inner.send_command("ECHO", word, check_health=False)
                if inner.read_response(disable_decoding=True) != word.encode():
                    return False
            self.recheck = self.uncertain = False
            if getattr(inner, "_re_auth_token", None) is not None:
                inner.re_auth()
                return self.clean()  # more than the reply to AUTH may have arrived
        except Exception:  # noqa: BLE001  after any error the state of the connection is unknown
            return False
        return inner._sock is not None

    def _ends_within_a_record(self) -> bool:
        """Return whether the last TLS record in the socket is incomplete.

        Reading it would move its first part into a buffer that neither poll() nor pending() shows.
        """
        if self._pending is None or self._poll is None or not self._poll(0):
            return False
        data = socket.socket.recv(self._sock, _PEEK, socket.MSG_PEEK)  # SSLSocket.recv() refuses flags
        place = 0
        while place + 5 <= len(data):
            place += 5 + int.from_bytes(data[place + 3 : place + 5], "big")
        return place != len(data) < _PEEK

    def _next_is_push(self, inner: Any) -> bool | None:
        """Handle the next message if it is a push and return True.

        Return None if nothing has arrived, and False for a reply or a part of one.
        """
        parser: Any = inner._parser
        if isinstance(parser, NativeParser):
            reader = parser._reader
            if not native_holds(parser) and not parser.read_from_socket(timeout=0, raise_on_timeout=False):
                return None
            handle = getattr(parser, "handle_push_response", None)
            if handle is None or NativePush is None:
                return False
            message = reader.gets()
            if not isinstance(message, NativePush):
                return False
            handle(message)
            return True
        if not isinstance(parser, (parsers._RESP2Parser, parsers._RESP3Parser)):
            return False if inner.can_read(0) else None
        buffer = parser._buffer
        if not buffer.can_read(0):
            return None
        raw = buffer._buffer
        place = raw.tell()
        first = raw.read(1)
        raw.seek(place)
        if first != _PUSH or not isinstance(parser, parsers._RESP3Parser):
            return False
        parser.read_response(push_request=True, **NO_WAIT)
        return True

    def reusable(self) -> bool:
        """Return whether a released connection may be kept. Does no I/O; unread data is examined at the checkout."""
        if MARKS_FOR_RECONNECT and self.connection.should_reconnect():
            return False
        if not self.inspectable:
            return True
        footprint = self._footprint
        return self.inner._sock is not None and (footprint is None or not footprint.changed)

    def doubt(self) -> bool:
        """Return whether the connection may be kept if it answers an ``ECHO`` before its next use.

        An exception may have come between a command and its reply. A reply that has not arrived cannot be seen.
        """
        inner = self.inner  # a proxy's replies may be read by another thread
        plain = inner is self.connection and self.inspectable and getattr(inner, "_re_auth_token", None) is None
        self.recheck = self.uncertain = plain and self.reusable()
        return self.uncertain

    def failed(self) -> bool:
        """Return whether the network failed while the connection was in use."""
        return self._footprint is not None and self._footprint.failed

    def _left_over(self, inner: Any) -> bool:
        """Return whether the parser holds bytes that were read from the socket, which poll does not show."""
        if inner is not self.connection:  # another thread may be reading
            with self._look_lock:
                return self._in_parser(inner._parser)
        return self._in_parser(inner._parser)

    def _in_parser(self, parser: Any) -> bool:
        kind = type(parser)
        if kind is not self._kind:
            self._kind = kind
            self._buffered = issubclass(kind, (parsers._RESP2Parser, parsers._RESP3Parser))
            self._holds = native_holds if issubclass(kind, NativeParser) else None
        try:
            if self._buffered:
                raw = parser._buffer._buffer
                if not raw.read(1):
                    return False
                raw.seek(-1, 1)
                return True
            holds = self._holds
            return holds is not None and holds(parser)
        except (AttributeError, ValueError):  # another thread is disconnecting the connection
            return True


class AsyncConnectionWatch:
    """The state of one asyncio connection. Call it from that connection's event loop only."""

    __slots__ = (
        "_footprint",
        "_holds",
        "_kind",
        "_lost",
        "_poll",
        "_python",
        "_writer",
        "closed",
        "connection",
        "counted",
        "handled",
        "inspectable",
        "lenient",
        "loop",
        "opened_at",
        "recheck",
        "state",
        "uncertain",
    )

    def __init__(self, connection: Any, *, pushes: bool = False) -> None:
        self.connection = connection
        # a custom class does not show what has arrived: where pushes are possible, redis-py assumes a push
        self.lenient = pushes and not isinstance(connection, AsyncAbstract)
        self.loop = asyncio.get_running_loop()
        kind = type(connection)
        self.inspectable = isinstance(connection, AsyncAbstract) and (
            getattr(kind, "can_read", None) is getattr(AsyncAbstract, "can_read", None)
            and kind.can_read_destructive is AsyncAbstract.can_read_destructive
        )
        self.state = State.OPENING
        self.counted: State | None = None
        self.handled: object = None  # the mark of the exception that was being handled when the lease began
        self.opened_at = 0.0
        self.recheck = False
        self.uncertain = False
        self.closed: asyncio.Future[None] | None = None  # set if disconnect() waits for the close
        self._writer: Any = None
        self._lost: Callable[[], Any] = bool  # whether the transport of this writer is closed
        self._poll: Callable[[int], Any] | None = None
        self._kind: type | None = None  # type of the last parser seen
        self._holds: Callable[[Any], bool] | None = None  # of a parser written in C
        self._python: Any = None  # the same type, if it is a parser written in Python
        self._footprint: Footprint | None = None
        if self.inspectable:
            ref = weakref.ref(connection)  # avoids a cycle: an abandoned connection is freed with its last reference
            self._footprint = Footprint(kind.pack_command, getattr(connection, "db", 0))
            connection.pack_command = _packing(kind, ref, self._footprint)
            connection.disconnect = _disconnecting(kind, ref, self._footprint)

    def opened(self) -> None:
        """Record that the connection has just connected, with the current credentials."""
        self.recheck = self.uncertain = False
        _forget_token(self.connection)
        if self._footprint is not None:
            self._footprint.forget()

    def clean(self) -> bool:
        """Return whether the connection is open and has no unread data. If False, call :meth:`look`."""
        if not self.inspectable or self.recheck:
            return False
        connection = self.connection
        reader = connection._reader
        # an exception or the end of the stream, as its methods say; each would be one more call
        if reader is None or reader._buffer or reader._eof or reader._exception is not None:
            return False
        writer = connection._writer
        if writer is not self._writer:
            self._arm(writer)
        parser: Any = connection._parser
        if (parser._buffer or parser._chunks) if type(parser) is self._python else self._in_parser():
            return False
        if self._lost() or (MARKS_FOR_RECONNECT and connection.should_reconnect()):
            return False
        poll = self._poll
        return poll is None or not poll(0)

    def _arm(self, writer: Any) -> None:
        """Poll the socket too: the reader's buffer lacks what has arrived since the event loop last read.

        The poll uses the descriptor only. Callers check first that the transport is open, because another socket may
        get the same descriptor after a close.
        """
        self._writer, self._poll = writer, None
        self._lost = partial(_lost, writer) if _OLD_TLS else writer.transport.is_closing
        if _poll is None:
            return
        try:
            poll = _poll()
            poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
        except (OSError, ValueError, TypeError, AttributeError):
            return
        self._poll = poll.poll

    def _in_parser(self) -> bool:
        """Return whether the parser holds bytes that were read from the stream."""
        parser: Any = self.connection._parser
        kind = type(parser)
        if kind is not self._kind:
            self._kind, self._holds = kind, native_holds if issubclass(kind, AsyncNativeParser) else None
            python = self._holds is None and hasattr(parser, "_buffer") and hasattr(parser, "_chunks")
            self._python = kind if python else None
        if self._holds is not None:
            return self._holds(parser)
        # _chunks: the beginning of a message whose reader has stopped waiting
        return bool(getattr(parser, "_buffer", b"") or getattr(parser, "_chunks", ()))

    async def look(self) -> bool:
        """Do the check of :meth:`clean`, but let the loop read, handle push messages and re-authenticate if asked to.

        A cancellation during this call leaves the connection in an unknown state.
        """
        connection = self.connection
        try:
            if not self.inspectable:
                probe = getattr(connection, "can_read", None) or connection.can_read_destructive
                return not await probe() or self.lenient
            for _ in range(_ROUNDS):
                for _ in range(2):  # in its next turn the loop finds the socket readable, in the one after it reads
                    if not self._pending():
                        await asyncio.sleep(0)
                while self._pending():
                    if not await self._handle_push():
                        return False
                if self.ended() or (MARKS_FOR_RECONNECT and connection.should_reconnect()):
                    return False
                if self.uncertain:
                    word = token_hex(16)
                    await connection.send_command("ECHO", word, check_health=False)
                    if await connection.read_response(disable_decoding=True) != word.encode():
                        return False
                    self.uncertain = False
                if getattr(connection, "_re_auth_token", None) is not None:
                    await connection.re_auth()
                self.recheck = False
                if self.clean():  # last: more may have arrived since
                    return True
        except Exception:  # noqa: BLE001  after any error the state of the connection is unknown
            pass
        return False

    def _pending(self) -> bool:
        reader = self.connection._reader
        return reader is not None and (bool(reader._buffer) or self._in_parser())

    async def _handle_push(self) -> bool:
        """Handle the next message if it is a push. Return False for a reply or a part of a message."""
        connection = self.connection
        parser: Any = connection._parser
        reader = connection._reader
        if isinstance(parser, AsyncNativeParser):
            handle = getattr(parser, "handle_push_response", None)
            if handle is None or NativePush is None:
                return False
            if not native_holds(parser):
                await parser.read_from_socket()  # returns at once, because data has arrived
            message = parser._reader.gets()
            if not isinstance(message, NativePush):
                return False
            await handle(message)
            return True
        if not isinstance(parser, parsers._AsyncRESP3Parser):
            return False
        if (parser._buffer or bytes(reader._buffer))[:1] != _PUSH:
            return False
        # call the parser, not the connection: redis-py 5's connection reads on after a push if hiredis is installed
        async with async_connection.async_timeout(0):  # raises TimeoutError for an incomplete message
            await parser.read_response(push_request=True)
        return True

    def reusable(self) -> bool:
        """Return whether a released connection may be kept."""
        connection = self.connection
        if MARKS_FOR_RECONNECT and connection.should_reconnect():
            return False
        if not self.inspectable:
            return True
        if self._footprint is not None and self._footprint.changed:
            return False
        return bool(connection.is_connected)

    def doubt(self) -> bool:
        """Return whether the connection may be kept if it answers an ``ECHO`` before its next use.

        An exception may have come between a command and its reply. A reply that has not arrived cannot be seen.
        """
        plain = self.inspectable and getattr(self.connection, "_re_auth_token", None) is None
        self.recheck = self.uncertain = plain and self.reusable()
        return self.uncertain

    def failed(self) -> bool:
        """Return whether the network failed while the connection was in use."""
        return self._footprint is not None and self._footprint.failed

    def ended(self) -> bool:
        """Return whether the peer or this side has closed the connection, as far as the event loop knows."""
        reader = self.connection._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            return True
        return _lost(self.connection._writer)

    def drop(self) -> None:
        """Close only the socket: the event loop has ended, or belongs to the parent process."""
        writer = getattr(self.connection, "_writer", None)
        if not self.inspectable or writer is None:
            return
        sock = writer.get_extra_info("socket")
        getattr(sock, "_sock", sock).close()
        self.connection._reader = self.connection._writer = None


def _lost(writer: Any) -> bool:
    """Return whether the transport is closed or closing. Another socket may then get its descriptor at any moment."""
    transport = writer.transport
    if _OLD_TLS and hasattr(transport, "_ssl_protocol"):
        protocol = transport._ssl_protocol
        if protocol._transport is None or getattr(protocol, "_in_shutdown", False):
            return True
    return bool(transport.is_closing())


def _packing(kind: Any, ref: Callable[[], Any], footprint: Footprint) -> Callable[..., Any]:
    """Return a ``pack_command()`` for a connection. Every command passes through it before it is written."""

    def pack(*args: Any) -> Any:
        try:
            noted = args and NOTED[args[0]]
        except (TypeError, ValueError):
            noted = args  # not hashable, as a bytearray
        if noted:
            footprint.note(args)
        connection = ref()
        writer = connection._writer
        if writer is not None and _lost(writer):
            # writing would raise AttributeError (Python 3.12 and later) or RuntimeError (uvloop)
            disconnect_now(connection)
            raise exceptions.ConnectionError(_CLOSED)
        return kind.pack_command(connection, *args)

    return pack


def _noting(kind: Any, ref: Callable[[], Any], footprint: Footprint) -> Callable[..., None]:
    """Return a ``disconnect()`` for a sync connection. redis-py calls it while it handles a network error."""

    def disconnect(*args: Any, **kwargs: Any) -> None:
        footprint.disconnecting(sys.exc_info()[1])
        connection = ref()
        if connection is not None:  # otherwise the garbage collector finalizes the connection and its socket
            kind.disconnect(connection, *args, **kwargs)

    return disconnect


def _disconnecting(kind: Any, ref: Callable[[], Any], footprint: Footprint) -> Callable[..., Any]:
    """Return a ``disconnect()`` for an asyncio connection after which the socket is closed, however the call ends.

    redis-py drops the transport even if it is not closed yet. Under TLS the transport then waits up to 30 seconds for
    the peer to close TLS, and the server has one session more than the pool counts.
    """

    async def disconnect(*args: Any, **kwargs: Any) -> None:
        footprint.disconnecting(sys.exc_info()[1])
        connection = ref()
        writer = connection._writer
        try:
            await kind.disconnect(connection, *args, **kwargs)
        finally:
            if writer is not None:
                try:
                    writer.transport.abort()
                except (AttributeError, RuntimeError):
                    pass  # closed already, for example together with its event loop

    return disconnect


def disconnect_now(connection: Any) -> None:
    """Run ``disconnect(nowait=True)``, which never waits, to its end in this call."""
    try:
        coroutine = connection.disconnect(nowait=True)
    except TypeError:  # a custom class
        coroutine = connection.disconnect()
    try:
        coroutine.send(None)
    except StopIteration:
        return
    except RuntimeError:  # no event loop is running
        pass
    coroutine.close()
    if hasattr(connection, "_close"):
        connection._close()
