"""Programs with the one changed line: urllib3, requests and boto3 on poolkit's connections."""

from __future__ import annotations

import functools
import http.server
import pickle
import queue
import ssl
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import requests
import urllib3

import poolkit
from poolkit.testing.servers import Certificates, HTTPServer
from poolkit_adapters.requests import PoolkitAdapter
from poolkit_adapters.urllib3 import (
    PoolkitHTTPConnectionPool,
    PoolkitPoolManager,
    PoolkitProxyManager,
    connection_from_url,
    proxy_from_url,
)
from tests.support.proxies import HTTPProxy, SOCKSProxy

PORT = "x-client-port"


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[HTTPServer]:
    """Return a server with TLS and HTTP/1.1."""
    with HTTPServer(tls=certificates) as server:
        yield server


def check_quiet(manager: Any) -> None:
    for engine in manager.engines:
        engine.check_books()
        assert engine.stats().in_use == 0


def test_a_pool_manager_keeps_its_connection(http_server: HTTPServer) -> None:
    with PoolkitPoolManager() as manager:
        assert isinstance(manager, urllib3.PoolManager)
        ports = {manager.request("GET", http_server.url).headers[PORT] for _ in range(5)}
        assert manager.request("POST", f"{http_server.url}/upload", body=b"x" * 100_000).json()["length"] == 100_000
        assert len(manager.request("GET", f"{http_server.url}/bytes?n=300000").data) == 300_000
        assert manager.request("HEAD", http_server.url).status == 200
        chunks = manager.request("GET", f"{http_server.url}/stream?chunks=5", preload_content=False)
        assert len(b"".join(chunks.stream()).splitlines()) == 5
        [engine] = manager.engines
        assert (engine.stats().connects, engine.stats().idle) == (1, 1)
        assert engine.name.endswith(f"/http://127.0.0.1:{http_server.port}")
        check_quiet(manager)
    assert len(ports) == 1
    assert engine.stats().size == 0


def test_a_pool_of_one_host(http_server: HTTPServer) -> None:
    with PoolkitHTTPConnectionPool("127.0.0.1", http_server.port, maxsize=2, block=True) as pool:
        assert pool.request("GET", "/").status == 200
        assert pool.pool.qsize() == 2
        assert len(pool.pool.queue) == 1
        assert pool.poolkit.config.max_size == 2
    with pytest.raises(urllib3.exceptions.ClosedPoolError):
        pool.request("GET", "/")
    with connection_from_url(http_server.url, max_size=3) as pool:
        assert pool.request("GET", "/").status == 200
        assert pool.block


def test_a_session_keeps_its_connection(http_server: HTTPServer) -> None:
    with requests.Session() as session:
        adapter = PoolkitAdapter()
        session.mount("http://", adapter)
        ports = {session.get(http_server.url).json()["client_port"] for _ in range(5)}
        with session.get(f"{http_server.url}/stream?chunks=5", stream=True) as response:
            assert len(list(response.iter_lines())) == 5
        assert session.get(f"{http_server.url}/status?code=503").status_code == 503
        assert adapter.engines[0].stats().connects == 1
        check_quiet(adapter)
    assert len(ports) == 1


def test_redirects_and_retries_by_status_give_the_place_back(http_server: HTTPServer) -> None:
    class Server(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status = {"/away": 302, "/busy": 503}.get(self.path, 200)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{http_server.url}/")
            body = b"x" * 50_000
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            with PoolkitPoolManager(maxsize=1, block=True, max_connections=1, acquire_timeout=60) as manager:
                assert manager.request("GET", f"{url}/away").headers[PORT]
                response = manager.request("GET", f"{url}/away", preload_content=False)
                assert response.geturl() == f"{http_server.url}/"
                response.drain_conn()
                with pytest.raises(urllib3.exceptions.MaxRetryError) as caught:
                    manager.request("GET", f"{url}/busy", retries=urllib3.Retry(2, status_forcelist=[503]))
                assert not isinstance(caught.value, poolkit.PoolError)  # the server has answered
                assert manager.budget.stats().limit == 1
                check_quiet(manager)
        finally:
            server.shutdown()
            thread.join()


def test_tls_options_choose_the_pool(secure: HTTPServer) -> None:
    with PoolkitPoolManager(ca_certs=secure.ca_path) as manager:
        assert {manager.request("GET", secure.url).status for _ in range(3)} == {200}
        assert manager.engines[0].stats().connects == 1
    with PoolkitPoolManager() as manager, pytest.raises(urllib3.exceptions.SSLError) as caught:
        manager.request("GET", secure.url, retries=False)
    assert isinstance(caught.value, poolkit.ConnectFailed)
    with requests.Session() as session:
        adapter = PoolkitAdapter()
        session.mount("https://", adapter)
        assert session.get(secure.url, verify=secure.ca_path).status_code == 200
        assert session.get(secure.url, verify=secure.ca_path).status_code == 200
        with pytest.raises(requests.exceptions.SSLError) as refused:
            session.get(secure.url)
        assert isinstance(refused.value, poolkit.ConnectFailed)
        assert len({engine.name for engine in adapter.engines}) == 2  # because the checks of the certificate differ
        assert sum(engine.stats().connects for engine in adapter.engines) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_http_proxy(http_server: HTTPServer, secure: HTTPServer, scheme: str) -> None:
    server = http_server if scheme == "http" else secure
    tls = {} if scheme == "http" else {"ssl_context": server.client_context}
    with HTTPProxy() as proxy:
        with PoolkitProxyManager(proxy.url, **tls) as manager:
            assert isinstance(manager, urllib3.ProxyManager)
            assert {manager.request("GET", server.url).status for _ in range(3)} == {200}
            assert (proxy.accepted, manager.engines[0].stats().connects) == (1, 1)
            check_quiet(manager)
        with proxy_from_url(proxy.url, **tls) as manager:
            assert manager.request("GET", server.url).status == 200
        with requests.Session() as session:
            session.mount(f"{scheme}://", PoolkitAdapter())
            found = session.get(server.url, proxies={scheme: proxy.url}, verify=scheme == "http" or server.ca_path)
            assert found.status_code == 200


def test_a_proxy_that_cannot_be_reached_is_blamed() -> None:
    with PoolkitProxyManager("http://127.0.0.1:1") as manager:
        for url in ("http://example.invalid/", "https://example.invalid/"):
            with pytest.raises(urllib3.exceptions.ProxyError) as caught:
                manager.request("GET", url, retries=False)
            assert isinstance(caught.value, poolkit.ConnectFailed)
    with requests.Session() as session:
        session.mount("http://", PoolkitAdapter())
        with pytest.raises(requests.exceptions.ProxyError) as refused:
            session.get("http://example.invalid/", proxies={"http": "http://127.0.0.1:1"})
        assert isinstance(refused.value, poolkit.ConnectFailed)


def test_an_error_behind_a_proxy_is_not_blamed_on_it(http_server: HTTPServer) -> None:
    """A read that takes too long: the place is free, and urllib3 still knows that the proxy was reached."""
    with HTTPProxy() as proxy, PoolkitProxyManager(proxy.url) as manager:
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            manager.request("GET", f"{http_server.url}/sleep?ms=600000", timeout=0.2, retries=False)
        check_quiet(manager)


def test_a_socks_proxy(http_server: HTTPServer) -> None:
    pytest.importorskip("socks")
    from poolkit_adapters.urllib3 import PoolkitSOCKSProxyManager

    with SOCKSProxy() as proxy:
        with PoolkitSOCKSProxyManager(proxy.url) as manager:
            assert {manager.request("GET", http_server.url).status for _ in range(3)} == {200}
            assert proxy.accepted == 1
            check_quiet(manager)
        with requests.Session() as session:
            session.mount("http://", PoolkitAdapter())
            assert session.get(http_server.url, proxies={"http": proxy.url}).status_code == 200


def test_an_application_may_have_its_own_pool_classes(http_server: HTTPServer) -> None:
    class Connection(urllib3.connection.HTTPConnection):  # type: ignore[misc]
        pass

    class OwnPool(urllib3.HTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Connection

    with PoolkitPoolManager() as manager:
        manager.pool_classes_by_scheme = {"http": OwnPool}
        assert manager.request("GET", http_server.url).status == 200
        pool = manager.connection_from_url(http_server.url)
        assert isinstance(pool, OwnPool)
        assert pool.poolkit.stats().connects == 1

        class Foreign:
            def __init__(self, host: str, port: int, **given: Any) -> None:
                self.given = given

        manager.pool_classes_by_scheme = {"http": Foreign}
        assert "_share" not in manager.connection_from_url("http://elsewhere.invalid").given


class ByTenant(PoolkitPoolManager):
    """Like a manager that gives each tenant a client certificate of its own."""

    tenant = 1

    def connection_from_context(self, request_context: dict[str, Any]) -> Any:
        return super().connection_from_context({**request_context, "timeout": self.tenant})


class Merging(PoolkitPoolManager):
    tenant = 1

    def _merge_pool_kwargs(self, override: Any) -> Any:
        return {**super()._merge_pool_kwargs(override), "timeout": self.tenant}


@pytest.mark.parametrize("kind", [ByTenant, Merging])
def test_an_application_may_choose_the_pool_of_each_request(http_server: HTTPServer, kind: Any) -> None:
    """A request of the second tenant must not go out on a connection that was authenticated for the first."""
    with kind() as manager:
        first = manager.request("GET", http_server.url).headers[PORT]
        manager.tenant = 2
        assert manager.request("GET", http_server.url).headers[PORT] != first
        manager.tenant = 1
        assert manager.request("GET", http_server.url).headers[PORT] == first


def test_the_arguments_of_a_request_arrive_as_they_were_given(
    http_server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instrumentations replace ``urlopen()`` of urllib3's class, and add a header to the keywords."""
    plain = urllib3.HTTPConnectionPool.urlopen
    seen: list[tuple[Any, ...]] = []

    def instrumented(pool: Any, *args: Any, **given: Any) -> Any:
        seen.append(args)
        return plain(pool, *args, **{**given, "headers": {**(given.get("headers") or {}), "x-trace": "1"}})

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", instrumented)
    with PoolkitPoolManager() as manager, requests.Session() as session:
        assert manager.request("GET", http_server.url, headers={"x-mine": "2"}).status == 200
        session.mount("http://", PoolkitAdapter())
        assert session.get(http_server.url).status_code == 200
    assert seen == [("GET", "/"), ("GET", "/")]


def test_an_adapter_can_be_pickled(http_server: HTTPServer) -> None:
    adapter = PoolkitAdapter(pool_maxsize=3, pool_block=True, max_waiting=5, name="orders")
    again = pickle.loads(pickle.dumps(adapter))
    with requests.Session() as session:
        session.mount("http://", again)
        assert session.get(http_server.url).status_code == 200
        assert again.engines[0].name.startswith("orders/")
        assert (again.engines[0].config.max_size, again.engines[0].config.max_waiting) == (3, 5)


class S3(http.server.BaseHTTPRequestHandler):
    """The part of S3 that two calls need."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        self.objects[self.path.partition("?")[0]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.objects[self.path.partition("?")[0]])

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class Counting(http.server.ThreadingHTTPServer):
    accepted = 0

    def get_request(self) -> Any:
        self.accepted += 1
        return super().get_request()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:boto")
def test_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of the page: each client that is made afterwards has poolkit's connections."""
    boto3 = pytest.importorskip("boto3")
    import botocore.httpsession
    from botocore.config import Config

    make = functools.partial(PoolkitPoolManager, name="s3", block=True, acquire_timeout=60.0)
    monkeypatch.setattr(botocore.httpsession, "PoolManager", make)
    monkeypatch.setattr(botocore.httpsession, "proxy_from_url", functools.partial(proxy_from_url, name="s3-proxy"))
    with Counting(("127.0.0.1", 0), S3) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            client = boto3.client(
                "s3", endpoint_url=f"http://127.0.0.1:{server.server_address[1]}", region_name="us-east-1",
                aws_access_key_id="none", aws_secret_access_key="none",
                config=Config(max_pool_connections=2, s3={"addressing_style": "path"}),
            )  # fmt: skip
            for number in range(5):
                client.put_object(Bucket="shop", Key=f"{number}", Body=b"%d" % number * 50_000)
                assert client.get_object(Bucket="shop", Key=f"{number}")["Body"].read() == b"%d" % number * 50_000
            [engine] = [pool for pool in poolkit.pools() if pool.name.startswith("s3/")]
            assert (server.accepted, engine.config.max_size) == (1, 2)
            assert engine.stats().in_use == 0
            streams = [client.get_object(Bucket="shop", Key="1")["Body"] for _ in range(2)]
            engine.reconfigure(acquire_timeout=0.01)
            with pytest.raises(botocore.exceptions.HTTPClientError) as caught:
                client.get_object(Bucket="shop", Key="1")
            assert isinstance(caught.value.kwargs["error"], poolkit.AcquireTimeout)
            for stream in streams:
                stream.close()
            client.close()
        finally:
            server.shutdown()
            thread.join()


def test_the_context_of_ssl_is_the_drivers(secure: HTTPServer) -> None:
    context = ssl.create_default_context(cafile=secure.ca_path)
    with PoolkitPoolManager(ssl_context=context) as manager:
        assert manager.request("GET", secure.url).status == 200


def test_a_queue_class_chooses_the_order_of_idle_connections() -> None:
    class Fifo(PoolkitHTTPConnectionPool):
        QueueCls = queue.Queue

    class Own(PoolkitHTTPConnectionPool):
        class QueueCls(queue.LifoQueue):  # type: ignore[type-arg]
            pass

    assert PoolkitHTTPConnectionPool("localhost").poolkit.config.order == "lifo"
    assert PoolkitHTTPConnectionPool("localhost", order="fifo").poolkit.config.order == "fifo"
    assert Fifo("localhost").poolkit.config.order == "fifo"
    assert Fifo("localhost", order="fifo").poolkit.config.order == "fifo"
    with pytest.raises(poolkit.ConfigError, match="contradict"):
        Fifo("localhost", order="lifo")
    with pytest.raises(poolkit.ConfigError, match=r"QueueCls=.*order='fifo'"):
        Own("localhost")
    manager = PoolkitPoolManager()
    manager.pool_classes_by_scheme = {"http": type("Of", (urllib3.HTTPConnectionPool,), {"QueueCls": queue.Queue})}
    assert manager.connection_from_url("http://localhost").poolkit.config.order == "fifo"
