"""The headers of HTTP/2 requests: refused where h2 refuses them, and otherwise encoded as by h2."""

from __future__ import annotations

import random
import re
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
import httpcore
import pytest

from poolkit_adapters.httpcore._h2_headers import RequestHeaders

NAMES = (b"accept", b"Accept", b"X-Key", b"te", b"TE", b"connection", b"Keep-Alive", b"upgrade", b"Proxy-Connection")
ODD = (b"", b":path", b":x", b"a:b", b"a b", b" a ", b"a\0", b"caf\xe9", b"\x7f", b"a\n", b"a\t")
VALUES = (
    b"",
    b"1",
    b" 1 ",
    b"trailers",
    b"Trailers",
    b"gzip",
    b"a\r\nb: c",
    b"\0",
    b"caf\xe9",
    b"\t",
    b"a\tb",
    b"x" * 2000,
)


def request(headers: list[tuple[bytes, bytes]], method: bytes = b"GET", target: bytes = b"/") -> httpcore.Request:
    url = httpcore.URL(scheme=b"https", host=b"host", port=443, target=target)
    return httpcore.Request(method, url, headers=headers)


def sent(headers: list[Any], **config: bool) -> list[tuple[bytes, bytes]]:
    """Return what a server gets if h2 sends these headers."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(**config))  # type: ignore[arg-type]
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, validate_inbound_headers=False))
    client.initiate_connection()
    client.send_headers(1, headers, end_stream=True)
    events = server.receive_data(client.data_to_send())
    (found,) = [event.headers for event in events if isinstance(event, h2.events.RequestReceived)]
    return [(bytes(name), bytes(value)) for name, value in found]


def by_h2(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]] | None:
    """Return what a server gets if h2 checks and normalizes everything, or None if h2 refuses."""
    pseudo = [(b":method", b"GET"), (b":authority", b"host"), (b":scheme", b"https"), (b":path", b"/")]
    try:
        return sent([*pseudo, *headers])
    except (h2.exceptions.ProtocolError, IndexError):  # the latter: an empty name
        return None


def illegal(header: tuple[bytes, bytes]) -> bool:
    """Return whether RFC 9113, 8.2.1 forbids it. h2 looks at this only in what it receives."""
    name, value = header[0].strip(), header[1].strip()
    return not re.fullmatch(rb"[!-9;-~]+", name) or bool(re.search(rb"[\0\r\n]", value))


def test_headers_are_those_that_h2_would_send() -> None:
    pick = random.Random(1)
    refused = 0
    ours = RequestHeaders()  # one for all: stored state must stay correct
    for _ in range(1500):
        headers = [
            (pick.choice(NAMES if pick.random() < 0.9 else ODD), pick.choice(VALUES[: pick.choice((5, 12))]))
            for _ in range(pick.randrange(4))
        ]
        expected = by_h2(headers)
        try:
            found = ours.of(request([(b"Host", b"host"), *headers]))
        except httpcore.LocalProtocolError:
            assert expected is None or any(map(illegal, headers)), headers
            refused += 1
        else:
            assert expected is not None, headers
            assert sent(found, validate_outbound_headers=False, normalize_outbound_headers=False) == expected
    assert 150 < refused < 1350


@pytest.mark.parametrize(
    ("method", "target"), [(b"GE T", b"/"), (b"GET\r\n", b"/"), (b"", b"/"), (b"GET", b"/\r\nx"), (b"GET", b"")]
)
def test_a_method_or_a_target_that_is_none(method: bytes, target: bytes) -> None:
    with pytest.raises(httpcore.LocalProtocolError):
        RequestHeaders().of(request([(b"Host", b"host")], method, target))


def test_a_request_without_a_host() -> None:
    with pytest.raises(httpcore.LocalProtocolError, match="Host"):
        RequestHeaders().of(request([(b"accept", b"*/*")]))


def test_secrets_stay_out_of_the_table_of_compressed_headers_and_are_not_remembered() -> None:
    ours = RequestHeaders()
    headers = [(b"Host", b"host"), (b"Authorization", b"Bearer x"), (b"Cookie", b"short"), (b"Cookie", b"long" * 9)]
    for _ in range(2):
        kinds = {bytes(one[1]): type(one) is hpack.NeverIndexedHeaderTuple for one in ours.of(request(headers))[4:]}
        assert kinds == {b"Bearer x": True, b"short": True, b"long" * 9: False}
    assert list(ours._known) == [(b"Cookie", b"long" * 9)]


def test_few_headers_are_remembered() -> None:
    ours = RequestHeaders()
    for number in range(2000):
        ours.of(request([(b"Host", b"host"), (b"X-Id", b"%d" % number), (b"X-Long", b"x" * 5000)]))
    assert len(ours._known) <= 256
    assert max(len(name) + len(value) for name, value in ours._known) <= 1024
