"""Routes and permissions of the dashboard: a request in, a response out, without sockets, threads or event loops.

Anyone who can reach the dashboard may read. An action requires that actions are enabled, that the request has the token
if one is set, and that no page of another origin sent it. A refused request changes nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import urlsplit

from .._log import logger
from ..errors import ConfigError, PoolError, shown

__all__ = ("ACTIONS", "BODY", "MARK", "Desk", "Refused", "Request", "Response", "Source", "checked_token")

ACTIONS = ("clear", "suspend", "resume", "resize")
BODY = 10_000  # bytes of a request body; an action is short
SHARED = 0.5  # seconds for which all requests get the same snapshot
SHORTEST_TOKEN = 16
MARK = "poolkit-dashboard"
"""A header by which a client recognises a dashboard: another server may answer at the address."""

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "parts.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "address.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    MARK: "1",
}
_POOL = re.compile(r"/api/pools/([^/]+)")
_ACTION = re.compile(r"/api/pools/([^/]+)/([^/]+)")


class Refused(PoolError):
    """The request was refused and changed nothing. ``status`` is the HTTP status code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


class Source(Protocol):
    """The origin of the pools that are shown: this process or other processes."""

    def state(self) -> dict[str, Any]:
        """Return a snapshot (see :mod:`poolkit.dashboard._state`). Raises Refused."""

    def history(self) -> dict[str, Any]:
        """Return the history of each pool. Raises Refused."""

    def detail(self, pool: str) -> dict[str, Any]:
        """Return the details of one pool, by its id. Raises Refused."""

    def mark(self) -> object:
        """Return a value that changes when a pool is created or closed. None: snapshots must not be shared."""

    def act(self, pool: str, action: str, options: dict[str, Any]) -> str:
        """Perform the action and return a description of it. Raises Refused."""


@dataclass(frozen=True)
class Request:
    """``path`` is relative to where the application is mounted, ``root``; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    root: str = ""


@dataclass(frozen=True)
class Response:
    """``headers`` are complete; a response to HEAD has no body."""

    status: int
    headers: dict[str, str]
    body: bytes


def checked_token(token: str | None) -> str | None:
    """Return the token. Raises ConfigError if it is too short."""
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii()):
        raise ConfigError(
            f"token: must be {SHORTEST_TOKEN} ASCII characters or more; secrets.token_urlsafe() makes one", "token"
        )
    return token


class _Shared:
    """A snapshot as JSON that all requests within ``SHARED`` seconds get, so that more readers cause no more work.

    ``mark``: as of :class:`Source`. Thread-safe; one thread creates the snapshot while the others wait for it.
    """

    def __init__(self, make: Callable[[], Any], mark: Callable[[], object], clock: Callable[[], float]) -> None:
        self._make = make
        self._mark = mark
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._kept: bytes | None = None
        self._of: object = None
        self._until = 0.0

    def get(self) -> bytes:
        """Return the snapshot. An error of ``make`` is not kept."""
        if self._pid != os.getpid():  # in a forked child: the lock may be held by a thread of the parent
            self._begin()
        mark = self._mark()
        if mark is None:
            return _json(self._make())
        with self._lock:
            if self._kept is None or self._of != mark or self._clock() >= self._until:
                self._kept = _json(self._make())
                self._of, self._until = mark, self._clock() + SHARED
            return self._kept

    def forget(self) -> None:
        """Drop the snapshot after an action, so that the next request shows its result."""
        if self._pid == os.getpid():
            with self._lock:
                self._kept = None


class Desk:
    """Answers requests about the pools of ``source``. Thread-safe if that is.

    ``token``: required for actions (None: no token, because access is controlled by other means). ``hosts``: names that
    the Host header may have besides ``localhost`` and IP addresses, against DNS rebinding; None: any.
    """

    def __init__(
        self, source: Source, *, actions: bool, token: str | None = None, hosts: Iterable[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._source = source
        self._state = _Shared(self._make_state, source.mark, clock)
        self._history = _Shared(source.history, source.mark, clock)
        self._actions = actions
        self._token = token
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    def respond(self, request: Request) -> Response:
        """Return the response. Never raises because of what a client sends."""
        extra: dict[str, str] = {}
        try:
            self._require_host(request)
            status, kind, body = self._answer(request, extra)
        except Refused as error:
            status, kind, body = error.status, "application/json", _json({"error": shown(error, 2000)})
        except PoolError as error:
            status, kind, body = 502, "application/json", _json({"error": shown(error, 2000)})
        except Exception:
            logger.exception("the dashboard failed at %s %s", shown(request.method), shown(request.path))
            status, kind, body = 500, "application/json", _json({"error": "internal error; see the service's log"})
        headers = {"content-type": kind, "content-length": str(len(body)), **_HEADERS, **extra}
        return Response(status, headers, b"" if request.method == "HEAD" else body)

    @staticmethod
    def busy() -> Response:
        """Return the response to a request above the limit of concurrent requests."""
        return _refusal(503, "too many requests at once; try again", {"retry-after": "1"})

    @staticmethod
    def late() -> Response:
        """Return the response to a client that takes too long to send its request."""
        return _refusal(408, "the request took too long", {"connection": "close"})

    def _answer(self, request: Request, extra: dict[str, str]) -> tuple[int, str, bytes]:
        path = request.path
        if len(request.body) > BODY:
            raise Refused(413, f"the body is longer than {BODY} bytes")
        if path == "":  # mounted without a trailing slash, to which the page's addresses are relative
            extra["location"] = request.root + "/"
            return 308, "text/plain", b""
        name = "index.html" if path == "/" else path[1:]
        found = _ACTION.fullmatch(path)
        if found and found[2] in ACTIONS:
            _require_method(request, extra, "POST")
            return 200, "application/json", _json({"done": self._act(request, extra, found[1], found[2])})
        opened = _POOL.fullmatch(path)
        if name not in _PAGE and path not in ("/api/state", "/api/history") and not opened:
            raise Refused(404, f"nothing at {path}; there are /, /api/state, /api/history, /api/pools/ID and, by POST, "
                               f"/api/pools/ID/ACTION with ACTION one of {', '.join(ACTIONS)}")  # fmt: skip
        _require_method(request, extra, "GET", "HEAD")
        if path == "/api/state":
            return 200, "application/json", self._state.get()
        if path == "/api/history":
            return 200, "application/json", self._history.get()
        if opened:
            return 200, "application/json", _json(self._source.detail(opened[1]))
        return 200, _PAGE[name], _asset(name)

    def _make_state(self) -> dict[str, Any]:
        state = self._source.state()
        state["actions"] = state["actions"] and self._actions
        state["token"] = self._token is not None
        return state

    # -- actions ------------------------------------------------------------------------------------------------------

    def _act(self, request: Request, extra: dict[str, str], pool: str, action: str) -> str:
        if not self._actions:
            raise Refused(403, "actions are not enabled in this dashboard")
        _refuse_foreign(request)
        if self._token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._token.encode())
            if scheme.lower() != "bearer" or not right:
                extra["www-authenticate"] = "Bearer"
                raise Refused(401, "an action needs the token: send the header Authorization: Bearer TOKEN")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "an action needs a JSON object: send Content-Type: application/json")
        options = _options(request.body, action)
        try:
            return self._source.act(pool, action, options)
        finally:
            self._state.forget()

    def _require_host(self, request: Request) -> None:
        if self._hosts is None:
            return
        given = request.headers.get("host", "")
        host = (urlsplit(f"//{given}").hostname or "").lower() if _is_authority(given) else ""
        if host != "localhost" and host not in self._hosts and not _is_address(host):
            raise Refused(403, f"the host name {given!r} is not allowed; allow it with --allow-host or allowed_hosts")


def _refusal(status: int, text: str, extra: dict[str, str]) -> Response:
    body = _json({"error": text})
    headers = {"content-type": "application/json", "content-length": str(len(body)), **_HEADERS, **extra}
    return Response(status, headers, body)


def _require_method(request: Request, extra: dict[str, str], *methods: str) -> None:
    if request.method not in methods:
        extra["allow"] = ", ".join(methods)
        raise Refused(405, f"{request.method} {request.path}: must be {' or '.join(methods)}")


def _refuse_foreign(request: Request) -> None:
    """Refuse requests from pages of another origin. Browsers send the origin, other programs do not."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    site = request.headers.get("sec-fetch-site")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    if foreign or site in ("cross-site", "same-site"):
        raise Refused(403, "an action from a page of another origin is refused")


def _options(body: bytes, action: str) -> dict[str, Any]:
    """Return the options of an action. Raises Refused if they are invalid."""
    try:
        options = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(options, dict):
        raise Refused(400, "the body must be a JSON object")
    known = {"suspend": {"fail_fast"}, "resize": {"max_size"}}.get(action, set())
    unknown = sorted(set(options) - known)
    if unknown:
        raise Refused(400, f"{action}: unknown option {unknown[0]!r} (known: {', '.join(known) or 'none'})")
    if action == "resize" and not isinstance(options.get("max_size"), int):  # None would mean no limit
        raise Refused(400, f"resize: max_size={options.get('max_size')!r} must be a whole number, 1 or more")
    if not isinstance(options.get("fail_fast", False), bool):
        raise Refused(400, f"suspend: fail_fast={options['fail_fast']!r} must be true or false")
    return options


def _is_authority(text: str) -> bool:
    return re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d+)?", text) is not None


def _is_address(host: str) -> bool:
    """Return whether the host is an IP address. These are always allowed: DNS rebinding needs a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@cache
def _asset(name: str) -> bytes:
    return (files(__package__ or "poolkit.dashboard") / "page" / name).read_bytes()


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
