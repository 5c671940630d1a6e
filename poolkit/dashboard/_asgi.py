"""The dashboard as an ASGI application that mounts in any framework."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from ..runtimes.current import current_runtime
from . import _server
from ._desk import BODY, Desk, Request, Response, Source, checked_token
from ._local import Local
from ._server import Places, address_of

__all__ = ("DashboardApp", "RemoteApp")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class DashboardApp:
    """The dashboard of this process: ``app.mount("/pools", DashboardApp())``. Page at ``/``, JSON at ``/api/state``.

    ``token`` (16 characters or more) enables the actions for clients that send it; without a token the dashboard is
    read-only. Anyone who can reach the application may read: mount it behind the service's access control.
    ``allowed_hosts``: names that the Host header may have besides ``localhost`` and IP addresses; None: any, left to
    the surrounding application. ``service``: the name in the page's title and in ``poolkit top``; None: that of the
    program. Runs on asyncio and trio and waits for no I/O of the pools. Raises ConfigError for a token that is too
    short and an empty name.
    """

    def __init__(
        self, *, token: str | None = None, allowed_hosts: Iterable[str] | None = None, service: str | None = None
    ) -> None:
        actions = checked_token(token) is not None
        local = Local(actions=actions, service=service)
        self._desk = Desk(local, actions=actions, token=token, hosts=allowed_hosts)
        self._places = Places()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or the lifespan of a server; a WebSocket is refused.

        A request must arrive within 5 seconds and be answered within another 5. While 16 requests are in progress,
        further ones get status 503.
        """
        # behind a proxy all requests come from one address
        await _asgi(self._answer, self._places, "", scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        return self._desk.respond(request)


class RemoteApp:
    """The same for a source that is read over sockets: it runs in threads, so that the loop continues. Only asyncio."""

    def __init__(self, source: Source, *, token: str | None, allowed_hosts: Iterable[str]) -> None:
        self._desk = Desk(source, actions=checked_token(token) is not None, token=token, hosts=allowed_hosts)
        self._places = Places()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _asgi(self._answer, self._places, address_of(scope.get("client")), scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        import asyncio

        return await asyncio.to_thread(self._desk.respond, request)


async def _asgi(
    answer: Callable[[Request], Awaitable[Response]], places: Places, address: str, scope: Scope, receive: Receive,
    send: Send,
) -> None:  # fmt: skip
    """ASGI 3 around one function. Raises ValueError for unknown scope types, as the specification requires."""
    kind = scope["type"]
    if kind == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    if kind != "http":
        raise ValueError(f"the dashboard does not speak {kind!r}")
    bounded = current_runtime().bounded
    if not places.take(address):
        with contextlib.suppress(TimeoutError):
            await bounded(_server.PATIENCE, _send, Desk.busy(), send)
        return
    try:
        try:
            body = await bounded(_server.PATIENCE, _body, receive)
        except TimeoutError:
            response = Desk.late()
        else:
            if body is None:
                return  # the client has disconnected
            response = await answer(_request(scope, body))
        # a client that does not read is disconnected, because the server sees an incomplete response
        with contextlib.suppress(TimeoutError):
            await bounded(_server.PATIENCE, _send, response, send)
    finally:
        places.leave(address)


async def _send(response: Response, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body; of a body that is too long, only enough to detect that."""
    found: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        found += message.get("body", b"")
        if not message.get("more_body", False) or len(found) > BODY:
            return found


def _request(scope: Scope, body: bytes) -> Request:
    root = scope.get("root_path", "").rstrip("/")
    path = scope["path"]
    # by the specification path begins with root_path; older servers and frameworks leave it out
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return Request(scope["method"], path, headers, body, root)
