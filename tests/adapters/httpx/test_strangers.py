"""A reply never reaches another request, and no request fails because the server had closed an idle connection."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import httpcore
import pytest

from bench.strangers import measure
from poolkit.testing.servers import Certificates
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.support.strangers import (
    RUNNERS,
    SPOILT,
    TLS_ONLY,
    WAYS,
    Misbehaving,
    Talk,
    conversation,
    run,
)

from .h2server import H2Server

ALL = [
    pytest.param(
        name, marks=[pytest.mark.skipif(not importlib.util.find_spec("uvloop"), reason="needs uvloop")]
    ) if name == "uvloop" else name
    for name in RUNNERS
]  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("runner", ALL)
def test_a_reply_never_reaches_another_request(certificates: Certificates, runner: str, way: str, how: str) -> None:
    """A connection with unread data is closed, and the next request, a POST, gets another one. It is the
    same whether the event loop has read what is left, and whatever ``check_after_idle`` is.
    """
    if how in TLS_ONLY and not way.startswith("https"):
        return
    for version in ("1.1", "1.0"):
        with Misbehaving(certificates, way, version) as server:
            for turns in (0, 8):

                async def main(talk: Talk, server: Misbehaving = server, turns: int = turns) -> list[str]:
                    return await conversation(talk, server, how, turns)

                spoilt, first, second = run(runner, server, main, check_after_idle=3600)
                assert spoilt != first
                assert (first == second) == (version == "1.1")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("runner", ALL)
def test_a_sound_connection_is_used_again(certificates: Certificates, runner: str, way: str) -> None:
    """Also one on which a TLS record without data has arrived, such as a session ticket."""
    with Misbehaving(certificates, way) as server:
        for how in ("well", "tls-record") if way.startswith("https") else ("well",):
            for turns in (0, 8):

                async def main(talk: Talk, how: str = how, turns: int = turns) -> list[str]:
                    return await conversation(talk, server, how, turns, more=5)

                assert len(set(run(runner, server, main))) == 1


@pytest.mark.parametrize("runner", ALL)
def test_the_stress_program_finds_no_strangers(certificates: Certificates, runner: str) -> None:
    """Runs ``python -m bench.strangers`` for a moment."""
    for way in ("http", "https"):
        found = measure(certificates, runner, way, 100)
        assert found["right"] == found["requests"] == 100, found


class OwnStream(httpcore.NetworkStream):
    """A stream of the application that delegates, with attributes that the adapter does not know."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.read = inner.read  # type: ignore[method-assign]
        self.write = inner.write  # type: ignore[method-assign]
        self.close = getattr(inner, "close", None)  # type: ignore[method-assign]
        self.get_extra_info = inner.get_extra_info  # type: ignore[method-assign]

    def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return OwnStream(self.inner.start_tls(*args, **kwargs))


class AsyncOwnStream(httpcore.AsyncNetworkStream):
    """The same for tasks; ``_stream`` is a name that httpcore's own use."""

    def __init__(self, inner: Any) -> None:
        self._stream = inner
        self.read = inner.read  # type: ignore[method-assign]
        self.write = inner.write  # type: ignore[method-assign]
        self.aclose = inner.aclose  # type: ignore[method-assign]
        self.get_extra_info = inner.get_extra_info  # type: ignore[method-assign]

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return AsyncOwnStream(await self._stream.start_tls(*args, **kwargs))


class OwnBackend(httpcore.SyncBackend):
    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return OwnStream(super().connect_tcp(*args, **kwargs))


class AsyncOwnBackend(httpcore.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return AsyncOwnStream(await super().connect_tcp(*args, **kwargs))


BACKENDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "own-threads": ("threads", OwnBackend),
    "own-asyncio": ("asyncio", AsyncOwnBackend),
    "anyio-trio": ("trio", httpcore.AnyIOBackend),
}


@pytest.mark.parametrize("how", ["well", *SPOILT])
@pytest.mark.parametrize("way", ["http", "https"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_over_a_backend_of_the_users_own(certificates: Certificates, backend: str, way: str, how: str) -> None:
    if how in TLS_ONLY and way == "http":
        return
    runner, make = BACKENDS[backend]
    with Misbehaving(certificates, way) as server:

        async def main(talk: Talk) -> list[str]:
            return await conversation(talk, server, how)

        transport: Any = PoolkitTransport() if runner == "threads" else AsyncPoolkitTransport()
        pool = PoolkitConnectionPool if runner == "threads" else AsyncPoolkitConnectionPool
        transport._pool = pool(network_backend=make(), ssl_context=server.client_tls)
        spoilt, first, second = RUNNERS[runner](main, transport)
        assert (spoilt == first) == (how == "well")
        assert first == second


def test_a_connection_that_cannot_be_looked_at_is_not_used_again(certificates: Certificates) -> None:
    """Its slot is free, which is the only one of the pool."""

    class Blind(OwnStream):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self.get_extra_info = self._refuse  # type: ignore[method-assign]

        def _refuse(self, info: str) -> Any:
            if info == "is_readable":
                raise ValueError(info)
            return self.inner.get_extra_info(info)

    class Backend(httpcore.SyncBackend):
        def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
            return Blind(super().connect_tcp(*args, **kwargs))

    with Misbehaving(certificates, "http") as server:

        async def main(talk: Talk) -> list[str]:
            return await conversation(talk, server, "well")

        transport: Any = PoolkitTransport()
        transport._pool = PoolkitConnectionPool(network_backend=Backend(), max_connections=1)
        assert len(set(RUNNERS["threads"](main, transport))) == 3


class OwnConnections(PoolkitConnectionPool):
    """Creates connections from streams that it opens itself, as httpx-socks does."""

    def create_connection(self, origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        stream = httpcore.SyncBackend().connect_tcp(origin.host.decode(), origin.port)
        if origin.scheme == b"https":
            return httpcore.HTTP2Connection(origin, stream.start_tls(self._ssl_context, origin.host.decode()))  # type: ignore[arg-type]
        return httpcore.HTTP11Connection(origin, stream)


@pytest.mark.parametrize("how", ["well", "twice", "late", "fin"])
def test_the_same_over_connections_of_the_users_own(certificates: Certificates, how: str) -> None:
    with Misbehaving(certificates, "http") as server:

        async def main(talk: Talk) -> list[str]:
            return await conversation(talk, server, how)

        transport: Any = PoolkitTransport()
        transport._pool = OwnConnections()
        spoilt, first, second = RUNNERS["threads"](main, transport)
        assert (spoilt == first) == (how == "well")
        assert first == second


def test_the_users_own_connections_may_speak_http_2(certificates: Certificates) -> None:
    with H2Server(certificates, 10) as server:
        context = certificates.client_context()
        context.set_alpn_protocols(["h2"])
        with OwnConnections(ssl_context=context) as pool:
            for _ in range(2):
                assert pool.request("GET", f"{server.url}/now").status == 200
            assert len(server.connections) == 1
            pool.poolkit.check_books()
