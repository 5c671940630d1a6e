"""A proxy that answers byte by byte, or not at all: opening the connection takes no longer than the connect timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anyio
import httpcore
import pytest

from poolkit import ConnectTimeout
from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.support.proxies import HTTPProxy, SOCKSProxy
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

LIMIT = 0.5


class Endless(HTTPProxy):
    """A proxy whose endless answer to ``CONNECT`` comes byte by byte, each well within the limit of a read."""

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(LIMIT / 10)


class Silent(SOCKSProxy):
    """A proxy that sends nothing. httpcore reads the answers of a SOCKS proxy without a limit."""

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()


@pytest.fixture(params=[HTTPProxy, SOCKSProxy])
def proxy(request: pytest.FixtureRequest) -> Iterator[httpcore.Proxy]:
    with request.param() as running:
        yield httpcore.Proxy(running.url)


async def get(world: str, url: str, options: dict[str, Any], limit: float | None) -> tuple[int, Any]:
    """Return the status of one request and the stream of its connection."""
    extensions = {"timeout": {} if limit is None else {"connect": limit}}
    if world == "threads":

        def work() -> tuple[int, Any]:
            with PoolkitConnectionPool(**options) as pool, pool.stream("GET", url, extensions=extensions) as response:
                response.read()
                return response.status, response.extensions["network_stream"]

        return await anyio.to_thread.run_sync(work)
    async with AsyncPoolkitConnectionPool(**options) as pool:
        async with pool.stream("GET", url, extensions=extensions) as response:
            await response.aread()
            return response.status, response.extensions["network_stream"]


WORLDS = pytest.mark.parametrize(
    ("world", "anyio_backend"), [("threads", "asyncio"), ("asyncio", "asyncio"), ("trio", "trio")]
)


@WORLDS
@pytest.mark.parametrize("limit", ["request", "pool"])
@pytest.mark.parametrize("proxy", [Endless, Silent], indirect=True)
async def test_a_proxy_has_no_longer_than_the_connect_timeout(
    world: str, limit: str, proxy: httpcore.Proxy, https_server: HTTPServer
) -> None:
    options: dict[str, Any] = {"proxy": proxy, "ssl_context": https_server.client_context}
    if limit == "pool":
        options["connect_timeout"] = LIMIT
    with pytest.raises(httpcore.ConnectTimeout) as caught:
        await get(world, https_server.url, options, LIMIT if limit == "request" else None)
    assert isinstance(caught.value, ConnectTimeout)


@WORLDS
@pytest.mark.parametrize("http2", [False, True])
async def test_the_limit_ends_when_the_connection_is_open(
    world: str, http2: bool, proxy: httpcore.Proxy, https_server: HTTPServer
) -> None:
    """The rest of the request may take as long as its own limits allow."""
    options = {"proxy": proxy, "ssl_context": https_server.client_context, "http2": http2}
    status, stream = await get(world, https_server.url, options, PATIENCE)
    assert status == 200
    layers = []
    while stream is not None:
        if hasattr(stream, "opens_until"):
            layers.append(stream.opens_until)
        stream = getattr(stream, "_stream", None)
    assert layers
    assert set(layers) == {None}
