"""A reply never reaches another request, and no request fails because the server had closed an idle connection."""

from __future__ import annotations

import select
from typing import Any

import pytest

from poolkit.testing.servers import Certificates
from poolkit_adapters.urllib3 import PoolkitPoolManager, PoolkitProxyManager
from tests.support.strangers import LATE, SPOILT, TLS_ONLY, Misbehaving, number

WAYS = ("http", "https", "http-proxy", "https-proxy", "https-tls-proxy", "http-socks", "https-socks")


def manager(server: Misbehaving) -> Any:
    settings: dict[str, Any] = {"maxsize": 1, "block": True, "check_after_idle": 3600, "retries": False}
    if server.secure:
        settings["ssl_context"] = server.client_tls
    port = server._listener.getsockname()[1]
    if server.way.endswith("socks"):
        pytest.importorskip("socks")
        from poolkit_adapters.urllib3 import PoolkitSOCKSProxyManager

        return PoolkitSOCKSProxyManager(f"socks5://127.0.0.1:{port}", **settings)
    if server.way.endswith("tls-proxy"):
        return PoolkitProxyManager(f"https://127.0.0.1:{port}", proxy_ssl_context=server.client_tls, **settings)
    if server.way.endswith("proxy"):
        return PoolkitProxyManager(f"http://127.0.0.1:{port}", **settings)
    return PoolkitPoolManager(**settings)


def arrived(pool: Any) -> None:
    """Wait until something is to be read from the idle connection."""
    [conn] = pool.pool.queue
    if conn.sock is not None:
        poll = select.poll()
        poll.register(conn.sock.fileno(), select.POLLIN)
        assert poll.poll(10_000), "the server has not said anything"


def conversation(server: Misbehaving, how: str) -> list[str]:
    """The connections of a request that is answered in the way ``how`` and of two more, which must get their own
    answers.
    """
    connections = []
    with manager(server) as http:
        for turn in range(3):
            one = number()
            way = how if turn == 0 else "well"
            response = http.request("HEAD" if way == "head" else "POST", server.url(way, one))
            assert response.headers["x-number"] == one
            assert response.data in (one.encode(), b"")
            connections.append(response.headers["x-connection"])
            if turn == 0:
                server.go(one)
                if how in LATE or how == "tls-record":
                    arrived(http.connection_from_url(server.url("well", one)))
        assert sum(engine.stats().in_use for engine in http.engines) == 0
    return connections


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("way", WAYS)
def test_a_reply_never_reaches_another_request(certificates: Certificates, way: str, how: str) -> None:
    """A connection with unread data is closed, and the next request, a POST, gets another one."""
    if how in TLS_ONLY and not way.startswith("https"):
        return
    with Misbehaving(certificates, way) as server:
        spoilt, first, second = conversation(server, how)
    assert spoilt != first
    assert first == second


@pytest.mark.parametrize("way", WAYS)
def test_a_sound_connection_is_used_again(certificates: Certificates, way: str) -> None:
    with Misbehaving(certificates, way) as server:
        assert len(set(conversation(server, "well"))) == 1


def test_a_record_that_is_only_for_the_tls_layer_does_no_harm(certificates: Certificates) -> None:
    """urllib3's own check takes it for the end of the connection."""
    with Misbehaving(certificates, "https") as server:
        assert len(set(conversation(server, "tls-record"))) == 1
