"""The recipes of docs/guides/sdks.md, with the real SDKs, against servers of our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit.testing.servers import Certificates
from tests.sdks.servers import MODEL, SDKServer
from tests.support.proxies import HTTPProxy
from tests.support.waiting import until_async

httpx2 = pytest.importorskip("httpx2", reason="httpx2 needs Python 3.11")
adapter = pytest.importorskip("poolkit_adapters.httpx2")

MESSAGES: Any = [{"role": "user", "content": "hello"}]
AT_ONCE, CONNECTIONS = 200, 20


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies, accounts or telemetry from outside."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(params=["plain", "tls"])
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[SDKServer]:
    with SDKServer(certificates.server_context() if request.param == "tls" else None) as server:
        yield server


class OpenAI:
    """openai."""

    def __init__(self) -> None:
        self.sdk = pytest.importorskip("openai")

    def client(self, server: SDKServer, http: Any) -> Any:
        kind = self.sdk.OpenAI if isinstance(http, httpx2.Client) else self.sdk.AsyncOpenAI
        return kind(api_key="key", base_url=f"{server.url}/v1", http_client=http, max_retries=0)

    def ask(self, client: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=MESSAGES)

    def stream(self, client: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)

    def text(self, answer: Any) -> str:
        return str(answer.choices[0].message.content)


class Anthropic:
    """anthropic."""

    def __init__(self) -> None:
        self.sdk = pytest.importorskip("anthropic")

    def client(self, server: SDKServer, http: Any) -> Any:
        kind = self.sdk.Anthropic if isinstance(http, httpx2.Client) else self.sdk.AsyncAnthropic
        return kind(api_key="key", base_url=server.url, http_client=http, max_retries=0)

    def ask(self, client: Any) -> Any:
        return client.messages.create(model=MODEL, max_tokens=9, messages=MESSAGES)

    def stream(self, client: Any) -> Any:
        return client.messages.create(model=MODEL, max_tokens=9, messages=MESSAGES, stream=True)

    def text(self, answer: Any) -> str:
        return str(answer.content[0].text)


@pytest.fixture(params=[OpenAI, Anthropic], ids=["openai", "anthropic"])
def service(request: pytest.FixtureRequest) -> Any:
    return request.param()


def http_client(certificates: Certificates, **settings: Any) -> Any:
    return adapter.Client(verify=certificates.client_context(), follow_redirects=True, **settings)


def async_client(certificates: Certificates, **settings: Any) -> Any:
    return adapter.AsyncClient(verify=certificates.client_context(), follow_redirects=True, **settings)


def at_rest(http: Any) -> bool:
    return http.poolkit.stats().leases == 0


def test_answers_and_streams_in_threads(service: Any, server: SDKServer, certificates: Certificates) -> None:
    with http_client(certificates) as http:
        client = service.client(server, http)
        for _ in range(5):
            assert service.text(service.ask(client)) == "hello"
            assert len(list(service.stream(client))) >= 3
        assert server.requests == 10
        assert server.accepted == 1
        assert at_rest(http)


def test_answers_and_streams_in_tasks(service: Any, server: SDKServer, certificates: Certificates) -> None:
    async def main() -> None:
        async with async_client(certificates) as http:
            client = service.client(server, http)
            for _ in range(5):
                assert service.text(await service.ask(client)) == "hello"
                assert len([part async for part in await service.stream(client)]) >= 3
            assert server.accepted == 1
            assert at_rest(http)

    asyncio.run(main())


def test_200_at_once(service: Any, server: SDKServer, certificates: Certificates) -> None:
    server.pause = 0.005

    async def one(client: Any, number: int) -> int:
        if number % 2:
            return len([part async for part in await service.stream(client)])
        return len(service.text(await service.ask(client)))

    async def main() -> None:
        async with async_client(certificates, max_size=CONNECTIONS, timeout=60) as http:
            client = service.client(server, http)
            found = await asyncio.gather(*(one(client, number) for number in range(AT_ONCE)))
            assert min(found) >= 3
            assert server.requests == AT_ONCE
            assert server.accepted <= CONNECTIONS
            assert at_rest(http)

    asyncio.run(main())


def test_cancelled_streams_and_requests_leave_nothing_behind(
    service: Any, server: SDKServer, certificates: Certificates
) -> None:
    server.parts, server.pause = 10_000, 0.005

    async def read(client: Any, begun: asyncio.Event) -> None:
        async for _ in await service.stream(client):
            begun.set()

    async def main() -> None:
        async with async_client(certificates, max_size=4, timeout=60) as http:
            client = service.client(server, http)
            await service.ask(client)  # the first call looks at the platform in a thread, and may be overtaken
            for _ in range(3):
                events = [asyncio.Event() for _ in range(4)]
                tasks = [asyncio.ensure_future(read(client, begun)) for begun in events]
                waiting = [asyncio.ensure_future(service.ask(client)) for _ in range(4)]
                for begun in events:
                    await begun.wait()
                for task in (*tasks, *waiting):
                    task.cancel()
                ended = await asyncio.gather(*tasks, *waiting, return_exceptions=True)
                assert {type(error) for error in ended} == {asyncio.CancelledError}
                await until_async(lambda: at_rest(http))
            server.parts = 3
            assert service.text(await service.ask(client)) == "hello"
            http.poolkit.check_books()

    asyncio.run(main())


def test_the_proxy_of_the_environment_is_used(
    service: Any, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    """With a transport of one's own, it would be ignored silently."""
    with SDKServer() as server, HTTPProxy() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with http_client(certificates) as http:
            assert service.text(service.ask(service.client(server, http))) == "hello"
        assert proxy.accepted == 1


def test_a_pool_timeout_is_the_cause_of_the_sdks_error(service: Any, certificates: Certificates) -> None:
    with SDKServer() as server:
        with http_client(certificates, max_size=1, timeout=httpx2.Timeout(10, pool=0.05)) as http:
            client = service.client(server, http)
            server.parts, server.pause = 10_000, 0.005
            stream = service.stream(client)
            with pytest.raises(service.sdk.APITimeoutError) as caught:
                service.ask(client)
            assert isinstance(caught.value.__cause__, adapter.AcquireTimeout)
            stream.close()


def test_huggingface_hub(server: SDKServer, certificates: Certificates) -> None:
    hub = pytest.importorskip("huggingface_hub")
    before = hub.get_session()
    made: list[Any] = []

    def factory() -> Any:
        hooks = before.event_hooks
        made.append(http_client(certificates, event_hooks=hooks, timeout=None, max_size=CONNECTIONS))
        return made[-1]

    hub.set_client_factory(factory)
    try:
        api = hub.HfApi(endpoint=server.url, token=False)
        for _ in range(5):
            assert api.model_info("org/model").id == "org/model"
        assert len(made) == 1
        assert server.accepted == 1
        threads = [threading.Thread(target=api.model_info, args=("org/model",)) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert server.requests >= 45
        assert server.accepted <= CONNECTIONS
        assert at_rest(made[0])
    finally:
        hub.set_client_factory(httpx2.Client)
        hub.close_session()


@contextlib.contextmanager
def mcp_server() -> Iterator[str]:
    mcp_servers = pytest.importorskip("mcp.server.mcpserver")
    uvicorn = pytest.importorskip("uvicorn")
    tools = mcp_servers.MCPServer("tools")

    @tools.tool()
    async def add(first: int, second: int) -> int:
        """Add two numbers."""
        await asyncio.sleep(0.001)
        return first + second

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(tools.streamable_http_app(), log_level="critical", lifespan="on")
    program = uvicorn.Server(config)
    thread = threading.Thread(target=program.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not program.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        program.should_exit = program.force_exit = True
        thread.join(30)
        listener.close()


def test_mcp() -> None:
    mcp = pytest.importorskip("mcp")
    connect: Any = pytest.importorskip("mcp.client.streamable_http").streamable_http_client

    async def main(url: str) -> None:
        async with adapter.AsyncClient(timeout=httpx2.Timeout(30, read=300), max_size=CONNECTIONS) as http:
            async with mcp.Client(connect(url, http_client=http)) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == ["add"]
                calls = [client.call_tool("add", {"first": one, "second": 1}) for one in range(AT_ONCE)]
                found = await asyncio.gather(*calls)
                assert [int(one.content[0].text) for one in found] == list(range(1, AT_ONCE + 1))
                cancelled = asyncio.ensure_future(client.call_tool("add", {"first": 1, "second": 1}))
                await asyncio.sleep(0)
                cancelled.cancel()
                await asyncio.gather(cancelled, return_exceptions=True)
                assert (await client.call_tool("add", {"first": 1, "second": 1})).content[0].text == "2"
            await until_async(lambda: at_rest(http))
            assert http.poolkit.stats().size <= CONNECTIONS

    with mcp_server() as url:
        asyncio.run(main(url))
