"""A test of an application that replaces ``socket.socket`` by a function gets the errors that it raises."""

from __future__ import annotations

import socket
from typing import Any

import httpcore
import pytest
import redis

from poolkit import ConnectFailed
from poolkit.testing.servers import HTTPServer
from poolkit_adapters._hang_up import is_socket
from poolkit_adapters.httpcore import PoolkitConnectionPool as HTTPPool
from poolkit_adapters.redis import PoolkitConnectionPool as RedisPool


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch it like ``unittest.mock.patch("socket.socket", side_effect=...)``."""
    real = socket.socket

    def make(*args: Any, **kwargs: Any) -> socket.socket:
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "socket", make)


@pytest.mark.usefixtures("patched")
def test_an_error_of_a_redis_connect_arrives_as_itself() -> None:
    """The search for sockets that the connect has left open does not raise another error."""
    pool = RedisPool(host="127.0.0.1", port=1, retry=None)
    with pytest.raises(redis.ConnectionError) as caught:
        pool.get_connection()
    assert isinstance(caught.value, ConnectFailed)
    pool.close()


@pytest.mark.usefixtures("patched")
def test_an_http_connection_is_used_again(http_server: HTTPServer) -> None:
    """The pool finds its socket and checks it before the second request."""
    with HTTPPool() as pool:
        for _ in range(2):
            assert pool.request("GET", http_server.url).status
        assert pool.poolkit.stats().connects == 1


def test_a_socket_is_recognised_if_its_class_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class such as gevent's, or a function; also sockets that were created before."""

    class Other:
        pass

    with socket.socket() as before:
        assert is_socket(before)
        monkeypatch.setattr(socket, "socket", Other)
        assert is_socket(before)
        assert is_socket(Other())
        monkeypatch.setattr(socket, "socket", lambda: Other())
        assert is_socket(before)
        assert not is_socket(Other())


@pytest.mark.usefixtures("patched")
def test_an_error_of_an_http_connect_arrives_as_itself() -> None:
    """It is an error of httpcore."""
    with HTTPPool() as pool, pytest.raises(httpcore.ConnectError):
        pool.request("GET", "http://127.0.0.1:1/")
