"""What the pool knows about one connection of redis-py: is it clean, was its session changed, is it lent out.

A connection is handed out only if, at that moment, the peer has not closed it and nothing is to be read from it:
not from the socket, not from the buffers of TLS, of the stream and of the parser. Each checkout asks anew, with one
system call; how recently the connection was used, opened or looked at excuses nothing. Where something is to be read,
it is one of three: a push message of RESP3 (handled here), the reply to another caller's command (never to be seen by
the next one), or the end of the stream.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import weakref
from collections.abc import Callable
from enum import Enum
from typing import Any

from poolkit_adapters.redis._driver import (
    HIREDIS_PUSH,
    MARKS_FOR_RECONNECT,
    NO_WAIT,
    Abstract,
    AsyncAbstract,
    CacheProxy,
    async_connection,
    exceptions,
    parsers,
)
from poolkit_adapters.redis._footprint import Footprint

__all__ = ("IDLE", "USED", "AsyncGuard", "Guard", "State", "disconnect_now")

_CLOSED = "Connection closed by server."
_PUSH = b">"
_PEEK = 1 << 17
_OLD_TLS = sys.version_info < (3, 11)
"""asyncio's TLS does not say that the peer has said goodbye, and ``is_closing()`` fails once the connection is lost."""
_ROUNDS = 64
"""Times that the event loop is given to read what has arrived, while more arrives."""
_poll: Callable[[], Any] | None = getattr(select, "poll", None)  # absent on Windows


class State(Enum):
    """Who has the connection, as far as redis-py's bookkeeping goes."""

    OPENING = "opening"
    IDLE = "idle"
    USED = "used"


IDLE, USED = State.IDLE, State.USED  # to find a member of an enum takes longer than all else in a line


def _forget_token(connection: Any) -> None:
    if getattr(connection, "_re_auth_token", None) is not None:
        connection.set_re_auth_token(None)


class Guard:
    """Of one sync connection. Not thread-safe: called by whoever has the connection."""

    __slots__ = (
        "_buffered",
        "_fileno",
        "_footprint",
        "_hiredis",
        "_kind",
        "_look_lock",
        "_number",
        "_pending",
        "_poll",
        "_sock",
        "connection",
        "counted",
        "doubt",
        "inner",
        "state",
        "watched",
    )

    def __init__(self, connection: Any, lock: Any) -> None:
        self.connection = connection
        self.inner = connection._conn if isinstance(connection, CacheProxy) else connection
        # another thread may read pushes from a connection of a cached pool, holding the pool's lock
        self._look_lock = lock
        self.watched = isinstance(self.inner, Abstract) and type(self.inner).can_read is Abstract.can_read
        self.state = State.OPENING
        self.counted: State | None = None
        self.doubt = False  # something is to be done before it may be handed out
        self._sock: Any = None
        self._fileno: Callable[[], int] | None = None
        self._number = -1
        self._pending: Callable[[], int] | None = None  # of a TLS socket: bytes that it has decrypted already
        self._poll: Callable[[int], Any] | None = None
        self._kind: type | None = None  # of parser that was seen last
        self._buffered = self._hiredis = False
        self._footprint: Footprint | None = None
        packer = getattr(self.inner, "_command_packer", None) if self.watched else None
        if packer is not None:
            self._footprint = Footprint(packer.pack, getattr(self.inner, "db", 0))
            self.inner._command_packer = self._footprint
            self.inner.disconnect = _noting(type(self.inner), weakref.ref(self.inner), self._footprint)

    def opened(self) -> None:
        """The connection was connected (again), with the credentials of now."""
        self.doubt = False
        _forget_token(self.inner)
        if self._footprint is not None:
            self._footprint.forget()

    def clean(self) -> bool:
        """Whether the connection stands and nothing is to be read from it. Push messages are handled on the way.

        Never waits, never raises; one system call if there is nothing.
        """
        inner = self.inner
        if not self.watched:
            try:
                return not inner.can_read()
            except (exceptions.ConnectionError, exceptions.TimeoutError, OSError):
                return False  # it is dead
        sock = inner._sock
        if sock is None or (MARKS_FOR_RECONNECT and inner.should_reconnect()):
            return False
        if sock is not self._sock:
            self._arm(sock)
        poll = self._poll
        if poll is None or self.doubt or poll(0):
            return self._look(inner)
        if self._fileno() != self._number:  # type: ignore[misc]
            return False  # closed behind redis-py's back; the number may be another socket's by now
        if self._left_over(inner) or (self._pending is not None and self._pending()):
            return self._look(inner)
        return True

    def _arm(self, sock: Any) -> None:
        """Poll this socket from now on. Descriptors are reused, hence the identity of the socket counts."""
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
        """Something is to be read, or may be: handle push messages; anything else is the end."""
        try:
            with self._look_lock:
                ready: bool | None = True
                while ready:
                    ready = False if self._ends_within_a_record() else self._next_is_push(inner)
            if ready is False:
                return False
            self.doubt = False
            if getattr(inner, "_re_auth_token", None) is not None:
                inner.re_auth()
                return self.clean()  # more than the reply to AUTH may have arrived
        except Exception:  # noqa: BLE001  whatever went wrong: the state of the connection is unknown
            return False
        return inner._sock is not None

    def _ends_within_a_record(self) -> bool:
        """Whether the last TLS record in the socket is not complete.

        To read it would move its first part to where neither poll() nor pending() shows it.
        """
        if self._pending is None or self._poll is None or not self._poll(0):
            return False
        data = socket.socket.recv(self._sock, _PEEK, socket.MSG_PEEK)  # SSLSocket.recv() refuses flags
        place = 0
        while place + 5 <= len(data):
            place += 5 + int.from_bytes(data[place + 3 : place + 5], "big")
        return place != len(data) < _PEEK

    def _next_is_push(self, inner: Any) -> bool | None:
        """Handle the next message if it is a push: True. None: nothing there. False: a reply, or part of one."""
        parser: Any = inner._parser
        if isinstance(parser, parsers._HiredisParser):
            reader = parser._reader
            if not reader.has_data() and not parser.read_from_socket(timeout=0, raise_on_timeout=False):
                return None
            handle = getattr(parser, "handle_push_response", None)
            if handle is None or HIREDIS_PUSH is None:
                return False
            message = reader.gets()
            if not isinstance(message, HIREDIS_PUSH):
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

    def sound(self) -> bool:
        """Whether the returned connection may be kept. Asks nobody; what is left to read is looked at later."""
        if MARKS_FOR_RECONNECT and self.connection.should_reconnect():
            return False
        if not self.watched:
            return True
        footprint = self._footprint
        return self.inner._sock is not None and (footprint is None or not footprint.changed)

    def failed(self) -> bool:
        """Whether the network failed while the connection was in use."""
        return self._footprint is not None and self._footprint.failed

    def _left_over(self, inner: Any) -> bool:
        """Whether bytes that were read from the socket wait in the parser, where poll does not see them."""
        if inner is not self.connection:  # another thread may be reading
            with self._look_lock:
                return self._in_parser(inner._parser)
        return self._in_parser(inner._parser)

    def _in_parser(self, parser: Any) -> bool:
        kind = type(parser)
        if kind is not self._kind:
            self._kind = kind
            self._buffered = issubclass(kind, (parsers._RESP2Parser, parsers._RESP3Parser))
            self._hiredis = issubclass(kind, parsers._HiredisParser)
        try:
            if self._buffered:
                raw = parser._buffer._buffer
                if not raw.read(1):
                    return False
                raw.seek(-1, 1)
                return True
            return self._hiredis and bool(parser._reader.has_data())
        except (AttributeError, ValueError):  # another thread is disconnecting it
            return True


class AsyncGuard:
    """Of one asyncio connection. Called from its event loop."""

    __slots__ = (
        "_footprint",
        "_hiredis",
        "_kind",
        "_poll",
        "_writer",
        "closed",
        "connection",
        "counted",
        "doubt",
        "lenient",
        "loop",
        "state",
        "watched",
    )

    def __init__(self, connection: Any, *, pushes: bool = False) -> None:
        self.connection = connection
        # of a foreign class nobody can tell what is to be read: redis-py takes it for a push where there may be some
        self.lenient = pushes and not isinstance(connection, AsyncAbstract)
        self.loop = asyncio.get_running_loop()
        kind = type(connection)
        self.watched = isinstance(connection, AsyncAbstract) and (
            getattr(kind, "can_read", None) is getattr(AsyncAbstract, "can_read", None)
            and kind.can_read_destructive is AsyncAbstract.can_read_destructive
        )
        self.state = State.OPENING
        self.counted: State | None = None
        self.doubt = False
        self.closed: asyncio.Future[None] | None = None  # somebody waits for its end
        self._writer: Any = None
        self._poll: Callable[[int], Any] | None = None
        self._kind: type | None = None  # of parser that was seen last
        self._hiredis = False
        self._footprint: Footprint | None = None
        if self.watched:
            ref = weakref.ref(connection)  # no cycle: an abandoned connection goes when its last user goes
            self._footprint = Footprint(_packing(kind, ref), getattr(connection, "db", 0))
            connection.pack_command = self._footprint.pack
            connection.disconnect = _disconnecting(kind, ref, self._footprint)

    def opened(self) -> None:
        """The connection was connected (again), with the credentials of now."""
        self.doubt = False
        _forget_token(self.connection)
        if self._footprint is not None:
            self._footprint.forget()

    def clean(self) -> bool:
        """Whether the connection stands and nothing at all is to be read from it. False: look closer."""
        if not self.watched or self.doubt:
            return False
        connection = self.connection
        reader = connection._reader
        writer = connection._writer
        if reader is None or reader._buffer or reader.at_eof() or reader.exception() is not None or _lost(writer):
            return False
        if self._in_parser() or (MARKS_FOR_RECONNECT and connection.should_reconnect()):
            return False
        if writer is not self._writer:
            self._arm(writer)
        poll = self._poll
        return poll is None or not poll(0)

    def _arm(self, writer: Any) -> None:
        """Poll the socket too: what has arrived since the event loop last looked is not in the reader's buffer.

        Only the number of the descriptor is polled. Whoever asks makes sure before that the transport is open: after
        that the number may be another socket's.
        """
        self._writer, self._poll = writer, None
        if _poll is None:
            return
        try:
            poll = _poll()
            poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
        except (OSError, ValueError, TypeError, AttributeError):
            return
        self._poll = poll.poll

    def _in_parser(self) -> bool:
        """Whether bytes that were read from the stream wait in the parser."""
        parser: Any = self.connection._parser
        kind = type(parser)
        if kind is not self._kind:
            self._kind, self._hiredis = kind, issubclass(kind, parsers._AsyncHiredisParser)
        if self._hiredis:
            return bool(parser._reader.has_data())
        # _chunks: the beginning of a message that nobody has waited for
        return bool(getattr(parser, "_buffer", b"") or getattr(parser, "_chunks", ()))

    async def look(self) -> bool:
        """As :meth:`clean`, with time: lets the loop read, handles push messages, authenticates anew if asked to.

        A cancellation in here leaves the connection in an unknown state.
        """
        connection = self.connection
        try:
            if not self.watched:
                probe = getattr(connection, "can_read", None) or connection.can_read_destructive
                return not await probe() or self.lenient
            for _ in range(_ROUNDS):
                for _ in range(2):  # the loop's next turn finds the socket readable, the one after has read it
                    if not self._pending():
                        await asyncio.sleep(0)
                while self._pending():
                    if not await self._handle_push():
                        return False
                if self.ended() or (MARKS_FOR_RECONNECT and connection.should_reconnect()):
                    return False
                if getattr(connection, "_re_auth_token", None) is not None:
                    await connection.re_auth()
                self.doubt = False
                if self.clean():  # last: more may have arrived since
                    return True
        except Exception:  # noqa: BLE001  whatever went wrong: the state of the connection is unknown
            pass
        return False

    def _pending(self) -> bool:
        reader = self.connection._reader
        return reader is not None and (bool(reader._buffer) or self._in_parser())

    async def _handle_push(self) -> bool:
        """Handle the next message if it is a push; False: it is a reply, or part of a message."""
        connection = self.connection
        parser: Any = connection._parser
        reader = connection._reader
        if isinstance(parser, parsers._AsyncHiredisParser):
            handle = getattr(parser, "handle_push_response", None)
            if handle is None or HIREDIS_PUSH is None:
                return False
            if not parser._reader.has_data():
                await parser.read_from_socket()  # returns at once, there is something
            message = parser._reader.gets()
            if not isinstance(message, HIREDIS_PUSH):
                return False
            await handle(message)
            return True
        if not isinstance(parser, parsers._AsyncRESP3Parser):
            return False
        if (parser._buffer or bytes(reader._buffer))[:1] != _PUSH:
            return False
        # the parser itself: redis-py 5's connection reads on after a push if hiredis is installed too
        async with async_connection.async_timeout(0):  # half a message: TimeoutError
            await parser.read_response(push_request=True)
        return True

    def sound(self) -> bool:
        """Whether the returned connection may be kept."""
        connection = self.connection
        if MARKS_FOR_RECONNECT and connection.should_reconnect():
            return False
        if not self.watched:
            return True
        if self._footprint is not None and self._footprint.changed:
            return False
        return bool(connection.is_connected)

    def failed(self) -> bool:
        """Whether the network failed while the connection was in use."""
        return self._footprint is not None and self._footprint.failed

    def ended(self) -> bool:
        """Whether the peer, or this side, has closed the connection, as far as the event loop knows."""
        reader = self.connection._reader
        if reader is None or reader.at_eof() or reader.exception() is not None:
            return True
        return _lost(self.connection._writer)

    def drop(self) -> None:
        """Close the socket and nothing else: its event loop is dead, or belongs to the parent process."""
        writer = getattr(self.connection, "_writer", None)
        if not self.watched or writer is None:
            return
        sock = writer.get_extra_info("socket")
        getattr(sock, "_sock", sock).close()
        self.connection._reader = self.connection._writer = None


def _lost(writer: Any) -> bool:
    """Whether the transport is closed, or about to be: its descriptor may be another one's at any moment."""
    transport = writer.transport
    if _OLD_TLS and hasattr(transport, "_ssl_protocol"):
        protocol = transport._ssl_protocol
        if protocol._transport is None or getattr(protocol, "_in_shutdown", False):
            return True
    return bool(transport.is_closing())


def _packing(kind: Any, ref: Callable[[], Any]) -> Callable[..., Any]:
    """``pack_command()`` of a connection, which every command passes before it is written."""

    def pack(*args: Any) -> Any:
        connection = ref()
        writer = connection._writer
        if writer is not None and _lost(writer):
            # to write would raise AttributeError (Python 3.12 and later) or RuntimeError (uvloop)
            disconnect_now(connection)
            raise exceptions.ConnectionError(_CLOSED)
        return kind.pack_command(connection, *args)

    return pack


def _noting(kind: Any, ref: Callable[[], Any], footprint: Footprint) -> Callable[..., None]:
    """``disconnect()`` of a sync connection, which redis-py calls in the handler of a network error."""

    def disconnect(*args: Any, **kwargs: Any) -> None:
        footprint.disconnecting(sys.exc_info()[1])
        connection = ref()
        if connection is not None:  # else the garbage collector finalizes it, and its socket too
            kind.disconnect(connection, *args, **kwargs)

    return disconnect


def _disconnecting(kind: Any, ref: Callable[[], Any], footprint: Footprint) -> Callable[..., Any]:
    """``disconnect()`` of a connection, after which the socket is closed, in whatever way it ends.

    redis-py lets go of the transport also where it has not closed yet. Under TLS it then waits for the peer's goodbye,
    up to 30 seconds, and the server has a session more than the pool knows of.
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
                    pass  # closed already; with its event loop, for instance

    return disconnect


def disconnect_now(connection: Any) -> None:
    """``disconnect(nowait=True)``, which waits for nothing, run to its end here and now."""
    try:
        coroutine = connection.disconnect(nowait=True)
    except TypeError:  # a foreign class
        coroutine = connection.disconnect()
    try:
        coroutine.send(None)
    except StopIteration:
        return
    except RuntimeError:  # no running loop
        pass
    coroutine.close()
    if hasattr(connection, "_close"):
        connection._close()
