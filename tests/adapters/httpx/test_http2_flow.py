"""HTTP/2 requests that share a connection do not block each other: limits, uploads, refusals, timeouts."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import h2.connection
import httpcore
import httpx
import pytest

from poolkit.testing.servers import Certificates, HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.support.waiting import until, until_async

from .h2server import H2Server

Make = Callable[[int], H2Server]
Job = dict[str, Any]
NAMES = ["threads", "asyncio", "trio"]
RUNNER = pytest.mark.parametrize("runner", NAMES)


def together(
    runner: str,
    certificates: Certificates,
    jobs: Sequence[Job],
    *,
    meanwhile: Callable[[], None] | None = None,
    first: str | None = None,
    timeout: float | httpx.Timeout = 20,
    **settings: Any,
) -> list[Any]:
    """Send the requests at the same time, after a GET of ``first``. Return the texts of the responses, or the errors.

    ``meanwhile()`` runs in a thread.
    """
    other = threading.Thread(target=meanwhile or (lambda: None))
    settings = {"verify": certificates.client_context(), "http2": True, **settings}
    if runner == "threads":
        made = PoolkitTransport(**settings)
        with httpx.Client(transport=made, timeout=timeout) as client, ThreadPoolExecutor(len(jobs)) as threads:
            if first is not None:
                client.get(first)
            other.start()

            def ask(job: Job) -> Any:
                try:
                    return client.request(**job).text
                except httpx.HTTPError as error:
                    return error

            results = list(threads.map(ask, jobs))
            made.poolkit.check_books()
    else:

        async def main() -> list[Any]:
            made = AsyncPoolkitTransport(**settings)
            found: dict[int, Any] = {}

            async def ask(number: int, job: Job) -> None:
                try:
                    found[number] = (await client.request(**job)).text
                except httpx.HTTPError as error:
                    found[number] = error

            async with httpx.AsyncClient(transport=made, timeout=timeout) as client:
                if first is not None:
                    await client.get(first)
                other.start()
                async with anyio.create_task_group() as group:
                    for number, job in enumerate(jobs):
                        group.start_soon(ask, number, job)
                made.poolkit.check_books()
            return [found[number] for number in range(len(jobs))]

        results = anyio.run(main, backend=runner)
    other.join()
    return results


@RUNNER
@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_a_limit_that_the_server_lowers_during_requests_blocks_none_of_them(
    h2_server: Make, certificates: Certificates, runner: str, *, strict: bool
) -> None:
    """With httpcore's connection, 20 of 30 requests hang for ever."""
    server = h2_server(100)
    server.strict = strict
    server.lower, server.lower_to = 6, 2
    done = threading.Event()

    def answer() -> None:
        until(lambda: server.requests >= 6)
        while not done.wait(0.01):
            server.answer_all()

    other = threading.Thread(target=answer)
    other.start()
    try:
        jobs = [{"method": "GET", "url": f"{server.url}/wait"}] * 30
        results = together(runner, certificates, jobs, first=f"{server.url}/now", max_size=1)
    finally:
        done.set()
        other.join()
    assert sorted(map(type, results), key=repr) == [str] * 30, results
    assert len(set(results)) == 30
    assert len(server.connections) == 1


@RUNNER
def test_uploads_share_a_connection(h2_server: Make, certificates: Certificates, runner: str) -> None:
    """Each fills the server's windows several times. With httpcore's connection, threads stall."""
    server = h2_server(100)
    jobs = [
        {"method": "POST", "url": f"{server.url}/upload", "content": b"x" * (300_000 + number)} for number in range(6)
    ]
    for _ in range(3):
        results = together(runner, certificates, jobs, first=f"{server.url}/now", max_size=1)
        assert results == [str(300_000 + number) for number in range(6)]


@RUNNER
def test_a_stream_that_is_refused_while_its_body_is_sent_is_sent_again(
    h2_server: Make, certificates: Certificates, runner: str
) -> None:
    """The server has not processed it (RFC 9113, 8.7). Its window is full by then, so the body cannot continue."""
    server = h2_server(100)
    job = {"method": "POST", "url": f"{server.url}/refuse-upload", "content": b"x" * 300_000}
    assert together(runner, certificates, [job], first=f"{server.url}/now") == ["300000"]
    assert (server.requests, len(server.connections)) == (3, 1)


@RUNNER
def test_a_body_that_cannot_be_read_again_is_not_sent_again(
    h2_server: Make, certificates: Certificates, runner: str
) -> None:
    server = h2_server(100)

    def parts() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 1000

    async def async_parts() -> AsyncIterator[bytes]:
        for part in parts():
            yield part

    url = f"{server.url}/refuse-upload"
    jobs = [{"method": "POST", "url": url, "content": parts() if runner == "threads" else async_parts()}]
    (error,) = together(runner, certificates, jobs, first=f"{server.url}/now")
    assert isinstance(error, httpx.RemoteProtocolError)
    assert (server.requests, len(server.connections)) == (2, 1)


@RUNNER
def test_an_answer_before_the_end_of_the_body_is_an_answer(
    h2_server: Make, certificates: Certificates, runner: str
) -> None:
    """RFC 9113, 8.1: a server may answer and say that it does not want the rest."""
    server = h2_server(100)
    jobs = [{"method": "POST", "url": f"{server.url}/stop-upload", "content": b"x" * 300_000}] * 3
    assert together(runner, certificates, jobs, first=f"{server.url}/now") == ["stop"] * 3
    assert len(server.connections) == 1


@RUNNER
def test_a_read_timeout_ends_one_stream_of_a_live_connection(
    h2_server: Make, certificates: Certificates, runner: str
) -> None:
    server = h2_server(100)

    def meanwhile() -> None:
        until(lambda: server.waiting == 2)
        until(lambda: server.ping(0) or server.connections[0].resets)  # the server is alive all the time
        server.answer_all()

    jobs = [
        {"method": "GET", "url": f"{server.url}/wait", "timeout": httpx.Timeout(20, read=read)} for read in (0.5, 20)
    ]
    results = together(runner, certificates, jobs, first=f"{server.url}/now", max_size=1, meanwhile=meanwhile)
    assert [type(result) for result in results] == [httpx.ReadTimeout, str]
    assert len(server.connections) == 1


def test_in_threads_a_body_that_is_not_read_to_its_end_ends_its_stream_and_not_its_connection(
    https_server: HTTPServer, certificates: Certificates
) -> None:
    made = PoolkitTransport(verify=certificates.client_context(), http2=True, max_size=1, check_after_idle=None)
    with httpx.Client(transport=made, timeout=10) as client:
        for _ in range(25):  # more than the ten that the server allows at once
            with client.stream("GET", f"{https_server.url}/stream?chunks=50") as response:
                for _ in response.iter_raw():
                    break
        assert client.get(f"{https_server.url}/echo?key=after").json()["key"] == "after"
        assert made.poolkit.stats().connects == 1


def test_a_response_that_is_closed_while_another_thread_reads_it(h2_server: Make, certificates: Certificates) -> None:
    """The reading thread gets an error, although no more data arrives for its stream."""
    server = h2_server(10)
    with PoolkitConnectionPool(ssl_context=certificates.client_context(), http2=True) as pool:
        pool.request("GET", f"{server.url}/now")
        with pool.stream("GET", f"{server.url}/head") as response:
            errors: list[BaseException] = []

            def read() -> None:
                try:
                    response.read()
                except BaseException as error:
                    errors.append(error)

            reader = threading.Thread(target=read)
            reader.start()
            (link,) = pool._connector.links.values()
            until(lambda: link.http2._reading)
            response.close()
            server.ping(0)  # the reading thread reads for all
            reader.join(20)
        assert [type(error) for error in errors] == [httpcore.ReadError]


class _Own(PoolkitConnectionPool):
    """A pool that creates its connections itself, as httpx-socks does."""

    context: Any = None
    kind: type = httpcore.HTTP2Connection

    def create_connection(self, origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        stream = httpcore.SyncBackend().connect_tcp(origin.host.decode(), origin.port)
        stream = stream.start_tls(self.context, origin.host.decode())
        return self.kind(origin=origin, stream=stream)


class _Theirs(httpcore.HTTP2Connection):
    """A class of the application, which the adapter leaves as it is."""


@pytest.mark.parametrize("kind", [httpcore.HTTP2Connection, _Theirs])
def test_a_connection_of_the_users_own(h2_server: Make, certificates: Certificates, kind: type) -> None:
    server = h2_server(100)
    with _Own(max_connections=2) as pool:
        pool.kind, pool.context = kind, certificates.client_context()
        pool.context.set_alpn_protocols(["h2"])
        pool.request("GET", f"{server.url}/now")
        with ThreadPoolExecutor(10) as threads:
            answers = [
                one.content for one in threads.map(lambda _: pool.request("GET", f"{server.url}/now"), range(20))
            ]
        assert len(set(answers)) == 20
        assert pool.poolkit.stats().in_use == 0
        pool.poolkit.check_books()
    assert len(server.connections) == 1 if kind is httpcore.HTTP2Connection else len(server.connections) <= 2


@pytest.mark.anyio
async def test_a_connection_of_the_users_own_for_tasks(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(100)
    context = certificates.client_context()
    context.set_alpn_protocols(["h2"])
    host, port = "127.0.0.1", int(server.url.rpartition(":")[2])
    opened = await httpcore.AnyIOBackend().connect_tcp(host, port)
    opened = await opened.start_tls(context, host)

    class Own(AsyncPoolkitConnectionPool):
        def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
            return httpcore.AsyncHTTP2Connection(origin=origin, stream=opened)

    async with Own(max_connections=1) as pool:
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append((await pool.request("GET", f"{server.url}/now")).content)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
        assert len(set(answers)) == 10
        pool.poolkit.check_books()


def test_under_asyncio_a_goaway_is_noticed_while_the_connection_is_idle(
    h2_server: Make, certificates: Certificates
) -> None:
    server = h2_server(10)

    async def main() -> None:
        made = AsyncPoolkitTransport(verify=certificates.client_context(), http2=True)
        async with httpx.AsyncClient(transport=made, timeout=10) as client:
            await client.get(f"{server.url}/now")
            (link,) = made._pool._connector.links.values()  # type: ignore[attr-defined]
            server.goaway(0, 1)
            await until_async(lambda: not link.ready())
            assert (await client.post(f"{server.url}/now")).text == "1:1"

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:poolkit:ResourceWarning")
def test_a_dropped_pool_closes_its_connection(h2_server: Make, certificates: Certificates) -> None:
    server = h2_server(10)

    async def main() -> None:
        made = AsyncPoolkitTransport(verify=certificates.client_context(), http2=True)
        client = httpx.AsyncClient(transport=made)
        await client.get(f"{server.url}/now")
        del client, made
        gc.collect()
        await until_async(lambda: server.connections[0].h2 is None)

    asyncio.run(main())


def test_a_signal_handler_may_close_the_pool_at_any_moment(h2_server: Make, certificates: Certificates) -> None:
    """In this test, while the interrupted thread changes the state of the connection."""
    server = h2_server(10)
    with PoolkitConnectionPool(ssl_context=certificates.client_context(), http2=True) as pool:
        pool.request("GET", f"{server.url}/now")
        (link,) = pool._connector.links.values()
        with link.http2._lock:
            pool.close()
        assert pool.request("GET", f"{server.url}/now").content == b"1:1"


class _SoftLimit(Exception):
    """An error that a signal handler raises at any moment."""


@pytest.mark.parametrize("where", ["send_headers", "receive_data", "data_to_send"])
def test_a_thread_that_is_interrupted_in_the_middle_of_a_change_ends_the_connection(
    h2_server: Make, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It gets its own error, the others an error of httpcore, and the next request uses another connection."""
    server = h2_server(10)
    real = getattr(h2.connection.H2Connection, where)
    victim: list[threading.Thread] = []

    def interrupted(connection: h2.connection.H2Connection, *args: Any, **kwargs: Any) -> Any:
        found = real(connection, *args, **kwargs)
        if threading.current_thread() in victim:
            victim.clear()
            raise _SoftLimit
        return found

    with PoolkitConnectionPool(ssl_context=certificates.client_context(), http2=True) as pool:
        pool.request("GET", f"{server.url}/now")
        monkeypatch.setattr(h2.connection.H2Connection, where, interrupted)
        with ThreadPoolExecutor(1) as threads:
            other = threads.submit(pool.request, "POST", f"{server.url}/wait")
            until(lambda: server.waiting == 1)
            if where == "receive_data":  # the other thread reads, and is the one that is interrupted
                victim.extend(threads._threads)
                server.answer_all()
                with pytest.raises(_SoftLimit):
                    other.result(20)
            else:
                victim.append(threading.current_thread())
                with pytest.raises(_SoftLimit):
                    pool.request("POST", f"{server.url}/now")
                server.ping(0)
                with pytest.raises(httpcore.NetworkError):
                    other.result(20)
        assert pool.request("POST", f"{server.url}/now").content == b"1:1"
        pool.poolkit.check_books()
