"""The headers of requests and responses of HTTP/2.

``h2`` checks each header of each request character by character, which costs a third of a request. Most headers of most
requests to a server are the same, so here the result of a check is remembered. The rules are those of ``h2`` (RFC 9113,
8.2): it gets nothing that it would refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import hpack

from ._driver import httpcore

__all__ = ("RequestHeaders", "has_body", "status_and_headers")

Header = tuple[bytes, bytes]

_REMEMBERED = 256
"""How many headers are remembered for one connection. When they are full, they are forgotten."""

_LONGEST = 1024
"""Bytes of a header that is remembered at most."""

_OF_HTTP_1 = frozenset({b"host", b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
"""Headers that HTTP/2 does not have."""

_SECRET = frozenset({b"authorization", b"proxy-authorization"})
"""Headers that must not get into the table of compressed headers, from which they could be guessed (RFC 7541, 7.1)."""

_FRAMING = (b"content-length", b"transfer-encoding")
_LENGTHS = tuple(map(len, _FRAMING))

_token = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_name = re.compile(rb"[\x21-\x39\x3b-\x40\x5b-\x7e]+").fullmatch
_value = re.compile(rb"[^\0\r\n]*").fullmatch


class RequestHeaders:
    """Makes the headers of requests on one connection. Not thread-safe."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[Header, Header | None] = {}

    def of(self, request: httpcore.Request) -> list[Header]:
        """Return the headers of a request. Raises LocalProtocolError for one that must not be sent."""
        url, method, known = request.url, request.method, self._known
        authority: bytes | None = None
        found: list[Header] = []
        for header in request.headers:
            try:
                one = known[header]
            except (KeyError, TypeError):  # not known; a list in the place of a pair
                name, value = header
                if authority is None and name.lower() == b"host":
                    authority = value.strip()
                    continue
                one = self._checked(name, value)
            if one is not None:
                found.append(one)
        if authority is None:
            raise httpcore.LocalProtocolError("Missing mandatory Host: header")
        if not _token(method):
            raise httpcore.LocalProtocolError(f"Illegal method: {method!r}")
        if not url.target or not _value(url.target) or not _value(authority):
            raise httpcore.LocalProtocolError(
                f"Illegal character in the URL or the host: {url.target!r}, {authority!r}"
            )
        return [
            (b":method", method), (b":authority", authority), (b":scheme", url.scheme), (b":path", url.target), *found,
        ]  # fmt: skip

    def _checked(self, name: bytes, value: bytes) -> Header | None:
        key = name, value
        name, value = name.lower().strip(), value.strip()
        one: Header | None = None
        if name not in _OF_HTTP_1:
            if not _name(name) or not _value(value) or (name == b"te" and value.lower() != b"trailers"):
                raise httpcore.LocalProtocolError(f"Illegal header for HTTP/2: {name!r}: {value!r}")
            if name in _SECRET or (name == b"cookie" and len(value) < 20):
                return hpack.NeverIndexedHeaderTuple(name, value)
            one = name, value
        if name != b"host" and len(name) + len(value) <= _LONGEST:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = one
        return one


def has_body(request: httpcore.Request) -> bool:
    """Return whether the request has a body."""
    # a generator and a call for each header cost a twentieth of a request
    for name, _ in request.headers:  # noqa: SIM110
        if len(name) in _LENGTHS and name.lower() in _FRAMING:
            return True
    return False


def status_and_headers(head: Iterable[Header]) -> tuple[int, list[Header]]:
    """Return the status and the headers of a response. Raises RemoteProtocolError for a status that is none."""
    status = 200
    headers = []
    for name, value in head:
        if name == b":status":
            if not (len(value) == 3 and value.isdigit()):
                raise httpcore.RemoteProtocolError(f"the server sent the status {value[:20]!r}")
            status = int(value)
        elif not name.startswith(b":"):
            headers.append((name, value))
    return status, headers
