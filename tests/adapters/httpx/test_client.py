"""The clients: all transports are poolkit's, and the library's arguments keep their meaning."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import anyio
import httpx
import pytest

import poolkit
from poolkit import ConfigError, PoolConfig, Setting
from poolkit.testing.servers import Certificates, HTTPServer
from poolkit_adapters import httpx as adapter
from poolkit_adapters.httpx import AsyncClient, AsyncPoolkitTransport, Client, PoolkitTransport
from tests.support.proxies import HTTPProxy, SOCKSProxy

KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])
ENVIRONMENT = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Leave only the test's proxies in the environment."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def transports(client: Any) -> dict[str, Any]:
    return {pattern.pattern: transport for pattern, transport in client._mounts.items()}


def statuses(kind: Any, *urls: str, backend: str = "asyncio", **options: Any) -> list[int]:
    """Get these URLs with one client and return the statuses."""
    if kind is Client:
        with Client(**options) as client:
            return [client.get(url).status_code for url in urls]

    async def main() -> list[int]:
        async with AsyncClient(**options) as client:
            return [(await client.get(url)).status_code for url in urls]

    return anyio.run(main, backend=backend)


@pytest.mark.parametrize(("kind", "backend"), [(Client, ""), (AsyncClient, "asyncio"), (AsyncClient, "trio")])
def test_one_line(kind: Any, backend: str, http_server: HTTPServer) -> None:
    before = http_server.stats().accepted
    assert statuses(kind, *[http_server.url] * 5, backend=backend) == [200] * 5
    assert http_server.stats().accepted == before + 1


def test_they_are_the_librarys_own_clients() -> None:
    assert issubclass(Client, httpx.Client)
    assert issubclass(AsyncClient, httpx.AsyncClient)


@KINDS
def test_limits_and_settings(kind: Any) -> None:
    found = kind().poolkit.describe()
    assert found["max_size"] == Setting(100, f"{httpx.__name__}'s default (max_connections)")
    found = kind(limits=httpx.Limits(max_connections=7), max_waiting=3, name="users").poolkit.describe()
    assert (found["max_size"], found["max_waiting"]) == (Setting(7, "keyword max_connections"), Setting(3, "keyword"))
    assert kind(name="users").poolkit.name == "users"
    config = PoolConfig(max_size=4, max_lifetime=60)
    assert kind(config=config).poolkit.config.max_size == 4
    assert kind(config=config, max_size=5).poolkit.config.max_size == 5


@KINDS
def test_listeners(kind: Any, http_server: HTTPServer) -> None:
    seen: list[Any] = []
    assert statuses(kind, http_server.url, listeners=[seen.append]) == [200]
    assert seen


@KINDS
def test_verify_http2_and_cert_reach_the_connections(kind: Any, certificates: Certificates) -> None:
    with HTTPServer(tls=certificates, http2=True) as server:
        options: dict[str, Any] = {"verify": certificates.client_context(), "http2": True}
        if kind is Client:
            with Client(**options) as client:
                assert client.get(server.url).http_version == "HTTP/2"
            with pytest.raises(httpx.ConnectError), Client() as client:
                client.get(server.url)
        else:
            assert statuses(kind, server.url, **options) == [200]
            with pytest.raises(httpx.ConnectError):
                statuses(kind, server.url)


@KINDS
def test_a_proxy(kind: Any, http_server: HTTPServer) -> None:
    with HTTPProxy() as proxy:
        assert statuses(kind, http_server.url, proxy=proxy.url) == [200]
        assert proxy.accepted == 1
    with SOCKSProxy() as socks:
        assert statuses(kind, http_server.url, proxy=socks.url) == [200]
        assert socks.accepted == 1


@KINDS
def test_the_proxies_of_the_environment(
    kind: Any, http_server: HTTPServer, other_http_server: HTTPServer, environment: pytest.MonkeyPatch
) -> None:
    with HTTPProxy() as proxy:
        environment.setenv("http_proxy", proxy.url)
        assert statuses(kind, http_server.url) == [200]
        assert proxy.accepted == 1
        assert statuses(kind, http_server.url, trust_env=False) == [200]
        environment.setenv("no_proxy", "127.0.0.1")
        assert statuses(kind, other_http_server.url) == [200]
        assert proxy.accepted == 1


@KINDS
def test_every_transport_has_the_limits_and_settings(kind: Any, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("all_proxy", "http://127.0.0.1:1")
    environment.setenv("http_proxy", "http://127.0.0.1:2")
    client = kind(limits=httpx.Limits(max_connections=7), max_waiting=3, name="users", verify=False)
    own = PoolkitTransport if kind is Client else AsyncPoolkitTransport
    found = [client._transport, *transports(client).values()]
    assert len(found) == 3
    assert all(type(transport) is own for transport in found)
    assert {(one.poolkit.config.max_size, one.poolkit.config.max_waiting) for one in found} == {(7, 3)}
    assert {one.poolkit.name for one in found} == {"users", "users/proxy-1", "users/proxy-2"}


@KINDS
def test_mounts_stay_the_users(kind: Any) -> None:
    own = httpx.MockTransport(lambda request: httpx.Response(204))
    client = kind(mounts={"all://users": own})
    assert transports(client) == {"all://users": own}
    assert statuses(kind, "http://users/1", mounts={"all://users": own}) == [204]


@KINDS
def test_a_transport_of_ones_own_needs_no_settings(kind: Any) -> None:
    own = httpx.MockTransport(lambda request: httpx.Response(204))
    assert statuses(kind, "http://users/1", transport=own) == [204]
    with pytest.raises(ConfigError, match="max_waiting=3: has no effect with transport=; pass it to the transport"):
        kind(transport=own, max_waiting=3)


@KINDS
def test_further_arguments_of_the_transports(kind: Any, tmp_path: Any) -> None:
    client = kind(retries=2, local_address="127.0.0.1")
    assert (client._transport._pool._retries, client._transport._pool._local_address) == (2, "127.0.0.1")
    with pytest.raises(ConfigError, match="has no effect with a proxy"):
        kind(uds=str(tmp_path / "socket"), proxy="http://127.0.0.1:1")


@KINDS
def test_a_wrong_word_is_one_clear_error(kind: Any) -> None:
    with pytest.raises(ConfigError, match="max_sise"):
        kind(max_sise=5)
    with pytest.raises(ConfigError, match="max_connections=5 and max_size=6"):
        kind(limits=httpx.Limits(max_connections=5), max_size=6)


def test_errors_are_both(http_server: HTTPServer) -> None:
    with Client(max_size=1, timeout=httpx.Timeout(10, pool=0.05)) as client:
        with client.stream("GET", http_server.url), pytest.raises(httpx.PoolTimeout) as caught:
            client.get(http_server.url)
    assert isinstance(caught.value, poolkit.AcquireTimeout)
    assert isinstance(caught.value, adapter.AcquireTimeout)


def test_every_argument_of_the_library_is_passed_on() -> None:
    """Those that the library passes to its transports: without this test a new one would have no effect."""
    given = set(inspect.signature(httpx.Client._init_transport).parameters) - {"self", "transport", "app"}
    assert given <= set(inspect.signature(PoolkitTransport).parameters)
    assert not set(inspect.signature(httpx.Client).parameters) & {"config", "name", "listeners"}
    assert not set(inspect.signature(httpx.Client).parameters) & set(PoolConfig.__dataclass_fields__)


def test_a_closed_client_leaves_nothing_behind(http_server: HTTPServer) -> None:
    code = (
        f"from poolkit_adapters.{httpx.__name__} import Client\n"
        f"client = Client()\nprint(client.get({http_server.url!r}).status_code)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert (result.stdout, result.stderr) == ("200\n", "")
