"""Requests that are sent again: if it is safe, and as often as necessary."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import httpx
import pytest

from poolkit.testing.servers import Certificates
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.support.strangers import RUNNERS, Talk

from .conftest import Script, answer, read_request
from .h2server import H2Server

Make = Callable[[int], H2Server]
NAMES = ["threads", "asyncio", "trio"]


def transport_of(runner: str, certificates: Certificates) -> httpx.BaseTransport | httpx.AsyncBaseTransport:
    kind = PoolkitTransport if runner == "threads" else AsyncPoolkitTransport
    return kind(verify=certificates.client_context(), http2=True)


def stale(count: int, requests: list[bytes]) -> Script:
    """Run a server whose first ``count`` connections answer once, and close at the next request as if expired."""

    def script(connection: socket.socket, number: int) -> None:
        while request := read_request(connection):
            requests.append(request.split()[1])
            if number < count and request.startswith(b"GET /again"):
                return
            answer(connection, b"%d" % number)

    return script


def test_a_get_is_sent_again_as_often_as_it_meets_a_stale_connection(scripted: Callable[[Script], str]) -> None:
    requests: list[bytes] = []
    url = scripted(stale(6, requests))
    with httpx.Client(transport=PoolkitTransport(), timeout=10) as client:
        held = [client.send(client.build_request("GET", f"{url}/first"), stream=True) for _ in range(6)]
        for response in held:
            response.read()
        assert int(client.get(f"{url}/again").text) >= 6  # a stale one that is met late makes the pool open one more
    assert 1 < requests.count(b"/again") <= 7  # after the first one the pool closes the other idle ones


@pytest.mark.anyio
async def test_the_same_for_tasks(scripted: Callable[[Script], str]) -> None:
    requests: list[bytes] = []
    url = scripted(stale(6, requests))
    async with httpx.AsyncClient(transport=AsyncPoolkitTransport(), timeout=10) as client:
        held = [await client.send(client.build_request("GET", f"{url}/first"), stream=True) for _ in range(6)]
        for response in held:
            await response.aread()
        assert int((await client.get(f"{url}/again")).text) >= 6
    assert 1 < requests.count(b"/again") <= 7  # after the first one the pool closes the other idle ones


def test_a_get_is_not_sent_again_when_a_part_of_the_answer_was_there(scripted: Callable[[Script], str]) -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket, number: int) -> None:
        while request := read_request(connection):
            requests.append(request.split()[1])
            if request.startswith(b"GET /again"):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")
                return
            answer(connection, b"%d" % number)

    url = scripted(script)
    with httpx.Client(transport=PoolkitTransport(), timeout=10) as client:
        client.get(f"{url}/first")
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(f"{url}/again")
    assert requests == [b"/first", b"/again"]


@pytest.mark.parametrize("runner", NAMES)
@pytest.mark.parametrize("kind", ["refusals", "goodbyes"])
def test_a_post_that_was_certainly_not_looked_at_is_sent_until_it_is(
    h2_server: Make, certificates: Certificates, runner: str, kind: str
) -> None:
    server = h2_server(10)

    async def main(talk: Talk) -> None:
        await talk.send("POST", f"{server.url}/now")
        setattr(server, kind, 7)
        assert (await talk.send("POST", f"{server.url}/now")).status_code == 200

    RUNNERS[runner](main, transport_of(runner, certificates))
    assert server.requests == 9


@pytest.mark.parametrize("runner", NAMES)
def test_a_server_that_refuses_for_ever_is_not_asked_for_ever(
    h2_server: Make, certificates: Certificates, runner: str
) -> None:
    """The pool asks it less and less often, and stops at the end of the wait for a connection."""
    server = h2_server(10)
    server.refusals = 10**9

    async def main(talk: Talk) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await talk.send("POST", f"{server.url}/now")

    RUNNERS[runner](main, transport_of(runner, certificates), timeout=httpx.Timeout(10, pool=0.1))
    assert 4 <= server.requests < 12


@pytest.mark.parametrize("runner", NAMES)
def test_http_2_a_post_is_not_lost_to_a_connection_that_the_server_had_closed(
    h2_server: Make, certificates: Certificates, runner: str
) -> None:
    """The end of the stream is in the socket, and no event loop has read it."""
    server = h2_server(10)

    async def main(talk: Talk) -> None:
        first = await talk.send("POST", f"{server.url}/now")
        server.hang_up()
        poll = select.poll()
        poll.register(first.extensions["network_stream"].get_extra_info("socket").fileno(), select.POLLRDHUP)
        assert poll.poll(10_000)
        assert (await talk.send("POST", f"{server.url}/now")).text == "1:1"

    RUNNERS[runner](main, transport_of(runner, certificates))
