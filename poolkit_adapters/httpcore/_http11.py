"""HTTP/1.1 messages in their usual form: writes requests and parses responses. Does no I/O.

h11 takes about a third of the CPU time of a request. So on a connection that is reused, this module writes the request
and parses the response, by h11's grammar. ``map`` and ``translate`` work on a whole head in C. That takes less time
than regular expressions.

Only the usual form is parsed here. Everything else goes to h11, from the first byte of the response or from the start
of a chunk: informational and switching responses, HTTP/1.0, folded lines, bare line feeds, repeated or contradictory
lengths, chunk extensions, trailers, and whatever is malformed. So h11 alone decides what is refused, and a response
means the same with and without this module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import compress

import h11

from ._driver import httpcore

__all__ = ("Chunks", "Heads", "Incoming", "Length", "UntilEnd", "Whole", "hand_over", "head_ends", "parse")

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"
_NAME = re.compile(_TOKEN)
_STATUS = re.compile(rb"HTTP/1\.1 ([2-9][0-9]{2})(?: ([^\x00\n\r\x0b\x0c]*))?")
_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})\r\n")

_INNER = bytes(set(range(256)) - set(b"\0\n\r\x0b\x0c"))
"""The bytes that the lines of a head consist of, without their ends."""
_VISIBLE = bytes(range(0x21, 0x7F))
"""The bytes that the target of a request consists of."""
_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"PATCH", b"DELETE", b"QUERY"})

_BODILESS = frozenset({204, 304})
_MOST_DIGITS = 20  # h11's limit of a Content-Length
MOST_HEAD = 100 * 1024
"""Bytes of an incomplete head, or of a chunk's first line, after which h11 refuses the response."""

_PLAIN, _HOST, _LENGTH, _CODING, _CONNECTION, _UPGRADE, _INVALID = range(7)
_SPECIAL = {
    b"host": _HOST, b"content-length": _LENGTH, b"transfer-encoding": _CODING, b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
}  # fmt: skip
_REMEMBERED, _LONGEST = 1000, 100
"""How many names, and how many status lines, are remembered, and their length. A full set is cleared."""


class _Kinds(dict[bytes, int]):
    """What the headers seen so far mean, by name as written. Saves a conversion to lower case for each of them."""

    def __missing__(self, name: bytes) -> int:
        if _NAME.fullmatch(name) is None:
            return _INVALID
        kind = _SPECIAL.get(name.lower(), _PLAIN)
        if len(name) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[name] = kind
        return kind


class _Statuses(dict[bytes, "tuple[int, bytes] | None"]):
    """Status and reason, by the status line. None: h11 must parse or refuse it."""

    def __missing__(self, line: bytes) -> tuple[int, bytes] | None:
        match = _STATUS.fullmatch(line)
        if match is None:
            return None
        status = int(match[1]), match[2] or b""
        if len(line) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[line] = status
        return status


_kinds = _Kinds()
_statuses = _Statuses()

_OPEN = frozenset(
    spelled
    for name in (b"Host", b"Accept", b"Accept-Encoding", b"Accept-Language", b"Connection", b"User-Agent")
    for spelled in (name, name.lower())
)
"""Names of request headers that hold no secrets."""
_USUAL = [(b"Connection", b"keep-alive")]
"""The headers of most requests that are not plain, apart from the host."""


class Heads:
    """Writes the heads of the requests on one connection.

    Most requests on it have the headers of the one before. So their lines are kept, and only a change is checked again.
    Headers that may hold a secret are not kept, because they would stay in memory while the connection is idle.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # one attribute for the headers and their lines, so that an interruption cannot leave those of two requests
        self._last: tuple[Sequence[tuple[bytes, bytes]] | None, tuple[bytes, int]] = (None, (b"", 0))

    def encode(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, int] | None:
        """Return the head of a request, and the length of its body (-1: chunked). None: h11 must write or refuse it."""
        if method not in _METHODS and (method == b"CONNECT" or _NAME.fullmatch(method) is None):
            return None
        if not target or target.translate(None, _VISIBLE):
            return None
        known, fields = self._last
        if headers != known:
            try:
                names, values = zip(*headers, strict=True)
                found = _fields(names, values)
            except (TypeError, ValueError):  # no headers, or those of another type: a bytearray may change
                copies = [(bytes(name), bytes(value)) for name, value in headers]
                return self.encode(method, target, copies) if copies else None
            if found is None:
                return None
            fields = found
            if _OPEN.issuperset(names):
                self._last = list(zip(names, values, strict=True)), fields
        return b"%b %b HTTP/1.1\r\n%b" % (method, target, fields[0]), fields[1]


def _fields(names: tuple[bytes, ...], values: tuple[bytes, ...]) -> tuple[bytes, int] | None:
    """Return the lines of the headers and the blank line, and the length of the body (-1: chunked), or None."""
    kinds = list(map(_kinds.__getitem__, names))
    headers = list(zip(names, values, strict=True))
    if kinds[0] != _HOST:
        if _HOST not in kinds:
            return None
        at = kinds.index(_HOST)
        headers.insert(0, headers.pop(at))
        kinds.insert(0, kinds.pop(at))
    _, *special = compress(headers, kinds)
    length = 0 if special == _USUAL else _length(special)
    if length is None:
        return None
    block = b"\r\n".join([*map(b": ".join, headers), b"\r\n"])
    # the only line ends are those between the headers, and no value starts or ends with a blank
    if block.translate(None, _INNER) != b"\r\n" * (len(headers) + 1) or tuple(map(bytes.strip, values)) != values:
        return None
    return block, length


def _length(special: Sequence[tuple[bytes, bytes]]) -> int | None:
    """Return the length of the body that these headers state (-1: chunked). None: h11 must write or refuse them."""
    length: int | None = None
    for name, value in special:
        kind = _SPECIAL.get(name.lower())
        if kind == _CONNECTION:
            if value.lower() != b"keep-alive":
                return None
        elif kind == _LENGTH and length is None and value.isdigit() and len(value) <= _MOST_DIGITS:
            length = int(value)
        elif kind == _CODING and length is None and value == b"chunked":
            length = -1
        else:
            return None
    return length or 0


class Whole:
    """A body that has arrived together with its head, and nothing after it."""

    __slots__ = ()

    done = True
    surplus = False
    odd: bytes | None = None
    failed: Exception | None = None

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return no parts: there are none left."""
        return ()

    def end(self) -> None:
        """Do nothing: the body is complete."""


WHOLE = Whole()


class Length:
    """A body of known length."""

    __slots__ = ("_left", "_total", "done", "surplus")

    odd: bytes | None = None
    failed: Exception | None = None

    def __init__(self, total: int) -> None:
        self._total = self._left = total
        self.done = False
        self.surplus = False

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return the parts of the body in ``data``."""
        left = self._left - len(data)
        if left <= 0:
            self.done = True
            if left < 0:
                self.surplus = True
                data = data[:left]
        self._left = max(0, left)
        return (data,) if data else ()

    def end(self) -> None:
        """Handle the end of the stream. Raises RemoteProtocolError if the body is incomplete."""
        raise httpcore.RemoteProtocolError(
            "peer closed connection without sending complete message body "
            f"(received {self._total - self._left} bytes, expected {self._total})"
        )


class UntilEnd:
    """A body that ends with the connection."""

    __slots__ = ("done", "surplus")

    odd: bytes | None = None
    failed: Exception | None = None

    def __init__(self) -> None:
        self.done = False
        self.surplus = True  # the connection cannot be reused

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return the parts of the body in ``data``."""
        return (data,) if data else ()

    def end(self) -> None:
        """Handle the end of the stream, which completes the body."""
        self.done = True


class Chunks:
    """A chunked body.

    ``odd`` becomes the rest, from the start of a chunk, that h11 must parse. ``failed`` becomes the error of a
    malformed chunk.
    """

    __slots__ = ("_after", "_left", "_rest", "done", "failed", "odd", "surplus")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current chunk that are still to come
        self._after = False  # whether its line end is still to come
        self._rest = b""  # the start of a line
        self.done = False
        self.surplus = False
        self.odd: bytes | None = None
        self.failed: Exception | None = None

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return the parts of the body in ``data``, one for each chunk."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        parts = []
        at, size, left = 0, len(data), self._left
        while at < size:
            if left:
                part = data[at : at + left]
                parts.append(part)
                at += len(part)
                left -= len(part)
                self._after = True
                continue
            if self._after:
                if data[at : at + 2] != b"\r\n":
                    if size - at < 2 and data[at:] == b"\r":
                        break
                    text = f"malformed chunk footer: {data[at : at + 2]!r}"
                    self.failed = httpcore.RemoteProtocolError(text)
                    at = size
                    break
                at += 2
                self._after = False
                continue
            line = _SIZE.match(data, at)
            if line is None:
                if b"\r\n" in data[at : at + 20] or size - at > 18:
                    self.odd = data[at:]
                    at = size
                break
            left = int(line[1], 16)
            if not left:
                end = line.end()
                if data[end : end + 2] == b"\r\n":
                    self.done = True
                    self.surplus = size > end + 2
                    at = size
                elif data[end:] not in (b"", b"\r"):  # trailers
                    self.odd = data[at:]
                    at = size
                break
            at = line.end()
        self._left = left
        self._rest = data[at:]
        return parts

    def end(self) -> None:
        """Handle the end of the stream. Raises RemoteProtocolError, because the body is incomplete."""
        raise httpcore.RemoteProtocolError(
            "peer closed connection without sending complete message body (incomplete chunked read)"
        )


Body = Length | Chunks | UntilEnd | Whole


class Incoming:
    """A response whose head has arrived."""

    __slots__ = ("body", "headers", "keep", "parts", "reason", "status")

    def __init__(
        self,
        status: tuple[int, bytes],
        headers: list[tuple[bytes, bytes]],
        keep: bool,
        body: Body,
        parts: Sequence[bytes],
    ) -> None:
        self.status, self.reason = status
        self.headers = headers
        self.keep = keep  # whether the server keeps the connection open after it
        self.body = body
        self.parts = parts  # of the body, that have arrived with the head


def head_ends(data: bytes) -> int:
    """Return where the blank line after the head starts, 0 if it has not arrived, or -1 if h11 must parse the head."""
    end = data.find(b"\r\n\r\n")
    if end >= 0:
        return end or -1
    if len(data) > MOST_HEAD or b"\n\n" in data or b"\n\r\n" in data or data[:9] != b"HTTP/1.1 "[: len(data)]:
        return -1
    return 0


def parse(data: bytes, end: int, bodiless: bool) -> Incoming | None:
    """Return the response whose head ends before the blank line at ``end``. None: h11 must parse or refuse it.

    ``bodiless``: it answers a HEAD request.
    """
    head = data[:end]
    first, *lines = head.split(b"\r\n")
    status = _statuses[first]
    if status is None or head.translate(None, _INNER) != b"\r\n" * len(lines):
        return None
    headers = []
    length: int | None = None
    chunked, keep = False, True
    try:
        for line in lines:
            name, value = line.split(b":", 1)
            value = value.strip()
            headers.append((name, value))
            kind = _kinds[name]
            if not kind:
                continue
            if kind == _LENGTH:
                if length is not None or not value.isdigit() or len(value) > _MOST_DIGITS:
                    return None
                length = int(value)
            elif kind == _CODING:
                if chunked or value != b"chunked":
                    return None
                chunked = True
            elif kind == _CONNECTION:
                if value.lower() != b"keep-alive":
                    keep = keep and b"close" not in (word.strip() for word in value.lower().split(b","))
            elif kind == _INVALID:
                return None
    except ValueError:  # a line without a colon
        return None
    if chunked and length is not None:
        return None
    rest = data[end + 4 :]
    if bodiless or status[0] in _BODILESS:
        length, chunked = 0, False
    if length == len(rest):
        return Incoming(status, headers, keep, WHOLE, (rest,) if rest else ())
    body: Body = Chunks() if chunked else UntilEnd() if length is None else Length(length)
    return Incoming(status, headers, keep, body, body.feed(rest))


def hand_over(
    state: h11.Connection, method: bytes, data: bytes, *, sent: bool = True, chunks: bool = False, keep: bool = True
) -> None:
    """Let h11 parse a response, of which ``data`` has arrived.

    ``sent``: its request is sent completely; otherwise the connection can carry no other one. ``chunks``: ``data``
    starts with a chunk, and the head is parsed already.
    """
    state.send(h11.Request(method=method, target=b"/", headers=[(b"Host", b"host")]))
    if sent:
        state.send(h11.EndOfMessage())
    if chunks:
        close = b"" if keep else b"Connection: close\r\n"
        state.receive_data(b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % close)
        state.next_event()
    if data:
        state.receive_data(data)
