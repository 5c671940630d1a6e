"""Nodes from etcd v3, through the JSON gateway that every etcd server has on its client port.

https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/ . Three kinds of POST request, made with the standard library.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

from .._numbers import seconds
from .._watchdog import Watchdog
from ..errors import ConfigError, said, shown
from ..runtimes.names import addresses
from ._node import Node, checked_nodes, parse_node
from ._source import Discovery, Found

__all__ = ("EtcdDiscovery", "EtcdError")


class EtcdError(OSError):
    """etcd answered with an error."""


class EtcdDiscovery(Discovery):
    """Nodes from the keys below ``prefix``: the rest of a key is the node's name, its value a JSON object of fields.

    A value is for example ``{"address": "10.0.0.1:5432", "weight": 2}``; a plain JSON string is an address. The prefix
    is watched, so a change takes effect at once. One invalid key refuses the whole state, as with a file.

    Args:
        prefix: the part of the keys before the nodes' names.
        endpoint: ``http://host:2379`` or ``https://host:2379``.
        user: the user, if etcd's authentication is on, with ``password``.
        tls: an ``ssl.SSLContext`` for https; None: the default one.
        timeout: seconds for reading all keys, and for starting a watch: resolver, connect, TLS, login and the whole
            answer together. If ``endpoint`` has several addresses, each one gets an equal part of what is left.
        watch_for: seconds after which a watch without an event is restarted, so that a dead connection is noticed.

    Raises :class:`~poolkit.ConfigError` for an invalid argument.
    """

    def __init__(
        self,
        prefix: str,
        *,
        endpoint: str = "http://127.0.0.1:2379",
        user: str | None = None,
        password: str = "",
        tls: ssl.SSLContext | None = None,
        timeout: float = 5.0,
        watch_for: float = 60.0,
    ) -> None:
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname, parts.port or 2379
        except ValueError:  # its text may quote part of a password
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            raise ConfigError(f"endpoint={endpoint!r}: must be http://host:port or https://host:port", "endpoint")
        if not prefix:
            raise ConfigError(f"prefix={prefix!r}: must be the part of the keys before the node names", "prefix")
        seconds("timeout", timeout, above=True)
        seconds("watch_for", watch_for, above=True)
        self.prefix = prefix
        self.timeout = timeout
        self.watch_for = watch_for
        self._host, self._port = host, port
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._user, self._password = user, password
        self._watchdog = Watchdog(_expire)
        self._watching: http.client.HTTPConnection | None = None
        self._closed = False

    def find(self, last: Found | None) -> Found:
        """Wait for a change after ``last`` (up to ``watch_for`` seconds), then read all keys."""
        if last is None:
            self._closed = False  # used again after close(); otherwise it would ask without a pause
        else:
            self._wait_for_change(last.mark)
            if self._closed:
                return last
        body = self._ask("/v3/kv/range", {"key": _coded(self.prefix), "range_end": _end_of(self.prefix)})
        nodes = [self._node(pair) for pair in body.get("kvs", ())]
        return Found(checked_nodes(nodes, f"etcd {self.prefix}"), again=0.0, mark=int(body["header"]["revision"]))

    def _node(self, pair: dict[str, str]) -> Node:
        key = base64.b64decode(pair["key"]).decode("utf-8", "replace")
        text = base64.b64decode(pair.get("value", "")).decode("utf-8", "replace")
        source = f"etcd {key}"
        try:
            value: Any = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{source}: not valid JSON: {error}", "nodes") from error
        item = {"address": value} if isinstance(value, str) else value
        if isinstance(item, dict):
            item = {"name": key.removeprefix(self.prefix).strip("/"), **item}
        return parse_node(item, source)

    def _wait_for_change(self, revision: int) -> None:
        """Watch for up to ``watch_for`` seconds for a change after ``revision``.

        The caller reads all keys after any end of the watch. A server that was restored from a backup continues from
        an earlier revision, so a watch would report no change until the server has caught up.
        """
        with self._request() as request, closing(request.connection) as connection:
            self._watching = connection
            if self._closed:
                return
            what = {"key": _coded(self.prefix), "range_end": _end_of(self.prefix), "start_revision": str(revision + 1)}
            answer = self._post(request, "/v3/watch", {"create_request": what})
            request.extend(self.watch_for)
            try:
                if any(_ends_watch(line, revision) for line in iter(answer.readline, b"")):
                    return
            except (OSError, ValueError, http.client.HTTPException):
                if not request.overdue:
                    raise
            if not request.overdue:
                raise EtcdError(f"etcd {self._host}:{self._port} closed the watch")

    def _ask(self, path: str, body: dict[str, Any], within: _Request | None = None) -> Any:
        with self._request(within) as request, closing(request.connection):
            return json.loads(self._post(request, path, body).read())

    def _request(self, within: _Request | None = None) -> _Request:
        if self._tls is not None:
            made: http.client.HTTPConnection = http.client.HTTPSConnection(self._host, self._port, context=self._tls)
        else:
            made = http.client.HTTPConnection(self._host, self._port)
        request = _Request(made, self._watchdog, self.timeout)
        if within is not None:
            request.deadline = within.deadline
        return request

    def _post(self, request: _Request, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if self._user is not None and path != "/v3/auth/authenticate":
            token = self._ask("/v3/auth/authenticate", {"name": self._user, "password": self._password}, request)
            headers["Authorization"] = token["token"]
        connection = request.connection
        connection.request("POST", path, json.dumps(body).encode(), headers)
        answer = request.answer = connection.getresponse()
        if answer.status != 200:
            text = f"{answer.status} {shown(answer.reason)}: {said(answer.read(500))}"
            raise EtcdError(f"etcd {self._host}:{self._port}{path}: {text}")
        return answer

    def close(self) -> None:
        """End a watch that is running. Thread-safe."""
        self._closed = True
        self._watchdog.stop()
        sock = self._watching.sock if self._watching is not None else None
        if sock is not None:
            _shut(sock)


class _Request:
    """A connection for one request, with one deadline for all that it does. Use it in a ``with`` block.

    Each step gets the time that is left. An answer in small pieces never exceeds a time limit of the socket, so the
    watchdog shuts the socket down at the deadline. Raises TimeoutError then.
    """

    def __init__(self, connection: http.client.HTTPConnection, watchdog: Watchdog, seconds: float) -> None:
        self.connection = connection
        self.answer: http.client.HTTPResponse | None = None
        self.overdue = False
        self._watchdog = watchdog
        self._seconds = seconds
        self.deadline = time.monotonic() + seconds
        self._held: socket.socket | None = None  # a second descriptor: while TLS starts, the first object has none
        self._armed = 0
        # instead of socket.create_connection(), which has no timeout while the resolver does not answer
        connection._create_connection = self._open  # type: ignore[attr-defined]

    def left(self) -> float:
        """Return the seconds until the deadline. Raises TimeoutError if there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        return left

    def extend(self, seconds: float) -> None:
        """Move the deadline to ``seconds`` from now."""
        self._seconds, self.deadline = seconds, time.monotonic() + seconds
        if self.connection.sock is not None:
            self.connection.sock.settimeout(seconds)
        if self._held is not None:
            self._watchdog.disarm(self._armed)
            self._armed = self._watchdog.arm(seconds, self._shut)

    def _open(self, place: tuple[str, int], timeout: object, source: Any = None) -> socket.socket:
        """Connect to the first address that accepts a connection. None may take the time of those after it."""
        host, port = place
        failure = OSError(f"{host!r} has no address")
        found = addresses(host, port, self.left()) or [host]
        for number, address in enumerate(found):
            try:
                sock = socket.create_connection((address, port), self.left() / (len(found) - number), source)
            except OSError as error:
                failure = error
                continue
            try:
                sock.settimeout(self.left())
                self._held = sock.dup()
                self._armed = self._watchdog.arm(self.left(), self._shut)
            except BaseException:
                sock.close()
                raise
            return sock
        raise failure

    def _shut(self) -> None:
        self.overdue = True
        if self._held is not None:
            _shut(self._held)

    def _late(self) -> TimeoutError:
        return TimeoutError(f"etcd {self.connection.host}:{self.connection.port}: no answer within {self._seconds:g} s")

    def __enter__(self) -> _Request:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self.answer is not None:
            self.answer.close()  # it may own the socket, or share it with the connection
        held, self._held = self._held, None
        if held is not None:
            self._watchdog.disarm(self._armed)
            held.close()
        if self.overdue and isinstance(error, (OSError, ValueError, http.client.HTTPException)):
            raise self._late() from error


def _expire(shut: Callable[[], None]) -> None:
    shut()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _ends_watch(line: bytes, revision: int) -> bool:
    """Return whether a message of a watch says that all keys are to be read again."""
    result = json.loads(line).get("result", {})
    if result.get("canceled") or result.get("events"):  # "canceled": the revision was compacted
        return True
    return bool(int(result.get("header", {}).get("revision", revision)) < revision)


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _end_of(prefix: str) -> str:
    """Return the first key after all keys that start with ``prefix``."""
    raw = prefix.encode()
    return base64.b64encode(raw[:-1] + bytes([raw[-1] + 1])).decode()
