"""HTTP/1.1 messages in their usual form: writes requests and parses responses. Does no I/O.

h11 takes about a third of the CPU time of a request. So on a connection that is reused, this module writes the request
and parses the response, by regular expressions with h11's grammar.

Only the usual form is parsed here. Everything else goes to h11, from the first byte of the response or from the start
of a chunk: informational and switching responses, HTTP/1.0, folded lines, bare line feeds, repeated or contradictory
lengths, chunk extensions, trailers, and whatever is malformed. So h11 alone decides what is refused, and a response
means the same with and without this module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import h11

from ._driver import httpcore

__all__ = ("Chunks", "Heads", "Incoming", "Length", "UntilEnd", "hand_over", "head_ends", "parse")

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+"
# Words without blanks at both ends. Neither this nor the lines below can match in two ways, so a hostile line costs
# time in proportion to its length.
_VALUE = rb"[^\x00\s]+(?:[ \t]+[^\x00\s]+)*"

_NAME = re.compile(_TOKEN)
_REQUEST_LINE = re.compile(_TOKEN + rb" [!-~]+ HTTP/1\.1\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb": (?:" + _VALUE + rb")?\r\n)+\r\n")
_STATUS = re.compile(rb"HTTP/1\.1 ([2-9][0-9]{2})(?: ([^\x00\n\r\x0b\x0c]*))?\r\n")
_FIELD = re.compile(rb"^(" + _TOKEN + rb"):[ \t]*(?:(" + _VALUE + rb")[ \t]*)?\r\n", re.MULTILINE)
_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})\r\n")

_MOST_DIGITS = 20  # h11's limit of a Content-Length
MOST_HEAD = 100 * 1024
"""Bytes of an incomplete head, or of a chunk's first line, after which h11 refuses the response."""

_PLAIN, _HOST, _LENGTH, _CODING, _CONNECTION, _UPGRADE, _INVALID = range(7)
_SPECIAL = {
    b"host": _HOST, b"content-length": _LENGTH, b"transfer-encoding": _CODING, b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
}  # fmt: skip
_kinds: dict[bytes, int] = {}
"""What the headers seen so far mean, by name as written. Saves a conversion to lower case for each of them."""
_REMEMBERED = 1000
"""How many names are remembered. When the set is full, it is cleared."""


def _kind_of(name: bytes) -> int:
    if _NAME.fullmatch(name) is None:
        return _INVALID
    if len(_kinds) >= _REMEMBERED:
        _kinds.clear()
    kind = _kinds[name] = _SPECIAL.get(name.lower(), _PLAIN)
    return kind


class Heads:
    """Writes the heads of the requests on one connection.

    Most requests on it have the headers of the one before. So their lines are kept, and only a change is checked again.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # one attribute for the headers and their lines, so that an interruption cannot leave those of two requests
        self._last: tuple[Sequence[tuple[bytes, bytes]], tuple[bytes, int] | None] = ((), None)

    def encode(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, int] | None:
        """Return the head of a request, and the length of its body (-1: chunked). None: h11 must write or refuse it."""
        line = b"%b %b HTTP/1.1\r\n" % (method, target)
        if _REQUEST_LINE.fullmatch(line) is None or method == b"CONNECT":
            return None
        known, fields = self._last
        if headers != known:
            fields = _fields(headers)
            # copies: the caller may change its list, or a bytearray in it
            self._last = [(bytes(name), bytes(value)) for name, value in headers], fields
        return None if fields is None else (line + fields[0], fields[1])


def _fields(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, int] | None:
    """Return the lines of the headers and the blank line, and the length of the body (-1: chunked), or None."""
    host: bytes | None = None
    length: int | None = None
    lines = []
    for name, value in headers:
        kind = _kinds.get(name)
        if kind is None:
            kind = _kind_of(name)
        if kind:
            if kind == _HOST:
                if host is not None:
                    return None
                host = b"%b: %b" % (name, value)
                continue
            if kind == _CONNECTION:
                if value.lower() != b"keep-alive":
                    return None
            elif kind == _LENGTH and length is None and value.isdigit() and len(value) <= _MOST_DIGITS:
                length = int(value)
            elif kind == _CODING and length is None and value == b"chunked":
                length = -1
            else:
                return None
        lines.append(b"%b: %b" % (name, value))
    if host is None:
        return None
    block = b"\r\n".join([host, *lines, b"\r\n"])
    # Counted, because a line break in a value would make another line that matches.
    if _FIELDS.fullmatch(block) is None or block.count(b"\n") != len(lines) + 2:
        return None
    return block, length or 0


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


class Incoming:
    """A response whose head has arrived. ``keep``: whether the server keeps the connection open after it."""

    __slots__ = ("body", "headers", "keep", "reason", "status")

    def __init__(
        self,
        status: int,
        reason: bytes,
        headers: list[tuple[bytes, bytes]],
        keep: bool,
        body: Length | Chunks | UntilEnd,
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.keep = keep
        self.body = body


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
    line = _STATUS.match(data)
    if line is None:
        return None
    at, end = line.end(), end + 2
    headers: list[tuple[bytes, bytes]] = _FIELD.findall(data, at, end)
    if len(headers) != data.count(b"\n", at, end):  # a line that does not match
        return None
    length: int | None = None
    chunked, keep = False, True
    for name, value in headers:
        kind = _kinds.get(name)
        if kind is None:
            kind = _kind_of(name)
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
        elif kind == _CONNECTION and value.lower() != b"keep-alive":
            keep = keep and b"close" not in (word.strip() for word in value.lower().split(b","))
    if chunked and length is not None:
        return None
    status = int(line[1])
    body: Length | Chunks | UntilEnd
    if bodiless or status in (204, 304):
        body = Length(0)
    elif chunked:
        body = Chunks()
    elif length is not None:
        body = Length(length)
    else:
        body = UntilEnd()
    return Incoming(status, line[2] or b"", headers, keep, body)


def hand_over(state: h11.Connection, method: bytes, data: bytes, *, chunks: bool = False, keep: bool = True) -> None:
    """Let h11 parse a response whose request is sent, of which ``data`` has arrived.

    ``chunks``: ``data`` starts with a chunk, and the head is parsed already.
    """
    state.send(h11.Request(method=method, target=b"/", headers=[(b"Host", b"host")]))
    state.send(h11.EndOfMessage())
    if chunks:
        close = b"" if keep else b"Connection: close\r\n"
        state.receive_data(b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % close)
        state.next_event()
    if data:
        state.receive_data(data)
