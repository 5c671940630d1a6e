"""Runs one HTTP/1.1 response through httpcore's connection and through poolkit's shortcut, and compares what comes out.

``python -m tests.support.http11 1000000`` does so with as many mutated responses.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Sequence
from typing import Any

import h11
import httpcore

from poolkit_adapters.httpcore._base import Tally
from poolkit_adapters.httpcore._http11_sync import Answer, Direct

ORIGIN = httpcore.Origin(b"http", b"localhost", 80)
FIRST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HELD = (type(httpcore.Request("GET", "http://localhost/").stream),)

Outcome = tuple[Any, ...]


class Waiting(Exception):
    """The connection reads, but no more data comes."""


class Scripted(httpcore.NetworkStream):
    """Delivers these pieces, then the end of the stream or nothing."""

    def __init__(self, pieces: Sequence[bytes], end: bool) -> None:
        self._pieces = list(pieces)
        self._end = end
        self.written: list[bytes] = []

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._end:
            return b""
        raise Waiting

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written.append(buffer)

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


class Backend(httpcore.NetworkBackend):
    def __init__(self, stream: Scripted) -> None:
        self._stream = stream

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return self._stream


class Lease:
    """A lease that records how it ends."""

    since = 0.0

    def __init__(self, link: Any) -> None:
        self.connection = link
        self.kept = False

    def close(self, *, discard: bool = False, error: BaseException | None = None) -> None:
        self.kept = not discard and error is None


class Link:
    http2 = False
    process = -1  # not this process, so that a close does not look for the rest of the response

    def __init__(self, connection: Any, shortcut: Any) -> None:
        self.connection = connection
        self.shortcut = shortcut


class Connector:
    def __init__(self) -> None:
        self.odd = Tally()

    def failed(self, *args: Any) -> None:
        pass


def opened(pieces: Sequence[bytes], end: bool) -> tuple[httpcore.HTTPConnection, Scripted]:
    """Return a connection that has carried one request, and its stream."""
    stream = Scripted([FIRST, *pieces], end)
    connection = httpcore.HTTPConnection(ORIGIN, network_backend=Backend(stream))
    response = connection.handle_request(request("GET"))
    response.read()
    response.close()
    stream.written.clear()
    return connection, stream


def request(method: str, headers: Sequence[tuple[bytes, bytes]] = ((b"Host", b"localhost"),)) -> httpcore.Request:
    return httpcore.Request(method, "http://localhost/", headers=list(headers))


def by_httpcore(method: str, pieces: Sequence[bytes], end: bool) -> Outcome:
    """Return how httpcore parses the response."""
    connection, _ = opened(pieces, end)
    return _outcome(lambda: connection.handle_request(request(method)), connection, lambda: connection.is_available())


def by_shortcut(method: str, pieces: Sequence[bytes], end: bool) -> tuple[Outcome, bool]:
    """Return how the shortcut parses the response, and whether h11 had to do it."""
    connection, _ = opened(pieces, end)
    shortcut = Direct(connection._connection)
    lease: Any = Lease(Link(connection, shortcut))
    connector: Any = Connector()
    through_h11 = False

    def answer() -> Any:
        nonlocal through_h11
        asked = request(method)
        prepared = shortcut.prepared(asked, HELD)
        assert prepared is not None
        found = shortcut.exchange(asked, prepared)
        if isinstance(found, httpcore.Response):
            through_h11 = True
            return found
        return Answer(asked, found, lease, connector)

    def reusable() -> bool:
        return connection.is_available() if through_h11 else bool(lease.kept)

    return _outcome(answer, connection, reusable), through_h11 or bool(connector.odd.value)


def _outcome(answer: Any, connection: Any, reusable: Any) -> Outcome:
    body: list[bytes] = []
    head: Outcome = ()
    try:
        response = answer()
        head = (response.status, response.extensions["reason_phrase"], list(response.headers),
                response.extensions["http_version"])  # fmt: skip
        stream = response if isinstance(response, Answer) else response.stream
        try:
            body.extend(stream)
        finally:
            stream.close()
    except Exception as error:
        return "error", type(error).__name__, head, b"".join(body)
    left = connection._connection._h11_state.trailing_data[0]
    return "whole", head, b"".join(body), reusable() and not left


def same(method: str, data: bytes, cuts: Sequence[int], end: bool) -> bool:
    """Compare the two. Raise AssertionError if they differ. Return whether h11 had to parse for the shortcut."""
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places) if a < b]
    expected = by_httpcore(method, pieces, end)
    found, odd = by_shortcut(method, pieces, end)
    if found[0] == expected[0] == "whole" and expected[-1]:
        # h11 would reuse a connection whose end has been read
        expected = (*expected[:-1], found[-1])
    assert found == expected, f"{method} {pieces!r} {'then the end' if end else ''}\n{found}\n{expected}"
    return odd


_HEAD = b"HTTP/1.1 200 OK\r\n"
USUAL: dict[str, bytes] = {
    "length": _HEAD + b"Date: now\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
    "until the end": _HEAD + b"Content-Type: text/plain\r\n\r\nhello",
    "no body": b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "no reason": b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n",
    "empty reason": b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n",
    "no headers": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "close": _HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
    "close among others": _HEAD + b"Connection: x, Close\r\nContent-Length: 2\r\n\r\nok",
    "keep-alive": _HEAD + b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    "blanks": _HEAD + b"X: \t a  b\tc \t \r\nContent-Length:2\r\n\r\nok",
    "empty value": _HEAD + b"X:\r\nY:  \r\nContent-Length: 2\r\n\r\nok",
    "twice the same": _HEAD + b"Set-Cookie: a\r\nset-cookie: b\r\nContent-Length: 2\r\n\r\nok",
    "obs-text": b"HTTP/1.1 200 \xff\xfe\r\nX: \xe4\r\nContent-Length: 2\r\n\r\nok",
    "status 999": b"HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\nok",
    "leading zeros": _HEAD + b"Content-Length: 0005\r\n\r\nhello",
    "control in a value": _HEAD + b"X: a\x01\x7fb\r\nContent-Length: 2\r\n\r\nok",
    "capital size": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n0A\r\n0123456789\r\n000\r\n\r\n",
}
"""Responses that the shortcut parses by itself."""

ODD: dict[str, bytes] = {
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "one bare line feed": _HEAD + b"X: y\nContent-Length: 2\r\n\r\nok",
    "bare line feed at the end": _HEAD + b"Content-Length: 2\r\n\nok",
    "bare carriage return": _HEAD + b"X: y\rZ: z\r\nContent-Length: 2\r\n\r\nok",
    "bare carriage return for the end": _HEAD + b"Content-Length: 2\r\n\rX: y\r\n\r\nok",
    "fold": _HEAD + b"X: y\r\n  z\r\nContent-Length: 2\r\n\r\nok",
    "fold in the first line": _HEAD + b" z\r\nContent-Length: 2\r\n\r\nok",
    "folded length": _HEAD + b"Content-Length:\r\n 2\r\n\r\nok",
    "NUL": _HEAD + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok",
    "form feed": _HEAD + b"X: a\x0cb\r\nContent-Length: 2\r\n\r\nok",
    "blank before the colon": _HEAD + b"X : y\r\nContent-Length: 2\r\n\r\nok",
    "blank before the colon of the length": _HEAD + b"Content-Length : 2\r\n\r\nok",
    "blank in a name": _HEAD + b"X Y: y\r\nContent-Length: 2\r\n\r\nok",
    "no colon": _HEAD + b"nonsense\r\nContent-Length: 2\r\n\r\nok",
    "empty name": _HEAD + b": y\r\nContent-Length: 2\r\n\r\nok",
    "name not ASCII": _HEAD + b"X\xe4: y\r\nContent-Length: 2\r\n\r\nok",
    "both lengths": _HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "both lengths, other order": _HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": _HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "two equal lengths": _HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "list of equal lengths": _HEAD + b"Content-Length: 2, 2\r\n\r\nok",
    "list of lengths": _HEAD + b"Content-Length: 2, 3\r\n\r\nok",
    "length with a sign": _HEAD + b"Content-Length: +2\r\n\r\nok",
    "negative length": _HEAD + b"Content-Length: -2\r\n\r\nok",
    "empty length": _HEAD + b"Content-Length:\r\n\r\nok",
    "hexadecimal length": _HEAD + b"Content-Length: 0x2\r\n\r\nok",
    "length not ASCII": _HEAD + "Content-Length: \u0662\r\n\r\nok".encode(),
    "length of 21 digits": _HEAD + b"Content-Length: 000000000000000000002\r\n\r\nok",
    "gzip, chunked": _HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked, gzip": _HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": _HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "Chunked": _HEAD + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "identity": _HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 keep-alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "http/1.1": b"http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "ICY": b"ICY 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "two blanks before the status": b"HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nok",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
    "blank line first": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "switch not asked for": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz",
    "extension": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n",
    "blank after the size": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n",
    "size with a prefix": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n",
    "size of 21 digits": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 20 + b"2\r\nok\r\n0\r\n\r\n",
    "negative size": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n",
    "empty size": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n\r\nok\r\n0\r\n\r\n",
    "line feed after a size": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n",
    "trailers": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
    "bad trailer": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX : y\r\n\r\n",
    "line feed after the last chunk": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
}
"""Responses that h11 must parse, or refuse."""

BROKEN: dict[str, bytes] = {
    "chunk too long": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n",
    "no line end after a chunk": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok0\r\n\r\n",
    "bare line feed after a chunk": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n",
    "too short": _HEAD + b"Content-Length: 9\r\n\r\nok",
    "unfinished chunks": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nok",
    "unfinished head": _HEAD + b"Content-Le",
    "more than its length": _HEAD + b"Content-Length: 2\r\n\r\nokay",
    "more than its chunks": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore",
    "body behind 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    "second response": _HEAD + b"Content-Length: 2\r\n\r\nok" + _HEAD + b"Content-Length: 2\r\n\r\nno",
    "nothing": b"",
    "endless line": _HEAD + b"X: " + b"y" * 200_000,
    "long line": _HEAD + b"X: " + b"y" * 200_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "many headers": _HEAD + b"X: yyyyyyy\r\n" * 20_000 + b"Content-Length: 2\r\n\r\nok",
    "blanks without an end": _HEAD + b"X:" + b" " * 2_000 + b"\0\r\n\r\n",
    "words without an end": _HEAD + b"X:" + b" a" * 2_000 + b"\0\r\n\r\n",
    "a size without an end": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 200_000,
}
"""Responses that are incomplete, too long, or more than one."""

_BITS = (
    b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"1", b"9", b"\xff", b"\x0b", b"chunked",
    b"close",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b" folded\r\n", b"0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0", b"-", b"+", b"x", b"\r\n\r\n", b"\n\n",
)  # fmt: skip
_METHODS = ("GET", "GET", "GET", "HEAD", "POST")


def mutated(dice: random.Random) -> bytes:
    """Return a response with a few changes."""
    pool = [data for group in (USUAL, USUAL, ODD, BROKEN) for data in group.values() if len(data) < 1000]
    data = dice.choice(pool)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(data) + 1)
        kind = dice.randrange(6)
        if kind == 0:
            data = data[:at] + dice.choice(_BITS) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + dice.randrange(1, 4) :]
        elif kind == 2:
            data = data[:at] + bytes((dice.randrange(256),)) + data[at + 1 :]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            lines = data.split(b"\r\n")
            lines.insert(dice.randrange(len(lines) + 1), dice.choice(lines))
            data = b"\r\n".join(lines)
        else:
            data = data + dice.choice(pool)[dice.randrange(40) :]
    return data


def compare(cases: int, seed: int) -> int:
    """Compare ``cases`` mutated responses. Return how many of them h11 had to parse."""
    dice = random.Random(seed)
    odd = 0
    for _ in range(cases):
        data = mutated(dice)
        cuts = [dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 0, 1, 3)))]
        odd += same(dice.choice(_METHODS), data, cuts, dice.random() < 0.5)
    return odd


if __name__ == "__main__":
    CASES, SEED = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**9)
    print(f"h11 {h11.__version__}, seed {SEED}: {compare(CASES, SEED)} of {CASES} parsed by h11, no difference")
