"""One name in httpx's URLs, several HTTP servers behind it."""

from __future__ import annotations

import inspect
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from poolkit import ConfigError
from poolkit.cluster import ClusterConfig, Node, NoNodeAvailable
from poolkit.testing.servers import Certificates, HTTPServer, free_port
from poolkit_adapters.httpx import (
    AsyncPoolkitClusterTransport,
    LeaseOverdue,
    NoServerAvailable,
    PoolkitClusterTransport,
)
from tests.support.waiting import PATIENCE, until_async

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]
QUICK = ClusterConfig(eject_for=0.1, eject_max=0.2, slow_start=0, balance="round_robin")


@pytest.fixture(scope="module")
def _three() -> Iterator[list[HTTPServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(HTTPServer(fast=True)) for _ in range(3)]


@pytest.fixture
def three(_three: list[HTTPServer]) -> list[HTTPServer]:
    """Three running HTTP servers; a test may kill them."""
    return [server.start() for server in _three]


class Host:
    """A client with the logical host ``users``."""

    def __init__(self, flavour: str, nodes: list[Any], name: str = "users", **options: Any) -> None:
        self.threads = flavour == "threads"
        kind: Any = PoolkitClusterTransport if self.threads else AsyncPoolkitClusterTransport
        client: Any = httpx.Client if self.threads else httpx.AsyncClient
        self.transport = kind(nodes, name=name, **{"cluster": QUICK, **options})
        self.client = client(mounts={f"all://{name}": self.transport}, timeout=10)

    async def ask(self, method: str = "GET", url: str = "http://users/echo", **options: Any) -> httpx.Response:
        response: httpx.Response
        if self.threads:
            response = await anyio.to_thread.run_sync(lambda: self.client.request(method, url, **options))
        else:
            response = await self.client.request(method, url, **options)
        return response

    async def until(self, condition: Callable[[], object]) -> None:
        await until_async(condition, tell=lambda: self.transport.cluster.explain())

    async def __aenter__(self) -> Host:
        return self

    async def __aexit__(self, *exc: object) -> None:
        done = self.client.close() if self.threads else self.client.aclose()
        if inspect.isawaitable(done):
            await done
        assert all(node.leases == 0 for node in self.transport.cluster.stats().nodes)


def addresses(servers: list[HTTPServer]) -> list[Node]:
    return [Node(f"n{number}", f"{server.host}:{server.port}") for number, server in enumerate(servers)]


async def test_requests_spread_over_the_servers_under_one_name(flavour: str, three: list[HTTPServer]) -> None:
    """The answer has the URL of the request."""
    before = [server.stats().requests for server in three]
    async with Host(flavour, addresses(three)) as host:
        for number in range(9):
            response = await host.ask(params={"key": str(number)})
            assert response.json()["key"] == str(number)
            assert response.request.url.host == "users"
        assert [server.stats().requests - was for server, was in zip(three, before, strict=True)] == [3, 3, 3]
        served = [node.served for node in host.transport.cluster.stats().nodes]
        assert served == [3, 3, 3]


async def test_a_dead_server_fails_no_request_and_comes_back(flavour: str, three: list[HTTPServer]) -> None:
    """Idempotent requests, and a POST that was not sent, go to another server; the dead one is ejected, then probed."""
    async with Host(flavour, addresses(three)) as host:
        for _ in range(6):
            await host.ask()
        three[0].kill()
        codes = Counter([(await host.ask()).status_code for _ in range(12)])
        assert codes == {200: 12}
        await host.until(lambda: host.transport.cluster.stats().nodes[0].state != "usable")
        host.transport.cluster.pool("n0")
        three[0].start()
        await host.until(lambda: host.transport.cluster.stats().nodes[0].state == "usable")
        before = three[0].stats().requests
        for _ in range(6):
            assert (await host.ask("POST", "http://users/upload", content=b"x")).json()["length"] == 1
        assert three[0].stats().requests - before == 2


async def test_a_post_that_was_sent_is_not_sent_twice(flavour: str) -> None:
    """The connection breaks after the request: a GET goes to the next server, a POST raises its error."""
    with Breaker() as first, Breaker() as second:
        nodes = [f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"]
        settings = QUICK.replace(eject_after=None)
        async with Host(flavour, nodes, cluster=settings) as host:
            with pytest.raises(httpx.TransportError):
                await host.ask("POST", content=b"pay")
            assert first.requests + second.requests == 1
            with pytest.raises(httpx.TransportError):
                await host.ask()
            assert first.requests + second.requests == 3


async def test_a_server_that_answers_503_is_ejected_until_its_health_check_succeeds(
    flavour: str, three: list[HTTPServer]
) -> None:
    """After a 503 the request goes to the next server; health= requests a path, not only a connection."""
    with Breaker(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as ill:
        nodes = [Node("ill", f"127.0.0.1:{ill.port}"), *addresses(three[:1])]
        async with Host(flavour, nodes, health="/healthz", retries=1) as host:
            codes = [(await host.ask()).status_code for _ in range(8)]
            assert codes == [200] * 8
            await host.until(lambda: host.transport.cluster.stats().nodes[0].ejections >= 2)
            last_error = host.transport.cluster.stats().nodes[0].last_error
            assert "health check of /healthz returned status 503" in str(last_error)
            ill.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            await host.until(lambda: host.transport.cluster.stats().nodes[0].state == "usable")
        async with Host(flavour, nodes[:1]) as host:
            ill.answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            assert (await host.ask()).status_code == 503


async def test_a_response_whose_close_fails_keeps_no_place(flavour: str) -> None:
    """The answer 503 comes later than ``leak_after``. Its error may be kept, for example by an error tracker."""
    with (
        Breaker(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") as first,
        Breaker(first.answer) as second,
    ):
        nodes = [f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"]
        first.may_answer.clear()
        second.may_answer.clear()
        settings = QUICK.replace(eject_after=None)
        async with Host(flavour, nodes, cluster=settings, leak_after=0.01, on_leak="raise", max_requests=1) as host:
            caught: list[BaseException] = []

            async def ask() -> None:
                with pytest.raises(LeaseOverdue) as raised:
                    await host.ask()
                caught.append(raised.value)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await host.until(
                    lambda: any(node.pool and node.pool.leaks for node in host.transport.cluster.stats().nodes)
                )
                first.may_answer.set()
                second.may_answer.set()
            assert caught
            assert [node.leases for node in host.transport.cluster.stats().nodes] == [0, 0]


class Breaker:
    """A server that reads a request, sends an answer if it has one, and closes the connection."""

    def __init__(self, answer: bytes = b"") -> None:
        import socket

        self.answer = answer
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.requests = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.port = int(self._socket.getsockname()[1])
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                if connection.recv(65536):
                    self.requests += 1
                    self.may_answer.wait(PATIENCE)
                    connection.sendall(self.answer)

    def __enter__(self) -> Breaker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(5)
        self._socket.close()


async def test_without_a_server_the_error_is_httpxs_and_names_them_all(flavour: str) -> None:
    """A ConnectError with the request that failed."""
    dead = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    async with Host(flavour, dead, retries=5, cluster=QUICK.replace(max_ejected_share=1.0, eject_after=1)) as host:
        with pytest.raises(httpx.ConnectError) as refused:
            await host.ask()
        assert refused.value.request.url.host == "users"
        with pytest.raises(NoServerAvailable) as caught:
            for _ in range(3):
                try:
                    await host.ask()
                except NoServerAvailable:
                    raise
                except httpx.ConnectError:
                    continue
        assert isinstance(caught.value, (NoNodeAvailable, httpx.ConnectError))
        assert set(caught.value.errors) == set(dead)


async def test_the_name_in_the_certificate_stays_the_logical_one(flavour: str, certificates: Certificates) -> None:
    """The servers are reached by address; the certificate is checked for the name in the URL."""
    with HTTPServer(tls=certificates) as server:
        nodes = [f"https://{server.host}:{server.port}"]
        context = server.client_context
        async with Host(flavour, nodes, name="localhost", verify=context) as host:
            assert (await host.ask(url="https://localhost/echo")).status_code == 200
        async with Host(flavour, nodes, name="elsewhere", verify=context) as host:
            with pytest.raises(httpx.ConnectError) as refused:
                await host.ask(url="https://elsewhere/echo")
            assert "not valid for 'elsewhere'" in told(refused.value)
        async with Host(flavour, nodes, name="elsewhere", verify=context, keep_host=False) as host:
            assert (await host.ask(url="https://elsewhere/echo")).status_code == 200


def contexts_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which TLS contexts are created."""
    made: list[str] = []
    original = httpx.create_ssl_context

    def create(verify: Any = True, **options: Any) -> ssl.SSLContext:
        if not isinstance(verify, ssl.SSLContext):
            made.append(threading.current_thread().name)
        return original(verify=verify, **options)

    monkeypatch.setattr(httpx, "create_ssl_context", create)
    return made


async def test_plain_http_needs_no_tls_context(
    flavour: str, three: list[HTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = contexts_made(monkeypatch)
    nodes = [Node("n0", f"http://{three[0].host}:{three[0].port}"), *addresses(three)[1:]]
    async with Host(flavour, nodes[:1]) as host:
        host.transport.cluster.update(nodes)
        for _ in range(6):
            assert (await host.ask()).status_code == 200
    assert made == []


async def test_all_servers_share_one_tls_context_which_is_made_outside_of_the_event_loop(
    flavour: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = tmp_path / "authority.pem"
    certificates.authority.cert_pem.write_to_path(str(authority))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    made = contexts_made(monkeypatch)
    with HTTPServer(tls=certificates) as first, HTTPServer(tls=certificates) as second:
        nodes = [f"https://{server.host}:{server.port}" for server in (first, second)]
        async with Host(flavour, nodes[:1], name="localhost", health="/echo") as host:
            assert (await host.ask(url="https://localhost/echo")).status_code == 200
            host.transport.cluster.update(nodes)  # the new one is asked for its health first
            await host.until(lambda: all(node.state == "usable" for node in host.transport.cluster.stats().nodes))
            for _ in range(8):
                assert (await host.ask(url="https://localhost/echo")).status_code == 200
            assert all(node.served for node in host.transport.cluster.stats().nodes)
    assert len(made) == 1
    assert made[0] != threading.main_thread().name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of httpx, for files
async def test_unreadable_certificates_raise_at_once(flavour: str) -> None:
    with pytest.raises(FileNotFoundError):
        Host(flavour, ["127.0.0.1:1"], cert="/there/is/no/such/file")


async def test_close_aborts_requests_and_a_later_request_starts_again(flavour: str, three: list[HTTPServer]) -> None:
    """As with httpx's own transports; the current nodes are used."""
    async with Host(flavour, addresses(three)[:1]) as host:
        host.transport.cluster.update(addresses(three)[1:])
        failed: list[BaseException] = []

        async def cut() -> None:
            with pytest.raises(httpx.TransportError) as caught:
                await host.ask(url="http://users/sleep?ms=600000")
            failed.append(caught.value)

        before = host.transport.cluster
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(cut)
                await host.until(lambda: before.stats().leases == 2)
                await host.until(lambda: sum(n.pool.in_use for n in before.stats().nodes if n.pool is not None) == 2)
                await anyio.sleep(0.1)  # the requests are sent; one that is not fails in another way
                if host.threads:
                    await anyio.to_thread.run_sync(host.transport.close)
                else:
                    await host.transport.aclose()
        assert len(failed) == 2
        assert before.closed
        used = [server.stats().requests for server in three]
        for _ in range(4):
            assert (await host.ask()).status_code == 200
        now = [server.stats().requests for server in three]
        assert (now[0] - used[0], now[1] + now[2] - used[1] - used[2]) == (0, 4)
        assert host.transport.cluster is not before


def told(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return " ".join(parts)


async def test_a_key_stays_with_its_server_and_places_are_bounded(flavour: str, three: list[HTTPServer]) -> None:
    """poolkit_key, and max_requests with httpx's own pool timeout."""
    async with Host(flavour, addresses(three), max_requests=1) as host:
        before = [server.stats().requests for server in three]
        for _ in range(6):
            await host.ask(extensions={"poolkit_key": "user 7"})
        assert sorted(s.stats().requests - was for s, was in zip(three, before, strict=True)) == [0, 0, 6]
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(lambda: host.ask(url="http://users/sleep?ms=300"))
            await host.until(lambda: host.transport.cluster.stats().leases == 3)
            with pytest.raises(httpx.PoolTimeout, match="no free place on a node"):
                await host.ask(timeout=httpx.Timeout(10, pool=0.02))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"nodes": ["ftp://x"]}, r"must be host:port or http\(s\)://host:port"),
        ({"nodes": ["http://x/path"]}, "must be host:port"),
        ({"nodes": []}, "the list of nodes is empty"),
        ({"nodes": ["x"], "retries": -1}, "retries=-1"),
        ({"nodes": ["x"], "max_requests": 0}, "max_requests=0"),
    ],
)
async def test_an_invalid_value_raises_a_config_error_that_names_it(
    flavour: str, options: dict[str, Any], match: str
) -> None:
    """The constructor raises."""
    kind: Any = PoolkitClusterTransport if flavour == "threads" else AsyncPoolkitClusterTransport
    with pytest.raises(ConfigError, match=match):
        kind(**options)
