"""Many requests on one connection: the limit of the server, its GOAWAY and its refusals."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import h2.connection
import httpcore
import httpx
import pytest

from poolkit import AcquireTimeout
from poolkit.testing.servers import Certificates, HTTPServer
from poolkit_adapters.httpcore import PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until, until_async

from .h2server import H2Server

Make = Callable[[int], H2Server]


def transport(certificates: Certificates, **options: object) -> AsyncPoolkitTransport:
    return AsyncPoolkitTransport(verify=certificates.client_context(), http2=True, **options)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_27_a_full_connection_is_busy(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(2)
    async with httpx.AsyncClient(transport=transport(certificates, max_size=2), timeout=10) as client:
        await client.get(f"{server.url}/now")
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(client.get, f"{server.url}/wait")
            await until_async(lambda: server.waiting == 3)
            assert [len(one.waiting) for one in server.connections] == [2, 1]
            server.answer_all()
    assert server.excess == 0


@pytest.mark.anyio
async def test_27_with_one_connection_the_third_waits(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(2)
    made = transport(certificates, limits=httpx.Limits(max_connections=1))
    async with httpx.AsyncClient(transport=made, timeout=10) as client:
        await client.get(f"{server.url}/now")
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(client.get, f"{server.url}/wait")
            await until_async(lambda: server.waiting == 2)
            with pytest.raises(httpx.PoolTimeout) as caught:
                await client.get(f"{server.url}/wait", timeout=httpx.Timeout(10, pool=0.1))
            assert isinstance(caught.value, AcquireTimeout)
            group.start_soon(client.get, f"{server.url}/now")
            server.answer_all()
        made.poolkit.check_books()
    assert server.excess == 0
    assert len(server.connections) == 1


@pytest.mark.anyio
async def test_a_burst_waits_for_the_first_connection(
    h2_server: Make, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkit._core.opener.patience", lambda connect_time: 10.0)  # it is late on a busy machine
    server = h2_server(50)
    async with httpx.AsyncClient(transport=transport(certificates), timeout=10) as client:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(client.get, f"{server.url}/now")
    assert len(server.connections) == 1
    assert server.excess == 0


@pytest.mark.anyio
async def test_the_limit_is_followed_when_it_changes(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(1)
    async with httpx.AsyncClient(transport=transport(certificates, max_size=1), timeout=10) as client:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(client.get, f"{server.url}/wait")
            await until_async(lambda: server.waiting == 1)
            server.streams = 3
            server.allow(0, 3)
            await until_async(lambda: server.waiting == 3)
            server.answer_all()
    assert len(server.connections) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_28_after_a_goaway_served_streams_complete_and_others_are_replayed(
    h2_server: Make, certificates: Certificates, method: str
) -> None:
    server = h2_server(10)
    answers: dict[str, str] = {}
    made = transport(certificates)

    async def ask(name: str) -> None:
        content = None if method == "GET" else name.encode()
        answers[name] = (await client.request(method, f"{server.url}/wait", content=content)).text

    async with httpx.AsyncClient(transport=made, timeout=10) as client:
        await client.get(f"{server.url}/now")  # stream 1
        async with anyio.create_task_group() as group:
            group.start_soon(ask, "n")
            await until_async(lambda: server.waiting == 1)
            group.start_soon(ask, "n + 2")
            await until_async(lambda: server.waiting == 2)
            server.goaway(0, 3)
            await until_async(lambda: len(server.connections) == 2 and len(server.connections[1].waiting) == 1)
            answers["new"] = (await client.get(f"{server.url}/now")).text  # no new stream on the old connection
            server.answer(0, 3)
            server.answer(1, 1)
        assert answers == {"n": "0:3", "n + 2": "1:1", "new": "1:3"}
        await until_async(lambda: made.poolkit.stats().size == 1)
        made.poolkit.check_books()


@pytest.mark.anyio
# trio's warning about the unfinished body
@pytest.mark.filterwarnings("ignore:Async generator '(httpx|poolkit_adapters):ResourceWarning")
async def test_28_a_goaway_during_a_request_that_it_does_not_cover(h2_server: Make, certificates: Certificates) -> None:
    """Between the headers and the body of stream 5 a GOAWAY says that 3 is the last stream: it is sent again."""
    server = h2_server(10)
    made = transport(certificates)
    told = False

    async def trace(event: str, _info: object) -> None:
        nonlocal told
        if event == "http2.send_request_headers.complete" and not told:
            told = True
            server.goaway(0, 3)
            (link,) = made._pool._connector.links.values()  # type: ignore[attr-defined]
            await until_async(lambda: link.http2.state.last == 3)

    async with httpx.AsyncClient(transport=made, timeout=10) as client:
        await client.get(f"{server.url}/now")  # stream 1
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, f"{server.url}/wait")  # stream 3, which reads what arrives
            await until_async(lambda: server.waiting == 1)
            group.start_soon(partial(client.post, f"{server.url}/wait", content=b"body", extensions={"trace": trace}))
            await until_async(lambda: len(server.connections) == 2 and server.connections[1].waiting == [1])
            server.answer(1, 1)
            server.answer(0, 3)


def test_28_in_threads(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(10)
    made = PoolkitTransport(verify=certificates.client_context(), http2=True)
    with httpx.Client(transport=made, timeout=10) as client, ThreadPoolExecutor(2) as threads:
        client.get(f"{server.url}/now")
        first = threads.submit(client.get, f"{server.url}/wait")
        until(lambda: server.waiting == 1)
        second = threads.submit(client.get, f"{server.url}/wait")
        until(lambda: server.waiting == 2)
        server.goaway(0, 3)
        server.answer(0, 3)  # with threads httpcore lets only one read, until that one has its answer
        until(lambda: len(server.connections) == 2 and len(server.connections[1].waiting) == 1)
        server.answer(1, 1)
        assert (first.result(10).text, second.result(10).text) == ("0:3", "1:1")
        made.poolkit.check_books()


@pytest.mark.anyio
async def test_an_idle_connection_that_got_a_goaway_is_not_reused(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(10)
    async with httpx.AsyncClient(transport=transport(certificates), timeout=10) as client:
        await client.get(f"{server.url}/now")
        server.goaway(0, 1)
        response = await client.post(f"{server.url}/now", content=b"not idempotent, but certainly not looked at")
        assert response.text == "1:1"


@pytest.mark.anyio
async def test_a_goaway_with_an_error_replays_only_unprocessed_requests(
    h2_server: Make, certificates: Certificates
) -> None:
    server = h2_server(10)
    results: dict[str, object] = {}

    async def ask(name: str) -> None:
        try:
            results[name] = (await client.post(f"{server.url}/wait", content=b"x")).text
        except httpx.RemoteProtocolError as error:
            results[name] = type(error)

    async with httpx.AsyncClient(transport=transport(certificates), timeout=10) as client:
        await client.get(f"{server.url}/now")
        async with anyio.create_task_group() as group:
            group.start_soon(ask, "3")
            await until_async(lambda: server.waiting == 1)
            group.start_soon(ask, "5")
            await until_async(lambda: server.waiting == 2)
            server.goaway(0, 3, error_code=11)
            await until_async(lambda: len(server.connections) == 2 and len(server.connections[1].waiting) == 1)
            server.answer(1, 1)
    assert results == {"3": httpx.RemoteProtocolError, "5": "1:1"}


@pytest.mark.anyio
async def test_a_refused_stream_is_sent_again(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(10)
    texts: list[str] = []

    async def ask() -> None:
        texts.append((await client.post(f"{server.url}/wait", content=b"x")).text)

    async with httpx.AsyncClient(transport=transport(certificates), timeout=10) as client:
        await client.get(f"{server.url}/now")
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until_async(lambda: server.waiting == 1)
            server.refuse(0, 3)
            await until_async(lambda: server.waiting == 1 and server.connections[0].waiting == [5])
            server.answer(0, 5)
    assert texts == ["0:5"]


@pytest.mark.anyio
async def test_http_2_offered_and_http_1_chosen(certificates: Certificates) -> None:
    from poolkit.testing.servers import HTTPServer

    versions: list[str] = []

    async def hold() -> None:
        async with client.stream("GET", f"{server.url}/") as response:
            versions.append(response.http_version)
            await until_async(lambda: len(versions) == 20)  # each has a connection of its own

    with HTTPServer(tls=certificates, fast=True) as server:
        made = transport(certificates)
        async with httpx.AsyncClient(transport=made, timeout=10) as client:
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(hold)
            assert versions == ["HTTP/1.1"] * 20
            assert server.stats().max_open == 20
            made.poolkit.check_books()


def test_threads_share_one_connection(
    h2_server: Make, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolkit._core.opener.patience", lambda connect_time: 10.0)  # it is late on a busy machine
    server = h2_server(20)
    with PoolkitConnectionPool(ssl_context=certificates.client_context(), http2=True) as pool:
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(lambda _: pool.request("GET", f"{server.url}/now"), range(200)))
        assert len(pool.connections) == 1
        pool.poolkit.check_books()
    assert server.excess == 0


def test_read_timeout_ends_the_connection(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(20)
    with PoolkitConnectionPool(ssl_context=certificates.client_context(), http2=True) as pool:
        ask = partial(pool.request, "GET")
        with pytest.raises(httpcore.ReadTimeout):
            ask(f"{server.url}/wait", extensions={"timeout": {"read": 0.1}})
        assert ask(f"{server.url}/now").content == b"1:1"
        pool.poolkit.check_books()


def test_threads_that_begin_requests_at_once_never_share_a_stream(
    h2_server: Make, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpcore takes a stream's number and opens the stream without a lock. The test holds every thread in between."""
    real = h2.connection.H2Connection.get_next_available_stream_id

    def slow(connection: h2.connection.H2Connection) -> int:
        number = real(connection)
        time.sleep(0.002)
        return number

    monkeypatch.setattr(h2.connection.H2Connection, "get_next_available_stream_id", slow)
    server = h2_server(10)
    made = PoolkitTransport(verify=certificates.client_context(), http2=True, max_size=1)
    with httpx.Client(transport=made, timeout=10) as client, ThreadPoolExecutor(8) as threads:
        client.get(f"{server.url}/now")
        answers = list(threads.map(lambda _: client.get(f"{server.url}/now").text, range(40)))
    assert len(set(answers)) == 40


@pytest.mark.anyio
async def test_a_connect_that_hangs_does_not_delay_requests_that_were_to_share_its_connection(
    https_server: HTTPServer, certificates: Certificates, fault_proxy: Callable[[str, int], FaultProxy]
) -> None:
    """Another connect begins beside it, within the time that the others may wait."""
    front = fault_proxy(https_server.host, https_server.port)
    url = f"https://127.0.0.1:{front.port}/"
    made = transport(certificates, max_size=3)
    async with httpx.AsyncClient(transport=made, timeout=20) as client:
        await client.get(url)  # from here on the capacity of a connection is known
        made.poolkit.clear()
        await until_async(lambda: made.poolkit.stats().size == 0)
        front.mode = "silent"
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(client.get, url)
            await until_async(lambda: made.poolkit.stats().connecting >= 2)
            front.mode = "pass"
        assert made.poolkit.stats().timeouts == 0


@pytest.mark.anyio
async def test_a_cancelled_request_ends_its_stream_and_not_its_connection(
    h2_server: Make, certificates: Certificates
) -> None:
    """The server gets RST_STREAM (CANCEL), even if no other request uses the connection. The others complete."""
    server = h2_server(2)
    made = transport(certificates, max_size=1, check_after_idle=None)
    async with httpx.AsyncClient(transport=made, timeout=10) as client:
        await client.get(f"{server.url}/now")  # stream 1
        answers: list[str] = []

        async def other() -> None:
            answers.append((await client.get(f"{server.url}/wait")).text)

        async with anyio.create_task_group() as group:
            group.start_soon(other)  # stream 3
            await until_async(lambda: server.waiting == 1)
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(client.get, f"{server.url}/wait")  # stream 5
                await until_async(lambda: server.waiting == 2)
                cancelled.cancel_scope.cancel()
            await until_async(lambda: server.connections[0].resets == [(5, 8)])
            assert (await client.get(f"{server.url}/now")).text == "0:7"
            server.answer(0, 3)
        assert answers == ["0:3"]
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(client.get, f"{server.url}/wait")  # stream 9, alone
            await until_async(lambda: server.waiting == 1)
            cancelled.cancel_scope.cancel()
        await until_async(lambda: server.connections[0].resets == [(5, 8), (9, 8)])
        assert (await client.get(f"{server.url}/now")).text == "0:11"
        assert (made.poolkit.stats().connects, server.excess) == (1, 0)
        made.poolkit.check_books()


@pytest.mark.anyio
# trio's warnings about unfinished bodies
@pytest.mark.filterwarnings("ignore:Async generator '(httpx|poolkit_adapters):ResourceWarning")
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning")
async def test_a_body_that_is_not_read_to_its_end_ends_its_stream_and_not_its_connection(
    https_server: HTTPServer, certificates: Certificates
) -> None:
    made = transport(certificates, max_size=1, check_after_idle=None)
    async with httpx.AsyncClient(transport=made, timeout=10) as client:
        for _ in range(25):  # more than the ten that the server allows at once
            async with client.stream("GET", f"{https_server.url}/stream?chunks=50") as response:
                async for _ in response.aiter_raw():
                    break
        assert (await client.get(f"{https_server.url}/echo?key=after")).json()["key"] == "after"
        assert made.poolkit.stats().connects == 1


@pytest.mark.anyio
async def test_a_cancelled_request_ends_a_connection_that_has_been_silent(
    h2_server: Make, certificates: Certificates
) -> None:
    """It may be dead, and the next request must not time out on it too. In this test any silence is too long."""
    server = h2_server(10)
    made = transport(certificates, check_after_idle=0)
    async with httpx.AsyncClient(transport=made, timeout=10) as client:
        await client.get(f"{server.url}/now")
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(client.get, f"{server.url}/wait")
            await until_async(lambda: server.waiting == 1)
            cancelled.cancel_scope.cancel()
        assert (await client.get(f"{server.url}/now")).text == "1:1"
